"""What is printed: lines, passages, tables, errors. No other command prints by itself: what it shows may be others'."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.table import Table
from rich.text import Text

from triptych.display import Display
from triptych.progress import Silent

Part = str | tuple[str, str]
"""Text, or (text, style)."""

out = Display()
err = Display(stderr=True)


class Notes(Silent):
    """Prints what work says, and not how far it is."""

    def say(self, text: str) -> None:
        """A line."""
        say(text)


def fail(message: str, code: int = 1) -> NoReturn:
    """Prints what is wrong and ends with an exit code."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:  # what is wrong on all ranks is said by the first, and torchrun ends the others meanwhile
        time.sleep(3)
        message = f"rank {rank}: {message}"
    show_error(message)
    raise typer.Exit(code)


def show_error(message: str) -> None:
    """One block on stderr; the lines after the first are indented below it."""
    err.print(Text.assemble(("error: ", "bold red"), _below(message, 7)), soft_wrap=True)


def say(*parts: Part) -> None:
    """A line, never broken: paths must be copied whole. What follows a line end inside is indented below it.

    So nothing that a name holds passes for a line of ours.
    """
    styled = [part if isinstance(part, tuple) else (part, "") for part in parts]
    out.print(Text.assemble(*((_below(text, 2), style) for text, style in styled)), soft_wrap=True)
    out.file.flush()  # whoever reads a pipe waits for no full buffer


def quote(*parts: Part) -> None:
    """What others wrote, with its line ends: an answer, a prompt."""
    out.print(Text.assemble(*parts), soft_wrap=not out.is_terminal)


def show(table: Table) -> None:
    """A table."""
    out.print(table)


def table_of(*columns: str, right: int = 0) -> Table:
    """A table without rules; the numbers after its first column stand to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if 1 <= place <= right else "left", overflow="fold")
    return table


def figure(value: str | float | Sequence[float]) -> str:
    """A count whole, another number to four digits, an interval as "low to high", a word as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else " to ".join(map(figure, value))


def _below(text: str, indent: int) -> str:
    return text.replace("\n", "\n" + " " * indent)
