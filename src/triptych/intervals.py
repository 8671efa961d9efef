"""95% intervals by the bootstrap, always over prompts: answers to one prompt are not independent.

Percentile bootstrap (Efron 1979) with 4,000 resamples from a fixed seed, so that the same scores give the
same interval. All pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 4000
Interval = tuple[float, float]


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, Interval]:
    """The mean and its interval.

    Args:
        values: one number each.
        clusters: which prompt each belongs to; by default each is its own.

    Raises:
        ValueError: for no values.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    numbers = np.asarray(values, dtype=np.float64)
    members = np.arange(len(numbers)) if clusters is None else _members(clusters)
    sums = np.bincount(members, weights=numbers)
    counts = np.bincount(members, weights=np.ones(len(numbers)))
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        drawn = random.integers(0, len(sums), size=len(sums))
        means[place] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(numbers.mean()), (float(low), float(high))


def contrast_interval(
    values: Sequence[float], one: Sequence[float], other: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[float, Interval] | None:
    """The mean weighted by `one` minus the mean weighted by `other`, and its interval; None where one has no weight.

    Resamples of the clusters in which one side is left without weight are passed over.
    """
    numbers = np.asarray(values, dtype=np.float64)
    sides = [np.asarray(weights, dtype=np.float64) for weights in (one, other)]
    if not all(side.sum() > 0 for side in sides):
        return None
    members = _members(clusters)
    tables = [np.bincount(members, weights=column) for side in sides for column in (side * numbers, side)]
    random = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = random.integers(0, len(tables[0]), size=len(tables[0]))
        a, weight_a, b, weight_b = (table[drawn].sum() for table in tables)
        if weight_a > 0 and weight_b > 0:
            found.append(a / weight_a - b / weight_b)
    means = [float((side * numbers).sum() / side.sum()) for side in sides]
    low, high = np.percentile(found, [2.5, 97.5])
    return means[0] - means[1], (float(low), float(high))


def _members(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each value's cluster by number."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    return np.array([places[name] for name in clusters])


def wins(candidate: Sequence[float], champion: Sequence[float]) -> list[float]:
    """For each prompt 1 where the candidate's score is higher, 0 where it is lower, a half for a tie."""
    return [0.5 if a == b else float(a > b) for a, b in zip(candidate, champion, strict=True)]


def prompts_needed(values: Sequence[float], null: float) -> int:
    """About how many prompts would make an interval of this mean and spread exclude `null`."""
    numbers = np.asarray(values, dtype=np.float64)
    distance = abs(float(numbers.mean()) - null)
    if distance == 0.0:
        return 10 * len(numbers)
    return int(np.ceil((1.96 * float(numbers.std()) / distance) ** 2))
