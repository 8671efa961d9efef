"""The models that stand for a reward in its audit where its comparisons are few: each trained without one fold.

What is released and trains the policy is trained on all comparisons, and so cannot be audited on any of them. Those
that are audited are trained alike on four fifths of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from triptych.data.folder import DataFolder
from triptych.data.folds import FOLDS, CrossFit
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.scorer import ArtifactScorer
from triptych.reward.folding import LeaveOut, leave_out
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import scorer_of


@dataclass(frozen=True)
class FoldModels:
    """What was trained without each fold; nothing where the comparisons are not cross-fitted or nothing is trained.

    Attributes:
        rewards: by fold, the artifacts by their places.
        scorers: by "fold_0", "fold_1", ..., as the audit takes them.
    """

    rewards: Sequence[Mapping[str, Artifact[Result]]] = ()
    scorers: Mapping[str, ArtifactScorer] = field(default_factory=dict)


def cross_fit(
    runner: Runner, name: str, config: RewardConfig, materials: Materials, setting: CrossFit,
    earlier: FoldModels | None = None,
) -> FoldModels:
    """Trains a reward like the one of these settings without each fold, where the comparisons are cross-fitted.

    Args:
        name: of the stages, which get "/fold-0" and so on behind it.
        materials: of the reward that is trained on all.
        setting: the recipe's, by which a plan goes: it has no data to look at.
        earlier: those of the round before, of which each goes on from that of its own fold.
    """
    comparisons, share = materials.comparisons, materials.share
    if comparisons is None or not any(part.needs for part in config.within):
        return FoldModels()
    files = DataFolder(comparisons)
    if not runner.outside(lambda: files.crossfitted(share), planned=setting is True):
        return FoldModels()
    rewards, scorers = [], {}
    for fold in range(FOLDS):
        kept = runner.run(
            f"{name}/fold-{fold}/data", leave_out, LeaveOut(fold=fold), comparisons, share=share,
            ratings=materials.data if any("ratings" in part.needs for part in config.within) else None,
        )
        before = earlier.rewards[fold] if earlier and earlier.rewards else None
        own = dataclasses.replace(materials, comparisons=kept, data=kept, share="train", before=before)
        rewards.append(make_reward(runner, f"{name}/fold-{fold}", config, own))
        scorers[f"fold_{fold}"] = scorer_of(runner, config, rewards[-1][""], materials.champion)
    return FoldModels(rewards, scorers)
