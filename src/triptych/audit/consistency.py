"""The same answers scored alone, packed, and from the folder by other tools: the same scores?

A reward model that is scored another way in improvement, or by a user of its release, than in its training is
another reward model: padding is read for the answer, the last token is another, positions are shifted. Other tools
apply the chat template to a whole conversation and read the score at its last token: transformers' pipeline, TRL,
RewardBench, verl, vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from triptych.audit.record import Consistency
from triptych.data.template import forges, padded
from triptych.engine.device import compute_dtype
from triptych.engine.parity import as_in_transformers
from triptych.engine.scoring import RewardModel, Scale
from triptych.engine.trunk import Float32Products
from triptych.records import Conversation


def consistency(folder: Path, conversations: Sequence[Conversation], tolerance: float) -> list[Consistency]:
    """Each way's largest difference from the score of an answer alone, in float32 unless said.

    Args:
        folder: a reward model's Hugging Face folder.
        conversations: a few, some of them with the same prompt. Those in whose text a special token is written are
            left out: other tools take it for the token.
        tolerance: the largest difference allowed, for scores of about 1; it grows with the largest score.
    """
    scorer = RewardModel(folder, precise=True)
    conversations = [conversation for conversation in conversations if not forges(scorer.tokenizer, conversation)]
    if not conversations:
        return []
    alone = [scorer.raw([conversation])[0] for conversation in conversations]
    allowed = tolerance * max(1.0, *map(abs, alone))
    rows = [_compared("packed, prompts shared", alone, scorer.raw(conversations), allowed)]
    plain = PlainModel(scorer)
    ways: dict[str, Callable[[], list[float]]] = {
        "plain transformers, alone": lambda: [plain.score([conversation])[0] for conversation in conversations],
        "plain transformers, padded on the right": lambda: plain.score(conversations, "right"),
        "plain transformers, padded on the left": lambda: plain.score(conversations, "left"),
    }
    for way, score in ways.items():
        try:
            rows.append(_compared(way, alone, score(), allowed))
        except (ValueError, RuntimeError, TypeError, IndexError):  # as transformers does without a padding token
            rows.append(Consistency(way=way, difference=None, tolerance=allowed))
    if compute_dtype() != torch.float32:
        scorer.precise = False
        name = str(compute_dtype()).removeprefix("torch.")
        rows.append(_compared(f"packed, in {name}", alone, scorer.raw(conversations), None))
    return rows


class PlainModel:
    """A reward model as other tools compute it, without our attention, packing and view of a conversation."""

    def __init__(self, scorer: RewardModel) -> None:
        self.model = as_in_transformers(scorer.model)
        self.tokenizer = scorer.tokenizer
        # What the folder says counts here, and not what loading mended.
        config = json.loads((scorer.folder / "config.json").read_text(encoding="utf-8"))
        pad = config.get("pad_token_id", config.get("text_config", {}).get("pad_token_id"))
        for part in (self.model.config, self.model.config.get_text_config()):
            part.pad_token_id = pad

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation], side: Literal["left", "right"] = "right") -> list[float]:
        """The scores of one padded batch."""
        batch = padded(self.tokenizer, conversations, side).to(self.model.device)
        with Float32Products():
            output: Any = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        scores: list[float] = Scale.of(self.model.config).raw(output.logits).tolist()
        return scores


def _compared(way: str, alone: Sequence[float], scores: Sequence[float], allowed: float | None) -> Consistency:
    difference = max(abs(a - b) for a, b in zip(alone, scores, strict=True))
    return Consistency(way=way, difference=difference, tolerance=allowed)
