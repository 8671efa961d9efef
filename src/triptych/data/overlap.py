"""Rows that hold a part of a benchmark's prompts, by the words that they share in a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from triptych.data.splits import PromptedRecord, partition, prompt_of
from triptych.records import Prompt, answers_of

A = TypeVar("A", bound=PromptedRecord)

WORDS = 13
"""So many words in a row are of the same text (Brown et al. 2020, *Language Models are Few-Shot Learners*, app. C)."""


class Benchmarks:
    """What of a benchmark's prompts gives it away: each `WORDS` words in a row, and prompts of fewer words whole."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._parts: set[str] = set()
        self._short: set[str] = set()
        for prompt in prompts:
            for text in _asked(prompt):
                words = words_of(text)
                self._parts.update(_grams(words))
                if 0 < len(words) < WORDS:
                    self._short.add(" ".join(words))

    def in_record(self, record: PromptedRecord) -> bool:
        """Whether a row holds some of it, in its prompt or in an answer; a short prompt counts only as a whole turn."""
        prompt = prompt_of(record)
        texts = [*(turn.content for turn in prompt.messages), *answers_of(record)]
        return any(
            not self._parts.isdisjoint(_grams(words)) or " ".join(words) in self._short
            for words in map(words_of, texts)
        )

    def apart(self, records: Iterable[A]) -> tuple[list[A], list[A]]:
        """The records that hold nothing of it, and those that do."""
        return partition(records, lambda record: not self.in_record(record))


def _asked(prompt: Prompt) -> Iterator[str]:
    return (turn.content for turn in prompt.messages if turn.role == "user")


def words_of(text: str) -> list[str]:
    """Letters and digits alone: neither case nor signs tell two texts apart here."""
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


def _grams(words: Sequence[str]) -> Iterator[str]:
    return (" ".join(words[first : first + WORDS]) for first in range(len(words) - WORDS + 1))
