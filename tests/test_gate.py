"""The gate's verdict: every way to pass it and to fail."""

from __future__ import annotations

import itertools
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.deployment import watcher
from triptych.evaluate import lengths
from triptych.evaluate.answers import of_round
from triptych.evaluate.gate import PROMOTED, REJECTED, UNDECIDED, Decided, Gate, lost, verdict
from triptych.evaluate.lengths import controlled, controlled_gain
from triptych.evaluate.measurement import by_task
from triptych.recipe import load
from triptych.records import Prompt, user
from triptych.statistics.scores import PairedScore
from triptych.statistics.significance import chance, level
from triptych.storybook.judge import ExactJudge

EVEN: dict[str, Any] = {
    "win_rate": 0.6, "interval": (0.55, 0.65), "kl": 3.0, "judge": "exact judge", "decided_by": "exact judge",
    "length_before": 20.0, "length_after": 22.0, "level": 0.025, "lost_tasks": {},
}


def outcomes(wins: int, losses: int, ties: int = 0) -> list[float]:
    return [1.0] * wins + [0.0] * losses + [0.5] * ties


WINNER = outcomes(180, 120)  # p 0.0003


def decided(config: Gate | None = None, won: list[float] = WINNER, **numbers: Any) -> tuple[str, str]:
    found: dict[str, Any] = {"prompts": len(won), "win_rate": sum(won) / len(won), "p_value": chance(won)}
    return verdict(config or Gate(), Decided.model_construct(**(EVEN | found | numbers)), won)


def test_a_win_rate_above_one_half_promotes() -> None:
    decision, reason = decided()
    assert decision == PROMOTED
    assert reason == (
        "the candidate is preferred by exact judge: win rate 60.0% (95% interval 55.0% to 65.0%), p 0.00032"
    )


def test_the_decision_is_the_sign_tests_to_the_last_prompt() -> None:
    # Of 100 prompts 60 wins have a p of 0.0284, 61 one of 0.0176 (binomial tables); ties change neither.
    assert chance(outcomes(60, 40)) == pytest.approx(0.02844, abs=1e-5)
    assert chance(outcomes(61, 39, ties=50)) == pytest.approx(0.01760, abs=1e-5)
    assert decided(won=outcomes(60, 40))[0] == UNDECIDED
    assert decided(won=outcomes(61, 39))[0] == decided(won=outcomes(61, 39, ties=50))[0] == PROMOTED
    assert decided(won=outcomes(61, 39), level=level(0.05, failures=1))[0] == UNDECIDED
    assert "(98.33% interval" in decided(level=level(0.05, failures=1))[1]
    assert decided(won=outcomes(39, 61))[0] == REJECTED
    assert decided(won=outcomes(40, 60))[0] == UNDECIDED


def test_winning_on_every_one_of_a_few_prompts_proves_nothing() -> None:
    decision, reason = decided(won=outcomes(5, 0))
    assert decision == UNDECIDED
    assert reason == "5 prompts cannot prove anything at this round's level, 0.025; 6 are the least"
    assert decided(won=outcomes(6, 0))[0] == PROMOTED
    assert "0.0083; 7 are the least" in decided(won=outcomes(6, 0), level=level(0.05, failures=1))[1]


def test_a_win_rate_below_one_half_rejects() -> None:
    decision, reason = decided(won=outcomes(120, 180))
    assert decision == REJECTED
    assert reason.startswith("the champion is preferred by exact judge: win rate 40.0%")


def test_a_winner_that_lost_a_task_is_rejected() -> None:
    def found(wins: int, of: int, config: Gate | None = None) -> tuple[str, str]:
        config = config or Gate()
        tasks = ["story"] * 300 + ["question"] * of
        won = outcomes(250, 50) + outcomes(wins, of - wins)
        return decided(config, won, tasks=by_task(tasks, won), lost_tasks=lost(config, tasks, won))

    decision, reason = found(21, 60)
    assert decision == REJECTED
    assert reason == (
        "the champion is preferred on question by exact judge: win rate 35.0% of 60 prompts (p 0.014), under the "
        "budget of 40%"
    )
    assert found(7, 20)[0] == PROMOTED  # that may be chance
    assert found(2, 12)[0] == PROMOTED  # too few prompts to count
    assert found(180, 400)[0] == PROMOTED  # that is within the budget
    assert found(5, 60, Gate(min_task_win_rate=None))[0] == PROMOTED


def test_one_lost_prompt_of_a_rare_task_is_no_lost_task() -> None:
    tasks, won = ["story"] * 299 + ["rare"], [*outcomes(213, 86), 0.0]
    assert sum(won) / len(won) == 0.71
    assert lost(Gate(), tasks, won) == {}
    assert decided(won=won, tasks=by_task(tasks, won), lost_tasks=lost(Gate(), tasks, won))[0] == PROMOTED


@pytest.mark.parametrize("size", [3, 25])
def test_equal_candidates_lose_no_task_of_twenty(size: int) -> None:
    draw = np.random.default_rng(4)
    tasks = [f"task {i}" for i in range(20) for _ in range(size)]
    accused = sum(bool(lost(Gate(), tasks, draw.integers(0, 2, len(tasks)).astype(float).tolist())) for _ in range(300))
    assert accused <= 15 + 2 * 3.8  # at most 5%, and two standard deviations of 300 draws


def test_a_run_of_equal_candidates_promotes_none_of_them() -> None:
    draw = np.random.default_rng(5)
    ever = 0
    for history in range(200):
        failures, promoted = 0, 0
        for _ in range(20):
            won = draw.choice([0.0, 0.5, 1.0], 400, p=[0.5, 0.0, 0.5] if history % 2 else [0.3, 0.4, 0.3]).tolist()
            decision, _ = decided(won=won, level=level(Gate().error, failures))
            promoted += decision == PROMOTED
            failures += decision != PROMOTED
        ever += promoted > 0
    assert ever <= 10 + 2 * 3.1  # at most 5%, and two standard deviations of 200 histories


def test_what_is_spent_adds_up_to_the_runs_error() -> None:
    spent = [level(0.05, failures) for failures in range(10_000)]
    assert spent[0] == 0.025
    assert sum(spent) == pytest.approx(0.05, abs=1e-5)
    assert sum(spent) < 0.05


def test_an_honest_gain_is_found_with_400_prompts() -> None:
    draw = np.random.default_rng(6)
    samples = (draw.random((300, 400)) < 0.6).astype(float)
    first = sum(decided(won=won)[0] == PROMOTED for won in samples.tolist())
    third = sum(decided(won=won, level=level(0.05, failures=2))[0] == PROMOTED for won in samples.tolist())
    assert first >= 0.95 * 300  # 98% by the binomial distribution, as docs/evaluate.md says
    assert 0.87 * 300 <= third < first  # 93%


def test_shares_of_people_are_tested_exactly() -> None:
    won = [1.0, 2 / 3, 1.0, 1 / 3, 0.5, 0.75, 1.0, 0.2]
    away = np.array(won) - 0.5
    flips = np.array(list(itertools.product([-1, 1], repeat=len(won))))
    assert chance(won) == pytest.approx(np.mean(flips @ np.abs(away) >= away.sum() - 1e-9))
    assert chance([0.5] * 4) == 1.0
    assert chance([0.9] * 1500 + [0.1] * 1500) == pytest.approx(0.5, abs=0.02)


def test_each_round_takes_other_prompts_while_there_are_any() -> None:
    pool = [Prompt(user(f"question {i}")) for i in range(10)]

    def taken(size: int, round: int) -> tuple[list[int], int | None]:
        prompts, again = of_round(pool, size, round)
        return [pool.index(prompt) for prompt in prompts], again

    assert [taken(4, round) for round in (1, 2, 3)] == [
        ([0, 1, 2, 3], None), ([4, 5, 6, 7], None), ([8, 9], None)  # the rest is half a portion
    ]
    assert taken(4, 4) == ([0, 1, 2, 3], 1)
    assert taken(4, 8) == ([4, 5, 6, 7], 2)
    assert (taken(7, 2), taken(6, 2)) == (([0, 1, 2, 3, 4, 5, 6], 1), ([6, 7, 8, 9], None))
    assert (taken(300, 1), taken(300, 2)) == ((list(range(10)), None), (list(range(10)), 1))


def test_a_win_rate_that_is_not_told_from_one_half_decides_nothing() -> None:
    decision, reason = decided(won=outcomes(160, 140), interval=(0.477, 0.587))
    assert decision == UNDECIDED
    assert reason == (
        "win rate 53.3% (95% interval 47.7% to 58.7%) is not told from one half: p 0.14, and the round's level is "
        "0.025; about 861 prompts would, at this rate"  # (1.96 * 0.4989 / 0.0333)^2
    )
    decision, reason = decided(won=outcomes(150, 150))
    assert decision == UNDECIDED
    assert reason.endswith("is exactly one half, where no number of prompts would tell")


def test_a_winner_outside_the_kl_budget_is_rejected() -> None:
    config = Gate(max_kl=2.5)
    decision, reason = decided(config)
    assert decision == REJECTED
    assert reason == "KL of 3.0 nats per answer is over the budget of 2.5"
    assert decided(config, kl=2.5)[0] == PROMOTED


def test_a_winner_by_length_is_rejected() -> None:
    decision, reason = decided(length_after=31.0)
    assert decision == REJECTED
    assert reason == "answers are 1.55 times as long, over the budget of 1.5"
    assert decided(length_after=30.0)[0] == PROMOTED


def test_a_winner_by_saying_little_is_rejected() -> None:
    decision, reason = decided(length_after=9.0)
    assert decision == REJECTED
    assert reason == "answers are 0.45 times as long, under the budget of 0.5"
    assert decided(length_after=10.0)[0] == PROMOTED
    assert decided(Gate(min_length_ratio=None), length_after=1.0)[0] == PROMOTED


def test_a_winner_that_forgot_plain_text_is_rejected() -> None:
    decision, reason = decided(bits_before=1.0, bits_after=1.3)
    assert decision == REJECTED
    assert reason.startswith("plain text takes 1.30 times as many bits, over the budget of 1.25")
    assert decided(bits_before=1.0, bits_after=1.2)[0] == PROMOTED
    assert decided(Gate(max_bits_ratio=None), bits_before=1.0, bits_after=9.0)[0] == PROMOTED
    assert decided(bits_before=1.0, bits_after=float("nan"))[0] == REJECTED


def test_at_equal_length_a_win_by_length_is_none() -> None:
    draw = np.random.default_rng(1)
    extra = draw.normal(10, 20, size=2000).round()  # the candidate is longer, and length is all that wins
    won = [float(draw.random() < 1 / (1 + math.exp(-2.5 * math.tanh(more / 20)))) for more in extra]
    assert sum(won) / len(won) > 0.6
    found = controlled(won, [50 + int(more) for more in extra], [50] * len(extra))
    assert found
    rate, (low, high) = found
    assert rate == pytest.approx(0.5, abs=0.05)  # three standard errors of 2,000 prompts
    assert low < rate < high


def test_where_length_does_not_matter_nothing_is_controlled_away() -> None:
    draw = np.random.default_rng(2)
    won = (draw.random(2000) < 0.7).astype(float).tolist()
    tokens = draw.integers(20, 60, size=2000).tolist()
    found = controlled(won, tokens, tokens[::-1])
    assert found
    rate, (low, _) = found
    assert rate == pytest.approx(sum(won) / 2000, abs=0.02)
    assert low > 0.65
    alike = controlled([1.0, 1.0, 0.0, 1.0] * 100, [7] * 400, [7] * 400)
    assert alike
    assert alike[0] == pytest.approx(0.75, abs=0.001)
    all_won = controlled([1.0] * 20, list(range(20)), [9] * 20)
    assert all_won
    assert all_won[0] > 0.9


@pytest.mark.parametrize("truth", [0.0, -0.3])
def test_a_gain_at_equal_length_is_what_length_does_not_explain(truth: float) -> None:
    draw = np.random.default_rng(4)
    held = 0
    for _ in range(40):
        shorter = draw.normal(-15, 20, size=300).round()
        gains = truth + 0.8 * np.tanh(shorter / shorter.std()) + draw.normal(0, 0.5, size=300)
        found = controlled_gain(gains.tolist(), [200 + int(each) for each in shorter], [200] * 300)
        assert found
        assert gains.mean() < truth - 0.2
        held += found[1][0] <= truth <= found[1][1]
    assert held >= 35  # of 40 at 95%, less two deviations
    assert controlled_gain([1.0, 3.0], [5, 7], [5, 7]) == (2.0, (1.0, 3.0))
    assert controlled_gain([1.0] * 20, [9] * 20, [5] * 20) is None


@pytest.mark.parametrize("extra", [0, 15, -15, 60, -60])
def test_the_win_rate_at_equal_length_is_told_only_where_lengths_overlap(
    extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "RESAMPLES", 200)
    draw = np.random.default_rng(7)
    held, trials = 0, 40
    for _ in range(trials):
        more = draw.normal(extra, 20, size=300).round()
        truth = 1 / (1 + np.exp(-(math.log(4) - 0.8 * np.tanh(more / 20))))  # 0.80 at equal length
        won = (draw.random(300) < truth).astype(float).tolist()
        found = controlled(won, [200 + int(each) for each in more], [200] * 300)
        if abs(extra) == 60:
            assert found is None  # three deviations longer, or shorter, throughout
        else:
            assert found
            held += found[1][0] <= 0.8 <= found[1][1]
    assert abs(extra) == 60 or held >= 0.9 * trials - 2 * 1.9  # two standard deviations


def test_a_distance_that_is_no_number_is_over_every_budget() -> None:
    assert decided(Gate(max_kl=2.5), kl=float("nan"))[0] == REJECTED


def test_who_decides_does_not_watch_unless_it_holds_on_any_prompts() -> None:
    judge, reward = ExactJudge(), ExactJudge()
    tiny, starter = Path(__file__).parent / "tiny.yaml", Path(str(files("triptych"))) / "starter" / "recipe.yaml"
    rules = "gate.judge={kind: rules, rules: [{rule: length, most: 12}]}"
    model = "gate.judge={kind: judge, endpoint: {url: 'http://127.0.0.1:9/v1', model: m}}"
    assert watcher(load(tiny), judge, reward) is watcher(load(tiny, [rules]), judge, reward) is judge
    assert watcher(load(tiny, [model]), judge, reward) is watcher(load(starter), judge, reward) is reward
    people = load(starter, ["gate.people=verdicts.jsonl"])
    assert watcher(people, judge, reward) is reward  # the judge says at the end what was gained
    assert watcher(people, judge, None) is judge


def test_a_winner_that_people_may_like_less_is_rejected() -> None:
    def held(low: float, config: Gate | None = None, **more: Any) -> tuple[str, str]:
        score = PairedScore(before=0.2, after=0.2 + low + 0.1, gain=low + 0.1, interval=(low, low + 0.2), prompts=300)
        return decided(config, preferences=score, **more)

    assert held(-0.09)[0] == PROMOTED
    decision, reason = held(-0.11)
    assert decision == REJECTED
    assert reason == (
        "people's preferences may be lost: by the reward model trained apart the candidate's score differs by -0.01 "
        "(95% interval -0.11 to +0.09), and the budget is -0.1"
    )
    shorter = held(-0.11, preferences_at_equal_length=(0.02, (-0.05, 0.09)), length_before=20.0, length_after=15.0)
    assert shorter == (
        REJECTED, reason + "; at equal length it differs by +0.02 (-0.05 to +0.09), and answers are 0.75 times as long"
    )
    assert held(-0.11, Gate(max_preference_loss=0.2))[0] == PROMOTED
    assert held(math.nan)[0] == REJECTED


def test_a_paired_score_is_that_of_the_differences() -> None:
    score = PairedScore.of([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert (score.before, score.after, score.gain) == (2.0, 2.5, 0.5)
    assert score.interval == (0.5, 0.5)
