"""Mean scores with their intervals, as results and reports hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from triptych.statistics.intervals import Interval, mean_interval


class TaskScore(BaseModel):
    """A mean score over some prompts."""

    model_config = ConfigDict(extra="forbid")

    score: float
    interval: Interval
    prompts: int


class DecodedScore(BaseModel):
    """A model in one way of decoding: the judge's mean score, the reward's, the tokens and how many answers it took."""

    model_config = ConfigDict(extra="forbid")

    score: float
    interval: Interval
    reward: float | None
    mean_length: float
    drawn: int


class PairedScore(BaseModel):
    """Mean scores of two models on the same prompts.

    Attributes:
        gain: the mean difference, after less before.
        interval: of the gain, paired by prompt.
        share: whether every prompt's scores lie from 0 to 1, so that the means are rates.
    """

    model_config = ConfigDict(extra="forbid")

    before: float
    after: float
    gain: float
    interval: Interval
    prompts: int
    share: bool = False

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Self:
        """Of each prompt's two scores.

        Raises:
            ValueError: there are none.
        """
        gain, interval = mean_interval([new - old for new, old in zip(after, before, strict=True)])
        count = len(after)
        return cls(
            before=sum(before) / count, after=sum(after) / count, gain=gain, interval=interval, prompts=count,
            share=all(0 <= score <= 1 for score in (*before, *after)),
        )


class BenchmarkChange(PairedScore):
    """Two models on the same documents of a benchmark.

    Attributes:
        measure: as "ifeval/prompt_level_strict_acc".
        higher_is_better: else a gain is a loss.
        max_loss: what the second model may lose; None where it may lose anything.
        bounds: of rates, the interval with a document won and one lost besides (Bonett and Price 2012, *Adjusted Wald
            Confidence Interval for a Difference of Binomial Proportions Based on Paired Data*): that few documents
            agree does not show that all do. A loss is bounded by it.
    """

    measure: str
    higher_is_better: bool = True
    max_loss: float | None = None

    bounds: Interval | None = None

    @property
    def most_lost(self) -> float:
        """What the second model may have lost, by the worse end of the bounds; below zero it has gained."""
        low, high = self.bounds or self.interval
        return -low if self.higher_is_better else high

    @property
    def holds(self) -> bool:
        """Whether it has lost no more than it may."""
        return self.max_loss is None or self.most_lost <= self.max_loss


def means_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every score that has a name; each prompt has some, by their names."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, score in row.items():
            columns.setdefault(name, []).append(score)
    return {name: sum(columns[name]) / len(columns[name]) for name in sorted(columns)}


def paired_by_name(
    before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> dict[str, PairedScore]:
    """Of every score that has a name and that both models have for a prompt."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for old, new in zip(before, after, strict=True):
        for name in old.keys() & new.keys():
            columns.setdefault(name, []).append((old[name], new[name]))
    return {name: PairedScore.of(*zip(*columns[name], strict=True)) for name in sorted(columns)}
