"""A model measured on prompts that nothing was trained or chosen on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder, PromptSplit
from triptych.engine.rollout import Policy, Render, divergence
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, Scores, facing, scored
from triptych.evaluate.preamble import read_preamble, rendered_behind
from triptych.evaluate.prompting import WITH_PROMPT
from triptych.instructions.following import followed_by_kind
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Conversation, Prompt, Rollout
from triptych.statistics.intervals import Interval, mean_interval
from triptych.statistics.scores import DecodedScore, TaskScore
from triptych.storage import Folder, read_rows

ANSWERS = "answers.jsonl"

Style = Literal["chat", "few-shot"]
"""By its chat template, or as plain text behind worked examples."""


class Measurement(Config):
    """How models are measured on the test prompts.

    Attributes:
        prompts: how many of the test prompts; all of them by default.
        best_of: so many of Instruct's answers to each, of which the reward takes the best; 0 for none.
        shots: worked examples before the question, for a Base that came without a chat template.
        example: how an example is written, ending in its answer. Examples stand in paragraphs of their own, or, if
            this has one line, one after the other.
    """

    prompts: int | None = Field(default=None, ge=1)
    best_of: int = Field(default=8, ge=0)
    shots: int = Field(default=3, ge=0)
    example: str = Field(default="Question: {prompt}\nAnswer: {answer}", pattern=r"(?s)\{prompt\}.*\{answer\}$")


class ScoredAnswer(Result):
    """An answer, its tokens, and its scores.

    Attributes:
        reward: of an answer as deployed; of other decodings None.
        parts: what the scores are made of, as "judge/length" and "reward/length".
        instructions: for each kind of the prompt's instructions the share that it follows.
    """

    answer: str
    tokens: int
    judge: float
    reward: float | None
    parts: dict[str, float] = Field(default_factory=dict)
    instructions: dict[str, float] = Field(default_factory=dict)


class TestedPrompt(Result):
    """A prompt, and a model's answers to it.

    Attributes:
        key: the prompt's.
        prompt: role and content of each turn.
        deployed: the answer of the model as it is deployed.
        decodings: the answer of each way of decoding, by its name.
    """

    __test__ = False  # to pytest

    key: str
    task: str | None
    prompt: tuple[tuple[str, str], ...]
    deployed: ScoredAnswer
    decodings: dict[str, ScoredAnswer]


def tested_prompts(folder: Folder) -> list[TestedPrompt]:
    """What a model was measured by, from the folder of its measurement."""
    return [TestedPrompt.model_validate(row) for row in read_rows(folder / ANSWERS)]


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """A model's answers drawn in one way, one to each prompt, with the judge's scores and the reward's.

    Attributes:
        drawn: how many answers were written for each that is kept, which is what it costs.
    """

    rollouts: Sequence[Rollout]
    judged: Scores
    rewarded: Scores | None
    drawn: int = 1

    @property
    def numbers(self) -> DecodedScore:
        """What is told of them."""
        score, interval = mean_interval(self.judged.totals)
        return DecodedScore(
            score=score,
            interval=interval,
            reward=sum(self.rewarded.totals) / len(self.rollouts) if self.rewarded else None,
            mean_length=sum(len(rollout.tokens) for rollout in self.rollouts) / len(self.rollouts),
            drawn=self.drawn,
        )

    def at(self, place: int) -> ScoredAnswer:
        """One of them."""
        rollout = self.rollouts[place]
        return ScoredAnswer(
            answer=rollout.answer, tokens=len(rollout.tokens), judge=self.judged.totals[place],
            reward=self.rewarded.totals[place] if self.rewarded else None,
            parts=self.judged.parts_of(place, "judge") | (
                self.rewarded.parts_of(place, "reward") if self.rewarded else {}
            ),
            instructions=followed_by_kind(rollout.prompt, rollout.answer),
        )


class Measurements(Result):
    """A model on prompts: score, reward and length as it is deployed, and the scores of every way of decoding.

    Attributes:
        judge_counts, reward_counts: what else judge and reward said, such as contradictions.
        decodings: by their names, as deployed, "temperature 1", "greedy", and perhaps "best of 8".
        kl: from the reference, in nats per answer at temperature 1; None without one.
        reward_parts: what the reward is made of, for all prompts and each task.
        fewer_examples: prompts that left no room for all examples.
    """

    judge: str
    judge_counts: dict[str, int]
    prompts: int
    decoding: str
    score: float
    interval: Interval
    reward: float | None
    mean_length: float
    drawn: int
    decodings: dict[str, DecodedScore]
    kl: float | None
    by_task: dict[str, TaskScore]
    reward_parts: dict[str, dict[str, float]]
    reward_counts: dict[str, int] = Field(default_factory=dict)
    fewer_examples: int = 0

    @property
    def headline(self) -> str:
        """The score."""
        return f"score {self.score:.3f}"


@reads(data=("prompts_test", "prompts_gate", "prompts_validation", "examples"))
def measure(
    context: StageContext, config: Measurement, model: Folder, data: Folder, judge: Scorer, decoding: Sampling,
    reference: Folder | None = None, reward: Scorer | None = None, style: Style = "chat",
    best_of: int = 0, split: PromptSplit = "test", only_deployed: bool = False, prompting: Folder | None = None,
    beside: Folder | None = None,
) -> Measurements:
    """Scores a model's answers to a split's prompts as it is deployed, at temperature 1 and greedy.

    Keeps them in `answers.jsonl`: each prompt's answer as deployed, and under `decodings` the answer of each decoding.

    Args:
        decoding: as deployed; its seed does not count.
        best_of: draw so many answers at temperature 1 too, and keep the one that the reward likes best.
        only_deployed: as it is deployed and in no other way; then there may be no reference.
        prompting: of a search for a better prompt; the model is asked so, too.
        beside: another model's measurement. A judge that only compares does so with its answers as deployed, or with
            this model's own, where there is none; then scores are win rates.
    """
    prompts = DataFolder(data).prompts(split).read()[: config.prompts]
    policy = Policy.open(model / "model")
    render: Render = policy.render
    fewer = 0
    if style == "few-shot":
        room = policy.context - decoding.max_tokens if policy.context is not None else None
        shown = few_shot(policy.tokenizer, examples(data), config)
        render = few_shot(policy.tokenizer, examples(data), config, room)
        fewer = sum(room is not None and len(shown(prompt)) > room for prompt in prompts)
        if fewer:
            context.progress.say(
                f"{fewer} of {len(prompts)} prompts leave no room for {config.shots} examples and an answer of "
                f"{decoding.max_tokens} tokens in the model's context of {policy.context}; they get fewer examples"
            )
    prompts = policy.fitting(prompts, decoding.max_tokens, context.progress, render)

    def write(sampling: Sampling, n: int = 1) -> list[list[Rollout]]:
        sampling = replace(sampling, seed=context.seed)
        if style == "chat":
            return policy.write(prompts, sampling, n=n, progress=context.progress)
        # A Base ends where its documents do.
        end = policy.tokenizer.bos_token_id
        groups = policy.write(prompts, sampling, n=n, render=render, end=end, progress=context.progress)
        return [[_before_the_next(rollout, policy.tokenizer, config) for rollout in group] for group in groups]

    rivals = {} if beside is None else {row.key: row.deployed.answer for row in tested_prompts(beside)}

    def judged(rollouts: Sequence[Rollout], reward: Scorer | None = None, drawn: int = 1) -> ScoredAnswers:
        conversations = [Conversation(rollout.prompt, rollout.answer) for rollout in rollouts]
        rewarded = scored(facing(reward, rivals), conversations) if reward else None
        judgement = scored(facing(judge, rivals), conversations)
        for who, scores in (("reward", rewarded), ("judge", judgement)):
            for name, note in scores.notes.items() if scores else ():
                context.progress.say(f"{who}: {name} {note}")
        return ScoredAnswers(rollouts, judgement, rewarded, drawn)

    plain = Sampling(decoding.max_tokens)
    diagnostic = () if only_deployed else (plain, replace(plain, temperature=0.0))
    ways = {way.name: way for way in (decoding, *diagnostic)}
    # A reward model can take as long as the writing did: it scores what users would get, the judge scores all.
    answered = {
        name: judged([rollout for (rollout,) in write(way)], reward if name == decoding.name else None)
        for name, way in ways.items()
    }
    if best_of > 1 and reward:
        answered[f"best of {best_of}"] = judged(preferred(write(plain, best_of), reward), drawn=best_of)
    if prompting is not None and (preamble := read_preamble(prompting)):
        behind = rendered_behind(preamble, policy, decoding.max_tokens)
        seeded = replace(decoding, seed=context.seed)
        groups = policy.write(prompts, seeded, render=behind, progress=context.progress)
        answered[WITH_PROMPT] = judged([rollout for (rollout,) in groups])
    deployed = answered[decoding.name]
    with open(context.output / ANSWERS, "w", encoding="utf-8") as file:
        for place, prompt in enumerate(prompts):
            decodings = {name: answers.at(place) for name, answers in answered.items()}
            row = TestedPrompt(
                key=prompt.key, task=prompt.task, prompt=tuple((turn.role, turn.shown) for turn in prompt.messages),
                deployed=decodings[decoding.name], decodings=decodings,
            )
            file.write(json.dumps(row.model_dump(), ensure_ascii=False) + "\n")
    tasks, numbers = [prompt.task for prompt in prompts], deployed.numbers
    kl = None
    if reference is not None and Path(reference) == Path(model):
        kl = 0.0
    elif reference is not None:
        # Only answers at temperature 1 are the policy's own, of which its divergence is the mean.
        own = [[rollout] for rollout in answered[plain.name].rollouts]
        kl = divergence(policy, Policy.open(reference / "model"), own)
    return Measurements(
        judge=judge.name,
        judge_counts=dict(deployed.judged.counts),
        prompts=len(prompts),
        decoding=decoding.name,
        score=numbers.score,
        interval=numbers.interval,
        reward=numbers.reward,
        mean_length=numbers.mean_length,
        drawn=numbers.drawn,
        decodings={name: answers.numbers for name, answers in answered.items()},
        kl=kl,
        by_task=by_task(tasks, deployed.judged.totals),
        reward_parts=deployed.rewarded.by_task(tasks) if deployed.rewarded else {},
        reward_counts=dict(deployed.rewarded.counts) if deployed.rewarded else {},
        fewer_examples=fewer,
    )


def preferred(groups: Sequence[Sequence[Rollout]], reward: Scorer) -> list[Rollout]:
    """Of the answers to each prompt the one with the highest reward, of equals the first."""
    scores = iter(reward.score([Conversation(rollout.prompt, rollout.answer) for group in groups for rollout in group]))
    scored = [[(next(scores), rollout) for rollout in group] for group in groups]
    return [max(group, key=itemgetter(0))[1] for group in scored]


def by_task(tasks: Sequence[str | None], scores: Sequence[float]) -> dict[str, TaskScore]:
    """The mean score and its interval for each task that is named."""
    by_name = {}
    for task in sorted({task for task in tasks if task}):
        members = [score for name, score in zip(tasks, scores, strict=True) if name == task]
        mean, interval = mean_interval(members)
        by_name[task] = TaskScore(score=mean, interval=interval, prompts=len(members))
    return by_name


def examples(data: Folder) -> list[Conversation]:
    """The worked examples that are shown to the Base."""
    return DataFolder(data).examples.read()


def few_shot(
    tokenizer: Any, shown: Sequence[Conversation], config: Measurement, room: int | None = None
) -> Render:
    """Renders a prompt behind worked examples of the same task (Brown et al. 2020).

    Args:
        room: the tokens that it may take; where all examples take more, the last ones are left out.
    """
    between = "\n\n" if "\n" in config.example else " "

    def behind(examples: Sequence[Conversation], prompt: Prompt) -> list[int]:
        blocks = [config.example.format(prompt=_asked(example.prompt), answer=example.answer) for example in examples]
        blocks.append(config.example.format(prompt=_asked(prompt), answer="").rstrip())
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        encoded: list[int] = tokenizer(between.join(blocks), add_special_tokens=False)["input_ids"]
        return first + encoded

    def render(prompt: Prompt) -> list[int]:
        alike = [example for example in shown if example.prompt.task == prompt.task] or list(shown)
        examples = alike[: config.shots]
        tokens = behind(examples, prompt)
        while examples and room is not None and len(tokens) > room:
            examples = examples[:-1]
            tokens = behind(examples, prompt)
        return tokens

    return render


def _asked(prompt: Prompt) -> str:
    return "\n".join(turn.content for turn in prompt.messages)


def _before_the_next(rollout: Rollout, tokenizer: Any, config: Measurement) -> Rollout:
    """The answer up to the next question, which a Base goes on to write."""
    opening = config.example.split("{prompt}")[0].strip()
    # Nothing but an empty line says where the next example begins that has no words before its question.
    answer = rollout.answer.strip().split(opening or "\n\n")[0].strip()
    kept = tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])
    return Rollout(rollout.prompt, rollout.prompt_tokens, kept, rollout.logprobs[: len(kept)], answer, True)
