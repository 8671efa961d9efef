"""Whoever gives an answer a number: a trained reward model, an exact judge, anything with `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

    @property
    def identity(self) -> str:
        """What it is, exactly: part of the fingerprint of what it scored."""

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A score for each answer."""


@dataclass
class RewardModel:
    """A trained reward model as a scorer: packed, each prompt computed once for all its answers.

    Attributes:
        folder: a Hugging Face folder; it is opened when the first answer is scored.
        precise: compute in float32 as a released folder does elsewhere, instead of the faster compute type.
    """

    folder: Path
    name: str = "reward model"
    identity: str = ""
    precise: bool = False

    @cached_property
    def model(self) -> Model:
        """The trunk and its head."""
        return load_reward(self.folder, fresh=False, attention=attention.NAME)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that lies beside the model."""
        return load_tokenizer(self.folder)

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
