"""Answers before and after, side by side: what changed, word by word, and whom the judge prefers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from triptych.report.summary import Sample, SampleAnswer, Tally

Outcome = Literal["better", "worse", "as good"]
Pieces = list[tuple[str, bool]]
"""A text in pieces, each with whether it stands in this text alone."""
WORD = re.compile(r"\w+\s*|\W\s*")


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample's answers before and after, and what other models wrote.

    Attributes:
        before, after: None where that model did not answer.
    """

    sample: Sample
    before: SampleAnswer | None
    after: SampleAnswer | None
    others: Sequence[SampleAnswer]

    @property
    def outcome(self) -> Outcome | None:
        """The later answer beside the earlier one, by the judge's score; None where there is none of both."""
        before, after = (answer.judge if answer else None for answer in (self.before, self.after))
        if before is None or after is None:
            return None
        return "as good" if before == after else "better" if after > before else "worse"

    @property
    def pieces(self) -> tuple[Pieces | None, Pieces | None]:
        """Both texts, with what changed; None where there are no two."""
        if self.before is None or self.after is None:
            return None, None
        return word_changes(self.before.text, self.after.text)


def side_by_side(samples: Sequence[Sample], before: str | None, after: str | None) -> list[ShownSample]:
    """The samples with the answers of two models, by their names, apart from the others."""
    shown = []
    for sample in samples:
        answers = {answer.model: answer for answer in sample.answers}
        one, other = (answers.pop(name, None) if name is not None else None for name in (before, after))
        shown.append(ShownSample(sample, one, other, list(answers.values())))
    return shown


def tally(shown: Sequence[ShownSample]) -> Tally:
    """The outcomes, counted."""
    outcomes = [sample.outcome for sample in shown]
    return Tally(better=outcomes.count("better"), worse=outcomes.count("worse"), as_good=outcomes.count("as good"))


def word_changes(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Two texts in pieces, by the words and marks that both have in the same order; spaces make no difference."""
    texts = WORD.findall(before), WORD.findall(after)
    old, new = ([word.strip() for word in words] for words in texts)
    pieces: tuple[Pieces, Pieces] = [], []
    for kind, *places in SequenceMatcher(None, old, new).get_opcodes():
        for side, (words, start, end) in enumerate(zip(texts, places[::2], places[1::2], strict=True)):
            text = "".join(words[start:end])
            if kind != "equal" and text:  # a mark ends with its last word
                pieces[side].append((text.rstrip(), True))
                text = text[len(text.rstrip()):]
            if text:
                pieces[side].append((text, False))
    return pieces
