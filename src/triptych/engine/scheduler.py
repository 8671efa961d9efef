"""The scheduler: which requests run, in which slots, and when waiting ones are admitted (continuous batching).

The running requests lie in the first slots. One that ends gives its slot to the last running one, so that a decoding
step's products read no others. Waiting prompts are admitted by whole groups, all n answers together, when an eighth of
the slots is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from typing import TypeVar

from triptych.engine.cache import SlotCache
from triptych.engine.request import Request

R = TypeVar("R", bound=Request)

PREFILL_TOKENS = 8192
"""Prompt tokens computed together."""


class Scheduler:
    """Requests from waiting over running to ended.

    Attributes:
        waiting: the places of the prompts that have not been admitted.
        running: the requests in the slots from 0 on.
        done: requests that have ended.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], cache: SlotCache, max_tokens: int) -> None:
        self.prompts = prompts
        self.cache = cache
        self.max_tokens = max_tokens
        self.waiting = deque(range(len(prompts)))
        self.running: list[Request] = []
        self.done = 0

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running)

    def admit(self) -> list[int]:
        """The prompts to prefill now; none where the running requests are to be decoded."""
        slots, n = self.cache.slots.rows, self.cache.members
        room = self.cache.room(len(self.running))
        worthwhile = not self.running or slots - len(self.running) >= max(n, slots // 8)
        if not (self.waiting and room and worthwhile):
            return []
        count = prefilled_together((len(self.prompts[place]) for place in self.waiting), room)
        return [self.waiting.popleft() for _ in range(count)]

    def retire(self) -> None:
        """Lets the requests go that have ended; the last running ones move into their slots."""
        going = retire(self.running, self.cache, lambda request: request.ended(self.max_tokens))
        self.done += len(self.running) - len(going)
        self.running = going


def prefilled_together(lengths: Iterable[int], room: int) -> int:
    """How many of the first prompts are computed in one pack: one, and more within `PREFILL_TOKENS` and the room.

    Args:
        lengths: of the prompts, in tokens; one at least.
        room: prompts for which there are slots; one at least.
    """
    return max(1, sum(total <= PREFILL_TOKENS for total in accumulate(islice(lengths, room))))


def retire(running: Sequence[R], cache: SlotCache, ended: Callable[[R], bool]) -> list[R]:
    """The requests that go on, in the first slots again: the last of them move into the slots of those that ended."""
    going = [slot for slot, request in enumerate(running) if not ended(request)]
    moved = [slot for slot in going if slot >= len(going)]
    freed = sorted(set(range(len(going))) - set(going))
    cache.release({request.prompt_row for request in running} - {running[slot].prompt_row for slot in going})
    cache.slots.move(moved, freed)
    after = list(running)
    for origin, target in zip(moved, freed, strict=True):
        after[target] = after[origin]
    return after[: len(going)]
