"""Continued pretraining: a Base that others trained learns more text, and what it forgets of it is bounded.

Next-token prediction as in :mod:`triptych.base.text`, from the weights as they are (Gururangan et al. 2020, *Don't Stop
Pretraining: Adapt Language Models to Domains and Tasks*). Held-out text of every file is measured before and after; a
file of weight 0 is not learnt, so that it shows what is forgotten.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from triptych.base.record import BaseRecord, Domain
from triptych.base.text import TEXT, learn_text, require_learnt, tokenized_documents
from triptych.data.folder import DataFolder
from triptych.engine import attention, distributed
from triptych.engine.adapters import adapt
from triptych.engine.merging import merge
from triptych.engine.models import load_policy, load_tokenizer, save
from triptych.engine.perplexity import bits_per_byte
from triptych.engine.training import GradientAccumulation
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Document
from triptych.storage import Folder


class ContinuedPretraining(GradientAccumulation):
    """A Base that was taken, trained further.

    Attributes:
        tokens: how many it sees; the text is repeated as often as that takes.
        batch_tokens: tokens in an update.
        context: the longest sequence, in tokens; longer documents are cut into pieces.
        measured: bytes of each file's held-out text that are measured, at the most.
        max_forgetting: bits per byte by which the text of no file may become worse; a Base that forgets more is not
            taken, and the one from before stays. None for any.
    """

    tokens: int = Field(default=1_000_000, ge=1)
    batch_tokens: int = Field(default=8192, ge=64)
    context: int = Field(default=1024, ge=16)
    measured: int = Field(default=100_000, ge=1000)
    max_forgetting: float | None = Field(default=None, ge=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


@reads(data=("text",))
def continue_pretraining(
    context: StageContext, config: ContinuedPretraining, base: Folder, origin: BaseRecord, data: Folder,
    weights: Mapping[str, float] | None = None,
) -> BaseRecord:
    """Trains a Base on `data/text.jsonl`, and measures it on `data/text_heldout.jsonl` before and after.

    The end of a text is not learnt: which token a model of others has for it is written nowhere.

    Args:
        origin: what is known of the Base.
        weights: how much of the training comes from each file, by its name; None for as much as it holds.
    """
    folder = base / "model"
    tokenizer = load_tokenizer(folder)
    documents, heldout_documents = (DataFolder(data).text(part).read() for part in ("train", "heldout"))
    require_learnt(documents, heldout_documents, weights)
    heldout = shortened(heldout_documents, config.measured)
    rows = tokenized_documents(tokenizer, documents, config.context, ended=False)
    model: Any = load_policy(folder, attention=attention.NAME, merged=config.lora is None)
    adapt(model, config.lora, context.seed, folder)
    before = measure(model, tokenizer, heldout, config.context)
    learnt = learn_text(
        context, model, rows, config, config.tokens, config.batch_tokens, config.at_once, weights
    )[1]
    after = measure(model, tokenizer, heldout, config.context)
    domains = tuple(
        Domain(name=name, tokens=learnt.get(name, 0), before=before[name], after=after[name]) for name in heldout
    )
    for one in domains:
        context.progress.say(f"{one.name}: {one.before:.3f} to {one.after:.3f} bits per byte")
    kept = config.max_forgetting is None or all(one.forgotten <= config.max_forgetting for one in domains)
    if kept:
        names = ", ".join(f"{one.name} ({one.tokens:,})" for one in domains if one.tokens)
        changes = f"trained further on {sum(learnt.values()):,} tokens: {names}"
        _save(context, model, tokenizer, folder, adapters=config.lora is not None)
    else:
        worst = max(domains, key=lambda one: one.forgotten)
        changes = (f"not trained further: {worst.name} took {worst.forgotten:.3f} bits per byte more after it, and "
                   f"max_forgetting is {config.max_forgetting}")
        context.progress.say(f"the Base stays as it was: {changes}")
        shutil.copytree(folder, context.output / "model")
    return origin.model_copy(update={
        "changes": (*origin.changes, changes), "tokens_seen": sum(learnt.values()) if kept else None,
        "bits_per_byte": over_all(after if kept else before, heldout), "domains": domains, "trained_further": kept,
    })


def _save(context: StageContext, model: Any, tokenizer: Any, folder: Path, *, adapters: bool) -> None:
    """Writes a plain model: adapters are merged, so that whatever is trained on it has one trunk."""
    output = context.output / "model"
    if not adapters:
        save(model, tokenizer, output)
        return
    save(model, tokenizer, context.scratch / "adapters", trunk=str(folder.resolve()))
    if distributed.rank() == 0:
        merge(context.scratch / "adapters", output)


def shortened(documents: Sequence[Document], most: int) -> dict[str, list[Document]]:
    """The documents of each file, until they have so many bytes; the last one is cut there."""
    kept: dict[str, list[Document]] = {}
    left: dict[str, int] = {}
    for document in documents:
        name = document.domain or TEXT
        part = document.text.encode()[: left.setdefault(name, most)].decode(errors="ignore")
        left[name] -= len(part.encode())
        if part.strip():
            kept.setdefault(name, []).append(replace(document, text=part))
    return kept


def measure(model: Any, tokenizer: Any, heldout: Mapping[str, Sequence[Document]], context: int) -> dict[str, float]:
    """Bits per byte of each file's text."""
    return {name: bits_per_byte(model, tokenizer, documents, context) for name, documents in heldout.items()}


def over_all(bits: Mapping[str, float], heldout: Mapping[str, Sequence[Document]]) -> float:
    """Bits per byte of all of the text."""
    sizes = {name: sum(len(document.text.encode()) for document in heldout[name]) for name in bits}
    return sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
