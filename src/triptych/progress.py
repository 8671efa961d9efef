"""What long work tells whoever watches: stage, step, rate and time left."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.text import Text

from triptych.display import Display, duration, one_line


class Progress(Protocol):
    """Receives the state of the work under way."""

    def stage(self, name: str, note: str = "") -> None:
        """A stage begins, or is found done (`note`)."""

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        """`done` of `total` steps, `seen` units (tokens, answers) since the first of these."""

    def say(self, text: str) -> None:
        """A line that a person should read."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, note: str = "") -> None:
        """Nothing."""

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Terminal:
    """Lines for a person: one that is rewritten in place on a terminal, plain ones every few seconds elsewhere.

    Args:
        every: seconds between two plain lines.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.console = Display(file=sys.stderr, soft_wrap=True)
        self.live = self.console.is_terminal
        self.every = 0.2 if self.live else every
        self.name = ""
        self.began = self.shown = self.work_began = time.monotonic()
        self.first, self.first_seen, self.last = -1, 0, 0
        self.open_line = False

    def stage(self, name: str, note: str = "") -> None:
        """Prints the stage's name."""
        self._close()
        self.name = name
        self.work_began = self.shown = time.monotonic()
        self.first = -1
        stamp = time.monotonic() - self.began
        line = Text.assemble((f"{stamp:6.0f}s", "dim"), " ", (name, "bold"), f" {note}" if note else "")
        self.console.print(line)

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        """Shows the step, at most every `every` seconds."""
        now = time.monotonic()
        if self.first < 0 or done < self.last:  # other answers of the same stage are counted from the start again
            self.first, self.first_seen, self.work_began = done, seen, now
        self.last = done
        if now - self.shown < self.every and done < total:
            return
        self.shown = now
        spent = now - self.work_began
        rate = (seen - self.first_seen) / spent if spent > 0 else 0.0
        left = spent / (done - self.first) * (total - done) if done > self.first else float("nan")
        parts = [f"{self.name}  {done}/{total}"]
        if rate > 0:
            parts.append(f"{rate:,.0f} {unit}/s")
        if done < total and left == left:
            parts.append(f"{duration(left)} left")
        parts += [f"{name} {value:.3g}" for name, value in numbers.items()]
        line = "  ".join(map(one_line, parts))
        if self.live:
            self.console.file.write("\r\x1b[2K        " + line[: self.console.width - 9])
            self.console.file.flush()
            self.open_line = True
        else:
            self.console.print(f"        {line}")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._close()
        self.console.print("        " + text.replace("\n", "\n          "))

    def _close(self) -> None:
        if self.open_line:
            self.console.file.write("\r\x1b[2K")
            self.console.file.flush()
            self.open_line = False
