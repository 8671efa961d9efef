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

LEAST_POINTS = 4
"""Fewer points behind the start fit no curve."""


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """A fitted curve.

    Attributes:
        alpha, beta: of the equation above, by least squares.
        peak: the KL in nats at which the curve turns over; None where it does not within twice the largest √KL seen.
        residual: the root mean square of what the curve leaves unexplained, in judge scores.
    """

    alpha: float
    beta: float
    peak: float | None
    residual: float


def fitted(kls: Sequence[float], scores: Sequence[float], start: float, *, best_of_n: bool) -> Overoptimisation | None:
    """The curve through a policy's points.

    Args:
        kls: nats from the reference at each point.
        scores: the judge's there.
        start: the judge's score of the reference.

    Returns:
        None where fewer than four points lie away from the reference.
    """
    away = [(math.sqrt(kl), score - start) for kl, score in zip(kls, scores, strict=True) if kl > 1e-6]
    if len(away) < LEAST_POINTS:
        return None
    d, gain = np.array(away, dtype=np.float64).T
    features = np.stack([d, -d * d if best_of_n else -d * np.log(d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(features, gain, rcond=None)
    peak = None
    if beta > 0 and (alpha > 0 or not best_of_n):
        turning = alpha / (2 * beta) if best_of_n else math.exp(min(50.0, alpha / beta - 1))
        # Far behind the last point there is nothing that the curve was fitted to.
        peak = float(turning**2) if turning <= 2 * d.max() else None
    residual = float(np.sqrt(((features @ np.array([alpha, beta]) - gain) ** 2).mean()))
    return Overoptimisation(float(alpha), float(beta), peak, residual)
