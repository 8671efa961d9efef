"""An Instruct model that is there already: it is the first champion, and nothing is fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import by_plan
from test_check import write_recipe
from triptych import results
from triptych.cycle import cycle, plan
from triptych.errors import RecipeError
from triptych.family import Family
from triptych.pipeline.runner import Runner
from triptych.progress import Silent
from triptych.recipe import load
from triptych.release.verification import verify

SMALL: dict[str, Any] = {
    "instruct": "none", "evaluate": {"best_of": 0}, "decoding": {"max_tokens": 8},
    "splits": {"test": 8, "gate": 8, "validation": 8},
    "improve": {"prompts": ["questions.jsonl"], "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_tokens": 8,
                "eval_prompts": 8},
}
SHORT: dict[str, Any] = {"kind": "rules", "rules": [{"rule": "length", "most": 9}]}


def test_it_is_the_first_champion(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, feedback=[], gate={"judge": SHORT}, reward=SHORT, **SMALL)
    recipe = load(path)
    family = Family()
    runner = Runner(tmp_path / "run", Silent(), recipe.seed)
    cycle(recipe, runner, family)
    results.write(recipe, family, runner)
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(recipe)]
    assert family.base is not None
    assert family.instruct is not None
    weights = [(each.folder / "model/model.safetensors").read_bytes() for each in (family.base, family.instruct)]
    assert weights[0] == weights[1]
    assert [test.name for test in family.tests] == ["instruct", "round 1"]
    assert verify(tmp_path / "run/release") == []


def test_it_needs_prompts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"improve\.prompts must name"):
        load(write_recipe(tmp_path, instruct="none", improve={}))


def test_where_rules_decide_a_reward_model_may_say_whether_preferences_hold(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, reward=SHORT | {"audit": {"required": False}},
        gate={"judge": SHORT, "preferences": {"share_of_feedback": 0.5, "epochs": 1}}, **SMALL,
    )
    recipe = load(path)
    family = Family()
    runner = Runner(tmp_path / "run", Silent(), recipe.seed)
    cycle(recipe, runner, family)
    summary = results.write(recipe, family, runner)
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(recipe)]
    assert family.preferences is not None
    assert family.preferences.audit is not None
    (gate,) = (round.gate for round in family.rounds)
    assert gate is not None
    held = gate.result.preferences
    assert held is not None
    assert held.gain == pytest.approx(held.after - held.before)
    assert summary.rounds[0].preferences == held
    assert summary.preferences_audit is not None
    assert summary.judge_audit is None
    assert "Whether preferences hold" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_preferences_are_the_judges_where_it_is_a_reward_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="here it is a reward model of people's comparisons already"):
        load(write_recipe(tmp_path, gate={"preferences": {}}))
    with pytest.raises(RecipeError, match=r"gate\.preferences is a reward model, which needs comparisons"):
        load(write_recipe(tmp_path, gate={"judge": SHORT, "preferences": {}}, feedback=[], reward=SHORT))
