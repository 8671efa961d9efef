"""A call of a stage; the type of each argument tells what it means for lineage and fingerprint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_type_hints, runtime_checkable

from pydantic_core import to_jsonable_python

from triptych.configuration import Config
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.scorer import ArtifactScorer
from triptych.pipeline.stage import StageContext, UserFiles

R = TypeVar("R", bound=Result)


@runtime_checkable
class Identified(Protocol):
    """An object that says what it is, exactly, as a scorer does."""

    @property
    def identity(self) -> str:
        """Part of the fingerprint of what it is given to."""


@dataclass(frozen=True)
class StageCall(Generic[R]):
    """A stage with what it is called with; what an argument means for lineage and fingerprint is told by its type.

    ==================  ==========================================================================
    argument            what it is
    ==================  ==========================================================================
    `Artifact`          an input: a parent, and its digest counts, or that of the part which the stage `reads`
    `UserFiles`         the user's files: their content counts
    `ArtifactScorer`    a scorer: the artifact that it was opened from is a parent
    any with identity   a scorer of no artifact: its identity counts
    anything else       a value: its JSON counts
    ==================  ==========================================================================

    Attributes:
        name: unique in the run, as "round-1/reward".
        work: called as `work(context, config, **arguments)`.
        arguments: by the parameter's name.
    """

    name: str
    work: Callable[..., R]
    config: Config
    arguments: Mapping[str, object]

    @classmethod
    def of(cls, name: str, work: Callable[..., R], config: Config, args: Any, kwargs: Any) -> StageCall[R]:
        """The call with these arguments; those that are left out are not part of it."""
        signature = inspect.signature(work)
        bound = signature.bind(None, config, *args, **kwargs)
        arguments: dict[str, object] = {}
        for place, (parameter, value) in enumerate(bound.arguments.items()):
            if signature.parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            elif place > 1:
                arguments[parameter] = value
        for parameter, beginnings in getattr(work, "reads", {}).items():
            if isinstance(whole := arguments.get(parameter), Artifact):
                arguments[parameter] = whole.part(beginnings)
        return cls(name, work, config, arguments)

    @property
    def kind(self) -> type[R]:
        """Of its result, as the function is annotated."""
        kind: type[R] = get_type_hints(self.work)["return"]
        return kind

    @property
    def alone(self) -> bool:
        """Whether the first rank does it while the others wait."""
        return getattr(self.work, "alone", False)

    @property
    def parents(self) -> dict[str, Artifact[Any]]:
        """The artifacts that it is computed from, by the parameter's name; those of which a scorer was opened too."""
        parents = {
            name: value.origin if isinstance(value, ArtifactScorer) else value
            for name, value in sorted(self.arguments.items())
        }
        return {name: value for name, value in parents.items() if isinstance(value, Artifact)}

    @property
    def sources(self) -> dict[str, str | Path]:
        """The user's files that it reads."""
        return {name: path for value in self.arguments.values() if isinstance(value, UserFiles)
                for name, path in sorted(value.items())}

    @property
    def values(self) -> dict[str, Any]:
        """Everything else in JSON; an object that says what it is as that."""
        return {
            name: value.identity if isinstance(value, Identified) else to_jsonable_python(value)
            for name, value in sorted(self.arguments.items()) if not isinstance(value, Artifact | UserFiles)
        }

    @cached_property
    def given(self) -> dict[str, object]:
        """The arguments as the function gets them, scorers opened."""
        return {name: value.scorer if isinstance(value, ArtifactScorer) else value
                for name, value in self.arguments.items()}

    @property
    def modules(self) -> list[str]:
        """Whose code it runs: the function's and the scorers'."""
        scorers = [type(value).__module__ for value in self.given.values() if isinstance(value, Identified)]
        return [self.work.__module__, *scorers]

    def carried_out(self, context: StageContext) -> R:
        """Does the work."""
        return self.work(context, self.config, **self.given)
