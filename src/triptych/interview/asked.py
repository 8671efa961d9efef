"""What people are asked, whoever asks: the questions of a gate that waits, or those that the next round learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from triptych.records import Question


class Asked(Protocol):
    """Questions and where the answers go."""

    @property
    def file(self) -> Path:
        """Where answers are added."""

    @property
    def choices(self) -> Sequence[str]:
        """What may be said: "first", "second" and, where an answer may be none, "tie"."""

    @property
    def open(self) -> list[Question]:
        """The questions that nobody has answered yet, in the order in which they should be."""

    def add(self, question: Question, better: str) -> None:
        """Adds what somebody said, one of the choices."""
