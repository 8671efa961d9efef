"""The grammar of the stories: five kinds of sentence, how they are drawn, and how one is recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from triptych.storybook.words import CLASS_OF, CLASSES, FACTS, LUMI, PRESENT, lumi, row, written

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

    def question(self, *, about_actor: bool) -> str:
        """The question that this sentence answers, in lower case: who did it, or where, what, who or how."""
        if about_actor:
            return f"who {' '.join(self.words[2:])}?"
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


def story(rng: Random, required: Iterable[str] = ()) -> list[Sentence]:
    """Draws a story of three sentences that names the required animals (two at most), place and thing."""
    wanted = list(required)

    def pick(name: str) -> str | None:
        return next((word for word in wanted if CLASS_OF[word] == name), None)

    hero = pick("animal") or rng.choice(CLASSES["animal"])
    friend = next((word for word in wanted if CLASS_OF[word] == "animal" and word != hero), None)
    place, thing = pick("place"), pick("thing")
    told = [sentence(rng, "go", [hero, *([place] if place else [])], qualities=0.25)]
    thing = thing or (None if friend and rng.random() < 0.5 else rng.choice(CLASSES["thing"]))
    if thing:
        told.append(sentence(rng, "find", [hero, thing]))
    if friend and thing and rng.random() < 0.5:
        told.append(sentence(rng, "give", [hero, thing, friend]))
    elif friend:
        told.append(sentence(rng, "meet", [hero, friend]))
    if len(told) < 3:
        told.append(sentence(rng, "feel", [hero]))
    return told


@dataclass(frozen=True, slots=True)
class Riddle:
    """A story of two characters and questions about it, each with the sentence that answers it."""

    story: tuple[Sentence, ...]
    questions: tuple[tuple[str, Sentence], ...]


def riddle(rng: Random, questions: int = 1) -> Riddle:
    """Draws a story of two characters and asks who did what; in a fifth both do the same kind of thing."""
    first, second = rng.sample(CLASSES["animal"], 2)
    shared, other, third = rng.sample(ASKED, 3)
    if rng.random() < 0.2:
        told = _apart(rng, shared, first, second)
        more = [rng.choice(_apart(rng, other, first, second))]
    else:
        told = [sentence(rng, shared, [first]), sentence(rng, other, [second])]
        more = [sentence(rng, third, [rng.choice((first, second))])]
    rng.shuffle(told)
    rng.shuffle(more)
    told += more
    asked = rng.sample(told, min(questions, len(told)))
    return Riddle(
        tuple(told), tuple((each.question(about_actor=rng.random() < 0.25), each) for each in asked)
    )


def _apart(rng: Random, kind: str, first: str, second: str) -> list[Sentence]:
    """What each of two characters does, never the same."""
    one, two = sentence(rng, kind, [first]), sentence(rng, kind, [second])
    while one.facts[1:] == two.facts[1:]:
        two = sentence(rng, kind, [second])
    return [one, two]


def required(rng: Random) -> tuple[str, ...]:
    """Draws the two or three things that a story must name."""
    kinds = rng.choice(
        (
            ("animal", "place"),
            ("animal", "thing"),
            ("animal", "place", "thing"),
            ("animal", "place", "thing"),
            ("animal", "animal", "place"),
            ("animal", "animal", "thing"),
        )
    )
    chosen: list[str] = []
    for name in kinds:
        chosen.append(rng.choice([word for word in CLASSES[name] if word not in chosen]))
    rng.shuffle(chosen)
    return tuple(chosen)


def listed(nouns: Sequence[str]) -> str:
    """The nouns as a phrase: "a fox, a river and a ball"."""
    *most, last = [f"a {noun}" for noun in nouns]
    return f"{', '.join(most)} and {last}" if most else last


def translatable(rng: Random) -> Sentence:
    """Draws a sentence of five to eight words for translation."""
    while True:
        drawn = sentence(rng, rng.choice(list(FRAMES)), qualities=0.35)
        if len(drawn.words) <= 8:
            return drawn
