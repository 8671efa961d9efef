"""What a run has written that a tracker does not have yet: the steps of its curves, and what its stages came to."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from triptych.pipeline.artifact import MANIFEST, folder_name
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.state import curve_of
from triptych.storage import make_folder, read_object, write_whole

AT_ONCE = 100
"""Points after which it is written down that they were sent: a kill may have so many sent again."""


class SentStage(BaseModel):
    """What a tracker has of a stage.

    Attributes:
        step: the last that was sent.
        ended: whether its results were sent too.
    """

    fingerprint: str
    step: float = -1
    ended: bool = False


class Sent(BaseModel):
    """What a tracker has of a run.

    Attributes:
        run: the id of the tracker's run.
        is_new: whether the tracker has yet to make it.
    """

    run: str
    is_new: bool = True
    stages: dict[str, SentStage] = {}

    @classmethod
    def begin(cls, name: str) -> Sent:
        """Nothing yet, of a run of this name."""
        return cls(run=f"{name}-{secrets.token_hex(4)}")

    @classmethod
    def read(cls, path: Path, name: str) -> Sent:
        """As it was last written; where nothing was, that of a new run of this name."""
        if not path.exists():
            return cls.begin(name)
        return cls.model_validate(read_object(path, "delete it to begin another run of the tracker"))

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        make_folder(path.parent)
        write_whole(path, json.dumps(self.model_dump(), indent=1) + "\n")


def is_other(run: Path, sent: Sent) -> bool:
    """Whether the run is another than what was sent: a stage of it was computed from something else."""
    return any(
        stage in sent.stages and sent.stages[stage].fingerprint != fingerprint for stage, fingerprint in begun(run)
    )


def send_new(run: Path, sent: Sent, log: Callable[[dict[str, float], int], None], keep: Callable[[], None]) -> None:
    """Gives a tracker what it does not have yet, the stages in order, each step once.

    Args:
        log: sends numbers of a step, each by the name `STAGE/SERIES`; results are of the last step, or of step 0.
        keep: writes down what was sent.
    """
    for stage, fingerprint in begun(run):
        has = sent.stages.setdefault(stage, SentStage(fingerprint=fingerprint))
        if has.ended:
            continue
        manifest = run / "artifacts" / folder_name(stage, fingerprint) / MANIFEST
        ended = manifest.exists()  # looked at first: then the curve is whole
        rows = [row for row in curve_of(run, stage, fingerprint) if row["step"] > has.step]
        for count, row in enumerate(rows, start=1):
            log(numbers(stage, row), int(row["step"]))
            has.step = row["step"]
            if count % AT_ONCE == 0:
                keep()
        if ended:
            log(numbers(stage, read_object(manifest)["metrics"]), max(0, int(has.step)))
            has.ended = True
        if rows or ended:
            keep()


def begun(run: Path) -> list[tuple[str, str]]:
    """The stages that the last command has begun or found, with their fingerprints, in order."""
    events = Ledger(run / "ledger.jsonl").last_command().events
    return list({str(event["stage"]): str(event["fingerprint"]) for event in events}.items())


def numbers(stage: str, row: Mapping[str, Any]) -> dict[str, float]:
    """What a row has of finite numbers, by names that every tracker takes."""
    return {
        re.sub(r"[^\w./ -]", "_", f"{stage}/{name}"): float(value) for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
