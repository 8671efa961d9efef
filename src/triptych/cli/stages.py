"""Commands for a stage alone, on models made anywhere: a reward model is trained, a model improved, two compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.app import Deciding, app
from triptych.cli.arguments import (
    Allowed,
    AllowEndpoint,
    AllowFunctions,
    AllowKey,
    AllowModel,
    AllowTemplate,
    find_model,
)
from triptych.cli.terminal import figure, say, show, table_of
from triptych.errors import RecipeError, WaitingError

if TYPE_CHECKING:
    from triptych.evaluate.gate import Decided

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", show_default=False,
        help="A setting of the stage by its name in the recipe, as in learning_rate=1e-5; may be given several times.",
    ),
]
Output = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that is made.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]

PROMOTED, REJECTED, UNDECIDED = range(3)
"""Exit codes of `gate`: what it decided."""

WAITING = 4
"""That of a gate that waits for people."""


@app.command()
def reward(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Rows of {prompt, chosen, rejected}.", show_default=False)
    ],
    start: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The model that it starts from.", show_default=False)
    ],
    out: Output,
    heldout: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the prompts that is not learnt.")] = 0.15,
    settings: Settings = None,
    seed: Seed = 0,
) -> None:
    """Trains a reward model on comparisons, as a recipe's `reward` does; audit it with `triptych audit`.

    Given again after an interruption, the command goes on where it was.

    Example: [bold]triptych reward preferences.jsonl --from models/SmolLM2-135M-Instruct --out reward[/bold]
    """
    from triptych.api import train_reward

    model = find_model(start, "instruct")[0]
    made = train_reward(model, files, out, heldout=heldout, seed=seed, **_settings(settings))
    say(made.result.headline)
    say(f"{made.folder} is made: triptych audit {made.folder} --data {made.heldout} --training {made.learnt}")


@app.command()
def improve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False)
    ],
    prompts: Annotated[
        list[Path] | None, typer.Option(help="Rows of {prompt}; may be given several times.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--reward", metavar="REWARD", help="A reward's folder, a release, or a run.", show_default=False),
    ] = None,
    *,
    out: Output,
    method: Annotated[str, typer.Option(help="Of docs/improve.md: grpo, dpo, best_of_n and others.")] = "grpo",
    comparisons: Annotated[
        list[Path] | None, typer.Option(help="For a method that learns from comparisons.", show_default=False)
    ] = None,
    thumbs: Annotated[
        list[Path] | None, typer.Option(help="For a method that learns from thumbs.", show_default=False)
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Improves a model against a reward, as a round of a recipe does; compare it with `triptych gate`.

    DPO on comparisons and KTO on thumbs need neither reward nor prompts: a tenth of the feedback is held out, and of
    the policies on the way the one with the least loss there is kept.

    Given again after an interruption, the command goes on where it was.

    Example: [bold]triptych improve models/mine --prompts questions.jsonl --reward reward --out better[/bold]

    Example: [bold]triptych improve models/mine --method dpo --comparisons preferences.jsonl --out better[/bold]
    """
    from triptych.api import improve as improve_model

    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    made = improve_model(
        find_model(model, "instruct")[0], allowed.reward(by, "score") if by else None, prompts or (), out,
        method=method,
        comparisons=comparisons or (), thumbs=thumbs or (), seed=seed, **_settings(settings),
    )
    say(made.result.headline)
    say(f"{made.folder} is made: triptych gate {model} {made.folder} --prompts FILE --judge REWARD")


@app.command(cls=Deciding)
def gate(
    champion: Annotated[
        str,
        typer.Argument(metavar="CHAMPION", help="A model made with any tool, or its answers.", show_default=False),
    ],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", help="The one that may be better, or its answers.", show_default=False),
    ],
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="Rows of {prompt} on which nothing was trained; may be given again.", show_default=False),
    ] = None,
    *,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="REWARD", show_default=False,
            help="Who decides, without a part in the training: a reward of any kind, a language model, URL#MODEL.",
        ),
    ] = None,
    people: Annotated[
        bool, typer.Option("--people", help="People decide; a judge's win rate then stands beside theirs.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that is made.")] = Path("gate"),
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of both; by default each model's own.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest answer; by default each model's own.", show_default=False)
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    allow_endpoint: AllowEndpoint = None,
    allow_key: AllowKey = None,
    allow_functions: AllowFunctions = False,
    allow_template: AllowTemplate = False,
    allow_model: AllowModel = None,
) -> None:
    """Says whether a model is better than another, by an exact test on prompts that both answer.

    Distance, length, single tasks and plain text have budgets, as in a recipe (`--set max_length_ratio=1.2`). Exit code
    0: promoted, 1: rejected, 2: too few prompts to tell, 3: an error, 4: people have not answered every question. DIR
    holds `gate.html`, `gate.json`, the answers. Two files of answers to the same prompts, {prompt, completion}, are
    compared without models.

    With --people, `triptych label DIR` asks them; the same command then goes on.

    Example: [bold]triptych gate models/old models/new --prompts questions.jsonl --judge judge[/bold]
    """
    from triptych.api import gate as decide
    from triptych.data.source import is_data_file

    allowed = Allowed(allow_endpoint, allow_key, allow_functions, allow_template, allow_model)
    before, after = (
        Path(name) if is_data_file(name) else find_model(name, "instruct")[0] for name in (champion, candidate)
    )
    scorer = allowed.reward(judge, "compare") if judge else None
    try:
        decided = decide(
            before, after, prompts or (), judge=scorer, people=people, temperature=temperature, max_tokens=max_tokens,
            output=out, seed=seed, **_settings(settings),
        )
    except WaitingError as waiting:
        say(str(waiting))
        raise typer.Exit(WAITING) from None
    _show_decision(decided)
    say(str(out / "gate.html"))
    raise typer.Exit({"promoted": PROMOTED, "rejected": REJECTED}.get(decided.decision, UNDECIDED))


def _show_decision(decided: Decided) -> None:
    table = table_of("", "champion", "candidate", right=2)
    table.add_row("decoding", decided.decoding_before, decided.decoding_after)
    table.add_row(f"score by {decided.judge}", figure(decided.judge_before), figure(decided.judge_after))
    unit = "words" if decided.kl is None else "tokens"
    table.add_row(f"{unit} in an answer", figure(decided.length_before), figure(decided.length_after))
    show(table)
    low, high = decided.interval
    say(f"win rate {decided.win_rate:.1%} ({low:.1%} to {high:.1%})")
    if decided.length_controlled is not None:
        say(f"win rate at equal length {decided.length_controlled:.1%}")
    if decided.judge_win_rate is not None:
        say(f"win rate by {decided.judge} alone {decided.judge_win_rate:.1%}")
    if decided.people:
        say(decided.people.sentence)
    say(f"{decided.decision}: {decided.reason}")


def _settings(given: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` each, the value in YAML.

    Raises:
        RecipeError: one has no `=`, or a value that is no YAML.
    """
    from triptych.yaml_text import parse_value

    settings: dict[str, Any] = {}
    for setting in given or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: must be NAME=VALUE")
        settings[name] = parse_value(value, f"--set {setting}")
    return settings
