"""What an instruction is that code can check: its arguments, whether an answer follows it, how it is asked."""

from __future__ import annotations

import random
from typing import ClassVar, Literal, Self

from triptych.configuration import Config

Relation = Literal["less than", "at least"]

EVERYTHING: frozenset[str] = frozenset({"begin", "end", "layout", "length", "case", "words", "dots", "letters"})
"""All that an instruction can claim of an answer."""


class Instruction(Config):
    """One instruction with its arguments, which are its fields; the names are those of IFEval and open-instruct.

    Attributes:
        kind: its name in IFEval or open-instruct, `family:name`.
        claims: what of an answer it determines. Two instructions that claim the same are not asked together.
        wordings: ways to ask for it, in which `{field}` stands for an argument; none where it needs a prompt that was
            written for it, or is another's twin.
    """

    kind: ClassVar[str]
    claims: ClassVar[frozenset[str]] = frozenset()
    wordings: ClassVar[tuple[str, ...]] = ()

    def follows(self, answer: str) -> bool:
        """Whether the answer, which is not empty, follows it."""
        raise NotImplementedError

    def rewrite(self, answer: str) -> str:
        """The answer in the form that follows it, where the form is all that is asked; else as it is."""
        return answer

    @classmethod
    def draw(cls, rng: random.Random, words: list[str], request: str) -> Self:
        """The instruction with arguments drawn by chance.

        Args:
            rng: the source of chance.
            words: words that an answer may well hold, the first the likeliest.
            request: what the answer is to.
        """
        return cls()

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every sentence that asks for it, one of each wording."""
        arguments = {name: _written(value) for name, value in self}
        return tuple(wording.format(**arguments) for wording in self.wordings)

    def asked(self, rng: random.Random) -> str:
        """One of them."""
        return rng.choice(self.sentences)


def compare(count: int, relation: Relation, bound: int) -> bool:
    """Whether a count is at least, or less than, a bound."""
    return count >= bound if relation == "at least" else count < bound


def draw_bound(rng: random.Random, least: tuple[int, ...], less: tuple[int, ...]) -> tuple[Relation, int]:
    """A relation, and a bound that suits it."""
    if rng.random() < 0.5:
        return "at least", rng.choice(least)
    return "less than", rng.choice(less)


def _written(value: object) -> str:
    """An argument as a sentence says it."""
    if isinstance(value, tuple):
        quoted = [f'"{part}"' for part in value]
        return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    return str(value)
