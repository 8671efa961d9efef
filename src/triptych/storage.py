"""Files that are there whole or not at all, also after a power cut; and folders in which nothing surprises.

Everything that a user is told is done is written here: a temporary name, fsync, rename, fsync of the folder. What
Triptych wrote itself is read again here too: one that is damaged is named, with what to do about it.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from triptych.errors import RunError

PARTIAL = ".partial"
"""How the name of a file or folder ends that is not whole yet."""

LOCK_SECONDS = 20.0
"""For which one waits for one's turn at the end of a file."""

_EXCHANGE = 2
"""`RENAME_EXCHANGE` of renameat2(2)."""


class IrregularFile(OSError):  # noqa: N818 (its word is the one of the manual pages: no regular file)
    """A FIFO, a device, a socket, a folder or a link where a regular file is expected."""

    @property
    def kind(self) -> str:
        """What it is instead, as "is a FIFO"."""
        return str(self.strerror).removesuffix(", and no file")


class Folder(Protocol):
    """A folder that a stage reads: an artifact, or a plain path, so that a stage can be called without a run."""

    def __truediv__(self, name: str, /) -> Path:
        """What it holds under this name."""

    def __fspath__(self) -> str:
        """Where it is."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole, or as it was, whenever the process or the machine stops.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where a large file is written piece by piece that is there whole, or as it was, as by :func:`write_whole`."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_line(path: Path, line: str) -> str | None:
    """Adds a line to a file of JSON Lines, whole or not at all; who else appends waits for its own turn.

    A tail that a kill or a full disk left without an end is no line: JSON gets its end, anything else is set aside into
    `NAME.unfinished`.

    Args:
        path: made, with its folder, where it is missing.
        line: without "\\n" inside; one at its end is not needed.

    Returns:
        What was set aside, or None.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with turn_at(path) as turn:
        turn.add(line)
    return turn.set_aside


@dataclass(frozen=True, slots=True)
class Turn:
    """One's turn at the end of a file of JSON Lines, which is a whole line's.

    Attributes:
        path: the file.
        set_aside: the tail that was no line, or None.
    """

    path: Path
    set_aside: str | None
    _file: BinaryIO

    def add(self, line: str) -> None:
        """Adds a line, whole or not at all; see :func:`append_line`."""
        _write(self._file, line.removesuffix("\n").encode() + b"\n", self.path)


@contextmanager
def turn_at(path: Path) -> Iterator[Turn]:
    """Keeps others who append away from a file, so that what is read there still holds when a line is added.

    The file is made, and a tail without an end is seen to, as :func:`append_line` says.

    Raises:
        OSError: the file cannot be opened or written.
    """
    make_folder(path.parent)
    with _held(path) as file:
        tail = _unfinished(file)
        cut = None
        if tail and is_json(tail):
            _write(file, b"\n", path)
        elif tail:
            cut = tail.decode("utf-8", "replace")
            append_line(path.with_name(path.name + ".unfinished"), json.dumps(cut, ensure_ascii=False))
            file.truncate(file.seek(0, os.SEEK_END) - len(tail))
        yield Turn(path, cut, file)


@contextmanager
def _held(path: Path) -> Iterator[BinaryIO]:
    """The file under its lock. Who saves it by a new file and a rename, as editors do, leaves a lock on the old one."""
    import fcntl

    while True:
        is_new = not path.exists()
        with open(path, "a+b") as file:
            ends = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > ends:
                        raise OSError(errno.EBUSY, "another program keeps it locked", str(path)) from None
                    time.sleep(0.002)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            if is_new:
                sync(path.parent)
            yield file
            return


def _write(file: BinaryIO, added: bytes, path: Path) -> None:
    whole = file.seek(0, os.SEEK_END)
    try:
        if os.write(file.fileno(), added) < len(added):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            file.truncate(whole)
        error.filename = error.filename or str(path)
        raise


def lines_of(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a file of JSON Lines, without their "\\n", and what stands unfinished behind them.

    A last line that is JSON is whole, with an end or without.
    """
    *lines, tail = content.split(b"\n")
    return ([*lines, tail], b"") if is_json(tail) else (lines, tail)


def replace_folder(partial: Path, folder: Path) -> None:
    """Puts a finished folder in another's place; the old one stays until the new one is there, whole and flushed.

    Where the system can exchange two names at once (Linux), the place is never empty. Elsewhere a kill between two
    renames leaves the old one as `NAME.old`, which the next call puts back or removes.
    """
    sync_tree(partial)
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old) if folder.exists() else os.replace(old, folder)
    if not folder.exists():
        os.replace(partial, folder)
    elif exchange(partial, folder):
        sync(folder.parent)
        shutil.rmtree(partial)
    else:
        os.replace(folder, old)
        os.replace(partial, folder)
        sync(folder.parent)
        shutil.rmtree(old)
    sync(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; whether the system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here = -100  # AT_FDCWD
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), _EXCHANGE) == 0)


def make_folder(folder: Path) -> None:
    """Makes a folder that is missing, with those above it; it is there also after a power cut."""
    missing = [ancestor for ancestor in (folder, *folder.parents) if not ancestor.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for ancestor in reversed(missing):
        sync(ancestor.parent)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes a folder with all that is in it."""
    for path in entries(folder):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)
    sync(folder)


def copy_regular(source: Path, copy: Path, largest: int = 1 << 20) -> None:
    """Copies a small file that a user named, a function or a template; what is no file is not opened.

    Raises:
        IrregularFile: it is no file, or has more than `largest` bytes.
        OSError: it cannot be read or written.
    """
    with open_regular(source) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise IrregularFile(errno.EFBIG, f"is larger than {largest >> 20} MiB", str(source))
    copy.write_bytes(content)


def sha256(path: Path) -> str:
    """The digest of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_all(folder: Path, files: Iterable[Path]) -> str:
    """One digest of files in a folder: of the list that `sha256sum` would write of them, sorted by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    hashes = sha256_each([folder / name for name in names])
    lines = [f"{digest}  {name}\n" for digest, name in zip(hashes, names, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_each(files: Sequence[Path]) -> list[str]:
    """The digests of several files, on all cores: hashing is slower than a disk, and a large model has many files."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(sha256_once, files))


_digests: dict[tuple[int, ...], str] = {}


def sha256_once(path: Path) -> str:
    """The same, computed once in a process for what was not changed: its inode, size and times are as they were.

    The time of the last change of the inode is the system's own, which nobody can set back.
    """
    stat = path.stat()
    seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if seen not in _digests:
        _digests[seen] = sha256(path)
    return _digests[seen]


class Fields(dict[str, Any]):
    """An object of a file of ours; a field that it does not have is damage, which is named."""

    def __init__(self, fields: dict[str, Any], path: Path, remedy: str) -> None:
        super().__init__(fields)
        self.path = path
        self.remedy = remedy

    def __missing__(self, name: str) -> Any:
        raise RunError(f"{self.path} is damaged: it has no {name!r}; {self.remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Fields, (dict(self), self.path, self.remedy)


def read_object(path: Path, remedy: str | None = None) -> Fields:
    """The object in a JSON file that Triptych wrote.

    Args:
        path: a file in an artifact's folder, or another.
        remedy: what to do where it is damaged; by default the folder is to be deleted, as an artifact's may be.

    Raises:
        RunError: it is missing, unreadable or no object.
    """
    remedy = remedy or _computed_again(path)
    return _parsed(_text(path, remedy), path, str(path), remedy)


def read_rows(path: Path, remedy: str | None = None) -> list[Fields]:
    """The objects of a JSON Lines file that Triptych wrote; none where there is no file. See :func:`read_object`."""
    remedy = remedy or _computed_again(path)
    lines = enumerate(read_lines(path, remedy), start=1)
    return [_parsed(line, path, f"{path}:{number}", remedy) for number, line in lines]


def read_lines(path: Path, remedy: str | None = None) -> list[str]:
    """The lines of such a file that were written whole; the last may still be written, or have been cut by a kill.

    They end at "\\n" only: a text in them may hold other characters that end a line, as U+2028.
    """
    if not os.path.lexists(path):
        return []
    return _text(path, remedy or _computed_again(path)).split("\n")[:-1]


def _computed_again(path: Path) -> str:
    return f"delete the folder {path.parent} to compute it again"


def _text(path: Path, remedy: str) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: byte {error.start} is not UTF-8; {remedy}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; {remedy}") from None


def _parsed(text: str, path: Path, place: str, remedy: str) -> Fields:
    try:
        content = json.loads(text, object_hook=lambda fields: Fields(fields, path, remedy))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{place} is damaged: it is not JSON ({error}); {remedy}") from None
    if not isinstance(content, Fields):
        raise RunError(f"{place} is damaged: it holds no object; {remedy}")
    return content


def entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder, sorted by name; links are named and not followed."""
    waiting = sorted(folder.iterdir(), reverse=True)
    while waiting:
        path = waiting.pop()
        yield path
        if not path.is_symlink() and path.is_dir():
            waiting += sorted(path.iterdir(), reverse=True)


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its path there; what links lead to counts."""
    return {str(path.relative_to(folder)): sha256(path.resolve()) for path in entries(folder) if path.is_file()}


def nearest_file(path: Path) -> Path | None:
    """The file beside it that may be meant by a name that no file has: one of its kind, or of its name."""
    folder = path.parent
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    alike = [name for name in names if Path(name).suffix == path.suffix or Path(name).stem == path.stem]
    near = difflib.get_close_matches(path.name, alike, n=1, cutoff=0.7)
    return folder / near[0] if near else None


def irregular(path: Path) -> str | None:
    """What a path is that is neither a regular file nor a folder ("a FIFO"), or None; it is not opened."""
    mode = path.lstat().st_mode
    kinds = {
        "a link": stat.S_ISLNK, "a FIFO": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR,
        "a disk": stat.S_ISBLK,
    }
    return next((name for name, holds in kinds.items() if holds(mode)), None)


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading that is a regular one, links followed; whatever else it is, it is not opened.

    Raises:
        IrregularFile: it is something else.
        OSError: as `open` does.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise _no_file(path)
    # What stands there may have been changed meanwhile: a FIFO would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return os.fdopen(descriptor, "rb")


def _no_file(path: Path) -> IrregularFile:
    what = "a folder" if path.is_dir() else irregular(path.resolve()) or "something else"
    return IrregularFile(errno.EINVAL, f"is {what}, and no file", str(path))


def _unfinished(file: BinaryIO) -> bytes:
    """What stands behind the last end of a line."""
    end = file.seek(0, os.SEEK_END)
    tail, start = b"", end
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65536)
        file.seek(start)
        tail = file.read(end - start)
    return tail.rpartition(b"\n")[2]


def is_json(tail: bytes) -> bool:
    """Whether it is a value of JSON, whole."""
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        return False
    return True
