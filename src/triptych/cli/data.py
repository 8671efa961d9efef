"""Commands on files of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.app import Commands, app
from triptych.cli.arguments import find_model
from triptych.cli.terminal import say
from triptych.errors import DataError, RecipeError, RunError
from triptych.storage import make_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from triptych.records import Conversation, Prompt

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
    answers: Annotated[
        bool,
        typer.Option("--answers", help="Keeps the conversations' answers: each is given instructions that it follows."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Adds instructions that code can check to prompts: "use no commas", "at least 40 words".

    They are IFEval's and open-instruct's kinds, in words of our own; docs/instructions.md lists them. The rule
    `instructions` rewards an answer for the share that it follows. The same seed gives the same file.

    With --answers the file is for learning: arguments are drawn that suit the answer, or its form is changed.

    Example: [bold]triptych data constrain alpaca.jsonl --out prompts.jsonl --without punctuation:no_comma[/bold]
    """
    from pydantic import ValidationError

    from triptych.configuration import reason
    from triptych.data.files import read_conversations, read_saying, write
    from triptych.data.splits import prompt_of
    from triptych.instructions.constraining import Constraining, constrain_answers
    from triptych.instructions.constraining import constrain as add_instructions

    if out.exists():
        raise RunError(f"{out} is there already; nothing was written. Name a new file")
    make_folder(out.parent)
    try:
        config = Constraining(most=most, only=tuple(only or ()), without=tuple(without or ()), seed=seed)
    except ValidationError as error:
        raise RecipeError("; ".join(map(reason, error.errors()))) from None
    made: Sequence[Prompt | Conversation] = (
        constrain_answers(read_saying(read_conversations, [file], say), config) if answers
        else add_instructions(_prompts(file), config)
    )
    write(out, made)
    checks = [check for record in made for check in prompt_of(record).checks]
    kinds = len({check.kind for check in checks})
    what = "conversations" if answers else "prompts"
    of = f"{kinds} kind{'' if kinds == 1 else 's'}"
    say(f"wrote {out}: {len(made):,} {what} with {len(checks):,} instructions of {of}")


@data.command()
def synthesise(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A tuned model: a folder, a run's, or a Hub name.",
                                         show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the conversations are written, as JSON Lines.", show_default=False)],
    seeds: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Prompts that are shown as examples, and not repeated; may be given again.",
                     show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many conversations.")] = 200,
    reward: Annotated[
        str | None,
        typer.Option(metavar="REWARD", help="Takes the best of four answers: a folder, rules in YAML, a Hub name.",
                     show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=8, help="Of an answer.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 0,
) -> None:
    """Has a tuned model write instructions and answer them: Magpie, and Self-Instruct where there are seeds.

    What nearly repeats a seed or an earlier instruction, does not end, or repeats itself is left out and counted. The
    file is for `instruct.data`.

    Example: [bold]triptych data synthesise models/SmolLM2-135M-Instruct --out own.jsonl --seeds seeds.jsonl[/bold]
    """
    import triptych

    folder, _ = find_model(model, "instruct")
    left_out = triptych.synthesise(
        folder, out, seeds=seeds or (), reward=reward, count=count, max_tokens=max_tokens, seed=seed
    )
    for why, instructions in left_out.most_common():
        say(f"left out: {instructions:,} instructions: {why}")
    say(f"wrote {out}")


def _prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, also of one with answers."""
    from triptych.data.files import read_conversations, read_prompts, read_saying

    try:
        return read_saying(read_prompts, [file], say)
    except DataError as error:
        if any(fault.field != "prompt" for fault in error.faults):
            raise
        return [conversation.prompt for conversation in read_saying(read_conversations, [file], say)]
