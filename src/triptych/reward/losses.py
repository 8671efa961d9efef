"""Losses of reward models: pure functions of rewards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centring: float = 0.0) -> Tensor:
    """−log σ(r_chosen − r_rejected − margin) + c·(r_chosen + r_rejected)², for each pair.

    Bradley and Terry (1952) as in Ouyang et al. (2022), equation 1; the margin as in Llama 2 (Touvron et al.
    2023, equation 2); centring as in Eisenstein et al. (2023), which keeps the sum of rewards near zero. Only without
    a margin is the difference at the minimum the log-odds: with one, at P(chosen) = p, it solves
    p σ(margin − Δ) = (1 − p) σ(margin + Δ).

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


def squared_error(predicted: Tensor, given: Tensor) -> Tensor:
    """Σ_k (z_k − t_k)² / K' over the K' attributes that are given, for each rated answer.

    The regression of Wang et al. (2024), *HelpSteer2*, section 4.1, as in Nemotron-4 340B (2024), section 3.2;
    an attribute that nobody rated has no part in the mean.

    Args:
        predicted: `[B, K]` outputs.
        given: `[B, K]` ratings, NaN where there is none; each row has one at least.

    Returns:
        `[B]`.
    """
    known = ~torch.isnan(given)
    errors = torch.where(known, predicted - torch.nan_to_num(given), 0.0) ** 2
    return errors.sum(1) / known.sum(1)
