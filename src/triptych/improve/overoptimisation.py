"""Over-optimisation: how far a policy may go from its reference before what it gains in reward is lost in truth.

Gao, Schulman and Hilton (2023), *Scaling Laws for Reward Model Overoptimization*, sections 3.1 and 3.2: with
d = √KL the judge's score rises over the reference's by

    best of n:               R(d) = d·(α − β·d)
    reinforcement learning:  R(d) = d·(α − β·log d)

so that it turns over at d = α/(2β), or d = exp(α/β − 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.statistics.intervals import Interval, resampled

LEAST_POINTS = 4
"""Fewer points behind the start fit no curve."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """A fitted curve.

    Attributes:
        alpha, beta: of the equation above, by least squares.
        peak: the KL in nats at which the curve turns over; None where that cannot be told.
        interval: the 95% interval of the peak, by the bootstrap over prompts.
        residual: the root mean square of what the curve leaves unexplained, in judge scores.
    """

    alpha: float
    beta: float
    peak: float | None
    interval: Interval | None
    residual: float


def fitted(
    kls: Sequence[float], scores: Sequence[Sequence[float]], start: Sequence[float], *, best_of_n: bool
) -> Overoptimisation | None:
    """The curve through a policy's points.

    A curve of two parameters turns over somewhere through any noise. So a peak is told only where the whole of its
    interval lies within the distances that were seen; the KLs are taken as they were measured.

    Args:
        kls: nats from the reference at each point.
        scores: the judge's there, of each prompt.
        start: the judge's of the reference, on the same prompts.

    Returns:
        None where fewer than four points lie away from the reference.
    """
    away = [(math.sqrt(kl), row) for kl, row in zip(kls, scores, strict=True) if kl > 1e-6]
    if len(away) < LEAST_POINTS:
        return None
    d = np.array([distance for distance, _ in away])
    gains = np.array([row for _, row in away]) - np.asarray(start)  # [points, prompts]
    features = np.stack([d, -d * d if best_of_n else -d * np.log(d)], axis=1)
    solution = np.linalg.pinv(features) @ gains  # [2, prompts], whose mean is the fit of the mean
    means = np.concatenate([solution[:, drawn].mean(-1) for drawn in resampled(gains.shape[1], RESAMPLES)], axis=1)
    peaks = _turning(means, best_of_n)
    low, high = float(np.percentile(peaks, 2.5, method="lower")), float(np.percentile(peaks, 97.5, method="higher"))
    bounded = high <= float(d.max()) ** 2
    alpha, beta = solution.mean(1)
    residual = float(np.sqrt(((features @ solution.mean(1) - gains.mean(1)) ** 2).mean()))
    peak = float(_turning(solution.mean(1), best_of_n)) if bounded else None
    return Overoptimisation(float(alpha), float(beta), peak, (low, high) if bounded else None, residual)


def _turning(solution: NDArray[np.float64], best_of_n: bool) -> NDArray[np.float64]:
    """The KL in nats at which each curve of α and β, `[2, ...]`, turns over; infinite where it only rises."""
    alpha, beta = solution
    turns = (beta > 0) & (alpha > 0) if best_of_n else beta > 0
    ratio = np.divide(alpha, beta, out=np.full_like(alpha, np.inf), where=turns)
    d = ratio / 2 if best_of_n else np.exp(np.minimum(50.0, ratio - 1))
    turning: NDArray[np.float64] = np.where(turns, d**2, np.inf)
    return turning
