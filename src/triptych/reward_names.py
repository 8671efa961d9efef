"""What a user may name as a reward: its folder, its settings in YAML, a language model, or an address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from weakref import finalize

from pydantic import ValidationError

from triptych.configuration import Composed, Flat, complaints, load
from triptych.engine.adapter_folder import model_digests
from triptych.engine.endpoint import is_address
from triptych.engine.hub import downloaded
from triptych.engine.inspection import is_classifier
from triptych.engine.scoring import Scorer
from triptych.errors import RewardError
from triptych.pipeline.fingerprint import fingerprint
from triptych.pipeline.runner import Runner
from triptych.progress import Silent
from triptych.reward.description import DESCRIPTION
from triptych.reward.judge import JudgeReward
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import Reward, open_reward, scorer_of
from triptych.reward.remote import RemoteReward, scores_at
from triptych.reward.taken import TakenReward
from triptych.reward.taking import take_rewards
from triptych.reward.trust import Trust

Ask = Literal["score", "compare"]
"""What a language model is asked that is named alone."""

SETTINGS = (".yaml", ".yml")


class WrittenReward(Composed):
    """A file that holds a reward's settings as a recipe has them under `reward`."""

    reward: Flat[Reward]


def is_no_folder(name: str | Path) -> bool:
    """Whether it names settings in YAML or an address."""
    return is_address(name) or Path(name).suffix in SETTINGS


def open_named(
    name: str | Path, *, ask: Ask = "score", key_env: str | None = None, models: Mapping[str, Path] | None = None,
    cache: Path | None = None, trust: Trust | None = None,
) -> Scorer:
    """The reward that a user names, as a scorer.

    What the user's own settings or address name may be asked and run, as what a recipe names; what a folder names only
    where `trust` says so.

    Args:
        name: a reward's folder; a `.yaml` file with the settings of one that is not trained; a language model's
            folder or name on the Hub; or `URL#MODEL`, an OpenAI-compatible address and the model that is asked there,
            or one that scores, by its end (`/score`, `/pooling`).
        ask: what a language model is asked that is named alone.
        key_env: the environment variable whose value an address is sent as the key.
        models, cache, trust: of a folder; see :func:`triptych.reward.registry.open_reward`.

    Raises:
        RecipeError: the settings are wrong, each with its line.
        ModelError, RewardError: there is no such reward, or it may not or cannot be used.
    """
    if is_address(name):
        url, _, model = str(name).partition("#")
        if not model:
            raise RewardError(f"{name}: name the model that is asked there too, as in {url}#MODEL")
        endpoint = {"url": url, "model": model, "key_env": key_env}
        if scores_at(url):
            return _made(_settings(RemoteReward, endpoint=endpoint), url, model)
        return _made(_settings(JudgeReward, endpoint=endpoint, ask=ask), url, model)
    if Path(name).suffix in SETTINGS:
        return _made(load(name, WrittenReward).reward, str(name))
    folder = _folder(name)
    model_folder = folder / "model" if (folder / "model").is_dir() else folder
    if not (folder / DESCRIPTION).exists() and not is_classifier(model_folder):
        config = _settings(JudgeReward, model=str(model_folder.resolve()), ask=ask)
        return _made(config, str(name), Path(name).name)
    contents = {
        f"{place}/{file}": digest
        for place, path in {"": folder, **(models or {})}.items() if path.is_dir()
        for file, digest in model_digests(path).items()
    }
    identity = fingerprint("reward", contents, "")
    return open_reward(folder, identity=identity, models=models, cache=cache, trust=trust)


def _folder(name: str | Path) -> Path:
    folder = Path(name).expanduser()
    if any((folder / file).exists() for file in (DESCRIPTION, "config.json", "model/config.json")):
        return folder
    if (taken := downloaded(str(name))) is not None:
        return taken
    raise RewardError(
        f"{name}: no reward's folder, for it has neither {DESCRIPTION} nor config.json; nor settings in a .yaml file, "
        "owner/model on the Hub, or URL#MODEL"
    )


def _settings(kind: type[RewardConfig], **settings: Any) -> RewardConfig:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        wrong = complaints(error, kind).items()
        raise RewardError("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in wrong)) from None


def _made(config: RewardConfig, source: str, name: str | None = None) -> Scorer:
    """A reward that need not be trained, made by its stages in a folder that is there as long as it is.

    Args:
        source: where it was named.
        name: for the reader of a report; by default the kind's.
    """
    if any(part.needs for part in config.within):
        raise RewardError(
            f"{source}: holds a reward that is trained, which a command does not; train it with triptych reward or a "
            "recipe, and name its folder"
        )
    if config.asks_policy:
        raise RewardError(f"{source}: asks the policy itself, which is not here; name a model or an endpoint")
    for file in config.files.values():
        if not file.exists():
            raise RewardError(f"{file}: there is no such file, and {source} names it")
    temporary = TemporaryDirectory()
    runner = Runner(Path(temporary.name), Silent(), seed=0)
    elsewhere = [part for part in config.within if isinstance(part, TakenReward)]
    taken = take_rewards(runner, {str(place): part for place, part in enumerate(elsewhere)}, None)
    reward = make_reward(runner, "reward", config, Materials(taken=taken))[""]
    scorer = scorer_of(runner, config, reward, None, name).scorer
    finalize(scorer, temporary.cleanup)
    return scorer
