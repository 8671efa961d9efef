"""People as those who decide at the gate: what their verdicts say of the two models, and of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.evaluate.answers import Pair
from triptych.records import Question, Verdict, differ
from triptych.statistics.intervals import Interval, mean_interval

PEOPLE = "a panel of people"


@dataclass(frozen=True, slots=True)
class JudgeBeside:
    """The judge beside people.

    Attributes:
        agreement: where both prefer one answer, how often it is the same; None where they never do.
        prompts: where both prefer one.
    """

    win_rate: float
    interval: Interval
    agreement: float | None
    prompts: int


def preferred(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[float]:
    """For each pair the share of its verdicts that the candidate has; a half where the two do not differ."""
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.question.key, []).append(verdict)

    def share(pair: Pair) -> float:
        if not differ(pair.before, pair.after):
            return 0.5
        shares = [verdict.share(pair.after) for verdict in said[Question(pair.prompt, pair.before, pair.after).key]]
        return sum(shares) / len(shares)

    return [share(pair) for pair in pairs]


def beside(people: Sequence[float], judge: Sequence[float]) -> JudgeBeside:
    """The judge's win rate beside the people's, and how often the two agree where each prefers one."""
    rate, interval = mean_interval(judge)
    both = [(a > 0.5) == (b > 0.5) for a, b in zip(people, judge, strict=True) if a != 0.5 and b != 0.5]
    return JudgeBeside(rate, interval, sum(both) / len(both) if both else None, len(both))
