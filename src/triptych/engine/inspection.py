"""A model folder of another's, looked over before anything of it is acted on.

What another person wrote into such a folder is material, never an instruction: weights are read from safetensors only,
no code is run, nothing outside the folder is opened, and what one file says of another is compared before anything is
allocated.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig

from triptych.display import one_line
from triptych.errors import ModelError
from triptych.storage import entries, irregular, open_regular

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the name of a layer."""
INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json",
    "preprocessor_config.json", "special_tokens_map.json",
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")

LARGEST_SETTINGS = 2**24
LARGEST_JSON = 2**27
LARGEST_TEMPLATE = 2**20
"""Bytes of a file of settings, of a vocabulary or an index, and of a template."""
DEEPEST = 64
"""Values inside values of a file of settings."""
LAYERS = 64
"""As many layers are declared by models whose weights are few; more must each have a tensor at least."""

CODE_FIELDS = ("auto_map", "custom_pipelines", "custom_generate")
CLASS_FIELDS = ("tokenizer_class", "processor_class", "feature_extractor_class", "image_processor_type")
KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Fields by which transformers fetches a kernel, which is code, from the Hub where the name has a slash."""
LAYER_FIELDS = re.compile(r"(n|num)_(hidden_|decoder_|encoder_|transformer_)?(layers?|blocks|hidden_groups)|depth")
LABEL_FIELDS = {"id2label", "label2id"}
NO_SETTINGS = {
    "config.json": {name for name in dir(PreTrainedConfig) if callable(getattr(PreTrainedConfig, name))}
    | {"attribute_map", "sub_configs", "sub_configs_defaults", "extra_files", "fusion_config", "distributed_config"},
    "generation_config.json": {name for name in dir(GenerationConfig) if callable(getattr(GenerationConfig, name))},
}
"""What transformers would put in the place of its own methods, or of what says how the other fields are read."""
TOKENIZER_POINTERS = re.compile(
    r"init_inputs|tokenizer_object|vocab|merges|gguf_file|(vocab|merges|spm|source_spm)_file"
)
"""Fields of a tokenizer's settings that name what is opened in place of the folder's own files."""
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


class Stored(NamedTuple):
    """A tensor in a file, by the file's header.

    Attributes:
        file: where it lies.
        shape: its lengths.
        dtype: what its numbers are, in safetensors' letters.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str


def inspect(folder: Path) -> dict[str, Stored]:
    """Refuse a model folder that cannot be used, or not safely; nothing of it is executed.

    Links may lead to places in the folder; of a revision in the Hub's cache also to the model's files there. Of
    adapters the trunk is looked over too.

    Returns:
        The tensors that its weights hold, by name; of their files only the headers are read. Of adapters those of the
        plain model that they make of their trunk.

    Raises:
        ModelError: with the file and the reason.
    """
    if not folder.is_dir():
        raise ModelError(f"{one_line(folder)}: there is no such folder")
    adapted = (folder / ADAPTER).exists()
    if adapted and (not (folder / "config.json").exists() or (folder / WEIGHTS).exists() or (folder / INDEX).exists()):
        raise ModelError(
            f"{one_line(folder / ADAPTER)}: this is an adapter; name it as base.from, or merge it into its model first"
        )
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{one_line(folder)}: config.json is missing, so this is not a Hugging Face model folder"
        )
    config = _look_over(folder).get("config.json", {})
    tensors = _adapted_tensors(folder) if adapted else _tensors(folder, config.get("transformers_weights"))
    _check_layers(folder / "config.json", config, len(tensors))
    _check_vocabulary(folder, max((tensor.shape[0] for tensor in tensors.values() if tensor.shape), default=0))
    return tensors


def trunk_of(folder: Path) -> Path:
    """The plain folder of the weights that a model's adapters are added to; the folder itself where it has none.

    Raises:
        ModelError: the trunk is not there, or has adapters itself.
    """
    if not (folder / ADAPTER).exists():
        return folder
    shown = one_line(folder / ADAPTER)
    name: str = adapter_settings(folder)["base_model_name_or_path"]
    place = folder.resolve()
    for above in (place, *place.parents):
        trunk = above / name
        if os.path.isfile(trunk / "config.json"):
            if (trunk / ADAPTER).exists():
                raise ModelError(f"{shown}: its trunk, {one_line(trunk)}, has adapters itself")
            return trunk
    raise ModelError(
        f"{shown}: its trunk, {one_line(name)[:200]!r}, is no model's folder, neither as a whole path nor below this "
        "folder or one above it; name the adapters as base.from where it is on the Hub"
    )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings of low-rank adapters.

    Raises:
        ModelError: with the file and the reason.
    """
    _look_over(folder)
    settings = read_object(folder / ADAPTER, LARGEST_SETTINGS)
    if settings.get("peft_type") != "LORA":
        kind = one_line(repr(settings.get("peft_type")))[:40]
        raise ModelError(f"{one_line(folder / ADAPTER)}: peft_type is {kind}, and only LORA can be merged")
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise ModelError(f"{one_line(folder / ADAPTER)}: base_model_name_or_path must name the adapters' model")
    return settings


def inspect_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and weights of low-rank adapters.

    Raises:
        ModelError: with the file and the reason.
    """
    settings = adapter_settings(folder)
    weights = folder / ADAPTER_WEIGHTS
    try:
        open_regular(weights).close()
        return settings, load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{one_line(weights)}: is missing, damaged or not safetensors: {one_line(error)}") from error


def is_classifier(folder: Path) -> bool:
    """Whether the model in a folder gives scores, as reward models do, and does not write.

    Raises:
        ModelError: it has no `config.json` that can be read.
    """
    return "SequenceClassification" in str(read_object(folder / "config.json", LARGEST_SETTINGS).get("architectures"))


def inspect_tokenizer(folder: Path) -> None:
    """The same of what a tokenizer is read from, with or without weights beside it.

    Raises:
        ModelError: with the file and the reason.
    """
    _look_over(folder)
    _check_vocabulary(folder, 2**24)


def _look_over(folder: Path) -> dict[str, dict[str, Any]]:
    """Refuses what is no file, and settings that ask for what is not in the folder."""
    try:
        _check_entries(folder)
    except (OSError, RecursionError) as error:
        raise ModelError(f"{one_line(folder)}: cannot be looked through: {one_line(error)}") from error
    contents = {}
    for name in SETTINGS:
        if (folder / name).exists():
            contents[name] = read_object(folder / name, LARGEST_SETTINGS)
            _check_settings(folder / name, contents[name])
    for pattern in TEMPLATES:
        for path in sorted(folder.glob(pattern)):
            _read(path, LARGEST_TEMPLATE)
    return contents


def _check_entries(folder: Path) -> None:
    allowed = _hub_cache(folder) or folder.resolve()
    for path in entries(folder):
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError) as error:  # a circle is a RuntimeError before Python 3.13
                raise ModelError(f"{one_line(path)}: is a link that leads nowhere, or in a circle") from error
            if not target.is_relative_to(allowed):
                raise ModelError(f"{one_line(path)}: is a link that leads outside the model folder")
            if not target.is_file():
                raise ModelError(f"{one_line(path)}: is a link to what is no file")
        elif what := irregular(path):
            raise ModelError(f"{one_line(path)}: is {what}, and no file")
        elif path.parent == folder and path.suffix in {".json", ".jinja", ".safetensors"} and path.is_dir():
            raise ModelError(f"{one_line(path)}: is a folder, and no file")


def _hub_cache(folder: Path) -> Path | None:
    """The place of a model in the Hub's cache, where the folder is one of its revisions: links to `blobs` beside it."""
    revisions = folder.resolve().parent
    return revisions.parent if revisions.name == "snapshots" and revisions.parent.name.startswith("models--") else None


def read_object(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file: every name once, every number finite.

    Raises:
        ModelError: it is not that, or larger than so many bytes.
    """
    text = _read(path, largest)
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "values inside values without end" if isinstance(error, RecursionError) else error
        raise ModelError(f"{one_line(path)}: is not valid JSON: {one_line(reason)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{one_line(path)}: must be a JSON object")
    return content


def _read(path: Path, largest: int) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise ModelError(f"{one_line(path)}: cannot be read: {one_line(error.strerror)}") from error
    if len(content) > largest:
        raise ModelError(f"{one_line(path)}: is larger than {largest // 2**20} MiB, which no such file is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "valid JSON" if path.suffix == ".json" else "a text"
        raise ModelError(f"{one_line(path)}: is not {kind}: {one_line(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        again, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{again!r} stands twice in one object")
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return float(text)


def _fields(path: Path, content: object) -> Iterator[tuple[int, str, Any]]:
    """Every field at any depth, with the depth: nested configurations are acted on as well."""
    remaining: list[tuple[int, object]] = [(0, content)]
    while remaining:
        depth, value = remaining.pop()
        if depth > DEEPEST:
            raise ModelError(f"{one_line(path)}: has values inside values, more than {DEEPEST} deep")
        if isinstance(value, list):
            remaining += [(depth + 1, item) for item in value]
        elif isinstance(value, dict):
            for name, item in value.items():
                yield depth, name, item
                if name not in LABEL_FIELDS:
                    remaining.append((depth + 1, item))


def _check_settings(path: Path, content: dict[str, Any]) -> None:
    """Refuses what asks for code, for kernels, or for files that are not the folder's own."""
    shown, refused = one_line(path), NO_SETTINGS.get(path.name, set())
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{shown}: has half a character (a lone surrogate)") from error
    except RecursionError:
        pass  # said below
    for depth, field, value in _fields(path, content):
        name, written = one_line(field), one_line(repr(value))[:80]
        if field in CODE_FIELDS and value:
            raise ModelError(f"{shown}: {name} asks for code of the model's own, which is never run")
        if field in CLASS_FIELDS and isinstance(value, str) and not value.isidentifier():
            raise ModelError(f"{shown}: {name} {written} names a module, whose code is never run")
        if field in KERNEL_FIELDS and "/" in str(value):
            raise ModelError(f"{shown}: {name} {written} asks for a kernel from the Hub, which is never run")
        if isinstance(value, str) and value.endswith(".py"):
            raise ModelError(f"{shown}: {name} names {written}, and code of a model is never run")
        if field == "transformers_weights" and value is not None:
            _check_pointer(path, field, value, top=depth == 0)
        if field in refused and value is not None:
            raise ModelError(f"{shown}: {name} is no setting: it would take the place of transformers' own")
        if field == "quantization_config" and value:
            raise ModelError(f"{shown}: the weights are quantised ({name}); numbers of float types are needed")
    if path.name == "tokenizer_config.json":
        _check_tokenizer(path, content)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        numbers = content.get(name)
        several = numbers if isinstance(numbers, list) else [numbers]
        if numbers is not None and not all(type(number) is int and -1 <= number < 2**31 for number in several):
            raise ModelError(f"{shown}: {name} must be the number of a token")


def _check_pointer(path: Path, field: str, value: object, *, top: bool = True) -> None:
    plain = isinstance(value, str) and Path(value).name == value and value.endswith(".safetensors")
    if not (plain and top):
        raise ModelError(
            f"{one_line(path)}: {field} {one_line(repr(value))[:80]} must be the plain name of a safetensors file "
            "in the folder" + ("" if top else ", and stand at the top")
        )
    if not (path.parent / str(value)).is_file():
        raise ModelError(f"{one_line(path)}: {field} names {one_line(repr(value))[:80]}, which is missing")


def _check_tokenizer(path: Path, content: dict[str, Any]) -> None:
    shown = one_line(path)
    for name, value in content.items():
        if TOKENIZER_POINTERS.fullmatch(name) and value:
            raise ModelError(f"{shown}: {name} names what is read in place of the folder's files; take it away")
    files = content.get("fast_tokenizer_files") or []
    for name in files if isinstance(files, list) else [files]:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{shown}: fast_tokenizer_files names {one_line(repr(name))[:80]}, outside the folder")
    template = content.get("chat_template")
    texts: list[object] = [template]
    if isinstance(template, dict):
        texts = list(template.values())
    elif isinstance(template, list):
        texts = [item.get("template") if isinstance(item, dict) else item for item in template]
        if not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in template):
            texts = [0]
    if template is not None and not all(isinstance(text, str) and len(text) <= LARGEST_TEMPLATE for text in texts):
        raise ModelError(f"{shown}: chat_template must be a text of at most 1 MiB, or several with a name each")


def _tensors(folder: Path, pointer: str | None) -> dict[str, Stored]:
    """The tensors of the files that transformers would read."""
    place: dict[str, str] = {}
    if (folder / INDEX).exists():
        place = _index(folder)
    if pointer is not None:
        names = [pointer]
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        names = sorted(set(place.values()))
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in others:
        if DISTRIBUTED.fullmatch(name):
            raise ModelError(f"{one_line(folder / name)}: is a part of a distributed checkpoint; save the model whole")
    if not names and others:
        raise ModelError(f"{one_line(folder / others[0])}: must be named {WEIGHTS}, or be listed in {INDEX}")
    if not names:
        others = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        pickles = f" (found {one_line(', '.join(others))}, which can run code when it is read)" if others else ""
        raise ModelError(
            f"{one_line(folder)}: has no *.safetensors; weights are read from safetensors only{pickles}"
        )
    tensors: dict[str, Stored] = {}
    for file in names:
        for name, shape, dtype in _header(folder / file):
            if name in tensors:
                earlier = one_line(tensors[name].file)
                raise ModelError(f"{one_line(folder / file)}: {one_line(name)} stands in {earlier} too")
            tensors[name] = Stored(file, shape, dtype)
    if names == sorted(set(place.values())):
        for name, file in place.items():
            if name not in tensors or tensors[name].file != file:
                said = f"says that {one_line(name)} is in {one_line(file)}, but it is not"
                raise ModelError(f"{one_line(folder / INDEX)}: {said}")
    return tensors


def _adapted_tensors(folder: Path) -> dict[str, Stored]:
    """Those of the trunk, and of a reward the head that lies with the adapters."""
    own = {name.removeprefix(PREFIX): (shape, dtype) for name, shape, dtype in _header(folder / ADAPTER_WEIGHTS)}
    head = {name: Stored(ADAPTER_WEIGHTS, *content) for name, content in own.items() if name.startswith("score.")}
    return inspect(trunk_of(folder)) | head


def _index(folder: Path) -> dict[str, str]:
    """In which file each tensor lies, as the index says."""
    path, shown = folder / INDEX, one_line(folder / INDEX)
    content = read_object(path)
    files = content.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{shown}: weight_map must say in which file each tensor lies")
    for name in sorted({str(name) for name in files.values()}):
        written = one_line(repr(name))[:80]
        if Path(name).name != name:
            raise ModelError(f"{shown}: names {written}, which lies outside the model folder")
        if not name.endswith(".safetensors"):
            raise ModelError(f"{shown}: names {written}; weights are read from safetensors only")
        if not (folder / name).is_file():
            raise ModelError(f"{shown}: names {written}, which is missing")
    if not isinstance(content.get("metadata"), dict):
        raise ModelError(f"{shown}: metadata must be an object; transformers reads it")
    return files


def _header(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
            return [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ModelError(f"{one_line(path)}: is damaged or not safetensors: {one_line(error)}") from error


def _check_layers(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuses more layers than the weights can have: each is built before it is known to have none."""
    for _, name, value in _fields(path, dict(config)):
        counts = LAYER_FIELDS.fullmatch(name) or name == "num_labels"
        most = 10**5 if name == "num_labels" else max(LAYERS, tensors)
        if counts and isinstance(value, int | float) and value > most:
            raise ModelError(f"{one_line(path)}: {name} is {value:.10g}, but the weights are {tensors} tensors")


def _check_vocabulary(folder: Path, rows: int) -> None:
    """Refuses tokens with numbers beyond the weights that leave gaps: every number up to them would get a row."""
    for file, numbers in _token_numbers(folder):
        beyond = {number for number in numbers if number >= rows}
        if any(number < 0 for number in numbers) or (beyond and max(beyond) - rows + 1 > len(beyond)):
            raise ModelError(
                f"{one_line(folder / file)}: has a token of number {max(beyond or numbers)}, but the weights have "
                f"{rows} rows at most"
            )


def _token_numbers(folder: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """The numbers of tokens, by the file that gives them."""
    numbered: list[tuple[str, object]] = []
    if (folder / "tokenizer.json").exists():
        content = read_object(folder / "tokenizer.json")
        model, added = content.get("model"), content.get("added_tokens")
        words = model.get("vocab") if isinstance(model, dict) else None
        numbers = list(words.values()) if isinstance(words, dict) else []
        if isinstance(words, list):
            numbers = list(range(len(words)))
        if isinstance(added, list):
            numbers += [token.get("id") for token in added if isinstance(token, dict)]
        numbered.append(("tokenizer.json", numbers))
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).exists():
            numbered.append((name, list(read_object(folder / name).values())))
    if (folder / "tokenizer_config.json").exists():
        decoder = read_object(folder / "tokenizer_config.json", LARGEST_SETTINGS).get("added_tokens_decoder")
        keys = decoder if isinstance(decoder, dict) else ()
        numbered.append(("tokenizer_config.json", [_number(key) for key in keys]))
    for name, values in numbered:
        if isinstance(values, list):
            yield name, [value for value in values if type(value) is int]


def _number(text: str) -> int | None:
    return int(text) if len(text) < 20 and re.fullmatch(r"-?\d+", text) else None
