"""The gate: a candidate becomes the champion only if a judge with no part in its training prefers it.

Both models have answered the round's prompts, which nothing was trained on; the judge scores the answers, or people say
which they prefer. The candidate is promoted where its win rate (ties a half) is above one half by an exact test at the
round's share of the run's error, inside the budgets for distance, length, single tasks, benchmarks, and what plain text
costs. The win rate at equal length stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_any, read_verdicts
from triptych.engine.scoring import Scorer, Scores, scored
from triptych.evaluate.answers import Answered, answered
from triptych.evaluate.benchmarking import BenchmarkBudget, changed
from triptych.evaluate.lengths import controlled, controlled_gain
from triptych.evaluate.measurement import by_task
from triptych.evaluate.panel import PEOPLE, beside, preferred, reliability
from triptych.instructions.following import followed_by_kind
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.statistics.intervals import Interval, mean_interval, prompts_needed, wins
from triptych.statistics.reliability import Reliability
from triptych.statistics.scores import BenchmarkChange, PairedScore, TaskScore, paired_by_name
from triptych.statistics.significance import chance, least, level
from triptych.storage import Folder, read_rows

Decision = Literal["promoted", "rejected", "too few prompts to tell"]
PROMOTED: Decision = "promoted"
REJECTED: Decision = "rejected"
UNDECIDED: Decision = "too few prompts to tell"

SCORES = "scores.jsonl"

CUT, UNREADABLE, INCONSISTENT = 0.1, 0.05, 0.25
"""Shares of answers that were cut, of replies that are none and of verdicts that go with the place, that are told."""


class Gate(Config):
    """What a candidate must show.

    Attributes:
        error: the probability, at most, that a run ever promotes a candidate that is no better, over all of its rounds.
        max_kl: the largest distance from the champion, in nats per answer; none by default.
        min_length_ratio, max_length_ratio: bounds of the candidate's mean answer length over the champion's.
        max_bits_ratio: bits per byte of plain text, the candidate's over the champion's, where the data hold text.
        min_task_win_rate: a task is lost where the win rate on its prompts is lower, and an exact test says that it is
            below one half; all tasks of a round share one `error`.
        min_task_prompts: a task with fewer does not count.
        max_preference_loss: where a second reward model says whether people's preferences hold, its score of the
            candidate may be lower than that of the champion by so much, in its deviations, and no more by its interval.
    """

    error: float = Field(default=0.05, gt=0, lt=0.5)
    max_kl: float | None = Field(default=None, gt=0)
    min_length_ratio: float | None = Field(default=0.5, gt=0, le=1)
    max_length_ratio: float = Field(default=1.5, gt=0)
    max_bits_ratio: float | None = Field(default=1.25, gt=0)
    min_task_win_rate: float | None = Field(default=0.4, gt=0, le=0.5)
    min_task_prompts: int = Field(default=20, ge=1)
    max_preference_loss: float = Field(default=0.1, ge=0)


class Decided(Answered):
    """The gate's decision, and all that it was made from.

    Attributes:
        win_rate: share of the round's prompts where who decides prefers the candidate, ties counted half.
        interval: of the win rate, at 1 − 2 · level.
        level: the round's share of the run's error, one-sided.
        p_value: the chance that two equal models come to this win rate or more.
        length_controlled: the win rate at equal length, with its interval; None where lengths hardly overlap.
        tasks: the win rate on each task's prompts.
        lost_tasks: those that the candidate lost, each with its p-value.
        judge_counts: what else the judge said, such as contradictions.
        decided_by: the judge, or people; then the judge's own win rate and how often the two agree stand beside.
        people: who decided, where people did: how many answered what, and how far they agree.
        judge_before, judge_after, reward_before, reward_after: mean scores of champion and candidate.
        parts: what judge and reward are made of, as each of their rules: "judge/length", "reward/length".
        instructions: for each kind of the prompts' instructions how often it is followed.
        preferences: what a second reward model says of the two, where rules or a language model decide.
        preferences_at_equal_length: its gain at equal length, with the interval; None where lengths hardly overlap.
        benchmarks: champion and candidate on each benchmark that has a budget.
    """

    win_rate: float
    interval: Interval
    level: float
    p_value: float
    length_controlled: float | None = None
    length_controlled_interval: Interval | None = None
    tasks: dict[str, TaskScore]
    lost_tasks: dict[str, float]
    judge: str
    judge_counts: dict[str, int]
    decided_by: str
    judge_win_rate: float | None = None
    judge_interval: Interval | None = None
    agreement: float | None = None
    agreement_prompts: int | None = None
    people: Reliability | None = None
    judge_before: float
    judge_after: float
    reward_before: float
    reward_after: float
    parts: dict[str, PairedScore] = Field(default_factory=dict)
    instructions: dict[str, PairedScore] = Field(default_factory=dict)
    preferences: PairedScore | None = None
    preferences_at_equal_length: tuple[float, Interval] | None = None
    benchmarks: dict[str, BenchmarkChange] = Field(default_factory=dict)
    decision: Decision = UNDECIDED
    reason: str = ""

    @classmethod
    def planned(cls) -> Self:
        """The candidate is promoted."""
        return cls.model_construct(decision=PROMOTED, reason="planned")

    @property
    def headline(self) -> str:
        """The decision and the win rate."""
        return f"{self.decision}, win rate {self.win_rate:.1%}"


class GateScores(Result):
    """The scores of the two answers to a prompt, and the share of it that the candidate won.

    Attributes:
        key: the prompt's.
        before, after: by the judge.
        reward_before, reward_after: by the reward; by the judge where none was given.
    """

    key: str
    before: float
    after: float
    won: float
    reward_before: float
    reward_after: float


def gate_scores(folder: Folder) -> list[GateScores]:
    """Those of a gate, from its folder."""
    return [GateScores.model_validate(row) for row in read_rows(folder / SCORES)]


def decide(
    context: StageContext, config: Gate, /, answers: Folder, measured: Answered, reward: Scorer | None,
    judge: Scorer | None, failures: int = 0, preferences: Scorer | None = None,
    sources: Mapping[str, str | Path] | None = None, budgets: Mapping[str, BenchmarkBudget] | None = None,
    **benchmarks: Folder,
) -> Decided:
    """Compares the answers of candidate and champion; and decides.

    Each prompt's scores are kept in `scores.jsonl`.

    Args:
        answers: of the two, as :func:`triptych.evaluate.answers.answer` leaves them.
        measured: what it measured of them.
        reward: another scorer whose mean scores stand beside; without it the judge's do.
        judge: who decides; None where people do without one, and the shares of people are the scores.
        failures: the rounds of the run before this one that did not promote.
        preferences: scores both models' answers, where the judge is another; the candidate may not lose by it.
        sources: a file of people's verdicts, where they decide; the judge's win rate is then told beside theirs.
        budgets: what the candidate may lose of benchmarks.
        benchmarks: both models on each of these, by :func:`triptych.evaluate.benchmarking.measured_as`.
    """
    pairs = answered(answers)
    # Judged in one call, so that a judge that compares answers sees both, in both orders.
    both = [conversation for side in zip(*(pair.conversations for pair in pairs), strict=True) for conversation in side]
    shares = people = None
    if sources:
        (file,) = sources.values()
        verdicts = read_any(Path(file), read_verdicts)
        shares, people = preferred(pairs, verdicts), reliability(pairs, verdicts)
    judged = scored(judge, both) if judge else Scores([*(1 - share for share in shares or ()), *(shares or ())])
    rewarded = scored(reward, both) if reward else Scores(judged.totals)
    count = len(pairs)
    held = preferences.score(both) if preferences else []
    before, after = judged.totals[:count], judged.totals[count:]
    by_judge = wins(after, before)
    won = by_judge if shares is None else shares
    judge_beside = beside(shares, by_judge) if shares is not None and judge else None
    name = judge.name if judge else PEOPLE
    with open(context.output / SCORES, "w", encoding="utf-8") as scores:
        for place, (pair, old, new, share) in enumerate(zip(pairs, before, after, won, strict=True)):
            row = GateScores(
                key=pair.prompt.key, before=old, after=new, won=share, reward_before=rewarded.totals[place],
                reward_after=rewarded.totals[count + place],
            )
            scores.write(json.dumps(row.model_dump()) + "\n")
    at = level(config.error, failures)
    rate, interval = mean_interval(won, confidence=1 - 2 * at)
    tasks = [pair.prompt.task for pair in pairs]
    parts = [judged.parts_of(place, "judge") | rewarded.parts_of(place, "reward") for place in range(2 * count)]
    followed = [followed_by_kind(row.prompt, row.answer) for row in both]
    lengths = [pair.tokens_after for pair in pairs], [pair.tokens_before for pair in pairs]
    at_equal_length, equal_interval = controlled(won, *lengths) or (None, None)
    numbers = Decided(
        prompts=measured.prompts,
        prompts_again=measured.prompts_again,
        kl=measured.kl,
        decoding_before=measured.decoding_before,
        decoding_after=measured.decoding_after,
        length_before=measured.length_before,
        length_after=measured.length_after,
        cut_before=measured.cut_before,
        cut_after=measured.cut_after,
        bits_before=measured.bits_before,
        bits_after=measured.bits_after,
        win_rate=rate,
        interval=interval,
        level=at,
        p_value=chance(won),
        length_controlled=at_equal_length,
        length_controlled_interval=equal_interval,
        tasks=by_task(tasks, won),
        lost_tasks=lost(config, tasks, won),
        judge=name,
        judge_counts=dict(judged.counts),
        decided_by=PEOPLE if sources else name,
        judge_win_rate=judge_beside.win_rate if judge_beside else None,
        judge_interval=judge_beside.interval if judge_beside else None,
        agreement=judge_beside.agreement if judge_beside else None,
        agreement_prompts=judge_beside.prompts if judge_beside else None,
        people=people,
        judge_before=sum(judged.totals[:count]) / count,
        judge_after=sum(judged.totals[count:]) / count,
        reward_before=sum(rewarded.totals[:count]) / count,
        reward_after=sum(rewarded.totals[count:]) / count,
        parts=paired_by_name(parts[:count], parts[count:]),
        instructions=paired_by_name(followed[:count], followed[count:]),
        preferences=PairedScore.of(held[:count], held[count:]) if held else None,
        preferences_at_equal_length=controlled_gain(
            [new - old for new, old in zip(held[count:], held[:count], strict=True)], *lengths
        ) if held else None,
        benchmarks=changed(budgets or {}, benchmarks),
    )
    decision, reason = verdict(config, numbers, won)
    if numbers.prompts_again is not None:
        reason += f"; the prompts of round {numbers.prompts_again} decide again"
    for doubt in doubts(numbers):
        reason += f"; {doubt}"
    return numbers.model_copy(update={"decision": decision, "reason": reason})


def doubts(numbers: Decided) -> Iterator[str]:
    """What makes a gate's numbers worth less than they look, each in words."""
    if max(numbers.cut_before or 0.0, numbers.cut_after or 0.0) > CUT:
        yield (
            f"{numbers.cut_after:.0%} of the candidate's answers were cut at max_tokens and {numbers.cut_before:.0%} "
            "of the champion's, and are judged as far as they go"
        )
    asked = numbers.judge_counts.get("asked", 0)
    unreadable, inconsistent = (numbers.judge_counts.get(name, 0) for name in ("unreadable", "inconsistent"))
    if unreadable > UNREADABLE * asked:
        yield f"{unreadable:,} of {asked:,} replies of {numbers.judge} cannot be read, and count as the middle"
    if inconsistent > INCONSISTENT * asked:
        yield f"{inconsistent:,} of {asked:,} verdicts of {numbers.judge} went with the place and not with the answer"


def _at_equal_length(numbers: Decided) -> str:
    """How much of lost preferences is not of length, in words."""
    if numbers.preferences_at_equal_length is None:
        return ""
    gain, (low, high) = numbers.preferences_at_equal_length
    return (
        f"; at equal length it differs by {gain:+.2f} ({low:+.2f} to {high:+.2f}), and answers are "
        f"{numbers.length_after / max(numbers.length_before, 1e-9):.2f} times as long"
    )


def lost(config: Gate, tasks: Sequence[str | None], won: Sequence[float]) -> dict[str, float]:
    """The tasks that the candidate lost, each with the p-value of "below one half" (Bonferroni)."""
    members: dict[str, list[float]] = {}
    for task, outcome in zip(tasks, won, strict=True):
        if task:
            members.setdefault(task, []).append(1 - outcome)
    counted = {task: these for task, these in sorted(members.items()) if len(these) >= config.min_task_prompts}
    if config.min_task_win_rate is None:
        return {}
    worse = {task: chance(these) for task, these in counted.items()
             if 1 - sum(these) / len(these) < config.min_task_win_rate}
    return {task: p for task, p in worse.items() if p <= config.error / len(counted)}


def verdict(config: Gate, numbers: Decided, won: Sequence[float]) -> tuple[Decision, str]:
    """The decision and why, from a gate's numbers and what became of each prompt."""
    at, needed = numbers.level, least(numbers.level)
    if numbers.prompts < needed:
        lacking = f"{numbers.prompts} prompts cannot prove anything at this round's level, {at:.2g}"
        return UNDECIDED, f"{lacking}; {needed} are the least"
    low, high = numbers.interval
    bits_known = numbers.bits_after is not None and numbers.bits_before is not None
    forgotten = (numbers.bits_after or 0.0) / max(numbers.bits_before or 0.0, 1e-9)
    shown = f"win rate {numbers.win_rate:.1%} ({100 - 200 * at:.4g}% interval {low:.1%} to {high:.1%})"
    ratio = numbers.length_after / max(numbers.length_before, 1e-9)
    if config.max_kl is not None and numbers.kl is not None and not numbers.kl <= config.max_kl:  # NaN is over it too
        return REJECTED, f"KL of {numbers.kl:.1f} nats per answer is over the budget of {config.max_kl:g}"
    if not numbers.length_before and not numbers.length_after:
        ratio = 1.0  # neither says anything
    if ratio > config.max_length_ratio:
        return REJECTED, f"answers are {ratio:.2f} times as long, over the budget of {config.max_length_ratio:g}"
    if config.min_length_ratio is not None and ratio < config.min_length_ratio:
        return REJECTED, f"answers are {ratio:.2f} times as long, under the budget of {config.min_length_ratio:g}"
    if config.max_bits_ratio is not None and bits_known and not forgotten <= config.max_bits_ratio:
        return REJECTED, (
            f"plain text takes {forgotten:.2f} times as many bits, over the budget of {config.max_bits_ratio:g}: the "
            "candidate has forgotten some of what the Base knew"
        )
    kept = numbers.preferences
    if kept is not None and not kept.interval[0] >= -config.max_preference_loss:
        return REJECTED, (
            f"people's preferences may be lost: by the reward model trained apart the candidate's score differs by "
            f"{kept.gain:+.2f} (95% interval {kept.interval[0]:+.2f} to {kept.interval[1]:+.2f}), and the budget "
            f"is {-config.max_preference_loss:g}" + _at_equal_length(numbers)
        )
    for name, change in numbers.benchmarks.items():
        if not change.holds:
            return REJECTED, (
                f"{name} may be lost: {change.measure} is {change.before:.3f} with the champion and "
                f"{change.after:.3f} with the candidate ({change.gain:+.3f}; by the 95% interval it may have lost "
                f"{change.most_lost:.3f}), and its max_loss is {change.max_loss:g}"
            )
    for task, p in numbers.lost_tasks.items():
        score = numbers.tasks[task]
        return REJECTED, (
            f"the champion is preferred on {task} by {numbers.decided_by}: win rate {score.score:.1%} of "
            f"{score.prompts} prompts (p {p:.2g}), under the budget of {config.min_task_win_rate:.0%}"
        )
    if numbers.p_value <= at:
        return PROMOTED, f"the candidate is preferred by {numbers.decided_by}: {shown}, p {numbers.p_value:.2g}"
    if chance([1 - outcome for outcome in won]) <= at:
        return REJECTED, f"the champion is preferred by {numbers.decided_by}: {shown}"
    enough = prompts_needed(won, 0.5, at)
    if enough is None:
        return UNDECIDED, f"{shown} is exactly one half, where no number of prompts would tell"
    return UNDECIDED, (
        f"{shown} is not told from one half: p {numbers.p_value:.2g}, and the round's level is {at:.2g}; about "
        f"{enough:,} prompts would, at this rate"
    )
