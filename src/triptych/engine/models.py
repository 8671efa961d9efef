"""The one module that loads and saves models.

A model is a plain Hugging Face folder. What another person wrote into such a folder is looked over first (see
:mod:`triptych.engine.inspection`); then loading is rehearsed on the meta device, which allocates nothing, with the
shapes that the weights' headers give. What is left to refuse after that are weights that are not finite.
"""

from __future__ import annotations

import copy
import errno
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.utils import logging

from triptych.data.template import end_token
from triptych.deadline import within
from triptych.display import one_line
from triptych.engine import distributed
from triptych.engine.adapter_folder import read_adapters, write_adapters
from triptych.engine.adapters import Lora, adapt, adapted, is_adapters, learnt_adapters
from triptych.engine.attention import NAME as OURS
from triptych.engine.device import compute_dtype, device
from triptych.engine.forward import packs
from triptych.engine.inspection import INDEX, Stored, inspect, inspect_adapter, inspect_tokenizer, trunk_of
from triptych.engine.parity import take_attention
from triptych.engine.pre_tokenizers import cut_as_named
from triptych.engine.trunk import share_frozen, take_held, widen
from triptych.errors import ModelError
from triptych.storage import open_regular

MINUTE = 60.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What models of one family have in common, to the byte."""
ADAPTER_FIELDS = (
    "r", "lora_alpha", "target_modules", "bias", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save",
    "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules",
)
"""What of an adapter's settings says which weights it has and how they are added."""
LABELS = ("num_labels", "id2label", "label2id")
"""The settings of a reward's outputs."""
SHARD = "5GB"
"""The largest file of weights, which whoever merges or copies a model holds at once."""
HEADS = re.compile(r"(lm_head|embed_out|score)\.(weight|bias)")
"""Of a model that is opened for its trunk, the head is not used."""


def load_policy(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    attention: str | None = None,
    frozen: bool = False,
    merged: bool = True,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the accelerator if there is one; no dropout is left in it.

    Args:
        folder: a Hugging Face folder, inspected first.
        dtype: what the weights are held in.
        attention: the name under which transformers knows the attention function; None for the one that transformers
            takes. Ours is taken where the model computes the same with it, as :mod:`triptych.engine.parity` finds.
        frozen: it is not trained, and holds its weights as :mod:`triptych.engine.trunk` says; adapters lie beside them.
        merged: whether the folder's adapters, if it has any, are added to the weights; else the model is their trunk.

    Raises:
        ModelError: if the folder is refused, weights are missing, or some are not finite.
    """
    tensors = inspect(folder)
    model = _load(AutoModelForCausalLM, folder, tensors, attention=attention, merged=merged and not frozen, dtype=dtype)
    _refuse_non_finite(folder, model)
    return _freeze(model, folder) if frozen else model


def load_adapted(adapter: Path, folder: Path) -> PreTrainedModel:
    """A causal language model with low-rank adapters of peft's added to its weights, as a plain model in float32.

    Args:
        adapter: the adapters' folder, `adapter_config.json` and `adapter_model.safetensors`.
        folder: the model that they were trained on.

    Raises:
        ModelError: the adapters are of another kind or do not fit the model; see also :func:`load_policy`.
    """
    shown = one_line(adapter)
    settings, tensors = inspect_adapter(adapter)
    config = LoraConfig(**{name: settings[name] for name in ADAPTER_FIELDS if name in settings})
    model = load_policy(folder)
    with _refusing(f"{shown}: the adapters do not fit {one_line(folder)}"), quiet():
        adapted: Any = get_peft_model(model, config)
        mine = get_peft_model_state_dict(adapted)
        if mine.keys() != tensors.keys():
            several = _few(set(mine) ^ set(tensors))
            raise ModelError(f"{shown}: the adapters do not fit {one_line(folder)}: {several}")
        set_peft_model_state_dict(adapted, tensors)
        plain: PreTrainedModel = adapted.merge_and_unload()
    _refuse_non_finite(adapter, plain)
    return plain.eval()


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a causal language model, compared with the shapes of its weights; no weight is read.

    Raises:
        ModelError: as :func:`load_policy`, but for what the weights' values say.
    """
    settings = {"dtype": torch.float32, "attn_implementation": None}
    return _rehearse(AutoModelForCausalLM, folder, inspect(folder), fresh=False, **settings).config


def load_reward(
    folder: Path,
    *,
    fresh: bool,
    outputs: Sequence[str] = ("reward",),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    frozen: bool = False,
    merged: bool = True,
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
        attention, frozen, merged: as in :func:`load_policy`; the head is the folder's own all the same.

    Raises:
        ModelError: if the folder is refused, weights are missing or not finite, or its tokenizer has no
            padding token of its own: transformers scores the last token that is not padding.
    """
    tensors = inspect(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(f"{folder}: a reward model needs a padding token that is not the end token")
    names = dict(enumerate(outputs))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    with torch.random.fork_rng(devices=[]):  # transformers draws the missing head from the global state
        model = _load(
            AutoModelForSequenceClassification,
            folder,
            tensors,
            fresh=fresh,
            attention=attention,
            merged=merged and not frozen,
            dtype=dtype,
            **(labels if fresh else {}),
        )
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError(f"{folder}: {type(model).__name__} has no linear head called score")
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
    model.config.problem_type = "regression"  # else other tools put one output through a sigmoid
    _refuse_non_finite(folder, model)
    return _freeze(model, folder) if frozen else model


def held_exactly(folder: Path) -> bool:
    """Whether a model holds the numbers of its folder as they are, without rounding, where nothing trains it."""
    return stored_dtype(inspect(folder)) == compute_dtype() or compute_dtype() == torch.float32


def reward_fault(config: PreTrainedConfig) -> str | None:
    """Why a model of this configuration can have no reward head that transformers loads; None where it can."""
    name = type(config).__name__.removesuffix("Config")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return f"transformers has no sequence classification for {name}"
    with torch.device("meta"), quiet():
        model = AutoModelForSequenceClassification.from_config(config)
    has_head = isinstance(getattr(model, "score", None), torch.nn.Linear)
    return None if has_head else f"{type(model).__name__} has no linear head called score"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, with the chat template that lies beside it.

    Raises:
        ModelError: if it cannot be read without code of its own, or is not a fast tokenizer.
    """
    if not folder.is_dir():
        raise ModelError(f"{one_line(folder)}: there is no such folder")
    inspect_tokenizer(folder)
    with _refusing(f"{one_line(folder)}: its tokenizer cannot be read"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{folder}: its tokenizer has no tokenizer.json (a fast tokenizer is needed)")
    return tokenizer


def tokenizer_difference(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> str | None:
    """By what two tokenizers read a conversation otherwise, in words; None where they do not."""
    rules = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other)]
    for content in rules:
        for field in ("padding", "truncation", "version"):
            content.pop(field, None)
    if rules[0] != rules[1]:
        return "the vocabulary"
    if one.chat_template != other.chat_template:
        return "the chat template"
    ids = [(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) for tokenizer in (one, other)]
    return "a special token" if ids[0] != ids[1] else None


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[str]]:
    """The model and tokenizer of a `.gguf` file, every weight dequantised to float32, and what was done to them.

    Raises:
        ModelError: if the file is missing or damaged, or transformers does not know its architecture.
    """
    if not file.exists():
        raise ModelError(f"{one_line(file)}: there is no such file")
    with _refusing(f"{one_line(file)}: cannot be read"):
        open_regular(file).close()
    settings = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    # In a folder of its own, so that nothing that happens to lie beside the file is read.
    # The reader's own progress bar goes to stderr whatever the verbosity.
    refusing = _refusing(f"{one_line(file)}: cannot be read as GGUF")
    with TemporaryDirectory() as alone, refusing, quiet(), redirect_stderr(StringIO()):
        Path(alone, file.name).symlink_to(file.resolve())
        model, report = AutoModelForCausalLM.from_pretrained(
            alone,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            attn_implementation="sdpa",
            output_loading_info=True,
            **settings,
        )
        tokenizer = AutoTokenizer.from_pretrained(alone, **settings)
        changes = ["weights dequantised from GGUF", *cut_as_named(tokenizer, file)]
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
    return model.eval(), tokenizer, changes


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    generation: GenerationConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    trunk: str = "",
) -> None:
    """Write a Hugging Face folder; the same weights give the same bytes. Of several ranks the first writes.

    It is a plain one; of a model with adapters it holds these in place of weights (see
    :mod:`triptych.engine.adapter_folder`).

    Args:
        model: a causal language model or a reward model; it stays as it is.
        tokenizer: saved beside it, with its chat template.
        folder: made if it is missing.
        generation: how the model generates by default; its own settings if None. Padding is the tokenizer's, and so is
            the end token, beside those that the model ends at too.
        dtype: what the weights are written in; the model's own if None.
        trunk: what names the folder of the weights that adapters are added to.

    Raises:
        ModelError: if weights are not finite, or settings contradict one another.
        OSError: if the folder cannot be written.
    """
    _refuse_non_finite(folder, model)
    if distributed.rank() > 0:
        return
    dtype = dtype or model.dtype
    config = model.config
    try:
        model.config = copy.deepcopy(config)
        _tell_tokens(model.config.get_text_config(), tokenizer)
        with quiet():
            if adapted(model):
                model.config.architectures = [type(model).__name__]
                model.config.save_pretrained(folder)
                write_adapters(folder, learnt_adapters(model), trunk)
            else:
                model.save_pretrained(folder, state_dict=_cast(model.state_dict(), dtype), max_shard_size=SHARD)
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
    mend(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    mend(
        folder / "tokenizer_config.json",
        # The first two say how it was loaded here. The class name is the one that transformers 4 knows too. A batch of
        # prompts is padded on the left, where the answers' tokens follow; a reward is read the same on either side.
        {"is_local": None, "local_files_only": None, "tokenizer_class": "PreTrainedTokenizerFast",
         "padding_side": "left"},
    )


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights and the configuration alone, for another process on the way; nothing is looked over."""
    with quiet():
        model.save_pretrained(folder)


def cast(folder: Path, dtype: torch.dtype) -> None:
    """Rounds the weights of a plain folder to `dtype`, as a parent of that type had them; nothing else changes."""
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(file).items()
        }
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        mode = file.stat().st_mode
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        mend(folder / INDEX, {"metadata": index["metadata"] | {"total_size": size}})
    mend(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")})


def end_tokens(tokenizer: PreTrainedTokenizerFast, known: int | Sequence[int] | None) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's first.

    Args:
        known: `eos_token_id` of a configuration: the ends of turns and texts that the model has learnt. A single one
            that is no special token is transformers' default for the architecture, and none of the model's.
    """
    if known is None or isinstance(known, int):
        token = tokenizer.added_tokens_decoder.get(known)
        known = [known] if known is not None and token is not None and token.special else []
    return tuple(dict.fromkeys((end_token(tokenizer), *known)))


def parameters(model: PreTrainedModel) -> int:
    """How many numbers the model has learnt, tied weights counted once; adapters are no part of the plain model."""
    return sum(weights.numel() for name, weights in model.named_parameters() if not is_adapters(name))


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


def _load(
    family: Any, folder: Path, tensors: Mapping[str, Stored], *, attention: str | None, fresh: bool = False,
    merged: bool = True, **settings: Any,
) -> PreTrainedModel:
    """The model; with `fresh` its head is not read.

    Without `merged` no adapter is added. What we compute then stays in the type in which it is stored, but for what is
    no matrix: no copy of the whole model in float32 is made of one that is not trained whole.
    """
    shown = one_line(folder)
    narrow = not merged and attention == OURS
    if narrow:
        settings["dtype"] = stored_dtype(tensors)
    settings["attn_implementation"] = None if attention == OURS else attention
    rehearsed = _rehearse(family, folder, tensors, fresh=fresh, **settings)
    tied = set(rehearsed.all_tied_weights_keys)
    adapters = read_adapters(folder)
    if adapters is not None:  # the settings are the folder's own, whatever its trunk says
        settings = {name: value for name, value in settings.items() if name not in LABELS} | {
            "config": rehearsed.config
        }
    with _refusing(f"{shown}: the model cannot be loaded"), quiet():
        model: PreTrainedModel = family.from_pretrained(
            trunk_of(folder),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=fresh,  # an old head of several outputs is replaced
            **settings,
        )
    if untied := tied - set(model.all_tied_weights_keys):
        raise ModelError(
            f"{shown}: {_few(untied)} is not the same as what it is tied to by tie_word_embeddings in config.json"
        )
    _without_dropout(model)
    if narrow:
        take_held(model, folder)
    model = model.to(device()).eval()
    if narrow:
        widen(model)
    if adapters is not None:  # behind that, so that a head in float32 stays one
        with _refusing(f"{shown}: its adapters do not fit its trunk"), quiet():
            if not fresh:
                adapters.give_head(model)
            if merged:
                adapters.add_to(model)
            if model.can_generate():
                model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if attention == OURS:
        with _refusing(f"{shown}: the model cannot be computed"), quiet():
            try:
                take_attention(model)
            except RuntimeError:  # layers that read weights outside of a product want all of them in one type
                take_attention(model.float())
        if narrow and not packs(model):
            model.float()
    return model


def stored_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """What the matrices of a folder are stored in, where it is one of half precision; else float32."""
    kinds = {tensor.dtype for name, tensor in tensors.items() if not HEADS.fullmatch(name)}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kinds.pop(), torch.float32) if len(kinds) == 1 else (
        torch.float32
    )


def _rehearse(
    family: Any, folder: Path, tensors: Mapping[str, Stored], *, fresh: bool, **settings: Any
) -> PreTrainedModel:
    """Loads shapes alone, and refuses what does not match: names, shapes, and what would be allocated besides."""
    shown = one_line(folder)
    refusing = _refusing(f"{shown}: the model cannot be loaded")
    labels = {name: value for name, value in settings.items() if name in LABELS}

    def rehearsed() -> tuple[PreTrainedModel, dict[str, Any]]:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **labels)
        shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
        with torch.device("meta"):
            model = family.from_config(config)
        loaded: tuple[PreTrainedModel, dict[str, Any]] = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=shapes,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=settings["dtype"],
            attn_implementation=settings["attn_implementation"],
        )
        return loaded

    with refusing, quiet(), torch.random.fork_rng(devices=[]):
        model, report = within(MINUTE, rehearsed)
    missing, head = set(report["missing_keys"]), {"score.weight", "score.bias"}
    if "score.weight" in missing and not fresh:
        raise ModelError(f"{shown}: is not a reward model: it has no weights for score")
    if absent := missing - (head if fresh else set()):
        free = any(map(HEADS.fullmatch, absent)) and not model.config.get_text_config().tie_word_embeddings
        why = ", and tie_word_embeddings in config.json is false" if free else ""
        raise ModelError(f"{shown}: has no weights for {_few(absent)}{why}")
    for name, stored, declared in sorted(report["mismatched_keys"]):
        if not (fresh and name in head):
            raise ModelError(
                f"{shown}: {one_line(name)} is {_shape(stored)} in the weights, but {_shape(declared)} by config.json"
            )
    if unused := {name for name in report["unexpected_keys"] if not HEADS.fullmatch(name)}:
        files = sorted({tensors[name].file for name in unused if name in tensors})
        where = one_line(folder / files[0]) if files else shown
        raise ModelError(f"{where}: holds {_few(unused)}, which the model of config.json does not use")
    beside = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if beside > 2**30 + sum(4 * math.prod(tensor.shape) for tensor in tensors.values()):
        raise ModelError(f"{shown}: config.json asks for {beside / 2**30:,.0f} GiB besides the weights")
    loaded: PreTrainedModel = model
    return loaded


def _freeze(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    if (adapters := read_adapters(folder)) is not None:
        adapt(model, Lora(rank=adapters.rank, alpha=adapters.alpha, targets=()), 0, folder)
    model.requires_grad_(False)
    return share_frozen(model, folder)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever the readers of transformers and its libraries raise into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        raise ModelError(f"{what}: {_first_line(error)}") from error


def _shape(lengths: Sequence[int]) -> str:
    return "×".join(map(str, lengths)) or "one number"


def _without_dropout(model: PreTrainedModel) -> None:
    """Sets every dropout, and the noise of routers, to zero, in the layers and in the configuration, which some read.

    A policy that drops units is at a distance from itself: ratios, distances and resumption are exact without it only.
    """
    for part in (model.config, model.config.get_text_config(), *model.modules()):
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(part, name, 0.0)


def _refuse_non_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, weights in model.state_dict().items():
        # By both ends of their range, one of which a NaN is: this takes no memory beside the weights.
        if weights.is_floating_point() and weights.numel() and not torch.stack(weights.aminmax()).isfinite().all():
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


def mend(path: Path, changes: dict[str, Any]) -> None:
    """Set fields of a JSON file; None takes a field away."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content = {name: value for name, value in content.items() if changes.get(name, True) is not None}
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _few(names: set[str]) -> str:
    shown = one_line(", ".join(sorted(names)[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _first_line(error: BaseException) -> str:
    return one_line(str(error).strip().partition("\n")[0])[:500] or type(error).__name__
