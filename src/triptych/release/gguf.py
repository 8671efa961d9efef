"""A model as one GGUF file, which llama.cpp and what is built on it run, with how Ollama is told to run it beside it.

The numbers are those of the model's folder: names and layouts are translated, then each matrix is rounded to the type
that is asked for, a tensor at a time. What llama.cpp would compute in another way is refused by name before any weight
is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from triptych.display import one_line
from triptych.engine import models
from triptych.engine.inspection import inspect, is_classifier
from triptych.errors import ModelError, RecipeError, RunError
from triptych.progress import Progress
from triptych.release.modelfile import decoding_of, modelfile, turns_of
from triptych.release.vocabulary import Ends, normalizes, pre_tokenizer, write_vocabulary
from triptych.storage import make_folder, whole, write_whole

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What the gguf library rounds to; it cannot make K-quants."""

REWARD = (
    "a reward model is not exported: llama.cpp reads a head that scores only of encoders and of Qwen3's rerankers, "
    "whose outputs it puts through a softmax, which makes one output always 1; load the folder with transformers"
)


@dataclass(frozen=True, slots=True)
class ExportedFamily:
    """How llama.cpp calls a family of transformers, and lays out its weights.

    Attributes:
        interleaved: the two halves that a rotation turns into each other lie as neighbours in the rows of queries and
            keys, where transformers has one half behind the other.
        biases: it adds those of the attention's output.
    """

    kind: MODEL_ARCH
    interleaved: bool = False
    biases: bool = False


FAMILIES = {
    "llama": ExportedFamily(MODEL_ARCH.LLAMA, interleaved=True, biases=True),
    "mistral": ExportedFamily(MODEL_ARCH.LLAMA, interleaved=True, biases=True),
    "qwen2": ExportedFamily(MODEL_ARCH.QWEN2),
    "qwen3": ExportedFamily(MODEL_ARCH.QWEN3),
}
"""By transformers' `model_type`; each was compared with llama.cpp by its log-probabilities."""


def export(model: Path, file: Path, kind: str, progress: Progress) -> None:
    """Writes a model that writes answers as a GGUF file, and beside it a Modelfile, `FILE.Modelfile`.

    Args:
        model: its folder; adapters are added to their trunk first.
        file: what is made; it ends in `.gguf`.
        kind: one of `TYPES`, what the matrices are rounded to. Vectors stay in float32; below eight bits embedding and
            head have eight.

    Raises:
        RecipeError: the type is none of these, or the file has another ending.
        RunError: one of the two files exists.
        ModelError: the model cannot be used, or llama.cpp would not compute the same.
    """
    described = file.with_suffix(".Modelfile")
    _check_asked(kind, file, described)
    if is_classifier(model):
        raise ModelError(f"{one_line(model)}: {REWARD}")
    config, tokenizer = models.load_config(model), models.load_tokenizer(model)
    try:
        family = _family(config)
        name = pre_tokenizer(tokenizer)
    except ModelError as error:
        raise ModelError(f"{one_line(model)}: {error}") from None
    policy = models.load_policy(model, dtype=models.stored_dtype(inspect(model)))
    ends = Ends.of(models.end_tokens(tokenizer, policy.generation_config.eos_token_id))
    text = modelfile(model, file, tokenizer, [*ends.named, *ends.others])
    make_folder(file.parent)
    with whole(file) as partial:
        writer = GGUFWriter(partial, MODEL_ARCH_NAMES[family.kind])
        try:
            _write_settings(writer, config, file.stem, kind, decoding_of(model))
            write_vocabulary(writer, tokenizer, config.vocab_size, ends)
            unrounded = _write_weights(writer, policy, family, kind)
        finally:
            writer.close()
        write_whole(described, text)
    progress.say(f"pre-tokenizer {name}; ends at {', '.join(map(tokenizer.convert_ids_to_tokens, ends.named))}")
    for note in _notes(tokenizer, ends, unrounded, kind):
        progress.say(f"note: {note}")


def _check_asked(kind: str, file: Path, described: Path) -> None:
    if kind not in TYPES:
        instead = (
            f"; the gguf library makes no K-quants: write f16, then run llama.cpp's `llama-quantize {file} OUT.gguf "
            f"{kind.upper()}_M`" if "_k" in kind.lower() else ""
        )
        raise RecipeError(f"--type {one_line(kind)}: must be one of {', '.join(TYPES)}{instead}")
    if file.suffix != ".gguf":
        raise RecipeError(f"{file}: the file must end in .gguf")
    for path in (file, described):
        if path.exists():
            raise RunError(f"{path} exists; nothing was written. Give another file, or delete it")


def _family(config: PreTrainedConfig) -> ExportedFamily:
    """How llama.cpp computes a model.

    Raises:
        ModelError: it does not, or not in the same way.
    """
    known = FAMILIES.get(config.model_type)
    if known is None:
        raise ModelError(
            f"{config.model_type} is not exported, only {', '.join(FAMILIES)}; llama.cpp's own "
            "convert_hf_to_gguf.py knows more"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(f"a sliding window of {window} tokens is not exported")
    if config.hidden_act != "silu":
        raise ModelError(f"hidden_act is {config.hidden_act}, and llama.cpp computes silu")
    if getattr(config, "attention_bias", False) and not known.biases:
        raise ModelError(f"attention_bias of {config.model_type} is not exported")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" and not (rope == "llama3" and known.kind == MODEL_ARCH.LLAMA):
        raise ModelError(f"positions by rope_type {rope} are not exported")
    return known


def _write_settings(
    writer: GGUFWriter, config: PreTrainedConfig, name: str, kind: str, decoding: Mapping[str, float]
) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "f32" else LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sampling_temp(decoding["temperature"])
    writer.add_sampling_penalty_repeat(decoding["repeat_penalty"])
    if "top_k" in decoding:  # llama.cpp's own defaults leave tokens out
        writer.add_sampling_top_k(int(decoding["top_k"]))
        writer.add_sampling_top_p(decoding["top_p"])
        writer.add_sampling_min_p(decoding["min_p"])


def _write_weights(writer: GGUFWriter, policy: PreTrainedModel, family: ExportedFamily, kind: str) -> int:
    """Writes every tensor by itself; how many matrices could not be rounded, for their rows are no whole blocks."""
    tensors = dict(_tensors(policy, family))
    types = {name: _type(name, tensor, kind) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        shape = quant_shape_to_byte_shape(tensor.shape, types[name]) if _is_packed(types[name]) else tensor.shape
        numbers = np.dtype(
            np.uint8 if _is_packed(types[name]) else np.float16 if types[name].name == "F16" else np.float32
        )
        writer.add_tensor_info(name, shape, numbers, int(np.prod(shape)) * numbers.itemsize, types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        content = tensor.detach().cpu().float().numpy()
        if types[name].name == "F16" and np.abs(content).max() > np.finfo(np.float16).max:
            raise ModelError(f"{name} has numbers that float16 cannot hold; give --type bf16")
        writer.write_tensor_data(quantize(content, types[name]))
    wanted = GGMLQuantizationType[kind.upper()]
    return sum(_blocks(wanted) > 1 and _blocks(given) == 1 and tensors[name].ndim > 1 for name, given in types.items())


def _tensors(policy: PreTrainedModel, family: ExportedFamily) -> Iterator[tuple[str, Tensor]]:
    """The weights by their names in GGUF, laid out as llama.cpp reads them."""
    config = policy.config
    names = get_tensor_name_map(family.kind, config.num_hidden_layers)
    tied = set(policy.all_tied_weights_keys)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in policy.state_dict().items():
        if name in tied:
            continue
        translated = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if translated is None:
            raise ModelError(f"GGUF has no name for {name} of {config.model_type}")
        part = translated.split(".")[-2]
        yield translated, (
            _interleaved(weight, heads[part]) if family.interleaved and part in heads else weight
        )
    if config.rope_parameters["rope_type"] != "default":
        yield TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight", _slowed(config)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys `[heads * width, ...]` with each head's two halves as neighbours."""
    halves: Tensor = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _slowed(config: PreTrainedConfig) -> Tensor:
    """`[width / 2]` by how much each frequency of the rotation is divided."""
    scaled, _ = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, torch.device("cpu"))
    width = 2 * len(scaled)
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    plain = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    slower: Tensor = plain / scaled
    return slower


def _type(name: str, tensor: Tensor, kind: str) -> GGMLQuantizationType:
    """What a tensor is rounded to."""
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[kind.upper()]
    if _blocks(wanted) > 1 and name.startswith(("token_embd.", "output.")):
        wanted = GGMLQuantizationType.Q8_0
    return wanted if tensor.shape[-1] % _blocks(wanted) == 0 else GGMLQuantizationType.F16


def _blocks(kind: GGMLQuantizationType) -> int:
    """How many numbers of a row are rounded together."""
    size: int = GGML_QUANT_SIZES[kind][0]
    return size


def _is_packed(kind: GGMLQuantizationType) -> bool:
    """Whether numpy has no numbers of it, only bytes."""
    return kind.name not in ("F32", "F16")


def _notes(tokenizer: PreTrainedTokenizerFast, ends: Ends, unrounded: int, kind: str) -> Iterator[str]:
    if tokenizer.chat_template is not None and turns_of(tokenizer) is None:
        yield "the Modelfile has no TEMPLATE, for the chat template writes more than turns; llama.cpp reads it itself"
    if ends.others:
        several = ", ".join(map(tokenizer.convert_ids_to_tokens, ends.others))
        yield f"a GGUF file names three tokens that end an answer; {several} may not end one"
    if normalizes(tokenizer):
        yield "the tokenizer brings texts into the normal form NFC; llama.cpp takes them as they are"
    if unrounded:
        yield f"{unrounded} matrices are in f16: their rows are no multiple of the blocks of {kind}"
