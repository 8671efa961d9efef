"""People as those who decide at the gate: they compare the two answers to each prompt without knowing who wrote which.

What they say stands in one file, a line for each verdict, which anybody may add to. A gate waits until each of its
questions has a verdict, and keeps those that it decided by, so that what is added later changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.files import append, json_line, read_any, read_questions, read_verdicts
from triptych.evaluate.answers import QUESTIONS, Pair
from triptych.intervals import mean_interval
from triptych.pipeline.artifact import write_whole
from triptych.records import Question, Verdict

PEOPLE = "a panel of people"


@dataclass(frozen=True, slots=True)
class Panel:
    """Some questions, and the file in which people answer them.

    Attributes:
        questions: those of one gate.
        file: where verdicts are added, those of other gates too.
    """

    questions: Sequence[Question]
    file: Path

    @classmethod
    def on(cls, answers: Path, file: Path) -> Panel:
        """On what the stage in the folder asks."""
        return cls(read_any(answers / QUESTIONS, read_questions), file)

    @property
    def open(self) -> list[Question]:
        """The questions that nobody has answered yet."""
        answered = {verdict.question.key for verdict in self._verdicts}
        return [question for question in self.questions if question.key not in answered]

    def add(self, verdict: Verdict) -> None:
        """Adds what somebody said."""
        append(self.file, verdict)

    def take(self, place: Path) -> Path:
        """The verdicts on these questions, kept in a file of their own: the ones kept before, or those of now."""
        if not place.exists():
            asked = {question.key for question in self.questions}
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
        shares = [verdict.share(pair.after) for verdict in said[pair.question(0).key]]
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
