"""The one logistic fit: at the minimum, whatever the data; by hand; and with the numbers of the methods it replaced."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.audit.calibration import temperature
from triptych.statistics.logistic import Numbers, curvature, fit, sigmoid

DRAW = np.random.default_rng(7)
DATA: dict[str, Numbers] = {
    "few": DRAW.normal(0.3, 1, (40, 3)),
    "separable": np.abs(DRAW.normal(0, 1, (200, 4))) + 0.1,
    "of large scale": DRAW.normal(0.1, 1, (500, 2)) * [1e3, 1e-3],
    "one against all": np.concatenate([np.full((999, 1), 5.0), np.full((1, 1), -1e-6)]),
    "one far out": np.concatenate([DRAW.normal(1, 1, (100, 1)), np.full((1, 1), -1e4)]),
    "dependent": np.repeat(DRAW.normal(0.3, 1, (60, 1)), 3, axis=1),
    "more words than rows": DRAW.poisson(0.1, (80, 300)).astype(float) - DRAW.poisson(0.1, (80, 300)),
    "nothing": np.zeros((5, 2)),
    "no feature": np.zeros((5, 0)),
}


def slope(weights: Numbers, x: Numbers, ridge: float) -> Numbers:
    """The loss's first derivative, written a second time."""
    found: Numbers = ridge * weights - x.T @ (1 / (1 + np.exp(np.clip(x @ weights, -700, 700))))
    return found


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("ridge", [1.0, 1e-2])
def test_the_fit_is_at_the_minimum(kind: str, ridge: float) -> None:
    """The loss is convex by at least the ridge: its minimum is no farther off than slope / ridge."""
    x = DATA[kind]
    weights = fit(x, ridge=ridge)
    scale = max(1.0, float(np.abs(x).sum(0).max(initial=0)))  # what rounding leaves of a sum of that size
    assert float(np.linalg.norm(slope(weights, x, ridge))) / ridge <= 1e-9 * max(1.0, scale * 1e-4 / ridge)


def test_weights_by_hand() -> None:
    # With an intercept alone the chance is the mean outcome.
    (weight,) = fit(np.ones((4, 1)), np.array([1.0, 1.0, 0.5, 0.5]), ridge=1e-13)
    assert weight == pytest.approx(math.log(3), abs=1e-9)
    # Three of four with the same difference d are right: σ(w d) = 3/4.
    (weight,) = fit(np.array([[2.0], [2.0], [2.0], [-2.0]]), ridge=1e-13)
    assert weight == pytest.approx(math.log(3) / 2, abs=1e-9)


def test_a_row_that_counts_twice_is_two_rows() -> None:
    x, y = DRAW.normal(0, 1, (30, 2)), DRAW.random(30)
    counts = DRAW.integers(0, 4, (50, 30))
    found = fit(x, y, counts=counts, ridge=0.5)
    assert found.shape == (50, 2)
    for weights, row in zip(found, counts, strict=True):
        alone = fit(np.repeat(x, row, axis=0), np.repeat(y, row), ridge=0.5)
        assert weights == pytest.approx(alone, abs=1e-9)


def test_the_temperature_is_the_one_that_bisection_finds() -> None:
    for spread in (0.1, 1.0, 30.0):
        numbers = DRAW.normal(0.4, 1, 500) * spread
        size = float(np.sqrt(np.mean(numbers**2)))
        low, high = -3.0, 3.0
        for _ in range(60):
            middle = (low + high) / 2
            falls = float(np.mean(numbers / size * sigmoid(-numbers / size * 10**middle))) > 0
            low, high = (middle, high) if falls else (low, middle)
        assert temperature(numbers.tolist()) == pytest.approx(size / 10**low, rel=1e-9)


def test_a_temperature_without_a_minimum_is_the_end_of_the_range() -> None:
    assert temperature([1.0, 1.0]) == pytest.approx(1e-3)
    assert temperature([-1.0, -1.0]) == temperature([1.0, -1.0]) == pytest.approx(1e3)
    assert temperature([0.0, 0.0]) == pytest.approx(1e3)
    almost = [1.0] * 1000 + [-1e-9]  # the minimum is within the range, and far from where the fit starts
    assert 0.01 < temperature(almost) < 1


def test_the_curvature_is_the_slope_of_the_slope() -> None:
    x, weights = DATA["few"], np.array([0.2, -0.4, 0.9])
    for place in range(3):
        step = np.zeros(3)
        step[place] = 1e-6
        by_hand = (slope(weights + step, x, 0.5) - slope(weights - step, x, 0.5)) / 2e-6
        assert curvature(weights, x, 0.5)[place] == pytest.approx(by_hand, rel=1e-6)


def test_chances_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        found = sigmoid(np.array([-700.0, 0.0, 700.0]))
    assert found.tolist() == pytest.approx([0, 0.5, 1])
