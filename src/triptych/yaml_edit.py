"""Values set in a YAML file as a person would: all that was written stays as it is, comments too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from triptych.errors import RecipeError
from triptych.storage import write_whole


def set_value(text: str, name: str, value: str) -> str:
    """The text of a file with one value more, or another one.

    Args:
        name: the keys that lead to it, joined by dots: "instruct.micro_batch".
        value: as it is to be written, on one line.

    Raises:
        RecipeError: what stands there is no mapping, or is not written in its place.
    """
    keys = name.split(".")
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, key in enumerate(keys):
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{'.'.join(keys[:depth]) or 'the file'} is not written as a mapping: set {name} by hand")
        known, child = next((entry for entry in node.value if entry[0].value == key), (None, None))
        if known is None or child is None:
            return _inserted(text, node, keys[depth:], value)
        if child.start_mark.index < known.start_mark.index:
            raise RecipeError(f"{'.'.join(keys[: depth + 1])} is an alias of what stands above it: set {name} by hand")
        node = child
    if not isinstance(node, yaml.ScalarNode) and not node.flow_style:
        raise RecipeError(f"{name} is written over several lines: set it by hand to {value}")
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]


def write_values(path: Path, settings: Sequence[str]) -> None:
    """Writes settings, as of `--set`, into a recipe as a person would.

    Raises:
        RecipeError: one has no place in the file's form; then nothing is written.
    """
    text = path.read_text(encoding="utf-8")
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            text = set_value(text, name, value)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}; nothing was written") from None
    write_whole(path, text)


def _inserted(text: str, node: yaml.MappingNode, keys: Sequence[str], value: str) -> str:
    """A new entry, the first of a mapping in lines or the last of one in braces."""
    for key in reversed(keys[1:]):
        value = f"{{{key}: {value}}}"
    entry = f"{keys[0]}: {value}"
    if node.flow_style:
        end = node.end_mark.index - 1
        begun = text[:end].rstrip()
        return begun + (entry if not node.value else f" {entry}" if begun.endswith(",") else f", {entry}") + text[end:]
    first = node.value[0][0].start_mark
    return f"{text[: first.index]}{entry}\n{' ' * first.column}{text[first.index :]}"
