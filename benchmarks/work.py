"""The rows that both sides work on: the same records, the same tokens, the same model."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from scripts.public import ROOT, find_model, find_set
from triptych.base.source import take
from triptych.data.files import read_comparisons, read_conversations
from triptych.data.lengths import TokenizedComparison, TokenizedConversation, fit, tokenized
from triptych.engine.models import load_reward, load_tokenizer, save
from triptych.records import Comparison, Conversation, Prompt

CONTEXT = 512
"""Longest row, in tokens; longer ones are left out."""


def model() -> Path:
    """The folder of SmolLM2-135M-Instruct, taken as the Base stage does it, with a padding token of its own."""
    smollm2 = ROOT / "models" / "benchmark" / "smollm2-135m"
    if not smollm2.exists():
        take(find_model(), smollm2)
    return smollm2


def reward_model(policy: Path) -> Path:
    """A reward model with a fresh head on the policy's trunk, from which both sides start."""
    folder = policy.with_name(f"{policy.name}-reward")
    if not folder.exists():
        scratch = Path(mkdtemp(dir=policy.parent))
        save(load_reward(policy, fresh=True), load_tokenizer(policy), scratch)
        try:
            scratch.rename(folder)
        except OSError:  # the other side was faster
            shutil.rmtree(scratch)
    return folder


def conversations(tokenizer: Any, count: int) -> tuple[list[Conversation], list[TokenizedConversation]]:
    """Alpaca rows spread evenly over the file."""
    rows = read_conversations(find_set("alpaca"), skipped=[])
    spread = [rows[i * len(rows) // (2 * count)] for i in range(2 * count)]
    kept = list(islice((row for row in spread if tokenized(row, tokenizer).length <= CONTEXT), count))
    return kept, list(fit(kept, tokenizer, CONTEXT, "drop").rows)


def comparisons(tokenizer: Any, count: int) -> tuple[list[Comparison], list[TokenizedComparison]]:
    """PandaLM pairs: all of the first prompts', as many as make up the count."""
    groups: dict[str, list[Comparison]] = {}
    for row in read_comparisons(find_set("pandalm"), skipped=[]):
        if tokenized(row, tokenizer).length <= CONTEXT:
            groups.setdefault(row.prompt.key, []).append(row)
    kept = list(islice((row for group in groups.values() for row in group), count))
    return kept, list(fit(kept, tokenizer, CONTEXT, "drop").rows)


def prompts(tokenizer: Any, count: int) -> list[Prompt]:
    """The instructions of Alpaca rows."""
    return [row.prompt for row in conversations(tokenizer, count)[0]]
