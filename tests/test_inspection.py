"""Model folders that a stranger wrote: each is refused with a reason before it can do anything, or it loads."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from test_models import edit, policy, tokenizer
from triptych.data.template import prompt_tokens
from triptych.display import one_line
from triptych.engine import inspection, models
from triptych.errors import ModelError
from triptych.records import Prompt

attack = pytest.mark.attack("model folders")
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    models.save(policy(), tokenizer(), folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def load(folder: Path) -> None:
    """All that is opened of a folder."""
    models.load_policy(folder)
    models.load_tokenizer(folder)


def refused(folder: Path, *parts: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert message == one_line(message)
    assert all(part in message for part in (str(folder), *parts)), message
    assert time.monotonic() - started < 5


def config(**fields: object) -> Spoil:
    return lambda folder: edit(folder / "config.json", **fields)


def tokens(**fields: object) -> Spoil:
    return lambda folder: edit(folder / "tokenizer_config.json", **fields)


def write(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def further_down(folder: Path) -> None:
    (folder / "x").mkdir()
    os.mkfifo(folder / "x" / "y")


def in_a_circle(folder: Path) -> None:
    (folder / "a.json").symlink_to("b.json")
    (folder / "b.json").symlink_to("a.json")


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def listen(path: Path) -> None:
    # The name of a socket is short: it is made beside and moved.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def shards(**more: str) -> Spoil:
    """Two files, and in both of them one tensor; or an index that says what is not so."""

    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        first = dict(list(state.items())[:9])
        second = {name: tensor for name, tensor in state.items() if name not in first or name == more.get("twice")}
        place = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
        if "wrong" in more:
            place[more["wrong"]] = "b.safetensors"
        save_file(first, folder / "a.safetensors", metadata={"format": "pt"})
        save_file(second, folder / "b.safetensors", metadata={"format": "pt"})
        edit(folder / inspection.INDEX, weight_map=place, metadata={})

    return spoil


def untied(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1


def far_token(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 2**31 - 1
    (folder / "tokenizer.json").write_text(json.dumps(content))


def pickle_of_torch(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    edit(folder / "config.json", transformers_weights="adapter_model.bin")


def outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "other.safetensors")
    edit(folder / "config.json", transformers_weights="../other.safetensors")


DEEP = "[" * 100_000 + "]" * 100_000
REFUSED: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "weights named outside": (outside, ("config.json: transformers_weights", "plain name")),
    "weights named as a pickle": (pickle_of_torch, ("config.json: transformers_weights", "plain name")),
    "weights named as an index": (config(transformers_weights=inspection.INDEX), ("plain name",)),
    "weights named absolutely": (config(transformers_weights="/etc/x.safetensors"), ("plain name",)),
    "weights named that are missing": (config(transformers_weights="x.safetensors"), ("which is missing",)),
    "weights named by a number": (config(transformers_weights=3), ("plain name",)),
    "weights named in a part": (config(text_config={"transformers_weights": "model.safetensors"}), ("at the top",)),
    "another name for the weights' name": (
        config(attribute_map={"transformers_weights": "x"}, x="../o.safetensors"), ("attribute_map is no setting",)
    ),
    "a method": (config(get_text_config=1), ("config.json: get_text_config is no setting",)),
    "a method of generation": (
        lambda folder: edit(folder / "generation_config.json", to_dict="x"), ("generation_config.json: to_dict",)
    ),
    "fused layers": (config(fusion_config={"x": True}), ("fusion_config is no setting",)),
    "quantised": (config(quantization_config={"quant_method": "mxfp4"}), ("config.json: the weights are quantised",)),
    "a distributed checkpoint": (
        write("shard-00001-model-00001-of-00001.safetensors", b"x"), ("part of a distributed checkpoint",)
    ),
    "a FIFO for the configuration": (instead("config.json", os.mkfifo), ("config.json: is a FIFO",)),
    "a FIFO for the weights": (instead("model.safetensors", os.mkfifo), ("model.safetensors: is a FIFO",)),
    "a FIFO for the template": (instead("chat_template.jinja", os.mkfifo), ("chat_template.jinja: is a FIFO",)),
    "a FIFO further down": (
        further_down, ("is a FIFO",)
    ),
    "a socket": (instead("tokenizer.json", listen), ("tokenizer.json: is a socket",)),
    "a link to a device": (
        instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
        ("tokenizer.json: is a link that leads outside",),
    ),
    "a link to itself": (
        instead("config.json", lambda path: path.symlink_to(path.name)), ("config.json",)
    ),
    "two links to each other": (
        in_a_circle,
        ("a.json: is a link that leads nowhere, or in a circle",),
    ),
    "a link to nothing": (instead("x", lambda path: path.symlink_to("y")), ("leads nowhere",)),
    "a link to a folder": (instead("x", lambda path: path.symlink_to(".")), ("is a link to what is no file",)),
    "a folder for the configuration": (instead("config.json", Path.mkdir), ("config.json: is a folder",)),
    "a folder for the weights": (instead("model.safetensors", Path.mkdir), ("model.safetensors: is a folder",)),
    "a folder for the tokenizer": (instead("tokenizer.json", Path.mkdir), ("tokenizer.json: is a folder",)),
    "deep JSON": (write("config.json", f'{{"a": {DEEP}}}'), ("config.json: is not valid JSON",)),
    "deep JSON for generation": (write("generation_config.json", f'{{"a": {DEEP}}}'), ("generation_config.json",)),
    "deep JSON for the tokenizer": (write("tokenizer.json", f'{{"a": {DEEP}}}'), ("tokenizer.json",)),
    "rather deep JSON": (config(a=json.loads("[" * 500 + "]" * 500)), ("config.json: has values inside values",)),
    "a list": (write("config.json", "[]"), ("config.json: must be a JSON object",)),
    "NaN": (write("config.json", '{"a": NaN}'), ("config.json", "NaN")),
    "infinity": (write("config.json", '{"a": 1e999}'), ("config.json", "too large")),
    "a number of 5,000 digits": (write("config.json", f'{{"a": {"9" * 5000}}}'), ("config.json", "digits")),
    "a name twice": (write("config.json", '{"a": 1, "a": 2}'), ("config.json", "'a' stands twice")),
    "no UTF-8": (write("config.json", b'{"a": "\xff"}'), ("config.json", "utf-8")),
    "no UTF-8 for a template": (write("chat_template.jinja", b"\xff"), ("chat_template.jinja", "utf-8")),
    "half a character": (write("tokenizer_config.json", '{"chat_template": "\\ud800"}'), ("half a character",)),
    "a gigabyte of settings": (
        lambda folder: os.truncate(folder / "config.json", 2**30), ("config.json: is larger than 16 MiB",)
    ),
    "a gigabyte of vocabulary": (
        lambda folder: os.truncate(folder / "tokenizer.json", 2**30), ("tokenizer.json: is larger than 128 MiB",)
    ),
    "a gigabyte of template": (
        lambda folder: os.truncate(folder / "chat_template.jinja", 2**30), ("chat_template.jinja: is larger",)
    ),
    "a billion layers": (config(num_hidden_layers=10**9), ("config.json: num_hidden_layers is 1000000000",)),
    "a billion layers in a part": (config(text_config={"num_hidden_layers": 10**9}), ("num_hidden_layers",)),
    "more layers than weights": (config(num_hidden_layers=7), ("has no weights for model.layers.2", "and 42 more")),
    "fewer layers than weights": (
        config(num_hidden_layers=1), ("model.safetensors: holds model.layers.1", "does not use")
    ),
    "a billion labels": (config(num_labels=10**9), ("config.json: num_labels is 1000000000",)),
    "a vocabulary of a trillion": (config(vocab_size=10**12), ("embed_tokens.weight is 258×16 in the weights",)),
    "a vocabulary beyond counting": (config(vocab_size=10**30), ("cannot be loaded",)),
    "a wide model": (config(hidden_size=2**24), ("in the weights, but",)),
    "a negative size": (config(vocab_size=-3), ("cannot be loaded",)),
    "a word for a size": (config(vocab_size="many"), ("cannot be loaded",)),
    "a list for an end": (config(eos_token_id=[[1]]), ("config.json: eos_token_id must be the number of a token",)),
    "a far token": (far_token, ("tokenizer.json: has a token of number 2147483647",)),
    "a far added token": (
        tokens(added_tokens_decoder={"2000000000": {"content": "<x>"}}),
        ("tokenizer_config.json: has a token of number 2000000000",),
    ),
    "a negative token": (write("added_tokens.json", '{"x": -5}'), ("added_tokens.json: has a token of number -5",)),
    "a tensor that is not used": (
        weights(lambda state: state.update(extra=torch.ones(2))), ("model.safetensors: holds extra, which",)
    ),
    "a tensor with a screenful of a name": (
        weights(lambda state: state.update({"\x1b[2J\nOK": torch.ones(2)})), ("model.safetensors: holds OK, which",)
    ),
    "a tensor in two shards": (
        shards(twice="model.embed_tokens.weight"),
        ("b.safetensors: model.embed_tokens.weight stands in a.safetensors too",),
    ),
    "a tensor that is elsewhere": (
        shards(wrong="model.embed_tokens.weight"), ("says that model.embed_tokens.weight is in b.safetensors",)
    ),
    "tied weights that differ": (weights(untied), ("lm_head.weight is not the same", "tie_word_embeddings")),
    "free weights that are missing": (
        config(tie_word_embeddings=False), ("has no weights for lm_head.weight, and tie_word_embeddings",)
    ),
    "a tokenizer outside": (
        tokens(fast_tokenizer_files=["../tokenizer.0.json"]), ("fast_tokenizer_files names '../tokenizer.0.json'",)
    ),
    "a vocabulary outside": (tokens(vocab_file="/etc/passwd"), ("vocab_file names what is read in place",)),
    "inputs of the tokenizer": (tokens(init_inputs=["/etc/passwd"]), ("init_inputs names",)),
    "a template that is a number": (tokens(chat_template=7), ("tokenizer_config.json: chat_template must be a text",)),
    "templates without names": (tokens(chat_template=[{"template": "x"}]), ("chat_template must be",)),
    "a field that steers the screen": (config(**{"\x1b[2J\nx": "a.py"}), ("config.json: x names 'a.py'",)),
}


@attack
@pytest.mark.parametrize("name", REFUSED)
def test_a_strangers_folder_is_refused_by_file_and_reason(folder: Path, name: str) -> None:
    spoil, parts = REFUSED[name]
    spoil(folder)
    refused(folder, *parts)


@attack
def test_a_file_of_another_name_may_hold_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    edit(folder / "config.json", transformers_weights="mine.safetensors")
    load(folder)


def test_shards_and_tied_weights_that_are_equal_load(folder: Path) -> None:
    weights(lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))(folder)
    shards()(folder)
    model = models.load_policy(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_of_another_kind_is_left_unread(folder: Path, tmp_path: Path) -> None:
    models.save(models.load_reward(folder, fresh=True), models.load_tokenizer(folder), tmp_path / "reward")
    models.load_policy(tmp_path / "reward")
    models.load_reward(tmp_path / "reward", fresh=True, outputs=("a", "b"))
    models.save(policy(tied=False), tokenizer(), tmp_path / "free")
    models.load_reward(tmp_path / "free", fresh=True)


@attack
def test_labels_are_compared_with_the_head(folder: Path, tmp_path: Path) -> None:
    models.save(models.load_reward(folder, fresh=True), models.load_tokenizer(folder), tmp_path / "reward")
    edit(tmp_path / "reward" / "config.json", id2label={str(number): str(number) for number in range(5_000)})
    with pytest.raises(ModelError, match="is 1×16 in the weights, but 5000×16 by config"):
        models.load_reward(tmp_path / "reward", fresh=False)


@attack
def test_nothing_outside_the_folder_is_opened(folder: Path) -> None:
    """What Python opens while a folder is loaded lies in it, or belongs to Python and the system."""
    load(folder)  # modules are imported
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    load(folder)
    watching = False
    own = [name for name in opened if name.startswith(str(folder))]
    system = (sys.prefix, sys.base_prefix, "/proc", "/sys")
    assert own
    # A number is a file that is open already.
    assert not [name for name in opened if name not in own and not name.startswith(system) and not name.isdigit()]


def value(draw: random.Random) -> object:
    words = ["", "x", "../x", "\x1b[2J", "float64", None, True, [], {}, [1], {"a": 1}, -1, 0, 3, 10**9, 1.5, -1e30]
    return draw.choice(words)


def mutate(folder: Path, draw: random.Random) -> None:
    """One field changed, a file cut, or some bytes of a file flipped."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    kind = draw.choice(["field", "cut", "flip"]) if path.suffix == ".json" else draw.choice(["cut", "flip"])
    content = bytearray(path.read_bytes())
    if kind == "field":
        settings = json.loads(content)
        place = settings
        while True:
            name = draw.choice(sorted(place))
            if isinstance(place[name], dict) and place[name] and draw.random() < 0.7:
                place = place[name]
            else:
                break
        place[name] = value(draw)
        path.write_text(json.dumps(settings))
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        for _ in range(draw.randint(1, 4)):
            place_of_byte = draw.randrange(min(len(content), 3000))
            content[place_of_byte] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def fuzz(made: Path, place: Path, seeds: range) -> int:
    """How many of these folders were refused; all others could be used, and none took long."""
    refusals = []
    for seed in seeds:
        folder = Path(shutil.copytree(made, place / str(seed)))
        mutate(folder, random.Random(seed))
        started = time.monotonic()
        try:
            model, words = models.load_policy(folder), models.load_tokenizer(folder)
            models.save(model, words, place / "saved")
            prompt_tokens(words, Prompt.of("hello"))
        except ModelError as error:
            refusals.append(str(error))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - started < 5, seed
        shutil.rmtree(folder)
        shutil.rmtree(place / "saved", ignore_errors=True)
    assert refusals == [one_line(message) for message in refusals]
    return len(refusals)


@attack
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folders_changed_at_random_load_or_are_refused(made: Path, tmp_path: Path, seed: int) -> None:
    assert 0 < fuzz(made, tmp_path, range(seed * 8, seed * 8 + 8)) < 8


@attack
@pytest.mark.slow
def test_many_folders_changed_at_random_load_or_are_refused(made: Path, tmp_path: Path) -> None:
    assert fuzz(made, tmp_path, range(1000, 1300)) > 0
