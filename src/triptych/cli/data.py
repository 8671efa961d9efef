"""Commands on files of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.app import Commands, app
from triptych.cli.terminal import say
from triptych.errors import DataError, RecipeError, RunError

data = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich", help="Makes data from data.")
app.add_typer(data, name="data")


@data.command()
def constrain(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Prompts, or conversations whose prompts are taken.",
                             show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Where the prompts are written, as JSON Lines.", show_default=False)],
    most: Annotated[int, typer.Option(min=1, help="How many instructions a prompt is given at most.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only this kind; may be given again.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="All but this kind, which is held out; may be given again.",
                     show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Adds instructions that code can check to prompts: "use no commas", "at least 40 words".

    They are IFEval's and open-instruct's kinds, in words of our own; docs/data.md lists them. The rule `instructions`
    rewards an answer for the share that it follows. The same seed gives the same file.

    Example: [bold]triptych data constrain alpaca.jsonl --out prompts.jsonl --without punctuation:no_comma[/bold]
    """
    from triptych.data.files import read_conversations, read_prompts, write
    from triptych.instructions.constraining import constrain as add_instructions
    from triptych.instructions.registry import DRAWN, require_kind

    if out.exists():
        raise RunError(f"{out} is there already; nothing was written. Name a new file")
    try:
        prompts = read_prompts(file)
    except DataError as error:
        if any(fault.field != "prompt" for fault in error.faults):
            raise
        prompts = [conversation.prompt for conversation in read_conversations(file)]
    try:
        for kind in without or ():
            require_kind(kind)
        kinds = [kind for kind in only or DRAWN if kind not in (without or ())]
        made = add_instructions(prompts, most=most, kinds=kinds, seed=seed)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    write(out, made)
    counts = sum(len(prompt.checks) for prompt in made)
    say(f"wrote {out}: {len(made):,} prompts with {counts:,} instructions of {len(kinds)} kinds")
