"""When two prompts ask the same: their normal form, by which data is split and kept apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from triptych.records import Prompt

ENDS = ".,;:?!…" "।॥" "。、，；：？！｡､" "؟،؛۔"
"""Marks that end a sentence, or a part of one, behind a word."""
STOPS = ".?!…।॥。？！｡؟۔"
QUOTES = str.maketrans("‘’‛ʼ“”‟", "''''\"\"\"")
AROUND = frozenset({"Ps", "Pe", "Pi", "Pf", "Pd"})
"""Unicode's classes of brackets, quotation marks and dashes."""
LONG, MOSTLY = 12, 0.8
"""A turn of so many words, and this share of all that it has, is prose."""


@lru_cache(maxsize=1 << 16)
def normalised(prompt: Prompt) -> str:
    """A text that is equal for prompts that ask the same, and for no others.

    - All turns count, the system turn, the assistant's, who speaks, and which tools there are and are called included:
      "Continue." asks for another thing in each conversation.
    - Case, spaces, the two ways to write a letter with an accent (NFC), and straight or curved quotation marks do not
      count.
    - Letters with the marks on them (the vowel signs of Hindi, accents), numbers and signs count: "3 + 4" is not
      "3 − 4", and C is not C++ or C#.
    - A mark that ends a sentence or a part of it, as `.,;:?!`, does not count behind a word, nor "¿" and "¡" before
      one; within a word it counts (3.5), and so does a "!" behind a number or a sign (5!).
    - In long prose (at least 12 words of letters alone, and 8 of 10 are such) brackets, quotation marks and dashes
      around such words, and marks alone between two of them, do not count either.
    """
    turns = [f"{turn.role} {_turn(turn.content)}" for turn in prompt.messages]
    called = [f"{call.name} {call.arguments}" for turn in prompt.messages for call in turn.tool_calls]
    return "\n".join([*turns, *called, *prompt.tools])


def _turn(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).translate(QUOTES)
    pieces = [_ended(piece) for piece in folded.split()]
    while len(pieces) > 1 and not pieces[-1].strip(STOPS):
        pieces.pop()
    bare = [_unwrapped(piece) for piece in pieces]
    if sum(map(_is_word, bare)) >= max(LONG, MOSTLY * len(pieces)):
        pieces = list(_prose(pieces, bare))
    return " ".join(pieces)


def _prose(pieces: Sequence[str], bare: Sequence[str]) -> Iterator[str]:
    """The words without what stands around them, and without the marks alone between them."""
    for place, (piece, word) in enumerate(zip(pieces, bare, strict=True)):
        if _is_word(word):
            yield word
        elif word or not all(map(_is_word, (*bare[max(place - 1, 0) : place], *bare[place + 1 : place + 2]))):
            yield piece


@lru_cache(maxsize=1 << 16)
def _ended(piece: str) -> str:
    """What stands between two spaces, without the marks that end a sentence; marks alone stay."""
    opened = piece.lstrip("¿¡")
    word = opened.rstrip(ENDS)
    if not word:
        return piece
    counts = unicodedata.category(word[-1])[0] in "NS" and not {"!", "！"}.isdisjoint(opened[len(word) :])
    return opened if counts else word


@lru_cache(maxsize=1 << 16)
def _unwrapped(piece: str) -> str:
    """Without what stands around a word in a sentence: brackets, quotation marks, dashes."""

    def around(sign: str) -> bool:
        return sign in ENDS or sign in "'\"" or unicodedata.category(sign) in AROUND

    first, last = 0, len(piece)
    while first < last and around(piece[first]):
        first += 1
    while first < last and around(piece[last - 1]):
        last -= 1
    return piece[first:last]


@lru_cache(maxsize=1 << 16)
def _is_word(piece: str) -> bool:
    """Letters with their marks, and what joins them."""
    return piece.strip("'-") != "" and all(sign in "'-" or unicodedata.category(sign)[0] in "LM" for sign in piece)
