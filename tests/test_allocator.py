"""The program begins without glibc's caches of small pieces, once, and says nothing against what a user has set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from triptych.allocator import TUNABLES, VARIABLE
from triptych.engine.device import compute_dtype

PROGRAM = f"""
import os
from triptych.allocator import begin_anew
print(os.getpid(), os.environ.get("{VARIABLE}"), flush=True)
begin_anew()
print("begun")
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def lines(**environment: str) -> list[str]:
    """What the program says, where the environment has no more of the allocator than is given."""
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()


def test_a_process_begins_anew_once() -> None:
    before, after, last = lines()
    process = before.split()[0]
    assert (before, after, last) == (f"{process} None", f"{process} {TUNABLES}", "begun")


def test_what_a_user_has_set_stays() -> None:
    (only, last) = lines(**{VARIABLE: "glibc.malloc.arena_max=1"})
    assert only.endswith(" glibc.malloc.arena_max=1")
    assert last == "begun"


def test_holes_of_tensors_grow_together_again() -> None:
    """Pieces of memory at multiples of 64 bytes, freed and asked for again, with small pieces asked for between."""
    program = """
import ctypes
libc = ctypes.CDLL("libc.so.6")
for setting in ((-4, 0), (-1, -1)):
    libc.mallopt(*setting)
libc.aligned_alloc.restype = libc.malloc.restype = ctypes.c_void_p
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def arena():
    held = []
    for _ in range(400):
        held.append(libc.aligned_alloc(64, 300 << 10))
        libc.malloc(48)
    for piece in held:
        libc.free(ctypes.c_void_p(piece))
    return libc.mallinfo2().arena
print(*(arena() for _ in range(8)))
"""
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ | {VARIABLE: TUNABLES},
                           capture_output=True, text=True, check=True)
    first, second, *_, last = map(int, ended.stdout.split())
    assert last < 1.01 * second < 2.1 * first  # with its caches glibc 2.36 grows in each round, to eight times as much


KERNELS = """
import torch
from triptych.engine.device import settle
settle()
def memory():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
weights = torch.ones(64, 64, dtype=torch.bfloat16)
for rows in range(1, 200):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weights
before = memory()
for rows in range(200, 1000):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weights
print(memory() - before)
"""


@pytest.mark.skipif(compute_dtype() != torch.bfloat16, reason="this processor has no kernels for bfloat16")
def test_kernels_of_shapes_that_were_met_once_are_not_kept() -> None:
    def grown(**environment: str) -> int:
        ended = subprocess.run(
            [sys.executable, "-c", KERNELS], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return int(ended.stdout)

    everything = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
    assert grown() < grown(**everything) / 2
