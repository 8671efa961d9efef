"""The server: what is answered at which address, who may ask, and within which limits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from triptych.errors import TriptychError, UnavailableError
from triptych.people.guard import BoundedProtocol, Refusal, Refuse, Sent, guarded, is_key, own_page
from triptych.records import Thumb
from triptych.server import answers, scores
from triptych.server.answers import PendingReply
from triptych.server.bodies import ChatBody, CompletionBody, PoolingBody, RemoteBody, ScoreBody, ThumbBody
from triptych.server.served import RequestError, ServedFamily
from triptych.server.worker import Worker

Result = TypeVar("Result")
B = TypeVar("B", ChatBody, CompletionBody)

HTML = Path(__file__).with_name("page.html")

BODY = 4 << 20
"""Bytes of a request; a context of 100,000 tokens has some 400,000."""

SECONDS = 3600.0
"""From a request to the end of its answer."""

LOOK = 0.5
"""Seconds between two looks whether whoever waits for an answer is still there."""


class PatientProtocol(BoundedProtocol):
    """As the page's for people, with the time that an answer may take, and for as many as OpenAI's clients open."""

    most = 1000

    @property
    def seconds(self) -> float:
        """From the end of the headers."""
        return SECONDS


class Service:
    """What is answered at each address.

    Attributes:
        queue: so many answers may wait for a slot.
    """

    def __init__(self, family: ServedFamily, queue: int) -> None:
        self.family = family
        self.queue = queue
        self.worker = Worker([model.batch for model in family.models.values()])
        self.began = int(time.time())

    @property
    def routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        """Method, address and what answers there."""
        return [
            ("GET", "/", self.page), ("GET", "/family", self.shown), ("GET", "/health", self.health),
            ("GET", "/v1/models", self.models), ("GET", "/v1/models/{name}", self.model),
            ("POST", "/v1/chat/completions", self.chat), ("POST", "/v1/completions", self.complete),
            ("POST", "/v1/score", self.score), ("POST", "/score", self.score), ("POST", "/classify", self.classify),
            ("POST", "/pooling", self.pool), ("POST", "/get_reward", self.remote), ("POST", "/thumb", self.add_thumb),
        ]

    def page(self) -> Response:
        """To chat with the models side by side."""
        return own_page(HTML)

    def shown(self) -> dict[str, Any]:
        """What the page shows."""
        models = [{"name": one.name, "title": one.title, "talks": one.talks} for one in self.family.models.values()]
        return {
            "name": self.family.name, "models": models, "reward": self.family.reward is not None,
            "thumbs": self.family.thumbs is not None,
        }

    def health(self) -> dict[str, Any]:
        """That it answers, and how many answers wait for a slot."""
        return {"status": "ok", "waiting": self.worker.waiting}

    def models(self) -> dict[str, Any]:
        """Every model by its name, and the reward."""
        names = [*self.family.models, *([self.family.reward.name] if self.family.reward else [])]
        return {"object": "list", "data": [
            {"id": name, "object": "model", "created": self.began, "owned_by": self.family.name} for name in names
        ]}

    def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        for model in self.models()["data"]:
            if model["id"] == name:
                return dict(model)
        raise RequestError(f"there is no model {name!r}", 404, "model_not_found", "model")

    async def chat(self, body: ChatBody, request: Request) -> Response | dict[str, Any]:
        """Answers to a conversation; of the reward, what it gives the conversation's last turn."""
        if self.family.is_reward(body.model):
            return await _unless_gone(request, scores.reward_chat(self.family.scoring(body.model), body))
        return await self._answer(answers.chat, body, request)

    async def complete(self, body: CompletionBody, request: Request) -> Response | dict[str, Any]:
        """Text that is gone on with."""
        return await self._answer(answers.complete, body, request)

    async def score(self, body: ScoreBody, request: Request) -> dict[str, Any]:
        """Rewards of answers, as everywhere in a run."""
        return await _unless_gone(request, scores.score(self.family.scoring(body.model), body))

    async def classify(self, body: PoolingBody, request: Request) -> dict[str, Any]:
        """Probabilities, as vLLM has them."""
        return await _unless_gone(request, scores.classify(self.family.scoring(body.model), body))

    async def pool(self, body: PoolingBody, request: Request) -> dict[str, Any]:
        """The head's outputs, as vLLM has them."""
        return await _unless_gone(request, scores.pool(self.family.scoring(body.model), body))

    async def remote(self, body: RemoteBody, request: Request) -> dict[str, Any]:
        """Rewards of whole texts, as OpenRLHF asks for them."""
        return await _unless_gone(request, scores.remote(self.family.scoring(None), body))

    def add_thumb(self, body: ThumbBody) -> dict[str, Any]:
        """Adds what somebody thinks of an answer to the file."""
        return {"added": True, "set_aside": self.family.add_thumb(Thumb(body.prompt, body.answer, body.label))}

    async def _answer(
        self, prepare: Callable[[ServedFamily, Worker, B], PendingReply], body: B, request: Request
    ) -> Response | dict[str, Any]:
        answers.require_room(self.family.model(body.model), self.worker, body, self.queue)
        # To render and to read tokens takes time, in which others are answered.
        reply = await asyncio.to_thread(prepare, self.family, self.worker, body)
        reply.check(self.queue)
        if reply.body.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        choices = [reply.shaped(choice, streamed=False) for choice in await _unless_gone(request, reply.choices())]
        return reply.head(reply.whole) | {"choices": choices, "usage": reply.usage}


def serve(family: ServedFamily, key: str | None = None, queue: int = 256) -> uvicorn.Server:
    """The server of a family; it computes until it is stopped.

    Args:
        key: whoever sends it may ask. Without one whoever reaches this machine's own addresses may, but no page of
            another site.
        queue: so many answers may wait for a slot; further requests get status 429.
    """
    service = Service(family, queue)

    @contextlib.asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.close()
        if family.reward:
            family.reward.close()

    # No documentation pages: they would load scripts from elsewhere.
    application = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for method, address, function in service.routes:
        application.add_api_route(address, function, methods=[method], response_model=None)
    for kind in (RequestError, RequestValidationError, HTTPException, TriptychError, OSError, Exception):
        application.add_exception_handler(kind, _refusal)
    refuse = by_key(key) if key else from_here
    return guarded(application, refuse, body=BODY, seconds=SECONDS, protocol=PatientProtocol)


def by_key(key: str) -> Refuse:
    """Refuses who does not send the key, as OpenAI's clients do or as the page does."""

    def refuse(scope: Scope, sent: Sent) -> Refusal | None:
        keys = [value.removeprefix(b"Bearer ") for value in sent.get(b"authorization", [])]
        if scope["path"] in ("/", "/health") or is_key(keys, key) or is_key(sent.get(b"x-key", []), key):
            return None
        return 401, "the server needs its key, as api_key or in the address that triptych serve printed"

    return refuse


def from_here(scope: Scope, sent: Sent) -> Refusal | None:
    """Refuses what a page of another site sends: it has another origin, or a name that was turned to this machine."""
    (host,) = sent.get(b"host", [b""])[:1]
    name = host.decode("latin-1").rpartition(":")[0] or host.decode("latin-1")
    if name not in ("127.0.0.1", "localhost", "[::1]", "::1"):
        return 403, "without a key the server answers at localhost and 127.0.0.1 alone; start it with --key"
    if any(origin.partition(b"://")[2] != host for origin in sent.get(b"origin", [])):
        return 403, "a page of another site may not ask; start the server with --key"
    return None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work gives; it is cancelled where nobody waits for it any more."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK))[0]:
            if await request.is_disconnected():
                break
        else:
            return task.result()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        task.cancel()
    raise RequestError("nobody waits for this answer", 499)


def _refusal(request: Request, error: Exception) -> JSONResponse:
    """What went wrong, in the form of OpenAI's interface."""
    if isinstance(error, RequestError):
        return _error(error.status, str(error), error.code, error.field)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        message = str(first["msg"]).removeprefix("Value error, ")
        return _error(400, f"{field}: {message}" if field else message, None, field or None)
    if isinstance(error, HTTPException):  # an address or a method that is not there
        return _error(error.status_code, str(error.detail))
    if isinstance(error, UnavailableError):  # whoever asks may ask again
        return _error(502, str(error))
    if isinstance(error, TriptychError):
        return _error(400, str(error))
    if isinstance(error, OSError):
        return _error(503, str(error.strerror or error))
    return _error(500, f"the answer could not be computed: {error}")


def _error(status: int, message: str, code: str | None = None, field: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": field, "code": code}
    return JSONResponse({"error": error}, status, {"Retry-After": "1"} if status == 429 else None)
