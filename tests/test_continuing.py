"""Continued pretraining: files by their weights, bits per byte before and after, what is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import triptych
from test_check import write_recipe
from test_crossfitting import context
from triptych.base.continuing import ContinuedPretraining, continue_pretraining, shortened
from triptych.base.record import BaseRecord
from triptych.base.text import TokenizedText, planned, require_learnt, unlearnt
from triptych.data.files import read_documents
from triptych.data.folder import DataFolder
from triptych.data.stdlib import stdlib_files
from triptych.dataset.preparation import split_text
from triptych.engine.models import load_policy, load_tokenizer
from triptych.engine.perplexity import bits_per_byte
from triptych.errors import DataError, RecipeError
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Document

CATS = "a small cat sat on a red mat and saw a dog"
NUMBERS = "0123 4567 8901 2345 6789 0123"
TAKEN = BaseRecord(source="theirs", parameters=1, vocabulary=1, tokens_seen=None, bits_per_byte=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    DataFolder(folder).text("train").write([Document(CATS, "cats"), Document(NUMBERS, "numbers")] * 8)
    DataFolder(folder).text("heldout").write([Document(CATS[:30], "cats"), Document(NUMBERS[5:], "numbers")])
    return folder


def continued(folder: Path, data: Path, place: Path, **settings: Any) -> tuple[BaseRecord, Path]:
    """Some updates at a high rate, and the model that they leave."""
    weights = settings.pop("weights", {"cats": 1.0, "numbers": 0.0})
    config = ContinuedPretraining(**{"tokens": 2000, "batch_tokens": 200, "learning_rate": 1e-2} | settings)
    stage = context(place)
    return continue_pretraining(stage, config, folder, TAKEN, data, weights), stage.output / "model"


@pytest.fixture(scope="module")
def base(policy_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Base that has learnt numbers, which it can forget."""
    place = tmp_path_factory.mktemp("numbers")
    continued(policy_folder, data, place, weights={"cats": 0.0, "numbers": 1.0})
    return place


def test_a_file_that_is_learnt_gets_better_and_one_that_is_only_measured_shows_what_is_forgotten(
    base: Path, data: Path, tmp_path: Path
) -> None:
    record, made = continued(base, data, tmp_path)
    cats, numbers = record.domains
    assert (cats.name, numbers.name) == ("cats", "numbers")
    assert cats.tokens == record.tokens_seen
    assert cats.tokens >= 1500
    assert numbers.tokens == 0
    for folder, values in (
        (base / "model", [cats.before, numbers.before]), (made, [cats.after, numbers.after])
    ):
        model: Any = load_policy(folder)
        found = [bits_per_byte(model, load_tokenizer(folder), documents, 1024)
                 for documents in shortened(DataFolder(data).text("heldout").read(), 100).values()]
        assert found == pytest.approx(values, rel=1e-4)
    assert cats.after < cats.before - 0.5
    assert numbers.forgotten == numbers.after - numbers.before
    assert record.trained_further
    sizes = [30, len(NUMBERS) - 5]
    assert record.bits_per_byte == pytest.approx((cats.after * sizes[0] + numbers.after * sizes[1]) / sum(sizes))


def test_a_base_that_forgets_more_than_it_may_stays_as_it_was(
    base: Path, data: Path, tmp_path: Path
) -> None:
    record, made = continued(base, data, tmp_path, max_forgetting=0.0)
    assert not record.trained_further
    assert record.tokens_seen is None
    numbers = record.domains[1]
    assert numbers.forgotten > 0
    assert f"numbers took {numbers.forgotten:.3f} bits per byte more" in record.changes[-1]
    before, after = load_policy(base / "model"), load_policy(made)
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
    allowed, _ = continued(base, data, tmp_path / "allowed", max_forgetting=numbers.forgotten + 0.01)
    assert allowed.trained_further


def test_adapters_are_merged_so_that_the_base_is_one_trunk(base: Path, data: Path, tmp_path: Path) -> None:
    record, made = continued(base, data, tmp_path, lora={"rank": 4}, learning_rate=5e-2)
    assert not list(made.glob("adapter*"))
    model: Any = load_policy(made)
    tokenizer = load_tokenizer(made)
    assert bits_per_byte(model, tokenizer, [Document(CATS[:30])], 1024) == pytest.approx(
        record.domains[0].after, rel=1e-3)
    assert record.domains[0].after < record.domains[0].before - 0.01


@pytest.mark.parametrize("weights", [
    {"long": 1.0, "short": 1.0, "none": 0.0}, {"long": 3.0, "short": 1.0, "none": 2.0},
])
def test_each_file_gives_its_share_of_the_tokens(weights: dict[str, float]) -> None:
    rows = [[1] * 30] * 5 + [[1] * 7] * 40 + [[1] * 9] * 40
    text = TokenizedText(rows, [1] * 85, ["long"] * 5 + ["short"] * 40 + ["none"] * 40)
    plan = planned(text, batch=100, steps=50, seed=1, weights=weights)
    assert len(plan) == 50
    assert all(sum(len(rows[i]) for i in step) <= 100 for step in plan)
    seen = {name: 0 for name in weights}
    for i in (i for step in plan for i in step):
        seen[text.domains[i]] += len(rows[i])
    for name, weight in weights.items():
        assert seen[name] / sum(seen.values()) == pytest.approx(weight / sum(weights.values()), abs=0.01)
    long = [i for step in plan for i in step if i < 5]
    assert sorted(long[:5]) == list(range(5)), "an epoch holds each document once"
    assert planned(text, batch=100, steps=50, seed=1, weights=weights) == plan
    with pytest.raises(DataError, match="no file with a weight above 0"):
        planned(text, batch=100, steps=1, seed=1, weights=dict.fromkeys(["long", "short", "none"], 0.0))


def test_every_file_has_a_held_out_part() -> None:
    documents = [Document(f"cats {i}", "cats") for i in range(100)] + [Document("one", "few"), Document("two", "few")]
    parts = split_text(documents, 0.1, seed=3)
    assert [sum(one.domain == name for one in parts["text_heldout"]) for name in ("cats", "few")] == [10, 1]


def test_a_file_that_is_held_out_whole_is_not_learnt_by_accident_from_the_others() -> None:
    documents = [Document(f"cats {i}", "cats") for i in range(100)] + [Document("a whole book", "book")]
    parts = split_text(documents, 0.1, seed=3)
    for weights, lost in ((None, ["book"]), ({"cats": 1.0, "book": 3.0}, ["book"]), ({"cats": 1.0, "book": 0.0}, [])):
        assert unlearnt(parts["text"], parts["text_heldout"], weights) == lost
    with pytest.raises(DataError, match=r"book: all of it is held out, for it is one document.*`weight: 0`"):
        require_learnt(parts["text"], parts["text_heldout"])


def test_what_is_measured_is_cut_where_it_has_enough_bytes() -> None:
    kept = shortened([Document("äöü" * 10, "a"), Document("x" * 50, "a"), Document("y" * 9), Document("z", "a")], 65)
    assert kept == {"a": [Document("äöü" * 10, "a"), Document("x" * 5, "a")], "text": [Document("y" * 9)]}


def test_the_standard_library_is_text() -> None:
    documents = read_documents("python-stdlib")
    names = [name for name, _ in stdlib_files()]
    assert len(documents) == len(names) > 200
    assert {"ast.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "test" in name.split("/")]
    assert any("class JSONDecoder" in document.text for document in documents)


def test_a_taken_base_is_trained_further_in_the_cycle(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("\n\n".join(f"{CATS} number {i}. " * 30 for i in range(20)))
    recipe = write_recipe(tmp_path, base={
        "from": "model", "train": {"tokens": 600, "batch_tokens": 300, "context": 64},
        "text": [{"file": "cats.txt", "weight": 1}, {"file": "python-stdlib", "rows": [0, 20], "weight": 0.5}],
    })
    summary = triptych.run(recipe, runs=tmp_path / "runs", until="base", progress=Silent())
    assert summary is not None
    assert [stage.name for stage in summary.stages] == ["data", "base/taken", "base"]
    assert [domain.name for domain in summary.base.domains] == ["cats.txt", "python-stdlib"]
    assert all(domain.tokens > 0 for domain in summary.base.domains)
    assert summary.base.source == "model"


@pytest.mark.parametrize(("base", "wrong"), [
    ({"text": [{"file": "a.txt", "weight": 1}, "b.txt"]}, "needs a weight for every file or for none; b.txt has none"),
    ({"text": [{"file": "a.txt", "weight": 1}, {"file": "a.txt", "weight": 2}]}, "names a file twice"),
    ({"text": []}, "text must name the files that it is trained on"),
    ({"text": ["a.txt"], "train": {"width": 3}}, "width: unknown field"),
])
def test_what_cannot_be_trained_further_is_refused(tmp_path: Path, base: dict[str, Any], wrong: str) -> None:
    with pytest.raises(RecipeError, match=wrong):
        load(write_recipe(tmp_path, base={"from": "model", "train": {}} | base))
