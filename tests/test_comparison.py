"""Methods compared on the same budget, on a tiny storybook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import with_stages
from triptych import comparison
from triptych.engine.device import settle
from triptych.errors import RecipeError
from triptych.improve.ppo import Ppo
from triptych.improve.rloo import Rloo
from triptych.pipeline.runner import Runner
from triptych.progress import Silent
from triptych.recipe import load
from triptych.report.summary import Budget, decoded_as
from triptych.storage import read_rows

TINY = Path(__file__).parent / "tiny.yaml"
OWN = 'compare=[{method: rloo, learning_rate: 2e-4, kl_coefficient: 0.01}]'


def test_a_method_has_its_own_settings_and_the_budget_of_improve() -> None:
    recipe = load(TINY, [OWN, "improve.steps=3"])
    rloo, ppo = recipe.with_method("rloo").improve.method, recipe.with_method("ppo").improve.method
    assert isinstance(rloo, Rloo)
    assert isinstance(ppo, Ppo)
    assert (rloo.method, rloo.kl_coefficient, rloo.learning_rate) == ("rloo", 0.01, 2e-4)
    assert (rloo.steps, rloo.group_size) == (3, 4)
    assert (ppo.method, ppo.kl_placement, ppo.learning_rate, ppo.steps) == ("ppo", "reward", 1e-4, 3)
    assert recipe.with_method("grpo").improve == recipe.improve
    assert comparison.chosen(recipe, None) == ["grpo", "gspo", "rloo", "ppo", "dpo", "best_of_n"]
    with pytest.raises(RecipeError, match="compare: kto learns from thumbs, and feedback names none"):
        comparison.chosen(recipe, ["kto"])
    assert comparison.chosen(recipe, ["dpo", "grpo", "dpo"]) == ["dpo", "grpo"]
    with pytest.raises(RecipeError, match="methods: there is no 'sft'; there are grpo, gspo, rloo"):
        comparison.chosen(recipe, ["grpo", "sft"])
    adapted = load(TINY, ["improve.lora={}"])
    with pytest.raises(RecipeError, match="ppo cannot be compared on this recipe's budget: ppo trains a value head"):
        comparison.chosen(adapted, None)
    assert comparison.chosen(adapted, ["grpo", "rloo"]) == ["grpo", "rloo"]


def test_methods_stand_side_by_side(tmp_path: Path, tiny_run: Path) -> None:
    settle()
    recipe = load(TINY, [OWN, "improve.steps=2"])
    runner = Runner(with_stages(tmp_path / "run", tiny_run, "data", "base"), Silent(), recipe.seed)
    found = comparison.improve_by_each(recipe, runner, ["rloo", "best_of_n"], seeds=2)
    assert {row.method for row in found.methods} == {"rloo", "best_of_n"}
    assert all(row.seeds == 2 and row.seconds > 0 for row in found.methods)
    assert found.budget == Budget(updates=2, answers=2 * 4 * 4)
    artifacts = tmp_path / "run" / "artifacts"
    (measured,) = artifacts.glob("compare-instruct-*")
    before = {row["key"]: row["decodings"] for row in read_rows(measured / "answers.jsonl")}
    ways = next(iter(before.values()))
    means = {way: sum(each[way]["judge"] for each in before.values()) / len(before) for way in ways}
    assert {"greedy", "temperature 1"} <= means.keys()
    assert found.before == pytest.approx(max(means.values()))
    assert found.rival == decoded_as(max(means, key=lambda way: means[way]))
    way = max(means, key=lambda way: means[way])
    for row in found.methods:
        files = artifacts.glob(f"compare-{row.method}-gate-*/scores.jsonl")
        after = [each for file in files for each in read_rows(file)]
        gains = [each["after"] - before[each["key"]][way]["judge"] for each in after]
        assert row.gain == pytest.approx(sum(gains) / len(gains))
        assert len(row.decodings) == 2
        assert not row.better or row.gain_interval[0] > 0
        assert row.gain_interval[0] <= row.gain <= row.gain_interval[1]
    names = [event["stage"] for event in runner.ledger.events() if event["event"] == "finished"]
    assert names.count("instruct") == names.count("round-1/reward") == 1
    assert names.count("compare-rloo/improve") == names.count("compare-rloo/gate") == 2

    comparison.write(found, tmp_path)
    assert json.loads((tmp_path / "compare.json").read_text())["methods"][0]["method"] == found.methods[0].method
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 2
    assert "best_of_n" in page

    again = comparison.compare(recipe, tmp_path / "run", Silent(), ["rloo", "best_of_n"], seeds=2)
    assert again == found
    assert (tmp_path / "run" / "compare.json").read_bytes() == (tmp_path / "compare.json").read_bytes()
