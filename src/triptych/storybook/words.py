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
    "animal": row("fox hen cat dog pig cow goat frog duck bear wolf mouse king queen girl boy"),
    "place": row("river hill forest farm garden lake house school market bridge cave castle"),
    "thing": row("ball hat cup book bell drum kite lamp key box boat coin cake ring stone map"),
    "colour": row("red blue green yellow white black"),
    "quality": row("little big old quiet pretty strange"),
    "feeling": row("happy sad angry tired hungry proud calm scared"),
    "going": row("went ran walked jumped"),
    "finding": row("found took saw made lost"),
    "meeting": row("met helped followed called"),
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
        "went:go ran:run walked:walk jumped:jump "
        "found:find took:take saw:see made:make lost:lose "
        "met:meet helped:help followed:follow called:call felt:feel"
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

_WORDS = {
    "english": CLASSES,
    "lumi": {name: tuple(LUMI[word] for word in words) for name, words in CLASSES.items()},
}


def others(word: str) -> list[str]:
    """The other words of the same class in the same language."""
    language = "english" if word in LUMI else "lumi"
    return [other for other in _WORDS[language][CLASS_OF[word]] if other != word]


def lumi(words: Sequence[str]) -> tuple[str, ...]:
    """A sentence's English words in Lumi."""
    ordered = list(words)
    for place in range(len(ordered) - 1):
        if CLASS_OF[ordered[place]] in ADJECTIVES and CLASS_OF[ordered[place + 1]] in NOUNS:
            ordered[place], ordered[place + 1] = ordered[place + 1], ordered[place]
    return tuple(LUMI[word] for word in ordered)


def written(words: Sequence[str]) -> str:
    """The words as a sentence: with a capital and a full stop."""
    return " ".join(words).capitalize() + "."
