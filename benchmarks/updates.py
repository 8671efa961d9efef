"""A side's training in a thread of its own, which does one update each time it is asked.

So a training loads and warms up once, in its first update, and rests while the other side works. What is timed is an
update as it is in the midst of a training: the optimizer has its state, memory has been fetched.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Update:
    """An update that was done: its seconds, its numbers, and the loss of the training's very first update."""

    seconds: float
    numbers: Numbers
    first_loss: float


MANY = 1000
"""More updates than are ever asked for."""


@dataclass
class Updates:
    """Hands updates from a training to the one who asks for them.

    Attributes:
        every: so many of the training's updates are one.
    """

    every: int = 1
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _began: float = 0.0
    _seconds: float = 0.0
    _count: int = 0
    _numbers: Numbers = field(default_factory=dict)
    _first_loss: float = math.nan
    _error: BaseException | None = None

    def of(self, training: Callable[[], object]) -> Iterator[Update]:
        """The updates of a training that calls :meth:`wait`, :meth:`computed` and :meth:`done`."""

        def work() -> None:
            try:
                training()
                raise RuntimeError("the training ended before its updates were asked for")
            except BaseException as error:
                self._error = error
                self._done.release()

        threading.Thread(target=work, daemon=True).start()
        while True:
            self._go.release()
            self._done.acquire()
            if self._error:
                raise self._error
            yield Update(self._seconds, self._numbers, self._first_loss)

    def wait(self) -> None:
        """The train loop begins."""
        self._go.acquire()
        finish()
        self._began = time.perf_counter()

    def computed(self) -> None:
        """An update of the weights is done."""
        finish()
        self._count += 1
        self._seconds = time.perf_counter() - self._began

    def done(self, numbers: Numbers) -> None:
        """What is known of the update has been told, too; the next one waits until it is asked for."""
        if math.isnan(self._first_loss):
            self._first_loss = numbers["loss"]
        if self._count % self.every == 0:
            self._numbers = numbers
            self._done.release()
            self.wait()


def finish() -> None:
    """Waits for what a device was given to do: the processor runs ahead of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
