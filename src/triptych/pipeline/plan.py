"""The stages of a cycle before any of them is done: what it asks for, in order, where every candidate is promoted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from triptych.pipeline.artifact import Artifact
from triptych.pipeline.call import StageCall
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.progress import Progress, Silent

R = TypeVar("R", bound=Result)
T = TypeVar("T")


@dataclass
class Planner(Runner):
    """Writes down which stages it is asked to run; each comes to what its result's `planned` says.

    Attributes:
        plan: the stages, in order.
    """

    folder: Path = Path("planned")
    progress: Progress = field(default_factory=Silent)
    seed: int = 0
    plan: list[StageCall[Any]] = field(default_factory=list)

    def outside(self, act: Callable[[], T], planned: T) -> T:
        """What is planned."""
        return planned

    def _found_or_computed(self, stage: StageCall[R]) -> Artifact[R]:
        self.plan.append(stage)
        manifest = {"fingerprint": stage.name, "parents": {}}
        return Artifact(stage.name, self.folder / stage.name, manifest, stage.name, stage.kind.planned())
