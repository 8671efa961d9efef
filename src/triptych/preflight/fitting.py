"""Settings by which a run fits into the memory that there is, those first that change least."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from triptych.engine.device import device
from triptych.errors import RecipeError
from triptych.preflight.costs import Cost
from triptych.recipe import Recipe
from triptych.reward.mixture import MixtureReward

SECTIONS = {
    "instruct": "instruct", "judge": "gate.judge", "preferences": "gate.preferences", "round/reward": "reward",
    "round/improve": "improve",
}
"""Where the settings of a stage that trains stand, by its name; a round's without its number."""
EIGHT_BITS = "optimizer=adamw_8bit"
"""Its kernels are made for a CUDA device; on a processor it takes longer than the update that it belongs to."""
LADDER = ("micro_batch=1024", "micro_batch=512", "activation_checkpointing=true", EIGHT_BITS, "lora={rank: 16}")
"""Two of speed alone, then a recomputation, then how exact the optimizer's moments are, then what is trained."""
LAST = "base.quantization=nf4"
"""What the models are; it helps where every one of them is adapters over the Base."""


def fit(
    load: Callable[[Sequence[str]], Recipe], costs: Callable[[Recipe], Sequence[Cost]], gib: float,
    sections: Mapping[str, str] = SECTIONS,
) -> list[str] | None:
    """The settings, as of `--set`, with which every stage takes at most so much; None where none of these does it.

    Args:
        load: the recipe with some settings beside its own.
        costs: of each stage.
        sections: where the settings of the stages stand, by their names; see :func:`sections_of`.
    """
    settings: list[str] = []
    ladder = [setting for setting in LADDER if setting != EIGHT_BITS or device().type == "cuda"]
    untried = {section: list(ladder) for section in sections.values()}
    known = costs(load([]))
    while over := next((cost for cost in known if cost.gib > gib), None):
        stage = re.sub(r"^round-\d+/", "round/", over.stage)
        section = sections.get(stage) or ("reward" if stage.startswith("round/reward/") else "")
        if not untried.get(section):
            settings = _added(load, settings, [f"{one}.{LADDER[-1]}" for one in untried] + [LAST])
            return settings if all(cost.gib <= gib for cost in costs(load(settings))) else None
        tried = _added(load, settings, [f"{section}.{untried[section].pop(0)}"])
        lower = costs(load(tried))
        if any(cost.stage == over.stage and cost.gib < over.gib for cost in lower):
            settings, known = tried, lower
    return settings


def sections_of(recipe: Recipe) -> dict[str, str]:
    """Where the settings of each stage that trains stand, by its name: those of a mixture's parts besides."""
    reward = recipe.reward.model
    parts = reward.parts if isinstance(reward, MixtureReward) else ()
    return SECTIONS | {
        f"round/reward/{part.name}": f"reward.parts.{place}.reward" for place, part in enumerate(parts)
    }


def _added(load: Callable[[Sequence[str]], Recipe], settings: Sequence[str], more: Sequence[str]) -> list[str]:
    """The settings with those of more that the recipe can have beside them; the last value of a field counts."""
    kept = {setting.partition("=")[0]: setting for setting in settings}
    for setting in more:
        tried = kept | {setting.partition("=")[0]: setting}
        try:
            load(list(tried.values()))
        except RecipeError:  # the recipe has settings that exclude this one
            continue
        kept = tried
    return list(kept.values())
