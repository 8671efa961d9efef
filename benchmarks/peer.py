"""The peer's side: a trainer of TRL or transformers, with a clock at its loop's beginning and last update."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.row import Case, Setting


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times a trainer's loop, as :class:`benchmarks.ours.Stopwatch` does ours."""

    began = seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The loop begins."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update is done."""
        self.seconds = time.perf_counter() - self.began


def timed(trainer: Any) -> tuple[float, list[dict[str, float]]]:
    """Trains; the seconds of the loop, and what was logged at each update."""
    stopwatch = Stopwatch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopwatch)
    trainer.train()
    return stopwatch.seconds, [row for row in trainer.state.log_history if "loss" in row]


def arguments(kind: Any, case: Case, rows: int, updates: int, **more: Any) -> Any:
    """A trainer's arguments: every update over all rows, as fast as the setting makes it."""
    setting = case.setting
    batch = setting.batch or rows
    return kind(**{
        "output_dir": str(case.scratch / "trainer"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": max(1, rows // batch),
        "max_steps": updates,
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


def load(kind: Any, folder: Path, setting: Setting, **more: Any) -> Any:
    """A transformers model in the setting's precision."""
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=setting.attention, **more)
