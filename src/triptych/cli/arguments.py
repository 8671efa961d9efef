"""What commands are given: recipes, runs and models, by path or by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.errors import ModelError, RunError

if TYPE_CHECKING:
    from triptych.engine.scoring import Scorer
    from triptych.reward.trust import Trust

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

    def reward(self, name: str) -> Scorer:
        """The reward that a path stands for, with its identity; of a release, its Instruct model is the policy.

        Raises:
            ModelError, RewardError: it is none, or names what the flags do not allow.
        """
        from triptych.api import open_reward

        folder, release = find_model(name, "reward")
        return open_reward(folder, models=self._models(release / "instruct" if release else None), trust=self._trust)

    def _models(self, policy: Path | None) -> dict[str, Path]:
        from triptych.reward.judge import POLICY

        return {place.name: place for place in self.models or ()} | ({POLICY: policy} if policy else {})

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


def find_model(name: str, role: str) -> tuple[Path, Path | None]:
    """The model's folder that a path stands for, and the release it is part of where that was named."""
    for place in (Path(name), RUNS / name):
        for release in (place, place / "release"):
            if (release / "manifest.json").exists() and _is_model(release / role, role):
                return release / role, release
        if role == "reward" and (place / "reward.json").is_file():
            return place, None
        for folder in (place, place / "model"):
            if (folder / "config.json").exists():
                scores = "SequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
                if scores != (role == "reward"):
                    does, wanted = ("scores", "writes") if scores else ("writes", "scores")
                    raise ModelError(f"{folder}: this model {does} answers; one that {wanted} them is needed here")
                return folder, None
    rules = ", nor a folder with a reward.json" if role == "reward" else ""
    raise ModelError(f"{name}: neither a model's folder, nor a release, nor a run with a release{rules}")


def _is_model(folder: Path, role: str) -> bool:
    return (folder / "config.json").exists() or (role == "reward" and (folder / "reward.json").is_file())
