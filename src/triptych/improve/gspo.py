"""Group sequence policy optimisation: GRPO in which an answer, not a token, has a ratio and is clipped.

Zheng et al. (2025), *Group Sequence Policy Optimization*. A reward is of a whole answer, and so is the correction for
what the policy became since it wrote it: s = (π(y)/π_old(y))^(1/|y|), one over the answer's length in the exponent so
that long answers are not clipped for being long. The loss is the mean over answers, equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from triptych.engine.curve import Row
from triptych.engine.forward import Model, answer_logprobs
from triptych.engine.rollout import Policy
from triptych.engine.training import Loss, Step
from triptych.improve.advantages import group_normalised
from triptych.improve.loop import Answers
from triptych.improve.on_policy import OnPolicy, OnPolicyMethod, Tokens, measured, paid, surrogate
from triptych.improve.on_policy import step as on_policy_step


class Gspo(OnPolicy):
    """Improvement by GSPO; its ratios are near 1, and so are the paper's clips."""

    method: Literal["gspo"] = "gspo"
    ratio_clip: float = Field(default=3e-4, gt=0)
    clip_higher: float | None = Field(default=4e-4, gt=0)


class GspoMethod(OnPolicyMethod[Gspo, Tokens]):
    """GSPO over the loop."""

    settings = Gspo

    def step(self, scored: Answers) -> Step[Tokens]:
        """An update's batches."""
        return step(self.loop.reference, scored, self.config, self.loop.checkpoints.curve)

    def loss(self, batch: Tokens) -> Loss:
        """The surrogate of whole answers and the penalty."""
        return loss(self.loop.model, batch, self.config)


def step(reference: Policy, scored: Answers, config: Gspo, curve: Sequence[Row] = ()) -> Step[Tokens]:
    """An update's batches; the loss is a mean over answers."""
    measurements = measured(reference, scored, config, curve)
    advantages = group_normalised(config.learnt(scored)) - paid(measurements, config)
    return on_policy_step(measurements, advantages, config, divisor=advantages.numel())


def loss(model: Model, tokens: Tokens, config: Gspo) -> Loss:
    """The surrogate of whole answers and the penalty, summed over the answers that count."""
    logprobs, entropy = answer_logprobs(model, tokens.packed, with_entropy=True)
    assert entropy is not None
    return surrogate(logprobs, entropy, tokens, config, by_answer=True)
