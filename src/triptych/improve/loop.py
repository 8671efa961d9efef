"""The loop that every method shares: prompts are drawn, answered and scored; the policy is updated and measured.

A method adds its own two steps between: how scored answers become batches, and the loss of a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from triptych.data.folder import DataFolder
from triptych.engine import attention, distributed
from triptych.engine.adapters import adapt
from triptych.engine.checkpoint import trained_weights
from triptych.engine.curve import Curve, Row, write_curve
from triptych.engine.device import give_back
from triptych.engine.inspection import trunk_of
from triptych.engine.models import load_policy, load_tokenizer, save
from triptych.engine.rollout import Policy, divergence, sampler_mismatch
from triptych.engine.sampler import Sampler, SlotSampler
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, Scores, facing, scored
from triptych.engine.training import GradientAccumulation, Loss, Step, shuffled, train
from triptych.engine.vllm import SamplerPlace, VllmSampler
from triptych.errors import ModelError
from triptych.improve.advantages import priced
from triptych.improve.checkpoints import JUDGED, REWARDED, UNLIMITED, Limits, PolicyCheckpoints, Watcher
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation, Prompt, Rollout
from triptych.storage import Folder

Batch = TypeVar("Batch")

MISMATCH = 0.2
"""Nats a token by which another engine's log-probabilities may differ from ours; bfloat16 alone makes 0.03 to 0.05."""


class Improvement(GradientAccumulation):
    """What every method can be told.

    Attributes:
        steps: updates in a round.
        prompts_per_step: asked for each update.
        group_size: answers to each prompt.
        updates_per_rollout: updates that each sampling is used for.
        max_tokens: an answer is cut there.
        eval_every: steps between two measurements on the validation prompts, for the report's curves.
        eval_prompts: how many of them.
        select: which of the watched policies is the candidate: the "best" on the validation prompts (the gate has
            prompts of its own) by the judge, or by the reward where no judge may watch; or the "last".
        sampler: who writes the answers: the engine's own "slots", or a server of vLLM: its program, from which one is
            started for the round, or the address of one that is there.
    """

    steps: int = Field(default=40, ge=1)
    prompts_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=8, ge=2)
    updates_per_rollout: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=96, ge=1)
    eval_every: int = Field(default=10, ge=1)
    eval_prompts: int = Field(default=96, ge=8)
    select: Literal["best", "last"] = "best"
    sampler: SamplerPlace = "slots"
    learning_rate: float = Field(default=1e-6, gt=0)
    decay: Literal["cosine", "linear", "constant"] = "constant"

    @property
    def samplings(self) -> int:
        """How often prompts are answered in a round."""
        return math.ceil(self.steps / self.updates_per_rollout)

    @property
    def needs_comparisons(self) -> bool:
        """Whether it learns from the round's comparisons, and not from what is sampled."""
        return False

    @property
    def needs_thumbs(self) -> bool:
        """Whether it learns from answers that were liked or not."""
        return False

    @property
    def needs_reward(self) -> bool:
        """Whether it learns from scores."""
        return True

    @property
    def learnt_per_prompt(self) -> int:
        """How many of the answers to a prompt are learnt from."""
        return self.group_size

    @property
    def answers(self) -> int:
        """How many answers a round is learnt from, but for those that were sampled again."""
        return self.written(self.steps)

    def written(self, steps: int) -> int:
        """How many that are after so many updates; none where answers are learnt from that others gave."""
        if self.needs_comparisons or self.needs_thumbs:
            return 0
        return math.ceil(steps / self.updates_per_rollout) * self.prompts_per_step * self.group_size


class Contrast(Improvement):
    """Methods that learn from what the answers to a prompt differ by.

    Attributes:
        resample_uniform_groups: how often a prompt is asked again whose answers all got the same reward, and so teach
            nothing.
        cut_price: how far below its group's lowest finished answer an answer is rewarded that was cut at `max_tokens`;
            trained rewards have a deviation of 1. None leaves cut answers out of the loss.
    """

    resample_uniform_groups: int = Field(default=1, ge=0)
    cut_price: float | None = Field(default=0.5, ge=0)

    def learnt(self, answers: Answers) -> Tensor:
        """`[P, G]` the rewards that are learnt from."""
        if self.cut_price is None:
            return answers.rewards
        return priced(answers.rewards, answers.finished, self.cut_price)

    def alike(self, answers: Answers) -> list[int]:
        """The groups that teach nothing."""
        return [i for i, rewards in enumerate(self.learnt(answers)) if bool((rewards == rewards[0]).all())]


@dataclass(frozen=True, slots=True)
class Answers:
    """G answers to each of P prompts, scored.

    Attributes:
        groups: the answers to one prompt together.
        rewards: `[P, G]`.
        scores: the rewards again, in order, with what they are made of.
        lines: where the prompts stand in the data, counted from 1.
        first: the same as first written, where some prompts were asked again. What a curve shows is of these: a policy
            is not what is left when its answers have been chosen.
        alike: the share of groups whose answers all have the same reward to learn from; None where that is no matter.
    """

    groups: Sequence[Sequence[Rollout]]
    rewards: Tensor
    scores: Scores | None = None
    lines: Sequence[int] = ()
    first: Answers | None = None
    alike: float | None = None

    def replaced(self, places: Sequence[int], others: Answers) -> Answers:
        """The same with other groups in these places."""
        groups, rewards = list(self.groups), self.rewards.clone()
        for place, group, row in zip(places, others.groups, others.rewards, strict=True):
            groups[place], rewards[place] = group, row
        return Answers(groups, rewards, None, self.lines, self.first or self)

    @property
    def finished(self) -> Tensor:
        """`[P, G]`, False for an answer that was cut."""
        finished = [[rollout.finished for rollout in group] for group in self.groups]
        return torch.tensor(finished, device=self.rewards.device)

    @property
    def fault(self) -> str | None:
        """What of them is not finite, so that nothing may be learnt from them."""
        return None if torch.isfinite(self.rewards).all() else "reward"

    @property
    def numbers(self) -> dict[str, float]:
        """What a curve shows of them."""
        if self.first:
            return self.first.numbers | self._alike
        answers = [rollout for group in self.groups for rollout in group]
        parts = self.scores.numbers([rollout.prompt.task for rollout in answers]) if self.scores else {}
        return parts | {
            "reward": float(self.rewards.mean()),
            "reward_deviation": float(self.rewards.std(dim=1).mean()),
            "length": sum(len(rollout.tokens) for rollout in answers) / len(answers),
            "cut": float((~self.finished).float().mean()),
        } | self._alike

    @property
    def _alike(self) -> dict[str, float]:
        return {} if self.alike is None else {"alike": self.alike}


class Loop:
    """A round of improvement: the champion in training, and itself unchanged as the reference.

    The judge only measures, on `data/prompts_validation.jsonl`; its scores reach no loss. They choose which of the
    policies on the way is the candidate, which must then prove itself on the gate's prompts. Where the judge decides
    there and may choose nothing, it is None, and the reward chooses. Where there is no reward either, the loss on
    held-out feedback does; without any nobody does, and the candidate is the last policy.

    Attributes:
        policy, reference: the champion twice; only the policy is updated.
        seed: of everything that is drawn in this round.
        way: where the policy was at each step so far, those of an earlier attempt too.
        noted: the parts of the reward of which something has been said.
    """

    def __init__(
        self, context: StageContext, config: Improvement, champion: Folder, data: Folder, reward: Scorer | None,
        judge: Scorer | None, round: int, limits: Limits = UNLIMITED,
    ) -> None:
        folder = champion / "model"
        self.context, self.config, self.data = context, config, data
        self.reward, self.judge = reward, judge
        self.rivals: dict[str, str] = {}  # the champion's own answers, which are the first that are measured
        self.noted: set[str] = set()
        self.seed = context.seed * 1000 + round
        kept = context.scratch if config.select == "best" else None
        watcher: Watcher = "judge" if judge is not None else "reward" if reward is not None else "loss"
        self.checkpoints = PolicyCheckpoints(config.steps, config.updates_per_rollout, kept, limits, watcher)
        self.tokenizer = load_tokenizer(folder)
        self.folder = folder
        self.model: Any = load_policy(folder, attention=attention.NAME, merged=config.lora is None)
        adapt(self.model, config.lora, self.seed, folder)
        # One server for both, whose weights change with the author.
        sampler: Callable[[], Sampler] = (
            SlotSampler if config.sampler == "slots" else cache(partial(VllmSampler, config.sampler, trunk_of(folder)))
        )
        self.policy = Policy(self.model, self.tokenizer, sampler)
        reference = load_policy(folder, attention=attention.NAME, frozen=True)
        self.reference = Policy(distributed.fully_shard_frozen(reference), self.tokenizer, sampler)

    def close(self) -> None:
        """Ends the server that the round started."""
        self.policy.close()
        self.reference.close()

    @cached_property
    def lines(self) -> dict[str, int]:
        """The line of each prompt in the data, by its key."""
        return {prompt.key: line for line, prompt in enumerate(self._asked, start=1)}

    @cached_property
    def _asked(self) -> list[Prompt]:
        return DataFolder(self.data).prompts("improve").read()

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The round's prompts, those that leave room for an answer."""
        return self.policy.fitting(self._asked, self.config.max_tokens, self.context.progress)

    @cached_property
    def validation(self) -> list[Prompt]:
        """The prompts that are watched."""
        watched = DataFolder(self.data).prompts("validation").read()[: self.config.eval_prompts]
        return self.policy.fitting(watched, self.config.max_tokens, self.context.progress)

    @cached_property
    def plan(self) -> list[list[int]]:
        """Which prompts each sampling asks."""
        return passes(len(self.prompts), self.config, self.seed)

    def collect(self, author: Policy, step: int) -> Answers:
        """A step's prompts answered and scored: a function of the step's number and the author's weights."""
        # An update is the loop's to know of. The reference has none, but may share its sampler with the policy.
        if author is self.policy or not author.in_sync:
            author.sync_weights()
        prompts = [self.prompts[i] for i in self.plan[step // self.config.updates_per_rollout]]
        lines = [self.lines[prompt.key] for prompt in prompts]
        try:
            return self._collected(author, prompts, lines, step)
        finally:  # an update and a sampling need memory for other things
            author.release()
            give_back()

    def _collected(self, author: Policy, prompts: Sequence[Prompt], lines: Sequence[int], step: int) -> Answers:
        groups = self._written(author, prompts, step, attempt=0)
        answers = self._scored(groups, lines)
        if not isinstance(self.config, Contrast):
            return answers
        for attempt in range(1, self.config.resample_uniform_groups + 1):
            alike = self.config.alike(answers)
            if not alike:
                break
            again = self._scored(self._written(author, [prompts[i] for i in alike], step, attempt), lines)
            answers = answers.replaced(alike, again)
        return dataclasses.replace(answers, alike=len(self.config.alike(answers)) / len(prompts))

    def _written(self, author: Policy, prompts: Sequence[Prompt], step: int, attempt: int) -> list[list[Rollout]]:
        seed = self.seed * 100_000 + step + attempt * 1_000_000_007
        return author.write(prompts, Sampling(self.config.max_tokens, seed=seed), n=self.config.group_size)

    def _scored(self, groups: Sequence[Sequence[Rollout]], lines: Sequence[int]) -> Answers:
        answers = [Conversation(rollout.prompt, rollout.answer) for group in groups for rollout in group]
        assert self.reward is not None, "whoever learns from what is sampled needs a reward"
        scores = distributed.broadcast(scored(self.reward, answers))  # a judge may not say the same twice
        for name, note in scores.notes.items():
            if name not in self.noted:
                self.context.progress.say(f"reward: {name} {note}; the curve counts more of them")
                self.noted.add(name)
        rewards = torch.tensor(scores.totals, device=self.model.device).view(len(groups), -1)
        return Answers(list(groups), rewards, scores, lines)

    def run(
        self, prepare: Callable[[int], Step[Batch]], loss: Callable[[Batch], Loss], unit: str,
        leave: Callable[[], None], heldout: Callable[[], Row] = dict,
    ) -> Curve:
        """Trains the policy, measuring on the way, and writes `curve.jsonl`, `validation.jsonl` and `model`.

        Args:
            leave: takes from the model what only its training needed.
            heldout: the loss on held-out feedback, which watches where there is no reward.
        """
        config, context = self.config, self.context

        def after(step: int, row: dict[str, Any]) -> bool:
            if (step + 1) % config.eval_every and step + 1 < config.steps:
                return False
            row |= self.measured(heldout)
            self.checkpoints.remember(row | {"step": step + 1}, lambda: trained_weights(self.model))
            return self.checkpoints.exceeded(row) is not None

        self.checkpoints.start = self.measured(heldout)  # policy and reference are still one
        if self.checkpoints.watcher == "loss" and "validation_loss" not in self.checkpoints.start:
            self.checkpoints.watcher = "nothing"
            context.progress.say("no feedback is held out, and nobody else may watch: the candidate is the last policy")
        curve = train(
            self.model, config.steps, reused(prepare, config.updates_per_rollout), loss, config,
            progress=context.progress, unit=unit,
            checkpoint=context.checkpoint(config.updates_per_rollout), after=after, curve=self.checkpoints.curve,
            start=self.checkpoints.start,
        )
        leave()
        rows = [{"step": 0, **self.checkpoints.start}, *curve]
        scorers = {JUDGED: "judge", REWARDED: "reward"}
        write_curve(
            context.output / "curve.jsonl", [{name: row[name] for name in row if name not in scorers} for row in rows]
        )
        scores = [{scorer: row[name] for name, scorer in scorers.items() if name in row} for row in rows]
        watched = [{"step": row["step"], **given} for row, given in zip(rows, scores, strict=True) if given]
        if watched:
            write_curve(context.output / "validation.jsonl", watched)
        self.checkpoints.recall(self.model)
        for alarm in self.checkpoints.alarms():
            context.progress.say(alarm)
        save(
            self.model, self.tokenizer, context.output / "model",
            trunk=context.name(trunk_of(self.folder)),
        )
        return curve

    def measured(self, heldout: Callable[[], Row]) -> Row:
        """Reward, judge, KL and length on the validation prompts, one answer each, always the same noise.

        The scores of each prompt are kept too. The reward of an answer that was cut is what is learnt from: what a
        reward says of an answer without an end chooses no candidate.
        """
        self.policy.sync_weights()
        groups = self.policy.write(self.validation, Sampling(self.config.max_tokens, seed=self.context.seed))
        conversations = [Conversation(group[0].prompt, group[0].answer) for group in groups]
        numbers: Row = {
            "validation_kl": divergence(self.policy, self.reference, groups),
            "validation_length": sum(len(group[0].tokens) for group in groups) / len(groups),
            "validation_cut": sum(not group[0].finished for group in groups) / len(groups),
        }
        if self.config.sampler != "slots":
            numbers["validation_mismatch"] = self._compared(groups)
        if self.reward is not None:
            rewards = torch.tensor([facing(self.reward, self.rivals).score(conversations)], device="cpu")
            if isinstance(self.config, Contrast):
                rewards = self.config.learnt(Answers([[group[0] for group in groups]], rewards))
            numbers[REWARDED] = rewards[0].tolist()
            numbers["validation_reward"] = sum(numbers[REWARDED]) / len(groups)
        else:
            numbers |= heldout()
        if self.judge is not None:
            numbers[JUDGED] = facing(self.judge, self.rivals).score(conversations)
            numbers["validation_judge"] = sum(numbers[JUDGED]) / len(groups)
        self.policy.release()  # what learns from given answers samples no more until it is measured again
        give_back()
        return numbers

    def _compared(self, groups: Sequence[Sequence[Rollout]]) -> float:
        """How far another engine's log-probabilities are from ours, before they are learnt from.

        Raises:
            ModelError: too far: it has other weights, or computes something else.
        """
        mismatch = sampler_mismatch(self.policy, groups)
        said = f"the sampler's log-probabilities differ from our forward pass by {mismatch:.2g} nats a token on average"
        if not mismatch <= MISMATCH:
            raise ModelError(f"{said}, more than {MISMATCH}: it has other weights, or computes another model")
        self.context.progress.say(said)
        return mismatch


def reused(prepare: Callable[[int], Step[Batch]], times: int) -> Callable[[int], Step[Batch]]:
    """Steps of which each is taken so many times in a row; a run goes on only where a new one is due."""
    kept: list[Step[Batch]] = []

    def step(number: int) -> Step[Batch]:
        if number % times == 0:
            kept[:] = [prepare(number)]
        return kept[0]

    return step


def passes(count: int, config: Improvement, seed: int) -> list[list[int]]:
    """Of so many prompts those of every sampling, pass after pass over all of them."""
    order: list[int] = []
    epoch = 0
    size = config.prompts_per_step
    while len(order) < config.samplings * size:
        order += shuffled(count, epoch, seed)
        epoch += 1
    return [order[place * size : (place + 1) * size] for place in range(config.samplings)]
