"""How far people agree who answered the same questions: Krippendorff's alpha and Fleiss' kappa, of choices by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import krippendorff
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict


class Reliability(BaseModel):
    """Who answered how many questions, and how far they agree where several answered one.

    Attributes:
        annotators: people who answered under a name.
        questions: that somebody answered.
        answers: to all of them.
        choices: how often each was chosen; the answers of a question are in one order, that in which they were shown.
        several: questions that more than one person answered; of them alone agreement is known.
        alpha: Krippendorff's, for nominal values; None where no question has two answers, or all answers are the same.
        kappa: Fleiss', of the questions that as many people answered as most of those were answered by; None as alpha.
        raters: so many people.
    """

    model_config = ConfigDict(extra="forbid")

    annotators: int
    questions: int
    answers: int
    choices: Mapping[str, int]
    several: int
    alpha: float | None = None
    kappa: float | None = None
    raters: int | None = None

    @classmethod
    def of(cls, ballots: Sequence[Sequence[str]], annotators: int) -> Self:
        """What it is of the choices of those who answered each question."""
        several = [said for said in ballots if len(said) > 1]
        sizes = Counter(map(len, several))
        raters = max(sizes, key=lambda size: (sizes[size], size), default=None)
        return cls(
            annotators=annotators, questions=len(ballots), answers=sum(map(len, ballots)),
            choices=dict(sorted(Counter(choice for said in ballots for choice in said).items())), several=len(several),
            alpha=alpha(several), kappa=kappa([said for said in several if len(said) == raters]), raters=raters,
        )

    @property
    def sentence(self) -> str:
        """It in words, of one line."""
        if not self.answers:
            return "nobody has answered"
        chosen = ", ".join(f"{choice} {count:,}" for choice, count in self.choices.items())
        people = "person" if self.annotators == 1 else "people"
        line = f"answers: {self.answers:,} to {self.questions:,} different questions ({chosen})"
        line += f", of {self.annotators:,} named {people}" if self.annotators else ", without names"
        if not self.several:
            return line + "; none was answered by two, so agreement is not known"
        line += f"; answered by several: {self.several:,}"
        if self.alpha is None:
            return line + ", and all say the same: agreement cannot be told from chance"
        known = f", Krippendorff's alpha {self.alpha:.2f}"
        return line + known + (f", Fleiss' kappa {self.kappa:.2f}" if self.kappa is not None else "")


def alpha(ballots: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values (Krippendorff 2011); None where all values are the same, or none is.

    Args:
        ballots: for each question the choices of those who answered it, at least two of each; they may be more of some.
    """
    counts = _counts(ballots)
    if counts.shape[1] < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def kappa(ballots: Sequence[Sequence[str]]) -> float | None:
    """Fleiss' kappa (Fleiss 1971); None where all choices are the same, or there is none.

        κ = (P̄ − P̄e) / (1 − P̄e),  P̄ the mean share of pairs of people who agree,  P̄e = Σ pⱼ²,  pⱼ the share of choice j

    Args:
        ballots: for each question the choices of those who answered it, of each as many, at least two.
    """
    counts = _counts(ballots)
    if counts.shape[1] < 2:
        return None
    raters = len(ballots[0])
    agreed = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    by_chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return float((agreed.mean() - by_chance) / (1 - by_chance))


def _counts(ballots: Sequence[Sequence[str]]) -> npt.NDArray[np.int_]:
    """How often each question (a row) got each choice (a column)."""
    names = sorted({choice for said in ballots for choice in said})
    counts = [[said.count(name) for name in names] for said in ballots]
    return np.array(counts, dtype=int).reshape(len(ballots), len(names))
