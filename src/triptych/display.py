"""Text of others, made fit for a terminal: a model, a file or a server may have written what would steer it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # OSC: titles, links, the clipboard; one without an end hides nothing
    r"|\x1b[PX^_][^\x1b\n]*\x1b\\"  # DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|\x1b[ -/]*[0-~]"
)
_STEERS = {"Cc", "Cf", "Cs", "Co"}
_KEPT = {"\n", "\t", "‌", "‍"}  # the joiners of scripts and of emoji


def printable(text: object) -> str:
    """The text without control sequences; of control characters only line ends and tabs are left.

    Marks that turn the direction of writing are left out too: with them a line reads as it is not.
    """
    return "".join(
        letter for letter in _SEQUENCE.sub("", str(text))
        if letter in _KEPT or unicodedata.category(letter) not in _STEERS
    )


def one_line(text: object) -> str:
    """The same on one line: the name of a file may hold line ends, as if it were several."""
    return " ".join(printable(text).split())


def named(name: object) -> str:
    """The name of a file: as it is, or, where it holds what would not be seen, with escapes."""
    text = str(name)
    return text if text == one_line(text) else ascii(text)


def duration(seconds: float) -> str:
    """A time as a person says it: "4.2 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{rest} s"


class Display(Console):
    """A console on which all text stands as it is: never markup, never a control sequence but its own styles."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever is printed comes through here, a table's cell as well as a line."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
