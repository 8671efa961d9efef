"""People as those who decide at the gate: they compare the two answers to each prompt without knowing who wrote which.

What they say stands in one file, a line for each verdict, which anybody may add to. A gate waits until each of its
questions has a verdict, and keeps those that it decided by, so that what is added later changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from triptych.data.files import BETTER, json_line, parse_verdict
from triptych.people.questionnaire import Questionnaire
from triptych.records import Question, Verdict
from triptych.storage import write_whole


class Panel(Questionnaire[Verdict]):
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
