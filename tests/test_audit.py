"""The audit of a reward model: its numbers by hand, and what does not pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from triptych.records import Comparison, Prompt, user
from triptych.reward.audit import Audit, audited, reliability, spearman


def comparison(number: int, chosen: int, rejected: int, task: str | None = None) -> Comparison:
    """Two answers of so many characters to the prompt of this number."""
    return Comparison(Prompt(user(f"question {number}"), task=task), "c" * chosen, "r" * rejected)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


FEW = Audit(least_comparisons=1)


def test_accuracy_and_baselines_by_hand() -> None:
    rows = [comparison(0, 9, 4), comparison(1, 9, 4), comparison(2, 3, 4), comparison(3, 5, 5)]
    found = audited(rows, [2.0, 1.0, 1.0, 0.5], [1.0, 2.0, 0.0, 0.5], FEW)
    assert found["accuracy"] == (1 + 0 + 1 + 0.5) / 4  # a tie is half right
    assert found["baselines"] == {"random": 0.5, "longer wins": 2.5 / 4, "shorter wins": 1.5 / 4}
    assert found["when_longer"] == 0.5
    assert found["when_shorter"] == 1.0
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]


def test_groups_are_by_task() -> None:
    rows = [comparison(0, 2, 1, "story"), comparison(1, 2, 1, "story"), comparison(2, 1, 2, "question")]
    found = audited(rows, [1, 0, 1], [0, 1, 0], FEW)["by_group"]
    assert {name: (group["score"], group["prompts"]) for name, group in found.items()} == {
        "story": (0.5, 2), "question": (1.0, 1),
    }


def test_reliability_by_hand() -> None:
    # Three with confidence 0.92, two of them right; one with 0.62, wrong.
    differences = [logit(0.92), logit(0.92), -logit(0.92), -logit(0.62)]
    bins, error = reliability(differences)
    assert [(b["count"], b["accuracy"]) for b in bins] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    assert [b["confidence"] for b in bins] == pytest.approx([0.62, 0.92])
    assert error == pytest.approx((0.62 + 3 * (0.92 - 2 / 3)) / 4)


def test_reliability_of_the_sure_and_the_unsure() -> None:
    assert reliability([1e9] * 3)[1] == 0.0
    assert reliability([-1e9] * 3)[1] == 1.0
    assert reliability([0.0, 0.0]) == ([{"confidence": 0.5, "accuracy": 0.5, "count": 2}], 0.0)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Without ties: 1 - 6 Σd² / (n (n² - 1)), here d = (1, 1, 1, 1, 0).
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ranks (0, 1.5, 1.5, 3) and (0, 1, 2, 3): covariance 4.5 over sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def biased_rows(count: int, longer: float) -> list[Comparison]:
    """Comparisons of which a share prefers the longer answer."""
    return [comparison(i, *((20, 10) if i < longer * count else (10, 20))) for i in range(count)]


def scores_of(rows: list[Comparison], right: float) -> tuple[list[float], list[float]]:
    """Scores that agree with every comparison but the first few."""
    wrong = round(len(rows) * (1 - right))
    return [0.0 if i < wrong else 1.0 for i in range(len(rows))], [0.5] * len(rows)


def passes(rows: list[Comparison], scores: tuple[list[float], list[float]], config: Audit) -> dict[str, Any]:
    return audited(rows, *scores, config)


def test_a_model_that_likes_length_fails() -> None:
    rows = biased_rows(100, longer=0.7)
    scores = [float(len(row.chosen)) for row in rows], [float(len(row.rejected)) for row in rows]
    found = passes(rows, scores, Audit())
    assert found["accuracy"] == found["baselines"]["longer wins"] == 0.7
    assert found["length_correlation"] == pytest.approx(1.0)
    assert not found["passed"]
    assert "does not beat 'longer wins' (70.0%)" in found["reasons"][0]


def test_one_that_likes_brevity_where_that_wins_fails_too() -> None:
    rows = biased_rows(100, longer=0.2)
    scores = [-float(len(row.chosen)) for row in rows], [-float(len(row.rejected)) for row in rows]
    assert "'shorter wins'" in passes(rows, scores, Audit())["reasons"][0]


def test_the_margin_over_the_trivial_rules_is_the_configurations() -> None:
    rows = biased_rows(100, longer=0.7)
    assert passes(rows, scores_of(rows, 0.8), Audit())["passed"]
    assert passes(rows, scores_of(rows, 0.8), Audit())["reasons"] == []
    assert not passes(rows, scores_of(rows, 0.8), Audit(least_margin=0.15))["passed"]


def test_too_few_comparisons_prove_nothing() -> None:
    rows = biased_rows(29, longer=0.5)
    found = passes(rows, scores_of(rows, 1.0), Audit())
    assert found["accuracy"] == 1.0
    assert not found["passed"]
    assert found["reasons"] == ["only 29 held-out comparisons, where 30 are the least that count"]


def test_comparisons_of_one_prompt_widen_the_interval() -> None:
    alike = [comparison(i // 10, 2, 1) for i in range(100)]
    apart = [comparison(i, 2, 1) for i in range(100)]
    chosen = [1.0 if (i // 10) % 3 else -1.0 for i in range(100)]
    wide, narrow = (audited(rows, chosen, [0.0] * 100, FEW)["interval"] for rows in (alike, apart))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
