"""Every error that a user can see.

::

    TriptychError                 the user's to mend; printed without a traceback
    ├── RecipeError               a field of the recipe is unknown, missing or wrong
    ├── DataError                 rows of a file are wrong; names file, line, field, and what was expected
    ├── ModelError                a model folder, tokenizer or template cannot be used, or not safely
    ├── RunError                  a run folder is in use, damaged, or cannot be written (a full disk)
    ├── TrainingError             losses or gradients stayed non-finite
    ├── RewardError               a reward cannot be computed: its settings, a function, a judge or its endpoint
    │   └── UnavailableError      it is behind an address that does not reply
    ├── EndpointError             a model behind an address cannot be asked, or does not reply
    ├── AuditError                the reward model may not train anything
    ├── WaitingError              people have not answered all that a gate asks
    ├── AnsweredError             somebody else has answered the question meanwhile
    └── ReleaseError              a release does not match its manifest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TriptychError(ValueError):
    """Something that the user can mend; the message says what would be right."""


class RecipeError(TriptychError):
    """The recipe names a field or value that cannot be used."""


class ModelError(TriptychError):
    """A model folder, tokenizer or chat template that cannot be used."""


class RunError(TriptychError):
    """The run folder is in use, damaged or not writable."""


class TrainingError(TriptychError):
    """Training stopped because its numbers stayed non-finite."""


class RewardError(TriptychError):
    """A reward cannot be computed."""


class UnavailableError(RewardError):
    """A reward behind an address that does not reply; it may another time."""


class EndpointError(TriptychError):
    """A language model behind an address cannot be asked, or does not reply."""


class AuditError(TriptychError):
    """A reward model failed its audit."""


class WaitingError(TriptychError):
    """The run goes on when people have answered."""


class AnsweredError(TriptychError):
    """A question that was open when it was shown has been answered since."""


class ReleaseError(TriptychError):
    """A release does not match its manifest."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong row: where it stands and what would be right."""

    file: str
    line: int | None
    field: str | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class DataError(TriptychError):
    """Rows that cannot be used, reported together.

    Args:
        faults: every wrong row found, in file order.
    """

    SHOWN = 20

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """A line for each of the first faults, and one that counts the others."""
        more = len(self.faults) - self.SHOWN
        return [*map(str, self.faults[: self.SHOWN]), *([f"and {more} more"] if more > 0 else [])]

    def __reduce__(self) -> tuple[type[DataError], tuple[Sequence[Fault]]]:
        """What another process makes the same error of."""
        return type(self), (self.faults,)
