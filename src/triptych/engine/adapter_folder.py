"""Low-rank adapters on disk: a folder in peft's form, beside the trunk that they are added to.

Such a folder has what any model's folder has, settings and tokenizer, but for the weights: in their place are
`adapter_model.safetensors`, what was learnt, and `adapter_config.json`, which names the trunk, a plain folder. A
name is a whole path, or one below the folder itself or below any folder above it; so a run, or a release, can be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.display import one_line
from triptych.engine.inspection import ADAPTER, ADAPTER_WEIGHTS, PREFIX, inspect_adapter, trunk_of
from triptych.errors import ModelError
from triptych.storage import digests

ROWS = ".token_adapter.trainable_tokens_delta"
"""How peft names the rows of an embedding that are trained."""
PLAIN = {
    "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {},
    "alpha_pattern": {},
}
"""Settings by which low-rank adapters are the product (α / r)·B·A and no more."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """What is added to a trunk.

    Attributes:
        rank, alpha: r and α.
        products: of each adapted matrix, by its layer's name: A `[r, in]` and B `[out, r]`.
        rows: of each embedding that is trained in part, by its name: the rows of added tokens `[n, width]`.
        numbers: of these tokens `[n]`.
        head: a reward's, by the names of its weights.
    """

    rank: int
    alpha: float
    products: Mapping[str, tuple[Tensor, Tensor]]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def scaling(self) -> float:
        """α / r."""
        return self.alpha / self.rank

    @property
    def names(self) -> set[str]:
        """The weights of the trunk that are not the trunk's in the plain model."""
        return {f"{layer}.weight" for layer in (*self.products, *self.rows)}

    def added(self, name: str, weight: Tensor) -> Tensor:
        """The weight of the plain model in float32, of the trunk's of this name; itself where nothing is added.

        Raises:
            ModelError: the two do not fit.
        """
        layer = name.removesuffix(".weight")
        if layer in self.products:
            a, b = (part.to(weight.device).float() for part in self.products[layer])
            if (len(b), a.shape[1]) != tuple(weight.shape):
                raise ModelError(f"the adapters of {one_line(layer)} are for a matrix of {len(b)}×{a.shape[1]}")
            product: Tensor = weight.detach().float() + (b @ a) * self.scaling
            return product
        if layer in self.rows:
            rows, places = self.rows[layer].to(weight.device), torch.tensor(self.numbers, device=weight.device)
            if weight.ndim != 2 or rows.shape[1] != weight.shape[1] or max(self.numbers) >= len(weight):
                raise ModelError(f"the rows of {one_line(layer)} are for another table")
            return weight.detach().float().index_copy(0, places, rows.float())
        return weight

    @torch.no_grad()
    def add_to(self, model: nn.Module) -> None:
        """Makes the plain model of a loaded trunk, a matrix at a time; the trunk's tensors themselves are not written.

        Raises:
            ModelError: the adapters do not fit the model.
        """
        named = dict(model.named_parameters())
        if absent := sorted(self.names - named.keys()):
            raise ModelError(f"there is no {one_line(absent[0])}")
        plain = {
            weight: nn.Parameter(self.added(name, weight).to(weight.dtype), requires_grad=weight.requires_grad)
            for name, weight in named.items() if name in self.names
        }
        for name, weight in list(model.named_parameters(remove_duplicate=False)):
            if weight in plain:  # an output embedding that is tied to one of them follows
                layer, _, own = name.rpartition(".")
                setattr(model.get_submodule(layer), own, plain[weight])

    @torch.no_grad()
    def give_head(self, model: nn.Module) -> None:
        """Gives a reward model its head.

        Raises:
            ModelError: it does not fit.
        """
        for name, weight in self.head.items():
            place = model.get_parameter(name)
            if place.shape != weight.shape:
                raise ModelError(f"{one_line(name)} is for another number of outputs")
            place.copy_(weight)


def read_adapters(folder: Path) -> Adapters | None:
    """What a folder of adapters holds; None where the folder is a plain one.

    Raises:
        ModelError: they are of another kind than low-rank products, or damaged.
    """
    if not (folder / ADAPTER).exists():
        return None
    shown = one_line(folder / ADAPTER)
    settings, tensors = inspect_adapter(folder)
    for name, plain in PLAIN.items():
        if settings.get(name) not in (None, plain):
            raise ModelError(f"{shown}: {name} is {one_line(repr(settings[name]))[:60]}, which is only merged: "
                             "name the folder as base.from")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(f"{shown}: r must be a whole number above 0, and lora_alpha a number")
    parts: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}, "rows": {}, "head": {}}
    for name, tensor in tensors.items():
        own = name.removeprefix(PREFIX)
        layer, _, kind = own.removesuffix(".weight").rpartition(".")
        if kind in ("lora_A", "lora_B"):
            parts[kind][layer] = tensor
        elif own.endswith(ROWS):
            parts["rows"][own.removesuffix(ROWS)] = tensor
        elif own.startswith("score."):
            parts["head"][own] = tensor
        else:
            raise ModelError(f"{one_line(folder / ADAPTER_WEIGHTS)}: holds {one_line(name)[:100]}, which is neither a "
                             "low-rank product nor a reward's head")
    first, second = parts["lora_A"], parts["lora_B"]
    if first.keys() != second.keys() or any(
        a.ndim != 2 or second[layer].ndim != 2 or len(a) != rank or second[layer].shape[1] != rank
        for layer, a in first.items()
    ):
        raise ModelError(f"{one_line(folder / ADAPTER_WEIGHTS)}: its products are not of rank {rank}, r in {ADAPTER}")
    products = {layer: (a, second[layer]) for layer, a in first.items()}
    numbers = _numbers(settings.get("trainable_token_indices"))
    if any(rows.ndim != 2 or len(rows) != len(numbers) for rows in parts["rows"].values()):
        raise ModelError(f"{shown}: trainable_token_indices must number the rows in {ADAPTER_WEIGHTS}")
    return Adapters(rank, float(alpha), products, parts["rows"], numbers, parts["head"])


def _numbers(given: Any) -> tuple[int, ...]:
    """The tokens whose rows are trained; every embedding has the same."""
    lists = list(given.values()) if isinstance(given, dict) else [given or []]
    same = lists[0] if lists and all(numbers == lists[0] for numbers in lists) else []
    return tuple(same) if isinstance(same, list) and all(type(n) is int and n >= 0 for n in same) else ()


def write_adapters(folder: Path, adapters: Adapters, trunk: str) -> None:
    """Writes the two files that peft reads; equal adapters give equal bytes.

    Args:
        trunk: what names it.
    """
    tensors = {f"{PREFIX}{name}": weight for name, weight in adapters.head.items()}
    tensors |= {f"{PREFIX}{layer}{ROWS}": rows for layer, rows in adapters.rows.items()}
    for layer, product in adapters.products.items():
        tensors |= {f"{PREFIX}{layer}.lora_{which}.weight": part for which, part in zip("AB", product, strict=True)}
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contents, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings = {
        "base_model_name_or_path": trunk,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapters.head}) or None,
        "peft_type": "LORA",
        "r": adapters.rank,
        "target_modules": sorted(adapters.products),
        "task_type": "SEQ_CLS" if adapters.head else "CAUSAL_LM",
        "trainable_token_indices": {layer: list(adapters.numbers) for layer in sorted(adapters.rows)} or None,
    }
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def model_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, and of the trunks of what is adapters there: all that it computes by.

    Raises:
        ModelError: a trunk is not there.
    """
    own = digests(folder)
    for file in [file for file in own if Path(file).name == ADAPTER]:
        trunk = trunk_of(folder / Path(file).parent)
        own |= {f"{file}: {name}": digest for name, digest in digests(trunk).items()}
    return own


def rename_trunk(folder: Path, trunk: str) -> None:
    """Has the adapters of a folder name their trunk otherwise."""
    settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    text = json.dumps(settings | {"base_model_name_or_path": trunk}, indent=2)
    (folder / ADAPTER).write_text(text + "\n", encoding="utf-8")
