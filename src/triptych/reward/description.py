"""What the folder of a reward says that it is: `reward.json` and what lies beside it, read and acted on in nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field, StrictInt, ValidationError, field_validator

from triptych.configuration import Config, complaints
from triptych.display import one_line
from triptych.engine.scoring import RewardModel
from triptych.errors import RewardError
from triptych.json_text import JsonError, parse
from triptych.reward.ensemble import Ensemble
from triptych.reward.judge import JudgeReward
from triptych.reward.kind import Opening
from triptych.reward.mixture import Mixture, Part, Weighted
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import FUNCTIONS, OwnFunction, RulesReward
from triptych.storage import open_regular

DESCRIPTION = "reward.json"
TEMPLATE = "template.jinja"

LARGEST = 16 << 20
"""Bytes of a file that is read here; lists of forbidden texts and schemas may be long."""


class Members(Config):
    """What an ensemble's `reward.json` says; its models lie in `models/0`, `models/1`, …"""

    kind: Literal["ensemble"] = "ensemble"
    members: StrictInt = Field(ge=1)
    penalty: float = Field(ge=0)

    def open(self, opening: Opening) -> Ensemble:
        """The members as one scorer."""
        folders = [opening.folder / "models" / str(place) for place in range(self.members)]
        members = [RewardModel(folder, shard_map=opening.shard_map) for folder in folders]
        return Ensemble(members, self.penalty, identity=opening.identity)


class Parts(Config):
    """What a mixture's `reward.json` says; its parts lie in `parts/NAME`."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1)

    def open(self, opening: Opening) -> Mixture:
        """The parts as one scorer."""
        parts = [Weighted(part, scorer) for part, scorer in zip(self.parts, opening.parts, strict=True)]
        return Mixture(parts, identity=opening.identity)

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len({part.name for part in parts}) < len(parts):
            raise ValueError("each part needs a name of its own")
        return parts


class TakenModel(Config):
    """What `reward.json` says of a model that was made elsewhere and has a tokenizer of its own.

    In a run it lies in `model`; a release names it and is without it.
    """

    kind: Literal["taken"] = "taken"
    model: str

    def open(self, opening: Opening) -> RewardModel:
        """The model, which lies here or is given.

        Raises:
            RewardError: it is neither.
        """
        inside = opening.folder / "model"
        folder = inside if inside.is_dir() else opening.models.get(self.model)
        if folder is None:
            raise RewardError(f"this reward is a model ({self.model}), which is not here")
        return RewardModel(folder, identity=opening.identity, shard_map=opening.shard_map)


Content = Members | Parts | RulesReward | JudgeReward | RemoteReward | TakenModel

KINDS: dict[str, type[Content]] = {
    "ensemble": Members, "mixture": Parts, "rules": RulesReward, "judge": JudgeReward, "remote": RemoteReward,
    "taken": TakenModel,
}


@dataclass(frozen=True, slots=True)
class Description:
    """A reward as its folder describes it.

    Attributes:
        folder: where it lies.
        content: what `reward.json` says; None of a folder without one, which is a model.
        template: a judge's question.
        parts: a mixture's, in their order.
    """

    folder: Path
    content: Content | None = None
    template: str = ""
    parts: tuple[Description, ...] = ()

    @classmethod
    def of(cls, folder: Path, *, is_part: bool = False) -> Description:
        """Reads a folder; nothing that it names is opened, asked or run.

        Args:
            is_part: of a mixture; a mixture in it is none that a recipe can make.

        Raises:
            RewardError: something is not as it must be; it names the file.
        """
        path = folder / DESCRIPTION
        if not os.path.lexists(path):
            return cls(folder)
        content = _content(path)
        if isinstance(content, JudgeReward):
            return cls(folder, content, _text(folder / TEMPLATE))
        if isinstance(content, Members):
            for place in range(content.members):  # ends at the first that is missing, however many it speaks of
                _require_folder(folder / "models" / str(place), path)
        if isinstance(content, TakenModel) and os.path.lexists(folder / "model"):
            _require_folder(folder / "model", path)
        if isinstance(content, RulesReward):
            for place, rule in enumerate(content.rules):
                if isinstance(rule, OwnFunction):
                    _text(folder / FUNCTIONS / f"{place}.py")
        if not isinstance(content, Parts):
            return cls(folder, content)
        if is_part:
            _refuse(path, "is a mixture in a mixture; a part must be of another kind")
        inside = [folder / "parts" / part.name for part in content.parts]
        for part_folder in inside:
            _require_folder(part_folder, path)
        return cls(folder, content, parts=tuple(cls.of(part_folder, is_part=True) for part_folder in inside))

    @property
    def file(self) -> Path:
        """Where it says what it is."""
        return self.folder / DESCRIPTION

    @property
    def models(self) -> list[Path]:
        """The folders of the models that it is made of, without those of its parts."""
        if isinstance(self.content, Members):
            return [self.folder / "models" / str(place) for place in range(self.content.members)]
        if self.content is None or isinstance(self.content, TakenModel):
            inside = [self.folder / "model"] if (self.folder / "model").is_dir() else []
            return inside or ([self.folder] if self.content is None else [])
        return []

    def all(self) -> Iterator[Description]:
        """It and its parts."""
        yield self
        for part in self.parts:
            yield from part.all()


def _content(path: Path) -> Content:
    content = _object(path)
    kind = content.get("kind")
    if not isinstance(kind, str):
        _refuse(path, "must be an object with a kind")
    if kind not in KINDS:
        _refuse(path, f"its kind {one_line(kind)[:60]!r} is not known; {', '.join(KINDS)} are")
    content.pop("model_digest", None)
    try:
        return KINDS[kind].model_validate(content)
    except ValidationError as error:
        problems = [
            ": ".join(part for part in (one_line(".".join(map(str, place)))[:80], one_line(message)[:400]) if part)
            for place, message in complaints(error, KINDS[kind]).items()
        ]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        _refuse(path, "cannot be used: " + "; ".join(problems[:3]) + more)
    except RecursionError:
        _refuse(path, "cannot be used: it is nested too deep")


def _object(path: Path) -> dict[str, Any]:
    try:
        content = parse(_text(path))
    except JsonError as error:
        _refuse(path, f"cannot be read: {one_line(error)[:200]}")
    if not isinstance(content, dict):
        _refuse(path, "must be an object with a kind")
    return content


def _text(path: Path) -> str:
    """The text of a small regular file; a link could lead to a file that is not the folder's to tell."""
    if path.is_symlink():
        _refuse(path, "is a link; a reward's own files must lie in its folder")
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")
    if len(content) > LARGEST:
        _refuse(path, f"is larger than {LARGEST >> 20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(path, "cannot be read: it is not UTF-8")


def _require_folder(folder: Path, named_by: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        _refuse(named_by, f"names {folder}, which is no folder there")


def _refuse(path: Path, why: str) -> NoReturn:
    raise RewardError(f"{path}: {why}") from None
