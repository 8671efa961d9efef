"""Losses of policies: pure functions of log-probabilities, one value for each token, answer or pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def clipped_importance(logprobs: Tensor, old: Tensor, advantages: Tensor, clip_high: float = 0.2) -> Tensor:
    """−sg(min(ρ, 1 + ε_high))·A·log π with ρ = π(token) / π_old(token), sg without gradient, for each token.

    MiniMax (2025), *MiniMax-M1*, CISPO, equations 4 and 5: the weight is clipped and not the update, so that every
    token keeps a gradient, however far it went. As there, nothing is clipped below 1.

    Args:
        logprobs, old, advantages: `[N]`; only `logprobs` carries a gradient.
    """
    weight = torch.exp(logprobs - old).clamp(max=1 + clip_high).detach()
    return -weight * advantages * logprobs


def kl_penalty(logprobs: Tensor, reference: Tensor, old: Tensor | None = None) -> Tensor:
    """ρ·(π_ref/π − log(π_ref/π) − 1) for each token, with ρ = π/π_old: an unbiased estimate of KL(π ‖ π_ref).

    k3 of Schulman (2020), "Approximating KL divergence", weighed by the ratio. Its gradient, ρ·log(π/π_ref)·∇log π for
    each token, is that of k2 = ½·log²(π/π_ref), and unbiased too, for tokens drawn from π_old. Without ρ it is as in
    Shao et al. (2024), equation 4: the value is the same where π_old is π, but the gradient, (1 − π_ref/π)·∇log π, is
    that of KL(π_ref ‖ π) (Tang and Munos 2025, *On a few pitfalls in KL divergence gradient estimation for RL*). The
    distance is a token's behind its prefix; what the token does to those behind it is not in the gradient.

    Args:
        logprobs, reference: `[N]`.
        old: `[N]` π_old, from which the tokens were drawn; without it there is no ratio.
    """
    difference = reference - logprobs
    k3 = torch.exp(difference) - difference - 1
    return k3 if old is None else torch.exp(logprobs - old) * k3


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½·max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²) for each token.

    The value loss of PPO's implementations (Huang et al. 2024, *The N+ Implementation Details of RLHF with PPO*).

    Args:
        values, old, returns: `[N]`; only `values` carries a gradient.
    """
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """−log σ(β·h) with h = log π/π_ref(chosen) − log π/π_ref(rejected), for each pair.

    Rafailov et al. (2023), Direct Preference Optimization, equation 7.

    Args:
        chosen, rejected: `[B]` log-ratios of whole answers, log π(answer) − log π_ref(answer), in nats.

    Returns:
        `[B]`.
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))² with h as in :func:`dpo`: the pair is driven apart to a distance, and no further.

    Azar et al. (2023), A General Theoretical Paradigm to Understand Learning from Human Preferences, equation 17,
    where β is called τ. As there, h is of whole answers; TRL divides each log-ratio by its answer's length.

    Args:
        chosen, rejected: `[B]` log-ratios of whole answers.

    Returns:
        `[B]`.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto(
    ratios: Tensor, liked: Tensor, distance: float, beta: float, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """λ_D·(1 − σ(β·(r − z))) of an answer that was liked, λ_U·(1 − σ(β·(z − r))) of another, r = log π/π_ref.

    Ethayarajh et al. (2024), *KTO: Model Alignment as Prospect Theoretic Optimization*, equation 8.

    Args:
        ratios: `[A]` log-ratios of whole answers.
        liked: `[A]`, True for thumbs up.
        distance: z, the policy's distance from the reference in nats, without gradient.
        desirable, undesirable: λ_D, λ_U.

    Returns:
        `[A]`, each between 0 and its λ.
    """
    gain = torch.where(liked, ratios - distance, distance - ratios)
    return torch.where(liked, desirable, undesirable) * torch.sigmoid(-beta * gain)


def rpo(chosen: Tensor, rejected: Tensor, gap: Tensor, beta: float, scale: float = 1.0) -> Tensor:
    """KL of two coins, one that shows heads at σ(η·gap) and one at σ(β·h), with h as in :func:`dpo`.

    σ(b)·log(σ(b)/σ(a)) + (1 − σ(b))·log((1 − σ(b))/(1 − σ(a))) with a = β·h and b = η·gap: reward-aware preference
    optimisation, Nemotron-4 340B technical report (NVIDIA 2024), section 3.3.2. An answer that is hardly better is
    made hardly likelier, where :func:`dpo` would drive any pair apart. σ(η·gap) is a target and need not be the chance
    that the answer is preferred: that it is only where η·gap is in log-odds.

    Args:
        chosen, rejected: `[B]` log-ratios of whole answers.
        gap: `[B]` the chosen answer's reward less the rejected one's.
        scale: η, by which rewards are multiplied.

    Returns:
        `[B]`, zero where β·h = η·gap.
    """
    implied, wanted = beta * (chosen - rejected), scale * gap
    heads = torch.sigmoid(wanted) * (F.logsigmoid(wanted) - F.logsigmoid(implied))
    return heads + torch.sigmoid(-wanted) * (F.logsigmoid(-wanted) - F.logsigmoid(-implied))
