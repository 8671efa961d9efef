"""The same answers scored alone, packed, and from the folder through plain transformers: the same scores?

A reward model that is scored another way in improvement, or by a user of its release, than in its training is
another reward model: padding is read for the answer, an end token is missing, positions are shifted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from triptych.audit.record import Consistency
from triptych.data.template import answer_tokens, prompt_tokens
from triptych.engine.device import compute_dtype
from triptych.engine.models import load_reward
from triptych.engine.scoring import RewardModel, Scale
from triptych.records import Conversation


def consistency(folder: Path, conversations: Sequence[Conversation], tolerance: float) -> list[Consistency]:
    """Each way's largest difference from the score of an answer alone, in float32 unless said.

    Args:
        folder: a reward model's Hugging Face folder.
        conversations: a few, some of them with the same prompt.
        tolerance: the largest difference allowed, for scores of about 1; it grows with the largest score.
    """
    scorer = RewardModel(folder, precise=True)
    alone = [scorer.raw([conversation])[0] for conversation in conversations]
    allowed = tolerance * max(1.0, *map(abs, alone))
    found = [_compared("packed, prompts shared", alone, scorer.raw(conversations), allowed)]
    plain = PlainModel(folder, scorer.tokenizer)
    ways: dict[str, Callable[[], list[float]]] = {
        "plain transformers, alone": lambda: [plain.score([each])[0] for each in conversations],
        "plain transformers, padded on the right": lambda: plain.score(conversations, "right"),
        "plain transformers, padded on the left": lambda: plain.score(conversations, "left"),
    }
    for way, score in ways.items():
        try:
            found.append(_compared(way, alone, score(), allowed))
        except (ValueError, RuntimeError, TypeError, IndexError):  # as transformers does without a padding token
            found.append(Consistency(way=way, difference=None, tolerance=allowed))
    if compute_dtype() != torch.float32:
        scorer.precise = False
        name = str(compute_dtype()).removeprefix("torch.")
        found.append(_compared(f"packed, in {name}", alone, scorer.raw(conversations), None))
    return found


class PlainModel:
    """A reward model's folder as a user of transformers loads it, without our attention and packing."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.model = load_reward(folder, fresh=False)
        self.tokenizer = tokenizer
        # What the folder says counts here, and not what loading mended.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pad = config.get("pad_token_id", config.get("text_config", {}).get("pad_token_id"))
        for part in (self.model.config, self.model.config.get_text_config()):
            part.pad_token_id = pad

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation], side: Literal["left", "right"] = "right") -> list[float]:
        """The scores of one padded batch."""
        rows = [
            [*prompt_tokens(self.tokenizer, each.prompt.messages), *answer_tokens(self.tokenizer, each.answer)]
            for each in conversations
        ]
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side=side)
        output: Any = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        scores: list[float] = Scale.of(self.model.config).raw(output.logits).tolist()
        return scores


def _compared(way: str, alone: Sequence[float], scores: Sequence[float], allowed: float | None) -> Consistency:
    difference = max(abs(a - b) for a, b in zip(alone, scores, strict=True))
    return Consistency(way=way, difference=difference, tolerance=allowed)
