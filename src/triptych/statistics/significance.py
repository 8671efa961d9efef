"""One error for all rounds of a run: each round's share of it, and the exact test at that share.

The k-th test of a run, k counted from 1 by the rounds before it that did not promote, is at the level

    α_k = error / (k (k + 1)),  Σ_k α_k = error.

Only failures spend: a promotion gives its level back, as in the fallback procedure (Wiens 2003, *A fixed sequence
Bonferroni procedure for testing multiple endpoints*); how many rounds there will be need not be known, as in alpha
spending (Lan and DeMets 1983, *Discrete sequential boundaries for clinical trials*). Up to the first false promotion no
two candidates that are no better than their champion stand at the same k, for each of them failed and so moved it on.
The chance that a run ever makes one is therefore at most Σ_k α_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

GRID = 840
"""Parts of a prompt's outcome that the test tells apart: shares of up to seven people are exact on it."""


def level(error: float, failures: int) -> float:
    """α_k of a round with so many rounds before it that did not promote."""
    return error / ((failures + 1) * (failures + 2))


def chance(won: Sequence[float]) -> float:
    """The probability that two equal models would come to at least this win rate: an exact one-sided p-value.

    Of equal models the answers to a prompt may as well be exchanged, which turns an outcome w into 1 − w. So the mean
    of w − ½ is compared with those of all 2ⁿ exchanges (the sign-flip test of Fisher 1935, *The Design of Experiments*,
    section 21). Of wins, losses and ties it is the sign test: ties move nothing, and the wins among the other prompts
    are binomial.

    Args:
        won: for each prompt 1, 0, ½ for a tie, or the share of people who prefer the candidate.
    """
    steps: NDArray[np.int64] = np.rint((np.asarray(won, dtype=np.float64) - 0.5) * GRID).astype(np.int64)
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    unit = int(np.gcd.reduce(sizes))
    reached: NDArray[np.float64] = np.ones(1)  # the probability of each sum of the steps upwards
    for size, count in zip(sizes // unit, counts, strict=True):
        sums = np.add.outer(np.arange(len(reached)), size * np.arange(count + 1)).ravel()
        weights = np.multiply.outer(reached, _coins(int(count))).ravel()
        reached = np.bincount(sums, weights=weights).astype(np.float64)
    return float(min(1.0, reached[steps[steps > 0].sum() // unit :].sum()))


def least(level: float) -> int:
    """Prompts on every one of which the candidate must win for the test to show anything: the n of ½ⁿ ≤ level."""
    return math.ceil(-math.log2(level))


def detectable(prompts: int, level: float) -> float:
    """The true win rate that a test of so many prompts finds four times in five; over 1 where it finds none so often.

    By the normal approximation, ½ + (z_(1 − level) + z_0.8) · ½ / √prompts.
    """
    normal = NormalDist()
    return 0.5 + (normal.inv_cdf(1 - level) + normal.inv_cdf(0.8)) * 0.5 / math.sqrt(prompts)


@cache
def _coins(count: int) -> NDArray[np.float64]:
    """The probability of each number of heads among so many coins."""
    heads = np.arange(count, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log((count - heads) / (heads + 1)))]) - count * math.log(2)
    chances: NDArray[np.float64] = np.exp(logs)
    return chances
