"""JSON schemas (draft 2020-12) that end: nothing is fetched, and patterns have a time-out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from triptych.deadline import within
from triptych.display import one_line
from triptych.reward import expression

CHARACTERS = 100_000
"""How long a schema may be."""

SECONDS = 5.0
"""Of looking at a schema."""


@lru_cache(maxsize=1024)
def validator(schema: str) -> Any:
    """What says of a value whether the schema allows it, by `is_valid`.

    Raises:
        ValueError: it is no JSON schema, or one that cannot be used; says why.
    """
    if len(schema) > CHARACTERS:
        raise ValueError(f"has more than {CHARACTERS:,} characters")
    try:
        return within(SECONDS, lambda: _made(schema))
    except SchemaError as error:
        raise ValueError(one_line(error.message)[:200]) from None
    except Unresolvable as error:
        raise ValueError(f"$ref {error.ref!r} leads nowhere, and nothing is fetched") from None
    except RecursionError:
        raise ValueError("is nested too deep, or goes round in circles") from None
    except TimeoutError as error:
        raise ValueError(str(error)) from None


def _made(schema: str) -> Any:
    content = json.loads(schema)
    Draft202012Validator.check_schema(content)
    plain = _without_dialect(content)
    _inspect(plain)
    made = _Bounded(plain, registry=Registry())
    made.is_valid(None)  # a schema that goes round in circles does so at once
    return made


def _without_dialect(content: Any) -> Any:
    """The schema without its `$schema`: a validator would take the library's own of that dialect where it stands."""
    if not isinstance(content, dict):
        return content
    content = copy.deepcopy(content)
    content.pop("$schema", None)
    inside = list(content.values())
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$schema"), str):
                raise ValueError("$schema may stand at the top only")
            inside += value.values()
        elif isinstance(value, list):
            inside += value
    return content


def _inspect(content: Any) -> None:
    """Follows every reference and compiles every pattern.

    Raises:
        ValueError, Unresolvable: one of them cannot be used.
    """
    resource = Resource.from_contents(content, default_specification=DRAFT202012)
    waiting = [(resource, Registry().resolver_with_root(resource))]
    used: set[str] = set()
    while waiting:
        here, resolver = waiting.pop()
        if isinstance(here.contents, Mapping):
            used |= here.contents.keys()
            for name in ("$ref", "$dynamicRef"):
                if name in here.contents:
                    resolver.lookup(here.contents[name])
            patterns = here.contents.get("patternProperties", {})
            for pattern in (*patterns, *([here.contents["pattern"]] if "pattern" in here.contents else [])):
                try:
                    expression.expression(pattern)
                except ValueError as error:
                    raise ValueError(f"pattern {pattern[:60]!r} {error}") from None
        waiting += [(inner, resolver.in_subresource(inner)) for inner in here.subresources()]
    if {"patternProperties", "unevaluatedProperties"} <= used:
        raise ValueError("unevaluatedProperties does not go with patternProperties here: give additionalProperties")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not expression.matches(pattern, instance):
        yield ValidationError(f"does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if expression.matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, value in instance.items():
            if name not in named and not any(expression.matches(pattern, name) for pattern in patterns):
                yield from validator.descend(value, allowed, path=name)


_BOUNDED = {
    "pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional_properties,
}
_Bounded: Any = extend(Draft202012Validator, _BOUNDED)  # type: ignore[no-untyped-call]
