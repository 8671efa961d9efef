"""Our attention, registered with transformers by name, so that every decoder architecture can use it.

transformers passes keyword arguments of a model's `forward` through to its attention function; we pass the
*layout*, which knows where each token's keys are: a :class:`~triptych.engine.packing.Pack` in training and
prefill, a :class:`~triptych.engine.cache.SlotCache` in decoding.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "triptych"


class Layout(Protocol):
    """Where the keys of each token in the row are."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Attention of `[1, H, T, D]` queries; returns `[1, T, H, D]`."""


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
    layout: Layout | None = None, **_: Any,
) -> tuple[Tensor, None]:
    assert layout is not None, "a model with Triptych's attention is called through engine.forward"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)
    layer: Any = module.layer_idx
    return layout.attend(layer, query, key, value, scaling, sliding_window, softcap), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout keeps sequences apart; transformers need not build a mask."""


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)
