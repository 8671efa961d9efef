"""The grammar of the stories: five kinds of sentence, how they are drawn, and how one is recognised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from triptych.storybook.words import ADJECTIVES, CLASS_OF, CLASSES, FACTS, LUMI, PRESENT, lumi, row, written

FRAMES: dict[str, tuple[str, ...]] = {
    "go": row("the animal going to the place"),
    "find": row("the animal finding a colour thing"),
    "meet": row("the animal meeting the animal"),
    "feel": row("the animal felt very feeling"),
    "give": row("the animal gave the thing to the animal"),
}
"""Each kind of sentence as a row of word classes. A quality may stand before an animal or a place."""

ASKED = ("go", "find", "meet", "feel")
"""The kinds that questions are asked about: one character does one thing."""

NAMING = {"place": "go", "thing": "find", "animal": "meet"}
"""The kind of sentence in which a story's hero comes to a required word."""

_KIND_OF = {frame: kind for kind, frame in FRAMES.items()}
_ASKING = {"go": "where", "find": "what", "meet": "who", "feel": "how"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the grammar, as its kind and its lower-case English words."""

    kind: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentence as it is written in English."""
        return written(self.words)

    @property
    def lumi(self) -> str:
        """The sentence as it is written in Lumi."""
        return written(lumi(self.words))

    @property
    def facts(self) -> tuple[str, ...]:
        """Who did it, and to what: the animals, places, things and feelings in order."""
        return tuple(word for word in self.words if CLASS_OF[word] in FACTS)

    @property
    def claim(self) -> tuple[str, ...]:
        """The facts and the colour: what two sentences with one verb must share to say the same."""
        return tuple(word for word in self.words if CLASS_OF[word] in FACTS | {"colour"})

    @property
    def verb(self) -> str:
        """What was done, in the past form."""
        return next(word for word in self.words if word in PRESENT or word == "gave")

    def contradicts(self, other: Sentence) -> bool:
        """Whether the two give different answers to one question: only one of actor and object agrees."""
        (actor, *object_), (other_actor, *other_object) = self.claim, other.claim
        return self.kind == other.kind and (actor == other_actor) != (object_ == other_object)

    @property
    def question(self) -> str:
        """The question that this sentence answers, in lower case: where, what, who or how."""
        return f"{_ASKING[self.kind]} did the {self.facts[0]} {PRESENT[self.verb]}?"


def sentence(rng: Random, kind: str, facts: Sequence[str] = (), qualities: float = 0.0) -> Sentence:
    """Draws a sentence of a kind that holds the given facts, each in the first place that takes its class.

    Args:
        qualities: how likely a quality ("little") stands before each animal and place.
    """
    waiting, words = list(facts), list[str]()
    for name in FRAMES[kind]:
        given = next((word for word in waiting if CLASS_OF[word] == name), None)
        if given is not None:
            waiting.remove(given)
        if name in ("animal", "place") and rng.random() < qualities:
            words.append(rng.choice(CLASSES["quality"]))
        # Nobody meets himself.
        words.append(
            given or rng.choice([word for word in CLASSES[name] if name != "animal" or word not in words])
        )
    if waiting:
        raise ValueError(f"a sentence of kind {kind!r} has no place for {waiting}")
    return Sentence(kind, tuple(words))


_WORD = re.compile(r"[a-z]+")


def parse(text: str) -> Sentence | None:
    """The sentence that the text is, or None if it is not exactly one sentence of the grammar."""
    words = tuple(_WORD.findall(text.lower()))
    if not words or text != written(words) or any(word not in LUMI for word in words):
        return None
    names = [CLASS_OF[word] for word in words]
    # A quality belongs to the animal or place that it stands before; without it the frame remains.
    frame = tuple(
        name
        for name, following in zip(names, [*names[1:], ""], strict=True)
        if not (name == "quality" and following in ("animal", "place"))
    )
    kind = _KIND_OF.get(frame)
    animals = [word for word in words if CLASS_OF[word] == "animal"]
    return Sentence(kind, words) if kind and len(set(animals)) == len(animals) else None


def story(rng: Random, required: Sequence[str]) -> list[Sentence]:
    """Draws a story of three sentences about the first required word, its hero; the others come in their order."""
    hero, *others = required
    introductions = [sentence(rng, NAMING[CLASS_OF[word]], [hero, word]) for word in others]
    return [*introductions, sentence(rng, "feel", [hero])]


@dataclass(frozen=True, slots=True)
class Riddle:
    """A story of two characters and questions about it, each with the sentence that answers it."""

    story: tuple[Sentence, ...]
    questions: tuple[tuple[str, Sentence], ...]


def riddle(rng: Random, questions: int = 1) -> Riddle:
    """Draws a story in which a hero does two things and somebody else a third, and asks about the hero first."""
    hero, other, met = rng.sample(CLASSES["animal"], 3)
    sentences = [
        sentence(rng, kind, [actor, met] if kind == "meet" else [actor])
        for kind, actor in zip(rng.sample(ASKED, 3), (hero, hero, other), strict=True)
    ]
    asked = sentences[:questions]
    rng.shuffle(sentences)
    return Riddle(tuple(sentences), tuple((sentence.question, sentence) for sentence in asked))


def required(rng: Random) -> tuple[str, ...]:
    """Draws what a story must name: its hero, then two of a place, a thing and another animal, in their order."""
    hero, friend = rng.sample(CLASSES["animal"], 2)
    return hero, *rng.sample([friend, rng.choice(CLASSES["place"]), rng.choice(CLASSES["thing"])], 2)


def listed(nouns: Sequence[str]) -> str:
    """The nouns as a phrase: "a fox, with a river and then a hen"."""
    hero, *rest = [f"a {noun}" for noun in nouns]
    return f"{hero}, with {' and then '.join(rest)}"


def translatable(rng: Random) -> Sentence:
    """Draws a sentence of at most eight words with an adjective, whose place differs between the languages."""
    while True:
        drawn = sentence(rng, rng.choice(list(FRAMES)), qualities=0.35)
        if len(drawn.words) <= 8 and any(CLASS_OF[word] in ADJECTIVES for word in drawn.words):
            return drawn
