"""JSON read strictly: what two readers could understand differently, or could not write again, is a fault.

The standard's own reader of Python takes the last of two fields of one name, numbers that are infinite, and halves of
surrogate pairs, which no file in UTF-8 can hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

DEPTH = 100
"""How deep values may lie in one another."""

DIGITS = 300
"""How many digits a whole number may have; a float holds no more than 309."""

SHOWN = 5
"""How many faults of one text are told."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A text that is not such JSON.

    Attributes:
        faults: where in it, as `prompt[0].content` (None: as a whole), and what is wrong there.
    """

    def __init__(self, faults: list[tuple[str | None, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{place}: {what}" if place else what for place, what in faults))


def parse(text: str) -> Any:
    """What a text in JSON holds.

    Raises:
        JsonError: it is no JSON, has a field twice, or holds what cannot be used.
    """
    twice: list[str] = []
    infinite: list[str] = []

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(name for name in content if names.count(name) > 1)
        return content

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            infinite.append(text)
        return value

    def whole(digits: str) -> int | float:
        return int(digits) if len(digits) <= DIGITS else number(digits)

    try:
        value = json.loads(text, object_pairs_hook=fields, parse_int=whole, parse_float=number, parse_constant=number)
    except json.JSONDecodeError as error:
        raise JsonError([(None, f"invalid JSON at column {error.colno}: {error.msg}")]) from None
    except RecursionError:
        raise JsonError([(None, _too_deep())]) from None
    faults: list[tuple[str | None, str]] = [(_shown(name), "stands twice in one object") for name in twice[:SHOWN]]
    if infinite or ("\\u" in text and _HALF.search(text)) or text.count("[") + text.count("{") > DEPTH:
        faults += [fault for fault, _ in zip(_faults(value), range(SHOWN), strict=False)]
    if faults:
        raise JsonError(faults)
    return value


def indented(text: str) -> str | None:
    """An object or a list in JSON with its values on lines of their own; None of any other text.

    Nothing but the white space between values changes: numbers, escapes and fields that stand twice are as written.
    """
    try:
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
        return None
    lines, depth, before = [""], 0, ""
    for token in _TOKEN.findall(text):
        if token in ("]", "}"):
            depth -= 1
        if depth > DEPTH:
            return None
        if (before in ("[", "{")) != (token in ("]", "}")) or before == ",":
            lines.append("  " * depth)
        lines[-1] += token
        if token == ":":
            lines[-1] += " "
        depth += token in ("[", "{")
        before = token
    return "\n".join(lines)


def _refused(constant: str) -> str:
    raise ValueError(f"{constant} is not JSON")


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


def _faults(value: Any) -> Iterator[tuple[str | None, str]]:
    waiting: list[tuple[str, Any, int]] = [("", value, 1)]
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, str):
            if not _whole_characters(value):
                yield place or None, "holds half of a surrogate pair (\\ud800 to \\udfff): not a character"
        elif isinstance(value, float) and not math.isfinite(value):
            yield place or None, f"must be a finite number, got {value}"
        elif isinstance(value, dict | list):
            if depth > DEPTH:
                yield place.split(".")[0].split("[")[0] or None, _too_deep()
                return
            if isinstance(value, dict):
                inner = [(f"{place}.{_shown(name)}" if place else _shown(name), item) for name, item in value.items()]
                if not all(map(_whole_characters, value)):
                    yield place or None, "has a field whose name holds half of a surrogate pair: not a character"
            else:
                inner = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
            waiting += [(name, item, depth + 1) for name, item in reversed(inner)]


def _too_deep() -> str:
    return f"holds values inside values more than {DEPTH} deep"


def _whole_characters(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shown(name: str) -> str:
    """A field's name as a part of a place: short, and whole characters only."""
    plain = name.encode(errors="replace").decode()
    return plain if len(plain) <= 60 else plain[:57] + "..."
