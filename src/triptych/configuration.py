"""Reading a YAML file into pydantic models, and saying of every wrong field where it stands.

pydantic knows what is wrong, the YAML parser knows the lines; :func:`load` brings the two together in
one error that lists every problem of the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from triptych.errors import RecipeError
from triptych.storage import IrregularFile, open_regular


def tagged(field: str, default: str) -> BeforeValidator:
    """Of a union by a field's value: a mapping that leaves the field out means this value."""

    def told(value: Any) -> Any:
        return {field: default, **value} if isinstance(value, dict) else value

    return BeforeValidator(told)


Place = tuple[str | int, ...]
"""Where a value stands in the recipe: `("feedback", 0, "file")`."""

T = TypeVar("T", bound=BaseModel)


class Config(BaseModel):
    """What a stage can be told: unknown fields are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load(path: str | Path, model: type[T], overrides: Sequence[str] = ()) -> T:
    """Reads a recipe.

    Args:
        path: a YAML file.
        model: what it must hold.
        overrides: `a.b=c` each, the value in YAML, a list's entry by its index (`feedback.0.file=x`).

    Raises:
        RecipeError: with every problem, each with its line or override.
    """
    source = _Source(path)
    for override in overrides:
        source.override(override)
    try:
        recipe = model.model_validate(source.values)
    except ValidationError as error:
        source.problems += _problems(error, model, source)
    else:
        if not source.problems:
            return recipe
    lines = [str(problem) for problem in sorted(source.problems, key=lambda problem: problem.order)]
    raise RecipeError("\n".join(dict.fromkeys(lines)))


_AFTER_THE_FILE = 1_000_000_000

LARGEST = 1 << 20
"""How many bytes a recipe may have."""

VALUES = 20_000
"""How many values a recipe may have, those that aliases repeat included."""


_TOO_DEEP = "holds values inside values without end"


class _Origin:
    """Where a value was written: a line of the file, or an override."""

    def __init__(self, text: str, order: int) -> None:
        self.text = text
        self.order = order


class _Problem:
    def __init__(self, origin: _Origin, place: Place, message: str) -> None:
        self.origin = origin
        self.place = place
        self.message = message

    @property
    def order(self) -> int:
        return self.origin.order

    def __str__(self) -> str:
        name = ".".join(map(str, self.place))
        return (
            f"{self.origin.text}: {name}: {self.message}" if name else f"{self.origin.text}: {self.message}"
        )


class _Source:
    """The values of a recipe and where each was written."""

    def __init__(self, path: str | Path) -> None:
        self.file = str(path)
        self.origins: dict[Place, _Origin] = {(): _Origin(self.file, 0)}
        self.problems: list[_Problem] = []
        self.overridden = 0
        self.built = 0
        node, loader = _composed(Path(path))
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{self.file}:{_line(node)}: must hold fields, as in `name: my-model`")
        try:
            self.values = self._built(node, loader, (), ())
        except RecursionError:
            raise RecipeError(f"{self.file}: {_TOO_DEEP}") from None

    def origin(self, place: Place) -> _Origin:
        """Where the value, or the nearest one around it, was written."""
        while place not in self.origins:
            place = place[:-1]
        return self.origins[place]

    def _built(
        self, node: yaml.Node, loader: yaml.SafeLoader, place: Place, around: tuple[yaml.Node, ...]
    ) -> Any:
        if node in around:
            self.problems.append(_Problem(self.origin(place), place, "an alias inside what it stands for"))
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
            self.problems.append(_Problem(self._at(node), place, f"cannot be read: {error}"))
            return None
        except (LookupError, AttributeError, TypeError, OverflowError):  # of a tag that the value does not fit
            self.problems.append(_Problem(self._at(node), place, f"cannot be read as {node.tag.rpartition(':')[2]}"))
            return None

    def _note_repeated(self, node: yaml.MappingNode, place: Place) -> None:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                what = f"given twice, first on line {_line(first[key.value])}"
                self.problems.append(_Problem(self._at(key), (*place, key.value), what))
            first.setdefault(key.value, key)

    def _at(self, node: yaml.Node) -> _Origin:
        return _Origin(f"{self.file}:{_line(node)}", _line(node))

    def override(self, text: str) -> None:
        """Sets one value; a field that no model has is left for the model to refuse."""
        self.overridden += 1
        origin = _Origin(f"--set {text}", _AFTER_THE_FILE + self.overridden)
        name, equals, value = text.partition("=")
        steps = name.strip().split(".")
        if not equals or not all(steps):
            raise RecipeError(
                f"{origin.text}: expected a field and its value, as in reward.learning_rate=1e-5"
            )
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"{origin.text}: the value is not YAML: {_syntax(error)}") from error
        except RecursionError:
            raise RecipeError(f"{origin.text}: {_TOO_DEEP}") from None
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            raise RecipeError(f"{origin.text}: the value cannot be read: {error}") from error
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

    def _key(self, around: Any, step: str, place: Place, origin: _Origin) -> str | int | None:
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
            what = f"is {_shown(around)} and has no field {step}"
        self.problems.append(_Problem(origin, place, what))
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


def _composed(path: Path) -> tuple[yaml.Node, yaml.SafeLoader]:
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{path}: is larger than {LARGEST >> 20} MiB, which no recipe is")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise RecipeError(f"{path}: no such file{hint}") from None
    except IrregularFile as error:
        raise RecipeError(f"{path}: {error.found}: expected a recipe, a YAML file") from None
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
        raise RecipeError(f"{path}: empty: expected a recipe, as `triptych init` writes one")
    return node, loader


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def _syntax(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    column = f" (column {error.problem_mark.column + 1})" if error.problem_mark is not None else ""
    return ", ".join(part for part in (error.context, error.problem) if part) + column


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _problems(error: ValidationError, model: type[BaseModel], source: _Source) -> list[_Problem]:
    """pydantic's errors in the recipe's terms; of a union's members only the nearest ones complain."""
    found = [(*_resolved(details["loc"], model, source.values), details) for details in error.errors()]
    faults: dict[Place, dict[str, int]] = {}
    for place, member, details in found:
        if member is not None:
            around = faults.setdefault(member.place, {})
            around[member.name] = around.get(member.name, 0) + _distance(details, place, member)
    messages: dict[Place, list[str]] = {}
    for place, member, details in found:
        if member is not None:
            around = faults[member.place]
            if around[member.name] > min(around.values()):
                continue
        messages.setdefault(place, []).append(_message(details, place, model, source.values))
    return [_Problem(source.origin(place), place, _together(said)) for place, said in messages.items()]


def _distance(details: ErrorDetails, place: Place, member: _Member) -> int:
    """How far an error shows a union's member to be from what was meant."""
    kind = details["type"]
    if place == member.place and kind not in ("value_error", "assertion_error"):
        return 100  # the value as a whole is none: text, where there is a mapping
    return 10 if kind == "extra_forbidden" else 1


def _together(messages: list[str]) -> str:
    """`must be a, got x` and `must be b, got x` in one: `must be a or b, got x`."""
    split = [
        re.fullmatch(r"must be (.*), got (.*)", message, re.DOTALL) for message in dict.fromkeys(messages)
    ]
    wanted = [match[1] for match in split if match is not None]
    if len(wanted) < len(split) or split[0] is None:
        return "; or ".join(dict.fromkeys(messages))
    return f"must be {' or '.join(wanted)}, got {split[0][2]}"


class _Member(NamedTuple):
    """A member of a union without tags, as an error's `loc` names it, and where the union stands."""

    place: Place
    name: str


def _resolved(
    loc: tuple[str | int, ...], model: type[BaseModel], values: Any
) -> tuple[Place, _Member | None]:
    """The place that an error's `loc` means.

    Besides keys and indices, `loc` holds the tags of unions and the names of their members.
    """
    place: Place = ()
    member: _Member | None = None
    first = True
    for step in loc:
        if first and _is_tag(step, place, model, values):
            first = False
        elif _leads_on(step, place, model, values):
            place, first = (*place, step), True
        else:
            member = member or _Member(place, str(step))  # behind a member's name its tag may follow
    return place, member


def _is_tag(step: str | int, place: Place, model: type[BaseModel], values: Any) -> bool:
    """Whether a step is the tag of a union: `file` in `{kind: file, file: x}`, before its field `file`."""
    models, here = _candidates(place, model, values)
    return (
        len(models) > 1
        and isinstance(here, dict)
        and any(
            get_origin(field.annotation) is Literal and here.get(name) == step
            for owner in models
            for name, field in _fields(owner).items()
        )
    )


def _leads_on(step: str | int, place: Place, model: type[BaseModel], values: Any) -> bool:
    """Whether a step is a key or an index there, or a field that is missing, and not a member's name."""
    here = _candidates(place, model, values)[1]
    if isinstance(here, dict):
        return step in here or any(step in _fields(owner) for owner in _models_at(place, model, values))
    return isinstance(here, list) and isinstance(step, int)


_WANTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping of fields",
    "model": "a mapping of fields",
    "mapping": "a mapping of fields",
    "path": "a path",
    "none": "null",
}


def _message(details: ErrorDetails, place: Place, model: type[BaseModel], values: Any) -> str:
    kind, got = details["type"], details.get("input")
    context = details.get("ctx", {})
    family = kind.split("_")[0]
    if kind == "extra_forbidden":
        return f"unknown field; {_known_fields(place, model, values)}"
    if kind == "missing":
        return "missing"
    if kind in ("literal_error", "enum"):
        choices = [choice.strip(" '") for choice in re.split(r", | or ", str(context.get("expected")))]
        return f"must be {_one_of(choices, got)}"
    if kind == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in str(context["expected_tags"]).split(",")]
        tag = str(context["discriminator"]).strip("'")
        return f"{tag} must be {_one_of(choices, context['tag'])}"
    if kind == "union_tag_not_found":
        return f"missing {str(context['discriminator']).strip(chr(39))}, which says of what kind it is"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", details["msg"]))
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        number = context["min_length" if least else "max_length"]
        return f"must have at {'least' if least else 'most'} {number}, got {context['actual_length']}"
    field = _field_at(place, model, values)
    if family in ("greater", "less"):
        family = "float" if field is None or float in _types_in(field.annotation) else "int"
    if family == "multiple":
        return f"must be a multiple of {context['multiple_of']}, got {_shown(got)}"
    if family not in _WANTED or kind in ("string_too_short", "string_pattern_mismatch", "string_too_long"):
        return f"{details['msg'][:1].lower()}{details['msg'][1:]}, got {_shown(got)}"
    hint = ""
    if family == "string" and isinstance(got, bool | int | float):
        hint = "; put it in quotes"
    return f"must be {_WANTED[family]}{_bounds(field)}, got {_shown(got)}{hint}"


def _one_of(choices: list[str], got: Any) -> str:
    near = difflib.get_close_matches(str(got), choices, n=1)
    wanted = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return f"{wanted}, got {_shown(got)}" + (f"; did you mean {near[0]}?" if near else "")


def _known_fields(place: Place, model: type[BaseModel], values: Any) -> str:
    names = sorted({name for owner in _models_at(place[:-1], model, values) for name in _fields(owner)})
    if place[-1] in names:
        return "it does not go with the other fields here"
    near = difflib.get_close_matches(str(place[-1]), names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"the fields here are {', '.join(names)}" if names else "no fields are expected here"


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The model's fields by the names that a recipe uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _bounds(field: FieldInfo | None) -> str:
    """The field's limits in words: ` greater than 0 and at most 1`."""
    if field is None:
        return ""
    limits = [text for mark in (*field.metadata, *_marks(field.annotation)) for text in _limit(mark)]
    return f" {' and '.join(limits)}" if limits else ""


def _types_in(annotation: Any) -> set[Any]:
    return {annotation, *(inner for part in get_args(annotation) for inner in _types_in(part))}


def _marks(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    for inner in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _marks(inner)


def _limit(mark: Any) -> Iterator[str]:
    if isinstance(mark, FieldInfo):
        for inner in mark.metadata:
            yield from _limit(inner)
    elif isinstance(mark, annotated_types.Gt):
        yield f"greater than {mark.gt}"
    elif isinstance(mark, annotated_types.Ge):
        yield f"at least {mark.ge}"
    elif isinstance(mark, annotated_types.Lt):
        yield f"less than {mark.lt}"
    elif isinstance(mark, annotated_types.Le):
        yield f"at most {mark.le}"


def _field_at(place: Place, model: type[BaseModel], values: Any) -> FieldInfo | None:
    """The field that describes the value at a place, where one does."""
    owners = _models_at(place[:-1], model, values) if place else []
    return next((_fields(owner)[str(place[-1])] for owner in owners if place[-1] in _fields(owner)), None)


def _models_at(place: Place, model: type[BaseModel], values: Any) -> list[type[BaseModel]]:
    """The models that may describe the value at a place, as far as its tag tells."""
    return _fitting(*_candidates(place, model, values))


def _candidates(place: Place, model: type[BaseModel], values: Any) -> tuple[list[type[BaseModel]], Any]:
    """All members of the union at a place (or the one model there), and the value there."""
    annotations: list[Any] = [model]
    for step in place:
        owners = _fitting(_models_in(annotations), values)
        fields = [_fields(owner)[str(step)] for owner in owners if step in _fields(owner)]
        # An index, or a key of a plain mapping, leads into the same annotation.
        annotations = [field.annotation for field in fields] or annotations
        values = _inside(values, step)
    return _models_in(annotations), values


def _fitting(models: list[type[BaseModel]], values: Any) -> list[type[BaseModel]]:
    return [model for model in models if _may_describe(model, values)] or models


def _models_in(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            found += _models_in([*get_args(annotation), *get_args(getattr(annotation, "__value__", None))])
    return found


def _may_describe(model: type[BaseModel], values: Any) -> bool:
    """False where a field of fixed choices (a union's tag) has another value."""
    if not isinstance(values, Mapping):
        return True
    return all(
        values[name] in get_args(field.annotation)
        for name, field in _fields(model).items()
        if get_origin(field.annotation) is Literal and isinstance(values.get(name), str)
    )


def _inside(values: Any, step: str | int) -> Any:
    if isinstance(values, dict):
        return values.get(step)
    return values[step] if isinstance(values, list) and isinstance(step, int) and step < len(values) else None


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
