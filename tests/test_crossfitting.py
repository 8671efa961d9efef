"""Few comparisons are cross-fitted: every one is held out once, from a model that has not seen its prompt."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import by_plan
from test_check import rows, write_recipe
from triptych import results
from triptych.audit.crossfitted import CrossFitted, cross_fitted_words
from triptych.audit.record import AuditRecord
from triptych.audit.stage import Audit, audit
from triptych.cycle import cycle, plan
from triptych.data.files import read_comparisons, write
from triptych.data.folder import DataFolder
from triptych.data.folds import FOLDS, fold_of
from triptych.data.splits import form
from triptych.errors import DataError
from triptych.family import Family
from triptych.feedback.accumulation import accumulate
from triptych.pipeline.runner import Runner, Until
from triptych.pipeline.stage import StageContext
from triptych.preflight import check
from triptych.preflight.amounts import prompts_for
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Comparison, Conversation, Prompt
from triptych.release.verification import verify
from triptych.reward.folding import LeaveOut, leave_out


def preferences(path: Path, count: int) -> Path:
    """Pairs of equal lengths of which the one with the better word is preferred."""
    draw = random.Random(0)
    names = ["red", "tin", "oak", "sea", "sky", "fog"]
    content = []
    for number in range(count):
        first, second = draw.sample(names, 2)
        content.append({
            "prompt": f"Which is {number}?", "chosen": f"good {first} {second}", "rejected": f"poor {second} {first}",
        })
    return rows(path, content)


def recipe_of(folder: Path, count: int, **changes: Any) -> Path:
    """A recipe of 60 comparisons or so, with rules at the gate."""
    rules = {"kind": "rules", "rules": [{"rule": "length", "most": 12}]}
    small: dict[str, Any] = {
        "reward": {"learning_rate": 3e-3, "batch_pairs": 4, "epochs": 4, "context": 128},
        "instruct": {"data": ["answers.jsonl"], "epochs": 1, "context": 128},
        "gate": {"judge": rules, "prompts": 20},
        "improve": {
            "prompts": ["questions.jsonl"], "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_tokens": 4,
            "eval_prompts": 8,
        },
        "decoding": {"max_tokens": 4, "temperature": 1.0}, "evaluate": {"shots": 1, "best_of": 2},
        "splits": {"test": 20, "gate": 20, "validation": 8},
    }
    path = write_recipe(folder, **small | changes)
    preferences(folder / "preferences.jsonl", count)
    return path


def run(path: Path, *overrides: str) -> tuple[Family, Runner]:
    torch.manual_seed(0)
    recipe = load(path, overrides)
    runner, family = Runner(path.parent / "run", Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    results.write(recipe, family, runner)
    return family, runner


def test_sixty_comparisons_and_rules_run_from_start_to_end(tmp_path: Path) -> None:
    family, runner = run(recipe_of(tmp_path, 60))
    assert verify(tmp_path / "run" / "release") == []
    reward = family.rounds[0].reward
    assert reward is not None
    audited = reward.audit
    assert audited is not None
    record = audited.result
    assert (record.folds, record.comparisons, record.prompts) == (FOLDS, 60, 60)
    assert record.passed
    assert "cross-fitted" in record.headline
    assert any(warning.startswith("cross-fitted: ") for warning in record.warnings)
    assert "cross-fitted" in (tmp_path / "run" / "release" / "reward" / "README.md").read_text()
    assert "cross-fitted" in (tmp_path / "run" / "report.html").read_text()
    planned = [stage.name for stage in plan(load(tmp_path / "recipe.yaml", ["splits.cross_fit=true"]))]
    assert by_plan(artifact.name for artifact in runner.done) == planned
    assert f"round-1/reward/fold-{FOLDS - 1}" in planned


def some(count: int) -> list[Comparison]:
    """Two comparisons for each prompt."""
    return [
        Comparison(Prompt.of(f"What is {number // 2}?"), f"good {number}", f"poor {number}") for number in range(count)
    ]


def context(folder: Path, seed: int = 1) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(folder, folder, Silent(), seed, checkpoint_seconds=60.0)


def test_every_comparison_is_held_out_once_and_no_prompt_crosses_folds(tmp_path: Path) -> None:
    everything = some(60)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "comparisons_judge.jsonl", everything)
    held: list[Comparison] = []
    for fold in range(FOLDS):
        output = tmp_path / str(fold)
        leave_out(context(output), LeaveOut(fold=fold), tmp_path / "data", share="judge")
        files = DataFolder(output)
        train, heldout = files.comparisons("train").read(), files.comparisons("heldout").read()
        assert not set(map(form, train)) & set(map(form, heldout))
        assert len(train) + len(heldout) == 60
        held += heldout
    assert sorted(held, key=str) == sorted(everything, key=str)


def test_a_fold_that_all_comparisons_are_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "comparisons_train.jsonl", some(2))
    fold = fold_of(some(2)[0], 1)
    with pytest.raises(DataError, match="too few different prompts to cross-fit"):
        leave_out(context(tmp_path / "out"), LeaveOut(fold=fold), tmp_path / "data")


class Memory:
    """A reward that knows the labels of what it was trained on and nothing else."""

    name = "memory"
    identity = "memory"

    def __init__(self, known: list[Comparison]) -> None:
        self.good = {(row.prompt.key, row.chosen) for row in known}
        self.asked: set[str] = set()

    def score(self, conversations: Any) -> list[float]:
        self.asked |= {form(row) for row in conversations}
        return [float((row.prompt.key, row.answer) in self.good) for row in conversations]


def audited(folder: Path, everything: list[Comparison], folds: dict[str, Memory]) -> AuditRecord:
    (folder / "data").mkdir()
    write(folder / "data" / "comparisons_train.jsonl", everything)
    return audit(
        context(folder / "out"), Audit(perturbed=10), folder / "data", Memory(everything), "heldout", None,
        unknown=False, **folds,
    )


def test_a_reward_that_only_remembers_is_worth_nothing(tmp_path: Path) -> None:
    everything = some(80)
    folds = {
        f"fold_{fold}": Memory([row for row in everything if fold_of(row, 1) != fold]) for fold in range(FOLDS)
    }
    record = audited(tmp_path, everything, folds)
    assert (record.accuracy, record.comparisons, record.prompts, record.folds) == (0.5, 80, 40, FOLDS)
    assert record.verdict == "failed"
    for fold in range(FOLDS):
        own = {form(row) for row in everything if fold_of(row, 1) == fold}
        assert folds[f"fold_{fold}"].asked == own


def test_what_is_not_trained_is_audited_on_every_comparison(tmp_path: Path) -> None:
    record = audited(tmp_path, some(80), {})
    assert (record.accuracy, record.prompts, record.folds) == (1.0, 40, 0)
    assert "bag of words" in record.leads


class Sure:
    """A model whose score has a unit of its own."""

    name = identity = "sure"

    def __init__(self, log_odds: float | None) -> None:
        self.log_odds = log_odds

    def score(self, conversations: Any) -> list[float]:
        return [2.0] * len(conversations)


def test_scores_of_models_with_other_scales_are_log_odds() -> None:
    asked = [Conversation(Prompt.of(f"What is {number}?"), "this") for number in range(40)]
    scorer = CrossFitted([Sure(float(fold + 1)) for fold in range(FOLDS)], seed=1)
    assert scorer.log_odds == 1.0
    assert scorer.score(asked) == [2.0 * (fold_of(row, 1) + 1) for row in asked]
    unsure = CrossFitted([Sure(None), *(Sure(3.0) for _ in range(FOLDS - 1))], seed=1)
    assert unsure.log_odds is None
    assert unsure.score(asked) == [2.0] * 40


def test_the_bag_of_words_is_cross_fitted_too() -> None:
    own_word = [Comparison(Prompt.of(f"What is {n}?"), f"word{n}", f"other{n}") for n in range(40)]
    assert cross_fitted_words(own_word, 1) == [0.5] * 40
    assert cross_fitted_words(some(80), 1) == [1.0] * 80


def test_comparisons_that_go_on_from_cross_fitted_ones_are_cross_fitted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    first, second = some(60), some(400)[60:]
    accumulate(context(tmp_path / "1"), first, 0.2, tmp_path / "data", None, cross_fit="auto")
    accumulate(context(tmp_path / "2"), second, 0.2, tmp_path / "data", tmp_path / "1", cross_fit="auto")
    for name, count in (("1", 60), ("2", 400)):
        assert DataFolder(tmp_path / name).crossfitted("train")
        assert len(read_comparisons(tmp_path / name / "comparisons_train.jsonl")) == count
    accumulate(context(tmp_path / "many"), some(800), 0.2, tmp_path / "data", None, cross_fit="auto")
    assert not DataFolder(tmp_path / "many").crossfitted("train")
    accumulate(context(tmp_path / "never"), first, 0.2, tmp_path / "data", None, cross_fit=False)
    assert not DataFolder(tmp_path / "never").crossfitted("train")


def test_rewards_start_from_the_base_where_the_champion_learnt_their_prompts(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, 60, gate={"judge": {"epochs": 1, "context": 128}, "prompts": 20})
    asked = [f"Which is {number}?" for number in range(60)]
    rows(tmp_path / "answers.jsonl", [{"prompt": prompt, "completion": "good"} for prompt in asked])
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = load(path, ["reward.audit.required=false"])
    runner, family = Runner(tmp_path / "run", Heard(), recipe.seed, until="round-1/audit"), Family()
    with pytest.raises(Until):
        cycle(recipe, runner, family)
    learners = [made for made in runner.done if "start" in made.manifest["parents"]]
    assert [made.name for made in learners] == [
        "judge", *(f"judge/fold-{fold}" for fold in range(FOLDS)),
        "round-1/reward", *(f"round-1/reward/fold-{fold}" for fold in range(FOLDS)),
    ]
    assert {made.manifest["parents"]["start"]["stage"] for made in learners} == {"base"}
    assert any(line.startswith("data: 60 conversations have the prompt of a cross-fitted comparison") for line in said)
    assert family.judging is not None
    assert family.judging.audit is not None
    assert family.judging.audit.result.folds == FOLDS


def test_check_says_how_many_comparisons_the_shares_need(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, 40)
    few = check.check(path, ["gate.judge={kind: pairwise}"])
    problems = [line for line in few.problems if line.startswith("held-out comparisons")]
    assert [line.split(":")[0] for line in problems] == [
        "held-out comparisons to audit the reward model", "held-out comparisons to audit the gate's judge",
    ]
    for number in ("about 534 different prompts to hold out 30", "are 40", "about 197", "cross-fitted", "about 75"):
        assert number in problems[0]
    enough = check.check(path)
    assert enough.problems == []
    (told,) = (note for note in enough.notes if note.startswith("cross-fitting the reward model"))
    assert told.startswith("cross-fitting the reward model: 40 comparisons of 40 prompts are too few to hold some out")
    assert [cost.stage for cost in enough.costs if "fold" in cost.stage] == [
        f"round-1/reward/fold-{fold}" for fold in range(FOLDS)
    ]


@pytest.mark.parametrize(("wanted", "share"), [(30, 0.075), (30, 0.15), (40, 0.5), (30, 1.0)])
def test_so_many_prompts_are_enough_nineteen_times_in_twenty(wanted: int, share: float) -> None:
    count = prompts_for(wanted, share)
    drawn = np.random.default_rng(0).binomial(count, share, 200_000)
    assert float((drawn >= wanted).mean()) >= 0.95
    fewer = np.random.default_rng(0).binomial(round(0.9 * count), share, 200_000)
    assert float((fewer >= wanted).mean()) < 0.95
