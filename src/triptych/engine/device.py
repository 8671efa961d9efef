"""Where and in which precision the work is done."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32; masters are float32 either way."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    return torch.bfloat16 if native else torch.float32


def autocast() -> AbstractContextManager[object]:
    """Matrix products in the compute type, float32 masters untouched."""
    dtype = compute_dtype()
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)


def settle() -> None:
    """Uses the cores there are, and only algorithms whose result does not change from run to run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (costs a tenth of the time)


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""
