"""Whoever gives an answer a number: a trained reward model, an exact judge, anything with `score`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from triptych.data.template import answer_tokens, prompt_tokens
from triptych.engine import attention
from triptych.engine.device import autocast
from triptych.engine.forward import Model, rewards
from triptych.engine.models import load_reward, load_tokenizer
from triptych.engine.packing import Pack, Segment, fill
from triptych.records import Conversation


class Scorer(Protocol):
    """Scores answers; higher is better."""

    @property
    def name(self) -> str:
        """What it is, for the reader of a report."""

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A score for each answer."""


class RewardModel:
    """A trained reward model as a scorer: packed, each prompt computed once for all its answers.

    Attributes:
        precise: compute in float32 as a released folder does elsewhere, instead of the faster compute type.
    """

    name = "reward model"

    def __init__(self, model: Model, tokenizer: Any, precise: bool = False) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.precise = precise

    @classmethod
    def open(cls, folder: Path, precise: bool = False) -> RewardModel:
        """The reward model in a Hugging Face folder."""
        model = load_reward(folder, fresh=False, attention=attention.NAME)
        return cls(model, load_tokenizer(folder), precise)

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The head's score at the end token of each answer."""
        groups: dict[str, list[int]] = {}
        for index, conversation in enumerate(conversations):
            groups.setdefault(conversation.prompt.key, []).append(index)
        prompts = {
            key: prompt_tokens(self.tokenizer, conversations[members[0]].prompt.messages)
            for key, members in groups.items()
        }
        answers = [answer_tokens(self.tokenizer, conversation.answer) for conversation in conversations]
        keys = list(groups)
        sizes = [len(prompts[key]) + sum(len(answers[i]) for i in groups[key]) for key in keys]
        scores = [0.0] * len(conversations)
        for batch in fill(sizes, 8192):
            batch_groups = [(prompts[keys[g]], [answers[i] for i in groups[keys[g]]]) for g in batch]
            pack, ends = pack_scored(batch_groups)
            with torch.autocast("cpu", enabled=False) if self.precise else autocast():
                values = rewards(self.model, pack)[ends].tolist()
            for value, index in zip(values, (i for g in batch for i in groups[keys[g]]), strict=True):
                scores[index] = value
        return scores


def pack_scored(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
) -> tuple[Pack, torch.Tensor]:
    """Packs `(prompt, answers)` groups; the second result is the segments that are answers, in order."""
    segments: list[Segment] = []
    scored: list[int] = []
    for prompt, answers in groups:
        if len(answers) == 1:
            scored.append(len(segments))
            segments.append(Segment([*prompt, *answers[0]]))
            continue
        parent = len(segments)
        segments.append(Segment(prompt))
        for answer in answers:
            scored.append(len(segments))
            segments.append(Segment(answer, parent))
    return Pack(segments), torch.tensor(scored)
