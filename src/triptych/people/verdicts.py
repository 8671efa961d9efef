"""People as those who decide at the gate: they compare the two answers to each prompt without knowing who wrote which.

What they say stands in one file, a line for each verdict, which anybody may add to. A gate waits until each of its
questions has a verdict, and keeps those that it decided by, so that what is added later changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from triptych.data.files import json_line, parse_question, parse_verdict
from triptych.errors import WaitingError
from triptych.people.questionnaire import Choice, Questionnaire
from triptych.people.questions import Labels
from triptych.records import Question, Verdict
from triptych.storage import write_whole


class Panel(Questionnaire[Question]):
    """The questions of a gate, and the file in which people answer them, which holds verdicts of other gates too."""

    title = Labels.title
    choices = (*Labels.choices[:2], Choice("tie", "t", "Neither: a tie"), Labels.choices[2])
    parse = staticmethod(parse_verdict)
    parse_question = staticmethod(parse_question)

    @staticmethod
    def record(question: Question, choice: str, annotator: str | None = None) -> Verdict:
        """The verdict on a question."""
        return Verdict(question, choice, annotator)

    def require(self, gate: str, place: Path, command: str) -> None:
        """Sees that every question has its verdict, or as many as it should.

        Args:
            gate: who asks.
            place: where people find the questions.
            command: that asks them.

        Raises:
            WaitingError: some are open.
        """
        if still := len(self.open):
            others = still - len(self.open_to(None))
            again = f", {others} of them for another person" if others else ""
            raise WaitingError(
                f"{gate} waits for people: {still} of {len(self.all)} questions are open{again} ({place}); answer them "
                f"with {command}, then give the same command again" + "".join(f"\n{note}" for note in self.notes)
            )

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
