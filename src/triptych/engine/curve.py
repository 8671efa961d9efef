"""A training's curve on disk: one JSON object for each step."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.storage import make_folder, read_rows

FILE = "curve.jsonl"

Row = dict[str, Any]
"""A step's numbers; a skipped step's row also has the `fault` and the `rows` of the data."""
Curve = list[Row]


def write_curve(path: Path, curve: Curve) -> None:
    """Writes the rows; numbers are rounded to what float32 can tell apart, those that are not finite are null."""
    with open(path, "w", encoding="utf-8") as file:
        for row in curve:
            file.write(_line(row))


class GrowingCurve:
    """A training's curve on disk while it goes on, a line for each step, for who watches; no result depends on it.

    Args:
        path: the file, written anew.
        curve: the rows so far.
    """

    def __init__(self, path: Path, curve: Curve) -> None:
        self.path = path
        make_folder(path.parent)
        write_curve(path, curve)

    def add(self, row: Row) -> None:
        """Adds a step's row."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(row))


def _line(row: Row) -> str:
    return json.dumps({name: _written(value) for name, value in row.items()}) + "\n"


def _written(value: Any) -> Any:
    if isinstance(value, int | float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def read_curve(path: Path) -> Curve:
    """The rows; an empty curve where there is no file."""
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in read_rows(path)]


def thinned(curve: Curve, points: int) -> Sequence[dict[str, Any]]:
    """At most `points` rows, evenly spread, first and last among them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]
