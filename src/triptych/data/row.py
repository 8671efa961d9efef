"""One row under reading: its fields as typed values, and what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from triptych import json_text
from triptych.data.forms import near
from triptych.data.rows import Place, shown, shown_kind
from triptych.data.turning import ROLES as NAMES_OF_ROLES
from triptych.data.turning import number
from triptych.errors import Fault
from triptych.instructions.rows import checks_in
from triptych.records import Check, Message, Messages, ToolCall, with_reasoning

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
READ = {"role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "weight", *REASONING}
"""The fields of a turn that are read; `name` is of a tool's."""


class Row:
    """One row; what is wrong with it gathers in `faults`, and what of it nobody reads in `unread`.

    Args:
        place: where it stands.
        values: by our names.
        names: for our names its own, where they differ.
    """

    def __init__(self, place: Place, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
        self.place = place
        self.values = values
        self.names = names or {}
        self.faults: list[Fault] = []
        self.unread: list[str] = []

    def fault(self, field: str | None, message: str) -> None:
        """Notes that `field` is wrong; `message` says what was expected."""
        self.faults.append(Fault(self.place.file, self.place.line, field and self.named(field), message))

    def named(self, field: str) -> str:
        """A field, or a place in it, by the row's own name."""
        end = min((place for place in (field.find("["), field.find(".")) if place >= 0), default=len(field))
        return self.names.get(field[:end], field[:end]) + field[end:]

    def has(self, field: str) -> bool:
        """Whether the row gives the field; null, which Parquet has for every absent value, is absent."""
        return self.values.get(field) is not None

    def required(self, field: str) -> Any:
        """The field's value, or None and a fault."""
        if not self.has(field):
            self.fault(field, f"missing{self.meant(field)}")
        return self.values.get(field)

    def meant(self, *fields: str) -> str:
        """What the row has instead of fields, misspelt, as the end of a message."""
        alike = [(name, ours) for name in self.values if (ours := near(name, fields)) is not None]
        return "".join(f"; did you mean {ours} by {name}?" for name, ours in alike)

    def text(self, field: str) -> str | None:
        """An optional text."""
        value = self.values.get(field)
        if value is None or isinstance(value, str):
            return value
        self.fault(field, f"must be text, got {shown_kind(value)}")
        return None

    def name(self) -> str | None:
        """Of the person who added the row: `annotator`, where that is a text or a whole number; else there is none."""
        value = self.values.get("annotator")
        known = isinstance(value, str | int) and not isinstance(value, bool)
        return (str(value).strip() or None) if known else None

    def reference(self) -> str | None:
        """An optional text; a number is its text."""
        value = self.values.get("reference")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json.dumps(value)
        return self.text("reference")

    def number(self, field: str) -> float | None:
        """An optional finite number, also as text."""
        return self._number(field, self.values.get(field)) if self.has(field) else None

    def count(self, field: str) -> int | None:
        """An optional whole number from 0, also as text."""
        value = self.values.get(field)
        if value is None:
            return None
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fault(field, f"must be a whole number from 0, got {shown_kind(value)}")
            return None
        return value

    def flag(self, field: str) -> bool | None:
        """An optional true or false, also as text."""
        value = self.values.get(field)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value is None or isinstance(value, bool):
            return value
        self.fault(field, f"must be true or false, got {shown_kind(value)}")
        return None

    def checks(self) -> tuple[Check, ...]:
        """The instructions that code can check, in any of their forms."""
        try:
            instructions = checks_in(self.values)
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            self.fault(field, what)
            return ()
        return () if instructions is None else instructions[1]

    def scores(self, field: str) -> dict[str, float]:
        """Numbers by attribute; an attribute that is null was not rated."""
        value = self.required(field)
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            self.fault(
                field, f"must be an object of at least one attribute and its number, got {shown_kind(value)}"
            )
            return {}
        numbers = {name: self._number(f"{field}.{name}", score) for name, score in value.items() if score is not None}
        return {name: number for name, number in numbers.items() if number is not None}

    def tools(self) -> tuple[str, ...]:
        """The tools that may be called, each as JSON; a list of them, also in a string."""
        value = self._unfolded("tools", self.values.get("tools"))
        if value is None:
            return ()
        tools = [self._unfolded(f"tools[{index}]", tool) for index, tool in enumerate(value)] \
            if isinstance(value, list) else [value]
        if not all(isinstance(tool, dict) for tool in tools):
            self.fault("tools", f"must be a list of objects, got {shown_kind(value)}")
            return ()
        return tuple(json.dumps(tool, ensure_ascii=False) for tool in tools)

    def turns(self, field: str) -> Messages | None:
        """A list of messages, each with a known role and a text."""
        value = self.values[field]
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not value:
            self.fault(field, f"must be text or a list of messages, got {shown_kind(value)}")
            return None
        before = len(self.faults)
        turns = [self._turn(f"{field}[{index}]", turn) for index, turn in enumerate(value)]
        return None if len(self.faults) > before else tuple(turn for turn in turns if turn is not None)

    def _turn(self, field: str, value: Any) -> Message | None:
        if not isinstance(value, dict):
            self.fault(field, f'must be an object {{"role", "content"}}, got {shown_kind(value)}')
            return None
        said = value.get("role", value.get("from"))
        spoken = said.lower() if isinstance(said, str) else ""
        calling = spoken == "function_call"
        role: Any = "assistant" if calling else NAMES_OF_ROLES.get(spoken, spoken)
        if role not in ROLES:
            self.fault(f"{field}.role", f"must be one of {', '.join(ROLES)}, got {shown(said)}")
            return None
        calls = self._calls(f"{field}.tool_calls", value, calling)
        content = value.get("content", value.get("value"))
        text = "" if calls and (content is None or calling) else self._content(f"{field}.content", content)
        if text is None:
            return None
        reasoning = next((value[name] for name in REASONING if value.get(name)), None)
        if isinstance(reasoning, str) and role == "assistant":
            text = with_reasoning(reasoning, text)
        self._note_unread(field, role, value)
        weight = value.get("weight")
        if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            self.fault(f"{field}.weight", f"must be 0 or 1, got {shown_kind(weight)}")
        name, call = (value.get(key) if role == "tool" else None for key in ("name", "tool_call_id"))
        return Message(role, text, calls, name, call, weight != 0)

    def _content(self, field: str, value: Any) -> str | None:
        """A text, or parts of text joined."""
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            other = next((part.get("type") for part in value if part.get("type") != "text"), None)
            texts = [part.get("text") for part in value]
            if other is None and all(isinstance(text, str) for text in texts):
                return "".join(texts)
            self.fault(field, f"must be text or parts of text, got a part of type {shown(other)}: only text is read")
            return None
        if isinstance(value, str):
            return value
        self.fault(field, f"must be text, got {shown_kind(value)}")
        return None

    def _calls(self, field: str, turn: Mapping[str, Any], calling: bool) -> tuple[ToolCall, ...]:
        given = turn.get("tool_calls") or [
            {"function": call} for call in [turn.get("function_call")] if call is not None
        ]
        if calling:  # LLaMA-Factory: the call is the turn's text
            text = turn.get("content", turn.get("value"))
            given = self._unfolded(field, text)
            given = [{"function": call} for call in (given if isinstance(given, list) else [given])]
        if not isinstance(given, list):
            self.fault(field, f"must be a list of calls, got {shown_kind(given)}")
            return ()
        calls = []
        for index, call in enumerate(given):
            function = call.get("function", call) if isinstance(call, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            arguments = self._unfolded(f"{field}[{index}].arguments", function.get("arguments")) if function else None
            if not isinstance(name, str) or not isinstance(arguments or {}, dict):
                self.fault(f"{field}[{index}]", f'must be {{"function": {{"name", "arguments"}}}}, got {shown(call)}')
                continue
            number = call.get("id")
            calls.append(ToolCall(name, json.dumps(arguments or {}, ensure_ascii=False),
                                  number if isinstance(number, str) else None))
        return tuple(calls)

    def _unfolded(self, field: str, value: Any) -> Any:
        """A value that may stand in a string as JSON."""
        if not isinstance(value, str):
            return value
        try:
            return json_text.parse(value) if value.strip() else None
        except json_text.JsonError as error:
            self.fault(field, f"must be JSON, got {shown_kind(value)}: {error}")
            return None

    def _note_unread(self, field: str, role: str, turn: Mapping[str, Any]) -> None:
        read = READ | {"name"} if role == "tool" else READ
        if len(turn) > 2:
            place = self.named(field).partition("[")[0]
            self.unread += [f"{place}[].{name}" for name, value in turn.items()
                            if name not in read and value not in (None, "", [], {})]

    def _number(self, field: str, value: Any) -> float | None:
        if isinstance(value, str) and (read := number(value)) is not None:
            return read
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(field, f"must be a number, got {shown_kind(value)}")
            return None
        if not math.isfinite(value):
            self.fault(field, f"must be a finite number, got {value}")
            return None
        return float(value)
