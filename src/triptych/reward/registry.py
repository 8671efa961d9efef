"""Every kind of reward behind one interface, and how what it leaves on disk is opened as a scorer.

======================  =======================================================================
kind                    what its artifact holds
======================  =======================================================================
pairwise, regression    `model/`, a plain Hugging Face folder
ensemble                `models/0`, `models/1`, …, and `reward.json`
rules                   `reward.json`, and the users' own functions
judge                   `reward.json` and `template.jinja`
remote                  `reward.json`
mixture                 `parts/NAME/`, each of them one of these, and `reward.json`
taken                   one of these; `model/` and `reward.json` of a model with another tokenizer
none                    nothing: there is none
======================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.configuration import tagged
from triptych.engine.distributed import shard_map as over_ranks
from triptych.engine.endpoint import Endpoint
from triptych.engine.scoring import RewardModel, Scorer, ShardMap, unsharded
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.scorer import ArtifactScorer
from triptych.reward.absence import NoReward
from triptych.reward.description import Description
from triptych.reward.ensemble import EnsembleReward
from triptych.reward.judge import POLICY, JudgeReward
from triptych.reward.kind import Opening, RewardConfig
from triptych.reward.mixture import MixtureReward
from triptych.reward.regression import RegressionReward
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import RulesReward
from triptych.reward.taken import TakenReward, elsewhere
from triptych.reward.training import PairwiseReward
from triptych.reward.trust import Trust

Reward = Annotated[
    PairwiseReward | RegressionReward | EnsembleReward | RulesReward | JudgeReward | RemoteReward | MixtureReward
    | TakenReward | NoReward,
    Field(discriminator="kind"), tagged("kind", "pairwise"), elsewhere,
]


def open_reward(
    folder: Path, *, identity: str = "", name: str | None = None, models: Mapping[str, Path] | None = None,
    cache: Path | None = None, trust: Trust | None = None, shard_map: ShardMap = unsharded,
    endpoints: Sequence[Endpoint] = (),
) -> Scorer:
    """The reward in an artifact's folder, or in a released one, as a scorer.

    A folder without `reward.json` is a model: any `AutoModelForSequenceClassification` with its tokenizer.

    Args:
        folder: an artifact of this stage, a release's `reward` folder, or a model folder.
        identity: what it is, exactly, for the fingerprint of what it scores.
        name: for the reader of a report; by default the kind's.
        models: the folders of the models that judges ask, by the name that the settings give them; "policy" too.
        cache: the folder in which an endpoint's replies are kept.
        trust: what the user named of that which the folder names; nothing by default.
        shard_map: how its work is shared out, where several ranks score together.
        endpoints: how fast and how patiently the user has those asked that the folder names; else as the folder says.

    Raises:
        RewardError: the folder holds no reward that is known here, or one that may not or cannot be used.
    """
    described = Description.of(folder)
    given = models or {}
    (trust or Trust()).require(described, given)
    scorer = _opened(described, identity, given, cache, shard_map, endpoints)
    if name:
        scorer.name = name  # type: ignore[misc]
    return scorer


def _opened(
    described: Description, identity: str, models: Mapping[str, Path], cache: Path | None, shard_map: ShardMap,
    endpoints: Sequence[Endpoint],
) -> Scorer:
    """The scorer of a description that is trusted."""
    folder = described.folder
    if described.content is None:
        return RewardModel(described.models[0], identity=identity, shard_map=shard_map)
    parts = [_opened(part, "", models, cache, shard_map, endpoints) for part in described.parts]
    return described.content.open(
        Opening(folder, identity, described.template, models, cache, parts, shard_map, endpoints)
    )


def scorer_of(
    runner: Runner, config: RewardConfig, reward: Artifact[Result], champion: Artifact[Result] | None,
    name: str | None = None,
) -> ArtifactScorer:
    """The reward in an artifact as a scorer; what the user's own recipe names may be asked and run, nothing else.

    Args:
        champion: whom a judge asks that is the policy itself.
        name: for the reader of a report; by default the kind's.
    """
    models = {Path(name).name: path for name, path in config.files.items()}
    if champion:
        models[POLICY] = champion.folder / "model"
    endpoints = [part.endpoint for part in config.within if isinstance(part, JudgeReward | RemoteReward)]
    return ArtifactScorer(reward, lambda: open_reward(
        reward.folder, identity=reward.digest, name=name, models=models, cache=runner.folder / "cache",
        trust=Trust.in_recipe(config.within), shard_map=over_ranks, endpoints=[one for one in endpoints if one],
    ))
