"""A cycle whose recipe has no reward: pairs or thumbs as they are given, a gate, and a release of two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from test_check import rows, write_recipe
from triptych import results
from triptych.cli import app
from triptych.cli.arguments import find_model, find_release
from triptych.comparison import chosen
from triptych.cycle import cycle, plan
from triptych.engine.curve import read_curve
from triptych.errors import ModelError, RecipeError, RewardError
from triptych.evaluate import gate
from triptych.family import Family
from triptych.pipeline.runner import Runner
from triptych.preflight import check
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.release.publication import prepare
from triptych.release.verification import Manifest, verify
from triptych.report.summary import Summary
from triptych.reward_names import open_named

RULES: dict[str, Any] = {"kind": "rules", "rules": [{"rule": "length", "most": 3}, {"rule": "repetition"}]}
DPO = {"method": "dpo", "prompts": ["questions.jsonl"]}
BRIEF = [
    "improve.steps=2", "improve.prompts_per_step=4", "improve.eval_every=1",
    "improve.eval_prompts=8", "improve.learning_rate=1e-3", "improve.max_tokens=4", "decoding.max_tokens=4",
    "decoding.temperatures=[0, 1]", "gate.prompts=10", "evaluate.prompts=10", "splits.validation=8",
]


def recipe_in(folder: Path, *overrides: str, **changes: Any) -> Recipe:
    settings = {"reward": "none", "improve": DPO, "gate": {"judge": RULES}} | changes
    return load(write_recipe(folder, comparisons=120, **settings), [*BRIEF, *overrides])


def ran(recipe: Recipe, folder: Path) -> tuple[Family, Summary]:
    runner, family = Runner(folder, Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    assert sorted({artifact.name for artifact in runner.done}) == sorted(stage.name for stage in plan(recipe))
    summary = results.write(recipe, family, runner)
    assert verify(folder / "release") == []
    return family, summary


def test_pairs_as_given_are_learnt_and_two_models_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "verdict", lambda *_: (gate.PROMOTED, "for the lineage of what is promoted"))
    recipe = recipe_in(tmp_path)
    assert [stage.name for stage in plan(recipe)] == [
        "data", "base", "instruct", "judge", "decoding/instruct", "round-1/improve", "round-1/decoding",
        "round-1/answers", "round-1/gate", "test/base", "test/instruct", "test/round-1",
    ]
    family, summary = ran(recipe, tmp_path / "run")
    (current,) = family.rounds
    assert current.candidate is not None
    assert current.reward is None
    assert family.reward is None
    assert set(current.candidate.manifest["parents"]) == {"champion", "data", "judge", "feedback"}
    rows_of = read_curve(current.candidate / "curve.jsonl")
    watched = {"validation_loss", "validation_accuracy", "validation_margin", "validation_kl", "validation_judge"}
    assert all(watched <= row.keys() and "validation_reward" not in row for row in rows_of)
    assert rows_of[0]["validation_loss"] == pytest.approx(0.6931, abs=1e-4)  # −log σ(0): policy and reference are one
    assert rows_of[0]["validation_margin"] == 0
    assert {row["pairs"] for row in rows_of[1:]} == {4}
    (told,) = summary.rounds
    assert (told.reward_before, told.reward_after, told.watched_by) == (None, None, "judge")
    assert [point.loss for point in told.curve] == [row["validation_loss"] for row in rows_of]
    assert (summary.audits, summary.reward_order, summary.release) == ([], None, "release")
    assert all(model.reward is None for model in summary.models)
    release = tmp_path / "run" / "release"
    assert {path.name for path in release.iterdir() if path.is_dir()} == {"base", "instruct"}
    manifest = Manifest.model_validate_json((release / "manifest.json").read_text())
    assert manifest.roles == ("base", "instruct")
    assert family.champion is current.candidate
    assert [file.name for file in manifest.models["instruct"].data][-1] == "comparisons_train.jsonl"
    assert [parent.name for parent in manifest.models["instruct"].parents] == ["base"]
    for card in ("README.md", "base/README.md", "instruct/README.md"):
        text = (release / card).read_text()
        assert "three" not in text
        assert "family of two" in text
    report = (tmp_path / "run" / "report.html").read_text()
    assert "There is no reward: the policy is trained on pairs or thumbs" in report
    assert "Reward, before" not in report
    # What takes a release takes this one.
    assert find_release(str(tmp_path / "run")) == release
    assert find_model(str(release), "instruct") == (release / "instruct", release)
    with pytest.raises(ModelError, match="this release has no Reward model"):
        find_model(str(release), "judge")
    assert set(prepare(release, "me/pair").manifest.models) == {"base", "instruct"}
    shown = CliRunner().invoke(app, ["push", str(release), "me/pair", "--dry-run"])
    assert (shown.exit_code, "2 repositories" in shown.output) == (0, True), shown.output
    again = Runner(tmp_path / "run", Silent(), recipe.seed)
    assert results.write(recipe, family, again).release == "release"


def test_where_the_judge_is_learnt_the_held_out_loss_watches(tmp_path: Path) -> None:
    recipe = recipe_in(
        tmp_path, "gate.judge.epochs=1", "instruct=none", gate={"judge": {"share_of_feedback": 0.4}},
        decoding={"temperature": 0}, reward={"kind": "none", "audit": {"required": False}},
        splits={"heldout": 0.4, "cross_fit": False},
    )
    family, summary = ran(recipe, tmp_path / "run")
    candidate = family.rounds[0].candidate
    assert candidate is not None
    assert "judge" not in candidate.manifest["parents"]
    assert candidate.result.watched_by == summary.rounds[0].watched_by == "loss"
    losses = {row["step"]: row["validation_loss"] for row in read_curve(candidate / "curve.jsonl")}
    assert losses[candidate.result.kept] == min(losses[1], losses[2])
    assert summary.judge_audit is not None


def test_thumbs_are_learnt_and_some_are_held_out_to_watch(tmp_path: Path) -> None:
    rows(tmp_path / "thumbs.jsonl", [
        {"prompt": f"Is it {i}?", "completion": text, "label": text == "Yes."}
        for i in range(40) for text in ("Yes.", "No.")
    ])
    recipe = recipe_in(
        tmp_path, "instruct=none", improve={"method": "kto", "prompts": ["questions.jsonl"]},
        feedback=[{"thumbs": "thumbs.jsonl"}],
    )
    family, _ = ran(recipe, tmp_path / "run")
    candidate = family.rounds[0].candidate
    assert candidate is not None
    assert family.data is not None
    counts = family.data.manifest["metrics"]
    assert counts["thumbs"] + counts["thumbs_heldout"] == 80
    assert 0 < counts["thumbs_heldout"] < counts["thumbs"]
    assert candidate.result.numbers["thumbs"] == counts["thumbs"]
    assert all(0 <= row["validation_accuracy"] <= 1 for row in read_curve(candidate / "curve.jsonl"))


@pytest.mark.parametrize(("overrides", "message"), [
    (["improve={method: grpo, prompts: [questions.jsonl]}"], "improve.method grpo learns from scores, and reward is"),
    (["improve={method: rloo, prompts: [questions.jsonl]}"], "improve.method rloo learns from scores"),
    (["improve={method: ppo, prompts: [questions.jsonl]}"], "improve.method ppo learns from scores"),
    (["improve={method: gspo, prompts: [questions.jsonl]}"], "improve.method gspo learns from scores"),
    (["improve={method: best_of_n, prompts: [questions.jsonl]}"], "improve.method best_of_n learns from scores"),
    (["improve.pairs=sampled"], "improve.method dpo learns from scores, as its pairs are sampled, and reward is none"),
    (["improve.loss=rpo"], "improve.method dpo learns from scores, and reward is none"),
    (["improve.rounds=0"], "reward is none, and with improve.rounds 0 nothing is left to do"),
    (["gate.judge={}"], "decoding.temperature best needs somebody to choose: gate.judge decides"),
    (["gate.judge={}", "decoding.temperature=0", "prompting={}"], "prompting needs somebody to choose"),
    (["goals={over_trivial: 0.1}"], "goals.over_trivial is of a reward model, and reward is none"),
    (["evaluate.benchmarks=[{reward: preferences.jsonl}]"], "preferences measures rewards, and reward is none"),
    (["feedback=[]"], "improve.method dpo learns from comparisons, and feedback names none"),
    (["reward={kind: none, epochs: 2}"], "reward.epochs"),
])
def test_what_needs_a_reward_is_refused_when_the_recipe_is_read(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        load(write_recipe(tmp_path, comparisons=2, reward="none", gate={"judge": RULES}, improve=DPO), overrides)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_only_a_recipe_may_be_without_a_reward(tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text("kind: none\n")
    with pytest.raises(RewardError, match="kind none is no reward, and one is needed here"):
        open_named(str(tmp_path / "reward.yaml"))


def test_methods_that_need_no_reward_are_compared(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    assert chosen(recipe, None) == ["dpo"]
    with pytest.raises(RecipeError, match="compare: grpo learns from scores, and reward is none"):
        chosen(recipe, ["grpo"])


def test_check_asks_for_no_audit_of_a_reward_that_is_not_there(tmp_path: Path) -> None:
    recipe_in(tmp_path)
    found = check.check(tmp_path / "recipe.yaml", BRIEF)
    assert found.problems == []
    assert not any("reward model" in note for note in found.notes)
    assert not any("reward" in cost.stage for cost in found.costs)


def test_a_release_that_names_no_model_for_its_files_is_refused(tmp_path: Path) -> None:
    entry = {"parents": [], "data": [], "fingerprint": "f"}
    file = {"sha256": "0" * 64, "size": 1}
    content = {
        "format": 1, "name": "n", "version": "1", "license": "l", "recipe": "r",
        "models": dict.fromkeys(("base", "instruct"), entry),
        "files": dict.fromkeys(("base/a", "instruct/a", "reward/a"), file),
    }
    with pytest.raises(ValueError, match="lists files of reward, and no such model"):
        Manifest.model_validate_json(json.dumps(content))
