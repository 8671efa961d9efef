"""A tokenizer as a GGUF file holds it.

llama.cpp has the rules by which a text is cut into words, before their letters are merged, in its own code; a file only
names them (`tokenizer.ggml.pre`). So the rules of `tokenizer.json` are compared with those that it has a name for, part
by part, and whatever it would do in another way is refused: other tokens than in training give a worse model, without a
word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerFast

from triptych.data.template import prompt_tokens
from triptych.engine.pre_tokenizers import PRE_TOKENIZERS, steps_of
from triptych.errors import ModelError
from triptych.records import Prompt

ENDS = ("eos", "eot", "eom")
"""The keys under which llama.cpp reads tokens that end an answer."""


class Ends(NamedTuple):
    """Tokens that end an answer: those that a file can name, and those for which it has no key."""

    named: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Ends:
        """The first three are named."""
        return cls(tuple(tokens[: len(ENDS)]), tuple(tokens[len(ENDS) :]))


def pre_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts a text into words.

    Raises:
        ModelError: it has none, or would read a text in another way; with what is different.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model, normalizer = rules["model"], rules["normalizer"]
    steps = steps_of(rules["pre_tokenizer"])
    if model["type"] != "BPE" or ("ByteLevel" not in {step[0] for step in steps}):
        raise _refusal(f"it is {model['type']} on {', '.join(step[0] for step in steps) or 'whole texts'}, and only "
                       "byte-level BPE is exported")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(field):
            raise _refusal(f"its {field} is {model[field]!r}, which llama.cpp does not know")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refusal(f"its normalizer is {normalizer['type']}, and llama.cpp has none")
    for token in tokenizer.added_tokens_decoder.values():
        if token.lstrip or token.rstrip or token.single_word:
            raise _refusal(f"it takes what stands beside {token} into account, which llama.cpp does not")
    try:
        return PRE_TOKENIZERS[steps, bool(model.get("ignore_merges"))]
    except KeyError:
        raise _refusal(
            "llama.cpp has no name for its pre_tokenizer in tokenizer.json; it would cut texts into other tokens"
        ) from None


def normalizes(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a text is brought into a normal form first, which llama.cpp does not do."""
    return tokenizer.backend_tokenizer.normalizer is not None


def begins_with_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether texts and chats begin with BOS; llama.cpp puts it before both or before neither."""
    if tokenizer.bos_token_id is None or tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        return False
    question = Prompt.of("a")
    return tokenizer.chat_template is None or prompt_tokens(tokenizer, question)[0] == tokenizer.bos_token_id


def write_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int, ends: Ends) -> None:
    """Adds the tokens, merges, special tokens and chat template to what a file holds.

    Args:
        rows: of the embedding; those of no token are marked unused.

    Raises:
        ModelError: the tokenizer cannot be told to llama.cpp.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    if max(texts) >= rows:
        raise _refusal(f"it has a token of number {max(texts)}, but the embedding has {rows} rows")
    if tokenizer.bos_token is None and "bos_token" in str(tokenizer.chat_template):
        raise _refusal("its chat template writes bos_token, and it has none; llama.cpp would write another token")
    added = tokenizer.added_tokens_decoder
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([
        TokenType.UNUSED if number not in texts
        else TokenType.NORMAL if number not in added
        else TokenType.CONTROL if added[number].special
        else TokenType.USER_DEFINED
        for number in range(rows)
    ])
    writer.add_token_merges([" ".join(pair) for pair in rules["model"]["merges"]])
    for name, number in zip(ENDS, ends.named, strict=False):
        getattr(writer, f"add_{name}_token_id")(number)
    for name in ("bos", "unk", "pad"):
        if (special := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(special)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _refusal(why: str) -> ModelError:
    return ModelError(f"the tokenizer cannot be exported: {why}")
