"""A run's stages as the cycle that the README draws: Base, Instruct, the steps of each round, release."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from triptych.report.summary import StageRow, Summary

FIRST = {"storybook": "Data", "dataset": "Data", "base": "Base", "instruct": "Instruct", "reward": "Judge",
         "audit": "Judge"}
IN_A_ROUND = {"people": "Feedback", "feedback": "Feedback", "reward": "Reward", "audit": "Audit", "improve": "Improve",
              "evaluate": "Gate"}
LAST = {"evaluate": "Test"}
"""The step of each kind of stage: before the rounds, in one, and behind them."""


@dataclass(frozen=True, slots=True)
class CycleStep:
    """A step of the cycle, and the stages that it took; none where it was not run, or was not needed."""

    name: str
    stages: Sequence[StageRow]

    @property
    def seconds(self) -> float:
        """Of all its stages."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True, slots=True)
class RoundSteps:
    """The steps of a round, and what its gate decided; None where it did not come to that."""

    number: int
    decision: str | None
    steps: Sequence[CycleStep]


@dataclass(frozen=True, slots=True)
class CycleSteps:
    """What a run did before its rounds, in them, and behind them."""

    first: Sequence[CycleStep]
    rounds: Sequence[RoundSteps]
    last: Sequence[CycleStep]


def cycle_steps(summary: Summary) -> CycleSteps:
    """The run's stages by the steps of the cycle."""
    by_round: dict[int | None, list[StageRow]] = {None: []}
    for stage in summary.stages:
        by_round.setdefault(_round_of(stage), []).append(stage)
    outside = by_round.pop(None)
    decisions = {made.round: made.decision for made in summary.rounds}
    rounds = [
        RoundSteps(number, decisions.get(number), _steps(stages, IN_A_ROUND))
        for number, stages in sorted(by_round.items(), key=lambda item: item[0] or 0) if number is not None
    ]
    first = [step for step in _steps(outside, FIRST) if step.stages or step.name != "Judge"]
    return CycleSteps(first, rounds, _steps(outside, LAST))


def _steps(stages: Iterable[StageRow], names: Mapping[str, str]) -> list[CycleStep]:
    rows = list(stages)
    return [
        CycleStep(name, [stage for stage in rows if names.get(stage.kind) == name])
        for name in dict.fromkeys(names.values())
    ]


def _round_of(stage: StageRow) -> int | None:
    numbered = re.match(r"round-(\d{1,9})/", stage.name)
    return int(numbered[1]) if numbered else None
