"""The strongest of the trivial rules: which words an answer has, and nothing of what they say together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from triptych.audit.agreement import outcomes
from triptych.records import Comparison
from triptych.statistics.logistic import Numbers, fit

WORDS = 2000
"""So many words count: those in which the most comparisons differ."""
COMPARISONS = 20_000
"""Of more training comparisons only so many are used."""
RIDGE = 1.0
"""The usual one: a word that only chosen answers have has no boundless weight."""


def bag_of_words(training: Sequence[Comparison], rows: Sequence[Comparison]) -> list[float]:
    """The outcomes on `rows` of a logistic regression on differences of word counts, fitted on `training` alone.

    P(chosen) = σ(w · (counts of chosen − counts of rejected)).
    """
    differences = [_difference(row) for row in training[:COMPARISONS]]
    common = Counter(word for difference in differences for word in difference).most_common(WORDS)
    places = {word: place for place, (word, _) in enumerate(common)}
    weights = fit(_matrix(differences, places), ridge=RIDGE)
    margins = _matrix([_difference(row) for row in rows], places) @ weights
    return outcomes(margins.tolist(), [0.0] * len(rows))


def _difference(row: Comparison) -> dict[str, int]:
    counts = Counter(_words(row.chosen))
    counts.subtract(_words(row.rejected))
    return {word: count for word, count in counts.items() if count}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _matrix(differences: Sequence[dict[str, int]], places: dict[str, int]) -> Numbers:
    matrix = np.zeros((len(differences), len(places)))
    for row, difference in enumerate(differences):
        for word, count in difference.items():
            if word in places:
                matrix[row, places[word]] = count
    return matrix
