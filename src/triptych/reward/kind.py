"""What the settings of every kind of reward say of it, so that nobody else tells the kinds apart to know."""

from __future__ import annotations

from typing import ClassVar, Literal

from triptych.configuration import Config

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

    @property
    def files(self) -> tuple[str, ...]:
        """The files and folders that it names itself."""
        return ()

    @property
    def is_policy(self) -> bool:
        """Whether it is the policy's own judgement."""
        return False

    @property
    def within(self) -> tuple[RewardConfig, ...]:
        """It and its parts."""
        return (self,)
