"""Whole runs that are killed, lose their power or their disk's last byte: they go on to the same bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_cycle import Attempts, contents, events, kill, wait_for_start
from triptych.release.verification import verify

pytestmark = pytest.mark.slow

AGAIN = 12
"""Kills while a finished run is run again."""


@pytest.fixture(scope="module")
def attempts() -> Iterator[Attempts]:
    attempts = Attempts()
    yield attempts
    attempts.end()


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def whole(request: pytest.FixtureRequest, attempts: Attempts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, by so many ranks."""
    runs = tmp_path_factory.mktemp(f"by-{request.param}")
    attempts.finish(runs, request.param)
    return runs / "tiny"


@pytest.fixture(scope="module")
def alone(attempts: Attempts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one process."""
    runs = tmp_path_factory.mktemp("alone")
    attempts.finish(runs)
    return runs / "tiny"


def durations(run: Path) -> dict[str, float]:
    """The seconds of each stage, in order."""
    return {event["stage"]: event["seconds"] for event in events(run) if event["event"] == "finished"}


@pytest.mark.attack("kill -9")
def test_a_kill_in_every_stage_changes_no_byte(
    whole: Path, attempts: Attempts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    ranks = int(whole.parent.name.split("-")[1][0])
    seconds, draw = durations(whole), random.Random(ranks)
    run, kills = tmp_path / "tiny", []
    for stage in seconds:
        children = attempts.start(tmp_path, ranks)
        begun = wait_for_start(run, stage)
        # Where within the stage: at its beginning, on the way, or while it is being sealed and the next one begins.
        time.sleep(draw.choice([0.0, draw.random(), draw.random(), 1.0]) * seconds[stage] if begun else 0.0)
        kill(draw.choice([children, [draw.choice(children)]]))
        if attempts.status() != 0:
            kills.append(stage)
    attempts.finish(tmp_path, ranks)
    assert contents(run / "release") == contents(whole / "release")
    assert verify(run / "release") == []
    assert not any((run / "work").iterdir())
    assert len(kills) >= 0.9 * len(seconds), kills
    record_property("attacks", len(kills))
    print(f"{len(kills)} kills on {ranks} ranks")


@pytest.mark.attack("kill -9")
def test_a_kill_while_a_finished_run_is_run_again_leaves_the_release_whole(
    whole: Path, attempts: Attempts, record_property: Callable[[str, object], None]
) -> None:
    ranks = int(whole.parent.name.split("-")[1][0])
    written, kills = contents(whole / "release"), 0
    began = time.monotonic()
    attempts.finish(whole.parent, ranks)
    took = time.monotonic() - began
    for number in range(3 * AGAIN):  # on a busy machine some end before their kill
        children = attempts.start(whole.parent, ranks)
        time.sleep(took * (0.25 + 0.75 * (number % AGAIN) / AGAIN))  # the release is written last
        kill(children)
        kills += attempts.status() != 0
        assert contents(whole / "release") == written
        assert verify(whole / "release") == []
        if kills == AGAIN:
            break
    attempts.finish(whole.parent, ranks)
    assert contents(whole / "release") == written
    assert sorted(path.name for path in whole.glob("release*")) == ["release"]
    assert kills == AGAIN
    record_property("attacks", kills)
    print(f"{kills} kills while run again on {ranks} ranks")


def system(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@contextmanager
def mounted(place: Path, *how: str | Path) -> Iterator[None]:
    """A file system at `place`; skips where one may not be mounted."""
    place.mkdir(exist_ok=True)
    try:
        system("mount", *how, place)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        system("umount", place)


def cut_power(place: Path) -> None:
    """Ends all writing to an ext4 at once: what is in memory alone is lost, its journal's open transaction too."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
    finally:
        os.close(descriptor)


@pytest.mark.attack("power loss")
def test_what_a_run_says_is_done_is_there_after_a_power_cut(
    alone: Path, attempts: Attempts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    image, runs = tmp_path / "image", tmp_path / "runs"
    with open(image, "wb") as file:
        file.truncate(512 * 2**20)
    system("mkfs.ext4", "-q", image)
    how = ("-o", "loop,commit=600", image)  # the journal writes by itself every ten minutes only
    seconds, draw, run, cuts = durations(alone), random.Random(3), runs / "tiny", 0
    for stage in list(seconds)[::3]:
        with mounted(runs, *how):
            children = attempts.start(runs)
            wait_for_start(run, stage)
            time.sleep(draw.random() * seconds[stage])
            cut_power(runs)
            cuts += 1
            kill(children)
            attempts.status()
    with mounted(runs, *how):
        attempts.start(runs)
        assert attempts.status() == 0, Path(f"{runs}.log").read_text()
        (runs / "plain").write_text("not flushed")
        told = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "lock"}
        cut_power(runs)
        cuts += 1
    with mounted(runs, *how):
        assert not (runs / "plain").exists() or (runs / "plain").read_bytes() == b"", "the power was not cut"
        assert contents(run / "release") == contents(alone / "release")
        assert verify(run / "release") == []
        for path, content in told.items():
            assert path.read_bytes() == content, path
        assert contents(run / "artifacts") == contents(alone / "artifacts")
        attempts.finish(runs)
    record_property("attacks", cuts)


@pytest.mark.attack("full disk")
def test_a_disk_that_fills_up_anywhere_is_said_and_the_run_goes_on_when_there_is_room(
    alone: Path, attempts: Attempts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    runs = tmp_path / "runs"
    needed = sum(path.stat().st_size for path in alone.rglob("*") if path.is_file())
    full = 0
    with mounted(runs, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        for part in (0.01, *(number / 16 for number in range(1, 26))):
            system("mount", "-o", f"remount,size={int(needed * part)}", runs)
            log = Path(f"{runs}.log")
            log.unlink(missing_ok=True)
            attempts.start(runs)
            if attempts.status() == 0:
                break
            said = log.read_text()
            assert "error: the disk is full" in said, said
            assert "Traceback" not in said, said
            with contextlib.suppress(FileNotFoundError):
                assert verify(runs / "tiny" / "release") == [] or not (runs / "tiny" / "release").exists()
            full += 1
        assert contents(runs / "tiny" / "release") == contents(alone / "release")
    assert full >= 8
    record_property("attacks", full)
    print(f"{full} full disks")
