"""A folder of adapters made a plain one: a file of its trunk at a time, and in it a matrix at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.engine.adapter_folder import Adapters, read_adapters
from triptych.engine.inspection import INDEX, WEIGHTS, inspect, is_classifier, trunk_of
from triptych.engine.models import (
    HEADS,
    TOKENIZER_FILES,
    load_policy,
    load_reward,
    load_tokenizer,
    mend,
    save,
)
from triptych.errors import ModelError
from triptych.storage import make_folder


def merge(folder: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the plain model that a folder of adapters makes of its trunk, the same that training it whole would leave.

    What is held at once is one file of weights as it is written, and one matrix in float32.

    Args:
        target: made if it is missing.
        dtype: what the weights are written in; each as it is stored in the trunk if None.

    Raises:
        ModelError: the folder is refused, has no adapters, or weights are not finite.
        OSError: `target` cannot be written.
    """
    stored = inspect(folder)
    trunk, adapters = trunk_of(folder), read_adapters(folder)
    if adapters is None:
        raise ModelError(f"{folder}: has no adapters to merge")
    make_folder(target)
    if not adapters.names <= stored.keys():  # the model's layers have other names in its files
        plain = load_reward(folder, fresh=False) if is_classifier(folder) else load_policy(folder)
        save(plain, load_tokenizer(folder), target, dtype=dtype or getattr(torch, _dtype_of(trunk)))
        return
    scores = is_classifier(folder)
    files = sorted({tensor.file for name, tensor in stored.items() if name not in adapters.head})
    places: dict[str, str] = {}
    size = 0
    for file in files:
        tensors = _merged(trunk / file, adapters, scores=scores, dtype=dtype)
        if file == files[-1]:
            tensors |= {name: weight.to(dtype or next(iter(tensors.values())).dtype)
                        for name, weight in adapters.head.items()}
        if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise ModelError(f"{folder}: {broken[0]} has values that are not finite")
        save_file(tensors, target / file, metadata={"format": "pt"})
        (target / file).chmod((folder / "config.json").stat().st_mode)
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if files != [WEIGHTS]:
        index = json.loads((trunk / INDEX).read_text(encoding="utf-8"))
        content = index | {"metadata": index["metadata"] | {"total_size": size}, "weight_map": places}
        (target / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    mend(target / "config.json", {"dtype": str(dtype).removeprefix("torch.") if dtype else _dtype_of(trunk)})


def _dtype_of(folder: Path) -> str:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(settings.get("dtype") or settings.get("torch_dtype") or "float32")


def _merged(file: Path, adapters: Adapters, *, scores: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file of the trunk as the plain model has them; one that scores has no head that writes."""
    tensors = {}
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (no mapping)
            if (scores and HEADS.fullmatch(name)) or name in adapters.head:
                continue
            stored = weights.get_tensor(name)
            weight = adapters.added(name, stored)
            tensors[name] = weight.to(dtype or stored.dtype) if stored.is_floating_point() else stored
    return tensors
