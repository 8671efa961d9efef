"""What a stage's result depends on, as one hash: configuration, inputs, and the code that it runs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.engine.device import compute_dtype, device
from triptych.storage import entries, sha256


def fingerprint(config: Any, inputs: Mapping[str, str], code: str) -> str:
    """sha256 over the resolved configuration, the inputs' digests and the code's version."""
    content = json.dumps([config, dict(sorted(inputs.items())), code], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Module:
    """What counts of one module.

    Attributes:
        digest: of its syntax tree, so that a comment changes nothing, and of the data beside it.
        imports: the modules of Triptych that its import statements name, at any depth of its code.
    """

    digest: str
    imports: tuple[str, ...]


@dataclass
class Sources:
    """Triptych's modules as they were when first asked for: what is edited meanwhile is not what runs."""

    _modules: dict[str, Module] = field(default_factory=dict)

    def version(self, *modules: str) -> str:
        """The digest of these modules and of all of Triptych that they import.

        Stages never import each other, so a change in one stage's code leaves the others' results standing. What
        reaches the device depends on its type as well, and on the type of the numbers there.
        """
        reached = self.reached(*modules)
        lines = [f"{module} {self._module(module).digest}" for module in sorted(reached)]
        if device.__module__ in reached:
            lines.append(f"{device().type} {compute_dtype()}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def reached(self, *modules: str) -> set[str]:
        """These modules and all of Triptych that they import."""
        reached: set[str] = set()
        waiting = list(modules)
        while waiting:
            if (module := waiting.pop()) not in reached:
                reached.add(module)
                waiting.extend(self._module(module).imports)
        return reached

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            source = _source(name)
            self._modules[name] = _read(source) if source else Module("", ())
        return self._modules[name]


code_version = Sources().version


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _read(source: Path) -> Module:
    tree = ast.parse(source.read_bytes())
    code = repr(_canonical(tree))
    data = [f"{path.relative_to(source.parent)} {sha256(path)}" for path in _data(source.parent, code)]
    return Module(hashlib.sha256("\n".join([code, *data]).encode()).hexdigest(), tuple(_imports(tree)))


def _canonical(syntax: object) -> object:
    """A syntax tree as nested tuples, without docstrings and without the empty fields that newer Pythons add."""
    if isinstance(syntax, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(syntax) if value not in (None, []))
        return type(syntax).__name__, *((name, _canonical(value)) for name, value in fields)
    return [_canonical(part) for part in syntax if not _is_text(part)] if isinstance(syntax, list) else syntax


def _is_text(part: object) -> bool:
    """Whether it is a docstring, or another string that stands alone and does nothing."""
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def _data(folder: Path, code: str) -> Iterator[Path]:
    """The files in a module's folder that are no code, where the module names them or the folder that holds them."""
    for beside in sorted(folder.iterdir()):
        if repr(beside.name) in code and not (beside / "__init__.py").exists():
            files = [beside] if beside.is_file() else [path for path in entries(beside) if path.is_file()]
            yield from (path for path in files if path.suffix not in (".py", ".pyc"))


def _imports(tree: ast.Module) -> list[str]:
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.add(node.module)
            named.update(f"{node.module}.{alias.name}" for alias in node.names)
    # Progress only shows; it cannot change a result.
    return [
        name for name in sorted(named)
        if name.startswith("triptych.") and name != "triptych.progress" and _source(name) is not None
    ]
