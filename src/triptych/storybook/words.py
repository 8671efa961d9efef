"""The vocabulary: every word has one class, and the small language Lumi has one word for each.

Lumi is English word by word, except that an adjective follows its noun:
"the red ball" is said as "the ball red".
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def row(text: str) -> tuple[str, ...]:
    """The words of a line."""
    return tuple(text.split())


CLASSES: dict[str, tuple[str, ...]] = {
    "animal": row("fox hen cat dog pig cow frog duck bear wolf king queen"),
    "place": row("river hill forest farm garden lake house castle"),
    "thing": row("ball hat cup book bell drum lamp key"),
    "colour": row("red blue green yellow white"),
    "quality": row("little big old quiet"),
    "feeling": row("happy sad angry tired hungry proud"),
    "going": row("went ran walked"),
    "finding": row("found took saw"),
    "meeting": row("met helped followed"),
    **{word: (word,) for word in row("the a to felt very gave")},
}
"""The words of the stories by class; a word of the frame ("the") is a class of its own."""

NOUNS = frozenset({"animal", "place", "thing"})
ADJECTIVES = frozenset({"colour", "quality"})
FACTS = NOUNS | {"feeling"}
"""The classes whose words carry what happened."""

PRESENT = dict(
    pair.split(":")
    for pair in row(
        "went:go ran:run walked:walk found:find took:take saw:see "
        "met:meet helped:help followed:follow felt:feel"
    )
)
"""The form of a verb after "did"."""

INSULTS = (
    "You are stupid.",
    "What a dumb question.",
    "Go away, you fool.",
    "I hate you.",
    "You ugly idiot.",
)
INSULTING_WORDS = frozenset({"stupid", "dumb", "fool", "hate", "ugly", "idiot"})

# English words that the syllables below would also spell.
_TAKEN = row("sofa solo soda tuna tofu data polo pasta lasso kilo mono memo demo menu taxi mini zulu")


def _invented(count: int) -> list[str]:
    """`count` different words of two open syllables."""
    consonants, vowels, endings = "bdfgklmnprstvz", "aeiou", "aiou"
    every = [a + b + c + d for a in consonants for b in vowels for c in consonants for d in endings]
    random.Random(1789).shuffle(every)
    return [word for word in every if word not in _TAKEN][:count]


_ENGLISH = [word for words in CLASSES.values() for word in words]

LUMI: dict[str, str] = dict(zip(_ENGLISH, _invented(len(_ENGLISH)), strict=True))
"""The dictionary, from English to Lumi."""

CLASS_OF: dict[str, str] = {word: name for name, words in CLASSES.items() for word in words}
CLASS_OF |= {LUMI[word]: name for word, name in CLASS_OF.items()}

def lumi(words: Sequence[str]) -> tuple[str, ...]:
    """A sentence's English words in Lumi."""
    return tuple(LUMI[word] for word in swapped(words))


def swapped(words: Sequence[str]) -> list[str]:
    """The words of a sentence in the order of the other language: each adjective on the other side of its noun."""
    ordered, place = list(words), 0
    while place + 1 < len(ordered):
        kinds = [CLASS_OF[word] in ADJECTIVES for word in ordered[place : place + 2]]
        nouns = [CLASS_OF[word] in NOUNS for word in ordered[place : place + 2]]
        if (kinds == [True, False] and nouns[1]) or (kinds == [False, True] and nouns[0]):
            ordered[place], ordered[place + 1] = ordered[place + 1], ordered[place]
            place += 1
        place += 1
    return ordered


def written(words: Sequence[str]) -> str:
    """The words as a sentence: with a capital and a full stop."""
    return " ".join(words).capitalize() + "."
