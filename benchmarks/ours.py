"""Our side: a stage of the product run as it is, with a clock at the train loop's beginning and last update."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from triptych.engine.checkpoint import Checkpoint
from triptych.engine.device import settle
from triptych.pipeline.stage import Desk


class Finished(Exception):  # noqa: N818 (it is no error)
    """The updates that are timed are done; what the stage would do after them is not."""


class Stopwatch:
    """Watches a stage's train loop: a :class:`triptych.progress.Progress` and its checkpoint.

    Attributes:
        began: when the train loop began, model and rows loaded.
        seconds: from there to the end of the last update.
        loss: of the first update.
    """

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.began = self.seconds = 0.0
        self.loss = float("nan")

    def begin(self) -> None:
        """The train loop begins."""
        self.began = time.perf_counter()

    def stage(self, name: str, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        """An update is done."""
        if done == 1:
            self.loss = numbers["loss"]
        if done == self.updates:
            self.seconds = time.perf_counter() - self.began
            raise Finished


class _Start(Checkpoint):
    """Nothing to restore and never due; being asked, it knows that the train loop begins."""

    stopwatch: Stopwatch

    def restore(self, *_: Any) -> None:
        self.stopwatch.begin()


class TimedDesk(Desk):
    """A desk whose stage is timed."""

    def checkpoint(self, name: str = "training") -> Checkpoint:
        """Stands where the train loop begins."""
        start = _Start(self.scratch / f"{name}.pt", float("inf"))
        assert isinstance(self.progress, Stopwatch)
        start.stopwatch = self.progress
        return start


def timed(stage: Callable[[Desk], object], updates: int, scratch: Path) -> Stopwatch:
    """Runs a stage's loading and so many updates."""
    settle()
    stopwatch = Stopwatch(updates)
    try:
        stage(TimedDesk(Path(mkdtemp(dir=scratch)), scratch, stopwatch, seed=0, checkpoint_seconds=float("inf")))
    except Finished:
        return stopwatch
    raise RuntimeError(f"the stage ended before its {updates} updates were done")


def artifact(folder: Path, model: Path) -> Path:
    """A folder that looks like an artifact holding this model."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        (folder / "model").symlink_to(model)
    return folder
