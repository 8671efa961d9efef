"""What the cards' code prints: answers, a continuation and scores of the released folders, in plain transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from triptych.data.template import prompt_tokens
from triptych.engine.inspection import trunk_of
from triptych.engine.models import load_policy, load_tokenizer, quiet
from triptych.engine.scoring import RewardModel
from triptych.records import Comparison, Conversation, Prompt
from triptych.release.lineage import RewardExample, WrittenExample

SEED = 0
"""Of each answer that is sampled."""


def answers(folder: Path, prompts: Sequence[Prompt]) -> tuple[WrittenExample, ...]:
    """The folder's answers, decoded as its `generation_config.json` says."""
    if not prompts:
        return ()
    tokenizer = load_tokenizer(folder)
    rows = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    return tuple(
        WrittenExample(prompt.messages, text)
        for prompt, text in zip(prompts, _written(folder, tokenizer, rows), strict=True)
    )


def continuation(folder: Path, text: str) -> str:
    """The text and how the folder's model goes on with it."""
    tokenizer = load_tokenizer(folder)
    (written,) = _written(folder, tokenizer, [tokenizer(text)["input_ids"]], whole=True)
    return written


def scores(folder: Path, comparisons: Sequence[Comparison]) -> tuple[RewardExample, ...]:
    """The answers of both sides with their raw scores in float32."""
    conversations = [Conversation(row.prompt, text) for row in comparisons for text in (row.chosen, row.rejected)]
    raw = RewardModel(folder, precise=True).raw(conversations) if conversations else []
    return tuple(
        RewardExample(conversation.prompt.messages, conversation.answer, score)
        for conversation, score in zip(conversations, raw, strict=True)
    )


@torch.no_grad()
def _written(folder: Path, tokenizer: Any, rows: Sequence[Sequence[int]], whole: bool = False) -> list[str]:
    stored = json.loads((folder / "config.json").read_bytes())["dtype"]
    model: Any = load_policy(folder, dtype=getattr(torch, stored), merged=False)
    if trunk_of(folder) != folder:  # as the card's code has them: beside the weights, which may be in bfloat16
        model = PeftModel.from_pretrained(model, folder).eval()
    texts = []
    with torch.random.fork_rng(), quiet():
        for row in rows:
            tokens = torch.tensor([row], device=model.device)
            torch.manual_seed(SEED)
            output = model.generate(tokens, attention_mask=torch.ones_like(tokens))[0]
            texts.append(str(tokenizer.decode(output[0 if whole else len(row) :], skip_special_tokens=True)))
    return texts
