"""A request to the engine: one answer under way, and what has been sampled of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class Completion:
    """A sampled answer: its tokens (with the end token if it was reached) and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(slots=True, kw_only=True)
class Request:
    """An answer under way.

    Attributes:
        number: in the whole batch; with the seed and the position it determines the noise.
        prompt_row: where the cache has the prompt's keys.
        ends: the tokens that each end the answer.
        next_token: the one drawn last, which the next step decodes.
    """

    number: int = 0
    prompt_length: int
    prompt_row: int = 0
    completion: Completion = field(default_factory=Completion)
    ends: Collection[int]
    next_token: int = 0

    @property
    def length(self) -> int:
        """Tokens of the answer so far."""
        return len(self.completion.tokens)

    def take(self, token: int, logprob: float) -> None:
        """Takes in the token that was drawn."""
        self.next_token = token
        self.completion.tokens.append(token)
        self.completion.logprobs.append(logprob)
        self.completion.finished = token in self.ends

    def ended(self, max_tokens: int) -> bool:
        """Whether nothing more is to be sampled."""
        return self.completion.finished or self.length >= max_tokens
