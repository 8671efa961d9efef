"""What happened in a run and when: one line of JSON for each event, appended and flushed.

Times live here and nowhere else, so that artifacts stay the same bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.files import whole_lines


@dataclass(frozen=True, slots=True)
class Ledger:
    """The events of a run, in the file `path`."""

    path: Path

    def add(self, event: str, stage: str, **details: Any) -> None:
        """Appends an event: "started", "warned", "finished", "reused", "stopped" or "failed"."""
        row = {"time": round(time.time(), 3), "event": event, "stage": stage, **details}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * self._is_cut() + line)  # a kill may have left half a line
            file.flush()
            os.fsync(file.fileno())

    def _is_cut(self) -> bool:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return False
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def events(self) -> Iterator[dict[str, Any]]:
        """The events in order; a last line cut by a kill is left out."""
        for line in whole_lines(self.path):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def peak(self) -> float:
        """The most memory, in GiB, that a process of this run had taken where a stage of it ended."""
        return max((float(event.get("peak_gib", 0.0)) for event in self.events()), default=0.0)

    def seconds(self) -> dict[str, float]:
        """For each fingerprint, the time spent on it, over all attempts that were not killed."""
        spent: dict[str, float] = {}
        for event in self.events():
            if event["event"] in ("finished", "stopped", "failed"):
                name = event["fingerprint"]
                spent[name] = spent.get(name, 0.0) + event["seconds"]
        return spent
