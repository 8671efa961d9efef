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
    if clusters is None:
        members = np.arange(len(numbers))
    else:
        places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
        members = np.array([places[name] for name in clusters])
    sums = np.bincount(members, weights=numbers)
    counts = np.bincount(members, weights=np.ones(len(numbers)))
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        drawn = random.integers(0, len(sums), size=len(sums))
        means[place] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(numbers.mean()), (float(low), float(high))


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
