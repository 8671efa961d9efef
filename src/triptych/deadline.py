"""A limit of time for Python code that another wrote: a template, a user's function.

The exception is raised between two steps of the interpreter. What stays inside one of them, as a match of `re` or
10 ** 10 ** 10, is not reached: regular expressions have a time-out of their own (the `regex` package), and operands are
limited where expressions are evaluated.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

AGAIN = 0.05
"""Seconds after which it is raised again: raised while a generator is thrown away, it is lost."""


class DeadlineExceeded(BaseException):
    """The code took longer than it may; no `except Exception` of that code catches it."""


class _Entry:
    """One deadline: when, for which thread, and whether it has been raised."""

    def __init__(self, seconds: float) -> None:
        self.when = time.monotonic() + seconds
        self.thread = ctypes.c_ulong(threading.get_ident())
        self.struck = False


class _Watch:
    """One thread that looks at every deadline.

    The exception may come anywhere in the code below that runs in the watched thread. A plain lock is taken and given
    back whole all the same, and a `SimpleQueue` is filled whole; a `Condition` would stay locked.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.news: SimpleQueue[None] = SimpleQueue()
        self.pending: list[_Entry] = []
        self.wakes = math.inf
        self.thread: threading.Thread | None = None

    def add(self, entry: _Entry) -> None:
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._look, name="deadlines", daemon=True)
                self.thread.start()
            self.pending.append(entry)
            sooner = entry.when < self.wakes
        if sooner:
            self.news.put(None)

    def remove(self, entry: _Entry) -> bool:
        """Calls a deadline off, with what has not arrived of it; whether it was raised."""
        with self.lock:
            if entry in self.pending:
                self.pending.remove(entry)
                if entry.struck:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(entry.thread, None)
            return entry.struck

    def _look(self) -> None:
        while True:
            with self.lock:
                now = time.monotonic()
                for entry in self.pending:
                    if entry.when <= now:
                        entry.struck, entry.when = True, now + AGAIN
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(entry.thread, ctypes.py_object(DeadlineExceeded))
                self.wakes = min((entry.when for entry in self.pending), default=math.inf)
            try:
                self.news.get(timeout=None if self.wakes == math.inf else max(0.0, self.wakes - now))
            except Empty:
                continue


_WATCH = _Watch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WATCH.__init__)  # type: ignore[misc]  # a child has no other threads


def within(seconds: float, work: Callable[[], T]) -> T:
    """What the work gives, stopped after so many seconds.

    Raises:
        TimeoutError: it took longer.
    """
    entry, struck = _Entry(seconds), False
    try:
        try:
            _WATCH.add(entry)
            result = work()
        finally:
            struck = _WATCH.remove(entry)
        if not struck:
            return result
    except DeadlineExceeded:
        if not (_WATCH.remove(entry) or struck):  # that of another deadline, around this one
            raise
    raise TimeoutError(f"took longer than {seconds:g} s")
