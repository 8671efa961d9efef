"""Whether the references of the user's prompts can be used by the rules that compare answers with them.

One that cannot, a number too large or a schema that leads nowhere, is a fault of the data, and is named before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from triptych.data.files import GoodRows, good_rows
from triptych.data.source import Source
from triptych.data.splits import prompt_of
from triptych.errors import DataError, Fault, TriptychError
from triptych.recipe import Recipe
from triptych.records import Prompt
from triptych.reward.description import Description, Parts
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import Reward
from triptych.reward.rules import MISSING, Instructions, Rule, RulesReward
from triptych.reward.taken import TakenReward
from triptych.reward.taking import offered

Applied = tuple[Rule, Sequence[Sequence[str]]]
"""A rule, and the lists of tasks that its prompts must all be in; an empty one holds every task."""


def require_references(recipe: Recipe) -> None:
    """Refuses data with a reference that a rule could not use.

    Raises:
        DataError: each of them, with its file and line.
    """
    faults = wrong_references(recipe, partial(_read, recipe))
    if faults:
        raise DataError(faults)


def wrong_references(recipe: Recipe, read: Callable[[str], Iterable[GoodRows[Any]]]) -> list[Fault]:
    """Each reference that a rule of the reward, of the gate's judge or of a task could not use.

    Args:
        read: the good rows of the recipe's files of a kind, or of a task's by the name of its stage.
    """
    rules = list(_rules(recipe.reward.model))
    # An audit scores the answers that were compared; where nothing is to be followed, they follow it alike.
    compared = [applied for applied in rules if not isinstance(applied[0], Instructions)] if recipe.compared else []
    if isinstance(recipe.gate.judge, RulesReward | TakenReward):
        rules += _rules(recipe.gate.judge)
    asked = "prompts" if recipe.preparation.prompts else "conversations"
    of_tasks = [(task.stage, list(_rules(task.score))) for task in recipe.evaluate.tasks]
    faults = [fault for kind, applied in ((asked, rules), *of_tasks) if applied
              for fault in _faults(read(kind), applied)]
    # Where a comparison has no reference, an audit is of what needs none.
    excused = MISSING if needs_nothing(recipe.reward.model) else None
    return faults + [fault for fault in _faults(read("comparisons") if compared else (), compared)
                     if fault.message != excused]


def lacks_reference(reward: Reward, prompt: Prompt) -> str | None:
    """Why a rule of a reward cannot score answers to a prompt; None where every rule can.

    Where nothing is to be followed, answers follow it alike.
    """
    rules = [applied for applied in _rules(reward) if not isinstance(applied[0], Instructions)]
    return next(_said(prompt, rules), None)


def needs_nothing(reward: Reward) -> bool:
    """Whether something of a reward scores answers to any prompt, one without reference and instructions too."""
    if isinstance(reward, RulesReward):
        return any(type(rule).fault is Rule.fault for rule in reward.rules)
    if isinstance(reward, MixtureReward):
        return any(needs_nothing(part.reward) for part in reward.parts)
    return next(_rules(reward), None) is None


def _read(recipe: Recipe, kind: str) -> Iterator[GoodRows[Any]]:
    for reader, source in read_as(recipe, kind):
        with suppress(DataError):  # whoever reads it for its rows says so
            yield good_rows(reader, source)


def read_as(recipe: Recipe, kind: str) -> list[tuple[str, Source]]:
    """The files of a kind, or a task's by the name of its stage, each with the kind of rows that it holds."""
    for task in recipe.evaluate.tasks:
        if kind == task.stage:
            return [("prompts", task.located)]
    return [(kind, recipe.located(source)) for source in getattr(recipe.preparation, kind)]


def _faults(read: Iterable[GoodRows[Any]], rules: Sequence[Applied]) -> Iterator[Fault]:
    for part in read:
        for place, record in part.placed:
            for message in dict.fromkeys(_said(prompt_of(record), rules)):
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
    elif isinstance(reward, TakenReward) and reward.from_.path.exists():
        with suppress(TriptychError):  # whoever takes it says so
            yield from _described(offered(reward).described)
    elif isinstance(reward, MixtureReward):
        for part in reward.parts:
            yield from ((rule, (*tasks, part.tasks)) for rule, tasks in _rules(part.reward))


def _described(reward: Description) -> Iterator[Applied]:
    """The same of a reward that a folder describes."""
    if isinstance(reward.content, RulesReward):
        yield from _rules(reward.content)
    elif isinstance(reward.content, Parts):
        for part, inside in zip(reward.content.parts, reward.parts, strict=True):
            yield from ((rule, (*tasks, part.tasks)) for rule, tasks in _described(inside))
