"""A process for each tracker, beside the run: what a tracker does there, fails in or waits for, the run does not feel.

It looks every few seconds at what the run has written, and sends what is new. It ends when the run does, however that
ends, for it reads from a pipe that only the run holds.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, cast

import yaml

from triptych.display import one_line
from triptych.progress import Progress
from triptych.trackers.points import Sent, is_other, send_new
from triptych.trackers.tracker import Beginning, TrackedRun, TrackerName, begin

FOLDER = "trackers"
"""In the run's folder: for each tracker what was sent, and what it printed."""

EVERY = 5.0
"""Seconds between two looks."""

PATIENCE = 10.0
"""Seconds that a run waits at its end for what a tracker still has to send."""

REST = 300
"""Seconds after which a process whose run has ended ends too, whatever its tracker waits for."""

OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Of torchrun; the process is no rank."""


@contextmanager
def tracked(names: Sequence[TrackerName], run: Path, progress: Progress) -> Iterator[None]:
    """Has trackers follow what is written into a run's folder meanwhile; one that fails is told of and left out."""
    companions = []
    for name in names:
        try:
            companions.append(Companion(name, run, progress))
        except OSError as error:
            progress.say(f"{name}: left out, and the run goes on: {error}")
    try:
        yield
    finally:
        ends = time.monotonic() + PATIENCE
        for companion in companions:
            companion.ask_to_end()
        for companion in companions:
            companion.end(ends - time.monotonic())


class Companion:
    """The process that feeds one tracker, as the run sees it."""

    def __init__(self, name: TrackerName, run: Path, progress: Progress) -> None:
        self.name = name
        self.progress = progress
        self.log = run / FOLDER / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "triptych.trackers.process", name, str(run.resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment | {"CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,  # Ctrl-C is for the run, at whose end it sends the rest
            )
        self.relay = threading.Thread(target=self._relay, daemon=True)
        self.relay.start()

    def ask_to_end(self) -> None:
        """Says that the run is at its end."""
        with suppress(OSError):
            cast(IO[str], self.process.stdin).close()

    def end(self, seconds: float) -> None:
        """Waits so long for what it still sends; for longer it goes on alone."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.progress.say(f"{self.name}: it goes on sending, for {REST // 60} minutes at most ({self.log})")
        else:
            self.relay.join(1.0)

    def _relay(self) -> None:
        """Tells what it says."""
        for line in cast(IO[str], self.process.stdout):
            self.progress.say(f"{self.name}: {line.strip()}")
        if (code := self.process.wait()) != 0:
            self.progress.say(f"{self.name}: left out, and the run goes on: it ended with {code} ({self.log})")


def main() -> None:
    """What runs there: `python -m triptych.trackers.process TRACKER RUN`."""
    name, run = cast(TrackerName, sys.argv[1]), Path(sys.argv[2])
    os.nice(10)
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes where their errors go

    def say(text: str) -> None:
        with suppress(OSError):  # the run may be gone
            words.write(one_line(text)[:300] + "\n")
            words.flush()

    try:
        with open(run / FOLDER / f"{name}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one may still be sending the rest of a run that was killed
            follow(name, run, say, ending().wait)
    except Exception as error:
        traceback.print_exc()
        say(f"left out, and the run goes on: {type(error).__name__}: {error}")
    sys.stderr.flush()
    os._exit(0)  # threads and exit handlers of a tracker are not waited for


def ending() -> threading.Event:
    """What is set when the run ends; from there on the process has only so long, also if it hangs."""
    event = threading.Event()

    def wait() -> None:
        sys.stdin.read()  # nothing is ever written there
        signal.alarm(REST)
        event.set()

    threading.Thread(target=wait, daemon=True).start()
    return event


def follow(name: TrackerName, run: Path, say: Callable[[str], None], has_ended: Callable[[float], bool]) -> None:
    """Sends a tracker what the run has written and writes, until it ends.

    Args:
        say: is told where a person sees it.
        has_ended: waits for the run's end, at most so many seconds.
    """
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    state = run / FOLDER / f"{name}.json"
    sent = Sent.read(state, recipe["name"])
    opened: TrackedRun | None = None
    is_last = False
    while True:
        if is_other(run, sent):
            if opened is not None:
                opened.tracker.finish()
            opened, sent = None, Sent.begin(recipe["name"])
        if opened is None:
            opened = begin(name, Beginning(run, sent.run, sent.is_new, recipe))
            sent.run, sent.is_new = opened.id, False
            sent.write(state)
            say(opened.place)
        send_new(run, sent, opened.tracker.log, partial(sent.write, state))
        if is_last:
            break
        is_last = has_ended(EVERY)
    opened.tracker.finish()


if __name__ == "__main__":
    main()
