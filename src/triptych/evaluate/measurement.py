"""A model measured on prompts that nothing was trained or chosen on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_conversations, read_prompts
from triptych.engine.generation import Sampling
from triptych.engine.rollout import Policy, Render, divergence
from triptych.engine.scoring import Scorer, scored
from triptych.intervals import mean_interval
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Conversation, Prompt, Rollout


class Measurement(Config):
    """How models are measured on the test prompts.

    Attributes:
        prompts: how many of the test prompts; all of them by default.
        max_tokens: an answer is cut there.
        greedy: measure greedy decoding beside sampling at temperature 1.
        shots: worked examples before the question, for the Base that is only prompted.
        example: how an example is written, ending in its answer. Examples stand in paragraphs of their own, or, if
            this has one line, one after the other.
    """

    prompts: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=96, ge=1)
    greedy: bool = True
    shots: int = Field(default=3, ge=0)
    example: str = Field(default="Question: {prompt}\nAnswer: {answer}", pattern=r"(?s)\{prompt\}.*\{answer\}$")


def measure(
    desk: Desk, config: Measurement, model: Path, data: Path, judge: Scorer,
    reference: Path | None = None, reward: Scorer | None = None, style: Literal["chat", "few-shot"] = "chat",
) -> Metrics:
    """Scores a model's answers to `data/prompts_test.jsonl`; keeps them in `answers.jsonl`."""
    prompts = read_prompts(data / "prompts_test.jsonl")[: config.prompts]
    policy = Policy.open(model / "model")
    render = policy.render if style == "chat" else few_shot(policy.tokenizer, examples(data), config)
    prompts = policy.fitting(prompts, config.max_tokens, desk.progress, render)

    def write(sampling: Sampling) -> list[list[Rollout]]:
        if style == "chat":
            return policy.write(prompts, sampling, progress=desk.progress)
        # A Base ends where its documents do.
        end = policy.tokenizer.bos_token_id
        groups = policy.write(prompts, sampling, render=render, end=end, progress=desk.progress)
        return [[_before_the_next(rollout, policy.tokenizer, config) for rollout in group] for group in groups]

    groups = write(Sampling(config.max_tokens, seed=desk.seed))
    conversations = [Conversation(rollout.prompt, rollout.answer) for (rollout,) in groups]
    judged = scored(judge, conversations)
    scores = judged.totals
    rewarded = scored(reward, conversations) if reward else None
    rewards = rewarded.totals if rewarded else None
    greedy = None
    if config.greedy:
        likeliest = write(Sampling(config.max_tokens, temperature=0.0))
        greedy = judge.score([Conversation(rollout.prompt, rollout.answer) for (rollout,) in likeliest])
    with open(desk.output / "answers.jsonl", "w", encoding="utf-8") as file:
        for index, (rollout,) in enumerate(groups):
            row = {
                "key": rollout.prompt.key, "task": rollout.prompt.task, "answer": rollout.answer,
                "judge": scores[index], "reward": rewards[index] if rewards else None,
                "prompt": [[turn.role, turn.content] for turn in rollout.prompt.messages],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    mean, interval = mean_interval(scores)
    return {
        "judge": judge.name,
        "judge_counts": dict(judged.counts),
        "score": mean,
        "interval": interval,
        "prompts": len(prompts),
        "greedy_score": sum(greedy) / len(greedy) if greedy else None,
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "kl": divergence(policy, Policy.open(reference / "model"), groups) if reference else None,
        "mean_length": sum(len(rollout.tokens) for (rollout,) in groups) / len(groups),
        "by_task": by_task([prompt.task for prompt in prompts], scores),
        "reward_parts": rewarded.by_task([prompt.task for prompt in prompts]) if rewarded else {},
    }


def by_task(tasks: Sequence[str | None], scores: Sequence[float]) -> dict[str, Any]:
    """The mean score and its interval for each task that is named."""
    found = {}
    for task in sorted({task for task in tasks if task}):
        members = [score for name, score in zip(tasks, scores, strict=True) if name == task]
        mean, interval = mean_interval(members)
        found[task] = {"score": mean, "interval": interval, "prompts": len(members)}
    return found


def examples(data: Path) -> list[Conversation]:
    """The worked examples that are shown to the Base."""
    return read_conversations(data / "examples.jsonl")


def few_shot(tokenizer: Any, shown: Sequence[Conversation], config: Measurement) -> Render:
    """Renders a prompt behind worked examples of the same task (Brown et al. 2020)."""
    between = "\n\n" if "\n" in config.example else " "

    def render(prompt: Prompt) -> list[int]:
        alike = [example for example in shown if example.prompt.task == prompt.task] or list(shown)
        blocks = [
            config.example.format(prompt=_asked(example.prompt), answer=example.answer)
            for example in alike[: config.shots]
        ]
        blocks.append(config.example.format(prompt=_asked(prompt), answer="").rstrip())
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        encoded: list[int] = tokenizer(between.join(blocks), add_special_tokens=False)["input_ids"]
        return first + encoded

    return render


def _asked(prompt: Prompt) -> str:
    return "\n".join(turn.content for turn in prompt.messages)


def _before_the_next(rollout: Rollout, tokenizer: Any, config: Measurement) -> Rollout:
    """The answer up to the next question, which a Base goes on to write."""
    opening = config.example.split("{prompt}")[0].strip()
    answer = rollout.answer.split("\n\n")[0]
    if opening:
        answer = answer.split(opening)[0]
    answer = answer.strip()
    kept = tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])
    return Rollout(rollout.prompt, rollout.prompt_tokens, kept, rollout.logprobs[: len(kept)], answer, True)
