"""Instructions that can be checked, added to prompts: what a model is trained and measured on."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pydantic import Field, field_validator, model_validator

from triptych.configuration import Config
from triptych.instructions.instruction import Instruction
from triptych.instructions.registry import COLLECTIONS, DRAWN, INSTRUCTIONS, instruction, require_kind
from triptych.records import Check, Conversation, Prompt

NEUTRAL = (
    "people", "time", "place", "reason", "example", "simple", "important", "different", "world", "family", "morning",
    "water", "light", "music", "idea", "change", "learn", "together", "always", "often", "small", "great", "story",
    "friend", "school", "city", "summer", "garden", "future", "help",
)
"""Words that an answer to nearly any prompt can hold."""

TRIES = 6
"""How often arguments are drawn for an answer before another kind is tried."""

_WORD = re.compile(r"\b[a-z]{5,12}\b")


def _expanded(names: Sequence[str]) -> list[str]:
    """The kinds, a collection's name as all of its."""
    return [kind for name in names for kind in COLLECTIONS.get(name, (name,))]


class Constraining(Config):
    """Which instructions are added to prompts.

    Attributes:
        least, most: how many a prompt is given.
        only: the kinds that are drawn from, or "ifeval", "open-instruct" for all of theirs; by default all that can be
            added to any prompt. What is named again, alone or in a collection, is drawn more often.
        without: kinds that are held out, in the same way.
        seed: of the draw.
    """

    least: int = Field(default=1, ge=0)
    most: int = Field(default=2, ge=1)
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seed: int = 0

    @field_validator("only", "without")
    @classmethod
    def _can_be_added(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in _expanded(kinds):
            require_kind(kind, among=(*INSTRUCTIONS, *COLLECTIONS))
            if kind not in DRAWN:
                raise ValueError(f"{kind} cannot be added to a prompt; it needs one that was written for it")
        return kinds

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.kinds:
            raise ValueError("no kind of instruction is left to draw from")
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most is {self.most}: give least a value up to most")
        return self

    @property
    def kinds(self) -> list[str]:
        """Those that are drawn from."""
        held_out = _expanded(self.without)
        return [kind for kind in _expanded(self.only) or DRAWN if kind not in held_out]


DEFAULT = Constraining()


def constrain(prompts: Sequence[Prompt], config: Constraining = DEFAULT) -> list[Prompt]:
    """Each prompt with instructions behind its last turn, and with their checks.

    No two instructions of a prompt claim the same of an answer (`Instruction.claims`). A prompt is given the same ones
    whatever other prompts stand beside it.
    """
    return [_constrained(prompt, config, random.Random(f"{config.seed} {prompt.key}")) for prompt in prompts]


def constrain_answers(conversations: Sequence[Conversation], config: Constraining = DEFAULT) -> list[Conversation]:
    """Conversations to learn whose prompts are given instructions that their answers follow.

    Arguments are drawn so that the answer follows (a bound that its length keeps, a word that it has), or its form is
    changed until it does (capitals, a list, quotation marks). All checks are made of the answer as it is in the end. A
    conversation for which nothing fits stays as it is.
    """
    return [
        _followed(conversation, config, random.Random(f"{config.seed} {conversation.prompt.key}"))
        for conversation in conversations
    ]


def unconstrained(prompt: Prompt) -> Prompt:
    """The prompt as it was before instructions were added to it; others that it has stay."""
    *before, last = prompt.messages
    content, checks = last.content, prompt.checks
    while checks:
        sentences = instruction(checks[-1].kind, checks[-1].arguments).sentences
        added = next((sentence for sentence in sentences if content.endswith(sentence)), None)
        if added is None:
            break
        content, checks = content.removesuffix(added).rstrip(), checks[:-1]
    return replace(prompt, messages=(*before, replace(last, content=content)), checks=checks)


def _followed(conversation: Conversation, config: Constraining, rng: random.Random) -> Conversation:
    given, count = conversation.answer.strip(), rng.randint(config.least, config.most)
    request = conversation.prompt.messages[-1].content.strip()
    words = _words(conversation.prompt, rng) + sorted(set(_WORD.findall(given)))
    own = [instruction(check.kind, check.arguments) for check in conversation.prompt.checks]
    kept: list[Instruction] = []
    claimed = _claimed(conversation.prompt)
    for kind in rng.sample(config.kinds, k=len(config.kinds)):
        if len(kept) == count or claimed & INSTRUCTIONS[kind].claims or any(kind == one.kind for one in kept):
            continue
        for _ in range(TRIES):
            drawn = INSTRUCTIONS[kind].draw(rng, rng.sample(words, k=len(words)), request)
            changed = _rewritten(given, [*kept, drawn])
            if changed.strip() and all(asked.follows(changed) for asked in (*own, *kept, drawn)):
                kept.append(drawn)
                claimed |= drawn.claims
                break
    if not kept:
        return conversation
    return replace(conversation, prompt=_asking(conversation.prompt, kept, rng), answer=_rewritten(given, kept))


def _rewritten(answer: str, instructions: Sequence[Instruction]) -> str:
    """The answer in the form of all of them, whatever the order in which they were drawn."""
    for asked in sorted(instructions, key=_turn):
        answer = asked.rewrite(answer)
    return answer


def _turn(asked: Instruction) -> tuple[int, str]:
    """When the form of an answer is changed for it: first it is cut, then divided, marked, put into capitals or none,
    and put between marks; what is left by name."""
    if "length" in asked.claims:
        turn = 0
    elif {"begin", "end"} <= asked.claims:
        turn = 4
    elif "layout" in asked.claims:
        turn = 1
    else:
        turn = 3 if "case" in asked.claims else 2
    return turn, asked.kind


def _constrained(prompt: Prompt, config: Constraining, rng: random.Random) -> Prompt:
    drawn = _compatible(config.kinds, rng.randint(config.least, config.most), _claimed(prompt), rng)
    words, request = _words(prompt, rng), prompt.messages[-1].content.strip()
    return _asking(prompt, [INSTRUCTIONS[kind].draw(rng, words, request) for kind in drawn], rng)


def _asking(prompt: Prompt, instructions: Sequence[Instruction], rng: random.Random) -> Prompt:
    """The prompt with the instructions behind its last turn."""
    if not instructions:
        return prompt
    last = prompt.messages[-1]
    content = last.content.rstrip()
    between = rng.choice((" ", "\n", "\n\n"))
    if between == " " and content[-1:].isalnum():
        between = ". "  # else the request would run on into what is added
    asked = content + between + " ".join(drawn.asked(rng) for drawn in instructions)
    return replace(
        prompt,
        messages=(*prompt.messages[:-1], replace(last, content=asked)),
        checks=(*prompt.checks, *(Check(drawn.kind, drawn.model_dump(mode="json")) for drawn in instructions)),
    )


def _claimed(prompt: Prompt) -> set[str]:
    """What the prompt's own instructions claim of an answer."""
    return {claim for check in prompt.checks for claim in INSTRUCTIONS[check.kind].claims}


def _compatible(kinds: list[str], count: int, claimed: set[str], rng: random.Random) -> list[str]:
    """At most so many kinds of which no two claim the same, and none what is claimed already."""
    drawn: list[str] = []
    for kind in rng.sample(kinds, k=len(kinds)):
        if len(drawn) < count and kind not in drawn and not claimed & INSTRUCTIONS[kind].claims:
            drawn.append(kind)
            claimed |= INSTRUCTIONS[kind].claims
    return drawn


def _words(prompt: Prompt, rng: random.Random) -> list[str]:
    """Words that an answer may well hold: some of the prompt's, then neutral ones."""
    own = list(dict.fromkeys(_WORD.findall(prompt.messages[-1].content)))
    neutral = [word for word in NEUTRAL if word not in own]
    return [*rng.sample(own, k=min(3, len(own))), *rng.sample(neutral, k=5)]
