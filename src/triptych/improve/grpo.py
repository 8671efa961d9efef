"""Group relative policy optimisation: a policy improved against a reward, near a reference.

For each prompt G answers are sampled from the current policy and scored; an answer's advantage is its reward
normalised over its group. The loss of a token is the clipped surrogate plus β times the KL penalty, and the
step's loss is the mean over all tokens of all answers, so that long answers do not count for less than their
length (Shao et al. 2024; the mean over tokens as in DAPO, Yu et al. 2025). Answers cut at the limit have no end
to be scored; their tokens are left out of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from triptych.engine import ranks
from triptych.engine.forward import AnswerPack, Model, answer_logprobs
from triptych.engine.rollout import Policy, pack_rollouts
from triptych.engine.scoring import Scorer
from triptych.engine.training import Loss, Step
from triptych.improve.advantages import group_normalised
from triptych.improve.loop import Answers, Improvement, Loop
from triptych.improve.losses import clipped_surrogate, kl_penalty
from triptych.pipeline.stage import Desk, Metrics


class Grpo(Improvement):
    """Improvement by GRPO.

    Attributes:
        kl: β, what a nat of distance from the round's champion costs, in normalised rewards.
        ratio_clip: ε of the surrogate.
    """

    method: Literal["grpo"] = "grpo"
    kl: float = Field(default=0.04, ge=0)
    ratio_clip: float = Field(default=0.2, gt=0)


@dataclass(slots=True)
class Tokens:
    """Packed answers with what the loss needs for each of their tokens: `[N]` each."""

    packed: AnswerPack
    advantages: Tensor
    reference: Tensor
    sampler: Tensor
    counted: Tensor


def improve(
    desk: Desk, config: Grpo, champion: Path, data: Path, reward: Scorer, judge: Scorer | None, round: int = 1
) -> Metrics:
    """Improves the champion against the reward; the champion is also the reference."""
    loop = Loop(desk, config, champion, data, reward, judge, round)

    def prepare(number: int) -> Step[Tokens]:
        return step(loop.reference, loop.collect(loop.policy, number), config)

    loop.run(prepare, lambda tokens: loss(loop.model, tokens, config), unit="answer tokens")
    answers = config.steps * config.prompts_per_step * config.group
    return {"method": config.method, "steps": config.steps, "answers": answers}


def step(reference: Policy, scored: Answers, config: Grpo) -> Step[Tokens]:
    """An update's batches, and what is known of its answers."""
    groups = scored.groups
    advantages = group_normalised(scored.rewards)
    far = reference.logprobs(groups, config.micro_batch)
    sizes = [len(group[0].prompt_tokens) + sum(len(rollout.tokens) for rollout in group) for group in groups]
    batches = []
    for members in ranks.dealt(sizes, config.micro_batch):
        rollouts = [rollout for i in members for rollout in groups[i]]
        packed = pack_rollouts([groups[i] for i in members])
        rows = packed.predictions.rows
        finished = torch.tensor([float(rollout.finished) for rollout in rollouts])
        batches.append(Tokens(
            packed,
            advantages=advantages[members].flatten()[rows],
            reference=torch.cat([far[i * config.group + k] for i in members for k in range(config.group)]),
            sampler=torch.tensor([value for rollout in rollouts for value in rollout.logprobs]),
            counted=finished[rows],
        ))
    answers = [rollout for group in groups for rollout in group]
    distance = sum(float(torch.tensor(r.logprobs).sum() - f.sum()) for r, f in zip(answers, far, strict=True))
    fault = scored.fault
    if fault is None and not all(torch.isfinite(batch.sampler).all() for batch in batches):
        fault = "sampler's log-probability"
    weight = max(1.0, sum(float(batch.counted.sum()) for batch in batches))
    return Step(batches, weight, scored.numbers | {"kl": distance / len(answers)}, rows=scored.lines, fault=fault)


def loss(model: Model, tokens: Tokens, config: Grpo) -> Loss:
    """The surrogate and the penalty, summed over the tokens that count."""
    logprobs, entropy = answer_logprobs(model, tokens.packed, with_entropy=True)
    assert entropy is not None
    # One update for each sampling: π_old is the policy itself, and the ratio carries only the gradient.
    epsilon = config.ratio_clip
    surrogate = clipped_surrogate(logprobs, logprobs.detach(), tokens.advantages, epsilon, epsilon)
    losses = surrogate + config.kl * kl_penalty(logprobs, tokens.reference)
    counted = tokens.counted
    return Loss((losses * counted).sum(), {
        "entropy": (entropy * counted).sum(),
        "sampler_mismatch": ((logprobs.detach() - tokens.sampler).abs() * counted).sum(),
    })
