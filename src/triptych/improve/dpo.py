"""Direct preference optimisation: a policy improved on pairs of answers, without sampling from it.

A pair's loss compares how far policy and reference differ on the better answer and on the worse one; the
reference is the round's champion (Rafailov et al. 2023; IPO and RPO change the comparison, see losses). The pairs
are the best and the worst of what the champion writes, by the reward model, or the round's comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from triptych.data.folder import DataFolder, Split
from triptych.data.lengths import fit
from triptych.data.pairs import PairGroup, grouped
from triptych.engine import distributed
from triptych.engine.curve import Curve, Row
from triptych.engine.forward import AnswerPack, Model, answer_logprobs, by_answer, pack_answers
from triptych.engine.rollout import infer
from triptych.engine.scoring import Scorer
from triptych.engine.training import Loss, Step
from triptych.errors import TrainingError
from triptych.improve import losses
from triptych.improve.loop import Answers, Contrast, Loop, passes
from triptych.improve.method import Method
from triptych.records import Comparison, Conversation
from triptych.storage import Folder


class Dpo(Contrast):
    """Improvement on pairs.

    Attributes:
        loss: how a pair is learnt: "dpo", "ipo", or "rpo", which also looks at how much better the answer is.
        pairs: "sampled" from the champion in every step and scored, the best against the worst of a group; or the
            round's "comparisons", each prompt with all of its own (`group_size` and `max_tokens` then do not matter).
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

    @property
    def needs_comparisons(self) -> bool:
        """Where they are its pairs."""
        return self.pairs == "comparisons"

    @property
    def needs_reward(self) -> bool:
        """Where the pairs are sampled, and for RPO's gaps."""
        return self.pairs == "sampled" or self.loss == "rpo"

    @property
    def learnt_per_prompt(self) -> int:
        """The best and the worst."""
        return 2

    @model_validator(mode="after")
    def _reusable(self) -> Self:
        if self.pairs == "comparisons" and self.updates_per_rollout > 1:
            raise ValueError("updates_per_rollout is of samplings, and pairs: comparisons samples none; leave it 1")
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


class DpoMethod(Method[Dpo, Pairs]):
    """DPO over the loop; the champion is the author of sampled pairs.

    Comparisons are those in `feedback`, on which the reward model was trained, where there is one.
    """

    settings = Dpo
    unit = "pairs"
    heldout_numbers = ("accuracy", "margin")

    def __init__(self, loop: Loop, config: Dpo, feedback: Folder | None = None) -> None:
        super().__init__(loop, config, feedback)
        self._groups = self._grouped("train") if config.needs_comparisons else []
        self._plan = passes(len(self._groups), config, loop.seed) if self._groups else []

    def prepare(self, number: int) -> Step[Pairs]:
        """Pairs that are sampled, or the round's comparisons."""
        return self._sampled(number) if self.config.pairs == "sampled" else self._compared(number)

    def loss(self, batch: Pairs) -> Loss:
        """The loss of the pairs, summed."""
        return loss(self.loop.model, batch, self.config)

    def heldout(self) -> Row:
        """The mean loss of pairs that are held out, the share in which the better answer gained more, and by how much.

        The margin is β times the difference of the log-ratios: DPO's implicit rewards (TRL's `rewards/margins`).
        """
        return self.watched(self._heldout)

    @cached_property
    def _heldout(self) -> Step[Pairs]:
        return step(self.loop.reference.model, self._grouped("heldout"), self.config.at_once)

    def numbers(self, curve: Curve) -> dict[str, float]:
        """How many answers and pairs there were, and how many prompts were left out."""
        drawn = curve[:: self.config.updates_per_rollout]
        return {name: int(sum(row.get(name, 0) for row in drawn)) for name in ("answers", "pairs", "left_out")}

    def _sampled(self, number: int) -> Step[Pairs]:
        """Of what the champion writes; it does not change, and so the same pairs come again in a resumed run."""
        config, reference = self.config, self.loop.reference
        answers = self.loop.collect(reference, number)
        groups = best_and_worst(answers, config.cut_price)
        made = step(reference.model, groups, config.at_once)
        made.numbers |= answers.numbers | {
            "answers": answers.rewards.numel(), "left_out": len(answers.groups) - len(groups),
        }
        made.rows, made.fault = answers.lines, answers.fault
        return made

    def _compared(self, number: int) -> Step[Pairs]:
        """Of the round's comparisons, pass after pass."""
        drawn = [self._groups[i] for i in self._plan[number // self.config.updates_per_rollout]]
        made = step(self.loop.reference.model, drawn, self.config.at_once)
        made.rows = [line for group in drawn for line in group.lines]
        return made

    def _grouped(self, split: Split) -> list[PairGroup]:
        """The round's comparisons by their prompts; RPO takes their gaps from the reward model."""
        loop, config = self.loop, self.config
        assert self.feedback is not None, "the round's comparisons are an input of this stage"
        rows = DataFolder(self.feedback).comparisons(split).read_any()
        if config.loss == "rpo":
            assert loop.reward is not None, "RPO needs a reward"
            rows = _with_gaps(rows, loop.reward)
        fitted = fit(rows, loop.tokenizer, min(config.context, loop.policy.context or config.context), "drop")
        if fitted.dropped:
            loop.context.progress.say(f"comparisons: {fitted}")
        groups = grouped(fitted.rows, fitted.lines)
        if not groups and split == "train":
            raise TrainingError(
                f"no comparison is left to train on ({fitted}); raise improve.context or give more of them"
            )
        return groups


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


def _with_gaps(rows: Sequence[Comparison], scorer: Scorer) -> list[Comparison]:
    scores = scorer.score([Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)])
    return [
        replace(row, margin=chosen - rejected)
        for row, chosen, rejected in zip(rows, scores[0::2], scores[1::2], strict=True)
    ]


def step(reference: Model, groups: Sequence[PairGroup], micro_batch: int) -> Step[Pairs]:
    """An update's batches: each prompt with all of its answers, and what the reference gives them."""
    parts = [
        [groups[i] for i in members]
        for members in distributed.micro_batches((group.tokens for group in groups), micro_batch)
    ]
    packs = [pack_answers([(group.prompt, group.answers) for group in part], reference.device) for part in parts]
    far = infer(reference, lambda packed: by_answer(answer_logprobs(reference, packed)[0], packed), packs)
    batches = [_paired(part, packed, logprobs) for part, packed, logprobs in zip(parts, packs, far, strict=True)]
    count = sum(len(group.pairs) for group in groups)
    return Step(batches, weight=max(1, count), numbers={"pairs": count})


def _paired(groups: Sequence[PairGroup], packed: AnswerPack, far: Tensor) -> Pairs:
    pairs: list[tuple[int, int]] = []
    first = 0
    for group in groups:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in group.pairs]
        first += len(group.answers)
    chosen, rejected = torch.tensor(pairs, device=far.device).unbind(dim=1)
    gaps = [margin for group in groups for margin in group.margins if margin is not None]
    gap = torch.tensor(gaps, device=far.device) if len(gaps) == len(pairs) else None
    return Pairs(packed, far, chosen, rejected, gap)


def loss(model: Model, pairs: Pairs, config: Dpo) -> Loss:
    """The loss summed over the pairs, what became of their answers' likelihood, and the margin of implicit rewards."""
    logprobs = by_answer(answer_logprobs(model, pairs.packed)[0], pairs.packed)
    ratios = logprobs - pairs.reference
    chosen, rejected = ratios[pairs.chosen], ratios[pairs.rejected]
    if config.loss == "rpo":
        assert pairs.gap is not None, "RPO needs every pair's rewards"
        pair_losses = losses.rpo(chosen, rejected, pairs.gap, config.kl_coefficient, config.reward_scale)
    else:
        pair_losses = {"dpo": losses.dpo, "ipo": losses.ipo}[config.loss](chosen, rejected, config.kl_coefficient)
    if config.nll > 0:
        lengths = pairs.packed.lengths
        pair_losses = pair_losses - config.nll * (logprobs / lengths)[pairs.chosen]
    return Loss(pair_losses.sum(), {
        "accuracy": (chosen > rejected).float().sum(),
        "margin": config.kl_coefficient * (chosen - rejected).sum(),
        "chosen": chosen.sum(),
        "rejected": rejected.sum(),
    })
