"""Near duplicates: rows whose texts share most of their words in the same order, found by MinHash.

Of two texts the sets of their neighbouring words are compared by Jaccard's index, the shared over all. MinHash (Broder
1997, *On the resemblance and containment of documents*) finds the few that may be alike; these are then compared in
full, so that no two are called near that are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

from datasketch import MinHash, MinHashLSH

from triptych.data.overlap import words_of
from triptych.data.splits import PromptedRecord, partition, prompt_of
from triptych.records import Conversation, answers_of

A = TypeVar("A", bound=PromptedRecord)

ALIKE = 0.8
"""Jaccard's index from which two texts are near duplicates: of twenty words one may be another."""
EMPTY = MinHash(num_perm=128)
"""Every text's MinHash starts as a copy, which shares its permutations: to draw them takes longer than to hash."""

Pairs = frozenset[tuple[str, ...]]


class NearDuplicates:
    """Texts, and which others are nearly the same.

    A text of one word is its own pair, so that only the same word is alike.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        # A threshold below the one that counts, so that hardly a pair is missed.
        self._index = MinHashLSH(threshold=ALIKE - 0.2, num_perm=len(EMPTY))
        self._known: list[Pairs] = []
        for text in texts:
            self._insert(pairs_of(text))

    def __contains__(self, text: str) -> bool:
        return self._near(pairs_of(text))

    def first(self, text: str) -> bool:
        """Whether no known text is nearly the same; it is known from now on."""
        pairs = pairs_of(text)
        if self._near(pairs):
            return False
        self._insert(pairs)
        return True

    def _insert(self, pairs: Pairs) -> None:
        if pairs:
            self._index.insert(len(self._known), _hashed(pairs))
            self._known.append(pairs)

    def _near(self, pairs: Pairs) -> bool:
        return bool(pairs) and any(
            len(pairs & self._known[place]) >= ALIKE * len(pairs | self._known[place])
            for place in self._index.query(_hashed(pairs))
        )


def pairs_of(text: str) -> Pairs:
    """The neighbouring words of a text, without case and signs."""
    words = words_of(text)
    return frozenset(pairwise(words)) if len(words) > 1 else frozenset((word,) for word in words)


def apart_from(records: Iterable[A], *others: NearDuplicates) -> tuple[list[A], list[A]]:
    """The records whose prompt is not nearly one of the others, and those whose is."""
    return partition(records, lambda record: not any(asked(record) in known for known in others))


def apart(records: Iterable[A]) -> tuple[list[A], list[A]]:
    """The records that do not nearly repeat an earlier one, and those that do."""
    known = NearDuplicates()
    return partition(records, lambda record: known.first(whole(record)))


def asked(record: PromptedRecord) -> str:
    """All turns of its prompt."""
    return "\n".join(turn.content for turn in prompt_of(record).messages)


def whole(record: PromptedRecord) -> str:
    """The prompt and, of a conversation, its answer."""
    return "\n".join([asked(record), *(answers_of(record) if isinstance(record, Conversation) else ())])


def _hashed(pairs: Pairs) -> MinHash:
    made = EMPTY.copy()
    made.update_batch([" ".join(pair).encode() for pair in pairs])
    return made
