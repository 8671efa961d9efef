"""What holds for all of the code: nothing lies about that nobody calls, and what exists is not written again.

And for all of the tests: none depends on what is private elsewhere, and none holds because a line was not reached.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src"
TESTS = ROOT / "tests"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

CALLED_BY_OTHERS = {
    "invoke": "typer", "call_binop": "jinja2", "visit_Concat": "jinja2", "visit_Dict": "jinja2",
    "visit_List": "jinja2", "visit_Tuple": "jinja2", "connection_lost": "uvicorn", "connection_made": "uvicorn",
    "make_reflective_dataset": "gepa", "propose_new_texts": "gepa",
    "on_response_complete": "uvicorn", "main": "the sandbox's interpreters", "loglikelihood_rolling": "lm_eval",
    "tokenizer_name": "lm_eval",
}
"""What others call by its name: methods of a library's classes, and what an interpreter is started with."""
AWAITED = {"triptych.pipeline.artifact.Folder"}
"""What is there before those who will use it."""
PATCHES = ("setattr", "delattr", "patch", "object")
"""Functions by which a test changes what is not its own, given a name."""
FACTORIES = re.compile(
    r"torch\.(arange|as_tensor|asarray|empty|eye|full|linspace|logspace|ones|rand|randint|randn|randperm|tensor|zeros)"
    r"|(torch\.)?nn\.(Embedding|Linear)"
)
"""What makes a tensor where none was, on the default device unless it is told another."""
REGISTERED = ("validator", "serializer", "command", "callback", "app.", "register")
"""Parts of the decorators that hand what they decorate to a library, which calls it."""


@cache
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


def without_device(tree: ast.AST) -> list[int]:
    """The lines of calls that make a tensor and are not told where."""
    return [
        node.lineno for node in ast.walk(tree)
        if isinstance(node, ast.Call) and FACTORIES.fullmatch(ast.unparse(node.func))
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]


def test_each_tensor_is_made_on_a_device_that_is_named() -> None:
    """There is no default device of the process: what works on a model is made where the model is."""
    unplaced = {path.name: lines for path, tree in trees(PACKAGE).items() if (lines := without_device(tree))}
    assert unplaced == {}
    defaults = {
        f"{path.name}:{node.lineno}" for path, tree in trees(PACKAGE).items() for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("set_default_device", "get_default_device")
    }
    assert defaults == set()


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


def private_patches(tree: ast.AST) -> list[int]:
    """The lines that change an attribute with a private name, of anything but the object whose method does it."""
    lines = []
    for node in ast.walk(tree):
        name: object = ""
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in PATCHES:
            name = next((argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)), "")
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            name = node.attr if ast.unparse(node.value) != "self" else ""
        if isinstance(node, ast.expr) and re.match(r"_(?!_)", str(name).rpartition(".")[2]):
            lines.append(node.lineno)
    return sorted(lines)


def skipped_asserts(tree: ast.AST, *, may_be_skipped: bool = False) -> list[int]:
    """The lines of asserts under an `if` whose other branch neither asserts nor raises."""
    lines = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assert) and may_be_skipped:
            lines.append(node.lineno)
        elif isinstance(node, ast.If):
            for branch, other in (node.body, node.orelse), (node.orelse, node.body):
                skipped = may_be_skipped or not claims(other)
                lines += skipped_asserts(ast.Module(branch, []), may_be_skipped=skipped)
        else:
            inherits = may_be_skipped and not isinstance(node, ast.FunctionDef | ast.Lambda)
            lines += skipped_asserts(node, may_be_skipped=inherits)
    return lines


def claims(branch: list[ast.stmt]) -> bool:
    """Whether it asserts or raises something, or says that something is raised."""
    nodes = [node for statement in branch for node in ast.walk(statement)]
    return any(isinstance(node, ast.Assert | ast.Raise) for node in nodes) or any(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.fail") for node in nodes
    )


def test_no_test_patches_what_is_private() -> None:
    patched = {path.name: lines for path, tree in trees(TESTS).items() if (lines := private_patches(tree))}
    assert patched == {}


def test_no_assert_stands_under_an_if() -> None:
    skipped = {path.name: lines for path, tree in trees(TESTS).items() if (lines := skipped_asserts(tree))}
    assert skipped == {}


@pytest.mark.parametrize(("text", "lines"), [
    ("monkeypatch.setattr(module, '_name', 1)", [1]),
    ("monkeypatch.setattr('module._name', 1)", [1]),
    ("with mock.patch.object(module, '_name'): ...", [1]),
    ("module.sub._name = 1", [1]),
    ("del module._name", [1]),
    ("self._name = module._name", []),
    ("monkeypatch.setattr(module, '__path__', '_name.py')", []),
    ("monkeypatch.setattr(module, 'name', 1)\nmodule.name = 1", []),
])
def test_the_walk_finds_what_is_patched(text: str, lines: list[int]) -> None:
    assert private_patches(ast.parse(text)) == lines


@pytest.mark.parametrize(("text", "lines"), [
    ("torch.zeros(3)", [1]), ("x = [\ntorch.tensor(y)]", [2]), ("torch.nn.Linear(1, 2)", [1]),
    ("torch.zeros(3, device=x.device)", []), ("torch.zeros_like(x)", []), ("x.new_zeros(3)", []),
])
def test_the_walk_finds_tensors_without_a_device(text: str, lines: list[int]) -> None:
    assert without_device(ast.parse(text)) == lines


@pytest.mark.parametrize(("text", "lines"), [
    ("if x:\n assert 1", [2]),
    ("if x:\n assert 1\nelse:\n y = 1", [2]),
    ("if x:\n y = 1\nelse:\n assert 1", [4]),
    ("if x:\n for y in x:\n  assert 1", [3]),
    ("if x:\n assert 1\nelif y:\n assert 2", [4]),
    ("for y in x:\n if y:\n  with z:\n   assert 1", [4]),
    ("if x:\n assert 1\nelse:\n assert 2", []),
    ("if x:\n assert 1\nelif y:\n assert 2\nelse:\n raise z", []),
    ("if x:\n assert 1\nelse:\n with pytest.raises(z):\n  y()", []),
    ("if x:\n def y():\n  assert 1\nassert 2", []),
])
def test_the_walk_finds_what_is_skipped(text: str, lines: list[int]) -> None:
    assert skipped_asserts(ast.parse(text)) == lines
