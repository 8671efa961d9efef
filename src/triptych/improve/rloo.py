"""REINFORCE with a leave-one-out baseline: each answer beside the mean of the others to its prompt.

Ahmadian et al. (2024), *Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
LLMs*. The penalty for the distance from the reference is part of an answer's reward, and an answer counts as a whole:
the loss is the mean over answers of A · Σ_t log π(t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from triptych.engine.curve import Row
from triptych.engine.rollout import Policy
from triptych.engine.training import Step
from triptych.improve.advantages import leave_one_out
from triptych.improve.loop import Answers
from triptych.improve.on_policy import OnPolicy, OnPolicyMethod, Tokens, measured
from triptych.improve.on_policy import step as on_policy_step


class Rloo(OnPolicy):
    """Improvement by RLOO."""

    method: Literal["rloo"] = "rloo"
    kl_placement: Literal["loss", "reward"] = "reward"


class RlooMethod(OnPolicyMethod[Rloo, Tokens]):
    """RLOO over the loop."""

    settings = Rloo

    def step(self, scored: Answers) -> Step[Tokens]:
        """An update's batches."""
        return step(self.loop.reference, scored, self.config, self.loop.checkpoints.curve)


def step(reference: Policy, scored: Answers, config: Rloo, curve: Sequence[Row] = ()) -> Step[Tokens]:
    """An update's batches; the loss is a mean over answers."""
    measurements = measured(reference, scored, config, curve)
    in_reward = measurements.beta if config.kl_placement == "reward" else 0.0
    advantages = leave_one_out(config.learnt(scored) - in_reward * measurements.distances)
    return on_policy_step(measurements, advantages, config, divisor=advantages.numel())
