"""Python's standard library as text: code that every machine has, under a licence that lets anybody learn from it."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from triptych.data.source import STDLIB

LEFT_OUT = frozenset({"__pycache__", "dist-packages", "encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages",
                      "test", "tests", "turtledemo"})
"""Folders that are not the library's own, or hold tables and tests."""


def versioned() -> str:
    """Its name with the version of Python, which decides what it holds."""
    return f"{STDLIB}-{platform.python_version()}"


def stdlib_files() -> Iterator[tuple[str, str]]:
    """Each module's path in the library, and its source; in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if LEFT_OUT.isdisjoint(inside.parts) and (text := path.read_text(encoding="utf-8")).strip():
            yield inside.as_posix(), text
