"""Plain text learnt: documents as rows of tokens, drawn by the weights of their files, and next-token prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from triptych.engine import distributed
from triptych.engine.curve import Curve, write_curve
from triptych.engine.forward import AnswerPack, answer_logprobs, pack_answers
from triptych.engine.packing import fill
from triptych.engine.perplexity import separator
from triptych.engine.training import Loss, Optimization, Step, shuffled, train
from triptych.errors import DataError, Fault
from triptych.pipeline.stage import StageContext
from triptych.records import Document

TEXT = "text"
"""How the file of a document is called that has no other name."""
UNLEARNT = (
    "all of it is held out, for it is one document, and nothing of it would be learnt: cut it into several, or give it "
    "`weight: 0`"
)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Documents as rows of tokens.

    Attributes:
        rows: pieces of at most a context each.
        lines: each piece's document, counted from 1.
        domains: each piece's file.
    """

    rows: list[list[int]]
    lines: list[int]
    domains: list[str]


def tokenized_documents(
    tokenizer: Any, documents: Sequence[Document], context: int, *, ended: bool = True
) -> TokenizedText:
    """Each document behind a separator, cut into pieces of at most `context` tokens.

    Args:
        ended: the separator stands behind it too, and is learnt.
    """
    first = separator(tokenizer)
    last = [first] if ended else []
    text = TokenizedText([], [], [])
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False, verbose=False)["input_ids"]
    for line, (document, content) in enumerate(zip(documents, encoded, strict=True), start=1):
        tokens = [first, *content, *last]
        pieces = [tokens[start : start + context] for start in range(0, len(tokens) - 1, context)]
        kept = [piece for piece in pieces if len(piece) > 1]
        text.rows.extend(kept)
        text.lines.extend([line] * len(kept))
        text.domains.extend([document.domain or TEXT] * len(kept))
    if not text.rows:
        raise DataError([Fault("text", None, None, "has no document with two tokens or more")])
    return text


def unlearnt(
    train: Iterable[Document], heldout: Iterable[Document], weights: Mapping[str, float] | None = None
) -> list[str]:
    """The files that should be learnt, and of which every document is held out: those of a single one."""
    learnt = {document.domain for document in train}
    lost = dict.fromkeys(document.domain for document in heldout if document.domain not in learnt)
    return [name for name in lost if name is not None and (weights is None or weights[name] > 0)]


def require_learnt(
    train: Iterable[Document], heldout: Iterable[Document], weights: Mapping[str, float] | None = None
) -> None:
    """Goes on only where something is learnt of every file that should be.

    Raises:
        DataError: all of a file is held out; each one is named.
    """
    if lost := unlearnt(train, heldout, weights):
        raise DataError([Fault(name, None, None, UNLEARNT) for name in lost])


def learn_text(
    context: StageContext, model: Any, text: TokenizedText, config: Optimization, tokens: int, batch_tokens: int,
    at_once: int, weights: Mapping[str, float] | None = None,
) -> tuple[Curve, dict[str, int]]:
    """Next-token prediction over packed documents; the curve is kept in the stage's folder.

    Args:
        tokens: how many it sees, in updates of `batch_tokens`, of which `at_once` are computed together.
        weights: of the files, see :func:`pretrain`.

    Returns:
        The curve, and how many tokens it saw of each file.
    """
    rows = text.rows
    plan = planned(text, batch_tokens, math.ceil(tokens / batch_tokens), context.seed, weights)

    def prepare(step: int) -> Step[AnswerPack]:
        drawn = [rows[i] for i in plan[step]]
        batches = [
            pack_answers([([], [drawn[i]]) for i in part], model.device)
            for part in distributed.micro_batches(map(len, drawn), at_once)
        ]
        weight = sum(len(batch.predictions.targets) for batch in batches)
        return Step(batches, weight, rows=sorted({text.lines[i] for i in plan[step]}))

    curve = train(
        model, len(plan), prepare, lambda packed: Loss(-answer_logprobs(model, packed)[0].sum()),
        config, checkpoint=context.checkpoint(), progress=context.progress,
    )
    write_curve(context.output / "curve.jsonl", curve)
    seen: dict[str, int] = {}
    for i in chain(*plan):
        seen[text.domains[i]] = seen.get(text.domains[i], 0) + len(rows[i])
    return curve, seen


def planned(
    text: TokenizedText, batch: int, steps: int, seed: int, weights: Mapping[str, float] | None = None
) -> list[list[int]]:
    """The rows of every step, epoch after epoch, each epoch in its own order; or files by their weights."""
    sizes = [len(row) for row in text.rows]
    if weights is not None:
        order = list(_by_weight(text, weights, batch * steps, seed))
        return [[order[i] for i in group] for group in fill((sizes[i] for i in order), batch)][:steps]
    plan: list[list[int]] = []
    epoch = 0
    while len(plan) < steps:
        order = shuffled(len(sizes), epoch, seed)
        plan += [[order[i] for i in group] for group in fill((sizes[i] for i in order), batch)]
        epoch += 1
    return plan[:steps]


def _by_weight(text: TokenizedText, weights: Mapping[str, float], tokens: int, seed: int) -> Iterator[int]:
    """Rows until there are so many tokens: always one of the file that has the least of its share, each in epochs."""
    places: dict[str, list[int]] = {}
    for i, domain in enumerate(text.domains):
        if weights[domain] > 0:
            places.setdefault(domain, []).append(i)
    if not places:
        raise DataError([Fault("text", None, None, "no file with a weight above 0 has text to train on")])
    epochs = {domain: _epochs(rows, seed) for domain, rows in places.items()}
    used = dict.fromkeys(places, 0)
    while sum(used.values()) < tokens:
        domain = min(used, key=lambda name: used[name] / weights[name])
        row = next(epochs[domain])
        used[domain] += len(text.rows[row])
        yield row


def _epochs(rows: Sequence[int], seed: int) -> Iterator[int]:
    """Epoch after epoch of them, each in its own order."""
    return (rows[i] for epoch in count() for i in shuffled(len(rows), epoch, seed))
