"""The one module that loads and saves models.

A model is a plain Hugging Face folder. What another person wrote into such a folder is material, never an
instruction: only safetensors are read, no code is run, nothing outside the folder is opened, and weights that
are not finite are refused.
"""

from __future__ import annotations

import copy
import errno
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from triptych.data.template import end_token
from triptych.engine import ranks
from triptych.engine.device import device
from triptych.errors import ModelError

INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json")
CODE_FIELDS = ("auto_map", "custom_pipelines", "custom_generate")
CLASS_FIELDS = ("tokenizer_class", "processor_class", "feature_extractor_class", "image_processor_type")
KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Fields by which transformers fetches a kernel, which is code, from the Hub where the name has a slash."""


def inspect(folder: Path, within: Path | None = None) -> None:
    """Refuse a model folder that cannot be used, or not safely; nothing of it is executed.

    Args:
        folder: the model folder.
        within: links may also lead to places below this folder (the Hub's cache keeps its files that way).

    Raises:
        ModelError: with the file and the reason.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder")
    _refuse_links(folder, within)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: config.json is missing, so this is not a Hugging Face model folder")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder / 'adapter_config.json'}: this is an adapter; merge it into its model first"
        )
    for name in CONFIGS:
        if (folder / name).is_file():
            _refuse_code(folder / name, _read_object(folder / name))
    _check_weights(folder)


def _refuse_links(folder: Path, within: Path | None) -> None:
    allowed = [folder.resolve()] + ([within.resolve()] if within else [])
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in allowed):
            raise ModelError(f"{path}: is a link that leads outside the model folder")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must be a JSON object")
    return content


def _refuse_code(path: Path, content: object) -> None:
    """Walk through one configuration; nested configurations can ask for code as well."""
    if isinstance(content, list):
        for item in content:
            _refuse_code(path, item)
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if name in CODE_FIELDS and value:
            raise ModelError(f"{path}: {name} asks for code of the model's own, which is never run")
        if name in CLASS_FIELDS and isinstance(value, str) and not value.isidentifier():
            raise ModelError(f"{path}: {name} {value!r} names a module, whose code is never run")
        if name in KERNEL_FIELDS and "/" in str(value):
            raise ModelError(f"{path}: {name} {value!r} asks for a kernel from the Hub, which is never run")
        if isinstance(value, str) and value.endswith(".py"):
            raise ModelError(f"{path}: {name} names {value!r}, and code of a model is never run")
        _refuse_code(path, value)


def _check_weights(folder: Path) -> None:
    index = folder / INDEX
    if index.is_file():
        files = _read_object(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ModelError(f"{index}: weight_map must say in which file each tensor lies")
        names = sorted({str(name) for name in files.values()})
        for name in names:
            if Path(name).name != name:
                raise ModelError(f"{index}: names {name!r}, which lies outside the model folder")
            if not name.endswith(".safetensors"):
                raise ModelError(f"{index}: names {name!r}; weights are read from safetensors only")
            if not (folder / name).is_file():
                raise ModelError(f"{index}: names {name!r}, which is missing")
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        others = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        found = f" (found {', '.join(others)}, which can run code when it is read)" if others else ""
        raise ModelError(f"{folder}: has no *.safetensors; weights are read from safetensors only{found}")
    for name in names:
        try:
            with safe_open(folder / name, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder / name}: is damaged or not safetensors: {error}") from error


def load_policy(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    attention: str = "sdpa",
    within: Path | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the accelerator if there is one; no dropout is left in it.

    Args:
        folder: a Hugging Face folder, inspected first.
        dtype: what the weights are held in.
        attention: the name under which transformers knows the attention function.
        within: as in :func:`inspect`.

    Raises:
        ModelError: if the folder is refused, weights are missing, or some are not finite.
    """
    inspect(folder, within)
    model, missing = _load(AutoModelForCausalLM, folder, dtype=dtype, attn_implementation=attention)
    if missing:
        raise ModelError(f"{folder}: has no weights for {_few(missing)}")
    _refuse_non_finite(folder, model)
    return model


def load_reward(
    folder: Path,
    *,
    fresh: bool,
    outputs: Sequence[str] = ("reward",),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """A reward model in evaluation mode: a trunk and a linear head, `[B, T]` to `[B, labels]`; without dropout.

    Args:
        folder: a reward model's folder, or with `fresh` that of the causal model whose trunk it starts from.
        fresh: start a new head, drawn from `seed`. Its weights have a standard deviation of
            0.1 / sqrt(hidden + 1), so that the first rewards differ little and the first loss is near log 2,
            but the trunk receives a gradient from the first step on.
        outputs: names of a fresh head's outputs, `id2label` of its config.
        seed: of the fresh head; nothing else is drawn, and the global random state stays as it was.
        dtype: what the weights are held in.
        attention: the name under which transformers knows the attention function.

    Raises:
        ModelError: if the folder is refused, weights are missing or not finite, or its tokenizer has no
            padding token of its own: transformers scores the last token that is not padding.
    """
    inspect(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(f"{folder}: a reward model needs a padding token that is not the end token")
    names = dict(enumerate(outputs))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    with torch.random.fork_rng(devices=[]):  # transformers draws the missing head from the global state
        model, missing = _load(
            AutoModelForSequenceClassification,
            folder,
            dtype=dtype,
            attn_implementation=attention,
            ignore_mismatched_sizes=fresh,  # an old head of several outputs is replaced
            **(labels if fresh else {}),
        )
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError(f"{folder}: {type(model).__name__} has no linear head called score")
    if "score.weight" in missing and not fresh:
        raise ModelError(f"{folder}: is not a reward model: it has no weights for score")
    if missing - {"score.weight", "score.bias"}:
        raise ModelError(f"{folder}: has no weights for {_few(missing)}")
    if fresh:
        width = head.in_features
        draw = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(head.weight.shape, generator=draw, device="cpu")
        with torch.no_grad():
            head.weight.copy_(noise * (0.1 / (width + 1) ** 0.5))
            if head.bias is not None:
                head.bias.zero_()
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    _refuse_non_finite(folder, model)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, with the chat template that lies beside it.

    Raises:
        ModelError: if it cannot be read without code of its own, or is not a fast tokenizer.
    """
    config = folder / "tokenizer_config.json"
    if config.is_file():
        _refuse_code(config, _read_object(config))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its readers meet
        raise ModelError(f"{folder}: its tokenizer cannot be read: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{folder}: its tokenizer has no tokenizer.json (a fast tokenizer is needed)")
    return tokenizer


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and tokenizer of a `.gguf` file, every weight dequantised to float32.

    Raises:
        ModelError: if the file is missing or damaged, or transformers does not know its architecture.
    """
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file")
    settings = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    # In a folder of its own, so that nothing that happens to lie beside the file is read.
    # The reader's own progress bar goes to stderr whatever the verbosity.
    with TemporaryDirectory() as alone, quiet(), redirect_stderr(StringIO()):
        Path(alone, file.name).symlink_to(file.resolve())
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                alone,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                attn_implementation="sdpa",
                output_loading_info=True,
                **settings,
            )
            tokenizer = AutoTokenizer.from_pretrained(alone, **settings)
        except Exception as error:  # transformers raises whatever its readers meet
            raise ModelError(f"{file}: cannot be read as GGUF: {_first_line(error)}") from error
    missing = set(report["missing_keys"]) - set(model.all_tied_weights_keys)
    if missing:
        raise ModelError(f"{file}: has no weights for {_few(missing)}")
    # transformers refuses to save what came from GGUF, even where nothing is packed any more. The weights are
    # plain tensors now, so the marks of where they came from are taken off.
    model.hf_quantizer = None
    model.config._name_or_path = ""
    for mark in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    _refuse_non_finite(file, model)
    return model.eval(), tokenizer


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    generation: GenerationConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a plain Hugging Face folder; the same weights give the same bytes. Of several ranks the first writes.

    Args:
        model: a causal language model or a reward model; it stays as it is.
        tokenizer: saved beside it, with its chat template.
        folder: made if it is missing.
        generation: how the model generates by default; its own settings if None. Padding is the tokenizer's, and so is
            the end token, beside those that the model ends at too.
        dtype: what the weights are written in; the model's own if None.

    Raises:
        ModelError: if weights are not finite, or settings contradict one another.
        OSError: if the folder cannot be written.
    """
    _refuse_non_finite(folder, model)
    if ranks.rank() > 0:
        return
    dtype = dtype or model.dtype
    config = model.config
    try:
        model.config = copy.deepcopy(config)
        _tell_tokens(model.config.get_text_config(), tokenizer)
        with quiet():
            model.save_pretrained(folder, state_dict=_cast(model.state_dict(), dtype))
            if model.can_generate():
                settings = copy.deepcopy(generation or model.generation_config)
                if settings.eos_token_id is None:
                    settings.eos_token_id = model.generation_config.eos_token_id
                settings._from_model_config = False  # it would be made anew from the config on loading
                _tell_tokens(settings, tokenizer)
                settings.save_pretrained(folder)
            # How often it was called with padding is no part of a tokenizer.
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(folder)
    except ValueError as error:
        raise ModelError(f"{folder}: cannot be written: {_first_line(error)}") from error
    except SafetensorError as error:  # safetensors has its own error for a disk that is full
        full = "os error 28" in str(error) or "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(folder)) from error
    finally:
        model.config = config
    for weights in folder.glob("*.safetensors"):  # written for the owner alone, unlike the other files
        weights.chmod((folder / "config.json").stat().st_mode)
    _mend(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    _mend(
        folder / "tokenizer_config.json",
        # The first two say how it was loaded here. The class name is the one that transformers 4 knows too.
        {"is_local": None, "local_files_only": None, "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def end_tokens(tokenizer: PreTrainedTokenizerFast, known: int | Sequence[int] | None) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's first.

    Args:
        known: `eos_token_id` of a configuration. A list holds the ends of turns and texts of a model that has several;
            one alone is what the chat template's end of turn has taken the place of.
    """
    others = [] if known is None or isinstance(known, int) else known
    return tuple(dict.fromkeys((end_token(tokenizer), *others)))


def parameters(model: PreTrainedModel) -> int:
    """How many numbers the model has learnt, tied weights counted once."""
    return sum(weights.numel() for weights in model.parameters())


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings; what matters of them becomes a ModelError here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(family: Any, folder: Path, **settings: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of the weights that its folder did not have."""
    try:
        with quiet():
            model, report = family.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # transformers raises whatever its readers meet
        raise ModelError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from error
    _without_dropout(model)
    return model.to(device()).eval(), set(report["missing_keys"])


def _without_dropout(model: PreTrainedModel) -> None:
    """Sets every dropout to zero, in the layers and in the configuration, which some layers read as they run.

    A policy that drops units is at a distance from itself: ratios, distances and resumption are exact without it only.
    """
    for part in (model.config, model.config.get_text_config(), *model.modules()):
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def _refuse_non_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not torch.isfinite(weights).all():
            raise ModelError(f"{folder}: {name} has values that are not finite")


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`; tied ones stay one tensor, by which transformers knows them."""
    done: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in done:
            done[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: done[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def _tell_tokens(config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    ends = end_tokens(tokenizer, config.eos_token_id) if tokenizer.eos_token_id is not None else ()
    config.eos_token_id = list(ends) if len(ends) > 1 else tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id


def _mend(path: Path, changes: dict[str, Any]) -> None:
    """Set fields of a JSON file; None takes a field away."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content = {name: value for name, value in content.items() if changes.get(name, True) is not None}
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
