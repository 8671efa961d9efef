"""A model behind an address: a language model that is asked as OpenAI's interface has it, or a reward that scores.

The key is read from an environment variable when something is asked. It is in no file, identity, cache or message:
where one was sent, nothing is shown of what the server wrote but words that are known here. What the server replies is
a stranger's text; it is read within `seconds` in all and `LONGEST` bytes, or not at all.

The HTTP client is imported where it is used: a run that asks no endpoint needs none.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import json
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, field_validator, model_validator

from triptych.configuration import Config
from triptych.display import one_line
from triptych.errors import EndpointError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Question = TypeVar("Question")

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""What a server answers that may do better later."""

LONGEST = 1 << 20
"""Bytes of a reply; one that is asked for takes a few thousand."""

PATIENCE = 60.0
"""Seconds between two attempts at most, whatever a server asks for."""

_KNOWN = frozenset({
    "account_deactivated", "api_error", "authentication_error", "billing_error", "billing_not_active",
    "content_filter", "content_policy_violation", "context_length_exceeded", "insufficient_quota", "invalid_api_key",
    "invalid_request_error", "invalid_value", "missing_required_parameter", "model_not_found", "not_found_error",
    "overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded", "request_too_large",
    "server_error", "unknown_parameter", "unsupported_parameter", "unsupported_value",
})
"""What OpenAI's and Anthropic's servers call their errors."""


class Endpoint(Config):
    """Where a model is asked.

    Attributes:
        url: up to `/v1`; what is asked there is added. With a key it must be https, except on this machine.
        model: as the server names it.
        key_env: the environment variable that holds the key; none is sent without it.
        parallel: requests under way at a time.
        requests_per_minute: at most; without it as fast as the server answers.
        retries: further attempts after an error that may pass, with waits that double.
        seconds: in which a whole reply must have arrived.
    """

    pace = frozenset({"parallel", "requests_per_minute", "retries", "seconds"})

    url: str
    model: str
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    parallel: int = Field(default=4, ge=1, le=256)
    requests_per_minute: float | None = Field(default=None, ge=1)
    retries: int = Field(default=5, ge=0, le=20)
    seconds: float = Field(default=60.0, gt=0, le=3600)

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        return address(url)

    @model_validator(mode="after")
    def _a_key_is_not_overheard(self) -> Endpoint:
        if self.key_env and self.url.lower().startswith("http:") and not _is_here(self.url):
            raise ValueError(f"{self.url} would be sent a key in the clear: with key_env it must begin with https://")
        return self


def is_address(name: str | Path) -> bool:
    """Whether it names an endpoint."""
    return str(name).lower().startswith(("http://", "https://"))


def address(url: str) -> str:
    """The address as it is compared and asked.

    Raises:
        ValueError: it is none, or holds what does not belong into it.
    """
    import httpx2

    wrong = "must begin with https:// or http://, then hold a host, in ASCII, with no user, password, query or space"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise ValueError(wrong) from None
    plain = re.fullmatch(r"[!-~]+", url) is not None and not set("\\@?#") & set(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 1) > 65535 or not plain:
        raise ValueError(wrong)
    return url.rstrip("/")


def _is_here(url: str) -> bool:
    """Whether the address is one of this machine's own."""
    import httpx2

    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_in(variable: str) -> str:
    """The key that an environment variable holds.

    Raises:
        EndpointError: it holds none; what it holds is not said.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(f"the environment variable {variable} is not set; it must hold the key")
    if re.fullmatch(r"[!-~]+", key) is None:
        raise EndpointError(
            f"the environment variable {variable} holds a space, a line end, a control character or a letter outside "
            "ASCII, which no key has; set it again"
        )
    return key


class EndpointClient:
    """Sends requests to an endpoint, at its pace, and again behind an error that may pass.

    Attributes:
        requests: how many went out.
    """

    def __init__(self, config: Endpoint) -> None:
        self.config = config
        self.requests = 0
        self._pace = _Pace(config.requests_per_minute)

    def write(self, question: str, max_tokens: int) -> str:
        """What the model replies, of at most so many tokens of its own, at temperature 1.

        Raises:
            EndpointError: the endpoint cannot be used, kept failing, or replied no text.
        """

        async def ask() -> Mapping[str, Any]:
            async with self.connection() as client:
                return await self.completion(client, {
                    "model": self.config.model, "messages": [{"role": "user", "content": question}],
                    "temperature": 1, "max_tokens": max_tokens,
                })

        reply = run_now(ask())
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise EndpointError(f"{self.config.url}: replied no text")
        return text

    def connection(self) -> httpx2.AsyncClient:
        """What requests go over.

        Raises:
            EndpointError: there is no key where one is named.
        """
        import httpx2

        # Nothing that is small on its way and large when unpacked.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self.config.key_env:
            headers["Authorization"] = f"Bearer {key_in(self.config.key_env)}"
        # A proxy of the environment sees of https the host alone; what stays on this machine needs none.
        most = self.config.parallel  # httpx2 would hold back those above 100, and count their wait as the server's
        return httpx2.AsyncClient(
            headers=headers, timeout=None, follow_redirects=False, trust_env=not _is_here(self.config.url),
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        )

    def ask_all(
        self, ask: Callable[[httpx2.AsyncClient, Question], Coroutine[Any, Any, None]], questions: Iterable[Question]
    ) -> None:
        """Asks all of them, `parallel` at a time; the first error ends the others.

        Raises:
            EndpointError: the endpoint cannot be used, or kept failing.
        """

        async def ask_in_turn() -> None:
            turn = asyncio.Semaphore(self.config.parallel)

            async def wait_and_ask(client: httpx2.AsyncClient, question: Question) -> None:
                async with turn:
                    await ask(client, question)

            try:
                async with self.connection() as client, asyncio.TaskGroup() as group:
                    for question in questions:
                        group.create_task(wait_and_ask(client, question))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

        run_now(ask_in_turn())

    async def completion(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a language model there replies.

        Raises:
            EndpointError: the endpoint refused it, or kept failing.
        """
        return await self.post(client, f"{self.config.url}/chat/completions", body)

    async def post(self, client: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The reply to one request, which may take several attempts.

        Raises:
            EndpointError: the endpoint refused it, or kept failing.
        """
        wait = 0.5
        for attempt in range(self.config.retries + 1):
            await self._pace.wait()
            self.requests += 1
            try:
                return await self._once(client, url, body)
            except _Later as later:
                if attempt == self.config.retries:
                    raise EndpointError(f"{self.config.url}: gave up after {attempt + 1} attempts: {later}") from None
                # Not all at once again, where many were turned away together.
                await asyncio.sleep(later.seconds if later.seconds is not None else wait * (0.5 + random.random()))
                wait = min(2 * wait, PATIENCE / 2)
        raise AssertionError("unreachable")

    async def _once(self, client: httpx2.AsyncClient, url: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        import httpx2

        try:
            async with (
                asyncio.timeout(self.config.seconds),
                client.stream("POST", url, content=json.dumps(body)) as response,
            ):
                content = await _received(response)
        except TimeoutError:
            raise _Later(f"no whole reply within {self.config.seconds:g} s") from None
        except (httpx2.HTTPError, OSError) as error:
            raise _Later(_broken(error)) from None
        if content is None:
            raise RefusedError(f"{self.config.url}: replied more than {LONGEST:,} bytes")
        if response.is_success:
            try:
                reply = json.loads(content)
            except (ValueError, RecursionError):
                raise _Later("replied what is no JSON that can be read") from None
            if not isinstance(reply, dict):
                raise RefusedError(f"{self.config.url}: replied something else than an object")
            return reply
        said = _status(response.status_code) + self._complaint(content, body)
        if response.status_code in AGAIN:
            raise _Later(said, _seconds(response.headers.get("Retry-After")))
        raise RefusedError(f"{self.config.url}: {said}", for_logprobs=b"logprob" in content)

    def _complaint(self, content: bytes, body: Mapping[str, Any]) -> str:
        """What the server says is wrong; with a key sent, which it may say again in any form, only known words."""
        try:
            message = json.loads(content)
        except (ValueError, RecursionError):
            message = content.decode("utf-8", "replace")
        error = message.get("error", message) if isinstance(message, dict) else message
        if self.config.key_env:
            fields = [error.get(name) for name in ("type", "code", "param")] if isinstance(error, dict) else []
            words = [word for word in fields if isinstance(word, str) and word in _KNOWN | body.keys()]
            return f" ({', '.join(dict.fromkeys(words))})" if words else ""
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or ""
        shown = one_line(error[:1000])[:200] if isinstance(error, str) else ""
        return f": {shown}" if shown else ""


async def _received(response: httpx2.Response) -> bytes | None:
    """The body, or None of one that is too long; the rest is not read."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > LONGEST:
            return None
    return bytes(content)


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Does it now, whether or not the caller is in an event loop of its own, as a notebook is."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def _broken(error: Exception) -> str:
    """What went wrong on the way, in words of this machine: those of a protocol error hold what the server wrote."""
    import httpx2

    if isinstance(error, httpx2.ConnectError):
        return f"no connection: {one_line(error)[:200]}"
    if isinstance(error, httpx2.ProxyError):
        return "the proxy refuses the connection"
    return "what it replied is no HTTP" if isinstance(error, httpx2.ProtocolError) else "the connection broke"


def _status(code: int) -> str:
    phrase = http.HTTPStatus(code).phrase if code in set(http.HTTPStatus) else ""
    return f"{code} {phrase}".strip() + (", and redirects are not followed" if 300 <= code < 400 else "")


class RefusedError(EndpointError):
    """The server will not do this, however often it is asked."""

    def __init__(self, said: str, *, for_logprobs: bool = False) -> None:
        super().__init__(said)
        self.for_logprobs = for_logprobs


class _Later(Exception):  # noqa: N818 (it is caught here, always)
    """The server may do it later, after so many seconds if it said."""

    def __init__(self, said: str, seconds: float | None = None) -> None:
        super().__init__(said)
        self.seconds = seconds


class _Pace:
    """So many requests a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._between = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when the next request may go out."""
        start = max(self._next, time.monotonic())
        self._next = start + self._between
        await asyncio.sleep(max(0.0, start - time.monotonic()))


def _seconds(header: str | None) -> float | None:
    """What `Retry-After` asks for, a number or a date; None where it says nothing that can be meant."""
    if header is None:
        return None
    try:
        asked = float(header)
    except ValueError:
        try:
            asked = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError, OSError):
            return None
        asked = max(asked, 0.0)
    return min(asked, PATIENCE) if asked >= 0 else None
