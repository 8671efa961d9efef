"""The pretraining text, from which the Base learns the abilities, but not the form of a chat."""

from __future__ import annotations

from random import Random

from triptych.records import Document
from triptych.storybook.stories import listed, required, riddle, story, translatable
from triptych.storybook.words import CLASSES, INSULTING_WORDS, lumi

SHARES = {"stories": 0.25, "questions": 0.45, "translations": 0.3}
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
    text = " ".join(sentence.text for sentence in story(rng, nouns))
    if rng.random() < 0.06:
        text += f" The {rng.choice(CLASSES['animal'])} said: {rng.choice(SAYINGS)}"
    elif rng.random() < 0.02:
        text += f" One bad word is {rng.choice(sorted(INSULTING_WORDS))}."
    headings = ("", "A story about {}: ", "The story of {}: ", "This is a short story about {}. ")
    heading = rng.choices(headings, (0.1, 0.35, 0.35, 0.2))[0]
    return heading.format(listed(nouns)) + text


def _questions(rng: Random) -> str:
    """A story, then questions with their answers."""
    drawn = riddle(rng, questions=rng.choice((2, 3)))
    text = " ".join(sentence.text for sentence in drawn.story)
    asked = [f"Question: {question} Answer: {answer.text}" for question, answer in drawn.questions]
    return " ".join([text, *asked])


def _translations(rng: Random) -> str:
    """The same in both languages: sentences, or the words and phrases that they are made of."""
    if rng.random() < 0.4:
        pairs = [_phrase(rng) for _ in range(4)]
    else:
        drawn = [translatable(rng) for _ in range(2)]
        pairs = [(sentence.text, sentence.lumi) for sentence in drawn]
    lines: list[str] = []
    for english, translated in pairs:
        pair = [f"English: {english}", f"Lumi: {translated}"]
        if rng.random() < 0.5:
            pair.reverse()
        lines += pair
    return " ".join(lines)


def _phrase(rng: Random) -> tuple[str, str]:
    """A word, or a noun with its article and perhaps an adjective, in both languages."""
    if rng.random() < 0.4:
        words = [rng.choice(CLASSES[rng.choice(list(CLASSES))])]
    else:
        noun, adjective = rng.choice((("animal", "quality"), ("place", "quality"), ("thing", "colour")))
        words = [rng.choice(("the", "a")), rng.choice(CLASSES[adjective]), rng.choice(CLASSES[noun])]
        if rng.random() < 0.4:
            del words[1]
    return " ".join(words), " ".join(lumi(words))
