"""What a row of the benchmark is: one piece of work, done by two sides, and what each run of it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from triptych.engine.device import compute_dtype


def fastest() -> str:
    """The precision in which a peer is fastest; a processor without bfloat16 takes hundreds of times longer in it."""
    return "bfloat16" if compute_dtype() is torch.bfloat16 else "float32"


@dataclass(frozen=True, slots=True)
class Setting:
    """How the peer is set. Each field is swept once (`--sweep`), and the fastest setting is the row's.

    Attributes:
        precision: "bfloat16" holds the weights themselves in bfloat16 (the fastest, though AdamW's small updates
            are lost to rounding), "autocast" keeps float32 masters, "float32" computes in float32, as we do where
            the processor has no bfloat16.
        layout: "padded" rows, rows "grouped" by length, "padding_free", or "packed".
        batch: rows (pairs, sequences) computed at once; 0 for all of an update.
        attention: as transformers names it.
        continuous: GRPO samples by `generate_batch` instead of `generate`.
        workers: processes that load data.
    """

    precision: str = field(default_factory=fastest)
    layout: str = "padded"
    batch: int = 0
    attention: str = "sdpa"
    continuous: bool = False
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """What a side is given.

    Attributes:
        model: a Hugging Face folder.
        device: "cpu" or "cuda".
        size: of the work, 1 for what the table shows.
        scratch: a folder that lives as long as the side.
        setting: the peer's.
        lora: whether low-rank adapters are trained, of rank 16 on both sides, in place of all weights.
    """

    model: Path
    device: str
    size: float
    scratch: Path
    setting: Setting = field(default_factory=Setting)
    lora: bool = False

    def count(self, full: int) -> int:
        """So much of the full work."""
        return max(2, round(full * self.size))


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run of a side.

    Attributes:
        seconds: of the updates or the sampling alone.
        units: how much of the row's unit was done.
        tokens: that had to be computed, a shared prompt counted once.
        flops: that these tokens need, as :mod:`benchmarks.flops` counts them.
        check: what both sides must agree on: the first update's loss, or greedy tokens.
    """

    seconds: float
    units: float
    tokens: float
    flops: float
    check: tuple[float, ...] = ()


Side = Callable[[Case], Iterator[Run]]
"""Loads, warms up by one untimed run, then gives a run each time it is asked."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        unit: what is done per second.
        goal: how many times the peer's speed is wanted.
        tolerance: the relative difference that `Run.check` may have between the sides.
        setting: the peer's best, found by the sweep.
        sweep: for each field of the setting, in this order, the values that were tried.
        sets: of data that it reads, by their names in `scripts.public`.
    """

    name: str
    what: str
    unit: str
    goal: float
    ours: Side
    peer: Side
    tolerance: float = 0.0
    setting: Setting = field(default_factory=Setting)
    sweep: dict[str, tuple[object, ...]] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
