"""Advantages: how much better than expected an answer was. Pure functions of rewards."""

from __future__ import annotations

from torch import Tensor


def group_normalised(rewards: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(r − mean of its group) / (standard deviation of its group + ε).

    Shao et al. (2024), DeepSeekMath, section 4.1.2; the deviation is the sample's (n − 1), as in TRL.

    Args:
        rewards: `[P, G]`, G answers to each of P prompts.

    Returns:
        `[P, G]`; zero where all answers of a group have the same reward.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + epsilon)
