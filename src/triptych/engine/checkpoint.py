"""A training's state on disk: complete or absent.

Written to a file of its own, flushed, then renamed over the last one, so that a kill at any instant leaves
either the old state or the new. Trained weights, optimizer, step and the curve so far: the order of the batches and
the sampling noise are functions of (seed, step), so there is nothing else to keep. Tensors are whole, so that a
training may go on with another number of ranks.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from triptych.engine import distributed
from triptych.errors import RunError
from triptych.storage import PARTIAL, make_folder, sync

_WRITING = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos")

SHARE = 0.02
"""Of the time, at most, that saving takes."""


def checkpoint_seconds() -> float:
    """The time between two checkpoints: a minute, or what TRIPTYCH_CHECKPOINT_SECONDS says.

    Raises:
        RunError: that is no number.
    """
    text = os.environ.get("TRIPTYCH_CHECKPOINT_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise RunError(f"TRIPTYCH_CHECKPOINT_SECONDS must be a number of seconds, got {text!r}") from None


@dataclass(slots=True)
class Checkpoint:
    """Saves a training's state at most every `seconds`, and restores it.

    Attributes:
        path: the file.
        seconds: between two saves, at least; saving never changes a result, only what a crash costs.
        every: steps that belong together: a state is saved behind the last of them only.
        took: seconds, the last save.
    """

    path: Path
    seconds: float
    every: int = 1
    saved: float = field(default_factory=time.monotonic)
    took: float = 0.0

    @property
    def interval(self) -> float:
        """Seconds between two saves: as asked, or so many that saving takes no more than its share of the time."""
        return max(self.seconds, self.took / SHARE) if self.seconds else 0.0

    def due(self, done: int) -> bool:
        """Whether it is time to save behind so many steps."""
        return done % self.every == 0 and time.monotonic() - self.saved >= self.interval

    def save(self, model: nn.Module, optimizers: Sequence[Optimizer], state: dict[str, Any]) -> None:
        """Writes the state; the last one stays until this one is on disk. All ranks call it, the first writes."""
        began = time.monotonic()
        content = {
            "model": trained_weights(model),
            "optimizers": [distributed.full_tensor(optimizer.state_dict()) for optimizer in optimizers],
            "state": state,
        }
        write_tensors(self.path, content)
        self.saved = time.monotonic()
        self.took = self.saved - began

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any] | None:
        """Loads the last state into model and optimizers; None where there is none.

        Raises:
            RunError: it is damaged.
        """
        if not self.path.exists():
            return None
        content = read_tensors(self.path, "delete it to train from the beginning")
        with torch.no_grad():
            for name, weight in _trained(model):
                weight.copy_(distributed.shard_like(content["model"][name], weight))
        for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for parameter, moments in optimizer.state.items():
                moments.update({name: distributed.shard_like(tensor, parameter) for name, tensor in moments.items()})
        state: dict[str, Any] = content["state"]
        return state


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Each weight that an optimizer changes, whole, by its name; all ranks call it."""
    return {name: distributed.full_tensor(weight.detach()) for name, weight in _trained(model)}


def write_tensors(path: Path, content: object) -> None:
    """Writes a file of tensors that is there whole, or not at all; all ranks call it, the first writes."""
    if distributed.rank() > 0:
        return
    make_folder(path.parent)
    partial = path.with_suffix(PARTIAL)
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)  # on a full disk the report needs its room
        # So torch says that a write failed; what a device lacks is no disk's fault.
        if isinstance(error, RuntimeError) and _WRITING.search(str(error)):
            raise OSError(errno.ENOSPC, f"{partial} could not be written: {error}") from error
        raise
    os.replace(partial, path)
    sync(path.parent)


def read_tensors(path: Path, remedy: str) -> Any:
    """What such a file holds.

    Raises:
        RunError: it is damaged.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises whatever its readers meet
        raise RunError(f"{path} is damaged ({type(error).__name__}); {remedy}") from error


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
