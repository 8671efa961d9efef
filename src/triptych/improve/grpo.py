"""Group relative policy optimisation: a policy improved against a reward, near a reference.

For each prompt G answers are sampled from the current policy and scored; an answer's advantage is its reward beside
those of its group (Shao et al. 2024; the mean over tokens as in DAPO, Yu et al. 2025). Dr. GRPO (Liu et al. 2025)
leaves out the group's deviation, and divides by a constant instead of the number of tokens, so that neither easy
prompts nor long wrong answers are favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from triptych.engine.curve import Row
from triptych.engine.rollout import Policy
from triptych.engine.training import Step
from triptych.improve.advantages import centred, group_normalised
from triptych.improve.loop import Answers
from triptych.improve.on_policy import OnPolicy, OnPolicyMethod, Tokens, measured, paid
from triptych.improve.on_policy import step as on_policy_step


class Grpo(OnPolicy):
    """Improvement by GRPO.

    Attributes:
        advantage: "group" normalises rewards by their group's deviation, "dr" does as Dr. GRPO.
    """

    method: Literal["grpo"] = "grpo"
    advantage: Literal["group", "dr"] = "group"


class GrpoMethod(OnPolicyMethod[Grpo, Tokens]):
    """GRPO over the loop."""

    settings = Grpo

    def step(self, scored: Answers) -> Step[Tokens]:
        """An update's batches."""
        return step(self.loop.reference, scored, self.config, self.loop.checkpoints.curve)


def step(reference: Policy, scored: Answers, config: Grpo, curve: Sequence[Row] = ()) -> Step[Tokens]:
    """An update's batches, and what is known of its answers."""
    measurements = measured(reference, scored, config, curve)
    rewards = config.learnt(scored)
    if config.advantage == "group":  # normalised first: where all rewards are equal, distance alone would be blown up
        return on_policy_step(measurements, group_normalised(rewards) - paid(measurements, config), config)
    return on_policy_step(measurements, centred(rewards) - paid(measurements, config), config,
                          divisor=rewards.numel() * config.max_tokens)
