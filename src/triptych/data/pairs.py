"""Comparisons of one prompt together: the prompt and each distinct answer once, however many pairs they are in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.data.lengths import TokenizedComparison


@dataclass(slots=True)
class PairGroup:
    """A prompt, its distinct answers, and which of them are better than which.

    Attributes:
        prompt, answers: tokens.
        pairs: (chosen, rejected) as places in `answers`.
        margins: by how much each pair's chosen answer is better, in rewards, where that is known.
        lines: where each pair stands in the data, if it comes from there.
    """

    prompt: tuple[int, ...]
    answers: list[tuple[int, ...]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    margins: list[float | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many are computed for the group."""
        return len(self.prompt) + sum(len(answer) for answer in self.answers)

    def add(self, row: TokenizedComparison, line: int) -> None:
        """One more pair of this prompt's answers."""
        self.answers += [answer for answer in (row.chosen, row.rejected) if answer not in self.answers]
        self.pairs.append((self.answers.index(row.chosen), self.answers.index(row.rejected)))
        self.margins.append(row.margin)
        self.lines.append(line)


def grouped(rows: Iterable[TokenizedComparison], lines: Iterable[int]) -> list[PairGroup]:
    """The comparisons, with their lines in the data, by prompt in the order in which prompts first appear."""
    groups: dict[tuple[int, ...], PairGroup] = {}
    for row, line in zip(rows, lines, strict=True):
        groups.setdefault(row.prompt, PairGroup(row.prompt)).add(row, line)
    return list(groups.values())
