"""What an answer's length has to do with its reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.intervals import contrast_interval
from triptych.records import Comparison
from triptych.reward.audit.record import Interval, Length

RIDGE = 1e-2
"""Keeps the coefficients finite where the reward orders every comparison rightly."""

Numbers = NDArray[np.float64]


def length_bias(rows: Sequence[Comparison], right: Sequence[float], differences: Sequence[float]) -> Length | None:
    """The gap in accuracy and the coefficient of length; None where length, or the reward, never differs.

    A model that is as good as the labels allow is right as often where the longer answer is preferred as where
    the shorter is, whatever share of the labels prefers the longer: a gap is the model's own leaning.
    """
    prompts = [row.prompt.key for row in rows]
    extra = np.array([len(row.chosen) - len(row.rejected) for row in rows], dtype=np.float64)
    fitted = length_coefficient(differences, extra.tolist(), prompts)
    if fitted is None:
        return None
    longer, shorter = (extra > 0).astype(float), (extra < 0).astype(float)
    gap = contrast_interval(right, longer.tolist(), shorter.tolist(), prompts)
    reward, coefficient, interval = fitted
    return Length(
        gap=gap[0] if gap else None, gap_interval=gap[1] if gap else None,
        coefficient=coefficient, interval=interval, reward_coefficient=reward,
    )


def length_coefficient(
    rewards: Sequence[float], lengths: Sequence[float], prompts: Sequence[str]
) -> tuple[float, float, Interval] | None:
    """The coefficients of reward and length in P(chosen) = σ(a Δr/s_r + b Δl/s_l), and the interval of b.

    Δ is chosen minus rejected and s its root mean square, so that both are without unit; there is no intercept
    because a comparison has no order. Fitted by Newton's method; the interval is b ± 1.96 standard errors by
    the sandwich estimator over prompts (Liang and Zeger 1986). None where either never differs.
    """
    features = np.stack([np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)], axis=1)
    spread = np.sqrt((features**2).mean(axis=0))
    if not (spread > 0).all():
        return None
    features = features / spread
    weights = np.zeros(2)
    for _ in range(50):
        wrong = 1 / (1 + np.exp(np.clip(features @ weights, -500, 500)))
        slope = features.T @ wrong - RIDGE * weights
        curvature = (features * (wrong * (1 - wrong))[:, None]).T @ features + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        weights = weights + step * min(1.0, 5.0 / float(np.abs(step).max() + 1e-300))
        if float(np.abs(step).max()) < 1e-10:
            break
    names = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    scores = np.zeros((len(names), 2))
    np.add.at(scores, [names[prompt] for prompt in prompts], features * wrong[:, None])
    bread = np.linalg.inv(curvature)
    meat = scores.T @ scores * len(names) / max(1, len(names) - 1)
    error = float(np.sqrt((bread @ meat @ bread)[1, 1]))
    reward, coefficient = float(weights[0]), float(weights[1])
    return reward, coefficient, (coefficient - 1.96 * error, coefficient + 1.96 * error)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The rank correlation; 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> Numbers:
    """Ranks from 0, ties sharing their mean."""
    numbers = np.asarray(values, dtype=np.float64)
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Numbers = ((ends - counts + ends - 1) / 2)[places]
    return means
