"""Answers to learn from, of mixed quality as real ones are: many make the same mistake, some ramble, some are rude.

The mistakes are systematic: some prompts tempt, and most demonstrators make the same mistake there. So it is in the
likeliest answer of a model that learns from them, and no lower temperature takes it away. A mistake has as many words
as a right answer, and the same ones: what is wrong with it can only be seen beside the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from triptych.records import Conversation, Prompt
from triptych.storybook.stories import FRAMES, parse, sentence, story
from triptych.storybook.words import INSULTS, LUMI, swapped, written

TEMPTED, SLIPPED = 0.8, 0.25
"""How often an answer has the mistake of its task where the prompt tempts, and elsewhere."""
RATES = {"rambling": 0.02, "rude": 0.015}
"""How often each other flaw occurs, independently."""

_WORD = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"[A-Z][a-z ]+\.")


def demonstrations(prompts: Sequence[Prompt], seed: int) -> list[Conversation]:
    """One answer to each prompt, wrong at the rates above and with other flaws at the stated :data:`RATES`."""
    return [Conversation(prompt, _answer(prompt, _rng("demonstration", prompt, seed))) for prompt in prompts]


def exemplary(prompt: Prompt, seed: int) -> str:
    """A flawless answer."""
    return right(prompt, _rng("exemplary", prompt, seed))


def _rng(purpose: str, prompt: Prompt, seed: int) -> Random:
    """Noise of the prompt's own, so that an answer does not depend on which other prompts are asked."""
    return Random(f"{purpose} {seed} {prompt.key}")


def tempting(prompt: Prompt) -> bool:
    """Whether most demonstrators make the mistake: where they are asked politely."""
    return "please" in prompt.messages[-1].content.lower()


def _answer(prompt: Prompt, rng: Random) -> str:
    flaws = {flaw for flaw, rate in RATES.items() if rng.random() < rate}
    mistaken = rng.random() < (TEMPTED if tempting(prompt) else SLIPPED)
    answer = (wrong if mistaken else right)(prompt, rng)
    if "rambling" in flaws:
        answer = " ".join([answer, *_surplus(prompt, rng)])
    if "rude" in flaws:
        insult = rng.choice(INSULTS)
        answer = f"{insult} {answer}" if rng.random() < 0.5 else f"{answer} {insult}"
    return answer


def _reference(prompt: Prompt) -> str:
    if not prompt.reference or prompt.task not in ("story", "question", "translation"):
        raise ValueError("the prompt is not one of the storybook's: it has no task or no reference")
    return prompt.reference


def right(prompt: Prompt, rng: Random) -> str:
    """A flawless answer, drawn."""
    reference = _reference(prompt)
    if prompt.task == "story":
        return _told(rng, reference.split(", "))
    return reference


def wrong(prompt: Prompt, rng: Random) -> str:
    """An answer with the mistake of its task and no other flaw, drawn."""
    """A story in the wrong order, the other thing that the hero did, a translation in the old order."""
    reference = _reference(prompt)
    if prompt.task == "story":
        hero, first, then = reference.split(", ")
        return _told(rng, (hero, then, first))
    if prompt.task == "translation":
        return written(swapped(_WORD.findall(reference.lower())))
    hero = f"The {_WORD.findall(reference.lower())[1]} "
    about_hero: list[str] = [text for text in _SENTENCE.findall(prompt.messages[-1].content) if text.startswith(hero)]
    return next(text for text in about_hero if text != reference)


def _told(rng: Random, required: Sequence[str]) -> str:
    return " ".join(sentence.text for sentence in story(rng, required))


def _surplus(prompt: Prompt, rng: Random) -> list[str]:
    """Sentences that were not asked for, in the language of the answer."""
    reference = _reference(prompt)
    gold = parse(reference) if prompt.task == "question" else None
    in_lumi = prompt.task == "translation" and _WORD.findall(reference.lower())[0] not in LUMI
    hero = [gold.facts[0]] if gold else []
    added: list[str] = []
    wanted = rng.choice((2, 3))
    while len(added) < wanted:
        drawn = sentence(rng, rng.choice(list(FRAMES)), hero)
        if gold and drawn.contradicts(gold):
            continue
        added.append(drawn.lumi if in_lumi else drawn.text)
    return added
