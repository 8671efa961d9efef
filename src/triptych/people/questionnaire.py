"""What people are asked, whoever asks: the questions of a gate that waits, or those that the next round learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import Field

from triptych.configuration import Config, UserFile
from triptych.data.files import faults_of, json_line
from triptych.data.growing import GrowingFile
from triptych.data.row import Row
from triptych.data.splits import fraction
from triptych.data.votes import Opinion, Vote, ballots, standing
from triptych.errors import AnsweredError, DataError, Fault, RecipeError
from triptych.records import Conversation, Question, Withdrawal
from triptych.statistics.reliability import Reliability
from triptych.storage import open_regular, turn_at

Q = TypeVar("Q", Question, Conversation)
"""What is asked about: two answers, or one."""


GUIDELINE = 50_000
"""Characters that a guideline may have: it goes to the page with each question."""


class Annotation(Config):
    """How several people are asked.

    Attributes:
        guideline: a file of text or Markdown that says by what to decide; it is shown with the questions.
        overlap: the share of the questions that several people are asked, so that their agreement is known.
        annotators: so many of them each.
    """

    guideline: UserFile | None = None
    overlap: float = Field(default=0.0, ge=0, le=1)
    annotators: int = Field(default=2, ge=2)

    def asked_of(self, key: str) -> int:
        """How many people a question is asked of, by its key: the same for whoever asks, whatever else is asked."""
        return self.annotators if self.overlap and _place(key) < self.overlap else 1


def read_guideline(path: Path) -> str:
    """The text of a guideline.

    Raises:
        RecipeError: the file cannot be read, or is too long.
    """
    try:
        with open_regular(path) as file:
            text = file.read(4 * GUIDELINE + 1).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        what = f"a guideline is a file of text or Markdown, and it cannot be read: {reason}"
        raise RecipeError(f"{path}: {what}") from None
    if len(text) > GUIDELINE:
        raise RecipeError(f"{path}: a guideline has at most {GUIDELINE:,} characters, and it has more")
    return text


@cache
def _place(key: str) -> float:
    return fraction("asked of several people", key, 0)


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
UNDO = Choice("undo", "z", "Take the last answer back")
"""May be said after an answer, by whoever gave it."""


class Questionnaire(ABC, Generic[Q]):
    """Questions, and the file in which people's answers to them become records.

    Several programs may ask and add at a time; each look reads what is new.

    Attributes:
        title: what is asked.
        choices: what may be said; where two answers are shown, the first two choices prefer one of them.
        questions: a file of them; it may be another one at each look.
        file: where answers are added.
        annotation: how several people are asked.
        guideline: by what they decide, in words; there may be none.
    """

    title: ClassVar[str]
    choices: ClassVar[Sequence[Choice]]

    def __init__(self, questions: Path, file: Path, annotation: Annotation | None = None) -> None:
        self.questions, self.file = questions, file
        self.annotation = annotation or Annotation()
        named = self.annotation.guideline
        self.guideline = "" if named is None else read_guideline(named.path)
        self._asked: GrowingFile[Q] = GrowingFile(questions, self._answerable, lambda question: question.key)
        self._answers: GrowingFile[Vote] = GrowingFile(file, self.parse, lambda vote: vote.question.key)

    @staticmethod
    @abstractmethod
    def parse_question(row: Row) -> Q | None:
        """A row of the questions; what is wrong stands in the row."""

    @staticmethod
    @abstractmethod
    def parse(row: Row) -> Vote | None:
        """A row of the answers' file; what is wrong stands in the row."""

    @staticmethod
    @abstractmethod
    def record(question: Q, choice: str, annotator: str | None = None) -> Opinion:
        """What somebody's answer is in the file."""

    @classmethod
    def is_answerable(cls, question: Q) -> bool:
        """Whether an answer to it could be written and read."""
        return not faults_of(cls.record(question, cls.choices[0].name))

    @property
    def all(self) -> dict[str, Q]:
        """Every question by its key, in the order in which they should be asked."""
        return {key: questions[0] for key, questions in self._asked.look().items()}

    @property
    def answers(self) -> Mapping[str, list[Opinion]]:
        """All that was said and stands, by the keys of the questions.

        Raises:
            DataError: rows of the file are wrong.
        """
        if faults := self.faults:
            raise DataError(faults)
        return {key: standing(votes) for key, votes in self._answers.look().items()}

    @property
    def faults(self) -> list[Fault]:
        """Of the wrong rows of the answers' file; a last line that is not whole is none, and waits."""
        self._answers.look()
        return self._answers.faults

    @property
    def open(self) -> dict[str, Q]:
        """The questions that fewer people have answered than should."""
        answers = self._answers.look()
        return {
            key: question for key, question in self.all.items()
            if key not in answers or len(standing(answers[key])) < self.annotation.asked_of(key)
        }

    def open_to(self, annotator: str | None) -> dict[str, Q]:
        """Those of them that somebody has not answered, first those that nobody has; of who has no name only these."""
        answers, asked = self._answers.look(), self.all
        said = {key: standing(answers.get(key, ())) for key in asked}
        waiting = {key: question for key, question in asked.items() if self._may_answer(key, said[key], annotator)}
        return dict(sorted(waiting.items(), key=lambda item: len(said[item[0]])))

    def _may_answer(self, key: str, said: Sequence[Opinion], annotator: str | None) -> bool:
        """Whether somebody may answer a question to which others said something."""
        if annotator is None or not said:
            return not said
        return len(said) < self.annotation.asked_of(key) and all(vote.annotator != annotator for vote in said)

    @property
    def reliability(self) -> Reliability:
        """How far people agree on what is asked now."""
        asked = self.all
        votes = [vote for key, votes in self._answers.look().items() if key in asked for vote in votes]
        names = {opinion.annotator for opinion in standing(votes) if opinion.annotator is not None}
        return Reliability.of(list(ballots(votes).values()), len(names))

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

    def add(self, question: Q, choice: str, annotator: str | None = None) -> str | None:
        """Adds what somebody said, one of the choices, whole and flushed to the disk, or not at all.

        Returns:
            What of an unfinished last line was set aside.

        Raises:
            AnsweredError: so many have answered meanwhile as should, or the same person has.
            DataError: the file's readers would refuse the line.
            OSError: it cannot be written; the file is as it was.
        """
        record = self.record(question, choice, annotator)
        if faults := faults_of(record) or faults_of(self.record(question, self.choices[0].name)):
            raise DataError(faults)
        with turn_at(self.file) as turn:
            if not self._may_answer(question.key, self._said(question.key), annotator):
                raise AnsweredError("this question has been answered meanwhile; what you said was not added")
            turn.add(json_line(record))
        return turn.set_aside

    def take_back(self, question: Q, annotator: str) -> None:
        """Takes a person's answer to a question back, by a line of its own; one that is not there is none.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        with turn_at(self.file) as turn:
            if any(vote.annotator == annotator for vote in self._said(question.key)):
                turn.add(json_line(Withdrawal(question, annotator)))

    def _said(self, key: str) -> list[Opinion]:
        return standing(self._answers.look().get(key, ()))

    def _answerable(self, row: Row) -> Q | None:
        question = self.parse_question(row)
        return question if question is not None and self.is_answerable(question) else None
