"""The gate's verdict: every way to pass it and to fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from triptych.evaluate.gate import PROMOTED, REJECTED, UNDECIDED, Gate, verdict
from triptych.evaluate.lengths import controlled

EVEN = {
    "win_rate": 0.6, "interval": (0.45, 0.75), "kl": 3.0, "judge": "exact judge", "decided_by": "exact judge",
    "length_before": 20.0, "length_after": 22.0, "prompts": 300,
}


def decided(config: Gate | None = None, **numbers: Any) -> tuple[str, str]:
    return verdict(config or Gate(), EVEN | numbers, needed=321)


def test_an_interval_above_one_half_promotes() -> None:
    decision, reason = decided(interval=(0.501, 0.7))
    assert decision == PROMOTED
    assert reason == "exact judge prefers the candidate: win rate 60.0% (95% interval 50.1% to 70.0%)"


def test_winning_on_every_one_of_a_few_prompts_proves_nothing() -> None:
    assert decided(win_rate=1.0, interval=(1.0, 1.0), prompts=5)[0] == UNDECIDED
    assert decided(win_rate=1.0, interval=(1.0, 1.0), prompts=6)[0] == PROMOTED


def test_an_interval_below_one_half_rejects() -> None:
    decision, reason = decided(win_rate=0.4, interval=(0.3, 0.499))
    assert decision == REJECTED
    assert reason.startswith("exact judge prefers the champion: win rate 40.0%")


def test_a_winner_that_lost_a_task_is_rejected() -> None:
    def tasks(score: float, interval: tuple[float, float]) -> dict[str, Any]:
        return {"story": {"score": 0.9, "interval": (0.8, 0.95)}, "question": {"score": score, "interval": interval}}

    decision, reason = decided(interval=(0.6, 0.8), tasks=tasks(0.35, (0.25, 0.45)))
    assert decision == REJECTED
    assert reason == (
        "exact judge prefers the champion on question: win rate 35.0% (95% interval 25.0% to 45.0%), under the budget "
        "of 40%"
    )
    assert decided(interval=(0.6, 0.8), tasks=tasks(0.35, (0.2, 0.55)))[0] == PROMOTED  # that may be chance
    assert decided(interval=(0.6, 0.8), tasks=tasks(0.45, (0.42, 0.48)))[0] == PROMOTED  # that is within the budget
    none = Gate(min_task_win_rate=None)
    assert decided(none, interval=(0.6, 0.8), tasks=tasks(0.1, (0.0, 0.2)))[0] == PROMOTED


@pytest.mark.parametrize("interval", [(0.45, 0.75), (0.5, 0.7), (0.3, 0.5)])
def test_an_interval_that_touches_one_half_decides_nothing(interval: tuple[float, float]) -> None:
    decision, reason = decided(interval=interval)
    assert decision == UNDECIDED
    assert "about 321 prompts would" in reason


def test_a_winner_outside_the_kl_budget_is_rejected() -> None:
    config = Gate(max_kl=2.5)
    decision, reason = decided(config, interval=(0.6, 0.8))
    assert decision == REJECTED
    assert reason == "KL of 3.0 nats per answer is over the budget of 2.5"
    assert decided(config, interval=(0.6, 0.8), kl=2.5)[0] == PROMOTED


def test_a_winner_by_length_is_rejected() -> None:
    decision, reason = decided(interval=(0.6, 0.8), length_after=31.0)
    assert decision == REJECTED
    assert reason == "answers are 1.55 times as long, over the budget of 1.5"
    assert decided(interval=(0.6, 0.8), length_after=30.0)[0] == PROMOTED


def test_a_winner_by_saying_little_is_rejected() -> None:
    decision, reason = decided(interval=(0.6, 0.8), length_after=9.0)
    assert decision == REJECTED
    assert reason == "answers are 0.45 times as long, under the budget of 0.5"
    assert decided(interval=(0.6, 0.8), length_after=10.0)[0] == PROMOTED
    assert decided(Gate(min_length_ratio=None), interval=(0.6, 0.8), length_after=1.0)[0] == PROMOTED


def test_a_winner_that_forgot_plain_text_is_rejected() -> None:
    decision, reason = decided(interval=(0.6, 0.8), bits_before=1.0, bits_after=1.3)
    assert decision == REJECTED
    assert reason.startswith("plain text takes 1.30 times as many bits, over the budget of 1.25")
    assert decided(interval=(0.6, 0.8), bits_before=1.0, bits_after=1.2)[0] == PROMOTED
    assert decided(Gate(max_bits_ratio=None), interval=(0.6, 0.8), bits_before=1.0, bits_after=9.0)[0] == PROMOTED
    assert decided(interval=(0.6, 0.8), bits_before=1.0, bits_after=float("nan"))[0] == REJECTED


def test_at_equal_length_a_win_by_length_is_none() -> None:
    draw = np.random.default_rng(1)
    extra = draw.normal(10, 20, size=2000).round()  # the candidate is longer, and length is all that wins
    won = [float(draw.random() < 1 / (1 + math.exp(-2.5 * math.tanh(more / 20)))) for more in extra]
    assert sum(won) / len(won) > 0.6
    rate, (low, high) = controlled(won, [50 + int(more) for more in extra], [50] * len(extra))
    assert rate == pytest.approx(0.5, abs=0.05)  # three standard errors of 2,000 prompts
    assert low < rate < high


def test_where_length_does_not_matter_nothing_is_controlled_away() -> None:
    draw = np.random.default_rng(2)
    won = (draw.random(2000) < 0.7).astype(float).tolist()
    lengths = draw.integers(20, 60, size=2000).tolist()
    rate, (low, _) = controlled(won, lengths, lengths[::-1])
    assert rate == pytest.approx(sum(won) / 2000, abs=0.02)
    assert low > 0.65
    alike, _ = controlled([1.0, 1.0, 0.0, 1.0] * 100, [7] * 400, [7] * 400)
    assert alike == pytest.approx(0.75, abs=0.001)
    assert controlled([1.0] * 20, list(range(20)), [9] * 20)[0] > 0.9


def test_a_distance_that_is_no_number_is_over_every_budget() -> None:
    assert decided(Gate(max_kl=2.5), interval=(0.6, 0.8), kl=float("nan"))[0] == REJECTED
