"""The gate: a candidate becomes the champion only if a judge with no part in its training prefers it.

Both models answer the gate's prompts, which nothing was trained on; the judge scores the answers. The win rate
(ties a half) has a 95% bootstrap interval over prompts, and the candidate is promoted where the interval lies
above one half, inside the budgets for distance and length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_prompts
from triptych.engine.generation import Sampling
from triptych.engine.rollout import Policy, divergence
from triptych.engine.scoring import Scorer, scored
from triptych.intervals import mean_interval, prompts_needed, wins
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Conversation

Decision = Literal["promoted", "rejected", "too few prompts to tell"]
PROMOTED: Decision = "promoted"
REJECTED: Decision = "rejected"
UNDECIDED: Decision = "too few prompts to tell"


LEAST_PROMPTS = 6
"""Winning on every one of fewer prompts could be chance: 0.5^5 is over 2.5%."""


class Gate(Config):
    """What a candidate must show.

    Attributes:
        prompts: how many of the gate's prompts; all of them by default.
        max_kl: the largest distance from the champion, in nats per answer; none by default.
        max_length_ratio: the candidate's mean answer length over the champion's.
        max_tokens: an answer is cut there.
    """

    prompts: int | None = Field(default=None, ge=2)
    max_kl: float | None = Field(default=None, gt=0)
    max_length_ratio: float = Field(default=1.5, gt=0)
    max_tokens: int = Field(default=96, ge=1)


def decide(
    desk: Desk, config: Gate, candidate: Path, champion: Path, data: Path, reward: Scorer, judge: Scorer
) -> Metrics:
    """Compares candidate and champion on `data/prompts_gate.jsonl`; the decision is in the metrics."""
    prompts = read_prompts(data / "prompts_gate.jsonl")[: config.prompts]
    sides: dict[str, dict[str, Any]] = {}
    policies = {}
    for place, (name, folder) in enumerate({"champion": champion, "candidate": candidate}.items()):
        policies[name] = policy = Policy.open(folder / "model")
        prompts = policy.fitting(prompts, config.max_tokens, desk.progress)
        # Independent noise for the two: equal models must not tie on every prompt by writing the same.
        sampling = Sampling(config.max_tokens, seed=desk.seed * 10 + place)
        groups = policy.write(prompts, sampling, progress=desk.progress)
        conversations = [Conversation(rollout.prompt, rollout.answer) for (rollout,) in groups]
        judged = scored(judge, conversations)
        sides[name] = {
            "groups": groups,
            "judge": judged.totals,
            "counts": judged.counts,
            "reward": reward.score(conversations),
            "length": sum(len(rollout.tokens) for (rollout,) in groups) / len(groups),
        }
    won = wins(sides["candidate"]["judge"], sides["champion"]["judge"])
    rate, interval = mean_interval(won)
    numbers = {
        "win_rate": rate,
        "interval": interval,
        "prompts": len(prompts),
        "kl": divergence(policies["candidate"], policies["champion"], sides["candidate"]["groups"]),
        "judge": judge.name,
        "judge_counts": {name: {moment: sides[moment]["counts"][name] for moment in sides}
                         for name in sides["champion"]["counts"]},
    }
    for name in ("judge", "reward"):
        for moment, side in (("before", "champion"), ("after", "candidate")):
            numbers[f"{name}_{moment}"] = mean_interval(sides[side][name])[0]
    numbers |= {"length_before": sides["champion"]["length"], "length_after": sides["candidate"]["length"]}
    decision, reason = verdict(config, numbers, prompts_needed(won, 0.5))
    return numbers | {"decision": decision, "reason": reason}


def verdict(config: Gate, numbers: dict[str, Any], needed: int) -> tuple[Decision, str]:
    """The decision and why, from a gate's numbers."""
    if numbers["prompts"] < LEAST_PROMPTS:
        return UNDECIDED, f"{numbers['prompts']} prompts prove nothing; {LEAST_PROMPTS} are the least"
    low, high = numbers["interval"]
    shown = f"win rate {numbers['win_rate']:.1%} (95% interval {low:.1%} to {high:.1%})"
    ratio = numbers["length_after"] / max(numbers["length_before"], 1e-9)
    if config.max_kl is not None and not numbers["kl"] <= config.max_kl:  # a KL that is no number is over it too
        return REJECTED, f"KL of {numbers['kl']:.1f} nats per answer is over the budget of {config.max_kl:g}"
    if ratio > config.max_length_ratio:
        return REJECTED, f"answers are {ratio:.2f} times as long, over the budget of {config.max_length_ratio:g}"
    if low > 0.5:
        return PROMOTED, f"{numbers['judge']} prefers the candidate: {shown}"
    if high < 0.5:
        return REJECTED, f"{numbers['judge']} prefers the champion: {shown}"
    return UNDECIDED, f"{shown} does not exclude one half; about {needed} prompts would, at this rate"
