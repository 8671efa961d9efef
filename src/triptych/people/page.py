"""The page on which several people answer at a time, each another question first."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from triptych.display import one_line
from triptych.errors import AnsweredError, TriptychError
from triptych.json_text import indented
from triptych.people.guard import by_header, guarded, own_page
from triptych.people.questionnaire import SKIP, Questionnaire
from triptych.records import Conversation, Question

LEASE = 600.0
"""Seconds for which a question that somebody looks at is shown to nobody else."""

HTML = Path(__file__).with_name("page.html")


class PageAnswer(BaseModel):
    """What somebody said to a question.

    Attributes:
        question: its key.
        choice: the name of one of its choices, or "skip".
        name: of this answer alone; who does not know whether it arrived sends it again.
        annotator: who says so, as they call themselves.
    """

    question: str
    choice: str
    name: str = Field(default="", max_length=64)
    annotator: str = Field(default="", max_length=64)

    @property
    def person(self) -> str | None:
        """Who says so; None where nobody says."""
        return person(self.annotator)


class PageWithdrawal(BaseModel):
    """Somebody takes an answer back."""

    question: str
    annotator: str = Field(min_length=1, max_length=64)


def person(name: str) -> str | None:
    """A name as it is written down, on one line; None where there is none."""
    return one_line(name) or None


class Deal:
    """Deals open questions out, so that two people do not look at the same one.

    Attributes:
        asked: where questions come from; those of the first that has any are dealt first.
        tell: is told what whoever serves the page should know.
    """

    def __init__(self, asked: Sequence[Questionnaire[Any]], tell: Callable[[str], None] = print) -> None:
        self.asked = asked
        self.tell = tell
        self._shown: dict[str, float] = {}
        self._taken: dict[tuple[str, str | None], str] = {}
        self._lock = threading.Lock()

    def next(self, annotator: str | None = None) -> dict[str, Any] | None:
        """A question that is open to somebody, the longest unseen where all are looked at; None where none is."""
        with self._lock:
            for source in self.asked:
                waiting = source.open_to(annotator)
                if waiting:
                    now = time.monotonic()
                    free = (key for key in waiting if now - self._shown.get(key, -LEASE) >= LEASE)
                    key = next(free, None) or min(waiting, key=self._shown.__getitem__)
                    self._shown[key] = now
                    return _written(waiting[key], source, len(waiting))
        return None

    def take(self, answer: PageAnswer) -> bool:
        """Adds an answer; False where it cannot be said to that question.

        Raises:
            AnsweredError: the question has another answer meanwhile, or is not asked any more.
            OSError: it could not be written.
        """
        with self._lock:
            whose = answer.question, answer.person
            if answer.name and self._taken.get(whose) == answer.name:
                return True  # sent again, because the first reply was lost
            source, question = self._asked(answer.question, "what you said was not added")
            if answer.choice == SKIP.name:
                return True  # it stays with whoever skipped it until its lease is over
            if not source.may_be(answer.choice):
                return False
            if cut := source.add(question, answer.choice, answer.person):
                self.tell(f"{source.file} ended in a line that was not whole; set aside: {cut}")
            self._taken[whose] = answer.name
            self._shown.pop(answer.question, None)  # who else is asked it need not wait
            return True

    def take_back(self, back: PageWithdrawal) -> dict[str, Any]:
        """Takes an answer back and gives its question again to whoever gave it; what was taken back already stays so.

        Raises:
            AnsweredError: the question is not asked any more, so that the answer stays.
            OSError: it could not be written.
        """
        with self._lock:
            source, question = self._asked(back.question, "your answer stays")
            annotator = person(back.annotator)
            if annotator is not None:
                source.take_back(question, annotator)
            self._shown[back.question] = time.monotonic()
            return _written(question, source, len(source.open_to(annotator)))

    def _asked(self, key: str, consequence: str) -> tuple[Questionnaire[Any], Any]:
        for source in self.asked:
            question = source.all.get(key)
            if question is not None:
                return source, question
        raise AnsweredError(f"this question is not asked any more; {consequence}")


def serve(asked: Sequence[Questionnaire[Any]], key: str, tell: Callable[[str], None] = print) -> uvicorn.Server:
    """The page's server; whoever knows the key may answer.

    Args:
        tell: is told what whoever serves the page should know.
    """
    # No documentation pages: they would load scripts from elsewhere.
    application = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None)
    deal = Deal(asked, tell)

    @application.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return own_page(HTML)

    @application.get("/question")
    def question(annotator: Annotated[str, Query(max_length=64)] = "") -> Any:
        return deal.next(person(annotator)) or Response(status_code=204)

    @application.post("/answer")
    def answer(said: PageAnswer) -> dict[str, bool]:
        if not deal.take(said):
            raise HTTPException(422, "that cannot be said to this question")
        return {"added": said.choice != SKIP.name}

    @application.post("/undo")
    def undo(back: PageWithdrawal) -> Any:
        return deal.take_back(back)

    @application.exception_handler(RequestValidationError)
    def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return _refusal(422, "the request is no answer to a question")

    @application.exception_handler(AnsweredError)
    def answered(request: Request, error: AnsweredError) -> JSONResponse:
        return _refusal(409, str(error))

    @application.exception_handler(TriptychError)
    @application.exception_handler(OSError)
    def failed(request: Request, error: TriptychError | OSError) -> JSONResponse:
        tell(f"not written: {error}")
        return _refusal(503, str(error.strerror if isinstance(error, OSError) and error.strerror else error))

    return guarded(application, by_header(key))


def _refusal(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


def _written(question: Question | Conversation, source: Questionnaire[Any], waiting: int) -> dict[str, Any]:
    return {
        "question": question.key, "title": source.title, "answers": list(question.answers), "open": waiting,
        "indented": [indented(answer) for answer in question.answers], "guideline": source.guideline,
        "prompt": [[turn.role, turn.shown] for turn in question.prompt.messages],
        "choices": [dataclasses.asdict(choice) for choice in (*source.choices, SKIP)],
    }
