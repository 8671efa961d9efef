"""`summary.json`: what a run came to, typed; `docs/summary.md` explains each field to a user.

Scores of the exact judge lie in [0, 1]; a reward model's scores are in its own units. Every interval is a
95% interval `[low, high]`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]


class Row(BaseModel):
    """A part of the summary; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Verdict(Row):
    """Whether the loop made the model better, and what was missed.

    Attributes:
        better: True where the champion's score is above round 0's Instruct, interval excluding zero.
        gain: champion minus Instruct, in judge scores, on the test prompts, with its interval.
        missed: each target that was not reached, as a sentence.
    """

    better: bool
    gain: float
    gain_interval: Interval
    missed: list[str]


class TaskScore(Row):
    """A mean judge score over some prompts."""

    score: float
    interval: Interval
    prompts: int


class ModelScore(Row):
    """One model on the test prompts, which nothing was trained or chosen on.

    Attributes:
        name: "base, few-shot", "instruct", "round 1", ...
        round: 0 for Instruct, r for the candidate of round r, None for the Base.
        score: mean judge score of answers sampled at temperature 1.
        greedy_score: the same with greedy decoding.
        reward: mean score of the last reward model; None where it was not measured.
        kl: mean KL of the answers from round 0's Instruct, in nats per answer.
        mean_length: tokens per answer.
        champion: True for the model that was released as Instruct.
        by_task: the score for each kind of prompt.
    """

    name: str
    round: int | None
    score: float
    interval: Interval
    prompts: int
    greedy_score: float | None
    reward: float | None
    kl: float | None
    mean_length: float
    champion: bool
    by_task: dict[str, TaskScore]


class Base(Row):
    """The Base: where it came from and how well it predicts held-out text.

    Attributes:
        source: "trained from scratch" or where it was taken from.
        bits_per_byte: on held-out text; None where the recipe names no text.
    """

    source: str
    parameters: int
    vocabulary: int
    bits_per_byte: float | None
    tokens_seen: int | None


class Bin(Row):
    """One bar of a reliability diagram: predicted preference against what was preferred."""

    confidence: float
    accuracy: float
    count: int


class Audit(Row):
    """One reward model on held-out comparisons.

    Attributes:
        accuracy: share of held-out comparisons ordered as labelled, intervals clustered by prompt.
        ceiling: the best accuracy that the label noise allows (1 - noise); None where it is unknown.
        baselines: the same accuracy for trivial rules: "random", "longer wins", "shorter wins".
        calibration_error: expected calibration error over `bins`.
        length_correlation: Spearman correlation of reward and answer length.
        when_longer, when_shorter: accuracy where the longer (shorter) answer is the preferred one.
        passed: whether this reward model may train anything; `reasons` says why not.
    """

    round: int
    comparisons: int
    trained_on: int
    accuracy: float
    interval: Interval
    ceiling: float | None
    baselines: dict[str, float]
    by_group: dict[str, TaskScore]
    calibration_error: float
    bins: list[Bin]
    length_correlation: float
    when_longer: float | None
    when_shorter: float | None
    passed: bool
    reasons: list[str]


class Point(Row):
    """The policy at one step of improvement; `judge` only where it was measured."""

    step: int
    kl: float
    reward: float
    judge: float | None
    length: float
    entropy: float | None


class Round(Row):
    """One round of improvement and the gate's decision on held-out prompts.

    Attributes:
        reward_before, reward_after: mean score of the round's reward model on the gate's prompts.
        judge_before, judge_after: mean score of the judge for champion and candidate.
        win_rate: share of the gate's prompts where the judge prefers the candidate, ties counted half.
        kl: candidate from the round's reference, nats per answer, on the gate's prompts.
        length_before, length_after: mean tokens per answer.
        decision: "promoted", "rejected" or "too few prompts to tell".
        curve: reward, judge and KL along the way.
    """

    round: int
    method: str
    reward_before: float
    reward_after: float
    judge_before: float
    judge_after: float
    win_rate: float
    interval: Interval
    prompts: int
    kl: float
    length_before: float
    length_after: float
    decision: str
    reason: str
    curve: list[Point]


class StageRow(Row):
    """One stage: how long it took, from what, and its fingerprint."""

    name: str
    kind: str
    seconds: float
    fingerprint: str
    digest: str
    parents: list[str]


class Loss(Row):
    """One point of a training curve; `seen` counts tokens, pairs or answers, as the stage does."""

    step: int
    loss: float
    seen: int


class Summary(Row):
    """The whole of `summary.json`."""

    name: str
    version: str
    judge: str
    verdict: Verdict | None
    base: Base
    models: list[ModelScore]
    audits: list[Audit]
    rounds: list[Round]
    stages: list[StageRow]
    losses: dict[str, list[Loss]]
    seconds: float
    peak_memory_gib: float
    release: str | None


class Answer(Row):
    """One model's answer to a sample prompt, scored."""

    model: str
    text: str
    judge: float | None
    reward: float | None


class Sample(Row):
    """A test prompt and what each model answered to it (`samples.json`)."""

    prompt: str
    task: str | None
    answers: list[Answer]
