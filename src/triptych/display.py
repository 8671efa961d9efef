"""Text of others, made fit for a terminal: a model, a file or a server may have written what would steer it."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
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
