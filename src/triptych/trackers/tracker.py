"""Which trackers there are, and a run of each, begun or gone on with; accelerate knows how to speak to them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]

PROJECT = "triptych"
"""The project, or experiment, of every run, where the tracker's environment variable names no other."""


def missing(name: TrackerName) -> str | None:
    """What to install for a tracker; None where it is there."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # a mere folder of that name, as W&B leaves one, has none
        return None
    return f"{name} is not installed: pip install 'triptych[{name}]'"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a tracker's run begins with, or is gone on with by.

    Attributes:
        folder: the run's.
        id: of the tracker's run.
        is_new: whether it is to be made.
        recipe: the resolved one.
    """

    folder: Path
    id: str
    is_new: bool
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A tracker's run that takes numbers.

    Attributes:
        id: by which it is gone on with.
        place: how a person looks at it.
    """

    tracker: GeneralTracker
    id: str
    place: str


def begin(name: TrackerName, beginning: Beginning) -> TrackedRun:
    """Begins a tracker's run, or goes on with it; in a process that does nothing else."""
    from accelerate import PartialState

    PartialState(cpu=True)  # by which accelerate's trackers know that they are the one process
    return OPENERS[name](beginning)


def _tensorboard(beginning: Beginning) -> TrackedRun:
    from accelerate.tracking import TensorBoardTracker

    folder = beginning.folder / "tensorboard"
    tracker = TensorBoardTracker(beginning.id, folder)
    tracker.start()
    if beginning.is_new:  # its own way would make a second run of the settings
        text = yaml.safe_dump(dict(beginning.recipe), sort_keys=False, allow_unicode=True)
        tracker.log({"recipe": "".join(f"    {line}\n" for line in text.splitlines())}, step=0)
    return TrackedRun(tracker, beginning.id, f"tensorboard --logdir {folder}")


def _trackio(beginning: Beginning) -> TrackedRun:
    from accelerate.tracking import TrackioTracker

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    config = {"config": dict(beginning.recipe)} if beginning.is_new else {}
    tracker = TrackioTracker(project, name=beginning.id, resume="allow", embed=False, **config)
    tracker.start()
    return TrackedRun(tracker, beginning.id, f"trackio show --project {project}, run {beginning.id}")


def _wandb(beginning: Beginning) -> TrackedRun:
    from accelerate.tracking import WandBTracker

    class OwnStep(WandBTracker):  # type: ignore[misc]
        """Its own step may only rise, and each curve begins anew."""

        def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
            super().log(values | {"step": step}, **kwargs)

    tracker = OwnStep(
        os.environ.get("WANDB_PROJECT", PROJECT), id=beginning.id, name=beginning.recipe["name"], resume="allow",
        dir=os.environ.get("WANDB_DIR", str(beginning.folder)),
    )
    tracker.start()
    if beginning.is_new:
        tracker.store_init_configuration(dict(beginning.recipe))
    tracker.tracker.define_metric("step")
    tracker.tracker.define_metric("*", step_metric="step")
    return TrackedRun(tracker, beginning.id, tracker.tracker.url or f"wandb sync {Path(tracker.tracker.dir).parent}")


def _mlflow(beginning: Beginning) -> TrackedRun:
    import mlflow
    from accelerate.tracking import MLflowTracker

    name = {"run_name": beginning.recipe["name"]} if beginning.is_new else {"run_id": beginning.id}
    tracker = MLflowTracker(PROJECT, **name)
    tracker.start()
    if beginning.is_new:
        tracker.store_init_configuration(dict(_flat(beginning.recipe)))
    id = tracker.tracker.info.run_id
    return TrackedRun(tracker, id, f"MLflow at {mlflow.get_tracking_uri()}, run {id}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its whole name, as `reward.learning_rate`."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


OPENERS: Mapping[TrackerName, Callable[[Beginning], TrackedRun]] = {
    "tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow,
}
