"""A file of JSON Lines to which several programs add lines: at each look, only what is new is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from triptych.data.files import parse_lines
from triptych.data.row import Row
from triptych.errors import Fault
from triptych.records import Record
from triptych.storage import is_json, open_regular

R = TypeVar("R", bound=Record)

REMEMBERED = 65536
"""So many bytes before the end must be what they were, for what stands behind them to be what was added."""


class GrowingFile(Generic[R]):
    """The records of a file, by their keys.

    A file that was replaced, cut or changed is read anew. A change is not seen only where it keeps the length of
    every line, is further than 64 KiB from the end, and is followed by a line that is added before the next look.

    Attributes:
        path: it need not be there.
        faults: of the lines that are wrong, which are left out.
        unfinished: what stands behind the last whole line: it is still being written, or nobody finished it.
    """

    def __init__(self, path: Path, parse: Callable[[Row], R | None], key: Callable[[R], str]) -> None:
        self.path = path
        self._parse, self._key = parse, key
        self._seen: tuple[int, ...] = ()
        self._end, self._lines, self._last = 0, 0, b""
        self._found: dict[str, list[R]] = {}
        self._shown: Mapping[str, list[R]] = {}
        self._wrong: list[Fault] = []
        self.faults: list[Fault] = []
        self.unfinished = b""

    def look(self) -> Mapping[str, list[R]]:
        """All that the file holds now, in its order.

        Raises:
            OSError: it cannot be read.
            DataError: it is not text in UTF-8 but in UTF-16.
        """
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            self._forget()
            return self._shown
        seen = _state(stat)
        if seen != self._seen:
            with open_regular(self.path) as file:
                stat = os.fstat(file.fileno())
                if not self._has_grown(file, stat):
                    self._forget()
                self._read(file)
            self._seen = _state(stat)
        return self._shown

    def _forget(self) -> None:
        self._seen = ()
        self._end, self._lines, self._last = 0, 0, b""
        self._found, self._shown, self._wrong = {}, {}, []
        self.faults, self.unfinished = [], b""

    def _has_grown(self, file: BinaryIO, stat: os.stat_result) -> bool:
        if self._seen[:2] != _state(stat)[:2] or stat.st_size <= self._seen[2]:
            return False
        file.seek(self._end - len(self._last))
        return file.read(len(self._last)) == self._last

    def _read(self, file: BinaryIO) -> None:
        """Reads on from the last whole line; a last line without an end counts where it is JSON, and is read again."""
        file.seek(self._end)
        added, end, tail = file.read().rpartition(b"\n")
        whole = added.split(b"\n") if end else []
        records, wrong = parse_lines(str(self.path), whole, self._parse, self._lines + 1)
        for record in records:
            self._found.setdefault(self._key(record), []).append(record)
        self._wrong += wrong
        self._lines += len(whole)
        self._end += len(added + end)
        self._last = (self._last + added + end)[-REMEMBERED:]

        self._shown, self.faults, self.unfinished = self._found, self._wrong, tail
        if is_json(tail):
            records, wrong = parse_lines(str(self.path), [tail], self._parse, self._lines + 1)
            last = {self._key(record): [*self._found.get(self._key(record), []), record] for record in records}
            self._shown, self.faults, self.unfinished = {**self._found, **last}, [*self._wrong, *wrong], b""


def _state(stat: os.stat_result) -> tuple[int, ...]:
    """Which file it is, its size, and when it was changed."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
