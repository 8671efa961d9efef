"""A Bradley-Terry reward model trained on comparisons.

All comparisons of a prompt are one group: the prompt and each distinct answer are computed once, however many
comparisons they are in, and they stay in one update (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from triptych.data.files import read_comparisons
from triptych.data.lengths import TokenizedComparison, fit
from triptych.engine import attention, ranks
from triptych.engine.adapters import adapt, merged
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
        refresh_epochs: passes when it goes on from the last round's reward model.
        batch: comparisons in an update; a prompt's comparisons stay together.
        micro_batch: tokens computed at once; only memory and speed depend on it.
        context: longest prompt with one answer, in tokens.
        overlong: what happens to longer ones: left out, or their answers cut. Either is counted and reported.
        centring: pulls r_chosen + r_rejected towards zero, so that scores of models can be compared.
    """

    kind: Literal["pairwise"] = "pairwise"
    epochs: int = Field(default=2, ge=1)
    refresh_epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=32, ge=1)
    micro_batch: int = Field(default=4096, ge=64)
    context: int = Field(default=512, ge=16)
    overlong: Literal["drop", "truncate"] = "drop"
    centring: float = Field(default=0.01, ge=0)
    learning_rate: float = Field(default=1e-5, gt=0)


@dataclass(slots=True)
class _Pairs:
    """Packed comparisons: `chosen` and `rejected` are the segments of each one's answers, `[B]`."""

    pack: Pack
    chosen: Tensor
    rejected: Tensor
    margin: Tensor | None


@dataclass(slots=True)
class _Group:
    """The comparisons of one prompt, the lines where they stand, and their distinct answers."""

    prompt: tuple[int, ...]
    rows: list[TokenizedComparison] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(answer) for answer in self.answers)


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
    refreshed = _is_reward(folder)
    epochs = config.refresh_epochs if refreshed else config.epochs
    load = partial(load_reward, folder, fresh=not refreshed, seed=desk.seed, attention=attention.NAME)
    model: Any = load()
    adapt(model, config.lora, desk.seed)
    groups = _grouped(rows, fitted.lines)
    plan = [
        [order[i] for i in members]
        for epoch in range(epochs)
        for order in [shuffled(len(groups), epoch, desk.seed)]
        for members in fill((len(groups[i].rows) for i in order), config.batch)
    ]

    def prepare(step: int) -> Step[_Pairs]:
        drawn = [groups[i] for i in plan[step]]
        dealt = ranks.dealt((group.tokens for group in drawn), config.micro_batch)
        batches = [_packed([drawn[i] for i in part]) for part in dealt]
        lines = [line for group in drawn for line in group.lines]
        return Step(batches, weight=len(lines), rows=lines)

    def loss(pairs: _Pairs) -> Loss:
        scores = rewards(model, pairs.pack)
        chosen, rejected = scores[pairs.chosen], scores[pairs.rejected]
        losses = bradley_terry(chosen, rejected, pairs.margin, config.centring)
        return Loss(losses.sum(), {"accuracy": (chosen > rejected).float().sum()})

    curve = train(
        model, len(plan), prepare, loss, config,
        checkpoint=desk.checkpoint(), progress=desk.progress, unit="pairs",
    )
    write_curve(desk.output / "curve.jsonl", curve)
    model = merged(model, load)
    save(model, tokenizer, desk.output / "model")
    return {
        "parameters": parameters(model),
        "comparisons": len(rows),
        "dropped": fitted.dropped,
        "truncated": fitted.truncated,
        "epochs": epochs,
    }


def _grouped(rows: Sequence[TokenizedComparison], lines: Sequence[int]) -> list[_Group]:
    """The comparisons by prompt, in the order in which prompts first appear."""
    groups: dict[tuple[int, ...], _Group] = {}
    for row, line in zip(rows, lines, strict=True):
        group = groups.setdefault(row.prompt, _Group(row.prompt))
        group.rows.append(row)
        group.lines.append(line)
        group.answers += [answer for answer in (row.chosen, row.rejected) if answer not in group.answers]
    return list(groups.values())


def _packed(groups: Sequence[_Group]) -> _Pairs:
    pack, scored = pack_scored([(group.prompt, group.answers) for group in groups])
    chosen, rejected, margins = [], [], []
    first = 0
    for group in groups:
        places = {answer: first + place for place, answer in enumerate(group.answers)}
        first += len(group.answers)
        for row in group.rows:
            chosen.append(places[row.chosen])
            rejected.append(places[row.rejected])
            margins.append(row.margin)
    given = any(margin is not None for margin in margins)
    return _Pairs(
        pack, scored[chosen], scored[rejected],
        torch.tensor([margin or 0.0 for margin in margins]) if given else None,
    )


def _is_reward(folder: Path) -> bool:
    return "SequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
