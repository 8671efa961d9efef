"""`summary.json`: what a run came to, typed; `docs/summary.md` explains each field to a user. And `compare.json`.

Scores of the exact judge lie in [0, 1]; a reward model's scores are in its own units. Every interval is a
95% interval `[low, high]`.
"""

from __future__ import annotations

from pydantic import Field

from triptych.audit.record import AuditRecord as AuditRecord
from triptych.audit.record import BenchmarkScores as BenchmarkScores
from triptych.audit.record import Bin as Bin
from triptych.audit.record import Interval as Interval
from triptych.audit.record import StrictModel as StrictModel
from triptych.base.record import Domain as Domain
from triptych.statistics.reliability import Reliability as Reliability
from triptych.statistics.scores import BenchmarkChange as BenchmarkChange
from triptych.statistics.scores import DecodedScore as DecodedScore
from triptych.statistics.scores import PairedScore as PairedScore
from triptych.statistics.scores import TaskScore as TaskScore


class FinalVerdict(StrictModel):
    """Whether the loop made the model better than what costs nothing, and what was missed.

    The champion is decoded as it is deployed; so is everything that is told of it but the gain at temperature 1.

    Attributes:
        better: True where the champion beats each baseline that costs nothing, the interval excluding zero; of few
            prompts an exact test must say so too.
        rival: the strongest of those, by its score on the test prompts.
        gain: champion minus rival, in judge scores, on the test prompts, with its interval.
        win_rate: share of the test prompts where the judge prefers the champion's answer to the rival's, ties counted
            half, with its interval; None where Instruct is the champion.
        equal_length: the win rate at equal length, with its interval; None where it cannot be told.
        gain_at_temperature_1: champion minus Instruct where both are sampled at temperature 1: a diagnostic.
        baselines: round 0's Instruct, and the Base, in every way, each beside the champion.
        parts: what judge and reward are made of, as each of their rules, for Instruct and champion as deployed.
        instructions: for each kind of the prompts' instructions how often they follow it.
        missed: each target that was not reached, as a sentence.
    """

    better: bool
    rival: str
    gain: float
    gain_interval: Interval
    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    equal_length: float | None = None
    equal_length_interval: Interval | None = None
    gain_at_temperature_1: float
    gain_at_temperature_1_interval: Interval
    baselines: list[Baseline]
    parts: dict[str, PairedScore] = Field(default_factory=dict)
    instructions: dict[str, PairedScore] = Field(default_factory=dict)
    missed: list[str]

    @property
    def decisive(self) -> Baseline:
        """The baseline that says most: one that is not beaten where there is one, else the strongest."""
        free = [baseline for baseline in self.baselines if baseline.free]
        unbeaten = [baseline for baseline in free if baseline.gain_interval[0] <= 0]
        return next(iter(unbeaten), None) or next(one for one in free if one.name == self.rival)

    @property
    def claim(self) -> str:
        """What may be said of the champion beside the decisive baseline."""
        if self.better:
            return "better than"
        few = self.decisive.gain_interval[0] > 0
        return "not surely better, on so few prompts, than" if few else "no better than"


RIVALS = {"instruct": "Instruct", "base": "Base", "base, few-shot": "few-shot Base"}
"""Models that a champion must beat however they are decoded, and what they are called: round 0's Instruct, and the Base
as it can be asked."""


def decoded_as(way: str, model: str = "Instruct") -> str:
    """A model decoded in a way, in words; round 0's Instruct."""
    if way == "greedy":
        return f"greedy {model}"
    return f"{model} at {way}" if way.startswith("temperature") else f"{model}, {way}"


class Baseline(StrictModel):
    """Round 0's Instruct, or the Base, on the test prompts, and how far the champion is above it.

    Attributes:
        name: "greedy Instruct", "Instruct at temperature 0.5", "Instruct, best of 8", "greedy Base", "greedy few-shot
            Base".
        free: False where it takes more than one answer; then it is not to be beaten, but to be known.
        drawn: answers that are written for each that is kept, which is what it costs.
        gain: champion minus this, in judge scores, with the paired interval over the prompts.
    """

    name: str
    free: bool
    drawn: int
    score: float
    interval: Interval
    gain: float
    gain_interval: Interval


class Tally(StrictModel):
    """On how many prompts the judge scores one answer above another, below it, or the same."""

    better: int
    worse: int
    as_good: int

    @property
    def total(self) -> int:
        """Of all prompts."""
        return self.better + self.worse + self.as_good


class RewardOrder(StrictModel):
    """Base, Instruct and the champions from the worst to the best, by the judge and by the released reward.

    Attributes:
        agree: of no two models does the judge surely prefer one and the reward surely the other.
    """

    by_judge: list[str]
    by_reward: list[str]
    agree: bool


class ModelScore(StrictModel):
    """One model on the test prompts, which nothing was trained or chosen on.

    Attributes:
        name: "base" or "base, few-shot", "instruct", "round 1", ...
        round: 0 for Instruct, r for the candidate of round r, None for the Base.
        decoding: "greedy", "temperature 0.5", ...: as the model is deployed, to which score, reward, length and
            `by_task` belong.
        score: mean judge score.
        decodings: the scores of each way in which it was decoded, by its name: as deployed, "temperature 1",
            "greedy", and for Instruct "best of 8".
        reward: mean score of the last reward model; None where it was not measured.
        kl: mean KL from round 0's Instruct, in nats per answer, whatever the decoding: at temperature 1.
        mean_length: tokens per answer.
        champion: True for the model that was released as Instruct.
        by_task: the score for each kind of prompt.
        fewer_examples: of a Base, the prompts that left no room for all examples in its context.
        beside_instruct: a candidate's answers beside those of round 0's Instruct, both as deployed; None of others.
    """

    name: str
    round: int | None
    decoding: str
    score: float
    interval: Interval
    prompts: int
    decodings: dict[str, DecodedScore]
    reward: float | None
    kl: float | None
    mean_length: float
    champion: bool
    by_task: dict[str, TaskScore]
    fewer_examples: int = 0
    beside_instruct: Tally | None = None


class Base(StrictModel):
    """The Base: where it came from and how well it predicts held-out text.

    Attributes:
        source: "trained from scratch" or where it was taken from.
        revision: the Hub's commit of one that was taken from there.
        bits_per_byte: on held-out text; None where the recipe names no text.
        domains: bits per byte of each file's text before and after, where a taken Base was trained further.
    """

    source: str
    parameters: int
    vocabulary: int
    bits_per_byte: float | None
    tokens_seen: int | None
    domains: tuple[Domain, ...] = ()
    revision: str | None = None


class AuditSummary(AuditRecord):
    """One reward model on held-out comparisons, or on cross-fitted ones, in its round.

    Attributes:
        trained_on: comparisons in its training; None where that is not known.
        ceiling: the best accuracy that the label noise allows (1 - noise); None where it is unknown.
        required: whether a failed audit stops the run; if not, a model that failed was used all the same.
    """

    round: int
    trained_on: int | None
    ceiling: float | None
    required: bool = True

    @classmethod
    def of(
        cls, record: AuditRecord, *, round: int, trained_on: int | None, ceiling: float | None = None,
        required: bool = True,
    ) -> AuditSummary:
        """A record with what its round adds."""
        return cls(round=round, trained_on=trained_on, ceiling=ceiling, required=required, **dict(record))


class Point(StrictModel):
    """The policy at one step of improvement, on the validation prompts; None of who did not measure it.

    Attributes:
        reward_interval, judge_interval: of the two means, over these prompts; None where each prompt's scores are gone.
        loss, margin: on held-out feedback, where there is no reward; the margin is that of DPO's implicit rewards.
    """

    step: int
    kl: float
    reward: float | None
    judge: float | None
    length: float
    entropy: float | None
    reward_interval: Interval | None = None
    judge_interval: Interval | None = None
    loss: float | None = None
    margin: float | None = None


class OveroptimisationSummary(StrictModel):
    """The judge's score against d = √KL, R(d) = d·(α − β·d) for best of n, else d·(α − β·log d).

    Attributes:
        peak: the KL in nats at which the curve turns over; None where it does not, or that cannot be told.
        interval: of the peak.
        residual: root mean square of what the curve leaves unexplained.
    """

    alpha: float
    beta: float
    peak: float | None
    interval: Interval | None = None
    residual: float


class DiagnosisSummary(StrictModel):
    """What a round that was not promoted failed by, and what was measured to find it.

    Attributes:
        blamed: "the Base", "the instructions", "the reward", "the optimiser", "the gate's power", or "nothing".
        because: the measurement that shows it.
        answers: of the champion to each prompt.
        passed: the share of the prompts to improve on to which one of these answers is good; None where not known.
        passed_taught: the same of prompts of demonstrations.
        ranked: how often the reward ranks two of these answers as the judge does.
        reward, judge: champion and candidate on the gate's prompts.
    """

    blamed: str
    because: str
    answers: int
    passed: TaskScore | None
    passed_taught: TaskScore | None
    ranked: TaskScore | None
    reward: PairedScore
    judge: PairedScore


class RoundSummary(StrictModel):
    """One round of improvement and the gate's decision on held-out prompts.

    Attributes:
        reward_before, reward_after: mean score of the round's reward on the gate's prompts; None without one.
        judge_before, judge_after: mean score of the judge for champion and candidate.
        decoding_before, decoding_after: how champion and candidate were decoded.
        win_rate: share of the round's prompts where who decides prefers the candidate, ties counted half; its interval
            is at 1 − 2 · level.
        level: the round's share of the run's error, one-sided; None in runs of before it was shared.
        p_value: the chance that two equal models come to this win rate or more.
        prompts_again: the round whose prompts decide once more; None where these decided nothing before.
        kl: candidate from the round's reference, nats per answer, on the gate's prompts.
        length_before, length_after: mean tokens per answer.
        cut_before, cut_after: share of the answers that were cut at `max_tokens`; None in runs of before it was told.
        length_controlled: the win rate at equal length, with its interval; None where lengths hardly overlap.
        bits_before, bits_after: bits per byte of held-out plain text; None where the recipe names none.
        tasks: the win rate on each task's prompts, where prompts name their task.
        decided_by: the judge, or people; then the judge's own win rate stands beside theirs.
        agreement: where people and judge both prefer one answer, how often it is the same; on so many prompts.
        people: who decided, where people did: how many answered what, and how far they agree.
        parts: what judge and reward are made of, as each of their rules, for champion and candidate.
        instructions: for each kind of the prompts' instructions how often they follow it.
        preferences: scores of a reward model trained apart, where the judge is another.
        benchmarks: champion and candidate on each benchmark that bounds what the candidate may lose.
        decision: "promoted", "rejected" or "too few prompts to tell".
        curve: reward, judge and KL along the way.
        validation_prompts: of so many prompts each of its points is; None where that is not known.
        kept: the step whose policy was the candidate.
        watched_by: whose scores on the validation prompts chose it: the "judge", or the "reward" where no judge may;
            without a reward the "loss" on held-out feedback, or "nothing" where none is held out.
        alarms: what went wrong on the way.
        overoptimisation: the fitted curve, where there were points enough.
        diagnosis: what it failed by, where it was not promoted.
    """

    round: int
    method: str
    reward_before: float | None
    reward_after: float | None
    judge_before: float
    judge_after: float
    win_rate: float
    interval: Interval
    level: float | None = None
    p_value: float | None = None
    prompts: int
    prompts_again: int | None = None
    decoding_before: str
    decoding_after: str
    kl: float
    length_before: float
    length_after: float
    cut_before: float | None = None
    cut_after: float | None = None
    length_controlled: float | None = None
    length_controlled_interval: Interval | None = None
    bits_before: float | None = None
    bits_after: float | None = None
    tasks: dict[str, TaskScore] = Field(default_factory=dict)
    decided_by: str | None = None
    judge_win_rate: float | None = None
    judge_interval: Interval | None = None
    agreement: float | None = None
    agreement_prompts: int | None = None
    people: Reliability | None = None
    parts: dict[str, PairedScore] = Field(default_factory=dict)
    instructions: dict[str, PairedScore] = Field(default_factory=dict)
    preferences: PairedScore | None = None
    benchmarks: dict[str, BenchmarkChange] = Field(default_factory=dict)
    decision: str
    reason: str
    curve: list[Point]
    validation_prompts: int | None = None
    kept: int | None = None
    watched_by: str = "judge"
    alarms: list[str] = Field(default_factory=list)
    overoptimisation: OveroptimisationSummary | None = None
    diagnosis: DiagnosisSummary | None = None


class TaskSummary(StrictModel):
    """The models on the prompts of a task, each as it is deployed; nothing was trained on them, or chosen by them.

    Attributes:
        scored_by: the task's rules.
        models: as on the test prompts.
        change: round 0's Instruct before, the champion after; None where they are one.
        parts: each of the rules, before and after.
        instructions: for each kind of the prompts' instructions how often the two follow it.
    """

    name: str
    scored_by: str
    models: list[ModelScore]
    change: PairedScore | None = None
    parts: dict[str, PairedScore] = Field(default_factory=dict)
    instructions: dict[str, PairedScore] = Field(default_factory=dict)


class BenchmarkScore(StrictModel):
    """One model by one measure of a benchmark.

    Attributes:
        model: "base", "instruct", "round 1", ...
        plain: whether it was asked in plain text, as a Base without a chat template is; then it does not compare.
        champion: True for the model that was released as Instruct.
        interval: None where the measure has none.
        change: of a round's candidate, from round 0's Instruct; None where the measure is no mean over documents.
    """

    model: str
    plain: bool = False
    champion: bool = False
    value: float
    interval: Interval | None
    change: BenchmarkChange | None = None


class BenchmarkMeasure(StrictModel):
    """The models by one measure of a benchmark."""

    measure: str
    higher_is_better: bool
    scores: list[BenchmarkScore]


class BenchmarkSummary(StrictModel):
    """The models on a benchmark of lm-evaluation-harness; nothing was trained on it, or chosen by it.

    Attributes:
        documents: how many each was asked.
        max_loss: what a candidate may lose to the champion; None where it may lose anything.
        measures: that which counts first.
    """

    name: str
    documents: int
    max_loss: float | None = None
    measures: list[BenchmarkMeasure]


class RewardBenchmarkSummary(StrictModel):
    """A round's reward by a benchmark's own measures; the last is that of the whole."""

    name: str
    round: int
    scores: BenchmarkScores


class StageRow(StrictModel):
    """One stage: how long it took, from what, and its fingerprint."""

    name: str
    kind: str
    seconds: float
    fingerprint: str
    digest: str
    parents: list[str]


class LossPoint(StrictModel):
    """One point of a training curve, of the rows that the step learnt from; `seen` counts what `units` says."""

    step: int
    loss: float
    seen: int


class PromptSearch(StrictModel):
    """The prompt that a model answers best, of those that were tried on the validation prompts.

    Attributes:
        model: "instruct" or "base".
        prompt: what stands before each prompt, in words.
        tried: how many.
        chooser: whose scores chose.
        gain: over the prompt alone, on the prompts that chose it.
        sampled: tokens, those of reflection included.
        rewrites: how many system prompts a language model wrote by reflection.
        accepted: how many of them were better on the prompts that they were written from.
        reflected: whether the prompt that was found is one of these.
    """

    model: str
    prompt: str
    tried: int
    chooser: str
    gain: float
    gain_interval: Interval
    sampled: int
    rewrites: int = 0
    accepted: int = 0
    reflected: bool = False


class Summary(StrictModel):
    """The whole of `summary.json`.

    Attributes:
        reward_order: whether the reward orders the models as the judge does; None where it did not score them.
        prompts: what was found where a better prompt was searched for.
        tasks: the models on each task of the recipe.
        benchmarks: the models on each benchmark of the recipe.
        reward_benchmarks: each round's reward, where it is a new one, on each benchmark of rewards.
        judged_by_reward: whether a rule of the gate's judge is one of the reward's, too.
        judge_audit: of the gate's judge, where that is a second reward model; its `round` is 0.
        preferences_audit: of the reward model that says whether preferences hold, where the judge is another.
        units: what a training's losses are means over, and its points count as `seen`, by its stage.
        ended: why the run ended before its end; None where it did not.
        missing: the stages that it did not come to.
    """

    name: str
    version: str
    judge: str
    judged_by_reward: bool = False
    verdict: FinalVerdict | None
    base: Base
    models: list[ModelScore]
    reward_order: RewardOrder | None = None
    audits: list[AuditSummary]
    judge_audit: AuditSummary | None = None
    preferences_audit: AuditSummary | None = None
    rounds: list[RoundSummary]
    prompts: list[PromptSearch] = Field(default_factory=list)
    tasks: list[TaskSummary] = Field(default_factory=list)
    benchmarks: list[BenchmarkSummary] = Field(default_factory=list)
    reward_benchmarks: list[RewardBenchmarkSummary] = Field(default_factory=list)
    stages: list[StageRow]
    losses: dict[str, list[LossPoint]]
    units: dict[str, str] = Field(default_factory=dict)
    seconds: float
    peak_memory_gib: float
    release: str | None
    ended: str | None = None
    missing: list[str] = Field(default_factory=list)

    @property
    def has_reward(self) -> bool:
        """Whether the rounds had one to learn from, as far as it came to that."""
        return all(round.reward_before is not None for round in self.rounds)


class SampleAnswer(StrictModel):
    """One model's answer to a sample prompt, scored."""

    model: str
    text: str
    judge: float | None
    reward: float | None


class Sample(StrictModel):
    """A test prompt and what each model answered to it (`samples.json`)."""

    prompt: str
    task: str | None
    answers: list[SampleAnswer]


class MethodResult(StrictModel):
    """A method's candidates, each as it is decoded best, all seeds together.

    Every interval is over the gate's prompts and, where there are several, over seeds.

    Attributes:
        decodings: of the seeds' candidates, in order.
        score: the judge's mean score, with its interval.
        better: whether it beats the champion in every way that costs nothing, each interval excluding zero.
        gain: over the strongest of them on the same prompts, with its interval.
        win_rate: against that one, with its interval.
        at_equal_length: each seed's win rate against the champion at equal length; None where lengths hardly overlap.
        kl: nats per answer from the champion.
        length: tokens per answer.
        seconds: of improvement, in the mean over seeds.
        promoted: how many of the seeds' candidates the gate promoted.
    """

    method: str
    seeds: int
    decodings: tuple[str, ...]
    better: bool
    score: float
    score_interval: Interval
    gain: float
    gain_interval: Interval
    win_rate: float
    win_rate_interval: Interval
    at_equal_length: tuple[float | None, ...]
    kl: float
    length: float
    seconds: float
    promoted: int


class Budget(StrictModel):
    """What each candidate was improved with."""

    updates: int
    answers: int


class MethodComparison(StrictModel):
    """What `compare.json` holds.

    Attributes:
        rival: the strongest way of decoding the champion, on the gate's prompts.
        before: the judge's mean score of it.
    """

    recipe: str
    judge: str
    rival: str
    before: float
    budget: Budget
    methods: tuple[MethodResult, ...] = Field(min_length=1)
