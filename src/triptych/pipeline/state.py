"""How far a run is: every stage of the last command's plan, done, under way or still to come.

Nothing that computes is imported here, so that `triptych status` answers at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triptych.engine.curve import FILE, Curve, read_curve
from triptych.pipeline.artifact import MANIFEST, folder_name
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.lock import holder_of
from triptych.storage import Fields

State = Literal["done", "reused", "under way", "interrupted", "stopped", "failed", "to come"]

ENDED: dict[str, State] = {"finished": "done", "reused": "reused", "stopped": "stopped", "failed": "failed"}
"""What an event that is a stage's last says of it; any other is of one that is not at its end."""


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage of a run.

    Attributes:
        seconds: spent on it, over all attempts that were not killed and the one under way.
        headline: the number that its result is read for; may be empty.
        fingerprint: empty where it is still to come.
        since: when the last thing happened to it, in seconds since 1970.
    """

    name: str
    state: State
    seconds: float = 0.0
    headline: str = ""
    fingerprint: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class RunState:
    """A run, as its last command left it or goes on with it.

    Attributes:
        stages: those of the plan in its order, then what was done beside it, as by `triptych compare`.
        process: at work on the run; None where none is.
        ends: when it is likely to be done, in seconds since 1970; None where no process is at work, or nobody knows.
    """

    stages: Sequence[StageState]
    process: str | None
    ends: float | None = None

    @classmethod
    def of(cls, folder: Path) -> RunState:
        """Read from a run's folder.

        Raises:
            RunError: its ledger is damaged.
        """
        ledger, process = Ledger(folder / "ledger.jsonl"), holder_of(folder)
        command, spent = ledger.last_command(), ledger.seconds()
        last = {str(event["stage"]): event for event in command.events}
        foreseen = [event["time"] + event["left"] for event in command.events if "left" in event]
        return cls([
            _state(name, last[name], spent, folder, at_work=process is not None)
            if name in last else StageState(name, "to come")
            for name in dict.fromkeys((*command.plan, *last))
        ], process, foreseen[-1] if foreseen and process is not None else None)


def curve_of(run: Path, stage: str, fingerprint: str) -> Curve:
    """What there is of a stage's training: the artifact's curve, or as far as it is; empty where it trains nothing."""
    label = folder_name(stage, fingerprint)
    kept = run / "artifacts" / label
    return read_curve((kept if (kept / MANIFEST).exists() else run / "work" / label) / FILE)


def _state(name: str, event: Fields, spent: dict[str, float], folder: Path, *, at_work: bool) -> StageState:
    """Of a stage whose last event is this one."""
    mark = str(event["fingerprint"])
    state = ENDED.get(event["event"], "under way" if at_work else "interrupted")
    running = max(0.0, time.time() - event["time"]) if state == "under way" else 0.0
    headline = _headline(folder / "artifacts" / folder_name(name, mark) / MANIFEST)
    return StageState(name, state, spent.get(mark, 0.0) + running, headline, mark, event["time"])


def _headline(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
