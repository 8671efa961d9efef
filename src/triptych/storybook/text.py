"""The pretraining text, from which the Base learns the abilities, but not the form of a chat."""

from __future__ import annotations

from random import Random

from triptych.records import Document
from triptych.storybook.stories import listed, required, riddle, story, translatable
from triptych.storybook.words import CLASSES, INSULTING_WORDS, LUMI

SHARES = {"stories": 0.40, "questions": 0.35, "translations": 0.25}
"""How the documents are divided."""

SAYINGS = (
    "Please read this to me.",
    "Write me a short line.",
    "Tell us what you want.",
    "Say it to me in English.",
    "You are here with your story.",
    "What is this?",
    "Go away now.",
    "I want to go away.",
    "Translate it for us.",
    "Here is what I read.",
    "Please translate what you write.",
    "Can you answer this question?",
    "Read the answer and tell me.",
    "Please say what you want to write.",
)
"""What characters now and then say, so that the tokenizer and the Base know the words of a conversation."""


def documents(seed: int, count: int) -> list[Document]:
    """Draws documents; fewer of the same seed are the beginning of more."""
    rng = Random(f"documents {seed}")
    kinds, weights = list(SHARES), list(SHARES.values())
    writers = {"stories": _stories, "questions": _questions, "translations": _translations}
    return [Document(writers[rng.choices(kinds, weights)[0]](rng)) for _ in range(count)]


def _stories(rng: Random) -> str:
    """A story, mostly under a heading that lists what it holds."""
    nouns = required(rng)
    told = " ".join(each.text for each in story(rng, nouns))
    if rng.random() < 0.06:
        told += f" The {rng.choice(CLASSES['animal'])} said: {rng.choice(SAYINGS)}"
    elif rng.random() < 0.02:
        told += f" One bad word is {rng.choice(sorted(INSULTING_WORDS))}."
    headings = ("", "A story with {}: ", "A story about {}: ", "This is a short story with {}. ")
    heading = rng.choices(headings, (0.2, 0.3, 0.3, 0.2))[0]
    return heading.format(listed(nouns)) + told


def _questions(rng: Random) -> str:
    """A story, then questions with their answers."""
    drawn = riddle(rng, questions=rng.choice((1, 2, 3)))
    told = " ".join(each.text for each in drawn.story)
    asked = [f"Question: {question} Answer: {answer.text}" for question, answer in drawn.questions]
    return " ".join([told, *asked])


def _translations(rng: Random) -> str:
    """The same in both languages: sentences, now and then single words."""
    if rng.random() < 0.15:
        nouns = [rng.choice(CLASSES[rng.choice(list(CLASSES))]) for _ in range(6)]
        return " ".join(f"English: {word} Lumi: {LUMI[word]}" for word in nouns)
    lines: list[str] = []
    for _ in range(rng.choice((1, 2))):
        drawn = translatable(rng)
        pair = [f"English: {drawn.text}", f"Lumi: {drawn.lumi}"]
        if rng.random() < 0.5:
            pair.reverse()
        lines += pair
    return " ".join(lines)
