"""A reward of any kind made by stages, its parts first; how each kind is made, its settings say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from triptych.data.folder import TrainedOn
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.reward.kind import RewardConfig


@dataclass(frozen=True)
class Materials:
    """What the stages of a reward are given.

    Attributes:
        base, champion: what a trained kind starts from; a judge may ask the champion.
        data: with the ratings.
        comparisons: of the round, where there are any.
        share: of the comparisons, which trains.
        exposed: whether the champion learnt from prompts that the reward is audited on; what would start from it then
            starts from the Base.
        before: the last round's reward and its parts, by their places, from which trained kinds go on.
        taken: rewards that were made elsewhere, by the names that the recipe gives them.
    """

    base: Artifact[Result] | None = None
    champion: Artifact[Result] | None = None
    data: Artifact[Result] | None = None
    comparisons: Artifact[Result] | None = None
    share: TrainedOn = "train"
    exposed: bool = False
    before: Mapping[str, Artifact[Result]] | None = None
    taken: Mapping[str, Artifact[Result]] = field(default_factory=dict)


@dataclass
class Making:
    """A reward, or a part of one, that is being made.

    Attributes:
        name: of its stage.
        member: which of an ensemble it is.
        place: of it in a larger one; the whole one's is "".
        made: it and its parts so far, by their places.
    """

    runner: Runner
    name: str
    materials: Materials
    member: int = 0
    place: str = ""
    made: dict[str, Artifact[Result]] = field(default_factory=dict)

    def start(self, first: Literal["champion", "base"]) -> Artifact[Result]:
        """What its training starts from: the last round's at this place, else the champion or the Base."""
        before = self.materials.before or {}
        return before.get(self.place) or given(getattr(self.materials, "base" if self.materials.exposed else first))

    def part(self, key: str, config: RewardConfig, member: int = 0) -> Artifact[Result]:
        """A part of it, made now."""
        place = f"{self.place}/{key}".lstrip("/")
        self.made |= make_reward(self.runner, f"{self.name}/{key}", config, self.materials, member, place)
        return self.made[place]


def make_reward(
    runner: Runner, name: str, config: RewardConfig, materials: Materials, member: int = 0, place: str = ""
) -> dict[str, Artifact[Result]]:
    """The stages that make a reward, its parts first.

    Args:
        name: of the whole one's stage.

    Returns:
        The artifacts, each by its place; the whole one's is `place`.
    """
    making = Making(runner, name, materials, member, place)
    making.made[place] = config.make(making)
    return making.made


def given(artifact: Artifact[Result] | None) -> Artifact[Result]:
    """What the recipe sees to it that is there, as what a reward is trained on."""
    assert artifact is not None
    return artifact
