"""A judge behind an OpenAI-compatible address, asked for one of a few short replies.

What it replied is kept on disk, and nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.engine.endpoint import Endpoint, EndpointClient, RefusedError
from triptych.engine.scoring import ShardMap, unsharded
from triptych.errors import EndpointError, RewardError, UnavailableError
from triptych.reward.replies import ReplyCache

if TYPE_CHECKING:
    import httpx2

Replies = dict[str, float]
"""The probability of each choice; they add up to 1."""


REPLY = 16
"""Tokens of a reply, in which a choice must be named."""


class EndpointJudge:
    """Asks an endpoint; what it replied is kept on disk.

    Args:
        shard_map: how questions are shared out.
    """

    def __init__(self, config: Endpoint, cache: Path | None = None, shard_map: ShardMap = unsharded) -> None:
        self.config = config
        self._client = EndpointClient(config)
        self._shard_map = shard_map
        self._cache: ReplyCache[Replies] = ReplyCache(cache, "judge.jsonl", _are_probabilities)
        self._logprobs = True

    @property
    def requests(self) -> int:
        """How many went out."""
        return self._client.requests

    def choose(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        """For each question how probable each choice is; None where the reply is none of them.

        A question takes `retries` + 1 times `seconds` + `PATIENCE` at most, and its turn at `requests_per_minute`.

        Raises:
            RewardError: the endpoint cannot be used, kept failing, or replied what cannot be meant.
        """
        return self._shard_map(lambda some: self._replies(some, choices), questions)

    def _replies(self, questions: Sequence[str], choices: Sequence[str]) -> list[Replies | None]:
        named = {self._name(question, choices): question for question in questions}
        unknown = {name: question for name, question in named.items() if not self._knows(name, choices)}
        if unknown:
            try:
                self._ask(unknown, choices)
            except EndpointError as error:
                raise UnavailableError(str(error)) from None
        return [self._cache[self._name(question, choices)] for question in questions]

    def _name(self, question: str, choices: Sequence[str]) -> str:
        asked = json.dumps([self.config.url, self.config.model, question, list(choices)])
        return hashlib.sha256(asked.encode()).hexdigest()

    def _knows(self, name: str, choices: Sequence[str]) -> bool:
        """Whether it is known how probable each of these choices is, or that there was no reply of these."""
        if name not in self._cache:
            return False
        known = self._cache[name]
        return known is None or known.keys() == set(choices)

    def _ask(self, questions: Mapping[str, str], choices: Sequence[str]) -> None:
        async def ask(client: httpx2.AsyncClient, question: tuple[str, str]) -> None:
            name, text = question
            reply = await self._reply(client, text)
            try:
                self._cache.keep(name, replies_in(reply, choices))
            except ValueError as error:
                raise RewardError(f"{self.config.url}: {error}") from None

        self._client.ask_all(ask, questions.items())

    async def _reply(self, client: httpx2.AsyncClient, question: str) -> Mapping[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model, "messages": [{"role": "user", "content": question}],
            "temperature": 0, "max_tokens": REPLY,
        }
        if self._logprobs:
            try:
                return await self._client.completion(client, body | {"logprobs": True, "top_logprobs": 20})
            except RefusedError as refused:
                if not refused.for_logprobs:
                    raise
                self._logprobs = False  # some servers have none; the text has to do
        return await self._client.completion(client, body)


def replies_in(reply: Mapping[str, Any], choices: Sequence[str]) -> Replies | None:
    """The choices' probabilities in a chat completion: by those of the token that names one, else by its text.

    Raises:
        ValueError: what it gives as a log-probability is none.
    """
    try:
        choice = reply["choices"][0]
        tokens = [
            (_token(token), [(_token(other), other["logprob"]) for other in token.get("top_logprobs") or [token]])
            for token in (choice.get("logprobs") or {}).get("content") or []
        ]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    named = _named(text, choices) if isinstance(text, str) else None
    if named is None:
        return None
    for token, others in tokens:
        if token == named:
            probabilities = dict.fromkeys(choices, 0.0)
            for name, value in others:
                if name in probabilities:
                    probabilities[name] += math.exp(_log_probability(value))
            total = sum(probabilities.values())
            return {name: value / total for name, value in probabilities.items()} if total > 0 else None
    return {name: float(name == named) for name in choices}


def _named(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a reply begins with, else the only one that stands in it; the end of a scale is none of these."""
    either = rf"({'|'.join(map(re.escape, choices))})(?!\w)"
    # "A close call" begins with a word, "A", "A." and "A is better" with a choice.
    if opening := re.match(rf"\W*{either}(?=\s*(?:$|[^\w\s]|\n)|\s+is\b)", text):
        return opening[1]
    named = {choice[1] for choice in re.finditer(rf"(?<!\w)(?<!of )(?<!to )(?<!/){either}", text)}
    return named.pop() if len(named) == 1 else None


def _token(row: Mapping[str, Any]) -> str:
    token = row["token"]
    return token.strip() if isinstance(token, str) else ""


def _log_probability(value: object) -> float:
    """At most 0, but for rounding; minus infinity is the logarithm of 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0.01:
        raise ValueError("replied a log-probability that is none: it must be a number and at most 0")
    return float(max(value, -1e4))  # also a whole number that no float holds


def _are_probabilities(replied: object) -> bool:
    return (
        isinstance(replied, dict)
        and all(isinstance(value, float) and 0 <= value <= 1 for value in replied.values())
        and math.isclose(sum(replied.values()), 1, abs_tol=1e-6)
    )
