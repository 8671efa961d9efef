"""The answer's process: runs its code, then what the tests ask of it. It never sees what they expect."""

from __future__ import annotations

import builtins
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from triptych.reward.sandboxed.channel import Channel
from triptych.reward.sandboxed.confinement import confine

MODULE = "answer"
"""The name under which the code runs."""


def _attribute_gone(thing: Any, name: str) -> None:
    delattr(thing, name)


def _awaited(coroutine: Any) -> Any:
    import asyncio  # slow to import, and rarely needed

    return asyncio.run(coroutine)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "get": getattr, "set": setattr, "delete": _attribute_gone, "await": _awaited,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager: type(manager).__exit__(manager, None, None, None),
    **{name: getattr(builtins, name) for name in (
        "abs", "bool", "dir", "float", "format", "hash", "int", "isinstance", "issubclass", "iter", "len", "next",
        "repr", "reversed", "round", "str",
    )},
    **{name: getattr(operator, name) for name in (
        "add", "and_", "concat", "contains", "delitem", "eq", "floordiv", "ge", "getitem", "gt", "iadd", "index",
        "invert", "le", "lshift", "lt", "matmul", "mod", "mul", "ne", "neg", "or_", "pos", "pow", "rshift", "setitem",
        "sub", "truediv", "xor",
    )},
}
"""What may be asked of the answer's objects."""


class Guest:
    """A function of the tests, which can be called, or an object of a class of theirs, which has attributes."""

    __slots__ = ("__channel", "__number")

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_Guest__channel", channel)
        object.__setattr__(self, "_Guest__number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it where it lives."""
        return self.__channel.ask("call", self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.__channel.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__channel.ask("set", self, name, value)

    def _told(self) -> list[Any]:
        return ["yours", self.__number]


class AnswersEnd(Channel):
    """The answer's end of the channel."""

    def __init__(self, receive: int, send: int) -> None:
        super().__init__(receive, send)
        self.module = types.ModuleType(MODULE)
        self._guests: dict[int, Guest] = {}
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def perform(self, operation: str, operands: tuple[Any, ...]) -> Any:
        """See :data:`OPERATIONS`; and what the tests need to know of the module."""
        if operation == "run":
            exec(compile(operands[0], f"{MODULE}.py", "exec"), self.module.__dict__)
            return None
        if operation == "names":
            return list(self.module.__dict__)
        if operation == "name":
            return self.module.__dict__[operands[0]]
        if operation == "origin":
            value = self.module.__dict__[operands[0]]
            return value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        return OPERATIONS[operation](*operands)

    def encode_other(self, value: Any) -> list[Any]:
        """Exceptions' classes with their bases, tuples with names also by value, the rest by number."""
        if type(value) is Guest:
            return value._told()
        if isinstance(value, type) and value.__module__ == "builtins" and hasattr(builtins, value.__name__):
            return ["type", value.__name__]
        for scalar in (int, float, str):
            if isinstance(value, scalar):
                plain = str.__str__(value) if isinstance(value, str) else scalar(value)
                return ["plain", self.encode(plain)]
        kind = type(value)
        if kind.__module__ in ("collections", "numpy") and isinstance(value, dict):
            return ["plain", self.encode(dict(value))]
        if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 1):
            return ["plain", self.encode(value.item())]
        number = self._number(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = [self.encode(base) for base in value.__bases__ if issubclass(base, BaseException)]
            return ["error", number, value.__name__, bases]
        if isinstance(value, types.CoroutineType):
            return ["coroutine", number]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["named", number, [self.encode(item) for item in tuple(value)]]
        return ["mine", number, isinstance(value, type)]

    def decode_other(self, tag: str, *content: Any) -> Any:
        """Own objects by number, the tests' functions and iterators, what is named in the standard library."""
        if tag == "yours":
            return self._objects[content[0]]
        if tag == "mine":
            return self._guests.setdefault(content[0], Guest(self, content[0]))
        if tag == "plain":
            return self.decode(content[0])
        if tag == "iterator":
            return _drawn(Guest(self, content[0]))
        value: Any = __import__(content[0], fromlist=["_"])
        for part in content[1].split("."):
            value = getattr(value, part)
        return value

    def encode_error(self, error: BaseException) -> Any:
        """Its class, its arguments where they are plain, its text, and itself by number."""
        try:
            text = str(error)[:2000]
        except Exception:
            text = ""
        return [self.encode(type(error)), self._encode_arguments(error), text, self._number(error)]

    def decode_error(self, encoded: Any) -> BaseException:
        """A built-in exception, or one that says the name of the tests' own."""
        kind = getattr(builtins, encoded[0], None)
        return kind(encoded[1]) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(*encoded)

    def _encode_arguments(self, error: BaseException) -> Any:
        try:
            return self.encode(error.args)
        except Exception:
            return None

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # kept, so that its id stays its own
        return self._numbers[id(value)]


def _drawn(following: Guest) -> Iterator[Any]:
    while True:
        try:
            item = following()
        except StopIteration:
            return
        yield item


def main() -> None:
    """The process with the arguments SECONDS MEBIBYTES BOXED, the channel at stdin and stdout."""
    seconds, mebibytes, boxed = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    ends = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    channel = AnswersEnd(*ends)
    sys.argv = [MODULE]
    sys.modules[MODULE] = channel.module
    sys.stdout = channel.printed
    confine(seconds, mebibytes, boxed=boxed)
    channel.listen()
