"""What GRPO, GSPO, RLOO and PPO share: a step's answers come from the policy as it is, and a token has an advantage.

The loss of a token is the clipped surrogate plus β times the KL penalty; or the penalty is taken off the rewards
before they become advantages. Answers cut at the limit have no end to be scored: they get less than any other of their
group, or are left out of the loss.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from triptych.engine import distributed, forward
from triptych.engine.curve import Row
from triptych.engine.forward import AnswerPack, Model, answer_logprobs
from triptych.engine.rollout import Policy, pack_rollouts
from triptych.engine.training import Loss, Step
from triptych.improve.advantages import centred
from triptych.improve.loop import Answers, Contrast
from triptych.improve.losses import clipped_importance, clipped_surrogate, kl_penalty
from triptych.improve.method import Method

GAIN = 0.1
"""K_β of Ziegler et al. (2019): how fast β follows the distance."""


class OnPolicy(Contrast):
    """Improvement on what the policy itself writes.

    Attributes:
        downsample: learns from so many of a prompt's answers, those whose rewards vary most, and from no prompt whose
            answers all got the same (Xu et al. 2025, *Not All Rollouts are Useful*): writing an answer costs less than
            learning it. None learns all.
        cut_reward: what `cut_price` is taken off for an answer that was cut: the "lowest" reward of its group's
            finished ones, for a reward that must see the end; or its "own", where code checks the answer as it stands.
        kl_coefficient: β, what a nat of distance from the round's champion costs, in normalised rewards.
        kl_placement: the penalty stands in the "loss", token by token, or is taken off the "reward" of an answer.
        kl_estimator: of the penalty in the loss: "k3_ratio" has the gradient of KL(policy ‖ champion), "k3" (Shao et
            al. 2024) that of KL(champion ‖ policy).
        kl_target: the distance in nats per answer towards which β is steered (Ziegler et al. 2019, *Fine-Tuning
            Language Models from Human Preferences*, section 2.2); by default β stays.
        objective: "ppo" clips the surrogate, so that a token that went too far has no gradient; "cispo" (MiniMax 2025)
            clips the ratio by which a token's log-probability counts, so that every token has one.
        ratio_clip: ε of the objective; it acts where a sampling is used again (`updates_per_rollout`).
        clip_higher: ε above 1, where it is another one (Yu et al. 2025, DAPO).
        importance_cap: a token counts by its probability in training over that in sampling, up to this, where the two
            differ by rounding or by another engine (Yao et al. 2025, truncated importance sampling); None for not.
    """

    downsample: int | None = Field(default=None, ge=2)
    cut_reward: Literal["lowest", "own"] = "lowest"
    kl_coefficient: float = Field(default=0.04, ge=0)
    kl_placement: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k3_ratio", "k3"] = "k3_ratio"
    kl_target: float | None = Field(default=None, gt=0)
    objective: Literal["ppo", "cispo"] = "ppo"
    ratio_clip: float = Field(default=0.2, gt=0)
    clip_higher: float | None = Field(default=None, gt=0)
    importance_cap: float | None = Field(default=2.0, ge=1)

    @model_validator(mode="after")
    def _steerable(self) -> Self:
        if self.kl_target is not None and self.kl_coefficient == 0:
            raise ValueError("kl_target steers kl by factors, and 0 stays 0: give kl a value above it")
        return self

    @model_validator(mode="after")
    def _some_of_them(self) -> Self:
        if self.downsample is not None and self.downsample >= self.group_size:
            raise ValueError(f"downsample is {self.downsample} and group_size {self.group_size}: give it a value below")
        return self

    @property
    def learnt_per_prompt(self) -> int:
        """How many of the answers to a prompt are learnt from."""
        return self.downsample or self.group_size

    def learnt(self, answers: Answers) -> Tensor:
        """`[P, G]` the rewards that are learnt from."""
        if self.cut_price is None or self.cut_reward == "lowest":
            return super().learnt(answers)
        return answers.rewards - self.cut_price * (~answers.finished)


@dataclass(slots=True)
class Tokens:
    """Packed answers with what the loss needs for each of their tokens: `[N]` each.

    Attributes:
        kl: β of this step in the loss.
        scale: of the losses, where they are not to be averaged over the tokens that count.
    """

    packed: AnswerPack
    advantages: Tensor
    reference: Tensor
    sampler: Tensor
    counted: Tensor
    kl: float
    scale: float = 1.0


@dataclass(slots=True)
class Measured:
    """A step's answers beside the reference.

    Attributes:
        far: the reference's log-probability of each token, for each answer in order.
        distances: `[P, G]` each answer's Σ_t log π(t) − log π_ref(t), in nats.
        beta: what a nat costs in this step.
    """

    scored: Answers
    far: list[Tensor]
    distances: Tensor
    beta: float

    @property
    def numbers(self) -> dict[str, float]:
        """What the curve shows."""
        return self.scored.numbers | {"kl": float(self.distances.mean()), "beta": self.beta}


OnPolicySettings = TypeVar("OnPolicySettings", bound=OnPolicy)
AnyTokens = TypeVar("AnyTokens", bound=Tokens)


class OnPolicyMethod(Method[OnPolicySettings, AnyTokens]):
    """A method that is known by how it makes a step of what the policy wrote."""

    def prepare(self, number: int) -> Step[AnyTokens]:
        """An update's batches, of what the policy writes."""
        return self.step(downsampled(self.loop.collect(self.loop.policy, number), self.config))

    @abstractmethod
    def step(self, scored: Answers) -> Step[AnyTokens]:
        """An update's batches."""

    def loss(self, batch: AnyTokens) -> Loss:
        """The surrogate and the penalty, summed over the tokens that count."""
        return loss(self.loop.model, batch, self.config)


def downsampled(scored: Answers, config: OnPolicy) -> Answers:
    """Of each group the answers whose rewards vary most; all, where the settings do not say how many.

    The subset of m with the largest variance is the k highest and the m − k lowest for some k (Xu et al. 2025, theorem
    1). Groups whose rewards are all equal teach nothing and are left out, unless all are. Where a reward is not finite
    nothing is left out, so that the step is skipped.
    """
    if config.downsample is None or scored.fault:
        return scored
    rewards = config.learnt(scored)
    spread = rewards.amax(dim=1) > rewards.amin(dim=1)
    taken = [i for i in range(len(rewards)) if bool(spread[i]) or not bool(spread.any())]
    chosen = {i: most_varied(rewards[i], config.downsample) for i in taken}
    return Answers(
        [[scored.groups[i][k] for k in chosen[i]] for i in taken],
        torch.stack([scored.rewards[i, chosen[i]] for i in taken]),
        lines=[scored.lines[i] for i in taken] if scored.lines else (),
        first=scored.first or scored,
        alike=scored.alike,
    )


def most_varied(rewards: Tensor, count: int) -> list[int]:
    """Which so many of the rewards `[G]` have the largest variance, in their order."""
    order = rewards.argsort(stable=True)
    subsets = [torch.cat([order[: count - high], order[len(order) - high :]]) for high in range(count + 1)]
    chosen: list[int] = max(subsets, key=lambda subset: float(rewards[subset].var(correction=0))).tolist()
    return sorted(chosen)


def measured(reference: Policy, scored: Answers, config: OnPolicy, curve: Sequence[Row]) -> Measured:
    """A step's answers beside the reference, with the β that follows from the curve so far."""
    far = reference.logprobs(scored.groups, config.at_once)
    answers = [rollout for group in scored.groups for rollout in group]
    distances = [
        float(torch.tensor(rollout.logprobs, device=theirs.device).sum() - theirs.sum())
        for rollout, theirs in zip(answers, far, strict=True)
    ]
    nats = torch.tensor(distances, device=scored.rewards.device).view(scored.rewards.shape)
    return Measured(scored, far, nats, steered(config, curve))


def steered(config: OnPolicy, curve: Sequence[Row]) -> float:
    """β ← β·(1 + K·clip(KL / target − 1, −0.2, 0.2)) after each step."""
    last = next((row for row in reversed(curve) if math.isfinite(row.get("kl", math.nan)) and "beta" in row), None)
    if last is None or config.kl_target is None:
        return config.kl_coefficient
    error = max(-0.2, min(0.2, last["kl"] / config.kl_target - 1))
    return float(last["beta"] * (1 + GAIN * error))


def paid(measurements: Measured, config: OnPolicy) -> Tensor:
    """`[P, G]` β times how much farther an answer is than its group, where the penalty stands in the reward; else 0."""
    return (measurements.beta if config.kl_placement == "reward" else 0.0) * centred(measurements.distances)


def step(
    measurements: Measured, advantages: Tensor, config: OnPolicy, divisor: float | None = None
) -> Step[Tokens]:
    """An update's batches.

    Args:
        advantages: `[P, G]`.
        divisor: of the summed losses; by default the number of tokens that count, as of all that is recorded.
    """
    batches = []
    for members in dealt(measurements, config):
        packed = pack_rollouts([measurements.scored.groups[i] for i in members], advantages.device)
        token_advantages = advantages[members].flatten()[packed.predictions.rows]
        batches.append(tokens_of(measurements, members, packed, config, token_advantages))
    return prepared(measurements, batches, divisor)


def tokens_of(
    measurements: Measured, members: Sequence[int], packed: AnswerPack, config: OnPolicy, advantages: Tensor
) -> Tokens:
    """The tokens of some groups, with their advantages `[N]`."""
    rollouts = [rollout for i in members for rollout in measurements.scored.groups[i]]
    device, size = advantages.device, measurements.scored.rewards.shape[1]
    return Tokens(
        packed, advantages,
        reference=torch.cat([
            measurements.far[i * size + k] for i in members for k in range(size)
        ]),
        sampler=torch.tensor([value for rollout in rollouts for value in rollout.logprobs], device=device),
        counted=torch.tensor([
            float(rollout.finished or config.cut_price is not None) for rollout in rollouts
        ], device=device)[packed.predictions.rows],
        kl=measurements.beta if config.kl_placement == "loss" else 0.0,
    )


def dealt(measurements: Measured, config: OnPolicy) -> list[list[int]]:
    """The groups of each micro-batch."""
    groups = measurements.scored.groups
    sizes = [len(group[0].prompt_tokens) + sum(len(rollout.tokens) for rollout in group) for group in groups]
    return distributed.micro_batches(sizes, config.at_once)


def prepared(measurements: Measured, batches: Sequence[Tokens], divisor: float | None = None) -> Step[Tokens]:
    """The step of these batches, with its numbers and what is wrong with it."""
    fault = measurements.scored.fault
    if fault is None and not all(torch.isfinite(batch.sampler).all() for batch in batches):
        fault = "sampler's log-probability"
    counted = max(1.0, sum(float(batch.counted.sum()) for batch in batches))
    if divisor is not None:
        for batch in batches:
            batch.scale = counted / divisor
    return Step(batches, counted, measurements.numbers, rows=measurements.scored.lines, fault=fault)


def loss(model: Model, tokens: Tokens, config: OnPolicy) -> Loss:
    """The surrogate and the penalty, summed over the tokens that count."""
    logprobs, entropy = answer_logprobs(model, tokens.packed, with_entropy=True)
    assert entropy is not None
    return surrogate(logprobs, entropy, tokens, config)


def surrogate(
    logprobs: Tensor, entropy: Tensor, tokens: Tokens, config: OnPolicy, *, by_answer: bool = False
) -> Loss:
    """The same from the tokens' log-probabilities and entropies.

    Args:
        by_answer: a ratio is that of a whole answer, to the power of one over its length, and so clipped; each answer
            counts as its tokens' mean.
    """
    # With one update for each sampling π_old is the policy itself, and the ratio carries only the gradient. With
    # several it is the sampler, and the ratio holds all that they differ by, so that there is nothing to correct.
    now = logprobs.detach()
    old = now if config.updates_per_rollout == 1 else tokens.sampler
    level = (lambda values: mean_of_answer(values, tokens.packed)) if by_answer else _of_token
    high = config.clip_higher or config.ratio_clip
    if config.objective == "ppo":
        losses = clipped_surrogate(level(logprobs), level(old), tokens.advantages, config.ratio_clip, high)
    else:
        losses = clipped_importance(level(logprobs), level(old), tokens.advantages, high)
    weighed = config.kl_estimator == "k3_ratio"
    losses = losses + tokens.kl * kl_penalty(logprobs, tokens.reference, old if weighed else None)
    if config.importance_cap is not None:
        losses = losses * torch.exp(level(old - tokens.sampler)).clamp(max=config.importance_cap)
    counted = tokens.counted
    weights = counted / tokens.packed.lengths[tokens.packed.predictions.rows] if by_answer else counted
    numbers = {
        "entropy": (entropy * counted).sum(),
        "sampler_mismatch": ((now - tokens.sampler).abs() * counted).sum(),
    }
    if config.updates_per_rollout > 1:
        ratios = torch.exp(level(now - tokens.sampler))
        outside = ratios > 1 + high
        if config.objective == "ppo":
            outside = outside | (ratios < 1 - config.ratio_clip)
        numbers["clipped"] = (outside * counted).sum()
    return Loss(tokens.scale * (losses * weights).sum(), numbers)


def _of_token(values: Tensor) -> Tensor:
    return values


def mean_of_answer(values: Tensor, packed: AnswerPack) -> Tensor:
    """`[N]` each token's answer's mean of the tokens' values, `[N]`."""
    return (forward.by_answer(values, packed) / packed.lengths)[packed.predictions.rows]
