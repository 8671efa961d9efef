"""How well a model predicts plain text: bits per byte, which does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from triptych.engine import ranks
from triptych.engine.device import autocast
from triptych.engine.forward import Model, answer_logprobs, pack_answers
from triptych.records import Document


@torch.no_grad()
def bits_per_byte(
    model: Model, tokenizer: Any, documents: Sequence[Document], context: int, batch: int = 8192
) -> float:
    """−log2 p(text) over the UTF-8 bytes of the text, each document behind its separator.

    The separator that begins a document is given, not predicted, and the one that ends it is not counted.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    rows = [([first], [tokens[start : start + context - 1]])
            for tokens in encoded for start in range(0, len(tokens), context - 1)]
    nats = 0.0
    for group in ranks.share(ranks.dealt((len(answers[0]) + 1 for _, answers in rows), batch)):
        with autocast():
            logprobs, _ = answer_logprobs(model, pack_answers([rows[i] for i in group]))
        nats -= float(logprobs.double().sum())
    (nats,) = ranks.summed([nats])
    return nats / math.log(2) / sum(len(document.text.encode()) for document in documents)
