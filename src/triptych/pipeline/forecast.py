"""How much of a run is done, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from triptych.display import duration

TRUST = 0.1
"""How much of the whole must be done before what it took counts for as much as the estimate."""


def nobody_knows() -> Mapping[str, float]:
    """Of a run whose stages nobody estimated."""
    return {}


@dataclass
class Forecast:
    """Estimates of a run's stages, corrected by what its stages have taken so far.

    Attributes:
        expect: seconds of each stage, roughly; asked before each stage until it says something.
    """

    expect: Callable[[], Mapping[str, float]] = nobody_knows
    expected: Mapping[str, float] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    """Stages that are done, also by an earlier command."""
    taken: dict[str, float] = field(default_factory=dict)
    """Seconds of those that this command did."""

    def finish(self, stage: str, seconds: float | None = None) -> None:
        """A stage is done; `seconds` where this command did the whole of it."""
        self.behind.add(stage)
        if seconds is not None:
            self.taken[stage] = seconds

    @property
    def left(self) -> float | None:
        """Seconds; None where nobody knows."""
        self.expected = self.expected or self.expect()
        if not self.expected:
            return None
        known = self.taken.keys() & self.expected.keys()
        trust = TRUST * sum(self.expected.values())
        spent, foreseen = (trust + sum(of[stage] for stage in known) for of in (self.taken, self.expected))
        return spent / (foreseen or 1) * sum(self._remaining)

    @property
    def sentence(self) -> str:
        """For a person: "38% done, about 1 h 12 min left"; empty where nobody knows, or next to nothing is left."""
        if not (left := self.left):
            return ""
        return f"{1 - sum(self._remaining) / sum(self.expected.values()):.0%} done, about {duration(left)} left"

    @property
    def _remaining(self) -> list[float]:
        return [seconds for stage, seconds in self.expected.items() if stage not in self.behind]
