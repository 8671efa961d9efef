"""An answer's tokens as text while they come: what will not change any more, up to the first stop sequence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

UNKNOWN = "�"
"""A character whose bytes are not all there."""


class TextStream:
    """The text of an answer that grows.

    Args:
        stops: texts of which each ends the answer; none is a part of it.

    Attributes:
        text: what is settled so far.
        stopped: a stop sequence was met, and nothing comes behind `text`.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._stops = stops
        self.text = ""
        self.stopped = False

    def grow(self, tokens: Sequence[int], over: bool) -> str:
        """What of the text of so many tokens is new.

        Args:
            over: none come behind them.
        """
        whole = tokens[:-1] if over and tokens and tokens[-1] in self._ends else tokens
        text: str = self._tokenizer.decode(whole, skip_special_tokens=True)
        met = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if met:
            self.stopped, text = True, text[: min(met)]
        elif not over:
            text = text.rstrip(UNKNOWN)
            text = text[: len(text) - max((_begun(text, stop) for stop in self._stops), default=0)]
        new = text[len(self.text) :]
        self.text = max(self.text, text, key=len)
        return new


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may become a stop sequence."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
