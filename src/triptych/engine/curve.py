"""A training's curve on disk: one JSON object for each step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from triptych.engine.training import Curve


def write_curve(path: Path, curve: Curve) -> None:
    """Writes the rows; numbers are rounded to what float32 can tell apart."""
    with open(path, "w", encoding="utf-8") as file:
        for row in curve:
            file.write(json.dumps({name: float(f"{value:.7g}") for name, value in row.items()}) + "\n")


def read_curve(path: Path) -> Curve:
    """The rows; an empty curve where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def thinned(curve: Curve, points: int) -> Sequence[dict[str, float]]:
    """At most `points` rows, evenly spread, first and last among them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]
