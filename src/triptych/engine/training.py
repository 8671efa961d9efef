"""The train loop: one for every stage, which gives batches and a loss.

A step is one update of the weights. Its batches are accumulated by what counts (tokens, pairs, answers), not
by rows: the loss of a batch is a *sum*, divided by the step's total weight. A step with a loss, gradient, reward
or log-probability that is not finite leaves the weights untouched, and the curve says which rows it held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from triptych.configuration import Config
from triptych.engine import distributed, nf4
from triptych.engine.adapters import Lora, added_rows, confine_gradients
from triptych.engine.checkpoint import Checkpoint
from triptych.engine.curve import FILE, Curve, GrowingCurve, Row
from triptych.engine.device import autocast, device, give_back
from triptych.engine.muon import Muon, WholeMuon
from triptych.errors import TrainingError
from triptych.progress import Progress

Batch = TypeVar("Batch")

HEADS = ("lm_head", "score", "value_head")
"""What stands on a trunk: no layers' matrices."""
GIVE_BACK_EVERY = 16
"""Updates after which freed memory goes back to the system: of rows of ever new lengths, pieces into which nothing fits
would add up."""


class Optimization(Config):
    """How the weights are updated: AdamW with warm-up, decay and clipping; Muon for a Base from scratch.

    Attributes:
        learning_rate: at its peak.
        muon_learning_rate: the learning rate of the hidden layers' matrices under Muon (Jordan et al. 2024), which
            learns faster from scratch; None for AdamW throughout.
        optimizer: of these matrices without Muon: "adamw", or "adamw_8bit", whose moments take a byte each (Dettmers et
            al. 2022, *8-bit Optimizers via Block-wise Quantization*) and which is of one rank.
        warmup: share of the steps over which the rate rises from zero.
        decay: how it falls after that: "cosine" or "linear" to a tenth of the peak, or "constant".
        weight_decay: on matrices only.
        max_grad_norm: the largest norm of a gradient; larger ones are scaled down to it.
        patience: steps in a row that may be skipped for non-finite numbers before the run stops.
        lora: train low-rank adapters, which are merged before the model is kept; None to train all weights.
        activation_checkpointing: keep only each layer's input for the backward pass, and compute the rest again (Chen
            et al. 2016): less memory, more time.
    """

    pace = frozenset({"patience"})

    learning_rate: float = Field(gt=0)
    muon_learning_rate: float | None = Field(default=None, gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    patience: int = Field(default=5, ge=1)
    lora: Lora | None = None
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.lora and self.muon_learning_rate:
            raise ValueError("muon is for matrices that are trained whole; leave out muon or lora")
        if self.in_eight_bits:
            if self.muon_learning_rate:
                raise ValueError("muon_learning_rate and optimizer adamw_8bit are for the same matrices; leave out one")
            if not nf4.available():
                raise ValueError(f"optimizer adamw_8bit {nf4.MISSING}")
        return self

    @property
    def in_eight_bits(self) -> bool:
        """Whether moments take a byte each; several ranks cannot share them."""
        return self.optimizer == "adamw_8bit"

    def rate_of(self, name: str) -> float:
        """The peak learning rate of a weight that AdamW trains."""
        return self.learning_rate

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at a step (counted from 0) of so many."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        if self.decay == "constant":
            return 1.0
        progress = (step - warm) / max(1, steps - warm)
        fall = 1 - progress if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return 0.1 + 0.9 * fall


class GradientAccumulation(Optimization):
    """Updates whose gradients are added up over a few tokens at a time.

    Attributes:
        micro_batch: tokens computed at once; by default 1,024, and 8,192 on a CUDA device, which needs so many to have
            work. Only memory and speed depend on it.
    """

    micro_batch: int | None = Field(default=None, ge=64)

    @property
    def at_once(self) -> int:
        """Tokens computed at once on this machine."""
        return self.micro_batch or (8192 if device().type == "cuda" else 1024)


@dataclass(slots=True)
class Step(Generic[Batch]):
    """What one update is computed from.

    Attributes:
        batches: accumulated one after the other.
        weight: what the summed losses are divided by: the tokens, pairs or answers of all batches.
        numbers: measured while the step was prepared (rewards, lengths), recorded with the loss.
        rows: the lines of the stage's data that the batches hold, counted from 1; named where the step is skipped.
        fault: what was found not to be finite while the step was prepared ("reward"); then it is skipped.
    """

    batches: Sequence[Batch]
    weight: float
    numbers: dict[str, float] = field(default_factory=dict)
    rows: Sequence[int] = ()
    fault: str | None = None


@dataclass(slots=True)
class Loss:
    """A batch's loss, summed over what counts, and numbers to record (summed likewise)."""

    total: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)


def train(
    model: Any,
    steps: int,
    prepare: Callable[[int], Step[Batch]],
    loss: Callable[[Batch], Loss],
    optimization: Optimization,
    *,
    checkpoint: Checkpoint | None,
    progress: Progress,
    unit: str = "tokens",
    after: Callable[[int, dict[str, Any]], bool | None] | None = None,
    curve: Curve | None = None,
    start: Row | None = None,
) -> Curve:
    """Trains `model` in place and returns the curve: a row for each step.

    Args:
        prepare: the batches of a step; a function of the step's number and the current weights only, so
            that a resumed run sees the same.
        loss: the summed loss of a batch, computed under autocast.
        unit: what `Step.weight` counts, for the progress line.
        after: called when a step is done, with its row, which it may extend; where it is true the training ends.
        curve: an empty list that is filled as the training goes, so that a step may look at those before it.
        start: what was measured before the first step, for who watches the curve on disk.

    Raises:
        TrainingError: `optimization.patience` steps in a row had numbers that are not finite.
    """
    if optimization.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with distributed.fully_shard_within(model):
        filled = _trained(
            model, steps, prepare, loss, optimization, checkpoint, progress, unit, after,
            [] if curve is None else curve, [] if start is None else [{"step": 0, **start}],
        )
    model.eval()
    return filled


def _trained(
    model: Any, steps: int, prepare: Callable[[int], Step[Batch]], loss: Callable[[Batch], Loss],
    optimization: Optimization, checkpoint: Checkpoint | None, progress: Progress, unit: str,
    after: Callable[[int, dict[str, Any]], bool | None] | None, curve: Curve, start: Curve,
) -> Curve:
    """The loop itself; with several ranks each holds a slice of the weights, and all see the same numbers."""
    first = distributed.rank() == 0
    optimizers = _optimizers(model, optimization)
    state = checkpoint.restore(model, optimizers) if checkpoint else None
    curve += state["curve"] if state else []
    watched = GrowingCurve(checkpoint.path.with_name(FILE), start + curve) if checkpoint and first else None
    skipped = 0  # a state is only saved behind a step that was not skipped
    seen = curve[-1]["seen"] if curve else 0.0
    before: Step[Batch] | None = None
    if curve:
        progress.say(f"going on from step {len(curve)} of {steps}")
    for number in range(len(curve), steps):
        step = prepare(number)
        factor = optimization.factor(number, steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        row, fault = _accumulate(model, step, loss, optimization.max_grad_norm)
        if fault is None:
            for optimizer in optimizers:
                optimizer.step()
            skipped = 0
        else:
            skipped += step.fault is None or step is not before  # a rollout that is used again says nothing new
            progress.say(f"step {number + 1}: its {fault} is not finite; the weights were left as they are")
            if skipped >= optimization.patience:
                raise _hopeless(number, skipped, fault, step.rows, optimization)
            row |= {"fault": fault, "rows": list(step.rows)}
        before = step
        model.zero_grad(set_to_none=True)
        if (number + 1) % GIVE_BACK_EVERY == 0:
            give_back()
        seen += step.weight
        row |= {"step": number + 1, "seen": seen, **step.numbers}
        row["learning_rate"] = optimization.learning_rate * factor
        row["skipped"] = float(skipped > 0)
        ended = after is not None and distributed.broadcast(after(number, row))
        curve.append(row)
        if watched:
            watched.add(row)
        shown = {name: row[name] for name in ("loss", "accuracy", "reward", "kl") if name in row}
        progress.step(number + 1, steps, unit, int(seen), **shown)
        if ended:
            break
        due = checkpoint is not None and skipped == 0 and number + 1 < steps and distributed.broadcast(
            checkpoint.due(number + 1)
        )
        if checkpoint and due and distributed.all_finite(model.parameters()):
            checkpoint.save(model, optimizers, {"curve": curve})
    return curve


def _accumulate(
    model: Any, step: Step[Batch], loss: Callable[[Batch], Loss], clip: float
) -> tuple[dict[str, Any], str | None]:
    """Adds up the gradients of a step's batches and clips them; the numbers, and which is not finite."""
    totals = {"loss": 0.0}
    if step.fault is not None:
        return {"loss": math.nan, "gradient_norm": math.nan}, step.fault

    def parts(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        computed = loss(batch)
        return computed.total, computed.numbers

    for batch, counted in distributed.shard_evenly(step.batches):
        with autocast():
            total, numbers = distributed.forward(model, parts, batch)
        # Gradients are averaged over the ranks, where their sum is wanted.
        (total / step.weight * (distributed.world_size() * counted)).backward()
        for name, value in {"loss": total, **numbers}.items():
            totals[name] = totals.get(name, 0.0) + (float(value.detach()) / step.weight if counted else 0.0)
    confine_gradients(model)
    totals = dict(zip(totals, distributed.all_reduce(list(totals.values())), strict=True))
    totals["gradient_norm"] = float(distributed.full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
    fault = next((name for name in ("loss", "gradient_norm") if not math.isfinite(totals[name])), None)
    return totals, fault and fault.removesuffix("_norm")


def _hopeless(
    number: int, skipped: int, fault: str, rows: Sequence[int], optimization: Optimization
) -> TrainingError:
    """What is said where a run stops for numbers that stay non-finite."""
    named = f" of the rows {', '.join(map(str, sorted(rows)))}" if rows else ""
    return TrainingError(
        f"{skipped} steps in a row had numbers that are not finite; the last was the {fault} of step {number + 1}"
        f"{named}. Look at these rows, or lower the learning rate (now {optimization.learning_rate:g})"
    )


def _optimizers(model: Any, optimization: Optimization) -> list[Optimizer]:
    """AdamW, without weight decay on norms, biases and embeddings that are trained in part; for the hidden layers'
    matrices Muon or AdamW in 8 bits where that is asked for.
    """
    partly = {id(table) for table in added_rows(model)}
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    assert all(weight.dtype.itemsize >= 4 for _, weight in weights), "small updates are lost in half precision"
    decay, rate = optimization.weight_decay, optimization.learning_rate
    muon_rate = optimization.muon_learning_rate
    tables = partly | {id(table) for module in model.modules() if isinstance(module, torch.nn.Embedding)
                       for table in module.parameters()}
    hidden = {
        name for name, weight in weights
        if (muon_rate or optimization.in_eight_bits)
        and weight.ndim == 2 and id(weight) not in tables and name.split(".")[0] not in HEADS
    }
    groups: dict[tuple[bool, float], list[Parameter]] = {}
    for name, weight in weights:
        if name not in hidden:
            matrix = weight.ndim >= 2 and id(weight) not in partly
            groups.setdefault((matrix, optimization.rate_of(name)), []).append(weight)
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW([
            {"params": members, "weight_decay": decay if matrix else 0.0, "peak": peak}
            for (matrix, peak), members in sorted(groups.items(), key=lambda group: not group[0][0])
        ], lr=rate, betas=optimization.betas, fused=True))
    if not hidden:
        return optimizers
    members = [weight for name, weight in weights if name in hidden]
    alone = distributed.world_size() == 1
    if muon_rate:
        optimizers.append((Muon if alone else WholeMuon)(members, lr=muon_rate, weight_decay=decay))
    else:
        assert alone, "blocks of a matrix are rounded together"
        from bitsandbytes.optim import AdamW8bit  # an extra, and it takes its time

        optimizers.append(AdamW8bit(members, lr=rate, betas=optimization.betas, weight_decay=decay))
    optimizers[-1].param_groups[0]["peak"] = muon_rate or rate
    return optimizers


def shuffled(count: int, epoch: int, seed: int) -> list[int]:
    """The order of an epoch: a function of the seed and the epoch alone."""
    generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator, device="cpu").tolist()
    return order
