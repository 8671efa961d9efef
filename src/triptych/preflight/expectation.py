"""How long the stages of a run will take, told once its data and its Base are there."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.cycle import plan
from triptych.engine import distributed
from triptych.engine.models import load_config, load_tokenizer
from triptych.family import Family
from triptych.preflight.check import Findings, check_lengths
from triptych.preflight.costs import costs, this_machine
from triptych.preflight.memory import Architecture
from triptych.recipe import Recipe

SOME = 200
"""Rows of each split whose tokens are counted."""


UNTOLD = {"feedback", "thumbs", "benchmarks"}
"""Stages of what the run collects itself, on which its rewards are then trained, and of the harness's tasks."""


def expect(recipe: Recipe, family: Family, stages: Sequence[str]) -> dict[str, float]:
    """Seconds of each of these stages, roughly, but for those that take next to nothing.

    Nothing while there is no Base, and where one of them cannot be told: of what a part takes a user would think that
    it is the whole. It takes a few seconds itself.
    """
    if family.data is None or family.base is None or any(UNTOLD & set(stage.split("/")) for stage in stages):
        return {}
    base = family.base.result
    folder = family.base / "model"
    tokenizer = load_tokenizer(folder)
    model = Architecture.of(load_config(folder).get_text_config(), base.parameters)
    tasks = {task.prompts.name: task.prompts.folder for task in family.tasks}
    texts = check_lengths(recipe, family.data.folder, tokenizer, model, Findings(tuned=base.tuned), tasks, SOME)
    machine = this_machine()
    ranks = distributed.world_size()
    return {
        cost.stage: cost.seconds / ranks for cost in costs(plan(recipe), recipe, model, texts, machine)
        if cost.stage in stages
    }
