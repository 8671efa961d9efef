"""A sampler's weights, laid out beforehand as the processor's matrix product wants them.

The product in bfloat16 reorders a matrix of weights in each call. Where few rows are multiplied, as in decoding, that
takes longer than to multiply them; a sampler's weights stay the same for thousands of calls, and are reordered once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from triptych.engine.forward import Model


class PrepackedLinear(nn.Module):
    """A linear layer for inference in bfloat16 on a CPU; its weights are held in the processor's order alone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.take(layer.weight)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Takes over weights `[out, in]` of any type."""
        self._laid = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16))

    def forward(self, rows: Tensor) -> Tensor:
        """`[..., out]` for `[..., in]`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._laid, self.bias, "none", [], "")
        return product


def prepack(model: Model) -> Model:
    """The model with its linear layers laid out, where this processor has such products; otherwise as it is."""
    if model.dtype == torch.bfloat16 and model.device.type == "cpu" and _available():
        for name, layer in list(model.named_modules()):
            if type(layer) is nn.Linear:
                model.set_submodule(name, PrepackedLinear(layer))
    return model


def set_weight(model: Model, name: str, weight: Tensor) -> None:
    """Gives a model, laid out or not, the weight of this name; an output embedding that is tied to it follows."""
    module, _, own = name.rpartition(".")
    place = model.get_submodule(module)
    if isinstance(place, PrepackedLinear) and own == "weight":
        place.take(weight)
    else:
        place.get_parameter(own).copy_(weight)
    head = model.get_output_embeddings()
    if isinstance(head, PrepackedLinear) and model.config.tie_word_embeddings and place is model.get_input_embeddings():
        head.take(weight)


def _available() -> bool:
    """Whether torch was built with these products, which are the ones that its compiler uses."""
    operations: Any = torch.ops.mkldnn
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available()) and hasattr(operations, "_reorder_linear_weight")
