"""What every stage gets: where it works, and the user's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from triptych.engine.checkpoint import Checkpoint
from triptych.progress import Progress

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage works.

    Attributes:
        output: the folder that becomes the artifact; empty when the stage begins.
        scratch: what survives a kill, until the stage is done.
        progress: who watches.
        seed: the run's seed, for everything that is drawn.
        checkpoint_seconds: time between two checkpoints.
        run: the run's folder; None of a stage alone.
    """

    output: Path
    scratch: Path
    progress: Progress
    seed: int
    checkpoint_seconds: float
    run: Path | None = None

    def name(self, folder: Path) -> str:
        """What an artifact calls a model's folder: in a run by its place there, as equal runs call it alike."""
        place, run = folder.resolve(), self.run and self.run.resolve()
        return place.relative_to(run).as_posix() if run and place.is_relative_to(run) else str(place)

    def checkpoint(self, every: int = 1) -> Checkpoint:
        """The checkpoint of this stage's training, behind every so many steps at most."""
        return Checkpoint(self.scratch / "training.pt", self.checkpoint_seconds, every)


class UserFiles(dict[str, str | Path]):
    """The user's own files that a stage reads, by the name that the recipe gives them.

    What a file holds counts, not where it lies; a name that is no file (a dataset, a Hub model) stands for itself.
    """


def reads(**files: tuple[str, ...]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Says what a stage reads of an artifact that is given to it, by the parameter's name: no other file counts.

    Args:
        files: what their names begin with; `("prompts_test",)`.
    """

    def mark(work: Callable[P, T]) -> Callable[P, T]:
        work.reads = files  # type: ignore[attr-defined]
        return work

    return mark


def alone(work: Callable[P, T]) -> Callable[P, T]:
    """Marks a stage that the first rank does while the others wait: one in which models hardly compute."""
    work.alone = True  # type: ignore[attr-defined]
    return work
