"""Direct preference optimisation: a policy improved on pairs of answers, without sampling from it.

A pair's loss compares how far policy and reference differ on the better answer and on the worse one; the
reference is the round's champion (Rafailov et al. 2023; IPO and RPO change the comparison, see losses). The pairs
are the best and the worst of what the champion writes, by the reward model, or the round's comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from triptych.data.files import read_comparisons
from triptych.data.lengths import fit
from triptych.data.pairs import PairGroup, grouped
from triptych.engine import distributed
from triptych.engine.device import autocast
from triptych.engine.forward import AnswerPack, Model, answer_logprobs, pack_answers
from triptych.engine.scoring import Scorer
from triptych.engine.training import Loss, Step
from triptych.errors import TrainingError
from triptych.improve import losses
from triptych.improve.checkpoints import UNLIMITED, Limits
from triptych.improve.loop import Answers, Contrast, Loop, passes
from triptych.pipeline.stage import Metrics, StageContext
from triptych.records import Comparison, Conversation


class Dpo(Contrast):
    """Improvement on pairs.

    Attributes:
        loss: how a pair is learnt: "dpo", "ipo", or "rpo", which also looks at how much better the answer is.
        pairs: "sampled" from the champion in every step and scored, the best against the worst of a group; or the
            round's "comparisons", each prompt with all of its own (`group` and `max_tokens` then do not matter).
        kl_coefficient: β, what a nat of distance from the champion costs (IPO's τ).
        reward_scale: η, by which RPO multiplies the rewards, which are normalised; it is a choice of how far apart
            answers shall be, for differences of rewards are log-odds of few kinds and in units of their own.
        nll: what the chosen answer's mean −log p of a token adds to the loss (Pang et al. 2024).
        context: longest prompt with one answer in tokens, of comparisons; longer ones are left out.
    """

    method: Literal["dpo"] = "dpo"
    loss: Literal["dpo", "ipo", "rpo"] = "dpo"
    pairs: Literal["sampled", "comparisons"] = "sampled"
    kl_coefficient: float = Field(default=0.1, gt=0)
    reward_scale: float = Field(default=1.0, gt=0)
    nll: float = Field(default=0.0, ge=0)
    context: int = Field(default=512, ge=16)

    @model_validator(mode="after")
    def _reusable(self) -> Self:
        if self.pairs == "comparisons" and self.updates_per_rollout > 1:
            raise ValueError("reuse is of samplings, and pairs: comparisons samples none; leave it 1")
        return self


@dataclass(slots=True)
class Pairs:
    """Packed answers and the pairs among them.

    Attributes:
        reference: `[A]` the reference's log-probability of each answer.
        chosen, rejected: `[B]` each pair's answers.
        gap: `[B]` by how much the chosen answer's reward is larger, or None where that is not known of every pair.
    """

    packed: AnswerPack
    reference: Tensor
    chosen: Tensor
    rejected: Tensor
    gap: Tensor | None


def improve(
    context: StageContext, config: Dpo, champion: Path, data: Path, reward: Scorer, judge: Scorer | None,
    round: int = 1,
    limits: Limits = UNLIMITED, comparisons: Path | None = None,
) -> Metrics:
    """Improves the champion on pairs; the champion is also the reference, and the author of sampled pairs.

    The comparisons are those in `comparisons/reward.jsonl`, on which the reward model was trained.
    """
    loop = Loop(context, config, champion, data, reward, judge, round, limits)
    if config.pairs == "sampled":
        prepare = _sampled(loop, config)
    else:
        assert comparisons is not None, "the round's comparisons are an input of this stage"
        prepare = _compared(loop, config, comparisons)
    curve = loop.run(prepare, lambda pairs: loss(loop.model, pairs, config), unit="pairs")
    drawn = curve[:: config.updates_per_rollout]
    totals = {name: int(sum(row.get(name, 0) for row in drawn)) for name in ("answers", "pairs", "left_out")}
    return loop.metrics | totals


Prepare = Callable[[int], Step[Pairs]]
"""A step from its number alone."""


def _sampled(loop: Loop, config: Dpo) -> Prepare:
    """Pairs of what the champion writes; it does not change, and so the same ones come again in a resumed run."""

    def prepare(number: int) -> Step[Pairs]:
        answers = loop.collect(loop.reference, number)
        groups = best_and_worst(answers, config.cut_price)
        made = step(loop.reference.model, groups, config.micro_batch)
        made.numbers |= answers.numbers | {
            "answers": answers.rewards.numel(), "left_out": len(answers.groups) - len(groups),
        }
        made.rows, made.fault = answers.lines, answers.fault
        return made

    return prepare


def best_and_worst(answers: Answers, cut_price: float | None = None) -> list[PairGroup]:
    """Of each group the finished answers with the highest and the lowest reward, and the best beside one that was cut.

    A group whose best and worst have the same reward teaches nothing, and one without a finished answer has no best.

    Args:
        cut_price: how far below the worst an answer stands that was cut; None where those do not count.
    """
    groups = []
    for group, rewards in zip(answers.groups, answers.rewards.tolist(), strict=True):
        scored = [(score, rollout.tokens) for score, rollout in zip(rewards, group, strict=True) if rollout.finished]
        if not scored:
            continue
        (high, best), (low, worst) = max(scored, key=_score), min(scored, key=_score)
        rejected = [(worst, high - low)] if high > low and best != worst else []
        cut = next((rollout.tokens for rollout in group if not rollout.finished), None)
        if cut is not None and cut_price is not None:
            rejected.append((cut, high - low + cut_price))
        if rejected:
            groups.append(PairGroup(
                group[0].prompt_tokens, [best, *(tokens for tokens, _ in rejected)],
                [(0, place) for place in range(1, len(rejected) + 1)], [gap for _, gap in rejected],
            ))
    return groups


def _score(scored: tuple[float, tuple[int, ...]]) -> float:
    return scored[0]


def _compared(loop: Loop, config: Dpo, comparisons: Path) -> Prepare:
    """Pairs from the round's comparisons, pass after pass; RPO takes their gaps from the reward model."""
    rows = read_comparisons(comparisons / "reward.jsonl")
    if config.loss == "rpo":
        rows = _with_gaps(rows, loop.reward)
    known = getattr(loop.model.config.get_text_config(), "max_position_embeddings", None)
    fitted = fit(rows, loop.tokenizer, min(config.context, known or config.context), "drop")
    if fitted.dropped:
        loop.context.progress.say(f"comparisons: {fitted}")
    groups = grouped(fitted.rows, fitted.lines)
    if not groups:
        raise TrainingError(f"no comparison is left to train on ({fitted}); raise improve.context or give more of them")
    plan = passes(len(groups), config, loop.seed)

    def prepare(number: int) -> Step[Pairs]:
        drawn = [groups[i] for i in plan[number]]
        made = step(loop.reference.model, drawn, config.micro_batch)
        made.rows = [line for group in drawn for line in group.lines]
        return made

    return prepare


def _with_gaps(rows: Sequence[Comparison], scorer: Scorer) -> list[Comparison]:
    scores = scorer.score([Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)])
    return [
        replace(row, margin=chosen - rejected)
        for row, chosen, rejected in zip(rows, scores[0::2], scores[1::2], strict=True)
    ]


def step(reference: Model, groups: Sequence[PairGroup], micro_batch: int) -> Step[Pairs]:
    """An update's batches: each prompt with all of its answers, and what the reference gives them."""
    batches = [
        _packed(reference, [groups[i] for i in members])
        for members in distributed.micro_batches((group.tokens for group in groups), micro_batch)
    ]
    count = sum(len(group.pairs) for group in groups)
    return Step(batches, weight=max(1, count), numbers={"pairs": count})


def _packed(reference: Model, groups: Sequence[PairGroup]) -> Pairs:
    packed = pack_answers([(group.prompt, group.answers) for group in groups])
    with torch.no_grad(), autocast():
        far = by_answer(answer_logprobs(reference, packed)[0], packed)
    pairs: list[tuple[int, int]] = []
    first = 0
    for group in groups:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in group.pairs]
        first += len(group.answers)
    chosen, rejected = torch.tensor(pairs).unbind(dim=1)
    gaps = [margin for group in groups for margin in group.margins if margin is not None]
    return Pairs(packed, far, chosen, rejected, torch.tensor(gaps) if len(gaps) == len(pairs) else None)


def by_answer(logprobs: Tensor, packed: AnswerPack) -> Tensor:
    """`[A]` log-probabilities of whole answers from those of their tokens, `[N]`."""
    return logprobs.new_zeros(packed.answers).index_add(0, packed.predictions.rows, logprobs)


def loss(model: Model, pairs: Pairs, config: Dpo) -> Loss:
    """The loss summed over the pairs, and what became of their answers' likelihood."""
    logprobs = by_answer(answer_logprobs(model, pairs.packed)[0], pairs.packed)
    ratios = logprobs - pairs.reference
    chosen, rejected = ratios[pairs.chosen], ratios[pairs.rejected]
    if config.loss == "rpo":
        assert pairs.gap is not None, "RPO needs every pair's rewards"
        each = losses.rpo(chosen, rejected, pairs.gap, config.kl_coefficient, config.reward_scale)
    else:
        each = {"dpo": losses.dpo, "ipo": losses.ipo}[config.loss](chosen, rejected, config.kl_coefficient)
    if config.nll > 0:
        lengths = torch.bincount(pairs.packed.predictions.rows, minlength=pairs.packed.answers)
        each = each - config.nll * (logprobs / lengths)[pairs.chosen]
    return Loss(each.sum(), {
        "accuracy": (chosen > rejected).float().sum(),
        "chosen": chosen.sum(),
        "rejected": rejected.sum(),
    })
