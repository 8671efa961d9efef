"""A weighted sum of rewards of other kinds, each of them logged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from triptych.configuration import Config, tagged
from triptych.engine.scoring import (
    Limited,
    Scorer,
    Scores,
    applies,
    compares,
    facing,
    learns,
    learnt_elsewhere,
    scored,
)
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation, Prompt
from triptych.reward.ensemble import EnsembleReward
from triptych.reward.judge import JudgeReward
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Making
from triptych.reward.parts import linked
from triptych.reward.regression import RegressionReward
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import Rules, RulesReward
from triptych.reward.taken import TakenReward, elsewhere
from triptych.reward.training import PairwiseReward
from triptych.storage import Folder


class Part(Config):
    """How a part of a mixture counts.

    Attributes:
        name: in logs, and of its folder.
        weight: what its score is multiplied with. A trained reward model's scores have a deviation of 1 on held-out
            answers; those of rules and judges have the units that they were given.
        tasks: the tasks whose prompts it scores; all by default.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    weight: float
    tasks: tuple[str, ...] = ()


class MixedPart(Part):
    """A part and what it is.

    Attributes:
        reward: the settings of a reward of another kind.
    """

    reward: Annotated[
        PairwiseReward | RegressionReward | EnsembleReward | RulesReward | JudgeReward | RemoteReward | TakenReward,
        Field(discriminator="kind"), tagged("kind", "pairwise"), elsewhere,
    ]


class MixtureReward(RewardConfig):
    """A weighted sum of rewards of other kinds."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[MixedPart, ...] = Field(min_length=1)

    @property
    def within(self) -> tuple[RewardConfig, ...]:
        """The mixture and its parts."""
        return (self, *(part.reward for part in self.parts))

    def make(self, making: Making) -> Artifact[Result]:
        """The parts, and the stage that mixes them."""
        parts = {part.name: making.part(part.name, part.reward) for part in self.parts}
        return making.runner.run(making.name, mix, self, **parts)

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[MixedPart, ...]) -> tuple[MixedPart, ...]:
        if len({part.name for part in parts}) < len(parts):
            raise ValueError("each part needs a name of its own")
        models: dict[str, str] = {}
        for judge in (part.reward for part in parts if isinstance(part.reward, JudgeReward)):
            other = models.setdefault(Path(judge.model).name, judge.model)
            if judge.model in judge.named and other != judge.model:
                raise ValueError(f"{other} and {judge.model} have the same last name, by which a judge's model is "
                                 "known: rename one of the folders")
        return parts


@dataclass(frozen=True, slots=True)
class Weighted:
    """A scorer in a mixture."""

    part: Part
    scorer: Scorer

    def scores(self, prompt: Prompt) -> bool:
        """Whether it is for the prompt's task."""
        return not self.part.tasks or prompt.task in self.part.tasks


class Mixture:
    """Σ weight · score over the parts that score the prompt's task."""

    name = "reward mixture"

    def __init__(self, parts: Sequence[Weighted], *, identity: str = "") -> None:
        self.parts = parts
        for weighted in parts:
            if isinstance(weighted.scorer, Rules):
                weighted.scorer.subtracted = weighted.part.weight < 0
        self.identity = identity

    @property
    def learns(self) -> bool:
        """See `Learning`: whether a part does."""
        return any(learns(weighted.scorer) for weighted in self.parts)

    @property
    def learnt_elsewhere(self) -> bool:
        """See `Unknown`: whether a part did."""
        return any(learnt_elsewhere(weighted.scorer) for weighted in self.parts)

    @property
    def compares(self) -> bool:
        """See `PairwiseOnly`: whether a part does."""
        return any(compares(weighted.scorer) for weighted in self.parts)

    def facing(self, rivals: dict[str, str]) -> Mixture:
        """See `PairwiseOnly`: of the parts those that only compare are given something to compare with."""
        parts = [replace(weighted, scorer=facing(weighted.scorer, rivals)) for weighted in self.parts]
        return Mixture(parts, identity=self.identity)

    def applies(self, prompt: Prompt) -> bool:
        """See `Limited`: whether a part does."""
        return any(weighted.scores(prompt) and applies(weighted.scorer, prompt) for weighted in self.parts)

    def fault(self, prompt: Prompt) -> str | None:
        """See `Limited`: the first part's that has one."""
        these = (weighted.scorer for weighted in self.parts
                 if weighted.scores(prompt) and isinstance(weighted.scorer, Limited))
        return next((fault for scorer in these if (fault := scorer.fault(prompt)) is not None), None)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """See the class."""
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The scores; the parts are each part's score under its name, and what that is made of below it."""
        totals = [0.0] * len(conversations)
        columns: dict[str, list[float | None]] = {}
        counts: dict[str, int] = {}
        notes: dict[str, str] = {}
        silent = [not self.applies(row.prompt) for row in conversations]  # then each part says what it lacks
        for weighted in self.parts:
            part = weighted.part
            these = [
                i for i, row in enumerate(conversations)
                if weighted.scores(row.prompt) and (silent[i] or applies(weighted.scorer, row.prompt))
            ]
            if not these:
                continue
            scores = scored(weighted.scorer, [conversations[i] for i in these])
            values = {part.name: scores.totals} | {f"{part.name}.{name}": v for name, v in scores.parts.items()}
            counts |= {f"{part.name}.{name}": count for name, count in scores.counts.items()}
            notes |= {f"{part.name}.{name}": note for name, note in scores.notes.items()}
            for name, column in values.items():
                columns[name] = [None] * len(conversations)
                for i, value in zip(these, column, strict=True):
                    columns[name][i] = value
            for i, score in zip(these, scores.totals, strict=True):
                totals[i] += part.weight * score
        return Scores(totals, columns, counts, notes)


class PartsMixed(Result):
    """The names of the parts."""

    parts: tuple[str, ...]


def mix(context: StageContext, config: MixtureReward, /, **parts: Folder) -> PartsMixed:
    """Puts the parts' artifacts together: `parts/NAME` and `reward.json`."""
    for part in config.parts:
        linked(Path(parts[part.name]), context.output / "parts" / part.name)
    parts_told = [part.model_dump(mode="json", exclude={"reward"}) for part in config.parts]
    content = {"kind": config.kind, "parts": parts_told}
    path = context.output / "reward.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return PartsMixed(parts=tuple(part.name for part in config.parts))
