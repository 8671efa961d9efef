"""Low-rank adapters: a few weights beside the model's matrices are trained in place of the matrices.

A matrix W becomes W + (α / r)·B·A, with A `[r, in]` drawn at random and B `[out, r]` zero at first, so that an
adapted model begins as the model it was (Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*,
section 4.1). Only A and B are trained, a reward model's head, and of the embeddings the rows of tokens that were added
to the vocabulary, which nothing has trained before. The layers are peft's; what is sampled from is a plain model with
the product added to its matrices. What is saved is A and B (see :mod:`triptych.engine.adapter_folder`), and who trains
such a model on with adapters goes on with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import cast_adapter_dtype
from pydantic import Field
from torch import Tensor, nn

from triptych.configuration import Config
from triptych.engine import distributed
from triptych.engine.adapter_folder import Adapters, read_adapters
from triptych.engine.prepacked import set_weight
from triptych.engine.trunk import linear_layers, share_frozen
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
        model: a plain one; of a folder of adapters their trunk.
        seed: of A; the global random state stays as it was.
        folder: that the model was just loaded from, with whose other models it shares what is frozen. Adapters that it
            holds are gone on with: the model begins as the one that they make of it. Their matrices are adapted
            whatever the targets are, and their rank is kept where `lora` has a lower one. What rank it has beyond
            theirs begins as new adapters do.

    Raises:
        ModelError: the model has no linear layer of one of the targets' names, or the folder's adapters are of
            another model.
    """
    if lora is None:
        return
    linear = [name for name, _ in linear_layers(model) if not _fused(model, name)]
    targets = linear if lora.targets == "all-linear" else [
        name for name in linear if name.endswith(tuple(f".{target}" for target in lora.targets))
    ]
    for target in () if lora.targets == "all-linear" else lora.targets:
        if not any(name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ModelError(f"lora.targets: the model has no linear layer {target!r}; it has {known}")
    start = read_adapters(folder) if folder else None
    products = start.products if start else {}
    if absent := sorted(products.keys() - linear):
        raise ModelError(f"the adapters to go on with are of another model: this has no linear layer {absent[0]}")
    rank = max(lora.rank, start.rank if start else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In a mixture of experts peft would take a shared expert's matrices, by their names, for those of all experts.
        # Of what has no architecture it knows nothing, and adapts the layers that are named.
        unnamed = nn.ModuleList([model])
        inject_adapter_in_model(
            LoraConfig(
                r=rank, lora_alpha=lora.alpha * rank / lora.rank,
                target_modules=[f"0.{name}" for name in dict.fromkeys([*targets, *products])],
            ),
            unnamed,
        )
    cast_adapter_dtype(model, NAME)  # peft makes them in the trunk's type, whose bits small updates do not reach
    if isinstance(head := getattr(model, "score", None), nn.Linear):
        head.requires_grad_(True)
    for table in added_rows(model):
        table.data = table.data.float()
        table.requires_grad_(True)
    if start is not None:
        _take_up(model, start)
    share_frozen(model, folder)


@torch.no_grad()
def _take_up(model: Model, start: Adapters) -> None:
    """Makes the adapters and the rows of added tokens those of `start`."""
    for name, (a, b) in start.products.items():
        layer = model.get_submodule(name)
        first, second = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        if first.shape[1] != a.shape[1] or len(second) != len(b):
            raise ModelError(f"the adapters to go on with are of another model: {name} has another shape")
        first[: start.rank].copy_(a)
        second[:, : start.rank].copy_(b.to(second.device).float() * (start.scaling / layer.scaling[NAME]))
    for name, rows in start.rows.items():
        table = model.get_submodule(name).weight
        table[list(start.numbers)] = rows.to(table)


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


def is_adapters(name: str) -> bool:
    """Whether a weight of this name is an adapter's, and no part of the plain model."""
    return f".{NAME}." in name


def learnt(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Each weight that training changes, by its name in the plain model: whole, with its adapter's product added."""
    layers = {f"{name}.base_layer.weight": layer for name, layer in _layers(model)}
    for name, weight in model.named_parameters():
        if layer := layers.get(name):
            start = distributed.full_tensor(weight.detach())
            yield name.replace(".base_layer.", "."), start.float() + _product(layer)
        elif weight.requires_grad and not is_adapters(name):
            yield name, distributed.full_tensor(weight.detach())


def learnt_adapters(model: Model) -> Adapters:
    """What an adapted model has learnt, apart from its trunk; the model is whole on this rank."""
    layers = dict(_layers(model))
    one = next(iter(layers.values()))
    numbers = tuple(next(iter(added_rows(model).values()), ()))
    tables = {
        name: part.weight for name, part in model.named_modules()
        if part in (model.get_input_embeddings(), model.get_output_embeddings()) and numbers
    }
    tied = {id(weight): name for name, weight in reversed(tables.items())}
    head = getattr(model, "score", None)
    return Adapters(
        one.r[NAME], one.lora_alpha[NAME],
        {name: (layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach())
         for name, layer in layers.items()},
        {tied[id(weight)]: weight.detach()[list(numbers)] for weight in tables.values()}, numbers,
        {f"score.{name}": weight.detach() for name, weight in head.named_parameters()}
        if isinstance(head, nn.Linear) else {},
    )


def take_over(model: Model, learner: Model) -> None:
    """Gives a plain model the weights that another one, adapted or not, has learnt."""
    with torch.no_grad():
        for name, weight in learnt(learner):
            set_weight(model, name, weight)


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
