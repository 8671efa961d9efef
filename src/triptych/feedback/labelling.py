"""Comparisons of what the current model writes, labelled by a judge.

A judge that never errs gives labels that are flipped at a stated rate: people err too, and a reward model
trained on flipped labels cannot agree with held-out ones more often than `1 − noise`. That is its ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from pydantic import Field

from triptych.configuration import Config
from triptych.data.splits import fraction
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.errors import RunError
from triptych.feedback.accumulation import accumulate
from triptych.feedback.prompts import prompts_to_ask
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Conversation, Rollout, differ
from triptych.storage import Folder

CUT = 0.05
"""So many of what is left, left out because it was cut, are said to be many."""


class Labelling(Config):
    """New comparisons in every round, from what the champion writes.

    Attributes:
        prompts: asked in a round.
        answers: sampled for each; every two of them are compared, as in Ouyang et al. (2022).
        least_difference: answers whose scores differ by less are a tie, about which nobody is asked.
        heldout: share of the prompts whose comparisons are never trained on.
        max_tokens: an answer is cut there. A pair whose better answer was cut is left out: what learns it learns to end
            there.
    """

    prompts: int = Field(default=1000, ge=10)
    answers: int = Field(default=4, ge=2)
    least_difference: float = Field(default=0.1, gt=0)
    heldout: float = Field(default=0.2, gt=0, lt=1)
    max_tokens: int = Field(default=96, ge=1)


class ExactLabelling(Labelling):
    """Labels by a judge that never errs.

    Attributes:
        noise: the rate at which labels are flipped.
    """

    noise: float = Field(default=0.1, ge=0, lt=0.5)


class Labelled(Result):
    """A round's own comparisons.

    Attributes:
        answers: that were sampled.
        cut: pairs that were left out because the better answer was cut.
        ties: pairs about which nobody was asked.
        taught: comparisons with the prompt of a demonstration, of which none is held out.
        noise, ceiling: the rate of flipped labels, and the best accuracy that it allows; None where it is not known.
    """

    labelled_by: str
    answers: int
    comparisons: int
    ties: int
    cut: int = 0
    taught: int = 0
    noise: float | None = None
    ceiling: float | None = None


def label(
    context: StageContext, config: Labelling, data: Folder, author: Folder, judge: Scorer, round: int = 1,
    earlier: Folder | None = None, thumbs: Folder | None = None, cross_fit: bool = False,
) -> Labelled:
    """Adds a round's comparisons to the earlier ones, those to train on and those held out.

    Prompts are those of `data` that are there to be asked, each round the next ones, so that no prompt is asked
    twice before all were asked once. Those on which the gate's own judge was trained or measured are not among them.

    Args:
        earlier: the folder of the comparisons before.
        thumbs: the folder of the thumbs that the champion may have learnt, if people gave any.
    """
    pool = prompts_to_ask(data)
    first = (round - 1) * config.prompts
    policy = Policy.open(author / "model")
    drawn = [pool[i % len(pool)] for i in range(first, first + config.prompts)]
    prompts = policy.fitting(drawn, config.max_tokens, context.progress)
    sampling = Sampling(config.max_tokens, seed=context.seed * 1000 + round)
    groups = policy.write(prompts, sampling, n=config.answers, progress=context.progress)
    new, cut = _compared(groups, judge, config, context.seed * 1000 + round)
    if not new:
        raise RunError("the judge found no difference between any two answers, so there is nothing to learn from"
                       + (f"; of {cut:,} pairs the better one was cut: raise feedback's max_tokens" if cut else ""))
    if cut > CUT * len(new):
        context.progress.say(f"feedback: {cut:,} pairs whose better answer was cut at max_tokens are left out, and "
                             f"{len(new):,} are not: raise it")
    added = accumulate(context, new, config.heldout, data, earlier, thumbs, cross_fit)
    compared = len(groups) * math.comb(config.answers, 2)
    # What a judge that may err gets wrong is not known.
    noise = config.noise if isinstance(config, ExactLabelling) else None
    return Labelled(
        labelled_by=judge.name,
        answers=len(groups) * config.answers,
        comparisons=len(new),
        ties=compared - len(new) - cut,
        cut=cut,
        taught=added.taught,
        noise=noise,
        ceiling=None if noise is None else 1 - noise,
    )


def _compared(
    groups: Sequence[Sequence[Rollout]], judge: Scorer, config: Labelling, seed: int
) -> tuple[list[Comparison], int]:
    """Every two answers of a group, the better one chosen, flipped at the rate `noise`; and how many were cut.

    An answer that was cut may be the worse one, as in training on samples it has the lowest reward.
    """
    rollouts = [rollout for group in groups for rollout in group]
    noise = config.noise if isinstance(config, ExactLabelling) else 0.0
    scores = iter(judge.score([Conversation(rollout.prompt, rollout.answer) for rollout in rollouts]))
    comparisons, cut = [], 0
    for group in groups:
        scored = [(rollout, next(scores)) for rollout in group]
        for place, ((a, score_a), (b, score_b)) in enumerate(combinations(scored, 2)):
            alike = not differ(a.answer, b.answer) or abs(score_a - score_b) < config.least_difference
            if alike or not a.answer.strip() or not b.answer.strip():
                continue
            better, worse = (a, b) if score_a > score_b else (b, a)
            if fraction("flip", f"{place} {a.prompt.key}", seed) < noise:
                better, worse = worse, better
            if not better.finished:
                cut += 1
                continue
            comparisons.append(Comparison(a.prompt, better.answer, worse.answer, source=judge.name))
    return comparisons, cut
