"""How many comparisons and prompts a recipe needs at its shares, and how many others would need."""

from __future__ import annotations

import math
from statistics import NormalDist

from triptych.data.folder import TrainedOn
from triptych.data.folds import FEW
from triptych.recipe import Recipe
from triptych.statistics.significance import detectable, least, level

SURE = 0.95
"""How sure it is that the prompts which are dealt to a share by chance are enough."""
LARGEST = 0.4
"""A held-out share beyond which too little is left to train on."""
PART = 5
"""Test, gate and validation have at most one prompt in so many each."""


def prompts_for(wanted: int, share: float) -> int:
    """Of how many prompts a share that is dealt by chance has at least so many, with a probability of `SURE`.

    By the normal approximation of the binomial, n p − z √(n p (1 − p)) = wanted, solved for √n.
    """
    z = NormalDist().inv_cdf(SURE)
    deviation = z * math.sqrt(share * (1 - share))
    return math.ceil(((deviation + math.sqrt(deviation**2 + 4 * share * wanted)) / (2 * share)) ** 2 - 1e-9)


def comparisons_needed(recipe: Recipe, learnt: TrainedOn, prompts: int) -> str:
    """What the audit of a reward model needs: at the recipe's shares, at a larger one, cross-fitted, and with no judge.

    Args:
        learnt: whose audit, the reward's or that of the gate's judge.
        prompts: different ones of comparisons, that there are.
    """
    wanted, held = recipe.reward.audit.checks.least_prompts, recipe.splits.heldout
    judge = recipe.preparation.judge
    share = judge if learnt == "judge" else 1 - judge
    shares = f"splits.heldout {held:g}" + (f" and {recipe.apart_name}.share_of_feedback {judge:g}" if judge else "")
    enough = prompts_for(wanted, share * held)
    said = (
        f"at these shares ({shares}) it takes comparisons of about {enough:,} different prompts to hold out {wanted} "
        f"for this audit, and there are {prompts:,}"
    )
    if held < LARGEST:
        said += f"; with splits.heldout {LARGEST:g} about {prompts_for(wanted, share * LARGEST):,} are enough"
    said += f"; cross-fitted (splits.cross_fit), about {prompts_for(wanted, share):,}"
    if judge:
        said += (
            f"; with rules or a language model as gate.judge, which take none of them, about "
            f"{prompts_for(wanted, held):,}, or {wanted:,} cross-fitted"
        )
    return said


def comparisons_to_hold_out(recipe: Recipe, learnt: TrainedOn) -> int:
    """Of about how many prompts comparisons are held out rather than cross-fitted."""
    judge = recipe.preparation.judge
    return prompts_for(FEW, recipe.splits.heldout * (judge if learnt == "judge" else 1 - judge))


def prompts_needed(recipe: Recipe, prompts: int) -> str:
    """What the gate needs for every round, and what a smaller one could show.

    Args:
        prompts: different ones that there are.
    """
    rounds, size = recipe.improve.rounds, recipe.gate.answering.prompts
    wanted = max(1, rounds) * size
    said = (
        f"{max(1, rounds)} x {size} new gate prompts (improve.rounds x gate.prompts) take {PART * wanted:,} different "
        f"prompts and splits.gate {wanted:,}, as at most a fifth of all are the gate's; there are {prompts:,}"
    )
    fits = min(prompts // PART, recipe.splits.gate) // max(1, rounds)
    floor = least(level(recipe.gate.decision.error, failures=max(0, rounds - 1)))
    if floor < fits < size:
        said += f"; with gate.prompts {fits:,} they are enough, and {detected(fits, recipe)}"
    return said


def detected(prompts: int, recipe: Recipe) -> str:
    """The true win rate that a gate of so many prompts promotes four times in five, in its last round."""
    rate = detectable(prompts, level(recipe.gate.decision.error, failures=max(0, recipe.improve.rounds - 1)))
    return f"a candidate that wins {min(rate, 1):.0%} of all such prompts is promoted four times in five"
