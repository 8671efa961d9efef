"""What stands before the page: who has no key is answered before a body is read, and nobody is waited for long.

The key is in a header of the page's own, which another site cannot send without leave (CORS), and none is given: so no
cookie is there to be ridden on, and a name that is turned to this machine (DNS rebinding) gains a page without a key.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY = 65536
"""Bytes that a request may have behind its headers; an answer has some 150."""

HEADERS_SECONDS = 10.0
"""From the connection, or the reply before, to the end of a request's headers."""

REQUEST_SECONDS = 30.0
"""From the end of the headers to the end of the reply: the body's and the reply's bytes are sent in that time."""

CONNECTIONS = 256
"""At a time; more are closed at once."""

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


class Guard:
    """An application before another one, which is called with a body that is there, whole and small.

    Attributes:
        key: the header `X-Key` of every request but that for "/".
    """

    def __init__(self, application: ASGIApp, key: str) -> None:
        self.application = application
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has the application do it."""
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
                body = b"" if refused else await _body(receive)
                if refused or body is None:
                    await _reply(guarded, *(refused or TOO_LARGE))
                else:
                    await self.application(scope, _replayed(body, receive), guarded)
        except TimeoutError:
            if not begun:
                await _reply(guarded, 408, f"the request was not there within {REQUEST_SECONDS:g} seconds")

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused for what its headers say."""
        sent: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            sent.setdefault(name, []).append(value)
        keys = sent.get(b"x-key", [])
        if scope["path"] != "/" and not (len(keys) == 1 and secrets.compare_digest(keys[0], self.key.encode())):
            return 403, "the address needs its key: the one that triptych label printed"
        (length,) = sent.get(b"content-length", [b"0"])  # the server refuses two
        return TOO_LARGE if int(length) > BODY else None


TOO_LARGE = (413, f"a request has {BODY:,} bytes at most")


class BoundedProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, with an end to waiting for who is slow, and to connections."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
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
            self._limit = self.loop.call_later(REQUEST_SECONDS + 1, self.transport.abort)


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None where it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then whatever comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


async def _reply(send: Send, status: int, detail: str) -> None:
    """Words, and the end of the connection: the rest of a body is not read."""
    content = json.dumps({"detail": detail}).encode()
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
