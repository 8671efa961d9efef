"""What settings are, and a YAML file read into them; of every wrong field it is said where it stands.

pydantic knows what is wrong, :mod:`triptych.yaml_text` knows the lines; :func:`load` brings the two together in one
error that lists every problem of the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticKnownError, core_schema

from triptych.errors import RecipeError
from triptych.yaml_text import Place, Problem, YamlFile, shown

S = TypeVar("S")
T = TypeVar("T", bound=BaseModel)

_FLAT = object()
Flat = Annotated[S, _FLAT]
"""A field of a :class:`Composed`: settings whose fields a recipe writes beside those around them."""


class Config(BaseModel):
    """What a stage can be told: unknown fields are refused, and nothing changes after reading.

    Attributes:
        pace: fields that say how patiently or how fast something is done, and change no result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pace: ClassVar[frozenset[str]] = frozenset()


def identity_of(config: Config) -> dict[str, Any]:
    """The settings that a result depends on, as JSON: all but those of pace."""
    return config.model_dump(mode="json", exclude=_pace_within(config))


def _pace_within(value: object) -> dict[Any, Any]:
    """The fields of pace of settings and of those within, as pydantic's `exclude`."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, BaseModel):
        parts = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    own = dict.fromkeys(value.pace, True) if isinstance(value, Config) else {}
    return own | {name: within for name, part in parts if (within := _pace_within(part))}


class Composed(Config):
    """Settings made of others, marked `Flat`: nested in Python and flat in a recipe, where a name means one field."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        names = field_names(cls)
        assert len(names) == len(set(names)), f"{cls.__name__}: a name in a recipe means one field, not two: {names}"

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, values: Any) -> Any:
        """What a recipe says, each field with the settings that know it; one that none knows with the first."""
        flat = {name: _names_of(name, field) for name, field in _fields(cls).items() if is_flat(field)}
        if not isinstance(values, dict) or any(isinstance(values.get(name), BaseModel) for name in flat):
            return values
        nested: dict[str, Any] = {name: {} for name in flat}
        own = _fields(cls).keys() - flat
        for name, value in values.items():
            part = next((part for part, names in flat.items() if name in names), next(iter(flat)))
            (nested if name in own else nested[part])[name] = value
        return nested

    @model_serializer(mode="wrap")
    def _flattened(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for name, value in handler(self).items():
            field = type(self).model_fields.get(name)
            written |= value if field and is_flat(field) else {name: value}
        return written


def tagged(field: str, default: str) -> BeforeValidator:
    """Of a union by a field's value: a mapping that leaves the field out means this value."""

    def with_tag(value: Any) -> Any:
        return {field: default, **value} if isinstance(value, dict) else value

    return BeforeValidator(with_tag)


def by_field(*names: str) -> Discriminator:
    """Of a union whose members each have a field that no other has, and bear its name as their tag."""

    def tag(value: Any) -> str | None:
        if isinstance(value, dict):
            return next((name for name in names if name in value), None)
        return next((name for name in names if hasattr(value, name)), names[0])

    tag.__name__ = f"one of {', '.join(names)}"
    return Discriminator(tag)


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file as a recipe names it, relative to the recipe's folder, and where it lies.

    Only its name is written down again: where it lies changes no result.
    """

    name: str
    path: Path

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        named = core_schema.plain_serializer_function_ser_schema(lambda file: file.name)
        return core_schema.with_info_plain_validator_function(cls._read, serialization=named)

    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> UserFile:
        if isinstance(value, UserFile):
            return value
        if not isinstance(value, str):
            raise PydanticKnownError("string_type")
        return cls(value, located(value, info))


def located(name: str, info: ValidationInfo) -> Path:
    """Where a file lies that the settings being read name."""
    return Path((info.context or {}).get(_FOLDER, "")) / Path(name).expanduser()


def beside(folder: Path) -> dict[str, Path]:
    """The context for validating settings whose files' names are relative to a folder."""
    return {_FOLDER: folder}


_FOLDER = "folder"


def load(path: str | Path, model: type[T], overrides: Sequence[str] = ()) -> T:
    """Reads a recipe.

    Args:
        path: a YAML file.
        model: what it must hold.
        overrides: `a.b=c` each, the value in YAML, a list's entry by its index (`feedback.0.file=x`).

    Raises:
        RecipeError: with every problem, each with its line or override.
    """
    source = YamlFile(path)
    for override in overrides:
        source.override(override)
    try:
        recipe = model.model_validate(source.values, context=beside(Path(path).parent))
    except ValidationError as error:
        source.problems += [
            Problem(source.origin(place), place, message) for place, message in complaints(error, model).items()
        ]
    else:
        if not source.problems:
            return recipe
    lines = [str(problem) for problem in sorted(source.problems, key=lambda problem: problem.origin.order)]
    raise RecipeError("\n".join(dict.fromkeys(lines)))


def complaints(error: ValidationError, model: type[BaseModel]) -> dict[Place, str]:
    """pydantic's errors in a recipe's terms, by their places; of a union's members only the nearest ones complain."""
    wrong = [(_spot(details["loc"], model), details) for details in error.errors() if not _follows(details)]
    distances: dict[Place, dict[str, int]] = {}
    for spot, details in wrong:
        for place, member in spot.members:
            members = distances.setdefault(place, {})
            members[member] = members.get(member, 0) + _distance(details, whole=spot.place == place)
    messages: dict[Place, list[str]] = {}
    for spot, details in wrong:
        if all(distances[place][member] == min(distances[place].values()) for place, member in spot.members):
            messages.setdefault(spot.place, []).append(_message(details, spot))
    return {place: _together(said) for place, said in messages.items()}


def _follows(details: ErrorDetails) -> bool:
    """Whether a list is called too short only because entries of it are wrong, which are named themselves."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


def _distance(details: ErrorDetails, whole: bool) -> int:
    """How far an error shows a union's member to be from what was meant.

    Args:
        whole: whether it is of the value as a whole.
    """
    kind = details["type"]
    if whole and kind not in ("value_error", "assertion_error"):
        return 100  # it is none: text, where there is a mapping
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


@dataclass
class _Spot:
    """What an error's `loc` means: besides keys and indices it holds the flat fields and the members of unions.

    Attributes:
        place: in the recipe.
        field: that describes the value there, where one does.
        known: the fields that may stand there.
        others: those that may where another member of a union is meant, each with such members.
        members: of unions on the way, each with the union's place.
    """

    place: Place = ()
    field: FieldInfo | None = None
    known: set[str] = dataclasses.field(default_factory=set)
    others: dict[str, list[type[BaseModel]]] = dataclasses.field(default_factory=dict)
    members: list[tuple[Place, str]] = dataclasses.field(default_factory=list)


    def enter(self, step: str | int, field: FieldInfo | None = None) -> None:
        """Goes on to a field, or to an entry of a list or a plain mapping."""
        self.place, self.field, self.known, self.others = (*self.place, step), field, set(), {}


def _spot(loc: tuple[str | int, ...], annotation: Any) -> _Spot:
    spot = _Spot()
    for step in loc:
        kind = _bare(annotation)
        if _is_union(kind):
            spot.members.append((spot.place, str(step)))
            for model in _models_in(kind):
                for name in field_names(model):
                    spot.others.setdefault(name, []).append(model)
            annotation = next((member for member in get_args(kind) if _is_called(member, step)), Any)
        elif _is_model(kind):
            field = _fields(kind).get(str(step))
            if field is None or is_flat(field):
                spot.known.update(field_names(kind, without=field))
            else:
                spot.enter(step, field)
            if field is None:
                return replace(spot, place=(*spot.place, step), field=None)
            annotation = field.annotation
        else:
            spot.enter(step)
            annotation = next((inner for inner in reversed(get_args(kind)) if inner is not ...), Any)
    return spot


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
_LIMITS = {
    "exclusiveMinimum": "greater than", "minimum": "at least", "exclusiveMaximum": "less than", "maximum": "at most",
}


def reason(details: ErrorDetails) -> str:
    """What pydantic says is wrong, without its own words before a validator's."""
    return details["msg"].removeprefix("Value error, ")


def _message(details: ErrorDetails, spot: _Spot) -> str:
    kind, got = details["type"], details.get("input")
    context = details.get("ctx", {})
    family = kind.split("_")[0]
    if kind == "extra_forbidden":
        return f"unknown field; {_known_fields(spot)}"
    if kind == "missing":
        return "missing"
    if kind in ("literal_error", "enum"):
        choices = [choice.strip(" '") for choice in re.split(r", | or ", str(context.get("expected")))]
        return f"must be {_one_of(choices, got)}"
    if kind == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in str(context["expected_tags"]).split(",")]
        return f"{_teller(context)} must be {_one_of(choices, context['tag'])}"
    if kind == "union_tag_not_found":
        return f"missing {_teller(context)}, which says of what kind it is"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", details["msg"]))
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        number = context["min_length" if least else "max_length"]
        return f"must have at {'least' if least else 'most'} {number}, got {context['actual_length']}"
    number = _number(spot.field) if family in ("int", "float", "finite", "greater", "less") else {}
    if family in ("greater", "less"):
        family = "int" if number.get("type") == "integer" else "float"
    if family == "multiple":
        return f"must be a multiple of {context['multiple_of']}, got {shown(got)}"
    if family not in _WANTED or kind in ("string_too_short", "string_pattern_mismatch", "string_too_long"):
        return f"{details['msg'][:1].lower()}{details['msg'][1:]}, got {shown(got)}"
    limits = " and ".join(f"{words} {number[limit]}" for limit, words in _LIMITS.items() if limit in number)
    hint = "; put it in quotes" if family == "string" and isinstance(got, bool | int | float) else ""
    return f"must be {_WANTED[family]}{limits and f' {limits}'}, got {shown(got)}{hint}"


def _number(field: FieldInfo | None) -> Mapping[str, Any]:
    """The JSON schema of the number that a field takes."""
    if field is None:
        return {}
    described: Any = Annotated[field.annotation, field]
    schema = TypeAdapter(described).json_schema()
    return next((kind for kind in (schema, *schema.get("anyOf", ())) if kind.get("type") in ("integer", "number")), {})


def _teller(context: Mapping[str, Any]) -> str:
    """By which field a union's members are told apart, as pydantic puts it: `'kind'`, or of a function `kind()`."""
    return str(context["discriminator"]).strip("'()")


def _one_of(choices: list[str], got: Any) -> str:
    near = difflib.get_close_matches(str(got), choices, n=1)
    wanted = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return f"{wanted}, got {shown(got)}" + (f"; did you mean {near[0]}?" if near else "")


def _known_fields(spot: _Spot) -> str:
    name = str(spot.place[-1])
    if name in spot.others:
        labels = dict.fromkeys(label for model in spot.others[name] for label in _labels(model))
        return "it does not go with the other fields here" + (f", but with {' or '.join(labels)}" if labels else "")
    near = difflib.get_close_matches(name, sorted(spot.known), n=1)
    return f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(sorted(spot.known))}"


def _labels(model: type[BaseModel]) -> list[str]:
    """What a recipe writes to mean this member of a union, as `kind: rules`."""
    fixed = {name: get_args(field.annotation) for name, field in _fields(model).items()
             if get_origin(field.annotation) is Literal}
    return [f"`{name}: {values[0]}`" for name, values in fixed.items() if len(values) == 1]


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The model's fields by the names that a recipe uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and `| None`."""
    inner = [argument for argument in get_args(annotation) if argument is not NoneType]
    wrapped = get_origin(annotation) is Annotated or (_is_union(annotation) and len(inner) == 1)
    return _bare(inner[0]) if wrapped else annotation


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _is_called(member: Any, label: str | int) -> bool:
    """Whether an error's `loc` names a union's member so: by its tag, a field that is always this, or its class."""
    kind = _bare(member)
    fixed = [get_args(field.annotation) for field in _fields(kind).values()] if _is_model(kind) else []
    return Tag(str(label)) in get_args(member) or (label,) in fixed or label == getattr(kind, "__name__", None)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_flat(field: FieldInfo) -> bool:
    """Whether a recipe writes the fields of the settings in it, and not its name."""
    return _FLAT in field.metadata


def field_names(model: type[BaseModel], without: FieldInfo | None = None) -> list[str]:
    """What a recipe calls the fields of a model, those of the settings in it too."""
    fields = _fields(model).items()
    return [name for part, field in fields if field is not without for name in _names_of(part, field)]


def _names_of(name: str, field: FieldInfo) -> set[str]:
    """What a recipe calls a field: by its name, or by those of the fields of the settings in it."""
    if not is_flat(field):
        return {name}
    return {inner_name for inner in _models_in(field.annotation) for inner_name in field_names(inner)}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if _is_model(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
