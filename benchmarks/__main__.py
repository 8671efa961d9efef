"""`python -m benchmarks`: runs rows, prints the table, writes benchmarks/results/*.json."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.row import Row, Run, Setting
from benchmarks.rows import ROWS
from benchmarks.table import Result
from benchmarks.worker import Worker
from triptych.errors import DataError, ModelError

SWEEP_SIZE = 0.25
DEVICE = "cpu"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.name:14} {row.what}" for row in ROWS.values()),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="by default all")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side (default 5)")
    parser.add_argument("--size", type=float, help="share of the work, to try a row out; writes no results")
    parser.add_argument("--sweep", action="store_true", help="tries the peer's settings instead")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    from benchmarks import work

    try:
        model = work.model()
    except ModelError as error:
        sys.exit(str(error))
    rows = [ROWS[name] for name in asked.rows or ROWS if has_data(ROWS[name])]
    if asked.sweep:
        for row in rows:
            sweep(row, model, DEVICE, asked.size or SWEEP_SIZE)
        return
    failed: list[str] = []
    results: list[Result] = []
    for row in rows:
        try:
            result = measure(row, model, DEVICE, asked.size or 1.0, asked.runs)
            results.append(result)
            if not asked.size:
                table.write(result, DEVICE)
        except RuntimeError as error:
            failed.append(f"{row.name}: {error}")
            print(failed[-1], file=sys.stderr)
    print(table.table(results))
    if failed:
        sys.exit("\n".join(["", "not measured:", *failed]))


def has_data(row: Row) -> bool:
    """Whether the data of a row can be had; where not, it is said which file to bring."""
    from scripts.public import find_set

    try:
        for name in row.sets:
            find_set(name)
    except DataError as error:
        print(f"{row.name} is left out: {error}", file=sys.stderr, flush=True)
        return False
    return True


def measure(row: Row, model: Path, device: str, size: float, runs: int) -> Result:
    """Runs the two sides in turn, each in its own process; what they computed must agree.

    Args:
        device: "cpu" or "cuda".
    """
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Worker(row.name, side, model, device, size, row.setting)) for side in ("ours", "peer")
        ]
        for worker in sides:  # which load and warm up at the same time
            worker.wait()
        ours: list[Run] = []
        peer: list[Run] = []
        rates: list[float] = []
        for number in range(runs):
            for done, worker in zip((ours, peer), sides, strict=True):
                run, rate = worker.run()
                done.append(run)
                rates.append(rate)
            agree(row, ours[-1].check, peer[-1].check)
            figures = " and ".join(f"{side[-1].units / side[-1].seconds:.4g}" for side in (ours, peer))
            seconds = " and ".join(f"{side[-1].seconds:.1f}" for side in (ours, peer))
            print(f"{row.name} {number + 1}/{runs}: {figures} {row.unit}/s in {seconds} s", file=sys.stderr, flush=True)
    return Result(row, ours, peer, max(rates))


def agree(row: Row, ours: Sequence[float], peer: Sequence[float]) -> None:
    """Refuses two sides that do not compute the same."""
    close = len(ours) == len(peer) and all(
        math.isclose(mine, theirs, rel_tol=row.tolerance) for mine, theirs in zip(ours, peer, strict=True)
    )
    if not close:
        raise RuntimeError(
            f"the sides do not compute the same (relative tolerance {row.tolerance:g}): {ours} and {peer}"
        )


def sweep(row: Row, model: Path, device: str, size: float) -> None:
    """Tries the peer's settings one field after the other, each time going on from the fastest.

    Each is written down at once, and what is already there is not tried again.
    """
    path = table.RESULTS / "sweep.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tried: list[dict[str, Any]] = recorded.get(row.name, {}).get("tried", [])
    known = {Setting(**one["setting"]): float(one["per_second"]) for one in tried}
    best = row.setting
    for name, values in row.sweep.items():
        for value in values:
            setting = replace(best, **{name: value})  # type: ignore[arg-type]
            if setting not in known:
                known[setting] = _speed(row, model, device, size, setting)
                print(f"{row.name} {name}={value}: {known[setting]:.4g} {row.unit}/s", file=sys.stderr, flush=True)
                tried.append({"setting": asdict(setting), "per_second": known[setting]})
            if known[setting] > known.get(best, 0.0):
                best = setting
            recorded[row.name] = {
                "unit": row.unit, "size": size, "best": asdict(best), "tried": tried, "machine": table.machine(device)
            }
            table.dump("sweep", recorded)


def _speed(row: Row, model: Path, device: str, size: float, setting: Setting) -> float:
    """The peer's units per second in one run; 0 where the setting does not work on this device."""
    try:
        with Worker(row.name, "peer", model, device, size, setting) as worker:
            worker.wait()
            run, _ = worker.run()
    except RuntimeError:
        return 0.0
    return run.units / run.seconds


if __name__ == "__main__":
    main()
