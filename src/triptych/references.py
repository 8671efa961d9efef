"""Whether the references of the user's prompts can be used by the rules that compare answers with them.

One that cannot, a number too large or a schema that leads nowhere, is a fault of the data, and is named before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from triptych.data import files
from triptych.data.rows import Place
from triptych.data.source import Source
from triptych.data.splits import prompt_of
from triptych.errors import DataError, Fault
from triptych.recipe import Recipe
from triptych.records import Prompt
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import Reward
from triptych.reward.rules import Rule, RulesReward

Applied = tuple[Rule, Sequence[Sequence[str]]]
"""A rule, and the lists of tasks that its prompts must all be in; an empty one holds every task."""


def require_references(recipe: Recipe) -> None:
    """Refuses data with a reference that a rule could not use.

    Raises:
        DataError: each of them, with its file and line.
    """
    faults = wrong_references(recipe)
    if faults:
        raise DataError(faults)


def wrong_references(recipe: Recipe) -> list[Fault]:
    """Each reference that a rule of the reward, or of the gate's judge, could not use; wrong rows are passed over."""
    preparation = recipe.preparation
    rules = list(_rules(recipe.reward.model))
    compared = rules if recipe.compared else []  # an audit scores the answers that were compared
    if isinstance(recipe.gate.judge, RulesReward):
        rules += _rules(recipe.gate.judge)
    named: Sequence[Source] = preparation.prompts or preparation.conversations
    reader: Callable[..., Sequence[Any]] = files.read_prompts if preparation.prompts else files.read_conversations
    return [
        *_faults(recipe, named, reader, rules),
        *_faults(recipe, preparation.comparisons, files.read_comparisons, compared),
    ]


def _faults(
    recipe: Recipe, named: Sequence[Source], reader: Callable[..., Sequence[Any]], rules: Sequence[Applied]
) -> Iterator[Fault]:
    if not rules:
        return
    for source in named:
        places: list[Place] = []
        try:
            records = reader(recipe.located(source), [], places)
        except DataError:  # whoever reads it for its rows says so
            continue
        for record, place in zip(records, places, strict=True):
            prompt = prompt_of(record)
            for message in dict.fromkeys(_said(prompt, rules)):
                yield Fault(*place, "reference", message)


def _said(prompt: Prompt, rules: Sequence[Applied]) -> Iterator[str]:
    for rule, tasks in rules:
        if all(not these or prompt.task in these for these in tasks):
            fault = rule.fault(prompt)
            if fault is not None:
                yield fault


def _rules(reward: Reward) -> Iterator[Applied]:
    if isinstance(reward, RulesReward):
        for rule in reward.rules:
            if type(rule).fault is not Rule.fault:  # the others look at no reference
                yield rule, (rule.tasks,)
    elif isinstance(reward, MixtureReward):
        for part in reward.parts:
            yield from ((rule, (*tasks, part.tasks)) for rule, tasks in _rules(part.reward))
