"""A language model behind an OpenAI-compatible address, asked for one of a few short replies.

The key is read from an environment variable when a request is made. It is in no file, identity, cache or message.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from triptych.configuration import Config
from triptych.data.files import whole_lines
from triptych.errors import RewardError

Replies = dict[str, float]
"""The probability of each choice; they add up to 1."""

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""What a server answers that may do better later."""


class Endpoint(Config):
    """Where a judge is asked.

    Attributes:
        url: up to `/v1`; `/chat/completions` is added.
        model: as the server names it.
        key_env: the environment variable that holds the key; none is sent without it.
        parallel: requests under way at a time.
        requests_per_minute: at most; without it as fast as the server answers.
        retries: further attempts after an error that may pass, with waits that double.
        seconds: to wait for one reply.
    """

    url: str
    model: str
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    parallel: int = Field(default=4, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    retries: int = Field(default=5, ge=0)
    seconds: float = Field(default=60.0, gt=0)

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        if not re.match(r"https?://[^/@]+(/|$)", url):
            raise ValueError("must begin with https:// or http:// and hold no user or password")
        return url.rstrip("/")


class EndpointJudge:
    """Asks an endpoint; what it replied is kept on disk.

    Attributes:
        requests: how many went out.
    """

    def __init__(self, config: Endpoint, cache: Path | None = None) -> None:
        self.config = config
        self.requests = 0
        self._cache = _Cache(cache)
        self._pace = _Pace(config.requests_per_minute)
        self._lock = threading.Lock()
        self._logprobs = True

    def choose(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        """For each question how probable each choice is; None where the reply is none of them.

        Raises:
            RewardError: the endpoint cannot be used, or kept failing.
        """
        with ThreadPoolExecutor(max_workers=self.config.parallel) as pool:
            return list(pool.map(lambda question: self._choose(question, choices), questions))

    def _choose(self, question: str, choices: Sequence[str]) -> Replies | None:
        asked = json.dumps([self.config.url, self.config.model, question, list(choices)])
        name = hashlib.sha256(asked.encode()).hexdigest()
        if name not in self._cache:
            self._cache.keep(name, replies_in(self._reply(question), choices))
        return self._cache[name]

    def _reply(self, question: str) -> Mapping[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model, "messages": [{"role": "user", "content": question}],
            "temperature": 0, "max_tokens": 16,
        }
        if self._logprobs:
            try:
                return self._sent(body | {"logprobs": True, "top_logprobs": 20})
            except _Refused as refused:
                if "logprob" not in str(refused):
                    raise
                self._logprobs = False  # some servers have none; the text has to do
        return self._sent(body)

    def _sent(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        wait = 0.5
        for attempt in range(self.config.retries + 1):
            self._pace.wait()
            with self._lock:
                self.requests += 1
            try:
                return self._once(body)
            except _Later as later:
                if attempt == self.config.retries:
                    raise RewardError(f"{self.config.url}: gave up after {attempt + 1} attempts: {later}") from None
                # Not all at once again, where many were turned away together.
                time.sleep(later.seconds if later.seconds is not None else wait * (0.5 + random.random()))
                wait = min(2 * wait, 60.0)
        raise AssertionError("unreachable")

    def _once(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        headers = {"Content-Type": "application/json"}
        key = ""
        if self.config.key_env:
            key = os.environ.get(self.config.key_env, "")
            if not key:
                raise RewardError(f"the environment variable {self.config.key_env} is not set; it must hold the key")
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.config.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with _OPENER.open(request, timeout=self.config.seconds) as response:
                content = json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            said = f"{error.code} {error.reason}: {said}".replace(key or "\0", "***")
            if error.code in AGAIN:
                raise _Later(said, _seconds(error.headers.get("Retry-After"))) from None
            raise _Refused(f"{self.config.url}: {said}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Later(f"{type(error).__name__}: {error}".replace(key or "\0", "***"), None) from None
        if not isinstance(content, dict):
            raise _Refused(f"{self.config.url}: replied something else than an object")
        return content


def replies_in(reply: Mapping[str, Any], choices: Sequence[str]) -> Replies | None:
    """The choices' probabilities in a chat completion: by token probabilities where it has them, else by its text."""
    try:
        choice = reply["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        for token in tokens:
            if str(token["token"]).strip() in choices:
                found = dict.fromkeys(choices, 0.0)
                for other in token.get("top_logprobs") or [token]:
                    name = str(other["token"]).strip()
                    if name in found:
                        found[name] += math.exp(float(other["logprob"]))
                total = sum(found.values())
                return {name: value / total for name, value in found.items()} if total > 0 else None
        text = str(choice["message"]["content"] or "")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    named = re.search(rf"(?<!\w)({'|'.join(map(re.escape, choices))})(?!\w)", text)
    return {name: float(name == named[1]) for name in choices} if named else None


class _Refused(RewardError):  # noqa: N818 (as _Later)
    """The server will not do this, however often it is asked."""


class _Later(Exception):  # noqa: N818 (it is caught here, always)
    """The server may do it later, after so many seconds if it said."""

    def __init__(self, said: str, seconds: float | None) -> None:
        super().__init__(said)
        self.seconds = seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class _Pace:
    """So many requests a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._between = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may go out."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._between
        time.sleep(max(0.0, start - time.monotonic()))


class _Cache:
    """What was replied, by the digest of what was asked; a line of JSON each."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "judge.jsonl" if folder else None
        self._lock = threading.Lock()
        self._known: dict[str, Replies | None] = {}
        for line in whole_lines(self._path) if self._path else ():
            try:
                row = json.loads(line)
                self._known[row["asked"]] = row["replied"]
            except (ValueError, KeyError, TypeError):
                continue  # a line cut by a kill, and gone on with

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Replies | None:
        return self._known[name]

    def keep(self, name: str, replied: Replies | None) -> None:
        """Keeps a reply; one that could not be read is asked for again another time."""
        with self._lock:
            self._known[name] = replied
            if self._path and replied is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"asked": name, "replied": replied}) + "\n")


def _seconds(header: str | None) -> float | None:
    try:
        return min(float(header), 300.0) if header is not None else None
    except ValueError:
        return None
