"""A small Base trained from scratch: a Llama on the recipe's own text.

Next-token prediction over packed documents, no document attending to another: the loss is the mean of
−log p(token | the document so far) over all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from triptych.base.record import BaseRecord
from triptych.base.text import learn_text, require_learnt, tokenized_documents
from triptych.base.tokenizer import train_tokenizer
from triptych.data.folder import DataFolder
from triptych.engine import attention
from triptych.engine.adapters import Lora
from triptych.engine.device import device
from triptych.engine.models import parameters, save
from triptych.engine.perplexity import bits_per_byte
from triptych.engine.training import Optimization
from triptych.pipeline.stage import StageContext, reads
from triptych.storage import Folder


class Pretraining(Optimization):
    """A Base trained from scratch.

    Attributes:
        vocabulary: entries of the byte-level BPE tokenizer.
        width, layers, heads, key_value_heads: of the Llama.
        context: its longest sequence, in tokens; longer documents are cut into pieces.
        tokens: how many it sees; the text is repeated as often as that takes.
        batch_tokens: tokens in an update.
    """

    vocabulary: int = Field(default=1024, ge=300)
    width: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    key_value_heads: int = Field(default=2, ge=1)
    context: int = Field(default=512, ge=16)
    tokens: int = Field(default=1_500_000, ge=1)
    batch_tokens: int = Field(default=4096, ge=64)
    learning_rate: float = Field(default=3e-3, gt=0)
    muon_learning_rate: float | None = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)

    @field_validator("lora")
    @classmethod
    def _whole(cls, lora: Lora | None) -> None:
        if lora:
            raise ValueError("adapters need a model that was trained before; a Base from scratch is trained whole")


@reads(data=("text",))
def pretrain(
    context: StageContext, config: Pretraining, data: Folder, weights: Mapping[str, float] | None = None
) -> BaseRecord:
    """Trains a tokenizer and a Base on `data/text.jsonl`; measures it on `data/text_heldout.jsonl`.

    Args:
        weights: how much of the training comes from each file, by its name; None for as much as it holds.
    """
    documents, heldout = (DataFolder(data).text(part).read() for part in ("train", "heldout"))
    require_learnt(documents, heldout, weights)
    tokenizer = train_tokenizer(documents, config.vocabulary, config.context)
    text = tokenized_documents(tokenizer, documents, config.context)
    torch.manual_seed(context.seed)
    model: Any = LlamaForCausalLM(architecture(config, tokenizer)).to(device())
    model.set_attn_implementation(attention.NAME)
    curve, _ = learn_text(
        context, model, text, config, config.tokens, config.batch_tokens, config.batch_tokens, weights
    )
    save(model, tokenizer, context.output / "model", GenerationConfig(do_sample=True, temperature=1.0))
    return BaseRecord(
        source="trained from scratch",
        parameters=parameters(model),
        vocabulary=len(tokenizer),
        tokens_seen=int(curve[-1]["seen"]),
        bits_per_byte=bits_per_byte(model, tokenizer, heldout, config.context),
    )


def architecture(config: Pretraining, tokenizer: Any) -> LlamaConfig:
    """The Llama that the configuration describes."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=-(-config.width * 8 // 3 // 32) * 32,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        # transformers' 0.02 suits wide models; a narrow one learns to copy only from larger weights.
        initializer_range=0.68 * config.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
