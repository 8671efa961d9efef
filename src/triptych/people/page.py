"""The page on which several people answer at a time, each another question."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from triptych.errors import AnsweredError, TriptychError
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
    """

    question: str
    choice: str
    name: str = Field(default="", max_length=64)


class Deal:
    """Deals open questions out, so that two people do not look at the same one.

    Attributes:
        asked: where questions come from; those of the first that has any are dealt first.
        tell: is told what whoever serves the page should know.
    """

    def __init__(self, asked: Sequence[Questionnaire[Any, Any]], tell: Callable[[str], None] = print) -> None:
        self.asked = asked
        self.tell = tell
        self._shown: dict[str, float] = {}
        self._taken: dict[str, str] = {}
        self._lock = threading.Lock()

    def next(self) -> dict[str, Any] | None:
        """An open question, the longest unseen where all are looked at; None where none is open."""
        with self._lock:
            for source in self.asked:
                waiting = source.open
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
            if answer.name and self._taken.get(answer.question) == answer.name:
                return True  # sent again, because the first reply was lost
            for source in self.asked:
                question = source.all.get(answer.question)
                if question is None:
                    continue
                if answer.choice == SKIP.name:
                    return True  # it stays with whoever skipped it until its lease is over
                if not source.may_be(answer.choice):
                    return False
                if cut := source.add(question, answer.choice):
                    self.tell(f"{source.file} ended in a line that was not whole; set aside: {cut}")
                self._taken[answer.question] = answer.name
                return True
        raise AnsweredError("this question is not asked any more; what you said was not added")


def serve(asked: Sequence[Questionnaire[Any, Any]], key: str, tell: Callable[[str], None] = print) -> uvicorn.Server:
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
    def question() -> Any:
        return deal.next() or Response(status_code=204)

    @application.post("/answer")
    def answer(said: PageAnswer) -> dict[str, bool]:
        if not deal.take(said):
            raise HTTPException(422, "that cannot be said to this question")
        return {"added": said.choice != SKIP.name}

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


def _written(question: Question | Conversation, source: Questionnaire[Any, Any], waiting: int) -> dict[str, Any]:
    return {
        "question": question.key, "title": source.title, "answers": list(question.answers), "open": waiting,
        "prompt": [[turn.role, turn.content] for turn in question.prompt.messages],
        "choices": [dataclasses.asdict(choice) for choice in (*source.choices, SKIP)],
    }
