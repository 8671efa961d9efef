"""A reward of any kind made by stages, its parts first; and the scorer that it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.scorer import ArtifactScorer
from triptych.pipeline.stage import UserFiles
from triptych.reward.ensemble import EnsembleReward, join
from triptych.reward.judge import POLICY, JudgeReward, keep_judge
from triptych.reward.mixture import MixtureReward, mix
from triptych.reward.registry import Reward, open_reward
from triptych.reward.regression import RegressionReward, train_regression
from triptych.reward.rules import RulesReward, keep_rules
from triptych.reward.training import PairwiseReward, train_reward
from triptych.reward.trust import Trust


@dataclass(frozen=True)
class Materials:
    """What the stages of a reward are given.

    Attributes:
        base, champion: what a trained kind starts from; a judge may ask the champion.
        data: with the ratings.
        comparisons: of the round, where there are any.
        before: the last round's reward and its parts, by their places, from which trained kinds go on.
    """

    base: Artifact[Result] | None = None
    champion: Artifact[Result] | None = None
    data: Artifact[Result] | None = None
    comparisons: Artifact[Result] | None = None
    before: Mapping[str, Artifact[Result]] | None = None

    def start(self, config: PairwiseReward | RegressionReward, place: str) -> Artifact[Result]:
        """What the trained part at this place starts from."""
        return (self.before or {}).get(place) or _given(self.champion if config.start == "champion" else self.base)


def make_reward(
    runner: Runner, name: str, config: Reward, materials: Materials, member: int = 0, place: str = ""
) -> dict[str, Artifact[Result]]:
    """The stages that make a reward, its parts first.

    Args:
        name: of the whole one's stage.
        member: which of an ensemble it is.
        place: of it in a larger one.

    Returns:
        The artifacts, each by its place; the whole one's is `place`.
    """
    made: dict[str, Artifact[Result]] = {}

    def part(key: str, reward: Reward, member: int = 0) -> Artifact[Result]:
        inner = f"{place}/{key}".lstrip("/")
        made.update(make_reward(runner, f"{name}/{key}", reward, materials, member, inner))
        return made[inner]

    match config:
        case EnsembleReward():
            members = {f"member_{index}": part(str(index), config.member, index) for index in range(config.members)}
            made[place] = runner.run(name, join, config, **members)
        case MixtureReward():
            parts = {mixed.name: part(mixed.name, mixed.reward) for mixed in config.parts}
            made[place] = runner.run(name, mix, config, **parts)
        case PairwiseReward():
            made[place] = runner.run(
                name, train_reward, config, start=materials.start(config, place),
                comparisons=_given(materials.comparisons), member=member,
            )
        case RegressionReward():
            made[place] = runner.run(
                name, train_regression, config, start=materials.start(config, place), ratings=_given(materials.data),
                comparisons=materials.comparisons,
            )
        case RulesReward():
            made[place] = runner.run(name, keep_rules, config, UserFiles(config.files))
        case JudgeReward():
            made[place] = runner.run(
                name, keep_judge, config, UserFiles(config.files),
                policy=materials.champion if asks_policy(config) else None,
            )
    return made


def asks_policy(reward: Reward) -> bool:
    """Whether the reward, or a part of it, is the policy's own judgement."""
    return any(part.is_policy for part in reward.within)


def scorer_of(
    runner: Runner, config: Reward, reward: Artifact[Result], champion: Artifact[Result] | None, name: str | None = None
) -> ArtifactScorer:
    """The reward in an artifact as a scorer; what the user's own recipe names may be asked and run, nothing else.

    Args:
        champion: whom a judge asks that is the policy itself.
        name: for the reader of a report; by default the kind's.
    """
    models = {Path(name).name: path for name, path in config.files.items()}
    if champion:
        models[POLICY] = champion.folder / "model"
    return ArtifactScorer(reward, lambda: open_reward(
        reward.folder, identity=reward.digest, name=name, models=models, cache=runner.folder / "cache",
        trust=Trust.in_recipe(config.within),
    ))


def _given(artifact: Artifact[Result] | None) -> Artifact[Result]:
    assert artifact is not None, "the recipe sees to it that what a reward is trained on is there"
    return artifact
