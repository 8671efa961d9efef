"""What the settings of every kind of reward say of it, so that nobody else tells the kinds apart to know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import PrivateAttr, ValidationInfo, model_validator

from triptych.configuration import Config, located
from triptych.engine.endpoint import Endpoint
from triptych.engine.scoring import Scorer, ShardMap, unsharded

if TYPE_CHECKING:
    from triptych.pipeline.artifact import Artifact
    from triptych.pipeline.result import Result
    from triptych.reward.making import Making

Material = Literal["comparisons", "ratings"]


@dataclass(frozen=True, slots=True)
class Opening:
    """A reward's folder that may be opened, and what with.

    Attributes:
        template: a judge's question.
        models: the folders of the models that judges ask, by the names that their settings give them.
        cache: the folder in which an endpoint's replies are kept.
        parts: the scorers of a mixture's parts, in their order.
        shard_map: how its work is shared out.
        endpoints: as the user's recipe has them asked; how fast and how patiently is no part of what a folder is.
    """

    folder: Path
    identity: str
    template: str
    models: Mapping[str, Path]
    cache: Path | None
    parts: Sequence[Scorer]
    shard_map: ShardMap = unsharded
    endpoints: Sequence[Endpoint] = ()

    def as_asked(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint of a folder as the user has it asked."""
        return next((own for own in self.endpoints if (own.url, own.model) == (endpoint.url, endpoint.model)), endpoint)


class RewardConfig(Config):
    """A kind of reward.

    A new kind is a file with its settings, scorer and stage; a line in the unions of `mixture` (as a part) and
    `registry`; what its folder says, in `description`; and its rows in docs/recipe.md.

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

    @abstractmethod
    def make(self, making: Making) -> Artifact[Result]:
        """Runs the stage that makes it, behind those of its parts."""

    @property
    def is_policy(self) -> bool:
        """Whether it is the policy's own judgement."""
        return False

    @property
    def asks_policy(self) -> bool:
        """Whether it or a part of it is."""
        return any(part.is_policy for part in self.within)

    @property
    def implying(self) -> Mapping[str, float]:
        """The weights of attributes by which ratings imply comparisons; none where it is not trained on ratings."""
        return {}

    @property
    def holds_anywhere(self) -> bool:
        """Whether what it says of an answer is right however the answer was found, so that nobody can exploit it."""
        return False

    @property
    def within(self) -> tuple[RewardConfig, ...]:
        """It and its parts."""
        return (self,)
