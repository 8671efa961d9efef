"""Advantages: how much better than expected an answer was, or a token of it. Pure functions of rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def priced(rewards: Tensor, finished: Tensor, price: float) -> Tensor:
    """Rewards in which an answer that was cut has its group's lowest finished one less a price.

    A cut answer has no end to be scored, and what a reward says of it is no measure. Left out of the loss (Yu et al.
    2025, DAPO, section 3.4, overlong filtering), not to end costs nothing, and with a reward that likes length policies
    stop ending. Where none of a group finished, the lowest of all groups stands for it.

    Args:
        rewards: `[P, G]`.
        finished: `[P, G]`, False for an answer that was cut.

    Returns:
        `[P, G]`; the cut answers of a group are equal, and with a price below all others.
    """
    of_finished = rewards.masked_fill(~finished, torch.inf)
    lowest = of_finished.amin(dim=1, keepdim=True)
    lowest = torch.where(finished.any(dim=1, keepdim=True), lowest, of_finished.amin() if finished.any() else 0.0)
    return torch.where(finished, rewards, lowest - price)


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


def centred(rewards: Tensor) -> Tensor:
    """r − mean of its group: GRPO without the deviation, which favours prompts that are nearly always or never solved.

    Liu et al. (2025), Understanding R1-Zero-Like Training (Dr. GRPO), section 3.2.

    Args:
        rewards: `[P, G]`.

    Returns:
        `[P, G]`.
    """
    return rewards - rewards.mean(dim=1, keepdim=True)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r − mean of the *other* answers of its group, an unbiased baseline.

    Ahmadian et al. (2024), Back to Basics (RLOO), equation 8; it is G / (G − 1) times :func:`centred`.

    Args:
        rewards: `[P, G]`.

    Returns:
        `[P, G]`.
    """
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / others


def generalised(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ·V_{t+1} − V_t, for each token of each answer; V behind the end is 0.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, equation 16.

    Args:
        rewards, values: `[N]` of the tokens of all answers, one answer behind the other.
        lengths: `[A]` each answer's tokens, N together.

    Returns:
        `[N]`; with λ = 1 what is still to come less the value, with λ = 0 the one-step error δ.
    """
    padded = [torch.nn.utils.rnn.pad_sequence(list(torch.split(row, lengths.tolist())), batch_first=True)
              for row in (rewards, values)]
    reward, value = padded
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    deltas = reward + gamma * following - value
    advantages = torch.zeros_like(deltas)
    ahead = torch.zeros_like(deltas[:, 0])
    for place in reversed(range(deltas.shape[1])):
        advantages[:, place] = ahead = deltas[:, place] + gamma * lam * ahead
    return advantages[torch.arange(deltas.shape[1], device=lengths.device) < lengths[:, None]]


def whitened(advantages: Tensor, counted: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Advantages of mean 0 and deviation 1 over the tokens that count.

    Args:
        advantages, counted: `[N]`; 1 for a token that counts, else 0.

    Returns:
        `[N]`.
    """
    total = counted.sum().clamp(min=1)
    mean = (advantages * counted).sum() / total
    variance = ((advantages - mean) ** 2 * counted).sum() / total
    return (advantages - mean) / (variance + epsilon).sqrt()
