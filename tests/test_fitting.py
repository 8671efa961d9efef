"""What does not fit into memory is told with the settings that would, which are written as a person would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from test_check import UNAUDITED, write_recipe
from triptych.cli.app import app
from triptych.errors import RecipeError
from triptych.preflight import check, fitting
from triptych.preflight.costs import Cost
from triptych.preflight.fitting import fit, sections_of
from triptych.recipe import load
from triptych.yaml_edit import set_value

RECIPE = """\
name: tiny                # its name
instruct:
  # small updates
  micro_batch: 4096       # at once
  data: [answers.jsonl]
improve: {method: grpo,
          prompts: [questions.jsonl]}
reward: {}
feedback:
  - file: pairs.jsonl
"""


@pytest.mark.parametrize(("name", "value", "old", "new"), [
    ("instruct.micro_batch", "512", "micro_batch: 4096 ", "micro_batch: 512 "),
    ("instruct.lora", "{rank: 16}", "  # small updates\n  micro", "  # small updates\n  lora: {rank: 16}\n  micro"),
    ("improve.micro_batch", "512", "[questions.jsonl]}", "[questions.jsonl], micro_batch: 512}"),
    ("reward.micro_batch", "512", "reward: {}", "reward: {micro_batch: 512}"),
    ("gate.judge.micro_batch", "512", "name: tiny", "gate: {judge: {micro_batch: 512}}\nname: tiny"),
])
def test_a_value_is_set_and_all_else_stays_as_it_was_written(name: str, value: str, old: str, new: str) -> None:
    assert RECIPE.count(old) == 1
    text = set_value(RECIPE, name, value)
    assert text == RECIPE.replace(old, new)
    inside: Any = yaml.safe_load(text)
    for key in name.split("."):
        inside = inside[key]
    assert inside == yaml.safe_load(value)


@pytest.mark.parametrize(("text", "name", "message"), [
    ("a: &b {c: 1}\nd: *b\n", "d.c", "d is an alias of what stands above it: set d.c by hand"),
    ("instruct: none\n", "instruct.lora", "instruct is not written as a mapping: set instruct.lora by hand"),
    ("a:\n  b:\n    c: 1\n", "a.b", "a.b is written over several lines: set it by hand to 2"),
])
def test_what_cannot_be_edited_is_named(text: str, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        set_value(text, name, "2")


@pytest.mark.parametrize(("kind", "settings"), [
    ("cpu", ["instruct.lora={rank: 16}"]), ("cuda", ["instruct.optimizer=adamw_8bit"]),
])
def test_moments_of_a_byte_are_tried_before_adapters_where_a_device_has_their_kernels(
    kind: str, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "device", lambda: torch.device(kind))

    def load(settings: Sequence[str]) -> Any:
        return settings

    def costs(given: Any) -> list[Cost]:
        helps = {"instruct.lora={rank: 16}", "instruct.optimizer=adamw_8bit"} & set(given)
        return [Cost("instruct", 0, 0.0, 2.0 if helps else 4.0)]

    assert fit(load, costs, 3.0) == settings


def test_the_parts_of_a_mixture_and_what_watches_preferences_are_made_smaller_too(tmp_path: Path) -> None:
    rules = {"kind": "rules", "rules": [{"rule": "length"}]}
    recipe = load(write_recipe(
        tmp_path, comparisons=200, gate={"judge": rules, "preferences": {"share_of_feedback": 0.4}},
        reward={"kind": "mixture", "parts": [
            {"name": "form", "weight": 1, "reward": rules}, {"name": "people", "weight": 1, "reward": {}},
        ]},
    ))
    stages = ("preferences", "round-1/reward/people")
    wanted = ["gate.preferences.micro_batch=1024", "reward.parts.1.reward.micro_batch=1024"]

    def costs(given: Any) -> list[Cost]:
        return [Cost(stage, 0, 0.0, 1.0 if setting in given else 4.0)
                for stage, setting in zip(stages, wanted, strict=True)]

    assert fit(lambda settings: settings, costs, 3.0, sections_of(recipe)) == wanted  # type: ignore[arg-type,return-value]


def test_settings_that_change_least_are_tried_first_and_kept_only_where_they_help() -> None:
    asked: list[list[str]] = []

    def load(settings: Sequence[str]) -> Any:
        asked.append(list(settings))
        if "instruct.activation_checkpointing=true" in settings:
            raise RecipeError("not with this")
        return list(settings)

    def costs(settings: Any) -> list[Cost]:
        less = {"instruct.micro_batch=512": 3.0, "instruct.lora={rank: 16}": 5.0}
        instruct = 10.0 - sum(less.get(setting, 0.0) for setting in settings)
        return [Cost("instruct", 0, 0.0, instruct), Cost("test/instruct", 0, 0.0, 1.0)]

    assert fit(load, costs, 7.5) == ["instruct.micro_batch=512"]
    assert fit(load, costs, 2.0) == ["instruct.micro_batch=512", "instruct.lora={rank: 16}"]
    assert asked[-1] == fit(load, costs, 2.0)
    assert fit(load, costs, 1.5) is None
    assert fit(load, costs, 0.5) is None
    assert fit(load, costs, 10.0) == []


def test_check_names_the_settings_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, improve={"prompts": ["questions.jsonl"], "micro_batch": 50_000}, **UNAUDITED)
    costs = {cost.stage: cost.gib for cost in check.check(recipe).costs}
    assert max(costs, key=lambda stage: costs[stage]) == "round-1/improve"
    monkeypatch.setattr(check, "memory", lambda: int((costs["round-1/improve"] - 1e-4) * 2**30))
    [problem] = check.check(recipe).problems
    assert problem.startswith("round-1/improve needs about ")
    assert problem.endswith("set improve.micro_batch=1024, which --fit writes into the recipe")
    before = recipe.read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["check", str(recipe)]).exit_code == 1
    assert recipe.read_text(encoding="utf-8") == before
    done = CliRunner().invoke(app, ["check", str(recipe), "--fit"])
    assert done.exit_code == 0
    assert yaml.safe_load(recipe.read_text(encoding="utf-8"))["improve"]["micro_batch"] == 1024
    assert "improve.micro_batch=1024" in done.output
    monkeypatch.setattr(check, "memory", lambda: 1 << 20)
    [problem] = check.check(recipe).problems
    assert problem.endswith("no settings make it fit; take a smaller model, or lower context and max_tokens")
