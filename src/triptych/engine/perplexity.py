"""How well a model predicts plain text: bits per byte, which does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from triptych.engine import distributed
from triptych.engine.forward import Model, answer_logprobs, pack_answers
from triptych.engine.packing import APPLIED, Group
from triptych.engine.rollout import infer
from triptych.records import Document


def bits_per_byte(
    model: Model, tokenizer: Any, documents: Sequence[Document], context: int, batch: int = APPLIED
) -> float:
    """−log2 p(text) over the UTF-8 bytes of the text, each document behind its separator.

    The separator that begins a document is given, not predicted, and the one that ends it is not counted. Of a document
    that is longer than the context every token is predicted once, from half a context before it at least: windows of
    `context` tokens move on by half of one, as in transformers' guide to the perplexity of fixed-length models.

    Args:
        context: the most tokens that the model sees at once, the separator among them; at least 2.

    Returns:
        Lower is better. All bytes of all documents count.
    """
    first = separator(tokenizer)
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False, verbose=False)["input_ids"]
    rows = [row for tokens in encoded for row in windows([first, *tokens], context)]
    sizes = (len(given) + len(answers[0]) for given, answers in rows)

    def nats(batch: Sequence[int]) -> float:
        logprobs, _ = answer_logprobs(model, pack_answers([rows[i] for i in batch], model.device))
        return -float(logprobs.double().sum())

    total = sum(infer(model, nats, distributed.micro_batches(sizes, batch)))
    return total / math.log(2) / sum(len(document.text.encode()) for document in documents)


def separator(tokenizer: Any) -> int:
    """The token that a text stands behind."""
    first: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return first


def windows(tokens: Sequence[int], context: int) -> Iterator[Group]:
    """What is given and what is predicted, so that each token but the first is predicted once."""
    start, end = 1, context
    while start < len(tokens):
        yield tokens[max(0, end - context) : start], [tokens[start:end]]
        start, end = end, end + context // 2
