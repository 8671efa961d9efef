"""What a cycle has made so far: the artifacts of its beginning and of each round."""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.audit.record import AuditRecord
from triptych.base.record import BaseRecord
from triptych.engine.scoring import Scorer
from triptych.evaluate.answers import Answered
from triptych.evaluate.decoding import Chosen
from triptych.evaluate.gate import PROMOTED, Decided
from triptych.evaluate.measurement import Measurements
from triptych.improve.improvement import Improved
from triptych.instruct.finetuning import Finetuned
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.scorer import ArtifactScorer
from triptych.reward.crossfitting import FoldModels


@dataclass(frozen=True)
class Start:
    """What every round begins with.

    Attributes:
        judge: decides at the gate, and measures.
    """

    data: Artifact[Result]
    base: Artifact[BaseRecord]
    instruct: Artifact[Finetuned]
    judge: Scorer


@dataclass
class Round:
    """The artifacts of one round; those that were not reached are None.

    Attributes:
        evidence: the comparisons that the reward is audited on: the round's own, or what ratings imply.
        thumbs: all that people gave so far; None where they gave none.
        rewards: every artifact that the reward is made of, by its place in it; the whole one's is "".
        scorer: the reward, as a scorer.
        folds: what stands for it in a cross-fitted audit.
    """

    number: int
    feedback: Artifact[Result] | None = None
    thumbs: Artifact[Result] | None = None
    evidence: Artifact[Result] | None = None
    reward: Artifact[Result] | None = None
    rewards: dict[str, Artifact[Result]] = field(default_factory=dict)
    scorer: ArtifactScorer | None = None
    folds: FoldModels = field(default_factory=FoldModels)
    audit: Artifact[AuditRecord] | None = None
    candidate: Artifact[Improved] | None = None
    answers: Artifact[Answered] | None = None
    gate: Artifact[Decided] | None = None

    @property
    def promoted(self) -> bool:
        """Whether the candidate became the champion."""
        return self.gate is not None and self.gate.result.decision == PROMOTED


@dataclass(frozen=True)
class ModelTest:
    """A model on the test prompts.

    Attributes:
        name: "base, few-shot", "instruct", "round 1", ...
        round: 0 for Instruct, r for the candidate of round r, None for the Base.
    """

    name: str
    round: int | None
    artifact: Artifact[Measurements]


@dataclass
class Family:
    """What the cycle has made so far.

    Attributes:
        judge_model, judge_audit: the gate's own reward model, where it has one.
        champion: the best Instruct model that was proved.
        decodings: the choice of each model's own decoding, by the model's digest; none where the recipe fixes it.
        tests: each model's measurement on the test prompts.
    """

    judge: Scorer | None = None
    judge_model: Artifact[Result] | None = None
    judge_audit: Artifact[AuditRecord] | None = None
    data: Artifact[Result] | None = None
    base: Artifact[BaseRecord] | None = None
    instruct: Artifact[Finetuned] | None = None
    rounds: list[Round] = field(default_factory=list)
    champion: Artifact[Result] | None = None
    decodings: dict[str, Artifact[Chosen]] = field(default_factory=dict)
    tests: list[ModelTest] = field(default_factory=list)

    @property
    def reward(self) -> Artifact[Result] | None:
        """The last round's reward model."""
        return next((round.reward for round in reversed(self.rounds) if round.reward), None)

    @property
    def champion_round(self) -> int:
        """The round whose candidate is the champion; 0 where Instruct still is."""
        return max((round.number for round in self.rounds if round.promoted), default=0)

    def failures(self, this: Round) -> int:
        """The rounds before this one that did not promote; each spent a part of the run's error."""
        return sum(not round.promoted for round in self.rounds if round.number < this.number)
