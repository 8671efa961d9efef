"""How a text is cut into words before BPE, by llama.cpp's names for it.

A `.gguf` file names the way (`tokenizer.ggml.pre`) where `tokenizer.json` has its rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = (
    CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Step = tuple[str, ...]
"""A step of a pre-tokenizer: its type, and what of its settings counts."""

GPT2 = ("ByteLevel", "words")
BYTES = ("ByteLevel",)
PRE_TOKENIZERS: dict[tuple[tuple[Step, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((("Digits",), GPT2), False): "smollm",
    ((("Split", LLAMA3), BYTES), True): "llama-bpe",
    ((("Split", LLAMA3), BYTES), False): "dbrx",
    ((("Split", QWEN2), BYTES), False): "qwen2",
    ((("Split", QWEN35), BYTES), False): "qwen35",
}
"""llama.cpp's names, by the steps and by whether a word that is a token is left whole (`ignore_merges`)."""


def steps_of(rules: dict[str, Any] | None) -> tuple[Step, ...]:
    """What a pre-tokenizer does, step by step; a step that no name of llama.cpp's has is told whole."""
    if rules is None:
        return ()
    match rules:
        case {"type": "Sequence"}:
            return tuple(step for part in rules["pretokenizers"] for step in steps_of(part))
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (GPT2 if rules.get("use_regex", True) else BYTES,)
        case {"type": "Digits", "individual_digits": True}:
            return (("Digits",),)
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return (("Split", regex),)
    return ((rules["type"], json.dumps(rules, sort_keys=True)),)


def named_in(file: Path) -> str | None:
    """The name that a `.gguf` file of byte-level BPE has; None where it has none, or another kind of tokenizer."""
    fields = GGUFReader(file).fields
    kind, name = (fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return str(name.contents()) if name is not None and kind is not None and kind.contents() == "gpt2" else None


def cut_as_named(tokenizer: PreTrainedTokenizerFast, file: Path) -> list[str]:
    """Has a tokenizer that transformers read from a `.gguf` file cut texts as the file says; tells where it may not.

    transformers knows some of the names, and takes GPT-2's way for all others.
    """
    name, backend = named_in(file), tokenizer.backend_tokenizer
    for (steps, whole_words), known in PRE_TOKENIZERS.items():
        if known == name:
            backend.pre_tokenizer = pre_tokenizers.Sequence([_built(step) for step in steps])
            backend.model.ignore_merges = whole_words
            return []
    if name is None or steps_of(json.loads(backend.to_str())["pre_tokenizer"]) != (GPT2,):
        return []
    return [
        f"texts are cut into words as GPT-2 does it, for the rules that the file calls {name} are not known here; if "
        "they differ, the model reads other tokens than it learnt: its own folder has them"
    ]


def _built(step: Step) -> Any:
    match step:
        case ("Digits",):
            return pre_tokenizers.Digits(individual_digits=True)
        case ("Split", regex):
            return pre_tokenizers.Split(Regex(regex), behavior="isolated")
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == GPT2)
