"""The curve of over-optimisation, and what a round says of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.improve.checkpoints import JUDGED, UNLIMITED, Limits, PolicyCheckpoints
from triptych.improve.overoptimisation import fitted

KLS = [0.25, 1.0, 2.25, 4.0, 9.0, 16.0]


def everywhere(scores: list[float]) -> list[list[float]]:
    """The same on each of eight prompts."""
    return [[score] * 8 for score in scores]


@pytest.mark.parametrize("best_of_n", [True, False])
def test_a_curve_is_found_again(best_of_n: bool) -> None:
    def score(kl: float) -> float:
        d = math.sqrt(kl)
        return 0.3 + d * (0.4 - 0.1 * (d if best_of_n else math.log(d)))

    found = fitted(KLS, everywhere([score(kl) for kl in KLS]), [0.3] * 8, best_of_n=best_of_n)
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((0.4, 0.1))
    assert found.residual == pytest.approx(0, abs=1e-9)
    if best_of_n:
        assert found.peak == pytest.approx(4.0)  # d = α/(2β) = 2
        nearby = [score(4.0 * factor) for factor in (0.9, 1.0, 1.1)]
        assert nearby[1] == max(nearby)
    else:  # exp(α/β − 1) = exp(3) lies behind the last point, d = 4, and is not told
        assert found.peak is None


def test_a_policys_curve_turns_over_where_it_says() -> None:
    gains = [math.sqrt(kl) * (0.2 - 0.1 * math.log(math.sqrt(kl))) for kl in KLS]
    found = fitted(KLS, everywhere(gains), [0.0] * 8, best_of_n=False)
    assert found is not None
    assert found.peak == pytest.approx(math.exp(1) ** 2)
    assert found.interval == pytest.approx((math.exp(1) ** 2,) * 2)


def judged(truth: list[float], draw: np.random.Generator) -> list[list[float]]:
    """The judge's scores of 96 prompts at each point: a prompt has its own difficulty, an answer its own luck."""
    difficulty = draw.normal(0, 0.28, size=96)
    return [(mean + difficulty + draw.normal(0, 0.28, size=96)).tolist() for mean in truth]  # deviation 0.4


def watched(truth: list[float], draw: np.random.Generator) -> PolicyCheckpoints:
    """A round whose reward rises, measured at its start and at six points."""
    rows: list[dict[str, Any]] = [
        {"validation_reward": step, "validation_kl": 1.5 * step, "validation_length": 20.0, "entropy": 2.0,
         JUDGED: scores, "validation_judge": sum(scores) / len(scores)}
        for step, scores in enumerate(judged(truth, draw))
    ]
    return PolicyCheckpoints(12, start=rows[0], curve=[{"step": 2 * i, **row} for i, row in enumerate(rows)][1:])


def test_a_judges_flat_score_is_not_said_to_fall_and_has_no_peak() -> None:
    draw = np.random.default_rng(1)
    rounds = [watched([0.6] * 7, draw) for _ in range(200)]
    assert sum(bool(each.alarms()) for each in rounds) <= 10  # at most 5%
    for best_of_n in (True, False):
        peaks = [each.overoptimisation(best_of_n=best_of_n) for each in rounds]
        assert sum(found is not None and found.peak is not None for found in peaks) <= 10 + 3.1  # 5%, one deviation


def test_a_real_fall_is_found() -> None:
    draw = np.random.default_rng(2)
    rounds = [watched([0.6, 0.66, 0.7, 0.7, 0.67, 0.62, 0.55], draw) for _ in range(60)]
    assert sum(bool(each.alarms()) for each in rounds) >= 45  # 0.15 of it
    peaks = [found for each in rounds if (found := each.overoptimisation(best_of_n=True))]
    told = [found for found in peaks if found.peak is not None and found.interval is not None]
    assert len(told) > 30
    assert all(found.interval[0] <= found.peak <= found.interval[1] for found in told)  # type: ignore[index, operator]


def test_a_curve_that_only_rises_has_no_peak_and_few_points_no_curve() -> None:
    gains = [math.sqrt(kl) * (0.1 + 0.02 * math.sqrt(kl)) for kl in KLS]
    found = fitted(KLS, everywhere(gains), [0.0] * 8, best_of_n=True)
    assert found is not None
    assert (found.peak, found.interval) == (None, None)
    assert fitted([0.0, 1.0, 2.0, 3.0], everywhere([0.0, 1.0, 1.0, 1.0]), [0.0] * 8, best_of_n=False) is None


def ran(
    scratch: Path, keep: str, scores: list[float], limits: Limits = UNLIMITED, **numbers: Any
) -> PolicyCheckpoints:
    """The judge's score at the reference, then at steps 2, 4 and 6; what step 2 was is gone."""
    (scratch / "policy-4.pt").touch()
    usual: dict[str, list[float]] = {
        "validation_reward": [0.0, 1.0, 2.0, 3.0], "validation_kl": [0.0, 1.0, 4.0, 9.0],
        "validation_length": [20.0] * 4, "entropy": [2.0, 2.0, 1.9, 1.8], "sampler_mismatch": [0.0] * 4,
    }
    columns = usual | numbers | {"validation_judge": scores}
    rows: list[dict[str, Any]] = [
        {name: values[i] for name, values in columns.items()} | {JUDGED: [scores[i]] * 8} for i in range(4)
    ]
    curve = [{"step": 2 * i, **rows[i]} for i in range(1, 4)]
    return PolicyCheckpoints(6, folder=scratch if keep == "best" else None, limits=limits, start=rows[0], curve=curve)


def test_the_judges_best_is_kept_and_over_optimisation_is_said(tmp_path: Path) -> None:
    turned = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.4])
    assert turned.kept == 4
    (alarm,) = turned.alarms()
    assert alarm.startswith("over-optimised: from step 4 to 6 the reward rose by 1.00 while the judge's score fell by")
    last = ran(tmp_path, "last", [0.5, 0.6, 0.7, 0.4])
    assert (last.kept, last.alarms()) == (6, [alarm])
    assert ran(tmp_path, "best", [0.5, 0.9, 0.7, 0.4]).kept == 4  # the best whose weights are there
    assert ran(tmp_path, "best", [0.5, math.nan, 0.7, 0.4]).kept == 4
    rising = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.8])
    assert (rising.kept, rising.alarms()) == (6, [])
    assert ran(tmp_path, "best", [0.5, 0.7, 0.7, 0.7]).kept == 6  # of equals the one that learnt longest


def test_weights_that_an_earlier_attempt_left_are_not_those_of_a_later_one(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"policy-{step}.pt").write_bytes(b"of the attempt before")
    start = {"validation_kl": 0.0, "validation_length": 9.0, "validation_judge": 0.5}
    curve = [start | {"step": 2, "validation_judge": 0.7}]  # what the training checkpoint of step 2 or 3 had
    checkpoints = PolicyCheckpoints(8, folder=tmp_path, start=start, curve=curve)
    checkpoints.remember(start | {"step": 4, "validation_judge": 0.6}, dict)
    assert [path.name for path in tmp_path.iterdir()] == ["policy-2.pt"]


def test_the_rewards_best_is_kept_where_no_judge_may_watch(tmp_path: Path) -> None:
    found = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.4], validation_reward=[0.0, 1.0, 3.0, 2.0])
    for row in (found.start, *found.curve):
        del row["validation_judge"], row[JUDGED]
    unjudged = PolicyCheckpoints(6, folder=tmp_path, watcher="reward", start=found.start, curve=found.curve)
    assert (unjudged.kept, unjudged.alarms(), unjudged.overoptimisation(best_of_n=True)) == (4, [], None)
    bounded = PolicyCheckpoints(6, folder=tmp_path, limits=Limits(kl=1.0), watcher="reward", start=found.start,
                         curve=found.curve)
    assert [row["step"] for row in bounded.best] == [2]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"entropy": [2.0, 2.0, 1.0, 0.5]}, "entropy fell from 2.00 to 0.50 nats a token, at step 6 below 0.3 of "),
        ({"sampler_mismatch": [0.0, 0.0, 0.3, 0.0]}, "sampler and trainer differ by up to 0.30 nats a token at step 4"),
        ({"validation_length": [20.0, 25.0, 30.0, 40.0]}, "answers grew from 20 to 40 tokens by step 6, over 1.5"),
        ({"cut": [0.0, 0.1, 0.3, 0.8]}, "40% of the answers were cut at max_tokens in the last steps, 10% in the"),
        ({"cut": [0.0, 0.6, 0.5, 0.6]}, "57% of the answers were cut at max_tokens in the last steps, 60% in the"),
    ],
)
def test_other_limits_are_named(tmp_path: Path, numbers: dict[str, Any], words: str) -> None:
    (alarm,) = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.8], **numbers).alarms()
    assert alarm.startswith(words)


def test_a_share_of_cut_answers_that_stays_is_no_alarm(tmp_path: Path) -> None:
    assert ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.8], cut=[0.0, 0.4, 0.6, 0.4]).alarms() == []


def test_skipped_steps_are_named_with_their_prompts(tmp_path: Path) -> None:
    found = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.8])
    found.curve[0] |= {"fault": "reward", "rows": [7, 3]}
    found.curve[1] |= {"fault": "loss", "rows": [3, 9]}
    assert found.alarms() == [
        "2 of 3 steps were skipped (2, 4), the last because its loss is not finite: look at the prompts in lines 3, 7, "
        "9, or lower the learning rate"
    ]


def test_a_policy_beyond_the_gates_budgets_is_no_candidate(tmp_path: Path) -> None:
    longer = {"validation_length": [20.0, 25.0, 29.0, 40.0]}
    stopped = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.9], Limits(max_length_ratio=1.5), **longer)
    assert stopped.kept == 4
    (alarm,) = stopped.alarms()
    assert alarm.startswith("stopped at step 6 of 6: answers 2.00 times as long, over gate.max_length_ratio, 1.5: ")
    assert alarm.endswith("or lower the learning rate; the candidate is the policy of step 4")

    shorter = {"validation_length": [20.0, 18.0, 12.0, 8.0]}
    (alarm,) = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.9], Limits(min_length_ratio=0.5), **shorter).alarms()
    assert alarm.startswith("stopped at step 6 of 6: answers 0.40 times as long, under gate.min_length_ratio, 0.5: ")

    far = ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.9], Limits(kl=3.0))
    assert [row["step"] for row in far.best] == [2]  # whose weights are gone
    assert far.alarms()[0].startswith("stopped at step 6 of 6: 9.0 nats from the champion, over gate.max_kl, 3: raise")
    assert far.alarms()[0].endswith("no policy before it was within")
    assert far.kept == 6  # the gate says no
    just = Limits(kl=9.0, min_length_ratio=1.0, max_length_ratio=1.0)
    assert ran(tmp_path, "best", [0.5, 0.6, 0.7, 0.9], just).alarms() == []
    assert ran(tmp_path, "best", [0.5] * 4, Limits(kl=9.0), validation_kl=[0.0, 1.0, 2.0, math.nan]).kept == 4
