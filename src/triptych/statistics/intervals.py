"""Intervals by the bootstrap, always over prompts: answers to one prompt are not independent.

Percentile bootstrap (Efron 1979) with 4,000 resamples from a fixed seed, so that the same scores give the
same interval; 95% unless another confidence is asked for. All pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

RESAMPLES = 4000
TAIL = 10
"""Resamples beyond each end of an interval, at least."""
TOGETHER = 2**22
"""Draws that are held at once."""
Interval = tuple[float, float]
Value = TypeVar("Value")


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> tuple[float, Interval]:
    """The mean and its interval.

    Args:
        values: one number each.
        clusters: which prompt each belongs to; by default each is its own.
        confidence: of the interval.

    Raises:
        ValueError: for no values.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    numbers = np.asarray(values, dtype=np.float64)
    members = np.arange(len(numbers)) if clusters is None else _members(clusters)
    sums = np.bincount(members, weights=numbers)
    counts = np.bincount(members, weights=np.ones(len(numbers)))
    tail = (1 - confidence) / 2
    resamples = max(RESAMPLES, math.ceil(TAIL / tail))
    means = np.concatenate([sums[drawn].sum(1) / counts[drawn].sum(1) for drawn in resampled(len(sums), resamples)])
    low, high = np.percentile(means, [100 * tail, 100 * (1 - tail)])
    return float(numbers.mean()), (float(low), float(high))


def statistic_interval(
    values: Sequence[Value], statistic: Callable[[list[Value]], float], resamples: int = RESAMPLES
) -> Interval | None:
    """The 95% interval of what a function makes of all values together, as a perplexity of documents.

    None where the function cannot be computed for a resample.
    """
    try:
        made = [statistic([values[i] for i in row]) for part in resampled(len(values), resamples) for row in part]
    except (ArithmeticError, ValueError):
        return None
    low, high = np.percentile(made, [2.5, 97.5])
    return float(low), float(high)


def seeds_interval(values: Sequence[Sequence[float]]) -> tuple[float, Interval]:
    """The mean of several seeds' values on the same prompts and its 95% interval, for other seeds and other prompts.

    Both are drawn at random and crossed. With the mean squares of seeds, prompts and rest, the mean over S seeds and P
    prompts has the variance (MS_seed + MS_prompt − MS_rest) / (S P) (Cornfield and Tukey 1956, *Average Values of Mean
    Squares in Factorials*), where a seed's component below zero counts as zero; and a t distribution whose degrees of
    freedom are those of Satterthwaite (1946), *An Approximate Distribution of Estimates of Variance Components*. With
    two or three seeds that differ the interval is wide. One seed has the bootstrap over its prompts.

    Args:
        values: `[S, P]`.
    """
    table = np.asarray(values, dtype=np.float64)
    seeds, prompts = table.shape
    if seeds == 1 or prompts == 1:
        return mean_interval(table.ravel().tolist(), np.tile(np.arange(prompts), seeds).tolist())
    mean = float(table.mean())
    by_seed, by_prompt = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    between_seeds = prompts * float(by_seed.var(ddof=1))
    between_prompts = seeds * float(by_prompt.var(ddof=1))
    rest = float(((table - by_seed - by_prompt + mean) ** 2).sum()) / ((seeds - 1) * (prompts - 1))
    apart = max(0.0, between_seeds - rest)
    square = (between_prompts + apart) ** 2
    loose = between_seeds**2 / (seeds - 1) if apart else 0.0
    loose += between_prompts**2 / (prompts - 1)
    if square == 0:
        return mean, (mean, mean)
    half = t_quantile(0.975, max(1.0, square / loose)) * math.sqrt((between_prompts + apart) / (seeds * prompts))
    return mean, (mean - half, mean + half)


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t, by its density in θ = arctan(t/√ν), which is cos^(ν − 1) θ."""
    theta = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.maximum(np.cos(theta), 0) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, below / below[-1], theta)))


def resampled(count: int, resamples: int) -> Iterator[np.ndarray]:
    """So many resamples of so many things, `[resamples, count]` in parts that fit memory."""
    random = np.random.default_rng(0)
    while resamples > 0:
        rows = min(resamples, max(1, TOGETHER // count))
        yield random.integers(0, count, size=(rows, count))
        resamples -= rows


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
    contrasts = []
    for _ in range(RESAMPLES):
        drawn = random.integers(0, len(tables[0]), size=len(tables[0]))
        a, weight_a, b, weight_b = (table[drawn].sum() for table in tables)
        if weight_a > 0 and weight_b > 0:
            contrasts.append(a / weight_a - b / weight_b)
    means = [float((side * numbers).sum() / side.sum()) for side in sides]
    low, high = np.percentile(contrasts, [2.5, 97.5])
    return means[0] - means[1], (float(low), float(high))


def _members(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each value's cluster by number."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    return np.array([places[name] for name in clusters])


def wins(candidate: Sequence[float], champion: Sequence[float]) -> list[float]:
    """For each prompt 1 where the candidate's score is higher, 0 where it is lower, a half for a tie."""
    return [0.5 if a == b else float(a > b) for a, b in zip(candidate, champion, strict=True)]


def prompts_needed(values: Sequence[float], null: float, level: float = 0.025) -> int | None:
    """About how many prompts would tell this mean, with this spread, from `null` at a one-sided level.

    None for a mean that is `null`, which no number of prompts tells from it. By the normal approximation; never fewer
    than one more than there are, for these did not tell.
    """
    numbers = np.asarray(values, dtype=np.float64)
    distance = abs(float(numbers.mean()) - null)
    if distance < 1e-12:
        return None
    wide = NormalDist().inv_cdf(1 - level) * float(numbers.std())
    return max(len(numbers) + 1, math.ceil((wide / distance) ** 2))
