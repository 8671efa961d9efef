"""Instructions that a model writes, and answers them: Magpie, and Self-Instruct where there are seeds.

Magpie (Xu et al. 2024, *Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing*) gives a tuned
model the beginning of a user's turn and has it go on: what it writes is what it has learnt that users ask.
Self-Instruct (Wang et al. 2023, *Aligning Language Models with Self-Generated Instructions*) shows it a few tasks and
asks for another. What nearly repeats a seed or an earlier instruction, is too short or too long, or does not end, is
left out. The answer is that of several which a reward likes best, or the greedy one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.near import NearDuplicates, asked
from triptych.data.overlap import words_of
from triptych.data.template import question_opening_tokens
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.progress import Progress
from triptych.records import Conversation, Prompt, Rollout

Way = Literal["magpie", "self-instruct"]
SHOWN = 6
"""So many tasks Self-Instruct shows."""
TOGETHER = 64
"""Instructions that are written at a time."""
ANOTHER = "Here are {count} tasks:\n\n{tasks}\n\nWrite one more task of another kind. Write the task alone."
LEAST_WORDS, MOST_WORDS = 4, 150
"""Of an instruction."""
REPEATING = 0.5
"""The share of an answer's runs of three words that must be no repetitions."""
TRIES = 8
"""So many times as many instructions are written as are wanted, at the most."""


class Synthesis(Config):
    """What is written.

    Attributes:
        count: how many conversations.
        ways: by which instructions are written, in turn; Self-Instruct needs seeds.
        answers: to each instruction, of which the reward takes the best; without a reward there is one, the greedy one.
        temperature: of instructions, and of answers where there are several.
        instruction_tokens, max_tokens: the longest instruction, and the longest answer.
    """

    count: int = Field(default=200, ge=1)
    ways: tuple[Way, ...] = Field(default=("magpie", "self-instruct"), min_length=1)
    answers: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    instruction_tokens: int = Field(default=128, ge=8)
    max_tokens: int = Field(default=256, ge=8)


def synthesise(
    policy: Policy, config: Synthesis, seeds: Sequence[Prompt], reward: Scorer | None, seed: int, progress: Progress,
) -> tuple[list[Conversation], Counter[str]]:
    """Has a tuned model write instructions and answers.

    Args:
        seeds: tasks that Self-Instruct shows, and that nothing may nearly repeat; without any there is Magpie alone.

    Returns:
        Each conversation with its way as its prompt's task; and how many were left out, by why.
    """
    ways = [way for way in config.ways if way == "magpie" or seeds]
    known = NearDuplicates(map(asked, seeds))
    left_out: Counter[str] = Counter()
    kept: list[Conversation] = []
    written = 0
    while len(kept) < config.count and written < TRIES * config.count and ways:
        way = ways[(written // TOGETHER) % len(ways)]
        instructions = _instructions(policy, config, way, seeds, seed + written, left_out)
        written += TOGETHER
        new = []
        for text in instructions:
            if known.first(text):
                new.append(replace(Prompt.of(text), task=way))
            else:
                left_out["nearly repeats another"] += 1
        while new and (wanted := config.count - len(kept)):
            kept += _answered(policy, config, new[:wanted], reward, seed, left_out)
            new = new[wanted:]
        progress.say(f"{len(kept):,} of {config.count:,} conversations, of {written:,} instructions that were written")
    return kept, left_out


def _instructions(
    policy: Policy, config: Synthesis, way: Way, seeds: Sequence[Prompt], seed: int, left_out: Counter[str]
) -> Iterator[str]:
    """Some that end and are neither short nor long."""
    sampling = Sampling(config.instruction_tokens, config.temperature, seed=seed)
    if way == "magpie":
        opening = question_opening_tokens(policy.tokenizer)
        (rollouts,) = policy.write([Prompt.of("")], sampling, n=TOGETHER, render=lambda prompt: opening)
    else:
        draw = Random(seed)
        shown = [draw.sample(list(seeds), min(SHOWN, len(seeds))) for _ in range(TOGETHER)]
        groups = policy.write([_another(tasks) for tasks in shown], sampling)
        rollouts = [rollout for (rollout,) in groups]
    for rollout in rollouts:
        words = len(words_of(rollout.answer))
        if not rollout.finished:
            left_out["does not end"] += 1
        elif not LEAST_WORDS <= words <= MOST_WORDS:
            left_out[f"has fewer than {LEAST_WORDS} words, or more than {MOST_WORDS}"] += 1
        else:
            yield rollout.answer.strip()


def _another(tasks: Sequence[Prompt]) -> Prompt:
    numbered = "\n".join(f"{number}. {task.messages[-1].content.strip()}" for number, task in enumerate(tasks, 1))
    return Prompt.of(ANOTHER.format(count=len(tasks), tasks=numbered))


def _answered(
    policy: Policy, config: Synthesis, prompts: Sequence[Prompt], reward: Scorer | None, seed: int,
    left_out: Counter[str],
) -> list[Conversation]:
    """Each instruction with its best answer that ends and does not repeat itself."""
    sampling = Sampling(config.max_tokens, config.temperature if reward else 0.0, seed=seed)
    candidates: list[list[Conversation]] = []
    for group in policy.write(prompts, sampling, n=config.answers if reward else 1):
        usable = [rollout for rollout in group if rollout.finished and rollout.answer.strip()]
        varied = [rollout for rollout in usable if _varied(rollout)]
        if not varied:
            left_out["has no answer that ends" if not usable else "has an answer that repeats itself"] += 1
        else:
            candidates.append([Conversation(rollout.prompt, rollout.answer.strip()) for rollout in varied])
    if reward is None:
        return [row for (row,) in candidates]
    scores = iter(reward.score([row for rows in candidates for row in rows]) if candidates else ())
    return [max(rows, key=lambda row: next(scores)) for rows in candidates]


def _varied(rollout: Rollout) -> bool:
    words = words_of(rollout.answer)
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(runs)) >= REPEATING * len(runs)
