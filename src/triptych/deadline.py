"""A limit of time for Python code that another wrote: a template, a user's function.

The exception is raised between two steps of the interpreter. What stays inside one of them, as a match of `re` or
10 ** 10 ** 10, is not reached: regular expressions have a time-out of their own (the `regex` package), and operands are
limited where expressions are evaluated.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class DeadlineExceeded(BaseException):
    """The code took longer than it may; no `except Exception` of that code catches it."""


class _Watch:
    """One thread that looks at every deadline."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.pending: dict[int, tuple[float, int]] = {}
        self.thread: threading.Thread | None = None
        self.wakes = math.inf
        """When the thread looks again by itself: waking it for every later deadline would cost more than the work."""

    def add(self, seconds: float) -> int:
        with self.condition:
            if self.thread is None or not self.thread.is_alive():  # also in a forked child, which has no threads
                self.thread = threading.Thread(target=self._look, name="deadlines", daemon=True)
                self.wakes = math.inf
                self.thread.start()
            name = max(self.pending, default=0) + 1
            self.pending[name] = (time.monotonic() + seconds, threading.get_ident())
            if self.pending[name][0] < self.wakes:
                self.condition.notify()
            return name

    def remove(self, name: int) -> bool:
        """Whether it was still to come; if not, the exception has been raised or is about to be."""
        with self.condition:
            return self.pending.pop(name, None) is not None

    def _look(self) -> None:
        with self.condition:
            while True:
                now = time.monotonic()
                for name, (when, thread) in list(self.pending.items()):
                    if when <= now:
                        del self.pending[name]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(DeadlineExceeded)
                        )
                soonest = min((when for when, _ in self.pending.values()), default=None)
                self.wakes = math.inf if soonest is None else soonest
                self.condition.wait(None if soonest is None else max(0.0, soonest - now))


_WATCH = _Watch()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Stops the block after so many seconds.

    Raises:
        TimeoutError: it took longer.
    """
    name = _WATCH.add(seconds)
    try:
        try:
            yield
        except DeadlineExceeded:
            raise
        except BaseException:
            _settle(name)
            raise
        else:
            _settle(name)
    except DeadlineExceeded:
        raise TimeoutError(f"took longer than {seconds:g} s") from None


def _settle(name: int) -> None:
    """Calls the watch off; where it has struck, its exception comes here, and not later in somebody else's code."""
    if not _WATCH.remove(name):
        while True:
            time.sleep(0.001)
