"""People beside a run: what it asks them, what they said, and that it waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triptych.errors import RunError
from triptych.people.inbox import Inbox
from triptych.people.questionnaire import Annotation
from triptych.people.questions import FILE as QUESTIONS
from triptych.people.questions import Form, QuestionsAsked
from triptych.people.verdicts import Panel
from triptych.pipeline.artifact import Artifact
from triptych.progress import Progress
from triptych.storage import write_whole

GATE_QUESTIONS = "gate-questions.jsonl"
"""What a gate that waits for people asks them, in the run's folder."""


@dataclass(frozen=True, slots=True)
class Attendance:
    """The people of a run.

    Attributes:
        folder: the run's.
    """

    folder: Path
    progress: Progress

    def ask(self, asked: Artifact[QuestionsAsked]) -> None:
        """Puts a round's questions where people look for them; the run's questions.jsonl is the newest."""
        place = self.folder / QUESTIONS
        write_whole(place, (asked / QUESTIONS).read_text(encoding="utf-8"))
        self.progress.say(f"{asked.result.questions} questions to people: {place}, or triptych label")

    def feedback(
        self, form: Form, file: Path, round: int, wrong_rows: Literal["refuse", "skip"], required: bool
    ) -> Path | None:
        """What people said since the last round, kept in the run's folder; None where it is nothing.

        Args:
            form: of what they add.
            file: that they add to.
            required: whether there is no other feedback of that form.

        Raises:
            RunError: there is nothing new, and it is required.
        """
        inbox = Inbox.of_run(self.folder, file, form)
        if inbox.note:
            self.progress.say(inbox.note)
        taken = inbox.take(round, wrong_rows)
        if inbox.teaches(taken):
            return taken
        if not required:
            return None
        taken.unlink()
        raise RunError(
            f"{file}: no {inbox.kind.unit} has arrived; answer the questions in {self.folder / QUESTIONS} "
            "(triptych label), or have triptych watch wait for others"
        )

    def verdicts(self, file: Path, gate: str, questions: Path, annotation: Annotation) -> Path:
        """What people said to all that a gate asks, kept in the run's folder.

        Args:
            file: that they add to.
            annotation: how several of them are asked.
            gate: its stage's name.
            questions: what it asks, in the folder of the answers.

        Raises:
            WaitingError: some questions are open; they are in the run's gate-questions.jsonl.
        """
        panel = Panel(questions, file, annotation)
        kept = self.folder / "verdicts" / f"{questions.parent.name}.jsonl"
        place = self.folder / GATE_QUESTIONS
        if not kept.exists() and panel.open:
            write_whole(place, panel.questions.read_text(encoding="utf-8"))
            panel.require(gate, place, "triptych label")
        place.unlink(missing_ok=True)
        return panel.take(kept)
