"""The page on which several people compare answers at a time, each another pair."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from triptych.interview.asked import Asked
from triptych.records import Question

LEASE = 600.0
"""Seconds for which a question that somebody looks at is shown to nobody else."""

HTML = Path(__file__).with_name("page.html")


class Answer(BaseModel):
    """What somebody said to a question; `better` is "skip" where it was nothing."""

    question: str
    better: str


class Deal:
    """Deals open questions out, so that two people do not look at the same one.

    Attributes:
        asked: where questions come from; those of the first that has any are dealt first.
    """

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked
        self._shown: dict[str, float] = {}
        self._lock = threading.Lock()

    def next(self) -> dict[str, Any] | None:
        """An open question, the longest unseen where all are looked at; None where none is open."""
        with self._lock:
            for source in self.asked:
                waiting = source.open
                if waiting:
                    now = time.monotonic()
                    free = (each for each in waiting if now - self._shown.get(_name(each), -LEASE) >= LEASE)
                    question = next(free, None) or min(waiting, key=lambda each: self._shown[_name(each)])
                    self._shown[_name(question)] = now
                    return _written(question, source.choices, len(waiting))
        return None

    def take(self, answer: Answer) -> bool:
        """Adds an answer; False where no open question allows it, as where somebody else has answered meanwhile."""
        with self._lock:
            for source in self.asked:
                found = next((each for each in source.open if _name(each) == answer.question), None)
                if found is not None and answer.better == "skip":
                    return True  # it stays with whoever skipped it until its lease is over
                if found is not None and answer.better in source.choices:
                    source.add(found, answer.better)
                    return True
        return False


def serve(asked: Sequence[Asked], key: str) -> FastAPI:
    """The page as an application; whoever knows the key may answer."""
    # No documentation pages: they would load scripts from elsewhere.
    application = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None)
    deal = Deal(asked)

    def known(x_key: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(x_key.encode(), key.encode()):
            raise HTTPException(403, "the address needs its key: the one that triptych label printed")

    @application.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        html = HTML.read_text(encoding="utf-8").replace("NONCE", nonce)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    @application.get("/question", dependencies=[Depends(known)])
    def question() -> Any:
        return deal.next() or Response(status_code=204)

    @application.post("/answer", dependencies=[Depends(known)])
    def answer(said: Answer) -> dict[str, bool]:
        return {"added": deal.take(said)}

    return application


def _name(question: Question) -> str:
    prompt, answers = question.key
    return hashlib.sha256("\0".join([prompt, *sorted(answers)]).encode()).hexdigest()


def _written(question: Question, choices: Sequence[str], waiting: int) -> dict[str, Any]:
    return {
        "question": _name(question),
        "prompt": [[turn.role, turn.content] for turn in question.prompt.messages],
        "first": question.first, "second": question.second, "choices": list(choices), "open": waiting,
    }
