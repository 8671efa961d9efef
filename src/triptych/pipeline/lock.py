"""The lock of a run's folder: one process at a time works on it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import RunError
from triptych.storage import make_folder

FILE = "lock"
TRIES, WAIT = 5, 0.1
"""How often a lock is asked for that another process has, and seconds between."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the run folder for this process; the system lets go of it however the process ends.

    Raises:
        RunError: the folder cannot be written, or another process holds it.
    """
    try:
        make_folder(folder)
        lock = open(folder / FILE, "a+", encoding="ascii")  # noqa: SIM115 (held for the whole run)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from None
    with lock:
        for _ in range(TRIES):  # whoever only looks holds it for an instant
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(WAIT)
        else:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise RunError(
                f"{folder} is in use by another process (pid {holder}); wait for it, stop it, or give this run "
                "another name with --set name=..."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def holder_of(folder: Path) -> str | None:
    """The process that holds the run folder; None where none does."""
    try:
        with open(folder / FILE, encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return lock.read().strip() or "unknown"
    except OSError:
        pass
    return None
