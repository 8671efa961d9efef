"""The tests' process: runs them; what they call of the answer is asked of its process.

Nothing of the answer is in here but what it says, decoded to plain values of our own types, and handles. A handle sends
operands, which are inputs, and never what it is compared with: it equals no plain value, whatever its class says.
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from triptych.reward.sandboxed.channel import Channel
from triptych.reward.sandboxed.confinement import confine

ANSWER = ("answer", "solution")
"""The modules by which tests may import from the answer."""

TESTS = "tests"
"""The name under which the tests run."""

LIBRARY = frozenset((
    "bisect", "cmath", "collections", "collections.abc", "copy", "datetime", "decimal", "fractions", "functools",
    "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing",
))
"""What tests may use that only the answer imported; they get it from their own standard library."""

_PLAIN: tuple[type[Any], ...] = (int, float, str, list, dict, set, tuple)
_BUILDING = {"add": "add", "matmul": "matmul", "mul": "mul"}
_COMPARING = {
    "and": "and_", "floordiv": "floordiv", "ge": "ge", "gt": "gt", "le": "le", "lshift": "lshift", "lt": "lt",
    "mod": "mod", "or": "or_", "pow": "pow", "rshift": "rshift", "sub": "sub", "truediv": "truediv", "xor": "xor",
}
_ALONE = {
    "abs": "abs", "bool": "bool", "enter": "enter", "float": "float", "hash": "hash", "index": "index", "int": "int",
    "invert": "invert", "len": "len", "neg": "neg", "next": "next", "pos": "pos", "repr": "repr",
    "reversed": "reversed", "round": "round", "str": "str",
}


class Handle:
    """An object of the answer, which stays in its process.

    Args:
        channel: to it.
        number: its own there.
        maker: whether the tests call it as one of the answer's classes, by a name that begins with a capital.
        made: whether it came of such a call. Then it is what is tested, and operands of any operator but == are
            inputs; to other objects no operand is sent that could be an expected value (all but + and *).
    """

    __slots__ = ("__channel", "__made", "__maker", "__number")

    def __init__(self, channel: JudgesEnd, number: int, *, maker: bool = False, made: bool = False) -> None:
        for name, value in (("channel", channel), ("number", number), ("maker", maker), ("made", made)):
            object.__setattr__(self, f"_Handle__{name}", value)

    def __getattr__(self, name: str) -> Any:
        return self.__channel.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__channel.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__channel.ask("delete", self, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it where it lives."""
        result = self.__channel.ask("call", self, arguments, named)
        if self.__maker and isinstance(result, Handle):
            return Handle(self.__channel, result.__number, made=True)
        return result

    def __getitem__(self, place: Any) -> Any:
        return self.__channel.ask("getitem", self, place)

    def __setitem__(self, place: Any, value: Any) -> None:
        self.__channel.ask("setitem", self, place, value)

    def __delitem__(self, place: Any) -> None:
        self.__channel.ask("delitem", self, place)

    def __contains__(self, value: Any) -> bool:
        if self.__made or isinstance(value, Handle):
            return bool(self.__channel.ask("contains", self, value))
        return any(item == value for item in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return False
        return self.__number == other.__number or self.__channel.ask("eq", self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return int(self.__channel.ask("hash", self))

    def __iter__(self) -> Any:
        return self.__channel.ask("iter", self)

    def __format__(self, form: str) -> str:
        return str(self.__channel.ask("format", self, form))

    def __exit__(self, *error: object) -> bool:
        return bool(self.__channel.ask("exit", self))

    def __instancecheck__(self, thing: object) -> bool:
        return isinstance(thing, Handle) and bool(self.__channel.ask("isinstance", thing, self))

    def __subclasscheck__(self, thing: object) -> bool:
        return isinstance(thing, Handle) and bool(self.__channel.ask("issubclass", thing, self))

    @classmethod
    def _learn(cls) -> None:
        """Every operator, asked of the answer."""
        for name, operation in _ALONE.items():
            setattr(cls, f"__{name}__", cls._alone(operation))
        for name, operation in (_BUILDING | _COMPARING).items():
            setattr(cls, f"__{name}__", cls._with_another(operation, turned=False))
            if name not in ("ge", "gt", "le", "lt"):
                setattr(cls, f"__r{name}__", cls._with_another(operation, turned=True))

    @staticmethod
    def _alone(operation: str) -> Callable[..., Any]:
        def forwarded(self: Handle, *more: Any) -> Any:
            return self.__channel.ask(operation, self, *more)

        return forwarded

    @staticmethod
    def _with_another(operation: str, *, turned: bool) -> Callable[[Handle, Any], Any]:
        def forwarded(self: Handle, other: Any) -> Any:
            if operation in _COMPARING and not self.__made and not isinstance(other, Handle):
                raise TypeError(f"the answer gave an object of its own where {operation} needs a plain value")
            return self.__channel.ask(operation, *((other, self) if turned else (self, other)))

        return forwarded

    def _told(self) -> list[Any]:
        return ["yours", self.__number]

    def _as_maker(self) -> Handle:
        return Handle(self.__channel, self.__number, maker=True)


Handle._learn()


class Named(tuple[Any, ...]):
    """A named tuple of the answer: its values are here, its fields and methods are asked for."""

    _handle: Handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


class JudgesEnd(Channel):
    """The tests' end of the channel."""

    def __init__(self, receive: int, send: int) -> None:
        super().__init__(receive, send)
        self.failed = ""
        self._handles: dict[int, Handle] = {}
        self._errors: dict[int, type[BaseException]] = {}
        self._given: list[Any] = []
        self._numbers: dict[int, int] = {}

    def ask(self, operation: str, *operands: Any) -> Any:
        """See :meth:`Channel.ask`. What would end a loop of the tests, as `all(map(add, cases))`, is an error."""
        try:
            return super().ask(operation, *operands)
        except (StopIteration, StopAsyncIteration) as error:
            if operation == "next":
                raise
            raise RuntimeError(f"the answer raised {type(error).__name__}") from None

    def perform(self, operation: str, operands: tuple[Any, ...]) -> Any:
        """Calls a function that the tests passed, or has an attribute of an object of their classes; nothing else."""
        thing, *more = operands
        if not any(thing is given for given in self._given):
            raise PermissionError("the tests did not pass it")
        if operation == "call":
            arguments, named = more
            try:
                return thing(*arguments, **named)
            except AssertionError as error:  # the answer could catch it
                self.failed = self.failed or f"AssertionError: {error}"
                raise
        if operation not in ("get", "set") or type(thing).__module__ != TESTS or more[0].startswith("_"):
            raise PermissionError("of what the tests pass only functions can be called and attributes be had")
        return (getattr if operation == "get" else setattr)(thing, *more)

    def encode_other(self, value: Any) -> list[Any]:
        """Handles and functions by number, iterators by their next, the standard library by name."""
        if isinstance(value, Handle):
            return value._told()
        if isinstance(value, Named):
            return value._handle._told()
        if isinstance(value, type) and (number := vars(value).get("_number")) is not None:
            return ["yours", number]
        name, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
        if name and module in sys.stdlib_module_names and "<" not in name and not hasattr(value, "__self__"):
            return ["called", module, name]
        if name and module == "builtins" and hasattr(builtins, name):
            return ["called", module, name]
        if hasattr(value, "__next__"):
            return ["iterator", self._number(value.__next__)]
        for kind in _PLAIN:
            if isinstance(value, kind):
                return ["plain", self.encode(kind(value))]
        if callable(value) or type(value).__module__ == TESTS:
            return ["mine", self._number(value)]
        raise TypeError(f"the tests' objects of {type(value).__name__} cannot be passed to the answer")

    def decode_other(self, tag: str, *content: Any) -> Any:
        """What the answer's process says that it has."""
        if tag == "plain":
            return self.decode(content[0])
        if tag == "type":
            kind = getattr(builtins, content[0])
            if not isinstance(kind, type):
                raise ValueError(content[0])
            return kind
        if tag == "yours":
            return self._given[content[0]]
        if tag == "error":
            return self._error(*content)
        number = content[0]
        if type(number) is not int:
            raise ValueError(tag)
        handle = self._handles.setdefault(number, Handle(self, number))
        if tag == "named":
            named = Named(map(self.decode, content[1]))
            named._handle = handle
            return named
        if tag == "coroutine":
            return self._awaiting(handle)
        return handle

    def encode_error(self, error: BaseException) -> Any:
        """The name and the text; what an assertion says would tell what is expected."""
        name = type(error).__name__
        return [name, "" if isinstance(error, AssertionError) else str(error)[:200]]

    def decode_error(self, encoded: Any) -> BaseException:
        """A built-in exception, or one of a class made here after the answer's."""
        kind, arguments, text, number = encoded
        made = self.decode(kind)
        if not issubclass(made, Exception | SystemExit | KeyboardInterrupt):
            return RuntimeError(text)
        given = [] if arguments is None else list(self.decode(arguments))
        try:
            error: BaseException = made(*given)
        except Exception:
            error = made.__new__(made, *given)
        if hasattr(made, "_number"):
            error._handle = Handle(self, int(number))  # type: ignore[attr-defined]
            error._text = str(text)  # type: ignore[attr-defined]
        return error

    def _error(self, number: int, name: str, bases: list[Any]) -> type[BaseException]:
        if number not in self._errors:
            own = tuple(kind for kind in map(self.decode, bases) if issubclass(kind, BaseException))
            known = [base for kind in own for base in kind.__mro__ if base.__module__ == "builtins"]
            if not all(issubclass(one, other) or issubclass(other, one) for one in known for other in known):
                own = (Exception,)  # what is of several kinds would be whatever is expected
            self._errors[number] = type(str(name), own, {
                "_number": number, "_text": None, "_handle": None, "__getattr__": _of_the_error, "__str__": _text,
            })
        return self._errors[number]

    async def _awaiting(self, handle: Handle) -> Any:
        return self.ask("await", handle)

    def _number(self, given: Any) -> int:
        if id(given) not in self._numbers:
            self._numbers[id(given)] = len(self._given)
            self._given.append(given)
        return self._numbers[id(given)]


def _of_the_error(error: Any, name: str) -> Any:
    if error._handle is None or name.startswith("__"):
        raise AttributeError(name)
    return getattr(error._handle, name)


def _text(error: Any) -> str:
    return BaseException.__str__(error) if error._text is None else str(error._text)


class World(dict[str, Any]):
    """The names that tests see: their own, Python's, and then the answer's."""

    def __init__(self, channel: JudgesEnd) -> None:
        super().__init__(__name__=TESTS, __builtins__=builtins)
        self._channel = channel

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        return self.of_the_answer(name)

    def of_the_answer(self, name: str) -> Any:
        """What the answer calls so; of the standard library our own.

        Raises:
            KeyError: nothing.
        """
        origin = self._channel.ask("origin", name)
        if origin == name and name in LIBRARY:
            return importlib.import_module(name)
        if origin in LIBRARY and hasattr(module := importlib.import_module(origin), name):
            return getattr(module, name)
        value = self._channel.ask("name", name)
        return value._as_maker() if isinstance(value, Handle) and name[:1].isupper() else value


class AnswerModule(types.ModuleType):
    """`from answer import name`."""

    def __init__(self, name: str, world: World, channel: JudgesEnd) -> None:
        super().__init__(name)
        self.__dict__["_world"], self.__dict__["_channel"] = world, channel
        self.__dict__["__path__"] = []

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            names = self._channel.ask("names")
            taken = (*dir(builtins), *self._world)
            return [name for name in names if not name.startswith("_") and name not in taken]
        try:
            return self._world.of_the_answer(name)
        except KeyError:
            raise AttributeError(f"the answer has no {name}") from None


def run(code: str, tests: str, channel: JudgesEnd) -> None:
    """The answer's code in its process, the tests here; what fails is raised.

    Test cases of unittest, and functions `test_...` without parameters, are run after the module.
    """
    channel.ask("run", code)
    world = World(channel)
    for name in ANSWER:
        sys.modules[name] = AnswerModule(name, world, channel)
    if "unittest" in tests:
        import unittest

        unittest.main = lambda *_, **__: None  # type: ignore[assignment]
    exec(compile(tests, "tests.py", "exec"), world)
    for name, value in list(world.items()):
        if isinstance(value, types.FunctionType) and name.startswith("test_") and not value.__code__.co_argcount:
            value()
    if "unittest" in sys.modules:
        _run_cases(world)
    if channel.failed or channel.gone:
        raise AssertionError(channel.failed or channel.gone)


def _run_cases(world: World) -> None:
    import unittest

    load = unittest.defaultTestLoader.loadTestsFromTestCase
    kinds = [value for value in world.values() if isinstance(value, type) and issubclass(value, unittest.TestCase)]
    suite = unittest.TestSuite(load(kind) for kind in kinds if kind.__module__ == TESTS)
    result = unittest.TestResult()
    suite.run(result)
    for _, trace in (*result.failures, *result.errors):
        raise AssertionError(trace.strip().splitlines()[-1])
    if not result.wasSuccessful() or (result.testsRun and len(result.skipped) == result.testsRun):
        raise AssertionError("a test passed that should not, or all were skipped")


def main() -> None:
    """The process with the arguments SECONDS MEBIBYTES BOXED RECEIVE SEND; the job at stdin.

    Writes JSON to stdout: null where the tests passed, else why not.
    """
    seconds, mebibytes, boxed = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    channel = JudgesEnd(int(sys.argv[4]), int(sys.argv[5]))
    job = json.load(sys.stdin)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.argv, sys.stdout, sys.stderr = ["tests"], io.StringIO(), io.StringIO()
    verdict: str | None = None
    try:
        confine(seconds, mebibytes, boxed=boxed)
        run(job["code"], job["tests"], channel)
    except BaseException as error:
        verdict = channel.gone or channel.failed or f"{type(error).__name__}: {error}"[:200]
    os.write(report, json.dumps(verdict).encode())
    os._exit(0)
