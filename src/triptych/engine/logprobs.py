"""Log-probabilities in one place: hidden states and targets in, `[tokens, vocabulary]` never held.

SFT, DPO, GRPO, the distance from a reference and perplexity all call :func:`token_logprobs`. Logits are made
for a block of rows, in the compute type; what is done to them in float32 is done to a few rows at a time, which
stay in the processor's cache. The backward pass makes each block's logits again, which costs less than to keep
them, and turns them into gradients in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from triptych.engine.packing import rounded

BLOCK = 1 << 24
"""Logits held at once: 2^24 of them are 32 MiB in bfloat16."""

CACHED = 1 << 21
"""Logits worked on at once in float32: 8 MiB, which a processor's cache holds."""


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
        with_entropy: also return the entropy of each distribution, in nats; it carries no gradient.

    Returns:
        `[N]` log-probabilities, and `[N]` entropies or None.
    """
    count = len(targets)
    padding = rounded(count) - count
    hidden, targets = F.pad(hidden, (0, 0, 0, padding)), F.pad(targets, (0, padding))
    shape = _Shape(temperature, softcap, with_entropy)
    logprobs, entropies = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, shape
    )
    return logprobs[:count], entropies[:count] if with_entropy else None


@torch.no_grad()
def greedy_logprobs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`[N]` log-probabilities as :func:`token_logprobs` gives them, and whether each target is the likeliest token.

    Without gradient.
    """
    count = len(targets)
    padding = rounded(count) - count
    hidden, targets = F.pad(hidden, (0, 0, 0, padding)), F.pad(targets, (0, padding))
    logprobs = hidden.new_empty(len(targets), dtype=torch.float32)
    greedy = torch.empty_like(targets, dtype=torch.bool)
    kind = _kind(hidden, head.weight)
    bias = None if head.bias is None else head.bias.to(kind)
    for rows, scores in _scores(hidden.to(kind), head.weight.to(kind), bias, _Shape(temperature, softcap, False)):
        logprobs[rows] = scores.gather(1, targets[rows, None])[:, 0] - scores.logsumexp(dim=-1)
        greedy[rows] = scores.argmax(dim=-1) == targets[rows]
    return logprobs[:count], greedy[:count]


def output_logits(hidden: Tensor, head: nn.Linear, softcap: float | None, scale: float = 1.0) -> Tensor:
    """`[N, V]` logits for `[N, E]` hidden states, in the compute type, or float32 where a cap bounds them.

    Args:
        scale: multiplies them, where it is not 1, behind the cap.
    """
    logits: Tensor = head(hidden)
    if softcap is not None:
        logits = _capped(logits.float(), softcap)
    return logits if scale == 1.0 else logits * scale


def rows_at_once(logits: Tensor) -> int:
    """How many rows of `[N, V]` logits are worked on together in float32; on an accelerator, which waits for each
    kernel's launch, more."""
    return max(1, (CACHED if logits.device.type == "cpu" else BLOCK) // logits.shape[1])


def _capped(logits: Tensor, softcap: float) -> Tensor:
    return logits.div_(softcap).tanh_().mul_(softcap)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What turns the head's outputs into a distribution, and what is wanted of it."""

    temperature: float
    softcap: float | None
    with_entropy: bool

    def scores(self, logits: Tensor) -> Tensor:
        """A float32 copy of some logits, capped and divided by the temperature."""
        scores = logits.to(torch.float32, copy=True)
        if self.softcap is not None:
            scores = _capped(scores, self.softcap)
        return scores if self.temperature == 1.0 else scores.div_(self.temperature)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(W h)[target], block by block in both directions."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor]:
        kind = _kind(hidden, weight)
        normalisers = hidden.new_empty(len(targets), dtype=torch.float32)
        logprobs, entropies = torch.empty_like(normalisers), torch.zeros_like(normalisers)
        for rows, scores in _scores(hidden.to(kind), weight.to(kind), None if bias is None else bias.to(kind), shape):
            normaliser = scores.logsumexp(dim=-1)
            normalisers[rows] = normaliser
            logprobs[rows] = scores.gather(1, targets[rows, None])[:, 0] - normaliser
            if shape.with_entropy:
                probabilities = (scores - normaliser[:, None]).exp_()
                entropies[rows] = normaliser - (probabilities.mul_(scores)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.shape, ctx.kind = shape, kind
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d logprob / d score_v = [v = target] − p_v."""
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        shape, kind = ctx.shape, ctx.kind
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight) if wants_weight else None
        to_bias = torch.zeros_like(bias) if wants_bias else None
        weight_, bias_ = weight.to(kind), None if bias is None else bias.to(kind)
        with torch.autocast(hidden.device.type, enabled=False):
            for block in _blocks(len(targets), len(weight)):
                states = hidden[block].to(kind)
                logits = F.linear(states, weight_, bias_)
                for place, rows in _parts(block, logits):
                    scores = shape.scores(logits[place])
                    slope = None
                    if shape.softcap is not None:  # d (c·tanh(l/c)) / dl = 1 − tanh²(l/c)
                        slope = 1 - (scores * (shape.temperature / shape.softcap)) ** 2
                    scores.sub_(normalisers[rows, None]).exp_().neg_()
                    scores.scatter_add_(1, targets[rows, None], torch.ones_like(scores[:, :1]))
                    scores.mul_(gradient[rows, None] / shape.temperature)
                    if slope is not None:
                        scores.mul_(slope)
                    logits[place] = scores
                if to_hidden is not None:
                    to_hidden[block] = logits @ weight_
                if to_weight is not None:
                    to_weight += logits.T @ states
                if to_bias is not None:
                    to_bias += logits.sum(0, dtype=torch.float32)
        return to_hidden, to_weight, to_bias, None, None


def _kind(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """In which type logits are made."""
    kind = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
    return kind or torch.promote_types(hidden.dtype, weight.dtype)


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Iterator[tuple[slice, Tensor]]:
    """A few rows at a time: which, and what their distributions are made of, in float32."""
    for block in _blocks(len(hidden), len(weight)):
        logits = F.linear(hidden[block], weight, bias)
        for place, rows in _parts(block, logits):
            yield rows, shape.scores(logits[place])


def _blocks(count: int, vocabulary: int) -> Iterator[slice]:
    """Rows whose logits are held together."""
    size = max(1, BLOCK // vocabulary)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _parts(block: slice, logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """A block's rows a few at a time: their places in the block, and in all rows."""
    size = rows_at_once(logits)
    for start in range(block.start, block.stop, size):
        stop = min(start + size, block.stop)
        yield slice(start - block.start, stop - block.start), slice(start, stop)
