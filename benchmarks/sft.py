"""Supervised fine-tuning on Alpaca rows, the loss on the answers alone: ours beside TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.row import Case, Row, Run, Setting
from benchmarks.updates import MANY

ROWS_OF_AN_UPDATE = 32


def ours(case: Case) -> Iterator[Run]:
    """`triptych.instruct.finetuning.finetune`."""
    from benchmarks import work
    from benchmarks.ours import artifact, lora, stepped
    from triptych.data.files import write
    from triptych.engine.models import load_tokenizer
    from triptych.instruct.finetuning import Finetuning, finetune

    records, rows = work.conversations(load_tokenizer(case.model), case.count(ROWS_OF_AN_UPDATE))
    write(case.scratch / "demonstrations.jsonl", records)
    write(case.scratch / "demonstrations_heldout.jsonl", records[:1])
    base = artifact(case.scratch / "base", case.model)
    config = Finetuning(
        epochs=MANY, batch_tokens=1 << 30, context=work.CONTEXT, learning_rate=1e-5, lora=lora(case),
    )
    for update in stepped(lambda context: finetune(context, config, base, case.scratch), case.scratch):
        yield _run(case, rows, update.seconds, update.first_loss)


def peer(case: Case) -> Iterator[Run]:
    """TRL's SFTTrainer."""
    from benchmarks import work
    from benchmarks.peer import stepped
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    _, rows = work.conversations(tokenizer, case.count(ROWS_OF_AN_UPDATE))
    for update in stepped(trainer(case, case.model, rows, tokenizer)):
        yield _run(case, rows, update.seconds, update.first_loss)


def trainer(case: Case, model: Path, rows: list[Any], tokenizer: Any) -> Any:
    """An SFTTrainer on rows that are tokens already."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from benchmarks.peer import adapters, arguments, load

    setting = case.setting
    packed = setting.layout == "packed"
    longest = 4096 if packed else None
    dataset = Dataset.from_list([{
        "input_ids": [*row.prompt, *row.answer], "labels": [-100] * len(row.prompt) + list(row.answer),
    } for row in rows])
    return SFTTrainer(
        load(AutoModelForCausalLM, model, setting),
        args=arguments(
            SFTConfig, case, len(rows), max_length=longest, packing=packed,
            padding_free=setting.layout == "padding_free",
            **({"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(rows)} if packed else {}),
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapters(case),
    )


def _run(case: Case, rows: list[Any], seconds: float, loss: float) -> Run:
    from benchmarks.flops import Size, needed

    tokens = sum(row.length for row in rows)
    answers = sum(len(row.answer) for row in rows)
    computed = needed([(row.prompt, [row.answer]) for row in rows])
    return Run(seconds, tokens, computed, Size.read(case.model).training(computed, answers), (loss,))


ROWS = (
    Row(
        "sft", "supervised fine-tuning, Alpaca", "tokens", 3.5, ours, peer, tolerance=0.02,
        sets=("alpaca",),
        setting=Setting(batch=4),
        sweep={
            "precision": ("bfloat16", "autocast", "float32"),
            "batch": (1, 4, 0),
            "layout": ("padded", "padding_free", "packed"),
        },
    ),
)
