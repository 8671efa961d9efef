"""Commands before a run: a recipe is begun, and looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.app import app
from triptych.cli.arguments import Overrides, RecipeFile, find_model
from triptych.cli.terminal import fail, say, show, table_of
from triptych.display import duration
from triptych.errors import RecipeError, RunError
from triptych.storage import make_folder, write_whole
from triptych.yaml_edit import set_value

if TYPE_CHECKING:
    from triptych.preflight.check import Findings


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
) -> None:
    """Writes a commented recipe and small example files to begin with.

    Example: [bold]triptych init my-model[/bold]
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder; nothing was written. Name a new one")
    for name, source in _starter(resources.files("triptych") / "starter"):
        path = folder / name
        make_folder(path.parent)
        write_whole(path, source.read_bytes())
        say(f"wrote {path}")
    say()
    say(f"Next: triptych check {folder / 'recipe.yaml'}")


def _starter(folder: Traversable, inside: Path = Path()) -> Iterator[tuple[Path, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _starter(entry, inside / entry.name)
        elif not entry.name.endswith((".py", ".pyc")):
            yield inside / entry.name, entry


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="REWARD", help="A reward model that is there already: is it made for this model and data?",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Write settings into the recipe with which it fits into memory.")
    ] = False,
) -> None:
    """Reads and checks everything a run needs, and estimates its memory and time.

    Every file is read, the model and its tokenizer are opened, lengths are counted. Exit code 1 with every
    problem listed, 0 where the run may start. A model on the Hugging Face Hub is downloaded.

    Example: [bold]triptych check recipe.yaml --set instruct.context=1024[/bold]
    """
    from triptych.engine.device import settle
    from triptych.preflight.check import check as look

    settle()
    made = find_model(reward, "reward")[0] if reward else None
    findings = look(recipe, overrides or (), made)
    if fit and findings.settings:
        _write_settings(recipe, findings.settings)
        findings = look(recipe, overrides or (), made)
    _show_findings(findings)
    if findings.problems:
        count = len(findings.problems)
        fail(f"{count} problem{'s' if count > 1 else ''}:\n" + "\n".join(findings.problems))
    say(f"{recipe} is fine: triptych run {recipe}")


def _write_settings(recipe: Path, settings: Sequence[str]) -> None:
    text = recipe.read_text(encoding="utf-8")
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            text = set_value(text, name, value)
        except RecipeError as error:
            raise RecipeError(f"{recipe}: {error}; nothing was written") from None
    write_whole(recipe, text)
    say(f"wrote into {recipe}: {', '.join(settings)}")


def _show_findings(findings: Findings) -> None:
    if findings.lengths:
        table = table_of("tokens in a row of", "rows", "median", "longest", "limit", "over", right=5)
        for name, report in findings.lengths.items():
            numbers = (report.count, round(report.median), report.longest, report.limit, report.over)
            table.add_row(name, *(f"{number:,}" for number in numbers))
        show(table)
    if findings.costs:
        table = table_of("stage", "tokens", "time, about", "memory, about", right=3)
        for cost in findings.costs:
            table.add_row(cost.stage, f"{cost.tokens:,}", duration(cost.seconds), f"{cost.gib:.2f} GiB")
        total = sum(cost.seconds for cost in findings.costs)
        most = max(cost.gib for cost in findings.costs)
        table.add_section()
        table.add_row("all", "", duration(total), f"{most:.2f} GiB at most")
        show(table)
        say(f"Estimated from {findings.assumption}.")
    for note in findings.notes:
        say(f"note: {note}")
