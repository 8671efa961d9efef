"""The peer's side: a trainer of TRL or transformers, with a clock at its loop's beginning and last update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.row import Case, Setting
from benchmarks.updates import MANY, Update, Updates


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Stands still before each update of a trainer's loop, as our stages do."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The loop begins."""
        self.updates.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update is done."""
        self.updates.computed()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """What is known of the update."""
        self.updates.done(logs)


def stepped(trainer: Any, every: int = 1) -> Iterator[Update]:
    """The updates of a trainer."""
    updates = Updates(every)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps(updates))
    return updates.of(trainer.train)


def arguments(kind: Any, case: Case, rows: int, **more: Any) -> Any:
    """A trainer's arguments: every update over all rows, as fast as the setting makes it."""
    setting = case.setting
    batch = setting.batch or rows
    if rows % batch:
        raise ValueError(f"{rows} rows are no whole number of batches of {batch}: some would be left out of an update")
    return kind(**{
        "output_dir": str(case.scratch / "trainer"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": max(1, rows // batch),
        "max_steps": MANY,
        "bf16": setting.precision == "autocast",
        "use_cpu": case.device == "cpu",
        "activation_checkpointing": False,
        "dataloader_num_workers": setting.workers,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **({"train_sampling_strategy": "group_by_length"} if setting.layout == "grouped" else {}),
        **more,
    })


def adapters(case: Case) -> Any:
    """What a trainer of TRL takes as `peft_config`."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if case.lora else None


def load(kind: Any, folder: Path, setting: Setting, **more: Any) -> Any:
    """A transformers model in the setting's precision."""
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=setting.attention, **more)
