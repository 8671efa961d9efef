"""The gate: a candidate becomes the champion only if a judge with no part in its training prefers it.

Both models answer the gate's prompts, which nothing was trained on; the judge scores the answers. The win rate
(ties a half) has a 95% bootstrap interval over prompts, and the candidate is promoted where the interval lies
above one half, inside the budgets for distance, length, single tasks, and what plain text costs. The win rate at equal
length stands beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_documents, read_prompts
from triptych.engine.generation import Sampling
from triptych.engine.perplexity import bits_per_byte
from triptych.engine.rollout import Policy, divergence
from triptych.engine.scoring import Scorer, scored
from triptych.evaluate.lengths import controlled
from triptych.evaluate.measurement import by_task
from triptych.intervals import mean_interval, prompts_needed, wins
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Conversation, Document, Rollout

Decision = Literal["promoted", "rejected", "too few prompts to tell"]
PROMOTED: Decision = "promoted"
REJECTED: Decision = "rejected"
UNDECIDED: Decision = "too few prompts to tell"


PIECE = 1000
"""Characters of a document on which plain text is measured."""

LEAST_PROMPTS = 6
"""Winning on every one of fewer prompts could be chance: 0.5^5 is over 2.5%."""


class Gate(Config):
    """What a candidate must show.

    Attributes:
        prompts: how many of the gate's prompts; all of them by default.
        max_kl: the largest distance from the champion, in nats per answer; none by default.
        max_length_ratio: the candidate's mean answer length over the champion's.
        max_bits_ratio: bits per byte of plain text, the candidate's over the champion's, where the data hold text.
        min_task_win_rate: a task is lost where the win rate on its prompts is lower, and its interval below one half.
        documents: how many held-out documents that is measured on, the beginning of each.
        max_tokens: an answer is cut there.
    """

    prompts: int | None = Field(default=None, ge=2)
    max_kl: float | None = Field(default=None, gt=0)
    max_length_ratio: float = Field(default=1.5, gt=0)
    max_bits_ratio: float | None = Field(default=1.25, gt=0)
    min_task_win_rate: float | None = Field(default=0.4, gt=0, le=0.5)
    documents: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=96, ge=1)


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers to the gate's prompts."""

    policy: Policy
    groups: list[list[Rollout]]

    @property
    def conversations(self) -> list[Conversation]:
        """One answer to each prompt."""
        return [Conversation(rollout.prompt, rollout.answer) for (rollout,) in self.groups]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(rollout.tokens) for (rollout,) in self.groups]


def decide(
    desk: Desk, config: Gate, candidate: Path, champion: Path, data: Path, reward: Scorer, judge: Scorer
) -> Metrics:
    """Compares candidate and champion on `data/prompts_gate.jsonl`; the decision is in the metrics.

    The judge's scores of each prompt are kept in `scores.jsonl`.
    """
    policies = [Policy.open(folder / "model") for folder in (champion, candidate)]
    prompts = read_prompts(data / "prompts_gate.jsonl")[: config.prompts]
    for policy in policies:
        prompts = policy.fitting(prompts, config.max_tokens, desk.progress)
    # Independent noise for the two: equal models must not tie on every prompt by writing the same.
    before, after = (
        Side(policy, policy.write(prompts, Sampling(config.max_tokens, seed=desk.seed * 10 + place),
                                  progress=desk.progress))
        for place, policy in enumerate(policies)
    )
    # Judged in one call, so that a judge that compares answers sees both, in both orders.
    both = [*before.conversations, *after.conversations]
    judged, rewards = scored(judge, both), reward.score(both)
    scores = {"judge": judged.totals, "reward": rewards, "length": [float(n) for n in before.lengths + after.lengths]}
    count = len(prompts)
    won = wins(judged.totals[count:], judged.totals[:count])
    with open(desk.output / "scores.jsonl", "w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            row = {"key": prompt.key, "before": judged.totals[i], "after": judged.totals[count + i], "won": won[i]}
            file.write(json.dumps(row) + "\n")
    rate, interval = mean_interval(won)
    at_equal_length, equal_interval = controlled(won, after.lengths, before.lengths)
    numbers: dict[str, Any] = {
        "win_rate": rate,
        "interval": interval,
        "length_controlled": at_equal_length,
        "length_controlled_interval": equal_interval,
        "prompts": count,
        "kl": divergence(after.policy, before.policy, after.groups),
        "tasks": by_task([prompt.task for prompt in prompts], won),
        "judge": judge.name,
        "judge_counts": dict(judged.counts),
    }
    for name, values in scores.items():
        numbers |= {f"{name}_before": sum(values[:count]) / count, f"{name}_after": sum(values[count:]) / count}
    if documents := _documents(data / "text_heldout.jsonl", config.documents):
        for moment, side in (("before", before), ("after", after)):
            numbers[f"bits_{moment}"] = bits_per_byte(
                side.policy.model, side.policy.tokenizer, documents, _context(side.policy)
            )
    decision, reason = verdict(config, numbers, prompts_needed(won, 0.5))
    return numbers | {"decision": decision, "reason": reason}


def _documents(path: Path, count: int) -> list[Document]:
    """The beginnings of so many documents; none where there is no plain text."""
    rows = read_documents(path)[:count] if path.exists() else []
    return [Document(each.text[:PIECE]) for each in rows if each.text[:PIECE].strip()]


def _context(policy: Policy) -> int:
    known = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return min(PIECE, known or PIECE)


def verdict(config: Gate, numbers: dict[str, Any], needed: int) -> tuple[Decision, str]:
    """The decision and why, from a gate's numbers."""
    if numbers["prompts"] < LEAST_PROMPTS:
        return UNDECIDED, f"{numbers['prompts']} prompts prove nothing; {LEAST_PROMPTS} are the least"
    low, high = numbers["interval"]
    forgotten = numbers.get("bits_after", 0.0) / max(numbers.get("bits_before", 1.0), 1e-9)
    shown = f"win rate {numbers['win_rate']:.1%} (95% interval {low:.1%} to {high:.1%})"
    ratio = numbers["length_after"] / max(numbers["length_before"], 1e-9)
    if config.max_kl is not None and not numbers["kl"] <= config.max_kl:  # a KL that is no number is over it too
        return REJECTED, f"KL of {numbers['kl']:.1f} nats per answer is over the budget of {config.max_kl:g}"
    if ratio > config.max_length_ratio:
        return REJECTED, f"answers are {ratio:.2f} times as long, over the budget of {config.max_length_ratio:g}"
    if config.max_bits_ratio is not None and "bits_after" in numbers and not forgotten <= config.max_bits_ratio:
        return REJECTED, (
            f"plain text takes {forgotten:.2f} times as many bits, over the budget of {config.max_bits_ratio:g}: the "
            "candidate has forgotten some of what the Base knew"
        )
    for task, found in numbers.get("tasks", {}).items():
        least = config.min_task_win_rate
        if least is not None and found["score"] < least and found["interval"][1] < 0.5:
            task_low, task_high = found["interval"]
            return REJECTED, (
                f"{numbers['judge']} prefers the champion on {task}: win rate {found['score']:.1%} (95% interval "
                f"{task_low:.1%} to {task_high:.1%}), under the budget of {least:.0%}"
            )
    if low > 0.5:
        return PROMOTED, f"{numbers['judge']} prefers the candidate: {shown}"
    if high < 0.5:
        return REJECTED, f"{numbers['judge']} prefers the champion: {shown}"
    return UNDECIDED, f"{shown} does not exclude one half; about {needed} prompts would, at this rate"
