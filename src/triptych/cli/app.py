"""The program that the commands belong to."""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from triptych import __version__
from triptych.cli.terminal import fail, say
from triptych.errors import TriptychError

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT."""


class Commands(TyperGroup):
    """The commands; what a user can mend is printed as one block, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except TriptychError as error:
            fail(str(error))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                fail("the disk is full; free some space and give the same command again")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                fail(f"{error.filename}: {error.strerror}")
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
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
    """Develops a family of three language models, Base, Instruct and Reward, from one recipe.

    Start with [bold]triptych init my-model[/bold], put your own files into it, then
    [bold]triptych check my-model/recipe.yaml[/bold] and [bold]triptych run my-model/recipe.yaml[/bold].
    """
