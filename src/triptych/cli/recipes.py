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
from triptych.yaml_edit import write_values

if TYPE_CHECKING:
    from triptych.preflight.check import Findings


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", show_default=False,
            help="A folder, a .gguf file or a name on the Hub: the recipe is made for it and for the files below.",
        ),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Conversations to learn from; as all of these, may be given several times.",
                     show_default=False),
    ] = None,
    comparisons: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="What people prefer: a prompt, the better answer, a worse one.",
                     show_default=False),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Prompts to improve on; else those of the answers.", show_default=False),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The JSON schema of a good answer.", show_default=False),
    ] = None,
) -> None:
    """Writes a commented recipe and small example files to begin with; or one for your model and files, and checks it.

    Example: [bold]triptych init my-model[/bold]

    Example: [bold]triptych init my-model --from my/model --answers a.jsonl --comparisons c.jsonl[/bold]
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder; nothing was written. Name a new one")
    if model is not None:
        _draft(folder, model, answers or (), comparisons or (), prompts or (), schema)
        return
    if answers or comparisons or prompts or schema:
        raise RecipeError("--answers, --comparisons, --prompts and --schema go with --from MODEL; nothing was written")
    for name, source in _starter(resources.files("triptych") / "starter"):
        path = folder / name
        make_folder(path.parent)
        write_whole(path, source.read_bytes())
        say(f"wrote {path}")
    say()
    say(f"Next: triptych check {folder / 'recipe.yaml'}")


def _draft(
    folder: Path, model: str, answers: Sequence[str], comparisons: Sequence[str], prompts: Sequence[str],
    schema: Path | None,
) -> None:
    from triptych.engine.device import settle
    from triptych.preflight import draft

    settle()
    text = draft.draft(folder, model, answers, comparisons, prompts, schema)
    make_folder(folder)
    path = folder / "recipe.yaml"
    write_whole(path, text)
    say(f"wrote {path}; it is checked")
    settings, findings = draft.settle(path)
    if settings:
        say(f"wrote into {path}: {', '.join(settings)}")
    _conclude(path, findings)


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
        write_values(recipe, findings.settings)
        say(f"wrote into {recipe}: {', '.join(findings.settings)}")
        findings = look(recipe, overrides or (), made)
    _conclude(recipe, findings)


def _conclude(recipe: Path, findings: Findings) -> None:
    _show_findings(findings)
    if findings.problems:
        count = len(findings.problems)
        fail(f"{count} problem{'s' if count > 1 else ''}:\n" + "\n".join(findings.problems))
    say(f"{recipe} is fine: triptych run {recipe}")


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
