"""Names: what one file alone spells, and what bears a name that nothing else has."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

from triptych.data.folder import HELD_OUT, AuditedOn, DataFolder, PromptSplit, RecordFile, TrainedOn
from triptych.data.separation import COMPARED, OTHERS, PROVING, RATED
from triptych.records import Comparison, Document, Prompt, user

PACKAGE = Path(__file__).parent.parent / "src" / "triptych"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))}


def data_files() -> set[str]:
    data = DataFolder(Path())
    files: list[RecordFile[Any]] = [
        make(split) for make in (data.text, data.demonstrations) for split in ("train", "heldout")
    ]
    splits = (*get_args(TrainedOn), *get_args(AuditedOn))
    return {
        file.path.name
        for file in (
            *files, data.examples, data.new_comparisons, data.thumbs, *map(data.comparisons, splits),
            *map(data.ratings, splits), *map(data.prompts, get_args(PromptSplit)),
        )
    }


def test_one_module_spells_the_names_of_data_files() -> None:
    names = data_files() - {"examples.jsonl"}  # a release's scored answers have that name too
    assert len(names) == 19
    for module, tree in TREES.items():
        words = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not words & names, module


def test_every_part_that_is_kept_apart_is_a_file_of_the_folder() -> None:
    assert {f"{name}.jsonl" for name in (*PROVING, *COMPARED, *RATED, *OTHERS)} <= data_files()
    assert HELD_OUT == {"train": "heldout", "judge": "judge_heldout"}


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    rows = [Comparison(Prompt(user("Who?")), "I.", "You.")]
    assert data.comparisons("judge").read_any() == []
    data.comparisons("judge").write(rows)
    data.text("heldout").write([Document("a")])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["comparisons_judge.jsonl", "text_heldout.jsonl"]
    assert data.comparisons("judge").read() == data.named("comparisons_judge").read() == rows
    assert data.text("heldout").read() == [Document("a")]
    data.new_comparisons.write([])
    assert data.new_comparisons.exists
    assert data.new_comparisons.read_any() == []


def classes() -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    return places


def test_a_class_name_occurs_once() -> None:
    assert {name: modules for name, modules in classes().items() if len(modules) > 1} == {}
