"""Losses of policies: pure functions of log-probabilities, one value for each token."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """−min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A) with ρ = π(token) / π_old(token), for each token.

    Schulman et al. (2017), PPO, equation 7; the two-sided ε as in DAPO (Yu et al. 2025).

    Args:
        logprobs, old, advantages: `[N]`; only `logprobs` carries a gradient.
    """
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_penalty(logprobs: Tensor, reference: Tensor) -> Tensor:
    """π_ref/π − log(π_ref/π) − 1 for each token: an unbiased, never negative estimate of KL(π ‖ π_ref).

    Schulman (2020), "Approximating KL divergence", k3; in the loss as in Shao et al. (2024), equation 4.

    Args:
        logprobs, reference: `[N]`.
    """
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1
