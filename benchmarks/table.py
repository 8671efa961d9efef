"""What was measured, as a table for a person and a JSON file for each row."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.row import Row, Run
from triptych import __version__

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """A row's runs on both sides, and the machine's rate of products, operations per second."""

    row: Row
    ours: Sequence[Run]
    peer: Sequence[Run]
    rate: float

    @property
    def ratio(self) -> float:
        """The median of our speeds over the median of the peer's."""
        return speed(self.ours) / speed(self.peer)

    def fraction(self, runs: Sequence[Run]) -> float:
        """The share of the machine's rate at which a side does the operations that are needed."""
        return median(run.flops / run.seconds for run in runs) / self.rate


def speed(runs: Sequence[Run]) -> float:
    """The median of units per second."""
    return median(run.units / run.seconds for run in runs)


def write(result: Result, device: str, folder: Path = RESULTS) -> Path:
    """Writes the row's JSON file."""
    row = result.row
    return dump(f"{row.name}{'' if device == 'cpu' else '-' + device}", {
        "row": row.name, "what": row.what, "unit": row.unit, "goal": row.goal,
        "ratio": result.ratio, "ours_per_second": speed(result.ours), "peer_per_second": speed(result.peer),
        "ours_fraction_of_rate": result.fraction(result.ours), "peer_fraction_of_rate": result.fraction(result.peer),
        "rate": result.rate, "peer_setting": asdict(row.setting), "tolerance": row.tolerance,
        "ours": [asdict(run) for run in result.ours], "peer": [asdict(run) for run in result.peer],
        "machine": machine(device),
    }, folder)


def dump(name: str, content: object, folder: Path = RESULTS) -> Path:
    """Writes a JSON file among the results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def machine(device: str) -> dict[str, Any]:
    """What it was measured on, and with which versions."""
    names = ("torch", "transformers", "trl")
    found = {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()}
    if device == "cuda":
        import torch

        found["accelerator"] = torch.cuda.get_device_name()
    return found | {"triptych": __version__} | {name: version(name) for name in names}


COLUMNS = (
    "row", "what", "unit", "ours /s", "peer /s", "ratio", "goal", "work: tokens", "of the rate: ours", "peer", "runs"
)


def table(results: Sequence[Result]) -> str:
    """The rows as a Markdown table."""
    lines = [_line(COLUMNS), _line(["---"] * 3 + ["---:"] * (len(COLUMNS) - 3))]
    return "\n".join([*lines, *(_line(_cells(result)) for result in results)])


def _cells(result: Result) -> list[str]:
    row = result.row
    fractions = [f"{result.fraction(runs):.0%}" if runs[0].flops else "" for runs in (result.ours, result.peer)]
    return [
        row.name, row.what, row.unit, _figure(speed(result.ours)), _figure(speed(result.peer)),
        f"{result.ratio:.2f}", f"{row.goal:g}", _work(result),
        *fractions, str(len(result.ours)),
    ]


def _work(result: Result) -> str:
    run = result.ours[0]
    if not run.tokens:
        return ""
    return f"{run.tokens:,.0f}" + (f" ({run.units:g} pairs)" if result.row.unit == "pairs" else "")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
