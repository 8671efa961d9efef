"""Group relative policy optimisation: a policy improved against a reward, near a reference.

For each prompt G answers are sampled from the current policy and scored; an answer's advantage is its reward beside
those of its group (Shao et al. 2024; the mean over tokens as in DAPO, Yu et al. 2025). Dr. GRPO (Liu et al. 2025)
leaves out the group's deviation, and divides by a constant instead of the number of tokens, so that neither easy
prompts nor long wrong answers are favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from triptych.engine.rollout import Policy
from triptych.engine.scoring import Scorer
from triptych.engine.training import Row, Step
from triptych.improve.advantages import centred, group_normalised
from triptych.improve.checkpoints import UNLIMITED, Limits
from triptych.improve.loop import Answers
from triptych.improve.on_policy import OnPolicy, Tokens, improved, measured, paid
from triptych.improve.on_policy import step as on_policy_step
from triptych.pipeline.stage import Metrics, StageContext


class Grpo(OnPolicy):
    """Improvement by GRPO.

    Attributes:
        advantage: "group" normalises rewards by their group's deviation, "dr" does as Dr. GRPO.
    """

    method: Literal["grpo"] = "grpo"
    advantage: Literal["group", "dr"] = "group"


def improve(
    context: StageContext, config: Grpo, champion: Path, data: Path, reward: Scorer, judge: Scorer | None,
    round: int = 1,
    limits: Limits = UNLIMITED,
) -> Metrics:
    """Improves the champion against the reward; the champion is also the reference."""
    return improved(context, config, champion, data, reward, judge, round, limits, step)


def step(reference: Policy, scored: Answers, config: Grpo, curve: Sequence[Row] = ()) -> Step[Tokens]:
    """An update's batches, and what is known of its answers."""
    found = measured(reference, scored, config, curve)
    rewards = config.learnt(scored)
    if config.advantage == "group":  # normalised first: where all rewards are equal, distance alone would be blown up
        return on_policy_step(found, group_normalised(rewards) - paid(found, config), config)
    return on_policy_step(found, centred(rewards) - paid(found, config), config,
                          divisor=rewards.numel() * config.max_tokens)
