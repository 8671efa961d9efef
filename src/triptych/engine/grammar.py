"""Answers that are JSON by a schema: of each next token, only those that go on with such a text (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from torch import Tensor

from triptych.errors import ModelError

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarMatcher:
    """A constraint of one answer: see :class:`triptych.engine.continuous.Constraint`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> GrammarMatcher:
        """Another answer's constraint by the same grammar, which is not compiled again."""
        return GrammarMatcher(self._matcher.deep_copy())

    def restrict(self, logits: Tensor) -> None:
        """Leaves those tokens of `[V]` logits that go on with a text of the grammar, and the end token behind one."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = torch.from_numpy(np.unpackbits(mask, count=len(logits), bitorder="little")).bool()
        logits.masked_fill_(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """The token that came, which was one of those."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the grammar does not go on: {self._matcher.get_error()}")


class Grammars:
    """Makes the constraints of answers in one tokenizer.

    Args:
        vocabulary: rows of the model's logits; it may be larger than the tokenizer's.
        ends: the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]) -> None:
        self._made_of = tokenizer, vocabulary, list(ends)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        tokenizer, vocabulary, ends = self._made_of
        return llguidance.hf.from_tokenizer(tokenizer, vocabulary, ends)

    def json(self, schema: dict[str, Any]) -> GrammarMatcher:
        """The constraint to JSON texts that a schema describes; `{"type": "object"}` describes every object.

        They are spaced as `json.dumps` does it: with blanks wherever JSON allows them a weak model writes only those.

        Raises:
            ModelError: the schema is none, or asks for what no grammar holds.
        """
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), SPACING)
        except ValueError as error:
            raise ModelError(f"the schema cannot be read: {error}") from None
        if why := llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise ModelError(f"the schema cannot be kept to: {why.strip().splitlines()[0]}")
        return GrammarMatcher(llguidance.LLMatcher(self._tokenizer, grammar))
