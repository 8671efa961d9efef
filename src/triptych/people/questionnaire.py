"""What people are asked, whoever asks: the questions of a gate that waits, or those that the next round learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from triptych.data.files import faults_of, json_line
from triptych.data.growing import GrowingFile
from triptych.data.row import Row
from triptych.errors import AnsweredError, DataError, Fault
from triptych.records import Comparison, Conversation, Question, Thumb, Verdict
from triptych.storage import turn_at

Q = TypeVar("Q", Question, Conversation)
"""What is asked about: two answers, or one."""
R = TypeVar("R", Comparison, Thumb, Verdict)
"""What is learnt from what somebody says to it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of what may be said to a question.

    Attributes:
        name: as it is sent.
        key: that is pressed for it.
        label: as a person reads it.
    """

    name: str
    key: str
    label: str


SKIP = Choice("skip", "s", "I cannot tell: skip")
"""May be said to every question, and adds nothing."""


class Questionnaire(ABC, Generic[Q, R]):
    """Questions, and the file in which people's answers to them become records.

    Several programs may ask and add at a time; each look reads what is new.

    Attributes:
        title: what is asked.
        choices: what may be said; where two answers are shown, the first two choices prefer one of them.
        questions: a file of them; it may be another one at each look.
        file: where answers are added.
    """

    title: ClassVar[str]
    choices: ClassVar[Sequence[Choice]]

    def __init__(self, questions: Path, file: Path) -> None:
        self.questions, self.file = questions, file
        self._asked: GrowingFile[Q] = GrowingFile(questions, self._answerable, lambda question: question.key)
        self._answers: GrowingFile[R] = GrowingFile(file, self.parse, self.question_key)

    @staticmethod
    @abstractmethod
    def parse_question(row: Row) -> Q | None:
        """A row of the questions; what is wrong stands in the row."""

    @staticmethod
    @abstractmethod
    def parse(row: Row) -> R | None:
        """A row of the answers' file; what is wrong stands in the row."""

    @staticmethod
    @abstractmethod
    def record(question: Q, choice: str) -> R:
        """What somebody's answer is in the file."""

    @staticmethod
    @abstractmethod
    def question_key(record: R) -> str:
        """The key of the question that it answers."""

    @classmethod
    def is_answerable(cls, question: Q) -> bool:
        """Whether an answer to it could be written and read."""
        return not faults_of(cls.record(question, cls.choices[0].name))

    @property
    def all(self) -> dict[str, Q]:
        """Every question by its key, in the order in which they should be asked."""
        return {key: questions[0] for key, questions in self._asked.look().items()}

    @property
    def answers(self) -> Mapping[str, list[R]]:
        """All that was said, by the keys of the questions.

        Raises:
            DataError: rows of the file are wrong.
        """
        if faults := self.faults:
            raise DataError(faults)
        return self._answers.look()

    @property
    def faults(self) -> list[Fault]:
        """Of the wrong rows of the answers' file; a last line that is not whole is none, and waits."""
        self._answers.look()
        return self._answers.faults

    @property
    def open(self) -> dict[str, Q]:
        """The questions that nobody has answered yet."""
        answered = self._answers.look()
        return {key: question for key, question in self.all.items() if key not in answered}

    @property
    def notes(self) -> list[str]:
        """What is wrong with the answers' file, in words."""
        notes = [f"left out: {fault}" for fault in self.faults]
        if tail := self._answers.unfinished:
            notes.append(
                f"{self.file} ends in {len(tail):,} bytes that are no whole line; with the next answer they are set "
                f"aside into {self.file.name}.unfinished"
            )
        return notes

    def may_be(self, choice: str) -> bool:
        """Whether it is one of the choices."""
        return any(choice == possible.name for possible in self.choices)

    def add(self, question: Q, choice: str) -> str | None:
        """Adds what somebody said, one of the choices, whole and flushed to the disk, or not at all.

        Returns:
            What of an unfinished last line was set aside.

        Raises:
            AnsweredError: somebody has answered meanwhile.
            DataError: the file's readers would refuse the line.
            OSError: it cannot be written; the file is as it was.
        """
        record = self.record(question, choice)
        if faults := faults_of(record):
            raise DataError(faults)
        with turn_at(self.file) as turn:
            if question.key in self._answers.look():
                raise AnsweredError("this question has been answered meanwhile; what you said was not added")
            turn.add(json_line(record))
        return turn.set_aside

    def _answerable(self, row: Row) -> Q | None:
        question = self.parse_question(row)
        return question if question is not None and self.is_answerable(question) else None
