"""What a stage finds, typed: it stands in the manifest of its artifact, and is read from there again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """What a stage measured or counted; unknown fields are refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    @classmethod
    def planned(cls) -> Self:
        """What a plan of the cycle takes for it: that by which every later stage is reached.

        Only fields on which the cycle decides are there.
        """
        return cls.model_construct()

    @property
    def headline(self) -> str:
        """The one number that a reader of the stage's row looks for; may be empty."""
        return ""

    @property
    def problems(self) -> Sequence[str]:
        """What went wrong on the way, as sentences for the ledger."""
        return ()
