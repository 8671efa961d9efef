"""People as those who decide at the gate: what their verdicts say of the two models, and of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.data.votes import ballots, choices, majority
from triptych.evaluate.answers import Pair
from triptych.records import Question, Verdict, differ
from triptych.statistics.intervals import Interval, mean_interval
from triptych.statistics.reliability import Reliability

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
    """For each pair 1 where more than half of its people prefer the candidate, 0 where they do the champion, else ½.

    So a question counts once, however many answered it. Where the two do not differ, nobody is asked: ½.
    """
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.question.key, []).append(verdict)

    def share(pair: Pair) -> float:
        if not differ(pair.before, pair.after):
            return 0.5
        asked = Question(pair.prompt, pair.before, pair.after)
        return Verdict(asked, majority(choices(asked, said[asked.key])) or "tie").share(pair.after)

    return [share(pair) for pair in pairs]


def reliability(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> Reliability:
    """How far the people agree who decided about these pairs."""
    asked = {Question(pair.prompt, pair.before, pair.after).key for pair in pairs}
    said = [verdict for verdict in verdicts if verdict.question.key in asked]
    names = {verdict.annotator for verdict in said if verdict.annotator is not None}
    return Reliability.of(list(ballots(said).values()), len(names))


def beside(people: Sequence[float], judge: Sequence[float]) -> JudgeBeside:
    """The judge's win rate beside the people's, and how often the two agree where each prefers one."""
    rate, interval = mean_interval(judge)
    both = [(a > 0.5) == (b > 0.5) for a, b in zip(people, judge, strict=True) if a != 0.5 and b != 0.5]
    return JudgeBeside(rate, interval, sum(both) / len(both) if both else None, len(both))
