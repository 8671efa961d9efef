"""The win rate, and the difference of scores, that two models would have with answers of equal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from triptych.statistics.intervals import Interval, resampled
from triptych.statistics.logistic import Numbers, fit, sigmoid

RIDGE = 1e-2
"""Keeps the coefficients finite where one side wins throughout."""
RESAMPLES = 1000
OVERLAP = 0.1
"""The least share of the prompts on either side of equal length; less, and the rate there is an extrapolation."""


def controlled(
    won: Sequence[float], candidate: Sequence[int], champion: Sequence[int]
) -> tuple[float, Interval] | None:
    """σ(a), the win rate at equal length, of P(win) = σ(a + b·tanh(Δl / s)), and its 95% interval.

    Δl is the candidate's length less the champion's on each prompt and s the deviation of Δl. The regression is that
    of Dubois et al. (2024), *Length-Controlled AlpacaEval*, equation 2, without its terms for models and prompts.
    Fitted with a small ridge; the interval is the bootstrap over prompts.

    Where one of the two is nearly always the longer, the curve is fitted beside equal length and not at it, and what it
    says there is its own shape and the ridge. So a tenth of the prompts must lie on either side, those of equal length
    on both.

    Args:
        won: for each prompt 1, 0, or ½ for a tie.
        candidate, champion: tokens of the two answers.

    Returns:
        None where lengths hardly overlap, so that it cannot be told.
    """
    longer = _longer(candidate, champion)
    outcome = np.asarray(won, dtype=np.float64)
    return None if longer is None else _bootstrapped(len(outcome), partial(_at_equal_length, outcome, longer))


def controlled_gain(
    gains: Sequence[float], candidate: Sequence[int], champion: Sequence[int]
) -> tuple[float, Interval] | None:
    """a of the least squares fit gain = a + b·tanh(Δl / s): the mean difference of two scores at equal length.

    Args and what is returned as of :func:`controlled`, with the candidate's score less the champion's in the place of
    who won.
    """
    longer = _longer(candidate, champion)
    differences = np.asarray(gains, dtype=np.float64)
    return None if longer is None else _bootstrapped(len(differences), partial(_intercept, differences, longer))


def _longer(candidate: Sequence[int], champion: Sequence[int]) -> Numbers | None:
    """tanh(Δl / s) of each prompt; None where lengths hardly overlap."""
    extra = np.asarray(candidate, dtype=np.float64) - np.asarray(champion, dtype=np.float64)
    if min((extra <= 0).mean(), (extra >= 0).mean()) < OVERLAP:
        return None
    spread = float(extra.std())
    return np.tanh(extra / spread) if spread > 0 else np.zeros_like(extra)


def _bootstrapped(count: int, statistic: Callable[[NDArray[np.int64]], Numbers]) -> tuple[float, Interval]:
    """A statistic of so many prompts, and its 95% interval; it is given R ways to count them, `[R, N]`."""
    drawn = (np.stack([np.bincount(row, minlength=count) for row in part]) for part in resampled(count, RESAMPLES))
    low, high = np.percentile(np.concatenate([statistic(counts) for counts in drawn]), [2.5, 97.5])
    (value,) = statistic(np.ones((1, count), dtype=np.int64))
    return float(value), (float(low), float(high))


def _intercept(gains: Numbers, longer: Numbers, counts: NDArray[np.int64]) -> Numbers:
    """The mean gain less what the slope makes of the mean of tanh(Δl / s); all of it where there is no slope."""
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean, place = weights @ gains, weights @ longer
    covered = weights @ longer**2 - place**2
    slope = (weights @ (gains * longer) - mean * place) / np.where(covered > 0, covered, np.inf)
    return np.asarray(mean - slope * place)


def _at_equal_length(won: Numbers, longer: Numbers, counts: NDArray[np.int64]) -> Numbers:
    """σ(a) for each of R ways to count the prompts, `[R, N]`."""
    features = np.stack([np.ones_like(longer), longer], axis=1)
    return sigmoid(fit(features, won, counts=counts, ridge=RIDGE)[:, 0])
