"""Every kind of reward behind one interface: how it is made, and how what it leaves on disk is opened as a scorer.

======================  =======================================================================
kind                    what its artifact holds
======================  =======================================================================
pairwise, regression    `model/`, a plain Hugging Face folder
ensemble                `models/0`, `models/1`, …, and `reward.json`
rules                   `reward.json`, and the users' own functions
judge                   `reward.json` and `template.jinja`
mixture                 `parts/NAME/`, each of them one of these, and `reward.json`
======================  =======================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from triptych.engine.scoring import RewardModel, Scorer
from triptych.errors import RewardError
from triptych.pipeline.stage import Metrics
from triptych.reward.ensemble import Ensemble, EnsembleReward, join
from triptych.reward.judge import JudgeReward, keep_judge, open_judge
from triptych.reward.mixture import Mixture, MixtureReward, Part, Weighted, mix
from triptych.reward.regression import RegressionReward, train_regression
from triptych.reward.rules import Rules, RulesReward, keep_rules
from triptych.reward.training import PairwiseReward, train_reward

Reward = PairwiseReward | RegressionReward | EnsembleReward | RulesReward | JudgeReward | MixtureReward

WORKS: Mapping[type[Reward], Callable[..., Metrics]] = {
    PairwiseReward: train_reward, RegressionReward: train_regression, EnsembleReward: join,
    RulesReward: keep_rules, JudgeReward: keep_judge, MixtureReward: mix,
}
"""What the stage of each kind does."""

DESCRIPTION = "reward.json"


def within(reward: Reward) -> list[Reward]:
    """The reward and, of a mixture, its parts."""
    return [reward, *(part.reward for part in reward.parts)] if isinstance(reward, MixtureReward) else [reward]


def files_of(reward: Reward) -> list[str]:
    """The files and folders that a reward's settings name."""
    return [name for each in within(reward) if isinstance(each, RulesReward | JudgeReward) for name in each.files]


def open_reward(
    folder: Path, *, identity: str = "", name: str | None = None, models: Mapping[str, Path] | None = None,
    cache: Path | None = None, trusted: bool = False,
) -> Scorer:
    """The reward in an artifact's folder, or in a released one, as a scorer.

    A folder without `reward.json` is a model: any `AutoModelForSequenceClassification` with its tokenizer.

    Args:
        folder: an artifact of this stage, a release's `reward` folder, or a model folder.
        identity: what it is, exactly, for the fingerprint of what it scores.
        name: for the reader of a report; by default the kind's.
        models: the folders of the models that judges ask, by the name that the settings give them; "policy" too.
        cache: the folder in which an endpoint's replies are kept.
        trusted: run the functions that the folder holds. They are code; a release from others is not trusted.

    Raises:
        RewardError: the folder holds no reward that is known here, or one that may not or cannot be used.
    """
    if not (folder / DESCRIPTION).is_file():
        model = folder / "model" if (folder / "model").is_dir() else folder
        return RewardModel(model, name=name or "reward model", identity=identity)
    content = described(folder)
    kind = content.pop("kind")
    try:
        if kind == "ensemble":
            members = [RewardModel(folder / "models" / str(place)) for place in range(content["members"])]
            scorer: Scorer = Ensemble(members, float(content["penalty"]), identity=identity)
        elif kind == "mixture":
            parts = [Part.model_validate(part) for part in content["parts"]]
            scorer = Mixture([
                Weighted(part, open_reward(folder / "parts" / part.name, models=models, cache=cache, trusted=trusted))
                for part in parts
            ], identity=identity)
        elif kind == "rules":
            rules = RulesReward.model_validate(content)
            if rules.files and not trusted:
                names = ", ".join(rules.files)
                raise RewardError(f"{folder}: holds functions ({names}), which are run only in one's own runs")
            scorer = Rules(rules, folder, identity=identity)
        elif kind == "judge":
            content.pop("model_digest", None)
            judge = JudgeReward.model_validate(content)
            template = (folder / "template.jinja").read_text(encoding="utf-8")
            scorer = open_judge(
                judge, template, model=(models or {}).get(judge.model), cache=cache, name="language judge",
                identity=identity,
            )
        else:
            raise RewardError(f"{folder / DESCRIPTION}: its kind {kind!r} is not known")
    except (ValidationError, KeyError, TypeError, OSError) as error:
        raise RewardError(f"{folder / DESCRIPTION}: cannot be used: {error}") from error
    if name:
        scorer.name = name  # type: ignore[misc]
    return scorer


def described(folder: Path) -> dict[str, Any]:
    """What `reward.json` says.

    Raises:
        RewardError: it cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise RewardError(f"{path}: must be an object with a kind")
    return content
