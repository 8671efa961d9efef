"""Muon: torch's step, and every product of a training in the compute type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from test_training import learn, policy
from triptych.engine import muon
from triptych.engine.device import compute_dtype
from triptych.engine.muon import Muon, orthogonalize
from triptych.engine.training import Optimization

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def after_steps(kind: type[torch.optim.Muon]) -> list[torch.Tensor]:
    """Matrices, wide, square and tall, after three updates with gradients of a fixed seed."""
    draws = torch.Generator().manual_seed(1)
    weights = [nn.Parameter(torch.randn(*shape, generator=draws)) for shape in ((24, 48), (24, 24), (48, 24))]
    optimizer = kind(weights, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draws)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.0), (torch.float32, 2e-3)])
def test_a_step_is_torchs(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "compute_dtype", lambda: dtype)
    for ours, theirs in zip(after_steps(Muon), after_steps(torch.optim.Muon), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(24, 48), (24, 24), (48, 24)])
def test_a_direction_has_the_matrixs_singular_vectors_and_values_near_one(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "compute_dtype", lambda: torch.float32)
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(1.0, 4.0, len(right))) @ right
    turned = left.T @ orthogonalize(matrix, COEFFICIENTS, 5) @ right.T
    values = turned.diagonal()
    torch.testing.assert_close(turned, torch.diag(values), rtol=0, atol=1e-4)
    assert values.min() > 0.6
    assert values.max() < 1.3


class Products(TorchDispatchMode):
    """Which types matrices are multiplied in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rate", [None, 0.02])
def test_a_training_multiplies_nothing_but_in_the_compute_type(rate: float | None) -> None:
    with Products() as seen:
        learn(policy(), Optimization(learning_rate=1e-3, muon_learning_rate=rate), steps=2)
    assert seen.types == {compute_dtype()}
