"""What an address replied, kept on disk by the digest of what was asked, so that nothing is asked twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from triptych.errors import RewardError
from triptych.storage import append_line, open_regular

Reply = TypeVar("Reply")


class ReplyCache(Generic[Reply]):
    """A line of JSON for each reply; one that could not be read is known until the end of the process.

    Args:
        folder: in which the file lies; without one all is forgotten at the end.
        is_reply: whether a line's value is what was replied; else it is asked for again.

    Raises:
        RewardError: the file cannot be read.
    """

    def __init__(self, folder: Path | None, name: str, is_reply: Callable[[object], bool]) -> None:
        self._path = folder / name if folder else None
        self._known: dict[str, Reply | None] = {}
        for line in self._lines():
            try:
                row: dict[str, Any] = json.loads(line)
                asked, replied = row["asked"], row["replied"]
                if isinstance(asked, str) and is_reply(replied):
                    self._known[asked] = replied
            except (ValueError, RecursionError, KeyError, TypeError):
                continue  # no line of ours, or one that was cut; it is asked for again

    def _lines(self) -> list[bytes]:
        if self._path is None or not os.path.lexists(self._path):
            return []
        try:
            with open_regular(self._path) as file:
                return file.read().split(b"\n")[:-1]
        except OSError as error:
            raise RewardError(f"{self._path}: cannot be read ({error.strerror}); remove it, and all is asked again") \
                from error

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Reply | None:
        return self._known[name]

    def keep(self, name: str, replied: Reply | None) -> None:
        """Keeps a reply; None, of one that could not be read, is asked for again another time."""
        self._known[name] = replied
        if self._path and replied is not None:
            append_line(self._path, json.dumps({"asked": name, "replied": replied}, allow_nan=False))
