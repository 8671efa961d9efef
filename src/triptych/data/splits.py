"""Which prompt belongs to which split: by what it asks, never by its place in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from triptych.data.normal_form import normalised
from triptych.instructions.constraining import unconstrained
from triptych.records import Comparison, Conversation, Prompt, Rating, Thumb

PromptedRecord = Prompt | Conversation | Comparison | Rating | Thumb
"""A record that has a prompt."""

A = TypeVar("A", bound=PromptedRecord)


def prompt_of(record: PromptedRecord) -> Prompt:
    """The record's prompt; a prompt is its own."""
    return record if isinstance(record, Prompt) else record.prompt


def form(record: PromptedRecord) -> str:
    """The normal form of the record's prompt: prompts of the same form are never in two splits.

    It is that of the request without instructions that were added to it: under others it asks the same.
    """
    prompt = prompt_of(record)
    return normalised(unconstrained(prompt) if prompt.checks else prompt)


def taught_forms(record: PromptedRecord) -> set[str]:
    """The normal forms of all prompts to which a record teaches an answer: of a dialogue one for each answer in it."""
    return {form(record), *map(normalised, _asked_before(record))}


def opening(record: PromptedRecord) -> str:
    """The normal form of the first prompt to which a record teaches an answer."""
    return next(map(normalised, _asked_before(record)), None) or form(record)


def _asked_before(record: PromptedRecord) -> Iterator[Prompt]:
    """The prompts of a dialogue's answers but the last, in their order."""
    if isinstance(record, Conversation):
        turns = record.prompt.messages
        for place, turn in enumerate(turns):
            if place and turn.role == "assistant":
                yield Prompt(turns[:place], tools=record.prompt.tools)


def fraction(purpose: str, key: str, seed: int) -> float:
    """Where a key falls in [0, 1): uniform over keys, the same on every machine.

    Args:
        purpose: what is decided by it, a text that no other decision has. Two decisions by the same numbers are not
            independent: of the keys below 0.85, 0.2 / 0.85 lie below 0.2, and of those above, none.
        seed: another seed gives other numbers.
    """
    first = hashlib.sha256(f"{purpose}\n{seed}\n{key}".encode()).digest()[:8]
    # 53 bits are what a float holds: 64 would round the largest up to 1.0.
    return (int.from_bytes(first, "big") >> 11) / 2**53


def share_of(purpose: str, key: str, shares: Mapping[str, float], seed: int) -> str:
    """The share that a key falls into.

    Args:
        shares: each one's name and size; they add up to 1.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be at least 0 and add up to 1, got {dict(shares)}")
    *names, last = (name for name, share in shares.items() if share > 0)
    place = fraction(purpose, key, seed)
    for name in names:
        if place < shares[name]:
            return name
        place -= shares[name]
    return last


def split(purpose: str, records: Iterable[A], shares: Mapping[str, float], seed: int) -> dict[str, list[A]]:
    """Deals records to splits by their prompts' normal form, so that what asks the same is in exactly one split.

    Neither the order of the records nor the presence of others changes where a record goes.

    Args:
        purpose: of the fractions by which they are dealt; see `fraction`.
        records: what to split; each split keeps their order.
        shares: each split's name and share; they add up to 1.
    """
    parts: dict[str, list[A]] = {name: [] for name in shares}
    for record in records:
        parts[share_of(purpose, form(record), shares, seed)].append(record)
    return parts


def deduplicate(records: Iterable[A]) -> tuple[list[A], list[A]]:
    """The records without exact repetitions, in their order, and the repetitions."""
    kept: list[A] = []
    repeated: list[A] = []
    seen: set[object] = set()
    for record in records:
        # A rating's scores are a mapping, which does not hash.
        what = (
            (record.prompt, record.response, tuple(sorted(record.scores.items())))
            if isinstance(record, Rating)
            else record
        )
        (repeated if what in seen else kept).append(record)
        seen.add(what)
    return kept, repeated


def contradictions(comparisons: Iterable[Comparison]) -> list[tuple[Comparison, Comparison]]:
    """Pairs of comparisons that prefer opposite ones of the same two answers to the same prompt."""
    first: dict[tuple[str, str, str], Comparison] = {}
    pairs: list[tuple[Comparison, Comparison]] = []
    for comparison in comparisons:
        key = comparison.prompt.key
        opposite = first.get((key, comparison.rejected, comparison.chosen))
        if opposite is not None:
            pairs.append((opposite, comparison))
        first.setdefault((key, comparison.chosen, comparison.rejected), comparison)
    return pairs


def decontaminate(train: Iterable[A], held_out: Iterable[PromptedRecord]) -> tuple[list[A], list[A]]:
    """The training records that teach no held-out prompt, in its normal form, and those that are removed."""
    forms = {form(record) for record in held_out}
    return partition(train, lambda record: forms.isdisjoint(taught_forms(record)))


def partition(records: Iterable[A], keep: Callable[[A], bool]) -> tuple[list[A], list[A]]:
    """The records to keep and the others, each asked about once and in order."""
    kept: list[A] = []
    removed: list[A] = []
    for record in records:
        (kept if keep(record) else removed).append(record)
    return kept, removed
