"""Regular expressions that end: those of Python's `re`, matched by the `regex` package, which has a time-out."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import regex

SECONDS = 1.0
"""Of computing, for one search in one text."""

CHARACTERS = 10_000
"""How long a pattern may be."""

PLACES = 100_000
"""To how many places a pattern may grow when its repetitions are written out, as `regex` does."""

_TOKEN = re.compile(r"\\N\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)(?:,\d*)?\}|\{,\d*\}|.", re.DOTALL)
_WORD = r"\p{L}\p{N}_"
_WORDS = {
    r"\w": f"[{_WORD}]", r"\W": f"[^{_WORD}]",
    r"\b": f"(?:(?<![{_WORD}])(?=[{_WORD}])|(?<=[{_WORD}])(?![{_WORD}]))",
    r"\B": f"(?:(?<![{_WORD}])(?![{_WORD}])|(?<=[{_WORD}])(?=[{_WORD}]))",
}
"""What belongs to a word for `re`: letters, numbers and _. For `regex` accents and vowel signs do, and ² does not."""
_ASCII = re.compile(r"\(\?[a-zA-Z]*a")
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")


@lru_cache(maxsize=4096)
def expression(pattern: str) -> Any:
    """The compiled pattern; a dot matches line ends too.

    Raises:
        ValueError: it is no regular expression of `re`, or too large a one.
    """
    if len(pattern) > CHARACTERS:
        raise ValueError(f"is a regular expression of more than {CHARACTERS:,} characters")
    try:
        re.compile(pattern, re.DOTALL)
        if _places(pattern) > PLACES:
            raise ValueError(f"repeats too much: written out it has more than {PLACES:,} places")
        return regex.compile(_plain(pattern), regex.DOTALL | regex.VERSION0)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None


def matches(pattern: str, text: str, *, whole: bool = False) -> bool:
    """Whether the pattern is found in the text (`whole`: is all of it).

    Raises:
        ValueError: as `expression`.
        TimeoutError: it took longer than `SECONDS`.
    """
    find = expression(pattern).fullmatch if whole else expression(pattern).search
    return find(text, timeout=SECONDS) is not None


def last_group(pattern: str, text: str) -> str | None:
    """What the pattern's first group holds in its last match; None without a match.

    Raises:
        ValueError, TimeoutError: as `found`.
    """
    last = None  # no `list` of the matches: a deadline strikes between two of them, and they may be many
    for match in expression(pattern).finditer(text, timeout=SECONDS):
        last = match
    return None if last is None else last[1]


def _plain(pattern: str) -> str:
    """The pattern for `regex`, to which `{e}` means "with an error", where for `re` such a brace is itself."""
    words = not _ASCII.search(pattern)
    meant = []
    for match in _TOKEN.finditer(pattern):
        token = match[0]
        if token == "{":
            token = r"\{"
        elif words:
            token = _class(token) if len(token) > 1 and token[0] == "[" else _WORDS.get(token, token)
        meant.append(token)
    return "".join(meant)


def _class(text: str) -> str:
    """The same of `[...]`; what is no word stands beside it, for it cannot stand in it."""
    parts = re.findall(r"\\.|[^\\]", text, re.DOTALL)
    others = "".join(_WORD if part == r"\w" else part for part in parts if part != r"\W")
    if r"\W" not in parts:
        return others
    negated = others.startswith("[^")
    empty = others in ("[]", "[^]")
    if negated:
        return f"[{_WORD}]" if empty else f"(?:(?=[{_WORD}]){others})"
    return f"[^{_WORD}]" if empty else f"(?:[^{_WORD}]|{others})"


def _places(pattern: str) -> int:
    """How many places the pattern has once its least repetitions are written out."""
    if _VERBOSE.search(pattern):  # comments may hold brackets: as if every repetition were inside the others
        places = len(pattern)
        for token in _TOKEN.finditer(pattern):
            places *= max(1, int(token[1] or 1))
        return places
    groups, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        if token[1] is not None:
            more = last * (max(1, int(token[1])) - 1)
            groups[-1] += more
            last += more
        elif token[0] == "(":
            groups.append(1)
        elif token[0] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif token[0] not in "*+?":
            last = 1
            groups[-1] += 1
    return groups[0]
