"""Several reward models as one: their mean, less what they disagree by.

The members are models of their own, which differ in the head that they start from and in the order of the data. Heads
on one trunk would be cheaper, but their errors go the same way: what members have in common is what an ensemble cannot
see (Eisenstein et al. 2023, *Helping or Herding?*, section 5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from triptych.engine.scoring import RewardModel, Scores
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation
from triptych.reward.kind import Material
from triptych.reward.making import Making
from triptych.reward.parts import linked
from triptych.reward.training import PairwiseReward, RewardTraining
from triptych.storage import Folder


class EnsembleReward(RewardTraining):
    """Several pairwise reward models; the reward is mean − λ · deviation over them.

    Attributes:
        members: how many.
        penalty: λ.
    """

    needs: ClassVar[frozenset[Material]] = frozenset({"comparisons"})
    kind: Literal["ensemble"] = "ensemble"
    members: int = Field(default=3, ge=2)
    penalty: float = Field(default=1.0, ge=0)

    @property
    def member(self) -> PairwiseReward:
        """How each member is trained."""
        return PairwiseReward(**{name: getattr(self, name) for name in RewardTraining.model_fields})

    def make(self, making: Making) -> Artifact[Result]:
        """The members, and the stage that joins them."""
        members = {f"member_{place}": making.part(str(place), self.member, place) for place in range(self.members)}
        return making.runner.run(making.name, join, self, **members)


class Ensemble:
    """Reward models as one scorer; each one's scores are normalised before they are compared."""

    name = "reward ensemble"

    def __init__(self, members: Sequence[RewardModel], penalty: float, *, identity: str = "") -> None:
        self.members = members
        self.penalty = penalty
        self.identity = identity

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Mean less λ times the deviation over the members.

        Coste et al. (2023), *Reward Model Ensembles Help Mitigate Overoptimization*, take the variance off instead;
        the deviation is in the scores' own units.
        """
        return self.details(conversations).totals

    def spread(self, conversations: Sequence[Conversation]) -> list[float]:
        """The deviation of the members' normalised scores: how much they disagree about each answer."""
        deviations: list[float] = self._scores(conversations).std(0, correction=0).tolist()
        return deviations

    @property
    def log_odds(self) -> float | None:
        """See `Preferring`; what the members disagree by says nothing of preference, so with a penalty None.

        A member's log-odds are its score times its own unit u_i. The mean score times the harmonic mean of the units
        is thus a mean of the members' log-odds with weights in proportion to 1 / u_i.
        """
        units = [member.log_odds for member in self.members]
        known = [unit for unit in units if unit is not None]
        return harmonic_mean(known) if self.penalty == 0 and len(known) == len(units) else None

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The scores, with mean and spread as their parts."""
        scores = self._scores(conversations)
        mean, spread = scores.mean(0), scores.std(0, correction=0)
        return Scores((mean - self.penalty * spread).tolist(), {"mean": mean.tolist(), "spread": spread.tolist()})

    def _scores(self, conversations: Sequence[Conversation]) -> Tensor:
        """`[members, N]` normalised scores."""
        return torch.tensor([member.score(conversations) for member in self.members], dtype=torch.float64, device="cpu")


class EnsembleJoined(Result):
    """How many members there are."""

    members: int


def join(context: StageContext, config: EnsembleReward, /, **members: Folder) -> EnsembleJoined:
    """Puts trained members together: `models/0`, `models/1`, … and `reward.json`."""
    for place, name in enumerate(members):
        linked(members[name] / "model", context.output / "models" / str(place))
    content = {"kind": config.kind, "members": len(members), "penalty": config.penalty}
    (context.output / "reward.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return EnsembleJoined(members=len(members))
