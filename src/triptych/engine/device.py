"""Where the work is done, in which precision, and on how many cores."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache

import torch

from triptych.engine import distributed

KERNELS = 128
"""Kernels for shapes of matrices that are kept on a processor at the most: of oneDNN's thousand, each some hundred KiB
in bfloat16, a training of rows of all lengths uses most only once."""


@cache
def device() -> torch.device:
    """A CUDA device if there is one, else the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@cache
def compute_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32; masters are float32 either way."""
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = cpu_flags()
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def cpu_flags() -> str:
    """What the processor can do, in Linux's words; nothing where the system does not say."""
    return next((line for line in _cpu_lines() if line.startswith("flags")), "")


def autocast(*, enabled: bool = True) -> AbstractContextManager[object]:
    """Matrix products in the compute type, float32 masters untouched."""
    dtype = compute_dtype()
    return torch.autocast(device().type, dtype=dtype, enabled=enabled and dtype != torch.float32)


def hardware() -> str:
    """The device's name, or the processor's and its cores."""
    if device().type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    named = next((line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores of {named or platform.machine() or 'a processor'}"


def lacks_memory(error: BaseException) -> bool:
    """Whether it says that the device or the machine had no more memory to give."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def settle() -> None:
    """Uses the cores there are in equal parts, and only algorithms whose result does not change."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // distributed.local_world_size()))
    _keep_memory()
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's beside it
        os.environ.setdefault(capacity, str(KERNELS))
    if device().type == "cuda":
        torch.cuda.set_device(device())
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # its products repeat
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (costs a tenth of the time)


def _keep_memory() -> None:
    """Tells glibc to keep what is freed: fetching large tensors' pages anew costs more than what is done to them."""
    no_mapping, no_trimming = (-4, 0), (-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    try:
        allocator = ctypes.CDLL("libc.so.6")
        for setting in (no_mapping, no_trimming):
            allocator.mallopt(*setting)
    except (OSError, AttributeError):  # another C library, which knows better or knows nothing of it
        return


def give_back() -> None:
    """Gives freed memory back to the system, where other work with tensors of other sizes begins."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


@contextmanager
def any_order() -> Iterator[None]:
    """Within, a CUDA device writes rows in any order, which is faster; for places that are all different."""
    ordered = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(ordered and device().type == "cpu", warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(ordered, warn_only=True)


def forget_peak() -> None:
    """Begins to measure :func:`peak_memory` anew, where the device can."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # where there is Linux
        file.write("5")  # proc(5): the peak of what was resident


def peak_memory() -> float:
    """The most memory that this process took, in GiB: of a CUDA device what tensors took, else what was resident."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cpu_lines() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return list(file)
    except OSError:
        return []
