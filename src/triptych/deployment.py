"""How each model of a run is decoded wherever it is compared, measured or released."""

from __future__ import annotations

from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.evaluate.decoding import choose
from triptych.family import Family, Start
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.recipe import Recipe


def deployed(
    recipe: Recipe, runner: Runner, family: Family, start: Start, model: Artifact[Result], name: str,
    reward: Scorer | None = None,
) -> Sampling:
    """How a model is decoded; where the recipe does not fix it, it is chosen once for each model.

    Args:
        name: of the stage that chooses.
        reward: the round's, which may have to choose.
    """
    if recipe.decoding.temperature == "best" and model.digest not in family.decodings:
        chooser = watcher(recipe, start.judge, reward)
        assert chooser, "a recipe where nobody may choose names a temperature"
        family.decodings[model.digest] = runner.run(
            name, choose, recipe.decoding, model=model, data=start.data, chooser=chooser
        )
    return family.decoding_of(model, recipe.decoding)


def watcher(recipe: Recipe, judge: Scorer, reward: Scorer | None) -> Scorer | None:
    """Who may watch and choose before the gate, where whoever decides may have chosen nothing.

    The exact judge and rules hold on any prompts, and the validation prompts are not the gate's. A learned judge and a
    language model err in ways that a choice by them would find, so the round's reward watches in their place: where
    people decide at the gate, too, for the judge says at the end what was gained. Without a reward such a judge may
    choose only where people decide.
    """
    config = recipe.gate.judging
    sound = config is None or config.holds_anywhere
    at_the_end = reward is None and recipe.rewarded  # no gate comes any more
    by_people = reward is None and recipe.gate.people is not None
    return judge if sound or by_people or at_the_end else reward
