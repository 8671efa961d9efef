"""The program that the commands belong to."""

from __future__ import annotations

import errno
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from triptych import __version__
from triptych.cli.terminal import fail, say
from triptych.errors import TriptychError

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT."""


class Deciding(TyperCommand):
    """A command whose exit code is what it decided; whatever ends it without a decision has one of its own."""

    failed = 3


class Commands(TyperGroup):
    """The commands; what a user can mend is printed as one block, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            command = self.commands.get(ctx.invoked_subcommand)
            failed = command.failed if isinstance(command, Deciding) else 1
            if (words := _words(error)) is not None:
                fail(words, failed)
            if not isinstance(command, Deciding):
                raise
            if hasattr(error, "exit_code"):  # a command line that cannot be read
                error.exit_code = failed
                raise
            traceback.print_exc()
            raise typer.Exit(failed) from None


def _words(error: Exception) -> str | None:
    """What a user is told of an error that they can mend; None of another."""
    if isinstance(error, TriptychError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and give the same command again"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def triptych(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version.")
    ] = False,
) -> None:
    """Develops a family of language models, Base, Instruct and Reward, from one recipe.

    Start with [bold]triptych init my-model[/bold], put your own files into it, then
    [bold]triptych check my-model/recipe.yaml[/bold] and [bold]triptych run my-model/recipe.yaml[/bold].
    """
