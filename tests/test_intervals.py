"""Intervals over prompts: known cases, and what answers to one prompt share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triptych.statistics.intervals import mean_interval, prompts_needed, seeds_interval, t_quantile, wins


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.25] * 10) == (0.25, (0.25, 0.25))
    assert mean_interval([3.0]) == (3.0, (3.0, 3.0))


def test_a_share_has_the_binomials_interval() -> None:
    mean, (low, high) = mean_interval([1.0] * 140 + [0.0] * 60)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 200)
    assert mean == 0.7
    assert low == pytest.approx(0.7 - half, abs=0.006)
    assert high == pytest.approx(0.7 + half, abs=0.006)


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        _, (low, high) = mean_interval(draw.normal(2.0, 1.0, size=80).tolist())
        held += low <= 2.0 <= high
    assert 180 <= held <= 198  # 190 expected, standard deviation 3


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=50).tolist()
    assert mean_interval(values) == mean_interval(values)


def test_answers_to_one_prompt_count_as_little_more_than_one() -> None:
    per_prompt = np.random.default_rng(3).normal(size=40)
    values, prompts = np.repeat(per_prompt, 10).tolist(), np.repeat(np.arange(40), 10).tolist()
    mean, (low, high) = mean_interval(values, prompts)
    _, (narrow_low, narrow_high) = mean_interval(values)
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(math.sqrt(10), rel=0.15)
    alone, interval = mean_interval(per_prompt.tolist())
    assert (mean, low, high) == pytest.approx((alone, *interval))


def test_unequal_clusters_weigh_by_their_answers() -> None:
    mean, _ = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert mean == 0.75


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_a_win_a_loss_and_a_tie() -> None:
    assert wins([2.0, 1.0, 0.5], [1.0, 2.0, 0.5]) == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="zip"):
        wins([1.0], [1.0, 2.0])


def test_a_narrower_tail_has_a_wider_interval() -> None:
    values = [1.0] * 140 + [0.0] * 60
    _, (low, high) = mean_interval(values, confidence=0.9975)
    half = 3.023 * math.sqrt(0.7 * 0.3 / 200)  # the normal distribution's quantile of 99.875%
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.012)


def test_prompts_needed_by_hand() -> None:
    # Mean 0.6, deviation sqrt(0.24): (1.96 * 0.4899 / 0.1)^2 = 92.2.
    assert prompts_needed([1.0] * 6 + [0.0] * 4, 0.5) == 93
    assert prompts_needed([1.0] * 6 + [0.0] * 4, 0.5, 0.025 / 3) == 138  # 2.394 for 1.96
    assert prompts_needed([1.0] * 60 + [0.0] * 40, 0.5) == 101  # these 100 did not tell
    assert prompts_needed([1.0, 0.0], 0.5) is None
    enough = [1.0] * 56 + [0.0] * 37
    assert mean_interval(enough)[1][0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (30, 2.0423)])
def test_students_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-3)


def test_one_seed_has_the_interval_over_its_prompts() -> None:
    values = np.random.default_rng(4).normal(size=30).tolist()
    assert seeds_interval([values]) == mean_interval(values)
    assert seeds_interval([[0.5] * 9] * 3) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_what_seeds_differ_by_is_in_the_interval(spread: float) -> None:
    draw = np.random.default_rng(6)
    held = alone = 0
    for _ in range(300):
        difficulty, luck = draw.normal(0, 0.3, size=200), draw.normal(0, 0.25, size=(3, 200))
        table = 0.6 + draw.normal(0, spread, size=(3, 1)) + difficulty + luck
        low, high = seeds_interval(table.tolist())[1]
        held += low <= 0.6 <= high
        half = 1.96 * float(table.mean(0).std()) / math.sqrt(200)  # over prompts alone
        alone += abs(float(table.mean()) - 0.6) <= half
    assert held >= 0.9 * 300  # 95% is asked for; Satterthwaite's freedom is a little too large for three seeds
    assert (alone < 0.85 * 300) == (spread > 0)
