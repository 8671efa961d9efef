"""What a method of improvement is: how a step's answers become batches, and the loss of a batch, over one loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from triptych.engine.curve import Curve, Row
from triptych.engine.rollout import infer
from triptych.engine.training import Loss, Step
from triptych.improve.loop import Batch, Improvement, Loop
from triptych.storage import Folder

Settings = TypeVar("Settings", bound=Improvement)


class Method(ABC, Generic[Settings, Batch]):
    """A method at work in a round.

    What it needs before a round begins, its settings say: :class:`~triptych.improve.loop.Improvement`.

    Attributes:
        settings: the type of what it can be told.
        unit: what a loss is averaged over.
        best_of_n: whether what it learns is the best of n answers, whose judge's score turns over by another law.
        heldout_numbers: what is told of held-out feedback beside the loss, of what the loss tells.
        loop: the round.
        config: its settings there.
        feedback: the folder of the round's own comparisons or thumbs, of a method that learns from them.
    """

    settings: ClassVar[type[Improvement]]
    unit: ClassVar[str] = "answer tokens"
    best_of_n: ClassVar[bool] = False
    heldout_numbers: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __init__(self, loop: Loop, config: Settings, feedback: Folder | None = None) -> None:
        self.loop, self.config, self.feedback = loop, config, feedback

    @classmethod
    def name(cls) -> str:
        """What recipes call it."""
        return str(cls.settings.model_fields["method"].default)

    @abstractmethod
    def prepare(self, number: int) -> Step[Batch]:
        """An update's batches: a function of the step's number and of the policy as it then is."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch, summed."""

    def heldout(self) -> Row:
        """The loss on feedback that is held out, where there is any: the watch of a round without a reward."""
        return {}

    def watched(self, held: Step[Batch]) -> Row:
        """The means over what is held out: loss, accuracy, of pairs the margin; nothing where that is nothing."""
        def sums(batch: Batch) -> Tensor:
            lost = self.loss(batch)
            return torch.stack([lost.total, *(lost.numbers[name] for name in self.heldout_numbers)])

        if not held.batches:
            return {}
        totals = torch.stack(infer(self.loop.model, sums, held.batches)).sum(0).tolist()
        names = ("loss", *self.heldout_numbers)
        return {f"validation_{name}": total / held.weight for name, total in zip(names, totals, strict=True)}

    def detach(self) -> None:
        """Takes from the policy what only its training needed."""

    def numbers(self, curve: Curve) -> dict[str, float]:
        """What is told of a round that is done, beside what is told of every method's."""
        return {}
