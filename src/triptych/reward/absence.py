"""No reward: what a recipe says whose method learns from people's own pairs or thumbs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BeforeValidator

from triptych.errors import RewardError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Making

NONE = "none"


class NoReward(RewardConfig):
    """That there is no reward: nothing is scored while a policy is improved, and no Reward model is released."""

    kind: Literal["none"] = "none"

    @property
    def within(self) -> tuple[RewardConfig, ...]:
        """Nothing."""
        return ()

    def make(self, making: Making) -> Artifact[Result]:
        """Refused: only a recipe may be without one.

        Raises:
            RewardError: always.
        """
        raise RewardError(f"{making.name}: kind none is no reward, and one is needed here; name another kind")


def is_absent(value: object) -> bool:
    """Whether a recipe says so that there is none: by the word, or by the kind."""
    return value == NONE or (isinstance(value, dict) and value.get("kind") == NONE)


def _as_kind(value: Any) -> Any:
    """The word alone may stand for the settings."""
    return {"kind": NONE} if value == NONE else value


absent = BeforeValidator(_as_kind)
"""Of the settings of a reward: `none` is one of them."""
