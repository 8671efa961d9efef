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
            *files, data.examples, data.new_comparisons, data.thumbs, data.thumbs_heldout,
            *map(data.comparisons, splits), *map(data.ratings, splits), *map(data.prompts, get_args(PromptSplit)),
        )
    }


def test_one_module_spells_the_names_of_data_files() -> None:
    names = data_files() - {"examples.jsonl"}  # a release's scored answers have that name too
    assert len(names) == 20
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


SAY_NOTHING = {"found", "told", "this", "each"}


def bound_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Every name that a file gives to something, with its line."""
    names: list[tuple[int, str | None]] = []
    for node in ast.walk(tree):
        match node:
            case ast.arg():
                names.append((node.lineno, node.arg))
            case ast.Name(ctx=ast.Store()):
                names.append((node.lineno, node.id))
            case ast.Attribute(ctx=ast.Store()):
                names.append((node.lineno, node.attr))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.append((node.lineno, node.name))
            case ast.alias() if node.asname:
                names.append((node.lineno, node.asname))
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                names.append((node.lineno, node.name))
    return [(line, name) for line, name in names if name is not None]


def test_every_kind_of_name_is_seen() -> None:
    code = """
def a(b, *c, d=1, **e): f = g.h = 1
async def i(): return [j for j in k]
class l:
    m: int = 1
for n, (o, *p) in q: ...
with r as s, t as (u,): ...
import v as w
try: ...
except X as y: ...
if z := lambda aa: aa: ...
match ab:
    case [ac, *ad] as ae: ...
"""
    seen = {name for _, name in bound_names(ast.parse(code))}
    assert seen == {*"abcdefhijlmnopsuwyz", "aa", "ac", "ad", "ae"}


def test_no_name_says_nothing() -> None:
    places = {module: [(line, name) for line, name in bound_names(tree) if name in SAY_NOTHING]
              for module, tree in TREES.items()}
    assert {module: names for module, names in places.items() if names} == {}
