"""Questions to people: which of two answers of the champion is better? What they say becomes a comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_comparisons, read_prompts, stored_rows
from triptych.data.splits import fraction
from triptych.engine.generation import Sampling
from triptych.engine.rollout import Policy
from triptych.engine.scoring import Scorer
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Comparison, Conversation, Prompt, to_json

FILE = "questions.jsonl"


class Asking(Config):
    """What people are asked in a round.

    Attributes:
        prompts: how many, each round the next ones of those that are improved on.
        answers: sampled for each; every two that differ are a question.
        max_tokens: an answer is cut there.
    """

    prompts: int = Field(default=200, ge=1)
    answers: int = Field(default=2, ge=2)
    max_tokens: int = Field(default=96, ge=1)


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to one prompt, in the order in which they are shown."""

    prompt: Prompt
    first: str
    second: str

    def answered(self, first_is_better: bool) -> Comparison:
        """The comparison that an answer makes of it."""
        better, worse = (self.first, self.second) if first_is_better else (self.second, self.first)
        return Comparison(self.prompt, better, worse, source="people", chosen_first=first_is_better)


def ask(
    desk: Desk, config: Asking, data: Path, author: Path, round: int = 1, reward: Scorer | None = None
) -> Metrics:
    """Writes `questions.jsonl`: pairs of answers, in random order; those first of which a reward is least sure.

    Args:
        author: the champion, who writes the answers.
        reward: the last round's, if there is one.
    """
    pool = read_prompts(data / "prompts_feedback.jsonl")
    first = (round - 1) * config.prompts
    policy = Policy.open(author / "model")
    drawn = [pool[i % len(pool)] for i in range(first, first + min(config.prompts, len(pool)))]
    prompts = policy.fitting(drawn, config.max_tokens, desk.progress)
    sampling = Sampling(config.max_tokens, seed=desk.seed * 1000 + round)
    found: list[Question] = []
    for group in policy.write(prompts, sampling, n=config.answers, progress=desk.progress):
        said = dict.fromkeys(each.answer for each in group if each.answer.strip())
        for place, (a, b) in enumerate(combinations(said, 2)):
            turned = fraction(f"shown {place} {group[0].prompt.key}", desk.seed) < 0.5
            found.append(Question(group[0].prompt, *((b, a) if turned else (a, b))))
    if reward is not None:
        scores = reward.score([
            Conversation(each.prompt, answer) for each in found for answer in (each.first, each.second)
        ])
        unsure = [abs(a - b) for a, b in zip(scores[0::2], scores[1::2], strict=True)]
        found = [found[i] for i in sorted(range(len(found)), key=lambda i: unsure[i])]
    with open(desk.output / FILE, "w", encoding="utf-8") as file:
        for each in found:
            row = to_json(each.prompt) | {"first": each.first, "second": each.second}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"questions": len(found), "prompts": len(prompts)}


def open_questions(questions: Path, labels: Path) -> Iterator[Question]:
    """Those that nobody has answered yet."""
    rows = stored_rows(questions)
    prompts = read_prompts(questions)
    known = read_comparisons(labels) if labels.exists() and labels.stat().st_size else []
    answered = {(row.prompt.key, frozenset((row.chosen, row.rejected))) for row in known}
    for row, prompt in zip(rows, prompts, strict=True):
        if (prompt.key, frozenset((row["first"], row["second"]))) not in answered:
            yield Question(prompt, row["first"], row["second"])


def record(comparison: Comparison, labels: Path) -> None:
    """Adds a comparison to the end of the file, whole."""
    labels.parent.mkdir(parents=True, exist_ok=True)
    with open(labels, "a", encoding="utf-8") as file:
        file.write(json.dumps(to_json(comparison), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
