"""What an audit finds, typed: the record that a stage leaves, and that the report and the cards show.

Every interval is a 95% interval `[low, high]`, clustered by prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from triptych.configuration import reason
from triptych.errors import RunError
from triptych.pipeline.result import Result
from triptych.statistics.scores import TaskScore as TaskScore
from triptych.storage import read_object

AUDIT = "audit.json"
"""The file that a record is kept in."""

Interval = tuple[float, float]
AuditVerdict = Literal["passed", "passed with reservations", "failed"]


class StrictModel(BaseModel):
    """A part of a record; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Bin(StrictModel):
    """One bar of a reliability diagram: predicted preference against what was preferred."""

    confidence: float
    accuracy: float
    count: int


class TrivialRule(StrictModel):
    """One of the rules that a reward model is compared with, and its accuracy on the same comparisons."""

    name: str
    accuracy: float


class Lead(StrictModel):
    """How far the reward model's accuracy is above a trivial rule's on the same comparisons, as a share."""

    lead: float
    interval: Interval


class Person(StrictModel):
    """The reward model beside one of the people who voted; both are measured against one other person's vote.

    Attributes:
        comparisons: those with at least two votes.
        model: chance that the reward model orders a comparison as one of its people did.
        person: chance that another of its people did.
        lead: model minus person.
    """

    comparisons: int
    model: float
    model_interval: Interval
    person: float
    lead: float
    lead_interval: Interval


class Calibration(StrictModel):
    """Whether it is as often right as it is sure, and what mends it.

    Attributes:
        temperature: the likelihood of one half of the comparisons is best if rewards are divided by it.
        error: expected calibration error on the other half.
        mended_error: the same with the temperature; it need not be smaller.
        chance_error: what a perfectly calibrated model would show on that half, by its small number alone.
    """

    temperature: float
    error: float
    mended_error: float
    chance_error: float


class LengthBias(StrictModel):
    """What length has to do with the reward.

    Attributes:
        prefers_longer, labels_longer: of the comparisons whose answers differ in length, the share in which the
            reward, and the label, prefers the longer.
        excess: prefers_longer minus labels_longer. Flipped labels alone make one, for they draw the label's share to
            a half.
        gap: accuracy where the longer answer is preferred minus accuracy where the shorter is; None where one
            of them never is. Flipped labels alone make one here too.
        coefficient: of the length difference in a logistic regression of the label on the model's choice and the
            differences of reward and length, each in its own spread: above 0 the labels favour length more than the
            reward does, below 0 the reward favours it too much.
        reward_coefficient: that of the reward difference.
    """

    prefers_longer: float
    labels_longer: float
    excess: float
    excess_interval: Interval
    gap: float | None
    gap_interval: Interval | None
    coefficient: float
    interval: Interval
    reward_coefficient: float


class Perturbation(StrictModel):
    """Chosen answers changed in a way whose effect is known.

    Attributes:
        rule: whether the reward must fall, or must stay: change by less than the rewards of the two answers of
            the median comparison differ.
        answers: how many were changed.
        wrong: the share on which the reward broke the rule.
        change: the mean change of the reward, in that median difference.
    """

    name: str
    rule: Literal["must fall", "must stay"]
    answers: int
    wrong: float
    interval: Interval
    change: float


class Consistency(StrictModel):
    """The same answers scored in another way.

    Attributes:
        difference: the largest difference from the score of an answer alone; None where it cannot be scored so.
        tolerance: the largest that is allowed; None where it is only shown.
    """

    way: str
    difference: float | None
    tolerance: float | None

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed."""
        return self.tolerance is None or (self.difference is not None and self.difference <= self.tolerance)


class Drift(StrictModel):
    """A refreshed model beside its predecessor.

    Attributes:
        comparisons: "old" ones, which the predecessor was audited on as well, or "new" ones.
        agreement: the share of comparisons that both order alike.
        accuracy, predecessor: the accuracy of each.
        lead: accuracy minus predecessor.
        correlation: Spearman's, of the two models' reward differences.
    """

    comparisons: str
    count: int
    agreement: float
    interval: Interval
    accuracy: float
    predecessor: float
    lead: float
    lead_interval: Interval
    correlation: float


class Coverage(StrictModel):
    """Which answers were measured: from the least to the greatest.

    Attributes:
        answers: how many.
        length: in characters.
        score: None of a cross-fitted audit, whose scores are those of other models.
        spread: the most by which an ensemble's members disagree about one of these; None of other rewards.
    """

    answers: int
    length: tuple[int, int]
    score: Interval | None = None
    spread: float | None = None

    def outside(self, answer: str, score: float, spread: float | None) -> list[str]:
        """What of an answer lies outside: "score", "length", "spread"."""
        beyond = {
            "score": self.score is not None and not self.score[0] <= score <= self.score[1],
            "length": not self.length[0] <= len(answer) <= self.length[1],
            "spread": self.spread is not None and spread is not None and not spread <= self.spread,
        }
        return [name for name, is_beyond in beyond.items() if is_beyond]


class Agreement(Result):
    """How often a reward orders comparisons as they were labelled.

    Attributes:
        calibration_error: None where its scores say nothing of probabilities.
        length_correlation: of score and length.
        baselines: the accuracy of each trivial rule.
    """

    comparisons: int
    accuracy: float
    interval: Interval
    calibration_error: float | None
    length_correlation: float
    baselines: dict[str, float]


class Measure(StrictModel):
    """A benchmark's own measure, as a share; the interval is None where it is no mean over items."""

    score: float
    interval: Interval | None = None
    items: int


class BenchmarkScores(StrictModel, Result):
    """A benchmark's own measures of a reward, by their names; the last is that of the whole."""

    name: str
    items: int
    measures: dict[str, Measure]

    @property
    def headline(self) -> str:
        """The measure of the whole."""
        name, measure = list(self.measures.items())[-1]
        return f"{self.name}, {name} {measure.score:.1%}"


class AuditRecord(StrictModel, Result):
    """One reward model on held-out comparisons, or on cross-fitted ones.

    Attributes:
        accuracy: share of the comparisons ordered as labelled, intervals clustered by prompt.
        baselines: the same accuracy for trivial rules: "random", "longer wins", "shorter wins", and "bag of words"
            where the training comparisons are known.
        best_trivial: the most accurate of these, the bag of words included.
        leads: how far the accuracy is above each of them.
        folds: how many models the audit is of, where it is cross-fitted: each was trained without a part of the
            comparisons and is measured on that part, and the reward itself, trained on all, is not measured on any.
        person: beside one of the people; None where comparisons have not several votes.
        by_group: by section, subset, task and source.
        calibration_error: expected calibration error over `bins`; None where a difference of scores is no log-odds.
        calibration: the temperature and what it mends; None where there are too few prompts, or no log-odds.
        length_correlation: Spearman correlation of reward and answer length.
        when_longer, when_shorter: accuracy where the longer (shorter) answer is the preferred one.
        length: what more length has to do with it; None where all answers are as long.
        coverage: of these answers; None where the reward may have learnt them.
        benchmarks: the own measures of RewardBench 2, RM-Bench and JudgeBench, whose pairs are among the comparisons.
        verdict: "failed" where this reward model may not train anything; "passed with reservations" where there are
            warnings.
        reasons: why it failed, the worst first.
        warnings: what does not stop the run and should be looked at, the worst first.
    """

    model_config = ConfigDict(extra="forbid", frozen=False)

    comparisons: int
    prompts: int = 0
    folds: int = 0
    accuracy: float
    interval: Interval
    baselines: dict[str, float]
    best_trivial: TrivialRule | None = None
    leads: dict[str, Lead] = {}
    person: Person | None = None
    by_group: dict[str, TaskScore]
    calibration_error: float | None = None
    bins: list[Bin] = []
    calibration: Calibration | None = None
    length_correlation: float
    when_longer: float | None
    when_shorter: float | None
    length: LengthBias | None = None
    perturbations: list[Perturbation] = []
    consistency: list[Consistency] = []
    drift: list[Drift] = []
    coverage: Coverage | None = None
    benchmarks: list[BenchmarkScores] = []
    verdict: AuditVerdict
    reasons: list[str] = []
    warnings: list[str] = []

    @classmethod
    def planned(cls) -> Self:
        """It passes."""
        return cls.model_construct(verdict="passed")

    @property
    def headline(self) -> str:
        """The accuracy and the verdict."""
        return f"accuracy {self.accuracy:.1%}{' (cross-fitted)' if self.folds else ''}, {self.verdict}"

    @property
    def evidence(self) -> Literal["held-out", "cross-fitted"]:
        """What the comparisons are: held out from this model, or each from another that stands for it."""
        return "cross-fitted" if self.folds else "held-out"

    @property
    def passed(self) -> bool:
        """Whether this reward model may train something."""
        return self.verdict != "failed"

    def doubts(self, answer: str, score: float, spread: float | None = None) -> list[str] | None:
        """Why this audit speaks for no reward of an answer.

        Returns:
            "audit" where it failed, and what of the answer lies outside of `coverage`. Empty where nothing does; None
            where it cannot be told.
        """
        failed = [] if self.passed else ["audit"]
        if self.coverage is None:
            return failed or None
        return failed + self.coverage.outside(answer, score, spread)

    @property
    def worst(self) -> str | None:
        """The worst finding; None where nothing is amiss."""
        return next(iter(self.reasons + self.warnings), None)


def audit_beside(reward: Path) -> AuditRecord | None:
    """The audit that lies in a reward's folder, as in a release; None where there is none.

    Raises:
        RunError: it cannot be read, or is of another version.
    """
    path, remedy = reward / AUDIT, "remove the file, or audit the reward again"
    if not path.exists():
        return None
    try:
        return AuditRecord.model_validate(read_object(path, remedy))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: {field}: {reason(first)}; {remedy}") from None
