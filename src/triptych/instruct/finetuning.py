"""Supervised fine-tuning: the model learns to answer, and only the answers count in the loss.

The loss is the mean of −log p(token | prompt, answer so far) over the answers' tokens, end token included
(Ouyang et al. 2022, step 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field

from triptych.data.folder import DataFolder
from triptych.data.lengths import LearntTurns, Overlong, TokenizedConversation, fit_turns
from triptych.engine import attention, distributed
from triptych.engine.adapters import adapt
from triptych.engine.curve import write_curve
from triptych.engine.device import autocast
from triptych.engine.forward import AnswerPack, answer_logprobs, pack_answers
from triptych.engine.inspection import trunk_of
from triptych.engine.models import load_policy, load_tokenizer, parameters, save
from triptych.engine.packing import fill
from triptych.engine.training import GradientAccumulation, Loss, Step, shuffled, train
from triptych.errors import TrainingError
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.storage import Folder


class Finetuning(GradientAccumulation):
    """How the Base learns to follow instructions.

    Attributes:
        epochs: passes over the conversations.
        batch_tokens: tokens in an update, prompts included.
        context: longest conversation, in tokens.
        overlong: what happens to longer ones: left out, or their answers cut. Either is counted and reported.
        learn: all turns of the assistant, or the last one. A turn of weight 0 is never learnt.
    """

    epochs: float = Field(default=2, gt=0)
    batch_tokens: int = Field(default=8192, ge=64)
    context: int = Field(default=512, ge=16)
    overlong: Overlong = "drop"
    learn: LearntTurns = "all"
    learning_rate: float = Field(default=2e-5, gt=0)


class Finetuned(Result):
    """What the model was trained on, and its loss on conversations that it has not seen, in nats a token.

    Attributes:
        dropped, truncated: conversations that are longer than the context.
    """

    parameters: int
    demonstrations: int
    dropped: int
    truncated: int
    answer_tokens_seen: int
    heldout_loss_before: float
    heldout_loss: float


@reads(data=("demonstrations",))
def finetune(context: StageContext, config: Finetuning, base: Folder, data: Folder) -> Finetuned:
    """Trains on `data/demonstrations.jsonl`; the loss on `data/demonstrations_heldout.jsonl` is measured."""
    tokenizer = load_tokenizer(base / "model")
    train_rows, heldout_rows = (DataFolder(data).demonstrations(split).read() for split in ("train", "heldout"))
    fit = partial(
        fit_turns, tokenizer=tokenizer, limit=config.context, overlong=config.overlong, learn=config.learn
    )
    fitted, heldout = fit(train_rows), fit(heldout_rows)
    if fitted.dropped or fitted.truncated:
        context.progress.say(f"demonstrations: {fitted}")
    for kept, what in ((fitted, "demonstration to train on"), (heldout, "held-out demonstration")):
        if not kept.rows:
            raise TrainingError(f"every {what} is longer than instruct.context, {config.context} tokens: raise it, or "
                                "set overlong: truncate")
    rows = fitted.rows
    plan = _plan(rows, config, context.seed)
    folder = base / "model"
    model: Any = load_policy(folder, attention=attention.NAME, merged=config.lora is None)
    adapt(model, config.lora, context.seed, folder)
    before = heldout_loss(model, heldout.rows, config.at_once)

    def prepare(step: int) -> Step[AnswerPack]:
        order = plan[step]
        batches = [
            _packed([rows[order[i]] for i in group], model.device)
            for group in distributed.micro_batches((rows[i].length for i in order), config.at_once)
        ]
        weight = sum(len(batch.predictions.targets) for batch in batches)
        return Step(batches, weight, rows=[fitted.lines[i] for i in order])

    curve = train(
        model, len(plan), prepare, lambda packed: Loss(-answer_logprobs(model, packed)[0].sum()),
        config, checkpoint=context.checkpoint(), progress=context.progress,
    )
    write_curve(context.output / "curve.jsonl", curve)
    save(
        model, tokenizer, context.output / "model",
        trunk=context.name(trunk_of(folder)),
    )
    return Finetuned(
        parameters=parameters(model),
        demonstrations=len(set(fitted.lines)),
        dropped=fitted.dropped,
        truncated=fitted.truncated,
        answer_tokens_seen=int(curve[-1]["seen"]),
        heldout_loss_before=before,
        heldout_loss=heldout_loss(model, heldout.rows, config.at_once),
    )


@torch.no_grad()
def heldout_loss(model: Any, rows: Sequence[TokenizedConversation], batch: int) -> float:
    """Mean −log p over the answers' tokens, in nats."""
    nats = tokens = 0.0
    for group in distributed.shard(distributed.micro_batches((row.length for row in rows), batch)):
        packed = _packed([rows[i] for i in group], model.device)
        with autocast():
            nats -= float(answer_logprobs(model, packed)[0].sum())
        tokens += len(packed.predictions.targets)
    nats, tokens = distributed.all_reduce([nats, tokens])
    return nats / tokens


def _packed(rows: Sequence[TokenizedConversation], device: torch.device | str) -> AnswerPack:
    return pack_answers([(row.prompt, [row.answer]) for row in rows], device, [row.learnt for row in rows])


def _plan(rows: Sequence[TokenizedConversation], config: Finetuning, seed: int) -> list[list[int]]:
    """The rows of every step; a fractional epoch takes the first part of its order."""
    plan: list[list[int]] = []
    whole, part = divmod(config.epochs, 1)
    for epoch in range(int(whole) + (part > 0)):
        order = shuffled(len(rows), epoch, seed)
        if epoch == int(whole):
            order = order[: max(1, round(part * len(rows)))]
        plan += [[order[i] for i in group] for group in fill((rows[i].length for i in order), config.batch_tokens)]
    return plan
