"""NF4: matrices of a trunk in four bits a number, which compute as the numbers in bfloat16 that they stand for.

A block of 64 numbers has one scale, the largest magnitude among them, and each number is the nearest of 16 shares of it
(Dettmers et al. 2023, *QLoRA: Efficient Finetuning of Quantized LLMs*, section 3). A Base is rounded to such numbers
once, by :func:`round_to_nf4`. From there on it is a plain model in bfloat16 to whoever reads its folder, and here
:func:`pack` holds what nothing trains in four bits: the numbers are the same, so that no result depends on it. The
kernels are those of bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

BLOCK = 64
"""Numbers with one scale."""
SHARES = 16
"""Magnitudes and signs that a number of a block can have."""
LIBRARY = "bitsandbytes"
MISSING = f"needs the library {LIBRARY}: pip install 'triptych[bitsandbytes]'"

aten = torch.ops.aten
ALIASES = {aten.detach.default, aten.alias.default}
"""Operations that give the same matrix."""


class Nf4Tensor(Tensor):
    """A matrix in bfloat16 that is held in four bits a number, and is only read.

    A linear layer makes its numbers anew in each product, forward and backward, and keeps none of them. Any other
    operation gets the matrix in bfloat16.

    Args:
        packed: `[numbers / 2, 1]`, two numbers in a byte.
        scales: `[blocks]`, in bfloat16.
        shape: of the matrix.
    """

    packed: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor, scales: Tensor, shape: Sequence[int]) -> Nf4Tensor:
        """A tensor of this shape that owns no memory of its own."""
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16, device=packed.device)

    def __init__(self, packed: Tensor, scales: Tensor, shape: Sequence[int]) -> None:
        self.packed = packed
        self.scales = scales

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Nf4Tensor({tuple(self.shape)}, device={self.device})"

    @property
    def held(self) -> int:
        """The bytes that it takes."""
        return self.packed.nbytes + self.scales.nbytes

    def unpacked(self) -> Tensor:
        """The matrix in bfloat16."""
        whole: Tensor = _kernels().dequantize_4bit(
            self.packed, self.scales.float(), BLOCK, "nf4", self.shape, torch.bfloat16
        )
        return whole

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A linear layer's product by itself, everything else as of any tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear and type(args[1]) is cls:
                return _product(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What reads a matrix gets it in bfloat16; what would write to one is refused."""
        kwargs = kwargs or {}
        if func in ALIASES:
            matrix = args[0]
            return cls(matrix.packed, matrix.scales, matrix.shape)
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [named.get(argument.name) for argument in func._schema.arguments if argument.is_write]
        if any(isinstance(value, cls) for value in written):
            raise RuntimeError(f"{func}: a matrix that is held in four bits is only read")
        args, kwargs = tree_map_only(cls, cls.unpacked, (args, kwargs))
        return func(*args, **kwargs)


class _Product(torch.autograd.Function):
    """Rows times a matrix that is not trained; for the backward pass no number of it is kept."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Nf4Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(rows, weight.unpacked().to(rows.dtype), None if bias is None else bias.to(rows.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight.unpacked().to(gradient.dtype), None, None


def _product(rows: Tensor, weight: Nf4Tensor, bias: Tensor | None = None) -> Tensor:
    kind = rows.device.type
    if torch.is_autocast_enabled(kind):
        rows = rows.to(torch.get_autocast_dtype(kind))
    product: Tensor = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return product


def available() -> bool:
    """Whether the library of the kernels is installed."""
    return find_spec(LIBRARY) is not None


@torch.no_grad()
def round_to_nf4(matrix: Tensor) -> Tensor:
    """`[out, in]` in bfloat16: the nearest that NF4 holds without loss.

    Scales are rounded to bfloat16 too, as the largest number of a block is; a second rounding finds them so.
    """
    rounded = _quantized(matrix)
    again = _quantized(rounded.unpacked())
    return again.unpacked()


@torch.no_grad()
def pack(matrix: Tensor) -> Nf4Tensor | None:
    """The matrix in four bits a number; None where these would not be the same numbers, or the library is missing."""
    if matrix.flatten()[:BLOCK].unique().numel() > SHARES or not available():
        return None
    packed = _quantized(matrix.to(torch.bfloat16))
    return packed if torch.equal(packed.unpacked().to(matrix.dtype), matrix) else None


def holds_nf4(model: torch.nn.Module) -> bool:
    """Whether some of the model's matrices are held in four bits."""
    return any(isinstance(weight, Nf4Tensor) for weight in model.parameters())


def _quantized(matrix: Tensor) -> Nf4Tensor:
    packed, scales = _kernels().quantize_4bit(matrix.contiguous(), BLOCK, "nf4", torch.uint8)
    return Nf4Tensor(packed, scales.to(torch.bfloat16), matrix.shape)


@cache
def _kernels() -> Any:
    import bitsandbytes  # noqa: F401 (an extra, and it takes its time)

    return torch.ops.bitsandbytes
