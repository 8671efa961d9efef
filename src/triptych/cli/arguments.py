"""What commands are given: recipes, runs and models, by path or by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from triptych.errors import ModelError, RewardError, RunError

if TYPE_CHECKING:
    from triptych.engine.scoring import Scorer
    from triptych.reward.trust import Trust
    from triptych.reward_names import Ask

RUNS = Path("runs")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", show_default=False,
        help="Sets a field of the recipe, as in reward.learning_rate=1e-5; may be given several times.",
    ),
]
RunsFolder = Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or its name in runs/.", show_default=False)
]

AllowEndpoint = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL", show_default=False,
        help="Lets a reward that asks a language model send text to this address; may be given several times.",
    ),
]
AllowKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VARIABLE", show_default=False,
        help="Lets it send the value of this environment variable as the key to what --allow-endpoint allows.",
    ),
]
AllowFunctions = Annotated[
    bool,
    typer.Option(
        "--allow-functions", help="Runs the functions that a reward's folder holds, and the code of its rule tests."
    ),
]
AllowTemplate = Annotated[
    bool, typer.Option("--allow-template", help="Renders the template with which a reward asks a language model.")
]
AllowModel = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER", show_default=False,
        help="The model that a reward names as its judge, by the folder's name; may be given several times.",
    ),
]


@dataclass(frozen=True)
class Allowed:
    """What the user's flags allow of what a reward's folder names."""

    endpoints: list[str] | None
    keys: list[str] | None
    functions: bool
    template: bool
    models: list[Path] | None

    def open(self, folder: Path, policy: Path | None = None) -> Scorer:
        """The reward in a folder; a judge may ask the policy that is given. Nothing is made by it: it has no identity.

        Raises:
            RewardError: it names what the flags do not allow.
        """
        from triptych.reward.registry import open_reward

        return open_reward(folder, models=self._models(policy), trust=self._trust)

    def reward(self, name: str, ask: Ask | None = None) -> Scorer:
        """The reward of any kind that a user names, with its identity; of a release, its Instruct model is the policy.

        Args:
            ask: what a language model is asked that is named alone; None refuses one.

        Raises:
            RecipeError, ModelError, RewardError: it is none, or names what the flags do not allow.
        """
        from triptych.api import open_reward
        from triptych.engine.endpoint import is_address
        from triptych.reward_names import is_no_folder

        if len(self.keys or ()) > 1 and is_address(name):
            raise RewardError(f"{name}: one key is sent there; give --allow-key once")
        folder, release = (name, None) if is_no_folder(name) else find_model(name, "judge" if ask else "reward")
        return open_reward(
            folder, ask=ask or "score", key_env=self.keys[0] if self.keys else None,
            models=self._models(release / "instruct" if release else None), trust=self._trust,
        )

    def _models(self, policy: Path | None) -> dict[str, Path]:
        from triptych.reward.judge import POLICY

        models = {place.name: place for place in self.models or ()}
        if len(models) < len(set(self.models or ())):
            raise RewardError("two models of --allow-model have the same last name, by which a reward knows them")
        return models | ({POLICY: policy} if policy else {})

    @property
    def _trust(self) -> Trust:
        from triptych.reward.trust import Trust

        return Trust.given(self.endpoints or (), self.keys or (), self.functions, self.template)


def find_run(name: str) -> Path:
    """The folder of a run, given by its path or its name."""
    for folder in (Path(name), RUNS / name):
        if (folder / "ledger.jsonl").exists() or (folder / "summary.json").exists():
            return folder
    there = sorted(path.parent.name for path in RUNS.glob("*/ledger.jsonl"))
    known = f"; {RUNS}/ has {', '.join(there)}" if there else ""
    raise RunError(f"{name}: neither a run's folder nor a name in {RUNS}/{known}")


Role = Literal["base", "instruct", "reward", "judge"]
"""What a model is needed for: to write, to score, or to judge, which a model that writes can do too."""


def find_release(name: str) -> Path | None:
    """The release that a name stands for, of a run too; None where it stands for another model."""
    places = (place / part for place in (Path(name), RUNS / name) for part in ("", "release"))
    return next((release for release in places if (release / "manifest.json").exists()
                 and _is_model(release / "instruct", "instruct")), None)


def find_model(name: str, role: Role) -> tuple[Path, Path | None]:
    """The folder of a model, here or on the Hub, that a name stands for, and the release that was named with it."""
    part = "reward" if role == "judge" else role
    for place in (Path(name), RUNS / name):
        for release in (place, place / "release"):
            if (release / "manifest.json").exists() and _is_model(release / part, role):
                return release / part, release
            if part == "reward" and (release / "manifest.json").exists() and _is_model(release / "instruct", role):
                raise ModelError(f"{release}: this release has no Reward model, for its recipe had none")
        if part == "reward" and (place / "reward.json").is_file():
            return place, None
        for folder in (place, place / "model"):
            if (folder / "config.json").exists():
                return _fit(folder, role), None
    if not Path(name).exists() and (taken := _downloaded(name)) is not None:
        return _fit(taken, role), None
    others = ", nor a folder with a reward.json, nor settings in a .yaml file, nor URL#MODEL" if role == "judge" else ""
    raise ModelError(
        f"{name}: neither a model's folder, nor a release, nor a run with a release, nor owner/model on the Hub{others}"
    )


def name_of(folder: Path) -> str:
    """What a user calls a model or a release: its folder's name, or the name of what was made with it inside."""
    place = folder.resolve()
    return place.parent.name if place.name in ("model", "release") else place.name


def _is_model(folder: Path, role: Role) -> bool:
    return (folder / "config.json").exists() or (role in ("reward", "judge") and (folder / "reward.json").is_file())


def _fit(folder: Path, role: Role) -> Path:
    """The folder, whose model does what is needed."""
    from triptych.engine.inspection import is_classifier

    scores = is_classifier(folder)
    if role != "judge" and scores != (role == "reward"):
        does, wanted = ("scores", "writes") if scores else ("writes", "scores")
        raise ModelError(f"{folder}: this model {does} answers; one that {wanted} them is needed here")
    return folder


def _downloaded(name: str) -> Path | None:
    from triptych.engine.hub import downloaded

    return downloaded(name)
