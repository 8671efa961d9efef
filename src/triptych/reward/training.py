"""A Bradley-Terry reward model trained on comparisons: each prompt computed once for its two answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from triptych.data.files import read_comparisons
from triptych.data.lengths import TokenizedComparison, fit
from triptych.engine import attention
from triptych.engine.curve import write_curve
from triptych.engine.forward import rewards
from triptych.engine.models import load_reward, load_tokenizer, parameters, save
from triptych.engine.packing import Pack, fill
from triptych.engine.scoring import pack_scored
from triptych.engine.training import Loss, Optimization, Step, shuffled, train
from triptych.errors import AuditError
from triptych.pipeline.stage import Desk, Metrics
from triptych.reward.losses import bradley_terry


class PairwiseReward(Optimization):
    """A reward model trained on comparisons.

    Attributes:
        epochs: passes over the comparisons.
        batch: comparisons in an update.
        micro_batch: tokens computed at once; only memory and speed depend on it.
        context: longest prompt with one answer, in tokens.
        centring: pulls r_chosen + r_rejected towards zero, so that scores of models can be compared.
    """

    kind: Literal["pairwise"] = "pairwise"
    epochs: int = Field(default=2, ge=1)
    batch: int = Field(default=32, ge=1)
    micro_batch: int = Field(default=4096, ge=64)
    context: int = Field(default=512, ge=16)
    overlong: Literal["drop", "truncate"] = "drop"
    centring: float = Field(default=0.01, ge=0)
    learning_rate: float = Field(default=1e-5, gt=0)


@dataclass(slots=True)
class _Pairs:
    """Packed comparisons: answers 2i and 2i + 1 are the chosen and the rejected one of pair i."""

    pack: Pack
    scored: Tensor
    margin: Tensor | None


def train_reward(
    desk: Desk, config: PairwiseReward, start: Path, comparisons: Path, share: str = "reward"
) -> Metrics:
    """Trains on the comparisons in `comparisons/{share}.jsonl`, from a policy or from an earlier reward model."""
    folder = start / "model"
    tokenizer = load_tokenizer(folder)
    fitted = fit(read_comparisons(comparisons / f"{share}.jsonl"), tokenizer, config.context, config.overlong)
    if fitted.dropped or fitted.truncated:
        desk.progress.say(f"comparisons: {fitted}")
    rows = fitted.rows
    if not rows:
        raise AuditError(f"no comparison is left to train on ({fitted}); raise reward.context or give more of them")
    model: Any = load_reward(folder, fresh=not _is_reward(folder), seed=desk.seed, attention=attention.NAME)
    plan = [
        order[i : i + config.batch]
        for epoch in range(config.epochs)
        for order in [shuffled(len(rows), epoch, desk.seed)]
        for i in range(0, len(order), config.batch)
    ]

    def prepare(step: int) -> Step[_Pairs]:
        order = plan[step]
        sizes = (len(rows[i].prompt) + len(rows[i].chosen) + len(rows[i].rejected) for i in order)
        batches = [_packed([rows[order[i]] for i in group]) for group in fill(sizes, config.micro_batch)]
        return Step(batches, weight=len(order))

    def loss(pairs: _Pairs) -> Loss:
        scores = rewards(model, pairs.pack)[pairs.scored]
        chosen, rejected = scores[0::2], scores[1::2]
        losses = bradley_terry(chosen, rejected, pairs.margin, config.centring)
        return Loss(losses.sum(), {"accuracy": (chosen > rejected).float().sum()})

    curve = train(
        model, len(plan), prepare, loss, config,
        checkpoint=desk.checkpoint(), progress=desk.progress, unit="pairs",
    )
    write_curve(desk.output / "curve.jsonl", curve)
    save(model, tokenizer, desk.output / "model")
    return {
        "parameters": parameters(model),
        "comparisons": len(rows),
        "dropped": fitted.dropped,
        "truncated": fitted.truncated,
        "epochs": config.epochs,
    }


def _packed(rows: Sequence[TokenizedComparison]) -> _Pairs:
    pack, scored = pack_scored([(row.prompt, [row.chosen, row.rejected]) for row in rows])
    margins = [row.margin for row in rows]
    given = any(margin is not None for margin in margins)
    return _Pairs(pack, scored, torch.tensor([margin or 0.0 for margin in margins]) if given else None)


def _is_reward(folder: Path) -> bool:
    return "SequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
