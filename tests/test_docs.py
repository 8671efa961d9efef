"""The documents match the disk: the tree, the links, the recipe's fields and their defaults."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from triptych.base.continuing import ContinuedPretraining
from triptych.configuration import UserFile, is_flat, load
from triptych.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "triptych"
DOCS = ROOT / "docs"
README = ROOT / "README.md"
INDEX = DOCS / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)


def tree_of_the_source() -> list[str]:
    """The files that the tree in docs/source.md names, as paths below `src/triptych`; a folder ends with a slash."""
    (block,) = re.findall(r"```\nsrc/triptych/\n(.*?)```", (DOCS / "source.md").read_text(encoding="utf-8"), re.DOTALL)
    named: list[str] = []
    folders: list[str] = []
    for line in block.splitlines():
        match = re.fullmatch(r"( +)([\w.]+/?)(?:  +(\S.*))?", line)
        assert match, f"not a line of a tree: {line!r}"
        depth, name, gloss = len(match[1]) // 2 - 1, match[2], match[3]
        folders = folders[:depth]
        if name.endswith("/") and gloss is None:
            folders.append(name)
            continue
        assert gloss, f"{name} has no gloss"
        named.append("".join(folders) + name)
    return named


def test_every_source_file_is_named_and_no_other() -> None:
    named = tree_of_the_source()
    code = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    folders = [name for name in named if name.endswith("/")]
    files = {name for name in code if not name.startswith(tuple(folders))}
    assert files - set(named) == set(), "these are missing in docs/source.md"
    assert set(named) - files - set(folders) == set(), "docs/source.md names these, which are not there"
    assert all((SOURCE / name).is_dir() for name in folders)
    assert len(named) == len(set(named))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    """The relative links of a page."""
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (fragment and fragment not in anchors(found)):
            broken.append(target)
    assert not broken, f"{page.name} has links that lead nowhere: {broken}"


def test_every_page_is_linked_from_the_index_and_the_index_from_the_readme() -> None:
    listed = {(DOCS / target.partition("#")[0]).resolve() for target in links(INDEX)} | {INDEX}
    assert [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page not in listed] == []
    assert INDEX in {(ROOT / target).resolve() for target in links(README)}


def documented() -> dict[str, dict[str, str]]:
    """For each section of docs/recipe.md, by the words of its heading, its fields and their defaults as written."""
    sections: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in (DOCS / "recipe.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#+ (.*)", line):
            fields = sections.setdefault(heading[1].strip("`"), {})
        elif row := re.match(r"\| `([\w.]+)` \| (.*?) ?\| ", line):
            fields[row[1]] = row[2].strip("` ")
    return sections


def models(kind: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The recipe's models, each with the heading under which its fields are documented."""
    yield place or "The whole", kind
    for name, info in kind.model_fields.items():
        for inner in models_in(info.annotation):
            section = place if is_flat(info) else f"{place}.{info.alias or name}".lstrip(".")
            section = re.sub(r"^feedback\.(\w+)$", r"feedback.N.\1", section)
            section = name if name in ("lora", "constrain") else section
            section = "improve" if section == "compare" else section
            section = "base.train` beside `from" if inner is ContinuedPretraining else section
            yield from models(inner, section)


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields that a recipe names; those of flat settings are theirs."""
    return {info.alias or name: info for name, info in kind.model_fields.items() if not is_flat(info)}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, also inside unions and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


MODELS = [pytest.param(place, kind, id=place) for place, kind in models(Recipe)]


@pytest.mark.parametrize(("place", "kind"), MODELS)
def test_every_field_of_the_recipe_is_documented_with_its_default(place: str, kind: type[BaseModel]) -> None:
    sections = documented()
    optimizer = sections["The optimizer"]
    judge = sections["reward"] | {"share_of_feedback": sections["gate"]["judge.share_of_feedback"]}
    apart = place in ("gate.judge", "gate.preferences")
    own = judge if apart else sections[shared(place)] | sections.get(of_method(kind), {})
    own |= sections["A file of data"] if place in ("evaluate.tasks", "evaluate.benchmarks", "base.text") else {}
    for known, info in fields_of(kind).items():
        assert known in own or known in optimizer, f"docs/recipe.md does not name {known} under {place}"
        written = number_or_text(own.get(known, optimizer.get(known, "")))
        expected = default_of(info)
        expected = expected.replace("\n", "\\n") if isinstance(expected, str) else expected
        # What tells the members of a union apart has another value in each.
        told_apart = get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1
        states = expected is None or told_apart or written == expected
        assert states, f"{place}.{known}: the default is {expected}, not {written}"


def of_method(kind: type[BaseModel]) -> str:
    """The heading under which a method of improvement has its own fields."""
    return f"method: {kind.model_fields['method'].default}" if "method" in kind.model_fields else ""


def shared(place: str) -> str:
    """The section that documents a place: a judge's, a task's and a mixture's rewards are those of `reward`."""
    place = re.sub(r"^(gate\.judge|gate\.preferences|evaluate\.tasks|prompting\.reflection)\.", "reward.", place)
    place = "A file of data" if place in ("instruct.data", "improve.prompts", "decontaminate") else place
    return re.sub(r"^(reward\.parts\.reward|feedback\.N\.judged\.by)", "reward", place)


def default_of(info: FieldInfo) -> object:
    """The default as a page shows it; None where it shows none or says it in words."""
    default = info.default
    if default is PydanticUndefined or default is None or isinstance(default, BaseModel) or default == ():
        return None
    if isinstance(default, UserFile):
        return default.name
    return list(default) if isinstance(default, tuple) else default


def number_or_text(written: str) -> object:
    """A default read from a page."""
    if written.startswith("["):
        return [float(part) for part in written.strip("[]").split(",")]
    if written in ("true", "false"):
        return written == "true"
    try:
        return float(written)
    except ValueError:
        return written.strip('"')


def test_no_documented_field_is_unknown_to_the_recipe() -> None:
    known: dict[str, set[str]] = {}
    for place, kind in models(Recipe):
        names = set(fields_of(kind))
        known.setdefault(shared(place), set()).update(names)
        known.setdefault(of_method(kind), set()).update(names)
    known["gate"].add("judge.share_of_feedback")
    known["The optimizer"] = known["base.train"]
    for place, fields in documented().items():
        assert set(fields) <= known.get(place, set()), place


SECTIONS = "|".join(sorted(fields_of(Recipe)))
NAMED = re.compile(rf"(?<![\w./{{-])(?:{SECTIONS})(?:\.[a-z_]+)+(?![\w(/])")
FILES = (".json", ".jsonl", ".html", ".md", ".partial", ".yaml")


def test_every_setting_that_a_message_names_exists() -> None:
    """Of whole names, as `reward.audit.required`, in the texts and docstrings of the source."""
    known = {f"{place}.{name}" for place, kind in models(Recipe) for name in fields_of(kind)}
    named = [
        (path.name, setting) for path in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) for setting in NAMED.findall(node.value)
        if not setting.endswith(FILES)
    ]
    assert len(named) > 30
    assert [place for place in named if place[1] not in known] == []


REST = {
    "name": "rest",
    "base": {"from": "model"},
    "instruct": {"data": ["answers.jsonl"]},
    "feedback": [{"file": "preferences.jsonl"}],
}
"""What a page's example of one section leaves out."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


EXAMPLES = [
    pytest.param(page, number, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number in range(len(blocks(page, "yaml")))
]


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_every_example_of_a_recipe_is_one(page: Path, number: int, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(REST | yaml.safe_load(blocks(page, "yaml")[number])), encoding="utf-8")
    load(recipe, Recipe)


def runs(page: Path) -> Iterator[list[str]]:
    """The arguments with which a page's commands run or compare a recipe of ours, as bash sees them."""
    stubs = "triptych() { printf '%s\\0' \"$@\"; printf '\\n'; }; python() { :; }\n"
    for block in blocks(page, "sh"):
        if "recipes/" in block:
            script = stubs + block.replace(".venv/bin/", "")
            done = subprocess.run(
                ["/bin/bash", "-c", script], env={"PATH": ""}, capture_output=True, text=True, check=False
            )
            for command in done.stdout.split("\0\n"):
                if command.startswith(("run\0recipes/", "compare\0recipes/")):
                    yield command.split("\0")


RUNS = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number, arguments in enumerate(runs(page))
]


@pytest.mark.parametrize("arguments", RUNS)
def test_every_run_of_a_recipe_has_settings_that_there_are(arguments: list[str]) -> None:
    overrides = [value for flag, value in pairwise(arguments) if flag == "--set"]
    load(ROOT / arguments[1], Recipe, overrides)
