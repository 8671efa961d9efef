"""A base is taken from a folder, a GGUF file or the Hub, and ends as a plain folder that can be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hub_stand_in import TOKEN, StandIn
from triptych.base import source
from triptych.data import template
from triptych.engine import hub, models
from triptych.engine.scoring import RewardModel
from triptych.errors import ModelError
from triptych.records import Conversation, Prompt, user


def write_model(folder: Path, *, tied: bool = True, rows: int = 257) -> None:
    """A model of another's: no chat template, and the end token for padding."""
    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=end, eos_token=end)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    models.save(LlamaForCausalLM(config), tokenizer, folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_gets_a_template_and_padding(tmp_path: Path, tied: bool) -> None:
    write_model(tmp_path / "theirs", tied=tied)
    taken = source.take(str(tmp_path / "theirs"), tmp_path / "ours")
    assert (taken.kind, taken.origin) == ("folder", "theirs")
    assert taken.changes[0] == "chat template: ChatML, as it had none"
    assert taken.changes[-1] == "2 tokens added to the vocabulary, with the mean embedding"
    tokenizer, model = models.load_tokenizer(tmp_path / "ours"), models.load_policy(tmp_path / "ours")
    template.check(tokenizer)
    assert tokenizer.eos_token == template.TURN_END
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.model_max_length == 64
    # Its own end of a text ends an answer too, as it does in the models that others fine-tuned.
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert taken.dtype == "float32"
    assert taken.parameters == models.parameters(model)

    old = models.load_policy(tmp_path / "theirs")
    for table, new in (
        (old.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (old.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert torch.equal(new[:257], table)
        assert torch.allclose(new[257:], table.mean(0).expand(2, -1))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_taking_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs")
    first, second = (source.take(str(tmp_path / "theirs"), tmp_path / name) for name in "ab")
    assert first == second
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_what_is_taken_can_be_taken_again_unchanged(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs")
    source.take(str(tmp_path / "theirs"), tmp_path / "ours")
    assert source.take(str(tmp_path / "ours"), tmp_path / "again").changes == ()


def test_spare_rows_of_the_embedding_are_used(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs", rows=300)
    taken = source.take(str(tmp_path / "theirs"), tmp_path / "ours")
    assert taken.changes[-1] == "2 tokens added to the vocabulary, with the mean embedding"
    old, new = (models.load_policy(tmp_path / name) for name in ("theirs", "ours"))
    assert (new.config.vocab_size, new.config.added_tokens) == (300, [257, 258])
    table, before = new.get_input_embeddings().weight, old.get_input_embeddings().weight
    # The rows of no token have no part in the mean, and stay.
    assert torch.allclose(table[257:259], before[:257].mean(0).expand(2, -1))
    assert torch.equal(table[259:], before[259:])
    assert torch.equal(table[:257], before[:257])


def test_a_template_of_the_callers(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs")
    own = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}<|endoftext|>{% else %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    taken = source.take(str(tmp_path / "theirs"), tmp_path / "ours", chat_template=own)
    tokenizer = models.load_tokenizer(tmp_path / "ours")
    assert tokenizer.chat_template == own
    # Its one special token ends the answers, so padding needs a token that it did not have.
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", source.PADDING)
    assert any(source.PADDING in change for change in taken.changes)
    assert models.load_policy(tmp_path / "ours").config.vocab_size == 258


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.gguf", "no such file"),
        ("./no/where/at/all", "no such folder"),
        (__file__, "this is a file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        source.take(name, tmp_path)


def test_a_file_that_only_calls_itself_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        source.take(str(tmp_path / "model.gguf"), tmp_path / "ours")


def write_adapter(root: Path, **settings: Any) -> Path:
    """Low-rank adapters of the model in `theirs`, as peft saves them."""
    write_model(root / "theirs")
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted: Any = get_peft_model(models.load_policy(root / "theirs"), config)
    adapted.save_pretrained(root / "adapter")
    path = root / "adapter" / "adapter_config.json"
    of = {"base_model_name_or_path": str(root / "theirs")}
    path.write_text(json.dumps(json.loads(path.read_text()) | of | settings))
    return root / "adapter"


def test_adapters_are_taken_merged_into_their_model(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path)
    taken = source.take(str(adapter), tmp_path / "ours")
    assert taken.origin == "adapter"
    assert "low-rank adapters added to the weights of theirs" in taken.changes
    theirs: Any = models.load_policy(tmp_path / "theirs")
    tokens = torch.tensor([[5, 17, 99, 3]])
    with torch.no_grad():
        before = theirs(tokens).logits
        wanted = PeftModel.from_pretrained(theirs, adapter)(tokens).logits
        found = models.load_policy(tmp_path / "ours")(tokens).logits[..., :257]
    assert float((wanted - before).abs().max()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not list((tmp_path / "ours").glob("adapter*"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING', and only LORA can be merged"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name the adapters' model"),
        ({"base_model_name_or_path": "./no/where"}, "there is no such folder"),
        ({"target_modules": ["q_proj"]}, "the adapters do not fit .*theirs: .*down_proj"),
        ({"r": 4}, "the adapters do not fit .*theirs"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        source.take(str(write_adapter(tmp_path, **settings)), tmp_path / "ours")


def hub_cache(root: Path) -> Path:
    """One model as the Hub's cache keeps it: files in `blobs`, a revision as links to them."""
    write_model(root / "theirs")
    revision = root / "models--someone--tiny" / "snapshots" / ("0" * 40)
    blobs = root / "models--someone--tiny" / "blobs"
    revision.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((root / "theirs").iterdir())):
        path.rename(blobs / str(number))
        (revision / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    (root / "models--someone--tiny" / "refs").mkdir()
    (root / "models--someone--tiny" / "refs" / "main").write_text("0" * 40)
    return root


def test_a_hub_name_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = hub_cache(tmp_path / "hub")
    download = snapshot_download
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda name, **settings: download(name, **settings, cache_dir=cache, local_files_only=True),
    )
    taken = source.take("someone/tiny", tmp_path / "ours")
    assert (taken.kind, taken.origin, taken.digest) == ("hub", "someone/tiny", "0" * 40)
    assert not any(path.is_symlink() for path in (tmp_path / "ours").iterdir())

    with pytest.raises(ModelError, match="hf download someone/other --local-dir"):
        source.take("someone/other", tmp_path / "other")


def test_a_pin_is_a_commit_and_stands_in_what_is_told_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag, a branch and a commit; from the cache too, where nothing answers."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # another test may have found that there is no Hub
    write_model(tmp_path / "theirs")
    download = snapshot_download
    with StandIn() as server:
        monkeypatch.setattr(hub, "snapshot_download", lambda name, **settings: download(
            name, **settings, cache_dir=tmp_path / "cache", endpoint=server.url, token=TOKEN
        ))
        client = server.client
        client.create_repo("me/model")
        first = client.upload_folder(repo_id="me/model", folder_path=tmp_path / "theirs").oid
        config = tmp_path / "theirs" / "generation_config.json"
        config.write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
        newest = client.upload_folder(repo_id="me/model", folder_path=tmp_path / "theirs").oid
        server.repos["me/model"].refs["v1.0"] = first

        def taken(name: str) -> source.ModelSource:
            made = source.take(name, tmp_path / f"{len(list(tmp_path.iterdir()))}")
            assert (made.kind, made.origin) == ("hub", "me/model")
            return made

        pins = {"me/model": newest, "me/model@main": newest, "me/model@v1.0": first, f"me/model@{first}": first}
        assert first != newest
        assert {name: taken(name).digest for name in pins} == pins
        with pytest.raises(ModelError, match="hf download me/model --revision v2 --local-dir DIR"):
            taken("me/model@v2")
    assert {name: taken(name).digest for name in pins} == pins, "nothing answers any more"

    (tmp_path / "me/model@v1.0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert source.find("me/model@v1.0") == ("folder", Path("me/model@v1.0"))
    for name in ("me/model@", "me/model@../main", "me/model@a@b", "me/model@a b"):
        with pytest.raises(ModelError, match="cannot be a name on the Hub"):
            source.find(name)


def test_generation_settings_that_cannot_be_saved_are_put_right(tmp_path: Path) -> None:
    """As Llama 2 was released: a temperature, and no sampling."""
    write_model(tmp_path / "theirs")
    path = tmp_path / "theirs" / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": [0, 7]}))
    changes = source.take(str(tmp_path / "theirs"), tmp_path / "ours").changes
    assert changes[0] == (
        "temperature, top_p in generation_config.json contradict how it says that tokens are chosen; of this file "
        "only the special tokens are kept"
    )
    told = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [models.load_tokenizer(tmp_path / "ours").eos_token_id, 0, 7]
    assert not {"temperature", "top_p"} & told.keys()


def test_it_is_told_what_a_model_was_stored_in(tmp_path: Path) -> None:
    write_model(tmp_path / "float32")
    model, words = models.load_policy(tmp_path / "float32"), models.load_tokenizer(tmp_path / "float32")
    models.save(model, words, tmp_path / "theirs", dtype=torch.bfloat16)
    assert source.take(str(tmp_path / "theirs"), tmp_path / "ours").dtype == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}
    weights = models.load_policy(tmp_path / "theirs").state_dict()  # they are trained in float32
    assert all(torch.equal(value[:257], weights[name])
               for name, value in models.load_policy(tmp_path / "ours").state_dict().items())


GGUF = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.skipif(not GGUF.exists(), reason="make smollm2 fetches the file")
def test_a_gguf_file_becomes_a_plain_folder(tmp_path: Path) -> None:
    taken = source.take(str(GGUF), tmp_path)
    assert (taken.kind, taken.parameters) == ("gguf", 134_515_008)
    tokenizer, model = models.load_tokenizer(tmp_path), models.load_policy(tmp_path)
    text = "Hello  world 123\n\tdéjà vu 你好"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(model(prompt).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
@pytest.mark.skipif(not GGUF.exists(), reason="make smollm2 fetches the file")
def test_a_reward_on_a_template_of_others_is_read_where_its_rendering_ends(tmp_path: Path) -> None:
    """SmolLM2's writes a line break behind the end token, and a system turn of its own."""
    source.take(str(GGUF), tmp_path / "base")
    words, answers = models.load_tokenizer(tmp_path / "base"), ["Paris.", " It is\nLyon. ", ""]
    assert words.decode(template.closing_tokens(words)) == "<|im_end|>\n"
    models.save(models.load_reward(tmp_path / "base", fresh=True), words, tmp_path / "reward")
    rows = [Conversation(Prompt(user("The capital of France?")), answer) for answer in answers]
    reward = RewardModel(tmp_path / "reward", precise=True)
    reward.model.score.weight.data.mul_(20)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    theirs.score.weight.data.mul_(20)
    chats = [
        [{"role": "user", "content": "The capital of France?"}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    batch = words.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).logits[:, 0].tolist()
    assert max(expected) - min(expected) > 0.1
    assert reward.raw(rows) == pytest.approx(expected, abs=1e-3)
