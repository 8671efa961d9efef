"""Two processes that ask each other: one JSON line a message, plain values copied, everything else by number.

A side sends `["ask", printed, operation, operands]` and serves what it is asked itself until
`["reply", printed, value, changed]` or `["raise", printed, error]` comes. `changed` holds the operands where the call
changed one in place. No side ever gets an object of the other, and nothing is unpickled.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

LONGEST = 1 << 23
"""Bytes of one message."""

SAFE = 1 << 53
"""Integers below are written as JSON numbers."""

COPIED: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.complex": lambda z: (z.real, z.imag),
    "builtins.range": lambda r: (r.start, r.stop, r.step),
    "builtins.slice": lambda s: (s.start, s.stop, s.step),
    "collections.OrderedDict": lambda d: (list(d.items()),),
    "collections.Counter": lambda d: (dict(d),),
    "collections.deque": lambda d: (list(d), d.maxlen),
    "datetime.date": lambda d: (d.year, d.month, d.day),
    "datetime.datetime": lambda d: (d.year, d.month, d.day, d.hour, d.minute, d.second, d.microsecond),
    "datetime.time": lambda t: (t.hour, t.minute, t.second, t.microsecond),
    "datetime.timedelta": lambda d: (d.days, d.seconds, d.microseconds),
    "decimal.Decimal": lambda d: (str(d),),
    "fractions.Fraction": lambda f: (f.numerator, f.denominator),
}
"""The other types that are copied: what their constructor takes. Zones of time are left out."""

_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class Gone(BaseException):
    """The other side ended, or what it said is no message; no `except Exception` catches it."""


class Channel:
    """One end.

    Args:
        receive, send: file descriptors.
    """

    def __init__(self, receive: int, send: int) -> None:
        self._receive = os.fdopen(receive, "rb", 1 << 16)
        self._send = send
        self.printed = io.StringIO()
        self.gone = ""

    def ask(self, operation: str, *operands: Any) -> Any:
        """What the other side finds; lists, dictionaries and sets among the operands are changed as it changed them.

        Raises:
            Gone: it ended, or does not keep to the rules.
            Exception: what the operation raised there.
        """
        self._say("ask", operation, self.encode(operands))
        return self.listen(operands)

    def listen(self, operands: Any = None) -> Any:
        """Serves the other side until it replies."""
        while True:
            kind, printed, *rest = self._hear()
            try:
                if printed:
                    sys.stdout.write(str(printed))
                if kind == "ask":
                    operation, encoded = rest
                    arguments = self.decode(encoded)
                elif kind == "reply":
                    encoded, changed = rest
                    if changed is not None:
                        become(operands, self.decode(changed))
                    return self.decode(encoded)
                else:
                    error = self.decode_error(rest[0])
            except (Gone, MemoryError):
                raise
            except Exception as fault:
                raise self._lost(f"said what is no message: {type(fault).__name__}") from None
            if kind != "ask":
                raise error
            self._serve(operation, arguments)

    def _serve(self, operation: str, operands: tuple[Any, ...]) -> None:
        try:
            before = self.encode(operands)
            reply = self.encode(self.perform(operation, operands))
            after = self.encode(operands)
            self._say("reply", reply, None if after == before else after)
        except Gone:
            raise
        except BaseException as error:
            self._say("raise", self.encode_error(error))

    def _say(self, kind: str, *content: Any) -> None:
        printed = self.printed.getvalue()
        self.printed.seek(0)
        self.printed.truncate()
        line = json.dumps([kind, printed, *content], separators=(",", ":")).encode() + b"\n"
        if len(line) > LONGEST:
            raise OverflowError(f"more than {LONGEST >> 20} MiB to pass between answer and tests")
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._send, rest):]
        except OSError:
            raise self._lost("ended") from None

    def _hear(self) -> list[Any]:
        line = self._receive.readline(LONGEST + 1)
        if not line.endswith(b"\n"):
            raise self._lost("said too much" if line else "ended")
        try:
            message = json.loads(line)
            if not isinstance(message, list) or message[0] not in ("ask", "reply", "raise") or len(message) < 3:
                raise ValueError("no message")
        except (ValueError, LookupError, RecursionError):
            raise self._lost("said what is no message") from None
        return message

    def _lost(self, what: str) -> Gone:
        self.gone = self.gone or f"the answer's process {what}"
        return Gone(self.gone)

    def encode(self, value: Any) -> Any:
        """A value for JSON: scalars as they are, all else as [tag, ...]."""
        kind = type(value)
        if value is None or kind in (bool, float, str):
            return value
        if kind is int:
            return value if -SAFE < value < SAFE else ["int", hex(value)]
        if kind.__name__ in _CONTAINERS and kind in _CONTAINERS.values():
            return [kind.__name__, [self.encode(item) for item in value]]
        if kind is dict:
            return ["dict", [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        if kind in (bytes, bytearray):
            return [kind.__name__, value.hex()]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in COPIED:
            return ["copied", name, [self.encode(part) for part in COPIED[name](value)]]
        if value is Ellipsis or value is NotImplemented:
            return ["constant", str(value)]
        return self.encode_other(value)

    def decode(self, encoded: Any) -> Any:
        """The value of what :meth:`encode` made."""
        if not isinstance(encoded, list):
            return encoded
        tag, content = encoded[0], encoded[1]
        if tag == "int":
            return int(content, 16)
        if tag in _CONTAINERS:
            return _CONTAINERS[tag](self.decode(item) for item in content)
        if tag == "dict":
            return {self.decode(key): self.decode(item) for key, item in content}
        if tag in ("bytes", "bytearray"):
            return (bytes if tag == "bytes" else bytearray).fromhex(content)
        if tag == "copied":
            if content not in COPIED:
                raise ValueError(content)
            module, _, name = content.rpartition(".")
            return getattr(importlib.import_module(module), name)(*map(self.decode, encoded[2]))
        if tag == "constant":
            return {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[content]
        return self.decode_other(*encoded)

    def perform(self, operation: str, operands: tuple[Any, ...]) -> Any:
        """What this side does when it is asked."""
        raise NotImplementedError

    def encode_other(self, value: Any) -> list[Any]:
        """What is not copied."""
        raise NotImplementedError

    def decode_other(self, tag: str, *content: Any) -> Any:
        """The same from the other side."""
        raise NotImplementedError

    def encode_error(self, error: BaseException) -> Any:
        """An exception for JSON."""
        raise NotImplementedError

    def decode_error(self, encoded: Any) -> BaseException:
        """An exception to be raised here."""
        raise NotImplementedError


def become(old: Any, new: Any) -> Any:
    """`old` with the contents of `new`, in place as far as lists, dictionaries and sets of one kind go."""
    if type(old) is not type(new):
        return new
    if isinstance(old, list):
        old[:] = [*map(become, old, new), *new[len(old):]]
    elif isinstance(old, dict):
        merged = {key: become(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray):
        old[:] = new
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, tuple):
        for one, other in zip(old, new, strict=False):
            become(one, other)
    else:
        return new
    return old
