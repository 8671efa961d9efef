"""What holds for all of the code: nothing lies about that nobody calls, and what exists is not written again."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

CALLED_BY_OTHERS = {
    "invoke": "typer", "call_binop": "jinja2", "visit_Concat": "jinja2", "visit_Dict": "jinja2",
    "visit_List": "jinja2", "visit_Tuple": "jinja2", "connection_lost": "uvicorn", "connection_made": "uvicorn",
    "on_response_complete": "uvicorn", "main": "the sandbox's interpreters",
}
"""What others call by its name: methods of a library's classes, and what an interpreter is started with."""
AWAITED = {"triptych.pipeline.artifact.Folder"}
"""What is there before those who will use it."""
REGISTERED = ("validator", "serializer", "command", "callback", "app.", "register")
"""Parts of the decorators that hand what they decorate to a library, which calls it."""


def trees(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_bytes()) for path in sorted(folder.rglob("*.py"))}


def names(tree: ast.AST) -> Counter[str]:
    """How often each name is used, as a name, as an attribute, as an imported one or as a word of a type in quotes."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found[node.value] += 1
    return found


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a module has from others: `(module, name)` of `from module import name` and of `module.name`."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def unused(sources: dict[str, ast.Module], users: Iterable[ast.Module] = (), texts: str = "") -> set[str]:
    """Functions, classes and methods that nothing in these modules uses, as `module.name`.

    What a module defines is used where it is named there or imported; a method where any attribute has its name.

    Args:
        users: other code that may use them.
        texts: templates that may do so.
    """
    every = [*sources.values(), *users]
    everywhere = Counter(re.findall(r"\w+", texts))
    for tree in every:
        everywhere += names(tree)
    borders = {pair for tree in every for pair in imported(tree)}
    dead = set()
    for module, tree in sources.items():
        here = names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, Definition) or node.name.startswith("__") or node.name in CALLED_BY_OTHERS:
                continue
            if any(part in ast.unparse(decorator) for decorator in node.decorator_list for part in REGISTERED):
                continue
            inside = names(node)[node.name]
            used = here[node.name] > inside or (module, node.name) in borders
            if node not in tree.body:
                used = everywhere[node.name] > inside
            if not used:
                dead.add(f"{module}.{node.name}")
    return dead


def test_nothing_in_the_package_is_there_that_nobody_calls() -> None:
    sources = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): tree
        for path, tree in trees(PACKAGE).items()
    }
    templates = [path for path in PACKAGE.rglob("*") if path.suffix in (".j2", ".jinja")]
    texts = "\n".join(path.read_text(encoding="utf-8") for path in templates)
    assert unused(sources, trees(ROOT / "benchmarks").values(), texts) <= AWAITED


@pytest.mark.parametrize(("added", "dead"), [
    ("", set()),
    ("def alone() -> None: ...\n", {"a.alone"}),
    ("def again() -> None: again()\n", {"a.again"}),
    ("def read() -> None: ...\n", {"a.read"}),
    ("class Kept:\n    def looked_at(self) -> int: ...\n    def called(self) -> int: ...\nKept().called\n",
     {"a.looked_at"}),
    ("class Kept:\n    @field_validator('x')\n    def _checked(self) -> int: ...\nKept\n", set()),
])
def test_the_walk_finds_what_is_dead(added: str, dead: set[str]) -> None:
    """`b.read` is used; a function of that name elsewhere is not for that."""
    sources = {"a": f"def used() -> None: ...\n{added}", "b": "from a import used\ndef read(): used()\n",
               "c": "import a\nfrom triptych import b\nb.read()\n"}
    parsed = {name: ast.parse(text) for name, text in sources.items()}
    parsed["triptych.b"] = parsed.pop("b")
    assert unused(parsed) == dead


def test_files_are_hashed_in_one_place() -> None:
    """By `storage.sha256`, which opens nothing but regular files."""
    hashing = {
        path.relative_to(ROOT).as_posix() for folder in (PACKAGE, ROOT / "benchmarks", ROOT / "scripts")
        for path, tree in trees(folder).items() for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (
            ast.unparse(node.func).endswith("file_digest")
            or (ast.unparse(node.func).startswith("hashlib.") and "read_bytes" in ast.unparse(node))
        )
    }
    assert hashing == {"src/triptych/storage.py"}


def test_times_become_text_in_one_place() -> None:
    """By `display.duration`; minutes and seconds are told apart nowhere else."""
    dividing = {
        path.relative_to(ROOT).as_posix() for path, tree in trees(PACKAGE).items() for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "divmod" and ast.unparse(node.args[1]) == "60"
    }
    assert dividing == {"src/triptych/display.py"}
