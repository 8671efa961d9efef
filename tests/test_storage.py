"""Files that are whole or absent, deadlines, and text that does not steer a terminal."""

import ast
import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from triptych.deadline import within
from triptych.display import one_line, printable
from triptych.storage import (
    IrregularFile,
    append_line,
    entries,
    irregular,
    nearest_file,
    open_regular,
    replace_folder,
    write_whole,
)


@pytest.mark.attack("power loss")
def test_a_file_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path: Path, order: list[str]) -> None:
    write_whole(tmp_path / "summary.json", "{}")
    assert order == ["fsync summary.json.partial", "rename summary.json.partial summary.json", f"fsync {tmp_path.name}"]


@pytest.mark.attack("power loss")
def test_a_folder_is_flushed_whole_before_it_takes_the_place(tmp_path: Path, order: list[str]) -> None:
    for name in ("new", "old"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert order[:3] == ["fsync deep", "fsync file", "fsync new"]
    assert order[-1] == f"fsync {tmp_path.name}"
    assert (tmp_path / "old" / "deep" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_without_an_exchange_of_names_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.storage.exchange", lambda one, other: False)
    (tmp_path / "release.old").mkdir()  # as a kill between two renames leaves it
    (tmp_path / "release.partial").mkdir()
    (tmp_path / "release.partial" / "new").touch()
    replace_folder(tmp_path / "release.partial", tmp_path / "release")
    assert [path.name for path in entries(tmp_path)] == ["release", "new"]


@pytest.mark.attack("full disk")
def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.jsonl"
    append_line(path, '{"a": 1}')
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, added: write(descriptor, added[:3]))
    with pytest.raises(OSError) as found:  # noqa: PT011 (its number is what counts)
        append_line(path, '{"b": 2}')
    assert found.value.errno == errno.ENOSPC
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.attack("people")
def test_a_tail_without_an_end_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"a": 1}')
    assert append_line(path, '{"b": 2}') is None
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"c": ')
    assert append_line(path, '{"d": 4}\n') == '{"c": '
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n{"d": 4}\n'
    assert (tmp_path / "labels.jsonl.unfinished").read_text() == '"{\\"c\\": "\n'


@pytest.mark.attack("data files")
def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, what in {"fifo": "a FIFO", "link": "a FIFO", "folder": "a folder", "socket": "a socket"}.items():
        with pytest.raises(IrregularFile, match=what):
            open_regular(tmp_path / name)
    with pytest.raises(IrregularFile, match="a device"):
        open_regular(Path("/dev/zero"))
    assert irregular(tmp_path / "link") == "a link"
    assert irregular(tmp_path / "folder") is None


def spin(seconds: float) -> None:
    def loop() -> None:
        while True:
            pass

    within(seconds, loop)


def test_a_deadline_stops_a_loop_and_leaves_nothing_behind() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        spin(0.05)
    assert time.monotonic() - began < 5
    for _ in range(200):  # it comes within the block or not at all
        with contextlib.suppress(TimeoutError):
            within(0.0005, lambda: time.sleep(0.0005))
    sum(range(100_000))


@pytest.mark.attack("rules")
def test_a_deadline_that_is_swallowed_comes_again() -> None:
    def swallow() -> None:
        for _ in range(3):
            with contextlib.suppress(BaseException):
                spin(30)
        spin(30)

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        within(0.05, swallow)
    assert time.monotonic() - began < 5


@pytest.mark.attack("rules")
def test_a_deadline_that_was_swallowed_at_the_end_still_counts() -> None:
    def swallow() -> None:
        with contextlib.suppress(BaseException):
            while True:
                pass

    with pytest.raises(TimeoutError):
        within(0.02, swallow)
    time.sleep(0.1)


def test_of_two_deadlines_each_ends_its_own_work() -> None:
    def inner() -> str:
        with pytest.raises(TimeoutError, match=r"0\.02 s"):
            spin(0.02)
        return "went on"

    assert within(30, inner) == "went on"
    with pytest.raises(TimeoutError, match=r"0\.02 s"):
        within(0.02, lambda: spin(30))


def test_deadlines_are_each_threads_own() -> None:
    found: list[str] = []

    def slow() -> None:
        try:
            spin(0.05)
        except TimeoutError:
            found.append("stopped")

    other = threading.Thread(target=slow)
    other.start()
    within(30, other.join)
    assert found == ["stopped"]


@pytest.mark.attack("terminal")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]0;no end\nsecond line", "0;no end\nsecond line"),
        ("\x1b]8;;https://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("over\rwritten\x08", "overwritten"),
        ("\x9b2Jgone", "gone"),
        ("\x1bPq#0\x1b\\x", "x"),
        ("abc\u202edcba", "abcdcba"),
        ("two\nlines\tkept", "two\nlines\tkept"),
        ("naïve 日本 👩‍💻", "naïve 日本 👩‍💻"),
    ],
)
def test_text_of_others_does_not_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_is_one_line() -> None:
    assert one_line("weights\nOK: whole") == "weights OK: whole"


PACKAGE = Path(__file__).parents[1] / "src" / "triptych"
FLUSHED_ELSEWHERE = {
    # The folder of a stage is flushed whole before it is an artifact.
    "data/files.py", "engine/curve.py", "engine/models.py", "evaluate/answers.py", "evaluate/gate.py",
    "evaluate/measurement.py", "audit/stage.py", "reward/ensemble.py", "reward/judge.py", "reward/mixture.py",
    "reward/rules.py", "reward/taking.py", "reward/remote.py", "pipeline/artifact.py", "engine/adapter_folder.py",
    "evaluate/benchmarking.py",
    # So is a release before it has its name.
    "release/family.py", "release/verification.py", "engine/merging.py",
    # torch writes into an open file, which is flushed there.
    "engine/checkpoint.py",
    # Nobody is told of the lock, nor of a tracker's log; the channel is a pipe, a process's own memory a word to Linux.
    "pipeline/lock.py", "trackers/process.py", "reward/sandboxed/channel.py", "engine/device.py",
}
WRITES = {"write_text", "write_bytes", "rename", "replace", "truncate"}


def raw_writes(source: str) -> list[int]:
    """The lines of a module that write or rename a file by themselves."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in WRITES:
            # A text has `replace` too, which takes two texts; a file's takes one path, and that of `os` is named.
            of_os = isinstance(called.value, ast.Name) and called.value.id == "os"
            if called.attr != "replace" or of_os or (len(node.args) == 1 and not node.keywords):
                found.append(node.lineno)
        modes = [each.value for each in (*node.args[1:2], *(key.value for key in node.keywords if key.arg == "mode"))
                 if isinstance(each, ast.Constant)]
        is_open = isinstance(called, ast.Name) and called.id == "open"
        if is_open and any(set(str(mode)) & set("wax+") for mode in modes):
            found.append(node.lineno)
        if isinstance(called, ast.Attribute) and called.attr in {"save_pretrained", "save_file"}:
            found.append(node.lineno)
    return found


def test_raw_writes_are_seen() -> None:
    source = """open(a, "w"); open(a, mode="ab"); a.write_text(b); os.replace(a, b); a.replace(b); m.save_pretrained(f)
open(a); open(a, "rb"); text.replace("a", "b"); file.write(text)"""
    assert raw_writes(source) == [1] * 6


@pytest.mark.attack("power loss")
def test_nothing_is_written_that_is_not_flushed() -> None:
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")
             if raw_writes(path.read_text(encoding="utf-8"))}
    assert found - {"storage.py"} == FLUSHED_ELSEWHERE, "what a user is told is done is written by triptych.storage"


@pytest.mark.parametrize(("wanted", "near"), [
    ("recipe.yml", "recipe.yaml"), ("recpe.yaml", "recipe.yaml"), ("report.htm", "report.html"),
    ("rep.html", "report.html"), ("recipe.json", None), ("data.yaml", None),
])
def test_a_missing_file_suggests_one_of_its_kind_or_name(tmp_path: Path, wanted: str, near: str | None) -> None:
    for name in ("recipe.yaml", "report.html", "data.jsonl"):
        (tmp_path / name).touch()
    assert nearest_file(tmp_path / wanted) == (near and tmp_path / near)
