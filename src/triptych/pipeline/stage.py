"""A stage: what it is called, what it does, what it is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.configuration import Config
from triptych.engine.checkpoint import Checkpoint
from triptych.pipeline.artifact import Artifact
from triptych.progress import Progress

Metrics = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage works.

    Attributes:
        output: the folder that becomes the artifact; empty when the stage begins.
        scratch: what survives a kill, until the stage is done.
        progress: who watches.
        seed: the run's seed, for everything that is drawn.
        checkpoint_seconds: time between two checkpoints.
    """

    output: Path
    scratch: Path
    progress: Progress
    seed: int
    checkpoint_seconds: float

    def checkpoint(self, every: int = 1) -> Checkpoint:
        """The checkpoint of this stage's training, behind every so many steps at most."""
        return Checkpoint(self.scratch / "training.pt", self.checkpoint_seconds, every)


@dataclass(frozen=True)
class Stage:
    """One step of the cycle.

    Attributes:
        name: unique in the run, as "round-1/reward".
        work: called as `work(context, config, **inputs, **tools)`, inputs as their folders; returns the metrics.
        inputs: the artifacts it is computed from, by the parameter's name.
        tools: what else it is given: plain values, and objects (a judge) whose `identity` says what they are.
        parents: the artifacts that tools were opened from, by the tool's name: part of the lineage, not given to
            the work.
        sources: the user's own files that it reads, by the name that the recipe gives them. What a file holds
            counts, not where it lies; given to the work as `sources`.
        alone: the first rank does it while the others wait: work in which models hardly compute.
    """

    name: str
    work: Callable[..., Metrics]
    config: Config
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    tools: Mapping[str, object] = field(default_factory=dict)
    parents: Mapping[str, Artifact] = field(default_factory=dict)
    sources: Mapping[str, str | Path] = field(default_factory=dict)
    alone: bool = False
