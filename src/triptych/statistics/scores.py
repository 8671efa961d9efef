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
    """

    model_config = ConfigDict(extra="forbid")

    before: float
    after: float
    gain: float
    interval: Interval
    prompts: int

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Self:
        """Of each prompt's two scores.

        Raises:
            ValueError: there are none.
        """
        gain, interval = mean_interval([new - old for new, old in zip(after, before, strict=True)])
        count = len(after)
        return cls(
            before=sum(before) / count, after=sum(after) / count, gain=gain, interval=interval, prompts=count
        )


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
