"""People as those who decide at the gate: they compare the two answers to each prompt without knowing who wrote which.

What they say stands in one file, a line for each verdict, which anybody may add to. A gate waits until each of its
questions has a verdict, and keeps those that it decided by, so that what is added later changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.files import BETTER, append, json_line, read_any, read_questions, read_verdicts
from triptych.evaluate.answers import Pair
from triptych.intervals import mean_interval
from triptych.records import Question, Verdict
from triptych.storage import write_whole

PEOPLE = "a panel of people"


@dataclass(frozen=True, slots=True)
class Panel:
    """The questions of a gate, and the file in which people answer them.

    Attributes:
        questions: a file of them; it may be another one at each look.
        file: where verdicts are added, those of other gates too.
        choices: what may be said; neither may be better.
    """

    questions: Path
    file: Path
    choices: Sequence[str] = BETTER

    @property
    def all(self) -> list[Question]:
        """Every question."""
        return read_any(self.questions, read_questions)

    @property
    def open(self) -> list[Question]:
        """The questions that nobody has answered yet."""
        answered = {verdict.question.key for verdict in self._verdicts}
        return [question for question in self.all if question.key not in answered]

    def add(self, question: Question, better: str) -> None:
        """Adds what somebody said."""
        append(self.file, Verdict(question, better))

    def take(self, place: Path) -> Path:
        """The verdicts on these questions, kept in a file of their own: the ones kept before, or those of now."""
        if not place.exists():
            asked = {question.key for question in self.all}
            kept = [verdict for verdict in self._verdicts if verdict.question.key in asked]
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, "".join(map(json_line, kept)))
        return place

    @property
    def _verdicts(self) -> list[Verdict]:
        return read_any(self.file, read_verdicts)


def preferred(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[float]:
    """For each pair the share of its verdicts that the candidate has; a half where both answers are one."""
    said: dict[tuple[str, frozenset[str]], list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.question.key, []).append(verdict)

    def share(pair: Pair) -> float:
        if pair.before == pair.after:
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
