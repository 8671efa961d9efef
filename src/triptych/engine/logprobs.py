"""Log-probabilities in one place: hidden states and targets in, `[tokens, vocabulary]` never held.

SFT, DPO, GRPO, the distance from a reference and perplexity all call :func:`token_logprobs`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from triptych.engine.packing import rounded

CHUNK = 1 << 24
"""Logits held at once: 2^24 of them are 64 MiB in float32."""


def token_logprobs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, *,
    temperature: float = 1.0, softcap: float | None = None, with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log p(target | hidden) for each position, in float32.

    Args:
        hidden: `[N, E]`, only the positions that count.
        head: the output embedding, `[V, E]`, with or without bias.
        targets: `[N]` token ids.
        temperature: divides the logits.
        softcap: bounds the logits as c·tanh(l / c).
        with_entropy: also return the entropy of each distribution, in nats.

    Returns:
        `[N]` log-probabilities, and `[N]` entropies or None.
    """
    count = len(targets)
    padding = rounded(count) - count
    hidden, targets = F.pad(hidden, (0, 0, 0, padding)), F.pad(targets, (0, padding))
    size = max(1, CHUNK // head.weight.shape[0])
    pieces = list(zip(torch.split(hidden, size), torch.split(targets, size), strict=True))
    # Recomputing a chunk's logits in the backward pass is cheaper than holding them all; one chunk is held.
    recompute = torch.is_grad_enabled() and len(pieces) > 1
    results = [
        checkpoint(_chunk, h, head, t, temperature, softcap, with_entropy,
                   use_reentrant=False, preserve_rng_state=False)
        if recompute
        else _chunk(h, head, t, temperature, softcap, with_entropy)
        for h, t in pieces
    ]
    logprobs = torch.cat([logprob for logprob, _ in results])[:count]
    if not with_entropy:
        return logprobs, None
    return logprobs, torch.cat([entropy for _, entropy in results if entropy is not None])[:count]


def output_logits(hidden: Tensor, head: nn.Linear, softcap: float | None) -> Tensor:
    """`[N, V]` logits in float32 for `[N, E]` hidden states, bounded as c·tanh(l / c) where there is a cap."""
    logits: Tensor = head(hidden).float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _chunk(
    hidden: Tensor, head: nn.Linear, targets: Tensor,
    temperature: float, softcap: float | None, with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    logits = output_logits(hidden, head, softcap)
    if temperature != 1.0:
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - normaliser
    if not with_entropy:
        return logprobs, None
    expected = (torch.softmax(logits.detach(), dim=-1) * logits.detach()).sum(-1)
    return logprobs, normaliser.detach() - expected
