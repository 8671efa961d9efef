"""Our side: a stage of the product run as it is, which stands still before each update of its train loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.row import Case
from benchmarks.updates import Update, Updates
from triptych.engine.adapters import Lora
from triptych.engine.checkpoint import Checkpoint
from triptych.engine.device import settle
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent


class _Steps(Silent):
    """A stage's progress, by which it tells of each update."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        """An update is done."""
        self.updates.computed()
        self.updates.done(numbers)


class _Start(Checkpoint):
    """Nothing to restore and never due; being asked, it knows that the train loop begins."""

    updates: Updates

    def restore(self, *_: Any) -> None:
        self.updates.wait()


class SteppedDesk(StageContext):
    """A context whose stage does an update each time it is asked."""

    def checkpoint(self, every: int = 1) -> Checkpoint:
        """Stands where the train loop begins."""
        start = _Start(self.scratch / "training.pt", float("inf"), every)
        assert isinstance(self.progress, _Steps)
        start.updates = self.progress.updates
        return start


def stepped(stage: Callable[[StageContext], object], scratch: Path, every: int = 1) -> Iterator[Update]:
    """The updates of a stage."""
    updates = Updates(every)
    context = SteppedDesk(
        Path(mkdtemp(dir=scratch)), scratch, _Steps(updates), seed=0, checkpoint_seconds=float("inf")
    )

    def training() -> None:
        settle()  # which device is the default, and how many threads there are, is each thread's own
        stage(context)

    return updates.of(training)


def lora(case: Case) -> Lora | None:
    """A stage's setting."""
    return Lora(rank=16, alpha=32) if case.lora else None


def artifact(folder: Path, model: Path) -> Path:
    """A folder that looks like an artifact holding this model."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        (folder / "model").symlink_to(model)
    return folder
