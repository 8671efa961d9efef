"""The trunk: weights that nothing trains, held once in memory, however many models compute with them.

A reference, a reward, a judge, and what lies below a policy's adapters are only read. Their matrices are multiplied in
the compute type, and so they are held in it: autocast would round them to the same numbers in each pass. Embeddings and
norms, whose sums are in float32, stay as they are. Matrices that NF4 holds without loss are held so
(:mod:`triptych.engine.nf4`). Models that were loaded from the same files hold the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from triptych.engine import distributed
from triptych.engine.adapter_folder import read_adapters
from triptych.engine.device import compute_dtype, device
from triptych.engine.forward import Model, packs
from triptych.engine.inspection import trunk_of
from triptych.engine.nf4 import pack, round_to_nf4
from triptych.errors import ModelError

_held: WeakValueDictionary[tuple[Any, ...], nn.Parameter] = WeakValueDictionary()
"""The weights in memory, by the files that they were read from, their names and their types."""


class Float32Products(TorchFunctionMode):
    """Within, a linear layer multiplies in its input's type, whatever type its weights are stored in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Casts the weights of one product for as long as it takes."""
        if func is F.linear:
            rows, *weights = args
            args = (rows, *(weight if weight is None else weight.to(rows.dtype) for weight in weights))
            kwargs = {name: value if value is None else value.to(rows.dtype) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def widen(model: Model) -> None:
    """Has the model hold in float32 all that is not multiplied as a matrix: embeddings, norms, a reward's head."""
    matrices = _matrices(model)
    for weight in model.parameters():
        if weight not in matrices:
            weight.data = weight.data.float()


@torch.no_grad()
def quantize(model: Model) -> int:
    """Rounds the matrices of the model's layers, not embeddings and head, to what NF4 holds; says how many.

    They are held in bfloat16 from there on, in which such numbers are exact.

    Raises:
        ModelError: most of its numbers are experts', which are no matrices of layers, and would stay as they are.
    """
    weights = [layer.weight for _, layer in linear_layers(model)]
    if (inside := in_experts(model)) > sum(weight.numel() for weight in weights):
        raise ModelError(
            f"{type(model).__name__} has {inside:,} of its numbers in experts, which are not held in NF4 here: leave "
            "base.quantization out"
        )
    for weight in weights:
        weight.data = round_to_nf4(weight)
    return len(weights)


def in_experts(model: Model) -> int:
    """The numbers in a mixture's experts, all of a layer's in one tensor each; they stay in float32."""
    return sum(weight.numel() for weight in model.parameters() if weight.ndim == 3)


def linear_layers(model: Model) -> Iterator[tuple[str, nn.Linear]]:
    """Each linear layer between embeddings and head, by its name."""
    outside = (model.get_output_embeddings(), getattr(model, "score", None))
    return ((name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear) and part not in outside)


def _matrices(model: Model) -> set[nn.Parameter]:
    """The weights that are multiplied as matrices and read nowhere else: a tied head's are embeddings, too.

    Adapters are none of them. They are small, and stay in float32.
    """
    embeddings, head = model.get_input_embeddings().weight, getattr(model, "score", None)
    layers = (
        module for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    )
    return {weight for layer in layers for weight in layer.parameters(recurse=False) if weight is not embeddings}


def take_held(model: Model, folder: Path) -> None:
    """Gives a model those matrices of its layers that other models hold already, before it takes memory for its own.

    Args:
        folder: from whose files the model was just loaded.
    """
    trunk = _identity(trunk_of(folder))
    for name, layer in linear_layers(model):
        held = _held.get((trunk, (), f"{name}.weight", compute_dtype(), device()))
        if held is not None and not held._version:
            layer.weight = held


def share_frozen(model: Model, folder: Path | None) -> Model:
    """Holds each weight of the model that is not trained once, together with other models of the same folder.

    A model that does not pack keeps its weights' types: its own layers may read them outside of a matrix product.

    Args:
        folder: from whose files the model was just loaded; nothing of it has been changed since. What is not its
            adapters' is shared with all models over the same trunk. None shares nothing.
    """
    adapters = read_adapters(folder) if folder else None
    apart = {*adapters.head, *(f"{layer}.weight" for layer in adapters.rows)} if adapters else set()
    trunk, files = (_identity(trunk_of(folder)), _identity(folder)) if folder else ((object(),), ())
    matrices = _matrices(model) if packs(model) else set()
    replaced: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight has two places
    for module, own, name in _frozen(model):
        weight: nn.Parameter = getattr(module, own)
        if weight not in replaced:
            dtype = compute_dtype() if weight in matrices else weight.dtype
            key = (trunk, files if name in apart or ".lora_" in name else (), name, dtype, weight.device)
            held = _held.get(key)
            if held is None or held._version:  # or somebody has written to it since
                # A copy on a CPU, so that no file stays mapped for a part of it.
                copied = weight.detach().to(dtype, copy=weight.device.type == "cpu")
                packed = pack(copied) if weight in matrices and not distributed.grouped() else None
                held = nn.Parameter(copied if packed is None else packed, requires_grad=False)
                _held[key] = held
            replaced[weight] = held
        setattr(module, own, replaced[weight])
    return model


def _identity(folder: Path) -> tuple[Any, ...]:
    """Of the weights' files: a file that is written anew is another one."""
    states = [path.stat() for path in sorted(folder.glob("*.safetensors"))]
    return tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def _frozen(model: Model) -> Iterator[tuple[nn.Module, str, str]]:
    """Each weight that is not trained: its module, its name there, and its name in the plain model."""
    for place, module in model.named_modules():
        for own, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not weight.requires_grad:
                yield module, own, f"{place}.{own}".replace(".base_layer.", ".")
