"""A tokenizer trained on the recipe's own text: byte-level BPE, ChatML turns, a padding token of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from triptych.data.template import CHATML, TURN_END, TURN_START
from triptych.records import Document

SEPARATOR = "<|endoftext|>"
PADDING = "<|pad|>"


def train_tokenizer(documents: Sequence[Document], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocabulary` entries; `<|im_end|>` ends a turn, `<|endoftext|>` parts documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR, PADDING, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=TURN_END, pad_token=PADDING,
        chat_template=CHATML, model_max_length=context, clean_up_tokenization_spaces=False,
    )
