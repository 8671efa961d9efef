"""The win rate that two models would have with answers of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.intervals import Interval

RIDGE = 1e-2
"""Keeps the coefficients finite where one side wins throughout."""
RESAMPLES = 1000

Numbers = NDArray[np.float64]


def controlled(won: Sequence[float], candidate: Sequence[int], champion: Sequence[int]) -> tuple[float, Interval]:
    """σ(a), the win rate at equal length, of P(win) = σ(a + b·tanh(Δl / s)), and its 95% interval.

    Δl is the candidate's length less the champion's on each prompt and s the deviation of Δl. The regression is that
    of Dubois et al. (2024), *Length-Controlled AlpacaEval*, equation 2, without its terms for models and prompts.
    Fitted by Newton's method with a small ridge; the interval is the bootstrap over prompts.

    Args:
        won: for each prompt 1, 0, or ½ for a tie.
        candidate, champion: tokens of the two answers.
    """
    outcome = np.asarray(won, dtype=np.float64)
    extra = np.asarray(candidate, dtype=np.float64) - np.asarray(champion, dtype=np.float64)
    spread = float(extra.std())
    longer = np.tanh(extra / spread) if spread > 0 else np.zeros_like(extra)
    random = np.random.default_rng(0)
    rates = [
        _at_equal_length(outcome[drawn], longer[drawn])
        for drawn in (random.integers(0, len(outcome), size=len(outcome)) for _ in range(RESAMPLES))
    ]
    low, high = np.percentile(rates, [2.5, 97.5])
    return _at_equal_length(outcome, longer), (float(low), float(high))


def _at_equal_length(won: Numbers, longer: Numbers) -> float:
    features = np.stack([np.ones_like(longer), longer], axis=1)
    weights = np.zeros(2)
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        slope = features.T @ (won - chance) - RIDGE * weights
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        weights = weights + np.clip(step, -2, 2)
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(1 / (1 + np.exp(-weights[0])))
