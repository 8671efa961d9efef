"""Take a base model that others trained: from a folder, a `.gguf` file or the Hugging Face Hub.

Whatever it came as, it ends as a plain folder of safetensors, checked, with a chat template and a padding
token of its own, so that no later stage meets a special case.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from triptych.base.record import Dtype
from triptych.data import template
from triptych.engine import models
from triptych.engine.hub import HUB_NAME, download, repository_of
from triptych.engine.inspection import ADAPTER, Stored, adapter_settings, inspect
from triptych.engine.trunk import quantize
from triptych.errors import ModelError
from triptych.storage import sha256, sha256_all

Kind = Literal["folder", "gguf", "hub"]
Quantization = Literal["nf4"]

PADDING = "<|pad|>"

@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model came from and what was done to it.

    Attributes:
        kind: what it came as.
        origin: the Hub's name, or the last part of the path (never the whole, which is this machine's own).
        digest: the Hub's commit, whatever was named, or the sha256 of the file or of the folder's model files.
        parameters: how many.
        dtype: what most of its weights were stored in; a release has them so again where that is bfloat16.
        changes: what is not as it was, one sentence each.
        tuned: it has a chat template of its own, and keeps it.
    """

    kind: Kind
    origin: str
    digest: str
    parameters: int
    dtype: Dtype
    changes: tuple[str, ...]
    tuned: bool


def take(
    name: str,
    folder: Path,
    *,
    chat_template: str | None = None,
    arguments: Mapping[str, template.Argument] | None = None,
    tokens: Sequence[str] = (),
    reasoning: bool = False,
    quantization: Quantization | None = None,
    dtype: torch.dtype | None = None,
) -> ModelSource:
    """Write the model that `name` stands for into `folder`, as a plain Hugging Face folder.

    Args:
        name: a Hugging Face folder, a `.gguf` file, or a name on the Hub, perhaps with `@revision`, in this order of
            trial.
        folder: where it is written.
        chat_template: `chatml`, the path of a `.jinja` file or a template's text; if None the model keeps
            its own, or gets ChatML where it has none.
        arguments, tokens, reasoning: of the template; see :func:`triptych.data.template.attach`.
        quantization: the layers' matrices are rounded to what NF4 holds, and all weights are written in bfloat16.
        dtype: what the weights are written in; by default bfloat16 where they are stored so, which loses nothing but of
            rows of added tokens, else float32.

    Raises:
        ModelError: if there is no such model, or it cannot be used safely, with what to do.
    """
    kind, path = find(name)
    changes: list[str] = []
    stored: Dtype = "float32"
    if kind == "gguf":
        model, tokenizer, changes = models.load_gguf(path)
        origin, digest = path.name, sha256(path)
    else:
        if adapted := adapted_model(path):
            model, tokenizer = adapted.load()
            stored = kept_dtype(inspect(adapted.folder))
            changes.append(f"low-rank adapters added to the weights of {adapted.name}")
        else:
            stored = kept_dtype(inspect(path))
            dtype = dtype or getattr(torch, stored)
            model = models.load_policy(path, dtype=getattr(torch, stored))
            tokenizer = models.load_tokenizer(path)
        origin = repository_of(name) if kind == "hub" else path.resolve().name
        digest = path.name if kind == "hub" else _digest(path)
    changes += _mend_generation(model)
    known = set(tokenizer.get_vocab().values())
    tuned = chat_template is None and tokenizer.chat_template is not None
    changes += prepare(tokenizer, chat_template, arguments, tokens, reasoning)
    changes += _fit_vocabulary(model, tokenizer, known)
    if quantization is not None:
        dtype, stored = torch.bfloat16, "bfloat16"
        changes.append(f"{quantize(model)} matrices rounded to NF4, four bits a number, and all weights to bfloat16")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokenizer.model_max_length > context:
        tokenizer.model_max_length = context
    models.save(model, tokenizer, folder, dtype=dtype or torch.float32)
    inspect(folder)
    return ModelSource(kind, origin, digest, models.parameters(model), stored, tuple(changes), tuned)


def find(name: str) -> tuple[Kind, Path]:
    """What a name stands for: a folder, a .gguf file, or a model of the Hub, and where its files are."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return "gguf", path  # whether it is there, its reader says
    if path.is_dir():
        return "folder", path
    if path.exists():
        raise ModelError(
            f"{name}: a base model is a folder, a .gguf file or a name on the Hub; this is a file"
        )
    if not HUB_NAME.fullmatch(name):
        raise ModelError(f"{name}: there is no such folder, and it cannot be a name on the Hub")
    return "hub", download(name)


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """Low-rank adapters and the model that they were trained on.

    Attributes:
        name: of the model: the Hub's, or the last part of its path.
    """

    adapter: Path
    name: str
    folder: Path

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """The model with the adapters added, and the tokenizer that lies beside them, or else the model's."""
        model = models.load_adapted(self.adapter, self.folder)
        own = (self.adapter / "tokenizer_config.json").exists()
        return model, models.load_tokenizer(self.adapter if own else self.folder)


def adapted_model(path: Path) -> AdaptedModel | None:
    """The model that a folder of adapters is of; None where it is none.

    Raises:
        ModelError: it is not there, or the adapters are of another kind.
    """
    if not (path / ADAPTER).exists():
        return None
    name: str = adapter_settings(path)["base_model_name_or_path"]
    kind, folder = find(name)
    if kind == "gguf" or (folder / ADAPTER).exists():
        raise ModelError(f"{path}: its adapters are of {name}, which is no model folder")
    return AdaptedModel(path, name if kind == "hub" else folder.resolve().name, folder)


def prepare(
    tokenizer: PreTrainedTokenizerFast, chat_template: str | None,
    arguments: Mapping[str, template.Argument] | None = None, tokens: Sequence[str] = (), reasoning: bool = False,
) -> list[str]:
    """Give the tokenizer a chat template and a padding token of its own; says what was changed."""
    changes = []
    if chat_template is not None:
        changes.append("chat template: the recipe's")
    elif tokenizer.chat_template is None:
        chat_template = "chatml"
        changes.append("chat template: ChatML, as it had none")
    changes += template.attach(tokenizer, chat_template, arguments, tokens=tokens, reasoning=reasoning)
    try:
        padding = template.mend_padding(tokenizer)
    except ModelError:  # every special token is in use
        tokenizer.add_special_tokens({"pad_token": PADDING})
        padding = f"padding is now {PADDING}, added to the vocabulary: every special token was in use"
    template.check(tokenizer)
    return [*changes, padding] if padding is not None else changes


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, known: set[int]) -> list[str]:
    """Give every token of the tokenizer an embedding; new ones start as the mean of those that had one.

    The mean, because a random row can have a larger logit than every trained one and then is sampled at once. The
    model's configuration names them, for with adapters they are all of the embedding that is trained.

    Args:
        known: numbers of the tokens that the tokenizer had when it was taken.
    """
    numbers = set(tokenizer.get_vocab().values())
    needed = max(numbers) + 1
    rows = model.get_input_embeddings().weight.shape[0]
    if needed - rows > sum(number >= rows for number in numbers):
        raise ModelError(
            f"the tokenizer has a token of number {needed - 1}, with gaps before it, but the embedding has {rows} rows"
        )
    new = sorted({*(numbers - known), *range(rows, needed)})
    if not new:
        return []
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    tables: dict[int, Tensor] = {}
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(layer, nn.Embedding | nn.Linear):
            tables[layer.weight.data_ptr()] = layer.weight.data  # one table where the two are tied
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                tables[layer.bias.data_ptr()] = layer.bias.data
    trained = sorted(known & set(range(rows)))  # a padded table has rows of no token
    for table in tables.values():
        table[new] = table[trained].mean(0)
    model.config.added_tokens = new
    return [f"{len(new)} tokens added to the vocabulary, with the mean embedding"]


def _mend_generation(model: PreTrainedModel) -> list[str]:
    """Drops generation settings that contradict one another, which transformers reads and does not save."""
    settings = model.generation_config
    try:
        with models.quiet():
            settings.validate(strict=True)
    except ValueError as error:
        fields = sorted(set(re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE))) or ["its settings"]
        kept = {name: value for name, value in settings.to_diff_dict().items() if name.endswith("_token_id")}
        model.generation_config = GenerationConfig(**kept)
        what = f"{', '.join(fields)} in generation_config.json contradict how it says that tokens are chosen"
        return [f"{what}; of this file only the special tokens are kept"]
    return []


def kept_dtype(tensors: Mapping[str, Stored]) -> Dtype:
    """What most of the numbers are stored in, as far as a release keeps it."""
    numbers = Counter[str]()
    for tensor in tensors.values():
        numbers[tensor.dtype] += math.prod(tensor.shape)
    return "bfloat16" if numbers.most_common(1)[0][0] == "BF16" else "float32"


def _digest(folder: Path) -> str:
    """One digest of the model's files; of a single one that of its content alone, so that anyone can check it."""
    files = [path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".jinja"}]
    return sha256(files[0]) if len(files) == 1 else sha256_all(folder, files)
