"""Logistic regression, the one fit of the package: of rules, weights, temperatures, and win rates at equal length.

Outcomes y_n in [0, 1], features x_n and counts c_n have the loss

    L(w) = Σ_n c_n (log(1 + exp(w · x_n)) − y_n w · x_n) + ½ ridge |w|²,

which is convex. It is made least by Newton's method, whose steps are halved until the loss falls enough (Armijo 1966).
There is no intercept but one that stands among the features: the differences of two answers have none, because a
comparison has no order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

STEPS = 200
"""Newton's method takes so many at most; a dozen is usual."""
EXACT = 1e-11
"""A step that changes no weight by more, beside weights of about 1, is the last."""
SOLVED = 1e-4
"""The part of the slope that a step leaves."""
ENOUGH = 1e-4
"""The part of the decrease that the slope promises, with which a step is taken."""


def fit(
    features: Numbers, outcomes: Numbers | None = None, *, counts: NDArray[np.int64] | None = None, ridge: float
) -> Numbers:
    """The weights w at which the loss is least, `[K]`, or `[R, K]` for R ways to count the rows.

    Args:
        features: `[N, K]`.
        outcomes: `[N]`; by default all 1, as of differences of chosen and rejected answers.
        counts: `[R, N]`, how often each row counts, as in a bootstrap.
        ridge: above 0 where the features may tell the outcomes without error, or be dependent: nothing is least there.
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.ones(len(x)) if outcomes is None else np.asarray(outcomes, dtype=np.float64)
    c = np.ones((1, len(x))) if counts is None else counts.astype(np.float64)
    weights = np.zeros((len(c), x.shape[1]))
    value = _loss(weights, x, y, c, ridge)
    for _ in range(STEPS):
        chances = sigmoid(weights @ x.T)
        slope = (c * (chances - y)) @ x + ridge * weights
        step = _solved(c * chances * (1 - chances), x, ridge, slope)
        promised = (slope * step).sum(-1)
        size = np.ones(len(c))
        while True:
            moved = weights - size[:, None] * step
            after = _loss(moved, x, y, c, ridge)
            # What rounding hides of the least differences is no reason to go back.
            short = after > value - ENOUGH * size * promised + 1e-14 * np.abs(value)
            if not short.any():
                break
            size = np.where(short, size / 2, size)
        weights, value = moved, after
        if (np.abs(step) <= EXACT * (1 + np.abs(weights))).all():
            break
    return weights[0] if counts is None else weights


def curvature(weights: Numbers, features: Numbers, ridge: float) -> Numbers:
    """The loss's second derivatives at weights `[K]`, where each row counts once: `[K, K]`."""
    chances = sigmoid(features @ weights)
    hessian: Numbers = (features.T * (chances * (1 - chances))) @ features + ridge * np.eye(len(weights))
    return hessian


def _solved(spread: Numbers, features: Numbers, ridge: float, slope: Numbers) -> Numbers:
    """The step s with H s = slope, nearly, for H = Σ_n spread_n x_n x_nᵀ + ridge, which is never written down.

    By conjugate gradients (Hestenes and Stiefel 1952): a bag of words has thousands of features.
    """
    step, residual, direction = np.zeros_like(slope), slope, slope
    square = (residual**2).sum(-1, keepdims=True)
    enough = SOLVED**2 * square
    for _ in range(4 * slope.shape[1]):
        if not (open := square > enough).any():
            break
        bent = (spread * (direction @ features.T)) @ features + ridge * direction
        length = np.divide(square, (direction * bent).sum(-1, keepdims=True), out=np.zeros_like(square), where=open)
        step, residual = step + length * direction, residual - length * bent
        after = (residual**2).sum(-1, keepdims=True)
        direction = residual + np.divide(after, square, out=np.zeros_like(square), where=open) * direction
        square = after
    return step


def sigmoid(numbers: Numbers) -> Numbers:
    """1 / (1 + exp(−z)), of either sign without overflow."""
    ends = np.exp(-np.abs(numbers))
    chances: Numbers = np.where(numbers >= 0, 1.0, ends) / (1 + ends)
    return chances


def _loss(weights: Numbers, features: Numbers, outcomes: Numbers, counts: Numbers, ridge: float) -> Numbers:
    margins = weights @ features.T
    rows = np.maximum(margins, 0) - outcomes * margins + np.log1p(np.exp(-np.abs(margins)))
    loss: Numbers = (counts * rows).sum(-1) + ridge / 2 * (weights**2).sum(-1)
    return loss
