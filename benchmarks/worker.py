"""A side in a process of its own: it loads and warms up once, and is idle while the other side runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from benchmarks.row import Case, Run, Setting
from triptych.allocator import TUNABLES, VARIABLE

READY = "ready"


class Worker(AbstractContextManager["Worker"]):
    """One side of a row, asked for a run at a time.

    Args:
        side: "ours" or "peer".
    """

    def __init__(
        self, row: str, side: str, model: Path, device: str, size: float, setting: Setting, *, lora: bool = False
    ) -> None:
        self._scratch = TemporaryDirectory(prefix="triptych-benchmark-")
        asked = json.dumps({
            "row": row, "side": side, "model": str(model), "device": device, "size": size,
            "scratch": self._scratch.name, "setting": asdict(setting), "lora": lora,
        })
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", asked],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            # The engine takes a CUDA device where it finds one.
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
            | ({VARIABLE: TUNABLES} if side == "ours" else {}),  # as the command line begins
        )
        self._name = f"{side} of {row}"

    def wait(self) -> None:
        """Until it has loaded and warmed up."""
        if self._answer() != READY:
            raise RuntimeError(f"{self._name} could not be prepared")

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def run(self) -> tuple[Run, float]:
        """A timed run, and the machine's rate of products measured right before it."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not isinstance(answer, dict):
            raise RuntimeError("the worker ended before its run did; what it printed above says why")
        return Run(**answer["run"] | {"check": tuple(answer["run"]["check"])}), answer["rate"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill() if kind else self._process.communicate()
        self._process.wait()
        self._scratch.cleanup()


def main() -> None:
    """Answers every line on the standard input with a run; what libraries print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    from transformers.utils import logging

    from benchmarks.rate import rate
    from benchmarks.rows import ROWS

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    asked = json.loads(sys.argv[1])
    case = Case(
        Path(asked["model"]), asked["device"], asked["size"], Path(asked["scratch"]), Setting(**asked["setting"]),
        asked["lora"],
    )
    row = ROWS[asked["row"]]
    runs: Iterator[Run] = (row.ours if asked["side"] == "ours" else row.peer)(case)
    next(runs)
    say(READY)
    for _ in sys.stdin:
        measured = rate(case.device)
        say({"run": asdict(next(runs)), "rate": measured})


if __name__ == "__main__":
    main()
