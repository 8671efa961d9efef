"""How many floating-point operations a piece of work needs at the least.

A token costs 2 operations for each weight of the trunk (all parameters but the embeddings) in a forward pass, and
6 in a forward and backward pass. A position whose next token is predicted (an answer's token in the loss, a
sampled token) costs as many for each weight of the output embedding, vocabulary times width; no other position
needs one. A prompt shared by several answers, and what all prompts of an update begin with, is needed once.
Attention scores, the embedding's look-up, norms and the optimizer are not counted, nor is anything computed twice
or for padding. The same needed operations, divided by each side's own time and by the machine's rate, give each
side's fraction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.engine.packing import Group


def needed(groups: Sequence[Group]) -> int:
    """Tokens of `(prompt, answers)` groups that must be computed."""
    from triptych.engine.packing import grown

    return sum(len(segment.tokens) for segment in grown(groups)[0])


@dataclass(frozen=True, slots=True)
class Size:
    """Weights of a model: of its trunk, and of its output embedding."""

    trunk: int
    head: int

    @classmethod
    def of(cls, config: Any) -> Size:
        """Of a Llama with this configuration, without building it."""
        width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
        head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
        queries = config.num_attention_heads * head_width
        keys = (config.num_key_value_heads or config.num_attention_heads) * head_width
        layer = 2 * width * queries + 2 * width * keys + 3 * width * inner + 2 * width
        return cls(config.num_hidden_layers * layer + width, vocabulary * width)

    @classmethod
    def read(cls, folder: Path) -> Size:
        """Of the Llama in a Hugging Face folder."""
        from transformers import LlamaConfig

        return cls.of(LlamaConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))

    def forward(self, tokens: float, predicted: float = 0) -> float:
        """2·(trunk·tokens + head·predicted)."""
        return 2 * (self.trunk * tokens + self.head * predicted)

    def training(self, tokens: float, predicted: float = 0) -> float:
        """6·(trunk·tokens + head·predicted)."""
        return 3 * self.forward(tokens, predicted)
