"""What stands before the page: who has no key is answered before a body is read, and nobody is waited for long.

The key is in a header of the page's own, which another site cannot send without leave (CORS), and none is given: so no
cookie is there to be ridden on, and a name that is turned to this machine (DNS rebinding) gains a page without a key.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

Sent = Mapping[bytes, list[bytes]]
"""The headers of a request, by their names in small letters; each as often as it was sent."""

Refusal = tuple[int, str]
"""A status, and words."""

Refuse = Callable[[Scope, Sent], Refusal | None]
"""Why a request is refused for its address and headers, or None."""

BODY = 65536
"""Bytes that a request may have behind its headers; what somebody answers has some 150."""

HEADERS_SECONDS = 10.0
"""From the connection, or the reply before, to the end of a request's headers."""

REQUEST_SECONDS = 30.0
"""From the end of the headers to the end of the reply: the body's and the reply's bytes are sent in that time."""

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every reply that has none of its own."""


def own_page(path: Path) -> HTMLResponse:
    """A page that runs the scripts and styles of its own file alone; `NONCE` there becomes a new word each time."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = path.read_text(encoding="utf-8").replace("NONCE", nonce)
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


class Guard:
    """An application before another one, which is called with a body that is there, whole and small.

    Attributes:
        refuse: says whose requests are refused.
        body: bytes that a request may have behind its headers.
        seconds: from the body's end to the end of the reply.
    """

    def __init__(
        self, application: ASGIApp, refuse: Refuse, body: int = BODY, seconds: float | None = None
    ) -> None:
        self.application = application
        self.refuse = refuse
        self.body = body
        self.seconds = REQUEST_SECONDS if seconds is None else seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has the application do it."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        if scope["type"] != "http":
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(_with_headers(message))

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                refused = self._refused(scope)
                body = b"" if refused else await self._body(receive)
            async with asyncio.timeout(self.seconds):
                if refused or body is None:
                    await _reply(guarded, *(refused or self._too_large))
                else:
                    await self.application(scope, _replayed(body, receive), guarded)
        except TimeoutError:
            if not begun:
                await _reply(guarded, 408, f"the request was not there within {REQUEST_SECONDS:g} seconds")

    def _refused(self, scope: Scope) -> Refusal | None:
        """Why a request is refused for what its headers say."""
        sent: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            sent.setdefault(name, []).append(value)
        if refused := self.refuse(scope, sent):
            return refused
        (length,) = sent.get(b"content-length", [b"0"])  # the server refuses two
        return self._too_large if int(length) > self.body else None

    async def _body(self, receive: Receive) -> bytes | None:
        """A request's body; None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.body:
                return None
            if message["type"] != "http.request" or not message.get("more_body"):
                return bytes(body)

    @property
    def _too_large(self) -> Refusal:
        return 413, f"a request has {self.body:,} bytes at most"


def is_key(sent: Sequence[bytes], key: str) -> bool:
    """Whether a header was sent once, and is the key."""
    return len(sent) == 1 and secrets.compare_digest(sent[0], key.encode())


def by_header(key: str) -> Refuse:
    """Lets in who sends the key as `X-Key`, and everybody to "/", which holds nothing."""

    def refuse(scope: Scope, sent: Sent) -> Refusal | None:
        return None if scope["path"] == "/" or is_key(sent.get(b"x-key", []), key) else _KEYLESS

    return refuse


def by_address(key: str) -> Refuse:
    """Lets in whose address has `?key=`."""

    def refuse(scope: Scope, sent: Sent) -> Refusal | None:
        return None if is_key(parse_qs(scope["query_string"]).get(b"key", []), key) else _KEYLESS

    return refuse


_KEYLESS = (403, "the address needs its key: the one that triptych printed")


def guarded(
    application: ASGIApp, refuse: Refuse, *, body: int = BODY, seconds: float | None = None,
    protocol: type[BoundedProtocol] | None = None,
) -> uvicorn.Server:
    """The server of an application behind its guard, which has these arguments."""
    return uvicorn.Server(uvicorn.Config(
        Guard(application, refuse, body, seconds), http=protocol or BoundedProtocol, ws="none", lifespan="auto",
        access_log=False, server_header=False, log_level="error",
    ))


class BoundedProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, with an end to waiting for who is slow, and to connections.

    Attributes:
        most: connections at a time; more are closed at once.
    """

    most = 256

    @property
    def seconds(self) -> float:
        """From the end of the headers."""
        return REQUEST_SECONDS

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        self._wait()

    def on_response_complete(self) -> None:
        """Begins to wait for the next one."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no longer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._wait_no_longer()
        self._limit = self.loop.call_later(HEADERS_SECONDS, self._look)

    def _wait_no_longer(self) -> None:
        if self._limit is not None:
            self._limit.cancel()

    def _look(self) -> None:
        """Ends the connection if no request is there; if one is, when its time is over and its reply still not read."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            self._limit = self.loop.call_later(self.seconds + 1, self.transport.abort)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then whatever comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


async def _reply(send: Send, status: int, detail: str) -> None:
    """Words, as our page reads them and as OpenAI's clients do, and the end of the connection.

    The rest of a body is not read.
    """
    content = json.dumps({"detail": detail, "error": {"message": detail}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})


def _with_headers(message: Message) -> dict[str, Any]:
    if message["type"] != "http.response.start":
        return dict(message)
    own = list(message.get("headers", []))
    names = {name.lower() for name, _ in own}
    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    return {**message, "headers": own + [(name, value) for name, value in added if name not in names]}
