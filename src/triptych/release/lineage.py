"""What each model of a family was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.records import Messages

Role = Literal["base", "instruct", "reward"]
ROLES: tuple[Role, ...] = ("base", "instruct", "reward")
REQUIRED: tuple[Role, ...] = ("base", "instruct")
"""Without which there is no family; one that learnt from pairs or thumbs alone has no Reward model."""
ReleaseForm = Literal["merged", "adapters"]
"""What is released of a model that was trained as adapters over the Base: a plain folder, or these."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that this one started from.

    Attributes:
        name: a role of this family, a name on the Hub, or a file's name.
        digest: of its files, or the Hub's commit.
        hub: whether the name can be looked up on the Hub.
    """

    name: str
    digest: str
    hub: bool = False


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that a model was trained on; the name without the folders of the machine it lay on."""

    name: str
    sha256: str
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """How one model came to be.

    Attributes:
        fingerprint: of the stage that made it (configuration, inputs and code).
        parents: what it started from; none where it was trained from scratch.
        data: what it was trained on.
    """

    fingerprint: str
    parents: tuple[Parent, ...] = ()
    data: tuple[DataFile, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenExample:
    """A prompt and what the released Instruct model answers."""

    prompt: Messages
    answer: str


@dataclass(frozen=True, slots=True)
class RewardExample:
    """A scored answer, by which a user sees that the Reward model was loaded rightly."""

    prompt: Messages
    answer: str
    score: float
