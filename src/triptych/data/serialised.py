"""Texts that hold a whole conversation, which nobody renders with the model's own template."""

from __future__ import annotations

import json
import re

from triptych.data.turning import is_turns

TRANSCRIPT = re.compile(
    r"(?:^|\n|(?<=\S)(?=###))[ \t]*(?:#{2,3} ?|\[\|)?(Human|Assistant|User|AI|Bot|System|Instruction|Response)"
    r"(?:\|\])?[ \t]*:[ \t]*\n?", re.IGNORECASE
)
"""A mark in a text that says who speaks."""
TEMPLATED = re.compile(
    r"<[|｜][A-Za-z][\w▁]{1,40}[|｜]>|\[/?INST\]|<(?:start|end)_of_turn>|<<SYS>>|<extra_id_\d+>|<(?:bos|eos)>|</s>"
)
"""What chat templates write, and no conversation holds."""


def serialised(text: str, end: str | None = None) -> str | None:
    """What a text holds of a conversation that is none of its own words, or None.

    Args:
        end: the text of the token that ends an answer, which no text has written out.
    """
    stripped = text.strip()
    if stripped[:1] in ("[", "{") and _holds_turns(stripped):
        return "a conversation as JSON in a text"
    marks = {mark[1].lower() for mark in TRANSCRIPT.finditer(text)}
    if {"human", "assistant"} <= marks or {"user", "assistant"} <= marks:
        return "a transcript in a text, with marks for who speaks"
    match = TEMPLATED.search(text)
    if match is not None:
        return f"a text that is templated already, with {match[0]}"
    return f"the end token {end} written out" if end and end in text else None


def _holds_turns(text: str) -> bool:
    if not re.search(r"""["'](?:role|from)["']\s*:""", text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return bool(re.match(r"[\[{]\s*\{?\s*'(?:role|from|content|value)'\s*:", text))  # as Python writes it
    turns = value.get("messages", value.get("conversations")) if isinstance(value, dict) else value
    return isinstance(turns, list) and is_turns(turns) and bool({"role", "from"} & set(turns[0]))
