"""The machine's own rate of matrix products in the compute type, against which fractions are taken."""

from __future__ import annotations

import time

import torch

from triptych.engine.device import compute_dtype

SIZE = 2048


def rate(device: str, repeats: int = 12) -> float:
    """Operations per second of the fastest of several products of two 2048 × 2048 matrices."""
    size = SIZE if device == "cpu" else 4 * SIZE
    left, right = (torch.randn(size, size, device=device, dtype=compute_dtype()) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        product = left @ right
        if product.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
