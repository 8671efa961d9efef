"""Jinja templates of others, rendered within limits: chat templates of model folders, and a judge's questions.

They run in Jinja's immutable sandbox, configured by transformers itself, so that every template reads as it does
elsewhere. The sandbox keeps a template from files and attributes; what is added here keeps it from time and memory. No
rendering takes longer than `SECONDS`, and all values that one makes are together no larger than `LARGEST`. What could
make a large value in one step, which no clock can stop, is measured before it is done, or is not there.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triptych.deadline import within
from triptych.display import one_line

SECONDS = 5.0
LARGEST = 2**26
"""Characters and items that a rendering may make, intermediate values included; a context of a million tokens has
some 2**22 characters."""
WIDEST = 2**20
"""The largest number that a filter takes, and the most bits of one that is computed."""

GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
"""What a conversation gives a chat template."""

SMALL = 1024
"""Texts that are added are counted from this length on; what is held or written is always counted."""

METHODS_REFUSED = {"ljust", "rjust", "center", "zfill", "expandtabs", "translate", "maketrans", "format_map"}
FILTERS_REFUSED = ("center", "pprint", "urlize", "wordwrap", "xmlattr")
"""What makes a large text of a small one, and stands in no chat template."""

Result = TypeVar("Result")


class RenderingError(ValueError):
    """A template that cannot be rendered; the message is the reason on one line."""


class RenderingLimitError(RenderingError):
    """A template that cannot be rendered within the limits of time and size."""


@functools.cache
def limit_chat_templates() -> None:
    """From here on, transformers renders chat templates in this module's environment."""
    from transformers.utils import chat_template_utils

    if chat_template_utils.ImmutableSandboxedEnvironment is not ImmutableSandboxedEnvironment:
        raise ImportError("transformers no longer renders chat templates in the sandbox that is limited here")
    # transformers makes its environment in a function; this is the one name by which it can be another class.
    chat_template_utils.ImmutableSandboxedEnvironment = Environment
    chat_template_utils._compile_jinja_template.cache_clear()


def variables(template: str) -> frozenset[str]:
    """The names that a chat template reads and is not given by every conversation: its arguments among them.

    Raises:
        RenderingError: it is no template.
    """
    from transformers.utils import chat_template_utils

    limit_chat_templates()
    compiled = limited(lambda: chat_template_utils._compile_jinja_template(template))
    return frozenset(find_undeclared_variables(compiled.environment.parse(template))) - GIVEN


class _Budget(threading.local):
    left: float = math.inf  # nothing is limited outside of `limited`


_BUDGET = _Budget()


def limited(render: Callable[[], Result]) -> Result:
    """What the call returns that compiles or renders templates, within the limits.

    Raises:
        RenderingError: for whatever the template raises.
    """
    for last in (False, True):
        _BUDGET.left = LARGEST
        try:
            return within(SECONDS, render)
        except TimeoutError:
            if last:  # the first time, the machine may have slept
                raise RenderingLimitError(f"takes longer than {SECONDS:g} s") from None
        except SecurityError as error:
            raise RenderingLimitError(one_line(error.message or type(error).__name__)) from error
        except TemplateError as error:
            raise RenderingError(one_line(error.message or type(error).__name__)) from error
        except Exception as error:  # a template can divide by zero, compare what cannot be compared, recurse ...
            raise RenderingError(one_line(f"{type(error).__name__}: {error}".removesuffix(": "))) from error
        finally:
            _BUDGET.left = math.inf
    raise AssertionError


def _spend(size: float) -> None:
    _BUDGET.left -= size
    if _BUDGET.left < 0:
        raise SecurityError(f"it makes more than {LARGEST:,} characters")


def _size(value: object) -> int:
    """Characters and items of a value, as if it were written out."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(1 + _size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(1 + _size(item) for item in value)
    return 1


def _spent(value: Result) -> Result:
    """The value itself, when what it is made of has been counted."""
    _spend(_size(value))
    return value


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox in which every operation counts what it makes."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.code_generator_class = _Counting
        del self.globals["lipsum"]
        for name in FILTERS_REFUSED:
            del self.filters[name]
        self.filters = _Filters(self.filters)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation of two values; what it is going to make is counted first."""
        if operator == "+" and type(left) is str and type(right) is str:  # by far the most of them
            if len(left) + len(right) > SMALL:
                _spend(len(left) + len(right))
            return left + right
        if operator == "%":
            if isinstance(left, str):
                _spend(_formatted(left, right, "*" in left))
        elif operator != "+":
            _measure(operator, left, right)
        elif isinstance(left, str | list | tuple):
            _spend(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805 (Jinja's)
        """A call; of the methods of strings, those are measured or refused that make a long one of a short one."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox has a `format` of its own
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | type):
            if name in METHODS_REFUSED:
                raise SecurityError(f"it calls {name}, which makes texts of any length")
            if isinstance(owner, str) and name == "join" and len(arguments) == 1:
                arguments = (_joinable(owner, arguments[0]),)
            elif isinstance(owner, str) and name == "replace":
                _spend(_replaced(owner, *arguments))
            elif name == "format":
                _spend(_formatted(str(owner), (arguments, named), re.search(r":[^{}]*\{", str(owner)) is not None))
        return _spent(super().call(__context, __obj, *arguments, **named))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """The pieces of a text as one."""
        remaining = iter(pieces)
        parts: list[str] = []
        while some := list(islice(remaining, 65536)):
            _spend(sum(map(len, some)))
            parts += some
        return "".join(parts)

    def joined(self, values: Iterable[object]) -> str:
        """What `~` makes of its operands."""
        return self.concat(map(str, values))

    def held(self, value: Result) -> Result:
        """A list, tuple or mapping that the template writes: one that holds another twice, and so on, is long."""
        return _spent(value)


class _Counting(CodeGenerator):
    """Jinja's compiler with the two things that it would do without asking the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._held(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._held(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._held(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _held(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.held(")
        visit(node, frame)
        self.write(")")


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that count what they make; transformers adds its own after the environment is made."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        for name, function in filters.items():
            self[name] = function

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        @functools.wraps(function)
        def counting(*arguments: Any, **named: Any) -> Any:
            # What Jinja passes first, where the filter asks for it, is no value of the template.
            first = 1 if hasattr(function, "jinja_pass_arg") else 0
            values = list(arguments[first:])
            if name == "join" and values:
                values[0] = _joinable(str((values[1:] or [named.get("d", "")])[0]), values[0])
            _measure_filter(name, values, named)
            return _spent(function(*arguments[:first], *values, **named))

        super().__setitem__(name, counting)


def _measure_filter(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Counts what a filter is going to make."""
    text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
    options = [*arguments[1:], *named.values()]
    widths = [option if isinstance(option, int) else _size(option) for option in options]
    if any(isinstance(option, int) and abs(option) > WIDEST for option in options) and name != "format":
        raise SecurityError(f"it calls {name} with a number beyond {WIDEST:,}")
    if name == "replace":
        _spend(_replaced(text, *map(str, options[:2])))
    elif name == "format":
        _spend(_formatted(text, options, "*" in text))
    elif name == "indent":
        _spend((text.count("\n") + 1) * max(widths, default=4))
    elif name == "tojson" and max(widths, default=0) > 64:
        raise SecurityError("it indents JSON by more than 64")
    elif name == "sum" and any(isinstance(option, list | tuple) for option in options):
        raise SecurityError("it adds lists with sum")


def _measure(operator: str, left: Any, right: Any) -> None:
    """Counts what `*` and `**` are going to make."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 0)
        if bits > WIDEST:
            raise SecurityError(f"it computes a number of more than {WIDEST:,} bits")
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(value, int | float):
                _spend(_size(value) * max(times, 0))


def _replaced(text: str, old: Any = "", new: Any = "", *_: Any) -> int:
    if not (isinstance(old, str) and isinstance(new, str)):
        return 0  # an error of Python's
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _joinable(separator: str, items: Iterable[Any]) -> list[Any]:
    """The items to be joined; counted, as a generator can give the same long one for ever."""
    counted = []
    for item in items:
        _spend(len(separator) + _size(item))
        counted.append(item)
    return counted


def _formatted(pattern: str, values: object, nested: bool) -> int:
    """How long a text can become by `%` or `format`: each field as wide as the longest value or number."""
    widths = [int(number) if len(number) < 10 else LARGEST for number in re.findall(r"\d+", pattern)]
    if nested:  # widths that are values
        widths += [LARGEST if number > WIDEST else number for number in _numbers(values)]
    fields = pattern.count("%") + pattern.count("{")
    return len(pattern) + fields * (max(widths, default=0) + _size(values))


def _numbers(values: object) -> list[int]:
    if isinstance(values, int):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    return [number for value in values for number in _numbers(value)] if isinstance(values, list | tuple) else []
