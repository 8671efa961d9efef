"""What is printed: lines, tables, errors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)


def fail(message: str) -> NoReturn:
    """Prints what is wrong and ends with exit code 1."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:  # what is wrong on all ranks is said by the first, and torchrun ends the others meanwhile
        time.sleep(3)
        message = f"rank {rank}: {message}"
    show_error(message)
    raise typer.Exit(1)


def show_error(message: str) -> None:
    """One block on stderr; the lines after the first are indented below it."""
    err.print(Text("error: ", "bold red") + Text(message.replace("\n", "\n       ")), soft_wrap=True)


def say(text: str = "") -> None:
    """A plain line, never broken: paths must be copied whole."""
    out.print(text, markup=False, soft_wrap=True)


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


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
