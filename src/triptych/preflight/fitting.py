"""Settings by which a run fits into the memory that there is, those first that change least."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from triptych.errors import RecipeError
from triptych.preflight.costs import Cost
from triptych.recipe import Recipe

SECTIONS = {"instruct": "instruct", "judge": "gate.judge", "round/reward": "reward", "round/improve": "improve"}
"""Where the settings of a stage that trains stand, by its name; a round's without its number."""
LADDER = ("micro_batch=1024", "micro_batch=512", "activation_checkpointing=true", "lora={rank: 16}")
"""Two of speed alone, then a recomputation, then what is trained."""


def fit(
    load: Callable[[Sequence[str]], Recipe], costs: Callable[[Recipe], Sequence[Cost]], gib: float
) -> list[str] | None:
    """The settings, as of `--set`, with which every stage takes at most so much; None where none of these does it.

    Args:
        load: the recipe with some settings beside its own.
        costs: of each stage.
    """
    settings: dict[str, str] = {}
    untried = {section: list(LADDER) for section in SECTIONS.values()}
    known = costs(load([]))
    while over := next((cost for cost in known if cost.gib > gib), None):
        section = SECTIONS.get(re.sub(r"^round-\d+/", "round/", over.stage), "")
        if not untried.get(section):
            return None
        name, _, value = untried[section].pop(0).partition("=")
        tried = settings | {f"{section}.{name}": value}
        try:
            lower = costs(load([f"{setting}={given}" for setting, given in tried.items()]))
        except RecipeError:  # the recipe has settings that exclude this one
            continue
        if any(cost.stage == over.stage and cost.gib < over.gib for cost in lower):
            settings, known = tried, lower
    return [f"{setting}={given}" for setting, given in settings.items()]
