"""Muon in the compute type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triptych.engine import distributed
from triptych.engine.device import compute_dtype


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) as torch has it, orthogonalised in the compute type.

    torch's is orthogonalised in bfloat16 everywhere. A processor without bfloat16 multiplies it some 15 times as
    slowly as float32.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """B ← μ B + (1 − μ) g and θ ← (1 − η λ) θ − η max(1, rows / columns)^½ O, where O orthogonalises
        (1 − μ) g + μ B.
        """
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, weights, gradients, buffers)
            for weight, gradient, buffer in zip(weights, gradients, buffers, strict=True):
                buffer.lerp_(gradient, 1 - momentum)
                direction = orthogonalize(gradient.lerp(buffer, momentum), group["ns_coefficients"], group["ns_steps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(direction, alpha=-rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


class WholeMuon(Muon):
    """Muon for matrices that lie in slices: it orthogonalises whole ones, the same on every rank."""

    def __init__(self, weights: Sequence[Tensor], **settings: Any) -> None:
        self.weights = weights
        super().__init__([nn.Parameter(distributed.full_tensor(weight.detach())) for weight in weights], **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Gathers weights and gradients, updates them, and puts the slices back."""
        whole = self.param_groups[0]["params"]
        for mine, weight in zip(whole, self.weights, strict=True):
            mine.copy_(distributed.full_tensor(weight))
            mine.grad = distributed.full_tensor(weight.grad)
        super().step(closure)
        for mine, weight in zip(whole, self.weights, strict=True):
            weight.copy_(distributed.shard_like(mine.detach(), weight))
            mine.grad = None


def orthogonalize(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, roughly, by Newton and Schulz's iteration.

    X ← a X + (b X Xᵀ + c (X Xᵀ)²) X, from the matrix over its Frobenius norm; singular values end between 0.7 and 1.2.

    Args:
        matrix: `[rows, columns]`.

    Returns:
        `[rows, columns]`, in the compute type.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(compute_dtype())
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
