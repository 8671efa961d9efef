"""Group relative policy optimisation: a policy improved against a reward, near a reference.

For each prompt G answers are sampled from the current policy and scored; an answer's advantage is its reward
normalised over its group. The loss of a token is the clipped surrogate plus β times the KL penalty, and the
step's loss is the mean over all tokens of all answers, so that long answers do not count for less than their
length (Shao et al. 2024; the mean over tokens as in DAPO, Yu et al. 2025). Answers cut at the limit have no end
to be scored; their tokens are left out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig

from triptych.data.files import read_prompts
from triptych.engine import attention
from triptych.engine.curve import write_curve
from triptych.engine.forward import AnswerPack, answer_logprobs
from triptych.engine.generation import Sampling
from triptych.engine.models import load_policy, load_tokenizer, save
from triptych.engine.packing import fill
from triptych.engine.rollout import Policy, divergence, pack_rollouts
from triptych.engine.scoring import Scorer, scored
from triptych.engine.training import Loss, Optimization, Step, shuffled, train
from triptych.improve.advantages import group_normalised
from triptych.improve.losses import clipped_surrogate, kl_penalty
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Conversation, Prompt, Rollout


class Grpo(Optimization):
    """Improvement by GRPO.

    Attributes:
        steps: updates in a round.
        prompts_per_step: asked before each update.
        group: answers to each prompt.
        kl: β, what a nat of distance from the round's champion costs, in normalised rewards.
        ratio_clip: ε of the surrogate.
        max_tokens: an answer is cut there.
        micro_batch: tokens computed at once; only memory and speed depend on it.
        watch_every: steps between two measurements on the validation prompts, for the report's curves.
        watch_prompts: how many of them.
    """

    method: Literal["grpo"] = "grpo"
    steps: int = Field(default=40, ge=1)
    prompts_per_step: int = Field(default=32, ge=1)
    group: int = Field(default=8, ge=2)
    kl: float = Field(default=0.04, ge=0)
    ratio_clip: float = Field(default=0.2, gt=0)
    max_tokens: int = Field(default=96, ge=1)
    micro_batch: int = Field(default=4096, ge=64)
    watch_every: int = Field(default=10, ge=1)
    watch_prompts: int = Field(default=96, ge=8)
    learning_rate: float = Field(default=1e-6, gt=0)
    decay: Literal["cosine", "linear", "constant"] = "constant"


@dataclass(slots=True)
class _Batch:
    """Packed answers with what the loss needs for each of their tokens: `[N]` each."""

    packed: AnswerPack
    advantages: Tensor
    reference: Tensor
    sampler: Tensor
    counted: Tensor


def improve(
    desk: Desk, config: Grpo, champion: Path, data: Path, reward: Scorer, judge: Scorer | None, round: int = 1
) -> Metrics:
    """Improves the champion against the reward; the champion is also the reference.

    The judge only measures, on `data/prompts_validation.jsonl`; its scores reach neither the loss nor a choice.
    """
    folder = champion / "model"
    tokenizer = load_tokenizer(folder)
    model: Any = load_policy(folder, attention=attention.NAME)
    policy, reference = Policy(model, tokenizer), Policy.open(folder)
    asked = read_prompts(data / "prompts_improve.jsonl")
    lines = {prompt.key: line for line, prompt in enumerate(asked, start=1)}
    prompts = policy.fitting(asked, config.max_tokens, desk.progress)
    validation = policy.fitting(
        read_prompts(data / "prompts_validation.jsonl")[: config.watch_prompts], config.max_tokens, desk.progress
    )
    plan = _plan(len(prompts), config, desk.seed * 1000 + round)

    def prepare(step: int) -> Step[_Batch]:
        sampling = Sampling(config.max_tokens, seed=(desk.seed * 1000 + round) * 100_000 + step)
        groups = policy.write([prompts[i] for i in plan[step]], sampling, n=config.group)
        found = scored(reward, [Conversation(rollout.prompt, rollout.answer) for group in groups for rollout in group])
        rewards = torch.tensor(found.totals).view(len(groups), -1)
        drawn = _step(policy, reference, groups, rewards, config)
        drawn.numbers |= found.numbers([rollout.prompt.task for group in groups for rollout in group])
        drawn.rows = [lines[prompts[i].key] for i in plan[step]]
        return drawn

    def loss(batch: _Batch) -> Loss:
        logprobs, entropy = answer_logprobs(model, batch.packed, with_entropy=True)
        assert entropy is not None
        # One update for each sampling: π_old is the policy itself, and the ratio carries only the gradient.
        epsilon = config.ratio_clip
        surrogate = clipped_surrogate(logprobs, logprobs.detach(), batch.advantages, epsilon, epsilon)
        losses = surrogate + config.kl * kl_penalty(logprobs, batch.reference)
        counted = batch.counted
        return Loss((losses * counted).sum(), {
            "entropy": (entropy * counted).sum(),
            "sampler_mismatch": ((logprobs.detach() - batch.sampler).abs() * counted).sum(),
        })

    def watch() -> dict[str, float]:
        return _measured(policy, reference, reward, judge, validation, config, desk.seed)

    def after(step: int, row: dict[str, float]) -> None:
        if (step + 1) % config.watch_every == 0 or step + 1 == config.steps:
            row |= watch()

    start = watch()  # policy and reference are still one
    curve = train(
        model, config.steps, prepare, loss, config,
        checkpoint=desk.checkpoint(), progress=desk.progress, unit="answer tokens", after=after,
    )
    write_curve(desk.output / "curve.jsonl", [{"step": 0, **start}, *curve])
    save(model, tokenizer, desk.output / "model", GenerationConfig(do_sample=True, temperature=1.0))
    answers = config.steps * config.prompts_per_step * config.group
    return {"method": config.method, "steps": config.steps, "answers": answers}


def _plan(count: int, config: Grpo, seed: int) -> list[list[int]]:
    """The prompts of every step, pass after pass over all of them."""
    order: list[int] = []
    epoch = 0
    while len(order) < config.steps * config.prompts_per_step:
        order += shuffled(count, epoch, seed)
        epoch += 1
    size = config.prompts_per_step
    return [order[step * size : (step + 1) * size] for step in range(config.steps)]


def _step(
    policy: Policy, reference: Policy, groups: Sequence[Sequence[Rollout]], rewards: Tensor, config: Grpo
) -> Step[_Batch]:
    """An update's batches, and what is known of its answers."""
    advantages = group_normalised(rewards)
    far = reference.logprobs(groups, config.micro_batch)
    sizes = [len(group[0].prompt_tokens) + sum(len(rollout.tokens) for rollout in group) for group in groups]
    batches = []
    for members in fill(sizes, config.micro_batch):
        rollouts = [rollout for i in members for rollout in groups[i]]
        packed = pack_rollouts([groups[i] for i in members])
        rows = packed.predictions.rows
        finished = torch.tensor([float(rollout.finished) for rollout in rollouts])
        batches.append(_Batch(
            packed,
            advantages=advantages[members].flatten()[rows],
            reference=torch.cat([far[i * config.group + k] for i in members for k in range(config.group)]),
            sampler=torch.tensor([value for rollout in rollouts for value in rollout.logprobs]),
            counted=finished[rows],
        ))
    answers = [rollout for group in groups for rollout in group]
    distance = sum(float(torch.tensor(r.logprobs).sum() - f.sum()) for r, f in zip(answers, far, strict=True))
    sampled = torch.cat([batch.sampler for batch in batches])
    fault = None if torch.isfinite(rewards).all() else "reward"
    if fault is None and not torch.isfinite(sampled).all():
        fault = "sampler's log-probability"
    weight = max(1.0, sum(float(batch.counted.sum()) for batch in batches))
    return Step(batches, weight, fault=fault, numbers={
        "reward": float(rewards.mean()),
        "reward_deviation": float(rewards.std(dim=1).mean()),
        "kl": distance / len(answers),
        "length": sum(len(rollout.tokens) for rollout in answers) / len(answers),
        "cut": sum(not rollout.finished for rollout in answers) / len(answers),
    })


def _measured(
    policy: Policy, reference: Policy, reward: Scorer, judge: Scorer | None, prompts: Sequence[Prompt],
    config: Grpo, seed: int,
) -> dict[str, float]:
    """Reward, judge, KL and length on the validation prompts, one answer each, always the same noise."""
    groups = policy.write(prompts, Sampling(config.max_tokens, seed=seed))
    conversations = [Conversation(group[0].prompt, group[0].answer) for group in groups]
    numbers = {
        "validation_reward": sum(reward.score(conversations)) / len(prompts),
        "validation_kl": divergence(policy, reference, groups),
        "validation_length": sum(len(group[0].tokens) for group in groups) / len(prompts),
    }
    if judge is not None:
        numbers["validation_judge"] = sum(judge.score(conversations)) / len(prompts)
    return numbers
