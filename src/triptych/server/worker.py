"""The one thread that decodes, for any number of clients that wait in the server's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from triptych.engine.continuous import ContinuousBatch, StreamedRequest

News = tuple[int, bool, Exception | None]
"""How many tokens an answer has, whether it is over, and what went wrong."""


class Worker:
    """Decodes for several models in turn, as long as anybody waits.

    Attributes:
        batches: of each model that writes.
    """

    def __init__(self, batches: Sequence[ContinuousBatch]) -> None:
        self.batches = batches
        self._tell: dict[int, Callable[[News], None]] = {}
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests have no slot yet, of those for which somebody waits."""
        return sum(not request.cancelled for batch in self.batches for request in tuple(batch.waiting))

    async def answer(self, batch: ContinuousBatch, request: StreamedRequest) -> AsyncGenerator[int]:
        """How many tokens the answer has, whenever there are more, until it is over.

        Whoever stops to iterate cancels it.

        Raises:
            Exception: what went wrong in computing.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Queue[News]()

        def tell(said: News) -> None:
            with suppress(RuntimeError):  # the server is gone
                loop.call_soon_threadsafe(news.put_nowait, said)

        with self._wake:
            self._tell[id(request)] = tell
            batch.add(request)
            self._wake.notify()
        over = False
        try:
            while not over:
                length, over, error = await news.get()
                while not news.empty():
                    length, over, error = news.get_nowait()
                if error is not None:
                    raise error
                yield length
        finally:
            request.cancelled = True
            del self._tell[id(request)]

    def close(self) -> None:
        """Ends once the step under way is done."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or any(batch.unfinished for batch in self.batches))
                if self._closed:
                    return
            for batch in self.batches:
                if batch.unfinished:
                    self._advance(batch)

    def _advance(self, batch: ContinuousBatch) -> None:
        try:
            grown = batch.step()
        except Exception as error:  # out of memory, say: those who wait are told, and the next ones are served
            grown = [*batch.running, *batch.waiting]
            for request in grown:
                request.fail(error)
        for request in grown:
            if tell := self._tell.get(id(request)):
                tell((request.length, request.over, request.error))
