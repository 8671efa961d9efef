"""Which rows of a source are meant, by what stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from triptych.data.source import Part
from triptych.data.splits import PromptedRecord, prompt_of
from triptych.records import Prompt, answers_of


def is_meant(record: object, where: Mapping[Part, str]) -> bool:
    """Whether each expression is found in its part of a record; of several answers in one of them.

    What has no prompt, such as a vote that is taken back, is always meant.
    """
    return not where or not isinstance(record, PromptedRecord) or all(
        any(re.search(expression, text) for text in _texts(record, part)) for part, expression in where.items()
    )


def _texts(record: PromptedRecord, part: Part) -> list[str]:
    prompt = prompt_of(record)
    if part == "prompt":
        return [prompt.messages[-1].content]
    if part == "task":
        return [prompt.task or ""]
    return [record.reference or ""] if isinstance(record, Prompt) else answers_of(record)
