"""YAML read strictly: every value with the line that it stands on, and values that are set over the file's.

Numbers are those of YAML 1.2. What is given twice, repeated without end, or too large is a fault.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from triptych.errors import RecipeError
from triptych.storage import IrregularFile, nearest_file, open_regular

Place = tuple[str | int, ...]
"""Where a value stands: `("feedback", 0, "file")`."""

_AFTER_THE_FILE = 1_000_000_000

LARGEST = 1 << 20
"""How many bytes a recipe may have."""

VALUES = 20_000
"""How many values a recipe may have, those that aliases repeat included."""


_TOO_DEEP = "holds values inside values without end"


class Origin(NamedTuple):
    """Where a value was written: a line of the file, or an override, which comes after all of them."""

    text: str
    order: int


class Problem(NamedTuple):
    """What is wrong with a value."""

    origin: Origin
    place: Place
    message: str

    def __str__(self) -> str:
        name = ".".join(map(str, self.place))
        return ": ".join(part for part in (self.origin.text, name, self.message) if part)


class YamlFile:
    """The values of a recipe and where each was written.

    Attributes:
        problems: what of them could not be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = str(path)
        self.origins: dict[Place, Origin] = {(): Origin(self.file, 0)}
        self.problems: list[Problem] = []
        self.overridden = 0
        self.built = 0
        node, loader = _composed(Path(path))
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{self.file}:{_line(node)}: must hold fields, as in `name: my-model`")
        try:
            self.values = self._built(node, loader, (), ())
        except RecursionError:
            raise RecipeError(f"{self.file}: {_TOO_DEEP}") from None

    def origin(self, place: Place) -> Origin:
        """Where the value, or the nearest one around it, was written."""
        while place not in self.origins:
            place = place[:-1]
        return self.origins[place]

    def _built(
        self, node: yaml.Node, loader: yaml.SafeLoader, place: Place, around: tuple[yaml.Node, ...]
    ) -> Any:
        if node in around:
            self.problems.append(Problem(self.origin(place), place, "an alias inside what it stands for"))
            return None
        around = (*around, node)
        self.built += 1
        if self.built > VALUES:
            raise RecipeError(f"{self.file}: has more than {VALUES:,} values, those that aliases repeat included")
        if isinstance(node, yaml.SequenceNode):
            for index, entry in enumerate(node.value):
                self.origins[*place, index] = self._at(entry)
            return [self._built(entry, loader, (*place, i), around) for i, entry in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            self._note_repeated(node, place)
            try:
                loader.flatten_mapping(node)
            except yaml.YAMLError as error:
                raise RecipeError(f"{self.file}:{_line(node)}: not YAML: {_syntax(error)}") from None
            values = {}
            for key, value in node.value:
                name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
                self.origins[*place, name] = self._at(key)
                values[name] = self._built(value, loader, (*place, name), around)
            return values
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.problems.append(Problem(self._at(node), place, f"cannot be read: {error}"))
            return None
        except (LookupError, AttributeError, TypeError, OverflowError):  # of a tag that the value does not fit
            self.problems.append(Problem(self._at(node), place, f"cannot be read as {node.tag.rpartition(':')[2]}"))
            return None

    def _note_repeated(self, node: yaml.MappingNode, place: Place) -> None:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                what = f"given twice, first on line {_line(first[key.value])}"
                self.problems.append(Problem(self._at(key), (*place, key.value), what))
            first.setdefault(key.value, key)

    def _at(self, node: yaml.Node) -> Origin:
        return Origin(f"{self.file}:{_line(node)}", _line(node))

    def override(self, text: str) -> None:
        """Sets one value; a field that no model has is left for the model to refuse."""
        self.overridden += 1
        origin = Origin(f"--set {text}", _AFTER_THE_FILE + self.overridden)
        name, equals, value = text.partition("=")
        steps = name.strip().split(".")
        if not equals or not all(steps):
            raise RecipeError(
                f"{origin.text}: expected a field and its value, as in reward.learning_rate=1e-5"
            )
        parsed = parse_value(value, origin.text)
        around: Any = self.values
        place: Place = ()
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            key = self._key(around, step, place, origin)
            if key is None:
                return
            place = (*place, key)
            if last:
                around[key] = parsed
            else:
                if isinstance(around, dict) and around.get(key) is None:
                    around[key] = {}
                    self.origins[place] = origin
                around = around[key]
        # What stood there before is gone, and so are its lines.
        for inside in [other for other in self.origins if other[: len(place)] == place]:
            del self.origins[inside]
        self.origins[place] = origin

    def _key(self, around: Any, step: str, place: Place, origin: Origin) -> str | int | None:
        """The step as a key of what is there, or None and a problem."""
        if isinstance(around, dict):
            return step
        if isinstance(around, list):
            if step.isdecimal() and int(step) < len(around):
                return int(step)
            what = (
                f"has entries 0 to {len(around) - 1}, no {step}" if around else f"is an empty list, no {step}"
            )
        else:
            what = f"is {shown(around)} and has no field {step}"
        self.problems.append(Problem(origin, place, what))
        return None


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 reads them: `1e-5` is a number, `no` and `12:30` are text, a date is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse_value(text: str, place: str) -> Any:
    """A value as a recipe reads it.

    Args:
        text: YAML.
        place: where it stands, for errors.

    Raises:
        RecipeError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{place}: the value is not YAML: {_syntax(error)}") from error
    except RecursionError:
        raise RecipeError(f"{place}: {_TOO_DEEP}") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise RecipeError(f"{place}: the value cannot be read: {error}") from error


def _composed(path: Path) -> tuple[yaml.Node, yaml.SafeLoader]:
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{path}: is larger than {LARGEST >> 20} MiB, which no recipe is")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        near = nearest_file(path)
        hint = f"; did you mean {near}?" if near else ""
        raise RecipeError(f"{path}: no such file{hint}") from None
    except IrregularFile as error:
        raise RecipeError(f"{path}: {error.kind}: expected a recipe, a YAML file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"not UTF-8: byte 0x{error.object[error.start]:02x}; save the file as UTF-8"
        raise RecipeError(f"{path}:{line}: {what}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise RecipeError(f"{place}: not YAML: {_syntax(error)}") from None
    except RecursionError:
        raise RecipeError(f"{path}: {_TOO_DEEP}") from None
    if node is None:
        raise RecipeError(f"{path}: empty: expected fields, as in `name: my-model`; `triptych init` writes a recipe")
    return node, loader


def _syntax(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    column = f" (column {error.problem_mark.column + 1})" if error.problem_mark is not None else ""
    return ", ".join(part for part in (error.context, error.problem) if part) + column


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def shown(value: Any) -> str:
    """A value in a message, in YAML's words and no longer than a line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
