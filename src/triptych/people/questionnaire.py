"""What people are asked, whoever asks: the questions of a gate that waits, or those that the next round learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from triptych.data.files import Row, faults_of, json_line, parse_question
from triptych.data.growing import GrowingFile
from triptych.errors import AnsweredError, DataError
from triptych.records import Comparison, Question, Verdict
from triptych.storage import turn_at

R = TypeVar("R", Comparison, Verdict)


class Questionnaire(Generic[R]):
    """Questions, and the file in which people's answers to them become records.

    Several programs may ask and add at a time; each look reads what is new.

    Attributes:
        choices: what may be said: "first", "second" and, where neither may be better, "tie".
        questions: a file of them; it may be another one at each look.
        file: where answers are added.
    """

    choices: ClassVar[Sequence[str]]

    def __init__(
        self, questions: Path, file: Path, parse: Callable[[Row], R | None], key: Callable[[R], str]
    ) -> None:
        self.questions, self.file = questions, file
        self._asked = GrowingFile(questions, self._question, lambda question: question.key)
        self._answers: GrowingFile[R] = GrowingFile(file, parse, key)

    def record(self, question: Question, better: str) -> R:
        """What somebody's answer is in the file."""
        raise NotImplementedError

    @property
    def all(self) -> dict[str, Question]:
        """Every question by its key, in the order in which they should be asked."""
        return {key: questions[0] for key, questions in self._asked.look().items()}

    @property
    def answers(self) -> Mapping[str, list[R]]:
        """All that was said, by the keys of the questions.

        Raises:
            DataError: rows of the file are wrong.
        """
        found = self._answers.look()
        if self._answers.faults:
            raise DataError(self._answers.faults)
        return found

    @property
    def open(self) -> dict[str, Question]:
        """The questions that nobody has answered yet."""
        answered = self._answers.look()
        return {key: question for key, question in self.all.items() if key not in answered}

    @property
    def notes(self) -> list[str]:
        """What is wrong with the answers' file, in words."""
        self._answers.look()
        found = [f"left out: {fault}" for fault in self._answers.faults]
        if tail := self._answers.unfinished:
            found.append(
                f"{self.file} ends in {len(tail):,} bytes that are no whole line; with the next answer they are set "
                f"aside into {self.file.name}.unfinished"
            )
        return found

    def add(self, question: Question, better: str) -> str | None:
        """Adds what somebody said, one of the choices, whole and flushed to the disk, or not at all.

        Returns:
            What of an unfinished last line was set aside.

        Raises:
            AnsweredError: somebody has answered meanwhile.
            DataError: the file's readers would refuse the line.
            OSError: it cannot be written; the file is as it was.
        """
        record = self.record(question, better)
        if faults := faults_of(record):
            raise DataError(faults)
        with turn_at(self.file) as turn:
            if question.key in self._answers.look():
                raise AnsweredError("this question has been answered meanwhile; what you said was not added")
            turn.add(json_line(record))
        return turn.set_aside

    def _question(self, row: Row) -> Question | None:
        """A row as a question; None, too, where no answer to it could be written and read."""
        question = parse_question(row)
        return question if question is not None and not faults_of(self.record(question, self.choices[0])) else None
