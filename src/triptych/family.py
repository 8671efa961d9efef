"""What a cycle has made so far: the artifacts of its beginning and of each round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.audit.record import AuditRecord, BenchmarkScores
from triptych.base.record import BaseRecord
from triptych.dataset.tasks import TaskPrepared
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.evaluate.answers import Answered
from triptych.evaluate.benchmarking import BenchmarkMeasured
from triptych.evaluate.decoding import Chosen, Decoding
from triptych.evaluate.diagnosis import Diagnosed
from triptych.evaluate.gate import PROMOTED, Decided
from triptych.evaluate.measurement import Measurements, Style
from triptych.evaluate.prompting import PromptFound
from triptych.improve.improvement import Improved
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.scorer import ArtifactScorer
from triptych.reward.crossfitting import FoldModels

BASE, FEW_SHOT = "base", "base, few-shot"
"""What tables call the Base: one that is asked as Instruct is, and one that is shown worked examples."""


@dataclass(frozen=True)
class Start:
    """What every round begins with.

    Attributes:
        judge: decides at the gate, and measures.
        preferences: says there whether people's preferences hold, where the judge is no reward model of theirs.
        taken: rewards that were made elsewhere, by the names that the recipe gives them.
    """

    data: Artifact[Result]
    base: Artifact[BaseRecord]
    instruct: Artifact[Result]
    judge: Scorer
    preferences: Scorer | None = None
    taken: Mapping[str, Artifact[Result]] = field(default_factory=dict)

    @property
    def style(self) -> Style:
        """How the Base is asked: as Instruct is where it came with a chat template, else behind worked examples."""
        return "chat" if self.base.result.tuned else "few-shot"

    @property
    def base_name(self) -> str:
        """The Base in tables."""
        return BASE if self.base.result.tuned else FEW_SHOT


@dataclass(frozen=True)
class AuditedScorer:
    """A reward of the run, and its audit.

    Attributes:
        parts: every artifact that it is made of, by its place in it; the whole one's is "".
        evidence: with the comparisons that it was audited on; it and `audit` are None where there are none.
        folds: what stands for it in a cross-fitted audit.
    """

    parts: Mapping[str, Artifact[Result]]
    scorer: ArtifactScorer
    evidence: Artifact[Result] | None
    audit: Artifact[AuditRecord] | None
    folds: FoldModels

    @property
    def artifact(self) -> Artifact[Result]:
        """The whole one."""
        return self.parts[""]


@dataclass
class Round:
    """The artifacts of one round; those that were not reached are None.

    Attributes:
        thumbs: all that people gave so far; None where they gave none.
        benchmarks: its reward on benchmarks of rewards, by their names; those of the round before where it is the same.
        diagnosis: what it failed by, where it was not promoted.
    """

    number: int
    feedback: Artifact[Result] | None = None
    thumbs: Artifact[Result] | None = None
    reward: AuditedScorer | None = None
    benchmarks: dict[str, Artifact[BenchmarkScores]] = field(default_factory=dict)
    candidate: Artifact[Improved] | None = None
    answers: Artifact[Answered] | None = None
    gate: Artifact[Decided] | None = None
    diagnosis: Artifact[Diagnosed] | None = None

    @property
    def promoted(self) -> bool:
        """Whether the candidate became the champion."""
        return self.gate is not None and self.gate.result.decision == PROMOTED


@dataclass(frozen=True)
class ModelTest:
    """A model on the test prompts.

    Attributes:
        name: "base" or "base, few-shot", "instruct", "round 1", ...
        round: 0 for Instruct, r for the candidate of round r, None for the Base.
    """

    name: str
    round: int | None
    artifact: Artifact[Measurements]


@dataclass(frozen=True)
class TaskTest:
    """A task's prompts, and each model on them."""

    name: str
    prompts: Artifact[TaskPrepared]
    tests: list[ModelTest] = field(default_factory=list)


@dataclass
class Family:
    """What the cycle has made so far.

    Attributes:
        judging: the gate's judge as a reward of the run; None for the exact judge.
        preferences: the reward model that says at the gate whether people's preferences hold; None where none does.
        champion: the best Instruct model that was proved.
        decodings: the choice of each model's own decoding, by the model's digest; none where the recipe fixes it.
        prompts: the prompt that "base" or "instruct" answers best, where one was searched for.
        tests: each model's measurement on the test prompts.
        tasks: their measurements on tasks.
        asked: what each benchmark asks, as a hash, by its name.
        benchmarks: their measurements on benchmarks, by the benchmark's name and the model's digest.
    """

    judge: Scorer | None = None
    judging: AuditedScorer | None = None
    preferences: AuditedScorer | None = None
    data: Artifact[Result] | None = None
    base: Artifact[BaseRecord] | None = None
    instruct: Artifact[Result] | None = None
    rounds: list[Round] = field(default_factory=list)
    champion: Artifact[Result] | None = None
    decodings: dict[str, Artifact[Chosen]] = field(default_factory=dict)
    prompts: dict[str, Artifact[PromptFound]] = field(default_factory=dict)
    tests: list[ModelTest] = field(default_factory=list)
    tasks: list[TaskTest] = field(default_factory=list)
    asked: Mapping[str, str] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Artifact[BenchmarkMeasured]]] = field(default_factory=dict)

    @property
    def reward(self) -> Artifact[Result] | None:
        """The last round's reward model."""
        return next((round.reward.artifact for round in reversed(self.rounds) if round.reward), None)

    @property
    def measured_tasks(self) -> list[TaskTest]:
        """The tasks that every model was measured on; where a run ended before its end, the others are not told."""
        return [task for task in self.tasks if 0 < len(task.tests) == len(self.tests)]

    @property
    def scorer(self) -> ArtifactScorer | None:
        """The last round's reward as a scorer."""
        return self.rounds[-1].reward.scorer if self.rounds and self.rounds[-1].reward else None

    @property
    def champion_round(self) -> int:
        """The round whose candidate is the champion; 0 where Instruct still is."""
        return max((round.number for round in self.rounds if round.promoted), default=0)

    def decoding_of(self, model: Artifact[Result], config: Decoding) -> Sampling:
        """How a model is decoded: as the recipe says, or at the temperature that was chosen for it."""
        temperature = config.temperature
        return config.at(self.decodings[model.digest].result.temperature if temperature == "best" else temperature)

    def failures(self, current: Round) -> int:
        """The rounds before this one that did not promote; each spent a part of the run's error."""
        return sum(not round.promoted for round in self.rounds if round.number < current.number)
