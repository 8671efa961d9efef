"""People as those who decide at the gate: they compare the two answers to each prompt without knowing who wrote which.

What they say stands in one file, a line for each verdict, which anybody may add to. A gate waits until each of its
questions has a verdict, and keeps those that it decided by, so that what is added later changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.data.files import BETTER, json_line, parse_verdict
from triptych.evaluate.answers import Pair
from triptych.people.asked import Asked
from triptych.records import Question, Verdict, differ
from triptych.statistics.intervals import mean_interval
from triptych.storage import write_whole

PEOPLE = "a panel of people"


class Panel(Asked[Verdict]):
    """The questions of a gate, and the file in which people answer them, which holds verdicts of other gates too."""

    choices = BETTER

    def __init__(self, questions: Path, file: Path) -> None:
        super().__init__(questions, file, parse_verdict, lambda verdict: verdict.question.key)

    def record(self, question: Question, better: str) -> Verdict:
        """The verdict on a question."""
        return Verdict(question, better)

    def take(self, place: Path) -> Path:
        """The verdicts on these questions, kept in a file of their own: the ones kept before, or those of now.

        Raises:
            DataError: rows of the file are wrong.
        """
        if not place.exists():
            asked = self.all
            kept = [verdict for key, verdicts in self.answers.items() if key in asked for verdict in verdicts]
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, "".join(map(json_line, kept)))
        return place


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


def beside(people: Sequence[float], judge: Sequence[float]) -> dict[str, Any]:
    """The judge's win rate beside the people's, and how often the two agree where each prefers one."""
    rate, interval = mean_interval(judge)
    both = [(a > 0.5) == (b > 0.5) for a, b in zip(people, judge, strict=True) if a != 0.5 and b != 0.5]
    return {
        "judge_win_rate": rate, "judge_interval": interval,
        "agreement": sum(both) / len(both) if both else None, "agreement_prompts": len(both),
    }
