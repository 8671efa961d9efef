"""What writes a policy's answers, our own engine or a server of vLLM, and whose weights it holds.

A sampler holds a copy of the weights of a model that may be in training. They are handed over by an explicit call after
an update. What a sampler was given is remembered by the version counters of torch's tensors, so that one whose weights
are stale is noticed before it writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import TensorWeakRef

from triptych.engine import distributed
from triptych.engine.adapters import adapted, plain_copy, take_over
from triptych.engine.device import autocast, compute_dtype, give_back
from triptych.engine.forward import Model, packs
from triptych.engine.generation import generate
from triptych.engine.nf4 import holds_nf4
from triptych.engine.prepacked import prepack
from triptych.engine.request import Completion
from triptych.engine.sampling import End, Sampling


class WeightVersions:
    """Which tensors the weights of a model were at one time, and how often each had been written to.

    Writing through `tensor.data` is not counted by torch, and not noticed here.
    """

    def __init__(self, model: Model) -> None:
        self._weights = [(TensorWeakRef(weight), weight._version) for weight in model.parameters()]

    def current(self, model: Model) -> bool:
        """Whether the model still has these tensors, and nothing has been written to them."""
        weights = list(model.parameters())
        return len(weights) == len(self._weights) and all(
            held() is weight and version == weight._version
            for weight, (held, version) in zip(weights, self._weights, strict=True)
        )


def _count_update(optimizer: Optimizer, arguments: Any, options: Any) -> None:
    """Counts an optimizer's step as a write to its weights, which torch's fused kernels do not."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    torch.autograd.graph.increment_version(weights)


register_optimizer_step_post_hook(_count_update)  # of every optimizer, whoever makes it


class Sampler(ABC):
    """What writes answers with the weights that a model had when they were handed over."""

    _held: WeightVersions | None = None

    def sync_weights(self, model: Model) -> None:
        """Takes over the weights of a model as they are now."""
        self.load_weights(model)
        self._held = WeightVersions(model)

    def in_sync(self, model: Model) -> bool:
        """Whether this holds the weights that the model has now."""
        return self._held is not None and self._held.current(model)

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Ends what it started; it is not used again."""

    @abstractmethod
    def load_weights(self, model: Model) -> None:
        """Copies the model's weights to where answers are computed; all ranks call it."""

    def release(self) -> None:
        """Gives back what this process holds of the weights, until they are next handed over; here, nothing."""
        return

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], end: End, sampling: Sampling, *, n: int, numbers: Sequence[int],
        watch: Callable[[int, int], None],
    ) -> list[list[Completion]]:
        """As :func:`triptych.engine.generation.generate`."""


class SlotSampler(Sampler):
    """Our own engine, over a copy of the model's weights in the compute type.

    A plain model of one rank that is in the compute type already is not copied, nor one whose matrices are held in four
    bits, where a copy would take more than the model. One that does not pack is sampled from as it is trained, in
    float32 under autocast: the layers that carry a state need some of their weights whole.
    """

    def __init__(self) -> None:
        self.model: Model = None

    def load_weights(self, model: Model) -> None:
        """See :class:`Sampler`."""
        dtype = compute_dtype() if packs(model) else torch.float32
        plain = dtype == torch.float32 and distributed.world_size() == 1 and not adapted(model)
        if plain or holds_nf4(model):
            self.model = model
            return
        if self.model is None:
            copy = plain_copy(model, dtype).requires_grad_(False).eval()
            self.model = prepack(copy) if packs(copy) else copy
            if not adapted(model):
                return  # the copy is of the weights as they are
        take_over(self.model, model)

    def release(self) -> None:
        """See :class:`Sampler`."""
        self.model = self._held = None

    def generate(
        self, prompts: Sequence[Sequence[int]], end: End, sampling: Sampling, *, n: int, numbers: Sequence[int],
        watch: Callable[[int, int], None],
    ) -> list[list[Completion]]:
        """See :class:`Sampler`."""
        with autocast(enabled=self.model.dtype != compute_dtype()):
            completions = generate(self.model, prompts, end, sampling, n=n, numbers=numbers, watch=watch)
        give_back()  # the cache, into whose pieces what comes next may not fit
        return completions
