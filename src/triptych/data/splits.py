"""Which prompt belongs to which split: by the prompt's content, never by its place in a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from triptych.records import Comparison, Conversation, Prompt, Rating

Asked = Prompt | Conversation | Comparison | Rating
"""A record that has a prompt."""

A = TypeVar("A", bound=Asked)


def prompt_of(record: Asked) -> Prompt:
    """The record's prompt; a prompt is its own."""
    return record if isinstance(record, Prompt) else record.prompt


def fraction(key: str, seed: int) -> float:
    """Where a key falls in [0, 1): uniform over keys, the same on every machine."""
    first = hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]
    # 53 bits are what a float holds: 64 would round the largest up to 1.0.
    return (int.from_bytes(first, "big") >> 11) / 2**53


def split(records: Iterable[A], shares: Mapping[str, float], seed: int) -> dict[str, list[A]]:
    """Deals records to splits by their prompt, so that a prompt is in exactly one split.

    Neither the order of the records nor the presence of others changes where a record goes.

    Args:
        records: what to split; each split keeps their order.
        shares: each split's name and share; they add up to 1.
        seed: another seed gives another split.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be at least 0 and add up to 1, got {dict(shares)}")
    names = [name for name, share in shares.items() if share > 0]
    parts: dict[str, list[A]] = {name: [] for name in shares}
    for record in records:
        place = fraction(prompt_of(record).key, seed)
        for name in names[:-1]:
            if place < shares[name]:
                break
            place -= shares[name]
        else:
            name = names[-1]
        parts[name].append(record)
    return parts


def deduplicate(records: Iterable[A]) -> tuple[list[A], int]:
    """The records without exact repetitions, in their order, and how many were dropped."""
    kept: list[A] = []
    seen: set[object] = set()
    dropped = 0
    for record in records:
        # A rating's scores are a mapping, which does not hash.
        what = (
            (record.prompt, record.response, tuple(sorted(record.scores.items())))
            if isinstance(record, Rating)
            else record
        )
        if what in seen:
            dropped += 1
            continue
        seen.add(what)
        kept.append(record)
    return kept, dropped


def contradictions(comparisons: Iterable[Comparison]) -> list[tuple[Comparison, Comparison]]:
    """Pairs of comparisons that prefer opposite ones of the same two answers to the same prompt."""
    first: dict[tuple[str, str, str], Comparison] = {}
    found: list[tuple[Comparison, Comparison]] = []
    for comparison in comparisons:
        key = comparison.prompt.key
        opposite = first.get((key, comparison.rejected, comparison.chosen))
        if opposite is not None:
            found.append((opposite, comparison))
        first.setdefault((key, comparison.chosen, comparison.rejected), comparison)
    return found


def decontaminate(train: Iterable[A], held_out: Sequence[Asked]) -> tuple[list[A], int]:
    """The training records whose prompt is not held out, and how many were removed.

    A prompt is held out where all its turns are, or where its last user turn is the same but for case,
    punctuation and spaces.
    """
    keys = {prompt_of(record).key for record in held_out}
    texts = {normalised(prompt_of(record)) for record in held_out} - {""}
    kept: list[A] = []
    removed = 0
    for record in train:
        prompt = prompt_of(record)
        if prompt.key in keys or normalised(prompt) in texts:
            removed += 1
        else:
            kept.append(record)
    return kept, removed


def normalised(prompt: Prompt) -> str:
    """The last user turn's words in lower case, without punctuation."""
    last = next((turn.content for turn in reversed(prompt.messages) if turn.role == "user"), "")
    return " ".join(re.findall(r"\w+", last.casefold()))
