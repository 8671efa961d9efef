"""Pretraining a small Llama from scratch, as in the quickstart: ours beside transformers' Trainer.

Both start from the same random weights. Ours keeps documents apart; the Trainer reads them joined and cut into
blocks of the context's length, which is its fastest way, or padded. The first loss is compared on the same
documents, kept apart on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.row import Case, Row, Run, Setting, fastest

UPDATES = 40
"""Of a run."""
RUNS = 12
"""So many runs can be asked for."""
DOCUMENTS = 4000
SEED = 0


def ours(case: Case) -> Iterator[Run]:
    """`triptych.base.pretraining.pretrain`."""
    from benchmarks.ours import stepped
    from triptych.base.pretraining import pretrain
    from triptych.data.files import write

    every = case.count(UPDATES)
    config, _, plan, shape = _prepared(every * RUNS)
    write(case.scratch / "text.jsonl", _documents())
    tokens = sum(len(row) for step in plan for row in step) / RUNS
    for update in stepped(lambda context: pretrain(context, config, case.scratch), case.scratch, every):
        yield _run(shape, tokens, update.seconds, update.first_loss)


def peer(case: Case) -> Iterator[Run]:
    """transformers' Trainer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    from benchmarks.peer import arguments, stepped

    every = case.count(UPDATES)
    config, tokenizer, plan, shape = _prepared(every * RUNS)
    tokens = sum(len(row) for step in plan for row in step) / RUNS
    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM(shape)

    def padded(rows: list[list[int]]) -> dict[str, Any]:
        made = [torch.tensor(row) for row in rows]
        return {
            "input_ids": pad_sequence(made, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in made], batch_first=True),
            "labels": pad_sequence(made, batch_first=True, padding_value=-100),
        }

    with torch.no_grad():
        loss = float(model(**padded(plan[0])).loss)
    rows = [row for step in plan for row in step]
    if case.setting.layout == "packed":
        joined = [token for row in rows for token in row]
        rows = [joined[start : start + config.context] for start in range(0, len(joined), config.context)]
    batch = -(-len(rows) // (every * RUNS))
    model.set_attn_implementation(case.setting.attention)
    trainer = Trainer(
        model,
        arguments(TrainingArguments, case, batch, learning_rate=config.learning_rate, logging_steps=every,
                  weight_decay=config.weight_decay),
        data_collator=padded,
        train_dataset=rows,
    )
    for update in stepped(trainer, every):
        yield _run(shape, tokens, update.seconds, loss)


def _documents() -> list[Any]:
    from triptych.storybook.text import documents

    return documents(SEED, DOCUMENTS)


def _prepared(updates: int) -> tuple[Any, Any, list[list[list[int]]], Any]:
    """The configuration, the tokenizer, the rows of every update, and the model's shape: the stage's own."""
    from triptych.base import pretraining
    from triptych.base.text import planned, tokenized_documents
    from triptych.base.tokenizer import train_tokenizer

    config = pretraining.Pretraining(tokens=updates * 4096, batch_tokens=4096)
    documents = _documents()
    tokenizer = train_tokenizer(documents, config.vocabulary, config.context)
    text = tokenized_documents(tokenizer, documents, config.context)
    plan = [[text.rows[i] for i in step] for step in planned(text, config.batch_tokens, updates, SEED)]
    return config, tokenizer, plan, pretraining.architecture(config, tokenizer)


def _run(shape: Any, tokens: float, seconds: float, loss: float) -> Run:
    from benchmarks.flops import Size

    return Run(seconds, tokens, tokens, Size.of(shape).training(tokens, tokens), (loss,))


ROWS = (
    Row(
        "pretraining", "a small Llama from scratch, storybook", "tokens", 2, ours, peer, tolerance=0.02,
        setting=Setting(precision="autocast" if fastest() == "bfloat16" else "float32", layout="packed"),
        sweep={
            "precision": ("autocast", "float32"),
            "layout": ("packed", "padded", "grouped"),
            "attention": ("sdpa", "eager"),
            "workers": (0, 1),
        },
    ),
)
