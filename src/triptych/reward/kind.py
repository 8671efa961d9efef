"""What the settings of every kind of reward say of it, so that nobody else tells the kinds apart to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import PrivateAttr, ValidationInfo, model_validator

from triptych.configuration import Config, located

Material = Literal["comparisons", "ratings"]


class RewardConfig(Config):
    """A kind of reward.

    A new kind is a file with its settings, scorer and stage; a line in the unions of `mixture` (as a part) and
    `registry`; what its folder says and how that is opened, in `description` and `registry`; how it is made, in
    `assembly`; and its rows in docs/recipe.md.

    Attributes:
        needs: what it is trained on.
    """

    needs: ClassVar[frozenset[Material]] = frozenset()

    _files: dict[str, Path] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _locate(self, info: ValidationInfo) -> Self:
        self._files.update({name: located(name, info) for name in self.named})
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """The files and folders that it names itself."""
        return ()

    @property
    def files(self) -> Mapping[str, Path]:
        """Where those lie that it and its parts name, by these names."""
        return {name: path for part in self.within for name, path in part._files.items()}

    @property
    def is_policy(self) -> bool:
        """Whether it is the policy's own judgement."""
        return False

    @property
    def within(self) -> tuple[RewardConfig, ...]:
        """It and its parts."""
        return (self,)
