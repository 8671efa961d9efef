"""What happened in a run and when: one line of JSON for each event, appended and flushed.

Times live here and nowhere else, so that artifacts stay the same bytes. So do the digests of their manifests, by which
an edited manifest is found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.storage import Fields, append_line, read_rows

REMEDY = "move it away: the run goes on without the times and the digests that are in it"


@dataclass(frozen=True, slots=True)
class Command:
    """A command's part of the ledger.

    Attributes:
        plan: the stages that it was to run, in order; none where it did not say.
        events: of stages, in order.
    """

    plan: Sequence[str]
    events: Sequence[Fields]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The events of a run, in the file `path`."""

    path: Path

    def add(self, event: str, stage: str, **details: Any) -> None:
        """Appends an event: "started", "warned", "finished", "reused", "stopped" or "failed".

        Args:
            details: of "started", where somebody knows it, the seconds that are `left` of the run.
        """
        self._append(event, stage=stage, **details)

    def plan(self, stages: Sequence[str]) -> None:
        """Appends that a command begins, and which stages it is to run."""
        self._append("planned", stages=list(stages))

    def last_command(self) -> Command:
        """What followed the last plan, and the plan itself; all events where there is none."""
        events = self.events()
        begins = max((place for place, event in enumerate(events) if event["event"] == "planned"), default=None)
        if begins is None:
            return Command((), events)
        return Command([str(stage) for stage in events[begins]["stages"]], events[begins + 1 :])

    def events(self) -> list[Fields]:
        """The events in order; a last line cut by a kill is left out.

        Raises:
            RunError: the file is damaged.
        """
        return read_rows(self.path, REMEDY)

    def compared(self) -> bool:
        """Whether `triptych compare` has had its candidates judged here."""
        return any(
            row["event"] == "finished" and str(row.get("stage")).startswith("compare-")
            and str(row.get("stage")).endswith("/gate") for row in self.events()
        )

    def digest(self, fingerprint: str) -> str | None:
        """Of the artifact with this fingerprint, as it was last written; None where that is not known."""
        known = [event["digest"] for event in self.events()
                 if event.get("fingerprint") == fingerprint and "digest" in event]
        return str(known[-1]) if known else None

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

    def _append(self, event: str, **details: Any) -> None:
        row = {"time": round(time.time(), 3), "event": event, **details}
        append_line(self.path, json.dumps(row, ensure_ascii=False))
