"""The instructions: write a story, answer a question, translate a sentence; each in several phrasings."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from random import Random

from triptych.records import Prompt, user
from triptych.storybook.stories import listed, required, riddle, translatable

TASKS = ("story", "question", "translation")

STORY = (
    "Write a short story about {}.",
    "I want a story about {}.",
    "Please write a story about {}.",
    "Tell me a story, please, about {}.",
)
QUESTION = (
    "{story} Question: {question}",
    "Read this story. {story} Answer the question: {question}",
    "{story} Please answer: {question}",
    "Here is a story. {story} Tell me, please: {question}",
)
TRANSLATION = (
    "Translate to {language}: {sentence}",
    "Say this in {language}: {sentence}",
    "Please translate this to {language}: {sentence}",
    "{sentence} Write this in {language}, please.",
)
"""The wordings; half of them say please."""

_TRIES = 1000


def prompts(seed: int, count: int, exclude: AbstractSet[str] = frozenset()) -> list[Prompt]:
    """Draws prompts, all different, the three tasks in turn.

    Args:
        exclude: keys of prompts that must not be drawn, such as the held-out ones.

    Raises:
        ValueError: if no new prompt can be found.
    """
    rng = Random(f"prompts {seed}")
    writers = {"story": _story, "question": _question, "translation": _translation}
    seen = set(exclude)
    drawn: list[Prompt] = []
    for place in range(count):
        task = TASKS[place % len(TASKS)]
        for _ in range(_TRIES):
            prompt = writers[task](rng)
            if prompt.key not in seen:
                break
        else:
            raise ValueError(f"no more new prompts of the task {task!r} after {place} prompts")
        seen.add(prompt.key)
        drawn.append(prompt)
    return drawn


def _story(rng: Random) -> Prompt:
    nouns = required(rng)
    return Prompt(user(rng.choice(STORY).format(listed(nouns))), ", ".join(nouns), "story")


def _question(rng: Random) -> Prompt:
    drawn = riddle(rng)
    ((question, answer),) = drawn.questions
    text = " ".join(sentence.text for sentence in drawn.story)
    return Prompt(user(rng.choice(QUESTION).format(story=text, question=question)), answer.text, "question")


def _translation(rng: Random) -> Prompt:
    drawn = translatable(rng)
    source, target, language = drawn.text, drawn.lumi, "Lumi"
    if rng.random() < 0.5:
        source, target, language = target, source, "English"
    wording = rng.choice(TRANSLATION)
    return Prompt(user(wording.format(language=language, sentence=source)), target, "translation")
