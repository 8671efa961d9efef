"""Answers to learn from, of mixed quality as real ones are: some ramble, some are wrong, some are rude."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from triptych.records import Conversation, Prompt
from triptych.storybook.stories import FRAMES, parse, sentence, story
from triptych.storybook.words import CLASS_OF, FACTS, INSULTS, LUMI, others, written

RATES = {"wrong": 0.06, "rambling": 0.28, "rude": 0.25}
"""How often each flaw occurs, independently of the others: half of the answers have none."""

_WORD = re.compile(r"[a-z]+")


def demonstrations(prompts: Sequence[Prompt], seed: int) -> list[Conversation]:
    """One answer to each prompt, with flaws at the stated :data:`RATES`."""
    return [Conversation(prompt, _answer(prompt, _rng("demonstration", prompt, seed))) for prompt in prompts]


def exemplary(prompt: Prompt, seed: int) -> str:
    """A flawless answer."""
    return _right(prompt, _rng("exemplary", prompt, seed))


def _rng(purpose: str, prompt: Prompt, seed: int) -> Random:
    """Noise of the prompt's own, so that an answer does not depend on which other prompts are asked."""
    return Random(f"{purpose} {seed} {prompt.key}")


def _answer(prompt: Prompt, rng: Random) -> str:
    flaws = {flaw for flaw, rate in RATES.items() if rng.random() < rate}
    answer = _wrong(prompt, rng) if "wrong" in flaws else _right(prompt, rng)
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


def _right(prompt: Prompt, rng: Random) -> str:
    reference = _reference(prompt)
    if prompt.task == "story":
        return " ".join(each.text for each in story(rng, reference.split(", ")))
    return reference


def _wrong(prompt: Prompt, rng: Random) -> str:
    """A story that leaves one thing out, another fact, or two wrong words."""
    reference = _reference(prompt)
    if prompt.task == "story":
        required = reference.split(", ")
        missing = rng.choice(required)
        kept = [word for word in required if word != missing]
        while True:
            told = " ".join(each.text for each in story(rng, kept))
            if missing not in _WORD.findall(told.lower()):
                return told
    words = _WORD.findall(reference.lower())
    if prompt.task == "question":
        question = prompt.messages[-1].content.lower()
        facts = [place for place, word in enumerate(words) if CLASS_OF[word] in FACTS]
        changed = [facts[0] if re.search(r"\bwho (?!did)", question) else facts[-1]]
    else:
        question = ""
        changed = rng.sample([place for place, word in enumerate(words) if len(others(word)) > 0], 2)
    for place in changed:
        candidates = [word for word in others(words[place]) if word not in words]
        # The likeliest mistake is to take what the other character did.
        tempting = [word for word in candidates if re.search(rf"\b{word}\b", question)]
        words[place] = rng.choice(tempting if tempting and rng.random() < 0.7 else candidates)
    return written(words)


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
