"""Low-rank adapters: a few weights beside the model's matrices are trained in place of the matrices.

A matrix W becomes W + (α / r)·B·A, with A `[r, in]` drawn at random and B `[out, r]` zero at first, so that an
adapted model begins as the model it was (Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*,
section 4.1). Only A and B are trained, a reward model's head, and of the embeddings the rows of tokens that were added
to the vocabulary, which nothing has trained before. The layers are peft's; what is sampled from and
what is saved are plain models with the product added to their matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from triptych.configuration import Config
from triptych.engine import distributed
from triptych.engine.prepacked import set_weight
from triptych.engine.trunk import share_frozen
from triptych.errors import ModelError

Model = Any
NAME = "default"
"""What peft calls the one adapter that there is."""


class Lora(Config):
    """Low-rank adapters in place of full training.

    Attributes:
        rank: r, of the products that are added to the matrices.
        alpha: α; the products are multiplied by α / r.
        targets: which matrices: "all-linear" for all of the layers', or the ends of their names. Those of a state-space
            layer that its kernels read past an adapter are none.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


def adapt(model: Model, lora: Lora | None, seed: int, folder: Path | None = None) -> None:
    """Adds adapters to the model and freezes the rest but a reward head and added tokens; does nothing without `lora`.

    What is frozen is held from here on as :mod:`triptych.engine.trunk` says.

    Args:
        seed: of A; the global random state stays as it was.
        folder: that the model was just loaded from, with whose other models it shares what is frozen.

    Raises:
        ModelError: the model has no linear layer of one of the targets' names.
    """
    if lora is None:
        return
    outside = (model.get_output_embeddings(), getattr(model, "score", None))
    linear = [
        name for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part not in outside and not _fused(model, name)
    ]
    targets = linear if lora.targets == "all-linear" else [
        name for name in linear if name.endswith(tuple(f".{target}" for target in lora.targets))
    ]
    for target in () if lora.targets == "all-linear" else lora.targets:
        if not any(name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ModelError(f"lora.targets: the model has no linear layer {target!r}; it has {known}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In a mixture of experts peft would take a shared expert's matrices, by their names, for those of all experts.
        # Of what has no architecture it knows nothing, and adapts the layers that are named.
        unnamed = nn.ModuleList([model])
        inject_adapter_in_model(
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=[f"0.{name}" for name in targets]), unnamed
        )
    if isinstance(head := getattr(model, "score", None), nn.Linear):
        head.requires_grad_(True)
    for table in added_rows(model):
        table.requires_grad_(True)
    share_frozen(model, folder)


def _fused(model: Model, name: str) -> bool:
    """Whether it is one of the matrices of a state-space layer that its kernels read past any adapter."""
    layer, _, own = name.rpartition(".")
    return own in ("dt_proj", "out_proj", "x_proj") and hasattr(model.get_submodule(layer), "conv1d")


def added_rows(model: Model) -> dict[Tensor, list[int]]:
    """Of an adapted model the embeddings that are trained in part, and which of their rows; nothing of another."""
    rows = getattr(model.config, "added_tokens", None) if adapted(model) else None
    if not rows:
        return {}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {layer.weight: rows for layer in layers if layer is not None}


@torch.no_grad()
def confine_gradients(model: Model) -> None:
    """Takes the gradients away of those rows of the embeddings that adapters leave as they are."""
    for table, rows in added_rows(model).items():
        if table.grad is not None:
            kept = torch.zeros(table.shape[0], 1, dtype=table.grad.dtype, device=table.grad.device)
            kept[rows] = 1
            table.grad.mul_(distributed.shard_like(kept.expand(table.shape), table))


def adapted(model: Model) -> bool:
    """Whether the model has adapters."""
    return any(True for _ in _layers(model))


def trained(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Each weight that an optimizer changes, whole, by its name in this model."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            yield name, distributed.full_tensor(weight.detach())


def learnt(model: Model, before: Model | None = None) -> Iterator[tuple[str, Tensor]]:
    """Each weight that training changes, by its name in the plain model: whole, with its adapter's product added.

    Args:
        before: the model as it was, to whose weights the products are added; by default the frozen ones, which may
            have been rounded to the compute type.
    """
    layers = {f"{name}.base_layer.weight": layer for name, layer in _layers(model)}
    for name, weight in model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if layer := layers.get(name):
            start = distributed.full_tensor(weight.detach()) if before is None else before.get_parameter(plain).detach()
            yield plain, start.float() + _product(layer)
        elif weight.requires_grad and f".{NAME}." not in name:
            yield plain, distributed.full_tensor(weight.detach())


def take_over(model: Model, learner: Model, before: Model | None = None) -> None:
    """Gives a plain model the weights that another one, adapted or not, has learnt."""
    with torch.no_grad():
        for name, weight in learnt(learner, before):
            set_weight(model, name, weight)


def merged(model: Model, load: Callable[[], Model]) -> Model:
    """The plain model with what its adapters learnt; a model without adapters as it is.

    Args:
        load: loads the model as it was before it was adapted, in full precision.
    """
    if not adapted(model):
        return model
    plain = load()
    take_over(plain, model, before=plain)
    return plain


def plain_copy(model: Model, dtype: torch.dtype) -> Model:
    """A copy of the model in `dtype` without its adapters; see :func:`take_over`."""
    copy = distributed.full_copy(model, dtype)
    for name, layer in list(_layers(copy)):
        copy.set_submodule(name, layer.base_layer)
    if hasattr(copy, "peft_config"):
        del copy.peft_config
    return copy


def _layers(model: Model) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer))


def _product(layer: Any) -> Tensor:
    """`[out, in]`: (α / r)·B·A."""
    a, b = (distributed.full_tensor(part[NAME].weight.detach()).float() for part in (layer.lora_A, layer.lora_B))
    product: Tensor = (b @ a) * layer.scaling[NAME]
    return product
