"""Requests of several clients decoded together: each begins when it comes, and has its own way of being decoded.

On a CPU an answer does not depend on what is decoded beside it: prompts that are prefilled together are packed apart,
and a decoding step has a multiple of `ROWS` rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from triptych.engine.cache import MAX_SLOTS, SlotCache, slots_within
from triptych.engine.device import any_order
from triptych.engine.forward import Model, packs
from triptych.engine.generation import decode, decode_step, prefill
from triptych.engine.packing import whole
from triptych.engine.request import Request
from triptych.engine.sampling import Sampling, draw, uniforms
from triptych.engine.scheduler import prefilled_together, retire
from triptych.errors import ModelError

PATIENCE = 8
"""So many tokens are decoded at the most before waiting prompts are prefilled, be they ever so few."""


class Constraint(Protocol):
    """What an answer must be a beginning of, such as a text by a grammar."""

    def restrict(self, logits: Tensor) -> None:
        """Takes the chance from every token of `[V]` logits that may not come next."""

    def take(self, token: int) -> None:
        """A token that came."""


@dataclass(slots=True, kw_only=True)
class StreamedRequest(Request):
    """A client's answer under way.

    Attributes:
        prompt: its tokens.
        constraint: what the answer must be.
        alternatives: so many of the likeliest tokens are remembered with each one; None for no log-probabilities.
        likeliest: for each token its log-probability by the model itself, at temperature 1 and free of any constraint,
            and those of the likeliest.
        cancelled: nobody waits for it any more.
        error: what went wrong with this answer alone; it is cancelled then.
    """

    prompt_length: int = 0
    prompt: Sequence[int]
    sampling: Sampling
    constraint: Constraint | None = None
    alternatives: int | None = None
    likeliest: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)
    cancelled: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.prompt_length = len(self.prompt)

    def fail(self, error: Exception) -> None:
        """Ends this answer, and no other one."""
        self.error, self.cancelled = error, True

    @property
    def over(self) -> bool:
        """Whether nothing more is sampled."""
        return self.cancelled or self.ended(self.sampling.max_tokens)


class ContinuousBatch:
    """Requests that come and go, decoded together by one model (Yu et al. 2022, *Orca*).

    Attributes:
        context: tokens of a prompt and its answer at the most.
        waiting: requests for which there is no slot yet.
        running: the requests in the slots from 0 on.
    """

    def __init__(self, model: Model, context: int, slots: int | None = None) -> None:
        """Sets the memory aside.

        Args:
            context: tokens of a prompt and its answer at the most.
            slots: requests decoded together, rounded up to a multiple of `ROWS`; by default as many as the cache has
                room for.

        Raises:
            ModelError: the model does not pack (see :mod:`triptych.engine.parity`), and decodes in no slots.
        """
        if not packs(model):
            raise ModelError("this model does not compute packed rows, and its answers are not decoded together here")
        self.model = model
        self.context = context
        wanted = min(slots or slots_within(model, context), MAX_SLOTS)
        apart = model.device.type == "cpu"
        self.cache = SlotCache(whole(wanted), 1, model.device, context, 0, shared=False, apart=apart)
        self.waiting: deque[StreamedRequest] = deque()
        self.running: list[StreamedRequest] = []
        self._step = decode_step(model, self.cache)
        self._decoded = 0

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running)

    def add(self, request: StreamedRequest) -> None:
        """Takes a request in, behind those that wait; another thread may, while a step is computed.

        Its prompt and answer fit the context.
        """
        assert 0 < request.prompt_length <= self.context - request.sampling.max_tokens, "a request fits the context"
        self.waiting.append(request)

    @torch.no_grad()
    @any_order()
    def step(self) -> list[StreamedRequest]:
        """Prefills waiting prompts where slots are free, else decodes a token of every running answer.

        Returns:
            The requests that have one token more; those that are over are not running any more.
        """
        self._retire()
        if grown := self._admit():
            first_slot = len(self.running)
            self.running += grown  # from now on, so that one whose prompt cannot be computed is not lost
            prompts = [request.prompt for request in grown]
            first, rows = prefill(self.model, self.cache, prompts, first_slot)
            for request, row in zip(grown, rows, strict=True):
                request.prompt_row = row
            self._decoded = 0
        elif grown := self.running:
            first = decode(self._step, self.cache, self.running)
            self._decoded += 1
        else:
            return []
        self._sample(first, grown)
        self._retire()
        return grown

    def _admit(self) -> list[StreamedRequest]:
        """The requests whose prompts are prefilled now.

        Together they are at least an eighth of those that run, or the running ones were decoded for `PATIENCE` steps.
        """
        while self.waiting and self.waiting[0].cancelled:
            self.waiting.popleft()
        count = min(len(self.waiting), self.cache.slots.rows - len(self.running))
        if count == 0 or (8 * count < len(self.running) and self._decoded < PATIENCE):
            return []
        count = prefilled_together((self.waiting[place].prompt_length for place in range(count)), count)
        return [request for request in (self.waiting.popleft() for _ in range(count)) if not request.cancelled]

    def _retire(self) -> None:
        self.running = retire(self.running, self.cache, lambda request: request.over)
        self.cache.slots.fit(max((request.prompt_length + request.length for request in self.running), default=0))

    def _sample(self, logits: Tensor, requests: Sequence[StreamedRequest]) -> None:
        """Draws each request's next token by its own sampling, within its own constraint."""
        allowed = logits.clone() if any(request.constraint for request in requests) else logits
        for row, request in zip(allowed, requests, strict=True):
            if request.constraint:
                try:
                    request.constraint.restrict(row)
                except Exception as error:  # whatever a client's grammar does, others' answers go on
                    request.fail(error)
        noise = torch.from_numpy(uniforms(
            [request.sampling.seed for request in requests], [request.number for request in requests],
            [request.length for request in requests],
        )).to(logits.device)
        alike: dict[tuple[float, float], list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault((request.sampling.temperature, request.sampling.top_p), []).append(place)
        for places in alike.values():
            drawn = draw(allowed[places], noise[places], requests[places[0]].sampling)
            for place, token, logprob in zip(places, *(column.tolist() for column in drawn), strict=True):
                requests[place].take(token, logprob)
                if (constraint := requests[place].constraint) and not requests[place].cancelled:
                    try:
                        constraint.take(token)
                    except Exception as error:  # as above
                        requests[place].fail(error)
        for row, request in zip(logits, requests, strict=True):
            if request.alternatives is not None:
                request.likeliest.append(_likeliest(row, request.next_token, request.alternatives))


def _likeliest(logits: Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """A token's log-probability by `[V]` logits, and those of the `count` likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(count)
    return float(logprobs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True))
