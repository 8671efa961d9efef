"""The audit of a reward model: its numbers by hand, and what does not pass."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from conftest import tiny
from test_check import tokenizer
from test_template import BREAK_BEHIND
from triptych.audit.agreement import beside_a_person, by_group, outcomes
from triptych.audit.calibration import calibration, chance_error, reliability, temperature
from triptych.audit.consistency import consistency
from triptych.audit.drift import drift
from triptych.audit.length import leaning, length_bias, length_coefficient, spearman
from triptych.audit.perturbations import CHANGES, perturbations
from triptych.audit.record import AuditRecord, Consistency, Coverage, LengthBias, TrivialRule, audit_beside
from triptych.audit.stage import Audit, Evidence, audit, examine, judged, measured
from triptych.audit.words import bag_of_words
from triptych.data.files import read_comparisons, write
from triptych.data.template import CHATML
from triptych.data.votes import majority
from triptych.engine.models import load_policy, load_reward, save
from triptych.engine.scoring import RewardModel
from triptych.errors import RunError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Prompt, user
from triptych.reward.ensemble import Ensemble
from triptych.reward.registry import open_reward
from triptych.statistics import intervals
from triptych.statistics.intervals import contrast_interval, mean_interval
from triptych.statistics.logistic import Numbers, fit

FEW = Audit(least_prompts=1)


def comparison(number: int, chosen: int, rejected: int, task: str | None = None, **more: Any) -> Comparison:
    """Two answers of so many characters to the prompt of this number."""
    return Comparison(Prompt(user(f"question {number}"), task=task), "c" * chosen, "r" * rejected, **more)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def audited(
    rows: Sequence[Comparison], chosen: Sequence[float], rejected: Sequence[float], config: Audit
) -> AuditRecord:
    return judged(measured(Evidence(rows), chosen, rejected), config)


@dataclass
class Rule:
    """A scorer by a rule of the answer's text."""

    of: Callable[[Conversation], float]
    name: str = "rule"
    identity: str = "rule"
    log_odds: float | None = None

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [self.of(conversation) for conversation in conversations]


def test_accuracy_and_baselines_by_hand() -> None:
    rows = [comparison(0, 9, 4), comparison(1, 9, 4), comparison(2, 3, 4), comparison(3, 5, 5)]
    found = audited(rows, [2.0, 1.0, 1.0, 0.5], [1.0, 2.0, 0.0, 0.5], FEW)
    assert found.accuracy == (1 + 0 + 1 + 0.5) / 4  # a tie is half right
    assert found.baselines == {"random": 0.5, "longer wins": 2.5 / 4, "shorter wins": 1.5 / 4}
    assert {name: lead.lead for name, lead in found.leads.items()} == {
        "random": 0.125, "longer wins": 0.0, "shorter wins": 0.25,
    }
    assert found.best_trivial == TrivialRule(name="longer wins", accuracy=2.5 / 4)
    assert found.when_longer == 0.5
    assert found.when_shorter == 1.0
    assert found.interval[0] <= found.accuracy <= found.interval[1]


def test_groups_are_by_task_section_subset_and_source() -> None:
    rows = [comparison(0, 2, 1, "story"), comparison(1, 2, 1, "story"), comparison(2, 1, 2, "question")]
    found = audited(rows, [1, 0, 1], [0, 1, 0], FEW).by_group
    assert {name: (group.score, group.prompts) for name, group in found.items()} == {
        "story": (0.5, 2), "question": (1.0, 1),
    }
    rows = [comparison(i, 2, 1, subset=subset, source="bench") for i, subset in enumerate(
        ["hep-cpp", "math-prm", "donotanswer", "my-own"]
    )]
    found = by_group(rows, [1.0, 0.0, 1.0, 1.0])
    assert {name: group.score for name, group in found.items()} == {
        "Reasoning": 0.5, "Safety": 1.0, "donotanswer": 1.0, "hep-cpp": 1.0, "math-prm": 0.0, "my-own": 1.0,
    }


def test_rewardbench_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    row = {"id": 7, "prompt": "Why?", "chosen": "So.", "rejected": "No.", "subset": "alpacaeval-easy"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"section": "Mine"}) + "\n")
    rows = read_comparisons(path)
    assert [(row.section, row.subset) for row in rows] == [(None, "alpacaeval-easy"), ("Mine", "alpacaeval-easy")]
    assert set(by_group(rows, [1.0, 1.0])) == {"Chat", "Mine"}  # one subset says nothing more than they do
    write(tmp_path / "again.jsonl", rows)
    assert read_comparisons(tmp_path / "again.jsonl") == rows


def test_a_person_is_measured_as_the_model_is() -> None:
    rows = [
        comparison(0, 2, 1, votes_for_chosen=3, num_annotators=3),
        comparison(1, 2, 1, votes_for_chosen=2, num_annotators=3),
        comparison(2, 2, 1),
        comparison(3, 2, 1, votes_for_chosen=1, num_annotators=1),
    ]
    found = beside_a_person(rows, [1.0, 0.0, 0.0, 0.0])
    assert found is not None
    assert found.comparisons == 2
    assert found.model == pytest.approx((1 + 1 / 3) / 2)
    # Of three votes of which two agree, one of the three pairs of people agrees.
    assert found.person == pytest.approx((1 + 1 / 3) / 2)
    assert found.lead == pytest.approx(0.0)
    assert beside_a_person(rows[2:], [1.0, 1.0]) is None


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("people", [3, 5])
def test_a_persons_agreement_is_unbiased_however_few_vote(chance: float, people: int) -> None:
    """Over all votes, the mean is θ² + (1 − θ)² for a person, θ for a model that prefers the likelier answer."""
    person = model = 0.0
    for votes in itertools.product((0, 1), repeat=people):
        v = sum(votes)
        row = comparison(0, 2, 1, votes_for_chosen=v, num_annotators=people)
        found = beside_a_person([row], [1.0])
        assert found is not None
        weight = chance**v * (1 - chance) ** (people - v)
        person, model = person + weight * found.person, model + weight * found.model
    assert person == pytest.approx(chance**2 + (1 - chance) ** 2)
    assert model == pytest.approx(chance)


@pytest.mark.parametrize("people", [2, 4])
def test_of_an_even_number_who_were_divided_gave_no_comparison_so_the_others_say_nothing(people: int) -> None:
    votes = (votes for votes in itertools.product(("first", "second"), repeat=people))
    kept = [said for said in votes if majority(said)]
    assert len(kept) < 2**people  # of two, all that are left agree: a person would be right on 100%
    rows = [
        comparison(0, 2, 1, votes_for_chosen=said.count(majority(said) or ""), num_annotators=people) for said in kept
    ]
    assert beside_a_person(rows, [1.0] * len(rows)) is None


def test_reliability_by_hand() -> None:
    # Three with confidence 0.92, two of them right; one with 0.62, wrong.
    differences = [logit(0.92), logit(0.92), -logit(0.92), -logit(0.62)]
    bins, error = reliability(differences)
    assert [(b.count, b.accuracy) for b in bins] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    assert [b.confidence for b in bins] == pytest.approx([0.62, 0.92])
    assert error == pytest.approx((0.62 + 3 * (0.92 - 2 / 3)) / 4)


def test_reliability_of_the_sure_and_the_unsure() -> None:
    assert reliability([1e9] * 3)[1] == 0.0
    assert reliability([-1e9] * 3)[1] == 1.0
    (half,), error = reliability([0.0, 0.0])
    assert (half.confidence, half.accuracy, half.count, error) == (0.5, 0.5, 2, 0.0)


def test_the_temperature_by_hand() -> None:
    # σ(d/T) is the share that is right: three of four with the same difference, T = d / logit(3/4).
    assert temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2.0 / logit(0.75), rel=1e-6)
    assert temperature([20.0, 20.0, 20.0, -20.0]) == pytest.approx(20.0 / logit(0.75), rel=1e-6)


def test_the_temperature_mends_a_model_that_is_too_sure() -> None:
    draw = np.random.default_rng(0)
    sure = draw.normal(0, 1.5, 20_000)
    right = draw.random(20_000) < 1 / (1 + np.exp(-np.abs(sure)))
    calibrated = np.where(right, np.abs(sure), -np.abs(sure))
    prompts = [str(i) for i in range(20_000)]
    found = calibration((3 * calibrated).tolist(), prompts)
    assert found is not None
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    assert found.error > 0.1
    assert found.mended_error < 0.02
    assert reliability(calibrated.tolist())[1] < 0.02
    assert calibration([1.0, 1.0], ["same", "same"]) is None


def test_a_temperature_that_mends_nothing_is_not_said_to_mend() -> None:
    """An eighth are sure and always wrong, the others as sure as they are right: what fits best spoils these."""
    draw = np.random.default_rng(0)
    unsure = np.where(draw.random(700) < 0.9, logit(0.9), -logit(0.9))
    rows = [comparison(i, 2, 1) for i in range(800)]
    scores = [*unsure, *[-30.0] * 100]
    found = judged(measured(Evidence(rows), scores, [0.0] * 800, 1.0), Audit())
    assert found.calibration is not None
    assert found.calibration.error < found.calibration.mended_error
    (said,) = [warning for warning in found.warnings if warning.startswith("calibration")]
    assert "too sure" in said
    assert said.endswith(
        f"divided by {found.calibration.temperature:.2g}, as fits the other half best, the error is "
        f"{found.calibration.mended_error:.1%}, so that no temperature mends it"
    )


def test_what_a_temperature_mends_is_said_as_it_was_measured() -> None:
    draw = np.random.default_rng(0)
    scores = np.where(draw.random(1_000) < 0.7, 4.0, -4.0).tolist()
    rows = [comparison(i, 2, 1) for i in range(1_000)]
    found = judged(measured(Evidence(rows), scores, [0.0] * 1_000, 1.0), Audit())
    assert found.calibration is not None
    assert found.calibration.temperature == pytest.approx(4 / logit(0.7), rel=0.35)  # 3 standard errors of 500 labels
    (said,) = [warning for warning in found.warnings if warning.startswith("calibration")]
    assert f"error of {found.calibration.error:.1%} on half" in said
    assert said.endswith(f"the error is {found.calibration.mended_error:.1%}")
    # The same in other units, with the log-odds in one of them.
    scaled = measured(Evidence(rows), [score / 5 for score in scores], [0.0] * 1_000, 5.0)
    assert scaled.calibration_error == pytest.approx(found.calibration_error)


def test_scores_that_are_no_log_odds_have_no_calibration() -> None:
    rows = [comparison(i, 2 + i % 2, 1) for i in range(60)]
    found = examine(Rule(lambda each: 50.0 * len(each.answer)), Evidence(rows), Audit())
    assert (found.calibration_error, found.calibration, found.bins) == (None, None, [])
    assert not [warning for warning in found.warnings if "calibration" in warning]


def test_an_ensemble_is_audited_by_the_score_that_trains() -> None:
    """Its members' mean prefers every chosen answer; less their spread, as it trains, it prefers none."""
    rows = [comparison(i, 2, 1) for i in range(40)]
    members = [Rule(lambda each: 3.0 * (len(each.answer) - 1)), Rule(lambda each: 1.0 - len(each.answer))]
    accuracy = {}
    for penalty in (0.0, 1.0):
        ensemble = Ensemble(members, penalty)  # type: ignore[arg-type]
        accuracy[penalty] = examine(ensemble, Evidence(rows), Audit(perturbed=0)).accuracy
    assert accuracy == {0.0: 1.0, 1.0: 0.0}


def test_an_audit_keeps_which_answers_it_measured() -> None:
    rows = [comparison(i, 3 + i, 2) for i in range(40)]
    lengths: dict[str, Any] = {"answers": 80, "length": (2, 42)}
    rule = Rule(lambda each: len(each.answer) / 2)
    found = examine(rule, Evidence(rows), Audit(perturbed=0))
    assert found.coverage == Coverage(**lengths, score=(1.0, 21.0))
    members = [rule, Rule(lambda each: len(each.answer) / 2 + each.answer.count("r"))]
    ensemble = Ensemble(members, penalty=1.0)  # type: ignore[arg-type]
    found = examine(ensemble, Evidence(rows), Audit(perturbed=0))
    assert found.coverage == Coverage(**lengths, score=(1.0, 21.0), spread=1.0)
    found = examine(rule, Evidence(rows, folds=5, seed=0), Audit(perturbed=0), released=ensemble)
    assert found.coverage == Coverage(**lengths)
    assert examine(rule, Evidence(rows, unseen=False), Audit(perturbed=0)).coverage is None


@pytest.mark.parametrize(("length", "score", "spread", "doubts"), [
    (2, -1.0, None, []), (9, 1.5, 0.5, []), (1, 0.0, None, ["length"]), (10, 0.0, 0.1, ["length"]),
    (5, -1.01, None, ["score"]), (5, 1.51, None, ["score"]), (5, math.nan, None, ["score"]),
    (5, 0.0, 0.51, ["spread"]), (0, 2.0, 2.0, ["score", "length", "spread"]),
])
def test_of_what_lies_outside_of_an_audit_it_says_nothing(
    length: int, score: float, spread: float | None, doubts: list[str]
) -> None:
    passed = audited([comparison(i, *((9, 2), (2, 9))[i % 2]) for i in range(40)], [1.5] * 40, [-1.0] * 40, Audit())
    assert passed.doubts("a" * length, score, spread) is None
    assert passed.model_copy(update={"verdict": "failed"}).doubts("a" * length, score, spread) == ["audit"]
    passed.coverage = Coverage(answers=80, length=(2, 9), score=(-1.0, 1.5), spread=0.5)
    assert passed.doubts("a" * length, score, spread) == doubts
    failed = passed.model_copy(update={"verdict": "failed"})
    assert failed.doubts("a" * length, score, spread) == ["audit", *doubts]


def test_chance_alone_gives_a_calibration_error() -> None:
    # All at confidence p: the error is |p − share right|, whose mean is about sqrt(2 p (1 − p) / (π n)).
    assert chance_error([logit(0.8)] * 100) == pytest.approx(math.sqrt(2 * 0.16 / (math.pi * 100)), rel=0.15)
    assert chance_error([logit(0.8)] * 10_000) < 0.005


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Without ties: 1 - 6 Σd² / (n (n² - 1)), here d = (1, 1, 1, 1, 0).
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ranks (0, 1.5, 1.5, 3) and (0, 1, 2, 3): covariance 4.5 over sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_the_coefficient_of_length_is_the_one_that_drew_the_labels() -> None:
    draw = np.random.default_rng(0)
    first = draw.normal(0, 1, (20_000, 2)) * [2.0, 30.0]
    likely = 1 / (1 + np.exp(-(first / [2.0, 30.0]) @ [1.5, -0.4]))
    signs = np.where(draw.random(20_000) < likely, 1.0, -1.0)
    rewards, lengths = (first * signs[:, None]).T.tolist()
    found = length_coefficient(rewards, lengths, [str(i) for i in range(20_000)])
    assert found is not None
    reward, coefficient, (low, high) = found
    assert reward == pytest.approx(1.5, abs=0.2)  # the choice's own part, 0 here, is found beside it
    assert coefficient == pytest.approx(-0.4, abs=0.04)
    assert low < -0.4 < high
    assert high - low < 0.1
    assert length_coefficient([1.0, 2.0], [0.0, 0.0], ["a", "b"]) is None
    separated = length_coefficient([1.0, 2.0, 3.0], [1.0, -1.0, 2.0], ["a", "b", "c"])
    assert separated is not None
    assert all(map(math.isfinite, separated[:2]))


def test_comparisons_of_one_prompt_widen_the_coefficients_interval() -> None:
    draw = np.random.default_rng(1)
    rewards, lengths = draw.normal(0.2, 1, 400).tolist(), draw.normal(0.1, 1, 400).tolist()
    apart = length_coefficient(rewards, lengths, [str(i) for i in range(400)])
    alike = length_coefficient(rewards * 4, lengths * 4, [str(i) for i in range(400)] * 4)
    assert apart is not None
    assert alike is not None
    # Each comparison four times says no more than once.
    assert alike[2][1] - alike[2][0] == pytest.approx(apart[2][1] - apart[2][0], rel=1e-3)


def test_a_contrast_of_two_groups() -> None:
    values, prompts = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], ["a", "b", "c", "d", "e", "f"]
    one, other = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    found = contrast_interval(values, one, other, prompts)
    assert found is not None
    assert found[0] == pytest.approx(2 / 3 - 1 / 3)
    assert found[1][0] < found[0] < found[1][1]
    assert contrast_interval(values, one, [0.0] * 6, prompts) is None


def test_the_bag_of_words_learns_from_training_alone() -> None:
    def rows(good: str, bad: str, first: int) -> list[Comparison]:
        return [
            Comparison(Prompt(user(f"{first + i}?")), f"{good} thing {i}", f"{bad} thing {i}") for i in range(20)
        ]

    kind, rude = rows("kind", "rude", 0), rows("rude", "kind", 100)
    assert bag_of_words(kind, rows("kind", "rude", 200)) == [1.0] * 20
    assert bag_of_words(rude, rows("kind", "rude", 200)) == [0.0] * 20
    assert bag_of_words(kind, [Comparison(Prompt(user("?")), "never seen", "not either")]) == [0.5]
    assert bag_of_words([], kind) == [0.5] * 20


def biased_rows(count: int, longer: float) -> list[Comparison]:
    """Comparisons of which a share prefers the longer answer."""
    return [comparison(i, *((20, 10) if i < longer * count else (10, 20))) for i in range(count)]


def scores_of(rows: list[Comparison], right: float) -> tuple[list[float], list[float]]:
    """Scores that agree with every comparison but the first few."""
    wrong = round(len(rows) * (1 - right))
    return [0.0 if i < wrong else 1.0 for i in range(len(rows))], [0.5] * len(rows)


def test_a_model_that_likes_length_fails() -> None:
    rows = biased_rows(100, longer=0.7)
    scores = [float(len(row.chosen)) for row in rows], [float(len(row.rejected)) for row in rows]
    found = audited(rows, *scores, Audit())
    assert found.accuracy == found.baselines["longer wins"] == 0.7
    assert found.length_correlation == pytest.approx(1.0)
    assert not found.passed
    assert "does not beat 'longer wins' (70.0%)" in found.reasons[0]
    assert "right on only 0.0% of comparisons where the shorter answer is preferred" in found.warnings[0]


def test_one_that_likes_brevity_where_that_wins_fails_too() -> None:
    rows = biased_rows(100, longer=0.2)
    scores = [-float(len(row.chosen)) for row in rows], [-float(len(row.rejected)) for row in rows]
    assert "'shorter wins'" in audited(rows, *scores, Audit()).reasons[0]


def test_the_lead_must_be_beyond_chance() -> None:
    """Ten points over the best rule are proved by 1,000 prompts and not by 100, and are not a margin of 15."""
    many, few = biased_rows(1000, longer=0.7), biased_rows(100, longer=0.7)
    assert audited(many, *scores_of(many, 0.8), Audit()).passed
    assert audited(many, *scores_of(many, 0.8), Audit()).reasons == []
    assert audited(many, *scores_of(many, 0.8), Audit(least_margin=0.15)).verdict == "failed"
    assert not audited(many, *scores_of(many, 0.8), Audit(least_margin=0.15)).passed
    found = audited(few, *scores_of(few, 0.8), Audit())
    assert not found.passed
    assert found.leads["longer wins"].interval[0] < 0 < found.leads["longer wins"].lead
    assert "held-out prompts would show a lead of this size (there are 100)" in found.reasons[0]


def test_how_many_prompts_would_show_the_lead_is_about_right() -> None:
    few = biased_rows(100, longer=0.7)
    reason = audited(few, *scores_of(few, 0.8), Audit()).reasons[0]
    needed = int(reason.split("about ")[1].split(" held-out")[0].replace(",", ""))
    enough = biased_rows(round(1.3 * needed), longer=0.7)
    assert audited(enough, *scores_of(enough, 0.8), Audit()).passed


def test_chance_passes_seldom() -> None:
    """A model that only guesses, on 40 prompts: the interval's lower end is above 0 in at most a twentieth."""
    draw = random.Random(0)
    passed = 0
    for _ in range(100):
        rows = [comparison(i, *draw.choice([(20, 10), (10, 20)])) for i in range(40)]
        guesses = [draw.random() for _ in rows]
        right = [float(guess > 0.5) for guess in guesses]
        passed += mean_interval([value - 0.5 for value in right])[1][0] > 0
    assert passed <= 5


def test_too_few_prompts_prove_nothing() -> None:
    rows = biased_rows(29, longer=0.5)
    found = audited(rows, *scores_of(rows, 1.0), Audit())
    assert found.accuracy == 1.0
    assert not found.passed
    assert found.reasons[0].startswith("only 29 held-out prompts, where 30 are the least that count")
    alike = [comparison(i % 29, 2, 1) if i % 2 else comparison(i % 29, 1, 2) for i in range(1000)]
    assert "only 29 held-out prompts" in audited(alike, *scores_of(alike, 1.0), Audit()).reasons[0]


def test_one_that_counting_words_beats_fails() -> None:
    def rows(first: int, count: int) -> list[Comparison]:
        return [
            Comparison(Prompt(user(f"{first + i}?")), *(("kind", "rude") if i % 2 else ("so kind", "rude")))
            for i in range(count)
        ]

    evidence = Evidence(rows(0, 50), training=rows(100, 50))
    worse = judged(measured(evidence, *scores_of(evidence.rows, 0.8)), Audit())  # type: ignore[arg-type]
    assert any("less than to count words" in reason for reason in worse.reasons)
    alike = judged(measured(evidence, *scores_of(evidence.rows, 1.0)), Audit())  # type: ignore[arg-type]
    assert alike.verdict == "passed with reservations"
    assert alike.best_trivial == TrivialRule(name="bag of words", accuracy=1.0)
    assert any("not proved better than counting words" in warning for warning in alike.warnings)


def test_what_would_mend_a_reward_follows_from_whether_it_is_trained() -> None:
    rows = [comparison(i, 2 + i % 2, 1 + 2 * (i % 2)) for i in range(200)]
    chance = measured(Evidence(rows), [float(i % 2) for i in range(200)], [0.5] * 200)
    (trained,) = judged(chance, Audit()).reasons
    assert trained.endswith("give it more or cleaner comparisons, more epochs or a better starting model")
    (made,) = judged(chance, Audit(), learns=False).reasons
    assert made.endswith("change its rules, its question or who is asked, or look for wrong labels")
    few = measured(Evidence(rows[:20]), [1.0] * 20, [0.0] * 20)
    assert judged(few, Audit()).reasons[0].endswith("give more comparisons, or raise the share that is held out")
    assert judged(few, Audit(), learns=False).reasons[0].endswith("give more comparisons")


def test_a_pass_on_what_may_have_been_learnt_has_a_reservation() -> None:
    rows = [comparison(i, 2 + i % 2, 1 + 2 * (i % 2)) for i in range(200)]
    right = measured(Evidence(rows), [1.0] * 200, [0.0] * 200)
    assert judged(right, Audit()).verdict == "passed"
    unknown = judged(right, Audit(), unseen=False)
    assert (unknown.verdict, unknown.warnings[0][:9]) == ("passed with reservations", "training:")
    assert judged(right, Audit(), learns=False, unseen=False).verdict == "passed"


def test_comparisons_of_one_prompt_widen_the_interval() -> None:
    alike = [comparison(i // 10, 2, 1) for i in range(100)]
    apart = [comparison(i, 2, 1) for i in range(100)]
    chosen = [1.0 if (i // 10) % 3 else -1.0 for i in range(100)]
    wide, narrow = (audited(rows, chosen, [0.0] * 100, FEW).interval for rows in (alike, apart))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def planted(bias: float, count: int = 1500) -> list[Comparison]:
    """Answers of which one has more good words; with probability `bias` the label is the longer one's instead."""
    draw = random.Random(3)

    def answer(good: int) -> str:
        words = ["good"] * good + ["bad"] * (6 - good) + ["so"] * draw.randrange(0, 12)
        draw.shuffle(words)
        return " ".join(words)

    rows: list[Comparison] = []
    while len(rows) < count:
        goods = draw.sample(range(7), 2)
        first, second = answer(goods[0]), answer(goods[1])
        if len(first) == len(second):
            continue
        better = first if goods[0] > goods[1] else second
        if draw.random() < bias:
            better = max(first, second, key=len)
        rows.append(Comparison(Prompt(user(f"{len(rows)}?")), better, second if better == first else first))
    return rows


def learnt(rows: Sequence[Comparison]) -> Rule:
    """A reward model in miniature: the good words and the length, fitted to the labels."""

    def features(text: str) -> Numbers:
        return np.array([text.count("good"), len(text) / 20])

    weights = fit(np.stack([features(row.chosen) - features(row.rejected) for row in rows]), ridge=1.0)
    return Rule(lambda conversation: float(features(conversation.answer) @ weights))


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_length_bias_planted_in_the_training_labels_is_found(bias: float) -> None:
    training, heldout = planted(bias)[:1000], planted(0.0)[1000:]
    found = examine(learnt(training), Evidence(heldout, training), Audit())
    assert found.length is not None
    assert found.length.gap is not None
    leans = [warning for warning in found.warnings if "leans towards longer" in warning]
    by_name = {row.name: row for row in found.perturbations}
    if bias:
        assert leans
        assert found.length.excess_interval[0] > 0
        assert found.length.gap > 0.1
        assert found.length_correlation > 0.3
        assert by_name["polite filler"].change > 0.3
    else:
        assert found.passed
        assert not leans
        assert abs(found.length.gap) < 0.05
        assert by_name["polite filler"].change < 0.05


def by_length(share: float, seed: int, scores: Callable[[Numbers, Numbers], Numbers], flips: float = 0.1) -> LengthBias:
    """Pairs whose truth prefers the longer answer in this share, with flipped labels, as a model scores them.

    Args:
        scores: of the truth's differences `[N]`, longer minus shorter, and the lengths', the model's.
    """
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 60, 800)
    truth = np.where(draw.random(800) < share, 1, -1) * np.abs(draw.normal(0, 1, 800))
    labels = np.where(truth > 0, 1.0, -1.0) * np.where(draw.random(800) < flips, -1.0, 1.0)
    differences = scores(truth, lengths.astype(float)) * labels
    rows = [comparison(i, *((60 + extra, 60) if label > 0 else (60, 60 + extra)))
            for i, (extra, label) in enumerate(zip(lengths.tolist(), labels, strict=True))]
    found = length_bias(rows, outcomes(differences.tolist(), [0.0] * 800), differences.tolist())
    assert found is not None
    return found


MODELS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "perfect": lambda truth, lengths: np.sign(truth),
    "judge": lambda truth, lengths: truth,  # by how much, as the exact judge says
    "graded": lambda truth, lengths: np.round(truth),  # and in grades, with ties
    "unsure": lambda truth, lengths: truth + np.random.default_rng(5).normal(0, 1, len(truth)),
}


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser intervals, for many audits in little time."""
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("share", [0.7, 0.8, 0.85])
@pytest.mark.parametrize("model", MODELS)
def test_no_model_is_accused_for_the_labels_errors(model: str, share: float) -> None:
    """The interval of the coefficient excludes 0 on the wrong side by chance in a fortieth of the audits."""
    found = [by_length(share, seed, MODELS[model]) for seed in range(8)]
    assert sum(leaning(each) is not None for each in found) <= 1


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("share", [0.7, 0.85])
def test_a_perfect_models_gap_is_what_the_flipped_labels_make(share: float) -> None:
    found = [by_length(share, seed, MODELS["perfect"]) for seed in range(8)]
    gap = np.mean([each.gap for each in found if each.gap is not None])
    right = [0.9 * part / (0.9 * part + 0.1 * (1 - part)) for part in (share, 1 - share)]
    assert gap == pytest.approx(right[0] - right[1], abs=0.03)
    assert found[0].prefers_longer == pytest.approx(share, abs=0.04)
    assert found[0].labels_longer == pytest.approx(0.1 + 0.8 * share, abs=0.04)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.85])
def test_a_model_that_takes_length_for_quality_is_accused(share: float) -> None:
    for seed in range(3):
        longer = by_length(share, seed, lambda truth, lengths: truth + lengths / 30)
        shorter = by_length(1 - share, seed, lambda truth, lengths: truth - lengths / 30)
        assert (leaning(longer), leaning(shorter)) == ("longer", "shorter")
        assert longer.excess_interval[0] > 0
        assert shorter.excess_interval[1] < 0


def test_less_often_right_than_a_coin_where_the_longer_is_preferred() -> None:
    """Right on 44% there and 93% elsewhere: over all it beats every rule, and what is amiss stands first."""
    rows = biased_rows(1000, longer=0.25)
    right = [i < 110 if i < 250 else i % 100 < 93 for i in range(1000)]
    found = audited(rows, [float(value) for value in right], [0.5] * 1000, Audit())
    assert found.when_longer == 0.44
    assert found.verdict == "passed with reservations"
    assert found.worst == found.warnings[0]
    assert "right on only 44.0% of comparisons where the longer answer is preferred" in found.warnings[0]


def test_perturbations_by_hand() -> None:
    rows = [
        Comparison(Prompt(user(f"{i}?")), f"Answer {i} is good here.", f"Answer {i}.") for i in range(20)
    ]
    longer = {row.name: row for row in perturbations(rows, [14.0] * 20, Rule(lambda each: len(each.answer)).score, 10)}
    assert {name: row.answers for name, row in longer.items()} == {change.name: 10 for change in CHANGES}
    wrong = {name: row.wrong for name, row in longer.items()}
    assert wrong == {
        "another prompt's answer appended": 1.0, "said twice": 1.0, "cut in half": 0.0, "empty": 0.0,
        "another prompt's answer instead": pytest.approx(wrong["another prompt's answer instead"]),
        "polite filler": 1.0, "lower case": 0.0, "capitals": 0.0, "spaces doubled": 0.0,
    }
    filler = len("Certainly! I am happy to help. ") + len(" I hope this helps.")
    assert longer["polite filler"].change == pytest.approx(filler / 14)
    assert longer["spaces doubled"].change == pytest.approx(5 / 14)  # four spaces and a line break


def test_a_constant_reward_notices_nothing() -> None:
    rows = [Comparison(Prompt(user(f"{i}?")), f"Answer {i} is good.", "No.") for i in range(5)]
    for row in perturbations(rows, [0.0] * 5, Rule(lambda each: 1.0).score, 5):
        assert row.wrong == (1.0 if row.rule == "must fall" else 0.0)


def test_drift_by_hand() -> None:
    rows = [comparison(i, 2, 1) for i in range(6)]
    new = [False] * 4 + [True] * 2
    old, latest = drift(rows, new, [1.0, 1.0, 1.0, -1.0, 1.0, 1.0], [2.0, 3.0, -1.0, -2.0, -1.0, -1.0])
    assert (old.comparisons, old.count, old.agreement, old.accuracy, old.predecessor) == ("old", 4, 0.75, 0.75, 0.5)
    assert (latest.comparisons, latest.count, latest.agreement, latest.lead) == ("new", 2, 0.0, 1.0)
    (alone,) = drift(rows[:4], new[:4], [1.0] * 4, [1.0] * 4)
    assert (alone.comparisons, alone.agreement) == ("old", 1.0)


@pytest.fixture(scope="module", params=[CHATML, BREAK_BEHIND], ids=["ours", "taken"])
def reward_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's folder with a random reward model in `model`."""
    folder = tmp_path_factory.mktemp("reward")
    shared = tokenizer()
    shared.chat_template = request.param
    model: Any = tiny("llama", reward=True, dtype=torch.float32)
    model.resize_token_embeddings(len(shared))
    model.config.pad_token_id = shared.pad_token_id
    model.config.problem_type = "regression"
    save(model, shared, folder / "model")
    return folder


def some(count: int) -> list[Comparison]:
    return [
        Comparison(Prompt(user(f"Question {i}?")), "Yes, " * (i % 5) + "so it is.", "No" + ", no" * (i % 3) + ".")
        for i in range(count)
    ]


def test_scores_are_the_same_in_every_way(reward_folder: Path) -> None:
    asked = [Conversation(row.prompt, answer) for row in some(4) for answer in (row.chosen, row.rejected)]
    found = consistency(reward_folder / "model", asked, 1e-3)
    assert [row.way for row in found[:4]] == [
        "packed, prompts shared", "plain transformers, alone", "plain transformers, padded on the right",
        "plain transformers, padded on the left",
    ]
    assert all(row.holds for row in found)
    assert all(row.difference is not None and row.difference < 1e-4 for row in found[:4])


def test_other_tools_read_the_same_scores(reward_folder: Path) -> None:
    """A conversation rendered whole and scored at its end: by the pipeline of transformers, and by TRL's GRPO."""
    rows = [Conversation(row.prompt, row.chosen) for row in some(6)]
    ours = RewardModel(reward_folder / "model", precise=True).raw(rows)
    assert max(ours) - min(ours) > 0.05, "the scores must differ for the comparison to mean something"
    words = AutoTokenizer.from_pretrained(reward_folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder / "model")
    turns = [
        [*map(dataclasses.asdict, row.prompt.messages), {"role": "assistant", "content": row.answer}] for row in rows
    ]
    texts = [trl.apply_chat_template({"messages": each}, words)["text"] for each in turns]
    batch = words(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(ours, abs=1e-4)
    judge: Any = pipeline("text-classification", model=model, tokenizer=words)
    assert [each["score"] for each in judge(texts, batch_size=3)] == pytest.approx(ours, abs=1e-4)


def test_what_looks_like_a_special_token_is_not_compared(reward_folder: Path) -> None:
    forged = Conversation(Prompt(user("Who?")), "Me.<|im_end|>")
    assert consistency(reward_folder / "model", [forged], 1e-3) == []
    plain = Conversation(Prompt(user("Who?")), "Me.")
    assert consistency(reward_folder / "model", [forged, plain], 1e-3) == consistency(
        reward_folder / "model", [plain], 1e-3
    )


@pytest.mark.parametrize("pad", [None, "q"])
def test_a_wrong_padding_token_fails_the_audit(reward_folder: Path, tmp_path: Path, pad: str | None) -> None:
    """A folder whose padding is missing, or a token of the text: right alone, wrong in a batch."""
    shared = tokenizer()
    folder = tmp_path / "model"
    save(load_reward(reward_folder / "model", fresh=False), shared, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = None if pad is None else shared.convert_tokens_to_ids(pad)
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        Comparison(Prompt(user(f"{i}?")), "Yes" + "!" * i, "No.") for i in range(4)
    ]
    found = examine(RewardModel(folder), Evidence(rows), FEW)
    assert not found.passed
    assert any("padded on the right" in reason for reason in found.reasons)


def test_the_stage_leaves_a_record(reward_folder: Path, tmp_path: Path) -> None:
    rows = some(60)
    write(tmp_path / "comparisons_train.jsonl", rows[:20])
    write(tmp_path / "comparisons_heldout.jsonl", rows[20:])
    write(tmp_path / "comparisons_heldout_new.jsonl", rows[50:])
    context = StageContext(tmp_path, tmp_path, Silent(), 1, 60.0)
    reward = open_reward(reward_folder)
    metrics = audit(context, Audit(perturbed=8), tmp_path, reward, predecessor=reward)
    record = AuditRecord.model_validate_json((tmp_path / "audit.json").read_text())
    assert record == metrics == audit_beside(tmp_path)
    scores = reward.score([Conversation(row.prompt, text) for row in rows[20:] for text in (row.chosen, row.rejected)])
    assert record.coverage is not None
    assert record.coverage.score == pytest.approx((min(scores), max(scores)), abs=1e-5)
    assert [(row.comparisons, row.count, row.agreement) for row in record.drift] == [("old", 30, 1.0), ("new", 10, 1.0)]
    assert "bag of words" in record.baselines
    assert record.perturbations[0].answers == 8
    assert AuditRecord.model_validate(json.loads(json.dumps(metrics.model_dump(mode="json")))) == metrics


def test_an_audit_beside_a_reward_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    assert audit_beside(tmp_path) is None
    for text, why in (("{", "is not JSON"), ('{"comparisons": 1}', "accuracy: Field required"), ("[]", "no object")):
        (tmp_path / "audit.json").write_text(text)
        with pytest.raises(RunError, match=f"{why}.*; remove the file, or audit the reward again"):
            audit_beside(tmp_path)


def test_a_policy_is_no_reward_model(policy_folder: Path) -> None:
    assert load_policy(policy_folder / "model")  # it can be opened, but not audited
    with pytest.raises(ValueError, match="is not a reward model"):
        consistency(policy_folder / "model", [Conversation(Prompt(user("a")), "b")], 1e-3)


def test_a_difference_that_is_only_shown_always_holds() -> None:
    assert Consistency(way="in bfloat16", difference=1.0, tolerance=None).holds
    assert not Consistency(way="packed", difference=None, tolerance=1e-3).holds
