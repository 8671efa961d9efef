"""Losses of reward models: pure functions of rewards."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """−log σ(r_chosen − r_rejected − margin) + c·(r_chosen + r_rejected)², for each pair.

    Bradley and Terry (1952) as in Ouyang et al. (2022), equation 1; the margin as in Llama 2 (Touvron et al.
    2023, equation 2); centring as in Eisenstein et al. (2023), which keeps the sum of rewards near zero.

    Args:
        chosen, rejected: `[B]` rewards.
        margin: `[B]`, in rewards, or None for zero.
        centring: c.

    Returns:
        `[B]`.
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - margin
    return -F.logsigmoid(difference) + centring * (chosen + rejected) ** 2
