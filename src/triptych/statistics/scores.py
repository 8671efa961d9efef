"""Mean scores with their intervals, as results and reports hold them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from triptych.statistics.intervals import Interval


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
