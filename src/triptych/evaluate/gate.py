"""The gate: a candidate becomes the champion only if a judge with no part in its training prefers it.

Both models have answered the gate's prompts, which nothing was trained on; the judge scores the answers, or people say
which they prefer. The win rate (ties a half) has a 95% bootstrap interval over prompts, and the candidate is promoted
where the interval lies above one half, inside the budgets for distance, length, single tasks, and what plain text
costs. The win rate at equal length stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_any, read_verdicts
from triptych.engine.scoring import Scorer, scored
from triptych.evaluate.answers import answered
from triptych.evaluate.lengths import controlled
from triptych.evaluate.measurement import by_task
from triptych.evaluate.people import PEOPLE, beside, preferred
from triptych.intervals import mean_interval, prompts_needed, wins
from triptych.pipeline.stage import Desk, Metrics

Decision = Literal["promoted", "rejected", "too few prompts to tell"]
PROMOTED: Decision = "promoted"
REJECTED: Decision = "rejected"
UNDECIDED: Decision = "too few prompts to tell"


LEAST_PROMPTS = 6
"""Winning on every one of fewer prompts could be chance: 0.5^5 is over 2.5%."""


class Gate(Config):
    """What a candidate must show.

    Attributes:
        max_kl: the largest distance from the champion, in nats per answer; none by default.
        min_length_ratio, max_length_ratio: bounds of the candidate's mean answer length over the champion's.
        max_bits_ratio: bits per byte of plain text, the candidate's over the champion's, where the data hold text.
        min_task_win_rate: a task is lost where the win rate on its prompts is lower, and its interval below one half.
    """

    max_kl: float | None = Field(default=None, gt=0)
    min_length_ratio: float | None = Field(default=0.5, gt=0, le=1)
    max_length_ratio: float = Field(default=1.5, gt=0)
    max_bits_ratio: float | None = Field(default=1.25, gt=0)
    min_task_win_rate: float | None = Field(default=0.4, gt=0, le=0.5)


def decide(
    desk: Desk, config: Gate, answers: Path, measured: Metrics, reward: Scorer, judge: Scorer,
    sources: Mapping[str, str | Path] | None = None,
) -> Metrics:
    """Compares the answers of candidate and champion; the decision is in the metrics.

    Each prompt's scores are kept in `scores.jsonl`.

    Args:
        answers: of the two, as :func:`triptych.evaluate.answers.answer` leaves them.
        measured: what it measured of them.
        sources: a file of people's verdicts, where they decide; the judge's win rate is then told beside theirs.
    """
    pairs = answered(answers)
    # Judged in one call, so that a judge that compares answers sees both, in both orders.
    both = [conversation for side in zip(*(pair.conversations for pair in pairs), strict=True) for conversation in side]
    judged, rewards = scored(judge, both), reward.score(both)
    count = len(pairs)
    before, after = judged.totals[:count], judged.totals[count:]
    by_judge = wins(after, before)
    won, said = by_judge, {}
    if sources:
        (file,) = sources.values()
        won = preferred(pairs, read_any(Path(file), read_verdicts))
        said = beside(won, by_judge)
    with open(desk.output / "scores.jsonl", "w", encoding="utf-8") as scores:
        for pair, old, new, share in zip(pairs, before, after, won, strict=True):
            row = {"key": pair.prompt.key, "before": old, "after": new, "won": share}
            scores.write(json.dumps(row) + "\n")
    rate, interval = mean_interval(won)
    lengths = [pair.tokens_after for pair in pairs], [pair.tokens_before for pair in pairs]
    at_equal_length, equal_interval = controlled(won, *lengths)
    numbers: dict[str, Any] = {
        "win_rate": rate,
        "interval": interval,
        "length_controlled": at_equal_length,
        "length_controlled_interval": equal_interval,
        "tasks": by_task([pair.prompt.task for pair in pairs], won),
        "judge": judge.name,
        "judge_counts": dict(judged.counts),
        "decided_by": PEOPLE if sources else judge.name,
        **measured,
        **said,
    }
    for name, values in {"judge": judged.totals, "reward": rewards}.items():
        numbers |= {f"{name}_before": sum(values[:count]) / count, f"{name}_after": sum(values[count:]) / count}
    decision, reason = verdict(config, numbers, prompts_needed(won, 0.5))
    return numbers | {"decision": decision, "reason": reason}


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
    if config.min_length_ratio is not None and ratio < config.min_length_ratio:
        return REJECTED, f"answers are {ratio:.2f} times as long, under the budget of {config.min_length_ratio:g}"
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
                f"{numbers['decided_by']} prefers the champion on {task}: win rate {found['score']:.1%} (95% interval "
                f"{task_low:.1%} to {task_high:.1%}), under the budget of {least:.0%}"
            )
    if low > 0.5:
        return PROMOTED, f"{numbers['decided_by']} prefers the candidate: {shown}"
    if high < 0.5:
        return REJECTED, f"{numbers['decided_by']} prefers the champion: {shown}"
    return UNDECIDED, f"{shown} does not exclude one half; about {needed} prompts would, at this rate"
