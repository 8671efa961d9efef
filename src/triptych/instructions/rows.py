"""The instructions of a row of data: `checks`, or as IFEval and open-instruct have them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from triptych import json_text
from triptych.instructions.registry import instruction
from triptych.records import Check

FORM = 'expected [{"kind": "punctuation:no_comma"}, {"kind": ..., an argument: ...}]'


def checks_in(row: Mapping[str, Any]) -> tuple[str, tuple[Check, ...]] | None:
    """The field that holds a row's instructions, and what it holds; None where the row has none.

    `checks` is a list of objects with `kind` and the arguments; IFEval has `instruction_id_list` and `kwargs`;
    open-instruct has both in a `ground_truth` with `instruction_id` and `kwargs`, as JSON or as Python writes it.

    Raises:
        ValueError: they are not as they must be; the text begins with the field.
    """
    if row.get("checks") is not None:
        return "checks", _checks("checks", row["checks"])
    if row.get("instruction_id_list") is not None:
        return "instruction_id_list", _paired("kwargs", row["instruction_id_list"], row.get("kwargs"))
    truth = _ground_truth(row.get("ground_truth"))
    if truth is not None:
        return "ground_truth", _paired("ground_truth", truth.get("instruction_id"), truth.get("kwargs"))
    return None


def _checks(field: str, value: Any) -> tuple[Check, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) and "kind" in entry for entry in value):
        raise ValueError(f"{field}: {FORM}")
    return tuple(
        _check(f"{field}[{place}]", entry["kind"], {name: given for name, given in entry.items() if name != "kind"})
        for place, entry in enumerate(value)
    )


def _paired(field: str, kinds: Any, arguments: Any) -> tuple[Check, ...]:
    if isinstance(arguments, str):
        arguments = _parsed(field, arguments)
    if not isinstance(kinds, list) or not isinstance(arguments, list) or len(kinds) != len(arguments):
        raise ValueError(f"{field}: expected a list with an object of arguments for each of the instructions")
    pairs = zip(kinds, arguments, strict=True)
    return tuple(_check(f"{field}[{place}]", kind, given or {}) for place, (kind, given) in enumerate(pairs))


def _check(place: str, kind: Any, arguments: Any) -> Check:
    if not isinstance(kind, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"{place}: expected the name of a kind and an object of arguments")
    try:
        checked = instruction(kind, arguments)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return Check(kind, checked.model_dump(mode="json"))


def _ground_truth(value: Any) -> Mapping[str, Any] | None:
    """open-instruct's answer to check by, where the row has one of instructions and not, say, a number."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str) and '"instruction_id"' in value:
        value = _parsed("ground_truth", value)
    elif isinstance(value, str) and "'instruction_id'" in value:  # as Python writes it, which is how it is published
        value = _literal("ground_truth", value)
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, Mapping) and "instruction_id" in value else None


def _literal(field: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{field}: neither JSON nor what Python writes") from None


def _parsed(field: str, text: str) -> Any:
    try:
        return json_text.parse(text)
    except json_text.JsonError as error:
        raise ValueError(f"{field}: {error.faults[0][1]}") from None

