"""A reward in an artifact as a scorer, which knows where it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from triptych.engine.scoring import Scorer
from triptych.pipeline.artifact import Artifact
from triptych.records import Conversation


@dataclass(eq=False)
class ArtifactScorer:
    """The scorer in an artifact, opened when it is first asked; a stage is given the scorer itself.

    Attributes:
        origin: the artifact; it is a parent of every stage that the scorer is given to.
        open: opens it.
    """

    origin: Artifact[Any]
    open: Callable[[], Scorer]

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer itself."""
        return self.open()

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    @property
    def identity(self) -> str:
        """The artifact's digest."""
        return self.origin.digest

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The scorer's."""
        return self.scorer.score(conversations)
