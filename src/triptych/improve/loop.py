"""The loop that every method shares: prompts are drawn, answered and scored; the policy is updated and measured.

A method adds its own two steps between: how scored answers become batches, and the loss of a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig

from triptych.data.files import read_prompts
from triptych.engine import attention, ranks
from triptych.engine.adapters import adapt, learnt, merged
from triptych.engine.checkpoint import write_tensors
from triptych.engine.curve import write_curve
from triptych.engine.generation import Sampling
from triptych.engine.models import load_policy, load_tokenizer, save
from triptych.engine.rollout import Policy, divergence
from triptych.engine.scoring import Scorer, Scores, scored
from triptych.engine.training import Curve, Loss, Optimization, Row, Step, shuffled, train
from triptych.engine.vllm import VllmSampler
from triptych.improve.overoptimisation import Overoptimisation, fitted
from triptych.pipeline.stage import Desk
from triptych.records import Conversation, Prompt, Rollout

Batch = TypeVar("Batch")

LOST = 0.02
"""A smaller fall of the judge's score is noise."""
COLLAPSED = 0.3
"""The share of its first entropy below which a policy hardly varies."""
MISMATCH = 0.1
"""Nats a token by which sampler and trainer may differ."""
LONGER = 1.5
"""How many times as long answers may become without a word."""


class Improvement(Optimization):
    """What every method can be told.

    Attributes:
        steps: updates in a round.
        prompts_per_step: asked for each update.
        group: answers to each prompt.
        reuse: updates that each sampling is used for.
        resample: how often a prompt is asked again whose answers all got the same reward, and so teach nothing.
        max_tokens: an answer is cut there.
        micro_batch: tokens computed at once; only memory and speed depend on it.
        watch_every: steps between two measurements on the validation prompts, for the report's curves.
        watch_prompts: how many of them.
        keep: which of the watched policies is the candidate: the "best" by the judge on the validation prompts (the
            gate has prompts of its own), or the "last". Without a judge it is the last.
        sampler: who writes the answers: the engine's own slots, or vLLM, where that is installed.
    """

    steps: int = Field(default=40, ge=1)
    prompts_per_step: int = Field(default=32, ge=1)
    group: int = Field(default=8, ge=2)
    reuse: int = Field(default=1, ge=1)
    resample: int = Field(default=1, ge=0)
    max_tokens: int = Field(default=96, ge=1)
    micro_batch: int = Field(default=4096, ge=64)
    watch_every: int = Field(default=10, ge=1)
    watch_prompts: int = Field(default=96, ge=8)
    keep: Literal["best", "last"] = "best"
    sampler: Literal["slots", "vllm"] = "slots"
    learning_rate: float = Field(default=1e-6, gt=0)
    decay: Literal["cosine", "linear", "constant"] = "constant"

    @property
    def samplings(self) -> int:
        """How often prompts are answered in a round."""
        return math.ceil(self.steps / self.reuse)

    @property
    def answers(self) -> int:
        """How many answers a round is learnt from, but for those that were sampled again."""
        return self.samplings * self.prompts_per_step * self.group


@dataclass(frozen=True, slots=True)
class Answers:
    """G answers to each of P prompts, scored.

    Attributes:
        groups: the answers to one prompt together.
        rewards: `[P, G]`.
        scores: the rewards again, in order, with what they are made of.
        lines: where the prompts stand in the data, counted from 1.
    """

    groups: Sequence[Sequence[Rollout]]
    rewards: Tensor
    scores: Scores | None = None
    lines: Sequence[int] = ()

    def replaced(self, places: Sequence[int], others: Answers) -> Answers:
        """The same with other groups in these places."""
        groups, rewards = list(self.groups), self.rewards.clone()
        for place, group, row in zip(places, others.groups, others.rewards, strict=True):
            groups[place], rewards[place] = group, row
        size = rewards.shape[1]
        answers = [place * size + member for place in places for member in range(size)]
        scores = self.scores and others.scores and self.scores.replaced(answers, others.scores)
        return Answers(groups, rewards, scores or None, self.lines)

    @property
    def fault(self) -> str | None:
        """What of them is not finite, so that nothing may be learnt from them."""
        return None if torch.isfinite(self.rewards).all() else "reward"

    @property
    def numbers(self) -> dict[str, float]:
        """What a curve shows of them."""
        answers = [rollout for group in self.groups for rollout in group]
        parts = self.scores.numbers([rollout.prompt.task for rollout in answers]) if self.scores else {}
        return parts | {
            "reward": float(self.rewards.mean()),
            "reward_deviation": float(self.rewards.std(dim=1).mean()),
            "length": sum(len(rollout.tokens) for rollout in answers) / len(answers),
            "cut": sum(not rollout.finished for rollout in answers) / len(answers),
            "alike": float((self.rewards == self.rewards[:, :1]).all(dim=1).float().mean()),
        }


class Loop:
    """A round of improvement: the champion in training, and itself unchanged as the reference.

    The judge only measures, on `data/prompts_validation.jsonl`; its scores reach no loss. They choose which of the
    policies on the way is the candidate, which must then prove itself on the gate's prompts.

    Attributes:
        policy, reference: the champion twice; only the policy is updated.
        seed: of everything that is drawn in this round.
        curve: the rows of the steps so far, those of an earlier attempt too.
    """

    def __init__(
        self, desk: Desk, config: Improvement, champion: Path, data: Path, reward: Scorer, judge: Scorer | None,
        round: int,
    ) -> None:
        folder = champion / "model"
        self.desk, self.config, self.data = desk, config, data
        self.reward, self.judge = reward, judge
        self.seed = desk.seed * 1000 + round
        self.curve: Curve = []
        self.tokenizer = load_tokenizer(folder)
        self.load = partial(load_policy, folder, attention=attention.NAME)
        self.model: Any = self.load()
        adapt(self.model, config.lora, self.seed)
        sampler = cache(partial(VllmSampler, folder)) if config.sampler == "vllm" else None  # one for both
        self.policy = Policy(self.model, self.tokenizer, sampler)
        self.reference = Policy(self.load(), self.tokenizer, sampler)

    @cached_property
    def lines(self) -> dict[str, int]:
        """The line of each prompt in the data, by its key."""
        return {prompt.key: line for line, prompt in enumerate(self._asked, start=1)}

    @cached_property
    def _asked(self) -> list[Prompt]:
        return read_prompts(self.data / "prompts_improve.jsonl")

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The round's prompts, those that leave room for an answer."""
        return self.policy.fitting(self._asked, self.config.max_tokens, self.desk.progress)

    @cached_property
    def validation(self) -> list[Prompt]:
        """The prompts that are watched."""
        watched = read_prompts(self.data / "prompts_validation.jsonl")[: self.config.watch_prompts]
        return self.policy.fitting(watched, self.config.max_tokens, self.desk.progress)

    @cached_property
    def plan(self) -> list[list[int]]:
        """Which prompts each step asks."""
        return passes(len(self.prompts), self.config, self.seed)

    def collect(self, author: Policy, step: int) -> Answers:
        """A step's prompts answered and scored: a function of the step's number and the author's weights."""
        prompts = [self.prompts[i] for i in self.plan[step]]
        lines = [self.lines[prompt.key] for prompt in prompts]
        groups = self._written(author, prompts, step, attempt=0)
        found = self._scored(groups, lines)
        for attempt in range(1, self.config.resample + 1):
            alike = [i for i, rewards in enumerate(found.rewards) if bool((rewards == rewards[0]).all())]
            if not alike:
                break
            again = self._scored(self._written(author, [prompts[i] for i in alike], step, attempt), lines)
            found = found.replaced(alike, again)
        return found

    def _written(self, author: Policy, prompts: Sequence[Prompt], step: int, attempt: int) -> list[list[Rollout]]:
        seed = self.seed * 100_000 + step + attempt * 1_000_000_007
        return author.write(prompts, Sampling(self.config.max_tokens, seed=seed), n=self.config.group)

    def _scored(self, groups: Sequence[Sequence[Rollout]], lines: Sequence[int]) -> Answers:
        answers = [Conversation(each.prompt, each.answer) for group in groups for each in group]
        scores = ranks.told(scored(self.reward, answers))  # a judge may not say the same twice
        rewards = torch.tensor(scores.totals).view(len(groups), -1)
        return Answers(list(groups), rewards, scores, lines)

    @property
    def metrics(self) -> dict[str, Any]:
        """What is told of a round that is done."""
        config = self.config
        found = {"method": getattr(config, "method", ""), "steps": config.steps,
                 "answers": config.answers,
                 "kept": self.kept, "alarms": self.alarms()}
        curve = self.overoptimisation()
        return found | ({"overoptimisation": dataclasses.asdict(curve)} if curve else {})

    @property
    def watched(self) -> list[Row]:
        """The steps at which the policy was measured, the reference's own first."""
        return [{"step": 0, **self.start}, *(row for row in self.curve if "validation_kl" in row)]

    @property
    def best(self) -> list[Row]:
        """The steps that the judge measured, those that it likes best in front; of equals the later one."""
        judged = [row for row in self.watched[1:] if math.isfinite(row.get("validation_judge", math.nan))]
        return sorted(judged, key=lambda row: (-row["validation_judge"], -row["step"]))

    @property
    def kept(self) -> int:
        """The step whose policy is the candidate: the best of those whose weights are there."""
        if self.config.keep == "last":
            return self.config.steps
        there = (row["step"] for row in self.best if row["step"] == self.config.steps or self._policy(row).exists())
        return int(next(there, self.config.steps))

    def overoptimisation(self) -> Overoptimisation | None:
        """The judge's score against the distance, where there are points enough."""
        if self.judge is None:
            return None
        reached, start = self.best, self.start["validation_judge"]
        if not math.isfinite(start):
            return None
        return fitted(
            [row["validation_kl"] for row in reached], [row["validation_judge"] for row in reached], start,
            best_of_n=getattr(self.config, "method", "") == "best_of_n",
        )

    def alarms(self) -> list[str]:
        """What went wrong on the way, each as a sentence that says what to do."""
        start, *reached = self.watched
        found = []
        last = next((row for row in reversed(reached) if row["step"] == self.config.steps), None)
        best = next(iter(self.best), None)
        if last and best and last is not best:
            fell = best["validation_judge"] - last["validation_judge"]
            if fell > LOST and last["validation_reward"] > best["validation_reward"]:
                found.append(
                    f"over-optimised: from step {best['step']} to {last['step']} the reward rose by "
                    f"{last['validation_reward'] - best['validation_reward']:.2f} while the judge's score fell by "
                    f"{fell:.2f}, at {last['validation_kl']:.1f} nats; a better reward model, a larger kl or fewer "
                    "steps would help"
                )
        entropies = [row["entropy"] for row in self.curve
                     if math.isfinite(row.get("entropy", math.nan)) and row.get("cut", 0.0) < 1]
        if len(entropies) > 1 and entropies[-1] < COLLAPSED * entropies[0]:
            found.append(
                f"entropy fell from {entropies[0]:.2f} to {entropies[-1]:.2f} nats a token: the policy hardly varies; "
                "raise kl, or lower the learning rate"
            )
        fresh = self.curve[:: self.config.reuse]  # behind later updates of a sampling the policy itself has moved
        mismatch = max((row.get("sampler_mismatch", 0.0) for row in fresh), default=0.0)
        if mismatch > MISMATCH:
            found.append(
                f"sampler and trainer differ by up to {mismatch:.2f} nats a token, over {MISMATCH:g}: look at their "
                "precision, and leave correction on"
            )
        if reached and reached[-1]["validation_length"] > LONGER * max(1.0, start["validation_length"]):
            found.append(
                f"answers grew from {start['validation_length']:.0f} to {reached[-1]['validation_length']:.0f} tokens: "
                "the reward may be for length; see its audit"
            )
        return found

    def run(
        self, prepare: Callable[[int], Step[Batch]], loss: Callable[[Batch], Loss], unit: str,
        leave: Callable[[Any], None] | None = None,
    ) -> Curve:
        """Trains the policy, measuring on the way, and writes `curve.jsonl` and `model`.

        Args:
            leave: takes from the model what only its training needed.
        """
        config, desk = self.config, self.desk

        def after(step: int, row: dict[str, Any]) -> None:
            if (step + 1) % config.watch_every == 0 or step + 1 == config.steps:
                row |= self.measured()
                self._remember(row | {"step": step + 1})

        self.start = self.measured()  # policy and reference are still one
        curve = train(
            self.model, config.steps, reused(prepare, config.reuse), loss, config,
            checkpoint=desk.checkpoint(config.reuse), progress=desk.progress, unit=unit, after=after, curve=self.curve,
        )
        if leave:
            leave(self.model)
        write_curve(desk.output / "curve.jsonl", [{"step": 0, **self.start}, *curve])
        plain = merged(self.model, self.load)
        if self.kept < config.steps:
            self._recall(plain)
        for alarm in self.alarms():
            desk.progress.say(alarm)
        save(plain, self.tokenizer, desk.output / "model", GenerationConfig(do_sample=True, temperature=1.0))
        return curve

    def _remember(self, row: Row) -> None:
        """Keeps the policy's weights while it is the best so far, and those of the best before it.

        A run that goes on from an earlier step finds its best there; what it comes to again is written again.
        """
        if self.config.keep == "last" or self.judge is None or row["step"] == self.config.steps:
            return
        before = next(iter(self.best), None)
        if not row["validation_judge"] >= (before["validation_judge"] if before else -math.inf):
            return
        weights = dict(learnt(self.model, self.reference.model))
        write_tensors(self._policy(row), weights)
        for older in self.best[1:]:
            if ranks.rank() == 0:
                self._policy(older).unlink(missing_ok=True)

    def _recall(self, plain: Any) -> None:
        """Gives the model the weights of the step that is kept."""
        ranks.barrier()
        weights = torch.load(self._policy({"step": self.kept}), weights_only=True, map_location="cpu")
        names = dict(plain.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if name in names:  # a value head is not kept
                    names[name].copy_(weight)

    def _policy(self, row: Row) -> Path:
        """Where a step's weights are kept."""
        return self.desk.scratch / f"policy-{row['step']}.pt"

    def measured(self) -> dict[str, float]:
        """Reward, judge, KL and length on the validation prompts, one answer each, always the same noise."""
        groups = self.policy.write(self.validation, Sampling(self.config.max_tokens, seed=self.desk.seed))
        conversations = [Conversation(group[0].prompt, group[0].answer) for group in groups]
        numbers = {
            "validation_reward": sum(self.reward.score(conversations)) / len(groups),
            "validation_kl": divergence(self.policy, self.reference, groups),
            "validation_length": sum(len(group[0].tokens) for group in groups) / len(groups),
        }
        if self.judge is not None:
            numbers["validation_judge"] = sum(self.judge.score(conversations)) / len(groups)
        return numbers


def reused(prepare: Callable[[int], Step[Batch]], times: int) -> Callable[[int], Step[Batch]]:
    """Steps of which each is taken so many times in a row; a run goes on only where a new one is due."""
    kept: list[Step[Batch]] = []

    def step(number: int) -> Step[Batch]:
        if number % times == 0:
            kept[:] = [prepare(number)]
        return kept[0]

    return step


def passes(count: int, config: Improvement, seed: int) -> list[list[int]]:
    """Of so many prompts those of every step, pass after pass over all of them."""
    order: list[int] = []
    epoch = 0
    size = config.prompts_per_step
    while len(order) < config.steps * size:
        order += shuffled(count, epoch, seed)
        epoch += 1
    return [order[step * size : (step + 1) * size] for step in range(config.steps)]
