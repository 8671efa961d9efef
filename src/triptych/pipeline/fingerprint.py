"""What a stage's result depends on, as one hash: configuration, inputs, and the code that it runs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def fingerprint(config: Any, inputs: Mapping[str, str], code: str) -> str:
    """sha256 over the resolved configuration, the inputs' digests and the code's version."""
    content = json.dumps([config, dict(sorted(inputs.items())), code], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def code_version(*modules: str) -> str:
    """The digest of the sources of these modules and of all of Triptych that they import.

    Stages never import each other, so a change in one stage's code leaves the others' results standing.
    """
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo.extend(_imports(module))
    lines = [f"{module} {_digest(module)}" for module in sorted(found)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@cache
def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _digest(module: str) -> str:
    source = _source(module)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source else ""


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of Triptych that a module names in its import statements, at any depth of its code."""
    source = _source(module)
    if source is None:
        return ()
    named: set[str] = set()
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.add(node.module)
            named.update(f"{node.module}.{alias.name}" for alias in node.names)
    # Progress only shows; it cannot change a result.
    return tuple(
        name for name in sorted(named)
        if name.startswith("triptych.") and name != "triptych.progress" and _source(name) is not None
    )
