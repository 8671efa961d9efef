"""Stages as artifacts: done once, kept for ever, the same bytes everywhere, nothing half done."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import triptych
from triptych import storage
from triptych.configuration import Config
from triptych.engine.checkpoint import Checkpoint, write_tensors
from triptych.engine.device import compute_dtype
from triptych.errors import RunError
from triptych.pipeline import fingerprint as fingerprints
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.fingerprint import Sources, code_version
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.lock import claimed
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner, Until
from triptych.pipeline.stage import StageContext, UserFiles, reads
from triptych.progress import Silent
from triptych.storage import Folder, sha256


class Words(Config):
    text: str = "hello"


needs_a_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")

calls: list[str] = []
"""Which stages were really computed."""


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.clear()


class Length(Result):
    length: int


class Nothing(Result):
    pass


def write_words(
    context: StageContext, config: Words, sources: Mapping[str, str | Path] | None = None
) -> Length:
    calls.append(config.text)
    (context.output / "deep").mkdir()
    (context.output / "deep" / "words.txt").write_text(config.text)
    return Length(length=len(config.text))


def shout(context: StageContext, config: Words, words: Folder, times: int = 1) -> Nothing:
    calls.append("shout")
    (context.output / "loud.txt").write_text((words / "deep" / "words.txt").read_text().upper() * times)
    return Nothing()


def runner(folder: Path, **more: Any) -> Runner:
    return Runner(folder, Silent(), seed=1, **more)


def words(folder: Path, text: str = "hello", sources: Mapping[str, str | Path] | None = None) -> Artifact[Length]:
    return runner(folder).run("words", write_words, Words(text=text), UserFiles(sources or {}))


def shouted(folder: Path, of: Artifact[Length], times: int = 1) -> Artifact[Nothing]:
    return runner(folder).run("round-1/shout", shout, Words(), words=of, times=times)


def failing(error: BaseException) -> Callable[[StageContext, Words], Nothing]:
    def work(context: StageContext, config: Words) -> Nothing:
        (context.output / "half.txt").write_text("half")
        raise error

    return work


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    first, again = words(tmp_path), words(tmp_path)
    assert calls == ["hello"]
    assert (first.folder, first.digest) == (again.folder, again.digest)
    assert first.result == again.result == Length(length=5)
    assert first.manifest["files"] == {
        "deep/words.txt": {"bytes": 5, "sha256": sha256(first.folder / "deep" / "words.txt")}
    }
    assert not any((tmp_path / "work").iterdir())


def test_a_changed_setting_is_computed_beside_what_is_there(tmp_path: Path) -> None:
    before = words(tmp_path)
    kept = bytes_of(before.folder)
    after = words(tmp_path, "good bye")
    assert after.folder != before.folder
    assert bytes_of(before.folder) == kept
    words(tmp_path)
    assert calls == ["hello", "good bye"]


def test_a_changed_input_or_tool_runs_what_depends_on_it(tmp_path: Path) -> None:
    loud = shouted(tmp_path, words(tmp_path))
    assert shouted(tmp_path, words(tmp_path)).folder == loud.folder
    other = shouted(tmp_path, words(tmp_path, "good bye"))
    twice = shouted(tmp_path, words(tmp_path), times=2)
    assert calls == ["hello", "shout", "good bye", "shout", "shout"]
    assert [(a.folder / "loud.txt").read_text() for a in (loud, other, twice)] == ["HELLO", "GOOD BYE", "HELLOHELLO"]
    assert loud.manifest["parents"] == {"words": {"stage": "words", "digest": words(tmp_path).digest}}


def write_splits(context: StageContext, config: Words, other: str) -> Nothing:
    for name, text in {"text.jsonl": config.text, "prompts_test.jsonl": other}.items():
        (context.output / name).write_text(text)
    return Nothing()


@reads(data=("text",))
def read_text(context: StageContext, config: Words, data: Folder, name: str = "text.jsonl") -> Nothing:
    calls.append((data / name).read_text())
    return Nothing()


def test_of_what_a_stage_reads_a_part_of_the_rest_does_not_count(tmp_path: Path) -> None:
    def learnt(text: str, other: str, **more: str) -> Artifact[Nothing]:
        data = runner(tmp_path).run("data", write_splits, Words(text=text), other)
        return runner(tmp_path).run("read", read_text, Words(), data=data, **more)

    first = learnt("one", "prompts")
    assert learnt("one", "other prompts").digest == first.digest
    assert learnt("two", "prompts").folder != first.folder
    assert calls == ["one", "two"]
    with pytest.raises(AssertionError, match=r"prompts_test.jsonl is no part of \('text',\)"):
        learnt("one", "prompts", name="prompts_test.jsonl")  # what does not count cannot be read


def test_what_a_source_holds_counts_and_not_where_it_lies(tmp_path: Path) -> None:
    for name, text in {"a": "one", "b": "one", "c": "two"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    a, b, c = (words(tmp_path, sources={"mine.txt": tmp_path / f"{name}.txt"}) for name in "abc")
    assert a.folder == b.folder != c.folder
    (tmp_path / "a.txt").write_text("two")
    assert words(tmp_path, sources={"mine.txt": tmp_path / "a.txt"}).folder == c.folder
    assert len(calls) == 2


def test_a_file_that_changes_while_it_is_read_makes_no_artifact(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("one")

    def work(context: StageContext, config: Words, sources: Mapping[str, str | Path]) -> Nothing:
        mine.write_text("two")
        (context.output / "copy.txt").write_text(mine.read_text())
        return Nothing()

    with pytest.raises(RunError, match=r"words: mine.txt was changed while it was read"):
        runner(tmp_path).run("words", work, Words(), UserFiles({"mine.txt": mine}))
    mine.write_text("one")
    assert words(tmp_path, sources={"mine.txt": mine}).manifest["sources"]
    assert calls == ["hello"]  # nothing was found that had been made of the other content


def test_another_seed_is_another_artifact(tmp_path: Path) -> None:
    assert words(tmp_path).folder != Runner(tmp_path, Silent(), seed=2).run("words", write_words, Words()).folder


@pytest.mark.parametrize(("error", "event"), [(ZeroDivisionError(), "failed"), (KeyboardInterrupt(), "stopped")])
def test_a_crash_leaves_no_artifact_and_the_next_run_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, event: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", _raising(error))
        with pytest.raises(type(error)):
            words(tmp_path)
    assert not (tmp_path / "artifacts").exists()
    artifact = words(tmp_path)
    assert (artifact.folder / "deep" / "words.txt").read_text() == "hello"
    assert [entry["event"] for entry in runner(tmp_path).ledger.events()] == ["started", event, "started", "finished"]


def _raising(error: BaseException) -> Callable[..., int]:
    def write_text(self: Path, *_: Any, **__: Any) -> int:
        raise error

    return write_text


class Alarmed(Result):
    alarms: list[str]

    @property
    def problems(self) -> list[str]:
        return self.alarms


def alarming(context: StageContext, config: Words) -> Alarmed:
    return Alarmed(alarms=["it grew from 2 to 9 at step 4"])


def test_what_went_wrong_on_the_way_is_an_event(tmp_path: Path) -> None:
    made = runner(tmp_path)
    made.run("alarming", alarming, Words())
    events = [(event["event"], event.get("what")) for event in made.ledger.events()]
    assert events == [("started", None), ("warned", "it grew from 2 to 9 at step 4"), ("finished", None)]


def test_the_ledger_knows_how_much_memory_a_run_has_taken(tmp_path: Path) -> None:
    words(tmp_path)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert 0.01 < ledger.peak() < 100
    ledger.add("finished", "earlier", fingerprint="f", seconds=1.0, peak_gib=512.5)
    words(tmp_path)  # reused by a process that took less
    assert ledger.peak() == 512.5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system forgets no peak")
def test_the_memory_of_a_stage_is_its_own(tmp_path: Path) -> None:
    def hold(context: StageContext, config: Words) -> Nothing:
        assert any(bytearray(b"1") * (512 << 20))
        return Nothing()

    runner(tmp_path).run("large", hold, Words())
    words(tmp_path)
    large, small = (
        event["peak_gib"] for event in Ledger(tmp_path / "ledger.jsonl").events() if event["event"] == "finished"
    )
    assert large - small == pytest.approx(0.5, abs=0.2)


def test_what_a_stage_kept_in_its_scratch_survives_a_crash(tmp_path: Path) -> None:
    found: list[bool] = []

    def work(context: StageContext, config: Words) -> Nothing:
        assert not any(context.output.iterdir())
        found.append((context.scratch / "training.pt").exists())
        (context.scratch / "training.pt").write_text("state")
        (context.output / "half.txt").write_text("half")
        if len(found) == 1:
            raise ZeroDivisionError
        return Nothing()

    with pytest.raises(ZeroDivisionError):
        runner(tmp_path).run("training", work, Words())
    artifact = runner(tmp_path).run("training", work, Words())
    assert found == [False, True]
    assert set(bytes_of(artifact.folder)) == {"half.txt", "manifest.json"}


def flipped(path: Path) -> None:
    """One bit, with the size and the times that it had."""
    was, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def replaced_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("deep/words.txt", Path.unlink, "deep/words.txt is missing; delete this folder"),
    "shorter": ("deep/words.txt", lambda path: path.write_text("hell"), "deep/words.txt was changed; delete this"),
    "one bit": ("deep/words.txt", flipped, "deep/words.txt was changed; delete this folder"),
    "added": ("more.txt", Path.touch, "more.txt was added; delete this folder"),
    "added below": ("deep/more.txt", Path.touch, "deep/more.txt was added; delete this folder"),
    "FIFO": ("deep/words.txt", replaced_by_a_fifo, "deep/words.txt is a FIFO; delete this folder"),
    "link": ("more.txt", lambda path: path.symlink_to("deep/words.txt"), "more.txt is a link; delete this folder"),
    "edited manifest": ("manifest.json", edited('"length": 5', '"length": 6'), "manifest.json was changed: .* delete"),
    "manifest cut": ("manifest.json", lambda path: path.write_text('{"files": '), "it is not JSON .* delete"),
    "manifest a list": ("manifest.json", lambda path: path.write_text("[]"), "is damaged: it holds no object; delete"),
    "manifest deep": ("manifest.json", lambda path: path.write_text("[" * 10**5), "it is not JSON .* delete"),
    "manifest not UTF-8": ("manifest.json", lambda path: path.write_bytes(b"\xff{}"), "byte 0 is not UTF-8; delete"),
    "manifest without files": (
        "manifest.json", edited('"files"', '"filed"'), "is damaged: it has no 'files'; delete the folder"
    ),
    "metrics a list": (
        "manifest.json", edited('"metrics": {\n  "length": 5\n }', '"metrics": []'), "'metrics' is no object; delete"
    ),
    "manifest a FIFO": ("manifest.json", replaced_by_a_fifo, "cannot be read: is a FIFO, and no file; delete"),
    "ledger not UTF-8": ("../../ledger.jsonl", lambda path: path.write_bytes(b"\xff\n"), "not UTF-8; move it away"),
    "ledger a list": ("../../ledger.jsonl", lambda path: path.write_text("[]\n"), "jsonl:1 is damaged.* move it"),
    "ledger cut inside": (
        "../../ledger.jsonl", lambda path: path.write_text('{"eve\n' + path.read_text()), "jsonl:1 is damaged.* move it"
    ),
    "ledger a FIFO": ("../../ledger.jsonl", replaced_by_a_fifo, "cannot be read: is a FIFO, and no file; move it away"),
}


@pytest.mark.attack("damage")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    artifact = words(tmp_path)
    file, damage, message = DAMAGE[name]
    damage(artifact.folder / file)
    with pytest.raises(RunError, match=message) as raised:
        words(tmp_path)
    assert str(artifact.folder if name[:6] != "ledger" else tmp_path) in str(raised.value)
    if name[:6] == "ledger":  # the way out is one
        (tmp_path / "ledger.jsonl").rename(tmp_path / "away.jsonl")
    else:
        shutil.rmtree(artifact.folder)
    assert words(tmp_path).digest == artifact.digest


def test_what_the_ledger_does_not_know_is_taken_with_a_word_and_known_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = words(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    said: list[str] = []
    again = runner(tmp_path)
    monkeypatch.setattr(again.progress, "say", said.append)
    again.run("words", write_words, Words())
    assert said == [f"{tmp_path / 'ledger.jsonl'} does not know words; it is taken as it is"]
    edited('"length": 5', '"length": 6')(artifact.folder / "manifest.json")
    with pytest.raises(RunError, match=r"manifest.json was changed"):
        words(tmp_path)


@pytest.mark.attack("damage")
def test_what_is_changed_while_the_run_goes_on_is_found_before_it_leaves(tmp_path: Path) -> None:
    artifact = words(tmp_path)
    assert artifact.damage() is None
    flipped(artifact.folder / "deep" / "words.txt")
    assert artifact.damage() == "deep/words.txt was changed"


def test_a_file_is_hashed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(storage, "sha256", counted)
    for _ in range(3):
        assert words(tmp_path).damage() is None
    assert sorted(hashed) == ["manifest.json", "words.txt"]


@pytest.mark.attack("power loss")
def test_an_artifact_is_flushed_and_known_before_it_has_its_name(
    tmp_path: Path, order: list[str]
) -> None:
    artifact = words(tmp_path)
    assert order[order.index("fsync deep") :] == [
        "fsync deep", "fsync words.txt", "fsync manifest.json", "fsync output",  # all of it
        "fsync ledger.jsonl",  # its digest
        f"fsync {tmp_path.name}", f"rename output {artifact.folder.name}", "fsync artifacts",
    ]


@pytest.mark.attack("damage")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no tensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"training.pt is damaged .*; delete it to train from the beginning"):
        Checkpoint(path, 60).restore(torch.nn.Linear(1, 1), [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_plainly(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError, match="the disk is full: words could not write") as raised:
        runner(tmp_path).run("words", failing(OSError(number, "full")), Words())
    assert "give the same command again" in str(raised.value)
    assert not (tmp_path / "artifacts").exists()


@needs_a_full_disk
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    def work(context: StageContext, config: Words) -> Nothing:
        Path("/dev/full").write_text("anything")
        return Nothing()

    with pytest.raises(RunError, match="the disk is full"):
        runner(tmp_path).run("words", work, Words())


@pytest.mark.attack("full disk")
@pytest.mark.parametrize("done_before", [False, True])
def test_so_is_one_where_not_even_the_ledger_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done_before: bool
) -> None:
    if done_before:
        words(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, added: write(descriptor, added[:5]))
    with pytest.raises(RunError, match="the disk is full: words could not write"):
        words(tmp_path)


@needs_a_full_disk
def test_a_disk_that_fills_up_during_the_work_is_said_plainly(tmp_path: Path) -> None:
    def work(context: StageContext, config: Words) -> Nothing:
        (tmp_path / "ledger.jsonl").unlink()
        (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(RunError, match="the disk is full"):
        runner(tmp_path).run("words", work, Words())


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
])
def test_memory_that_is_lacking_is_said_with_the_way_out(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(RunError, match=r"words needs more memory than there is .*--fit"):
        runner(tmp_path).run("words", failing(error), Words())
    with pytest.raises(RuntimeError, match=r"^something else$"):
        runner(tmp_path).run("words", failing(RuntimeError("something else")), Words())


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: RuntimeError) -> None:
        def save(content: object, file: Any) -> None:
            file.write(b"some")
            raise error

        monkeypatch.setattr(torch, "save", save)

    fails(RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/1"))
    with pytest.raises(OSError, match="could not be written") as full:
        write_tensors(tmp_path / "training.pt", {})
    assert full.value.errno == errno.ENOSPC
    fails(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        write_tensors(tmp_path / "training.pt", {})
    assert list(tmp_path.iterdir()) == []


def test_whoever_looks_at_a_run_does_not_keep_it(tmp_path: Path) -> None:
    with claimed(tmp_path):
        pass
    with open(tmp_path / "lock", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.15, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with claimed(tmp_path):
            pass


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"):
        runner(tmp_path).run("words", failing(OSError(errno.EIO, "broken")), Words())


def test_equal_runs_in_different_folders_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "here", tmp_path / "some" / "where" / "else"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("my own")
        shouted(folder, words(folder, sources={"mine.txt": folder / "mine.txt"}))
    one, other = (bytes_of(folder / "artifacts") for folder in folders)
    assert one == other
    manifest = next(content for name, content in one.items() if name.endswith("manifest.json")).decode()
    assert str(tmp_path) not in manifest
    assert not {"time", "seconds", "date"} & set(json.loads(manifest))


def test_until_stops_behind_its_stage(tmp_path: Path) -> None:
    run = runner(tmp_path, until="words")
    words = run.run("words", write_words, Words())
    with pytest.raises(Until):
        run.run("shout", shout, Words(), words)
    assert [artifact.name for artifact in run.done] == ["words"]
    assert (run.done[0].folder / "manifest.json").exists()


def test_a_run_folder_belongs_to_one_process(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from triptych.pipeline.lock import claimed
with claimed(Path({str(tmp_path)!r})):
    pass
"""
    with claimed(tmp_path):
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "RunError" in second.stderr
    assert "is in use by another process (pid" in second.stderr
    with claimed(tmp_path):
        pass


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot be written"), claimed(tmp_path / "file"):
        pass


def test_the_ledger_survives_a_line_cut_by_a_kill(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add("finished", "a", fingerprint="f", seconds=2.0)
    ledger.add("failed", "a", fingerprint="f", seconds=1.5)
    ledger.add("started", "a", fingerprint="f")
    with open(ledger.path, "a") as file:
        file.write('{"time": 1, "eve')
    assert [entry["event"] for entry in ledger.events()] == ["finished", "failed", "started"]
    assert ledger.seconds() == {"f": 3.5}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes sources of modules and gives the version of `triptych.stage_x`, which imports some of them."""
    monkeypatch.setattr(triptych, "__path__", [*triptych.__path__, str(tmp_path)])
    sources = {
        "stage_x": "from triptych import near\nfrom triptych.progress import Progress\n",
        "near": "def f():\n    import triptych.far\n", "far": "A = 1\n", "other": "C = 1\n",
    }

    def version(**changes: str) -> str:
        sources.update(changes)
        for name, text in sources.items():
            (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return Sources().version("triptych.stage_x")

    return version


def test_the_codes_version_is_that_of_all_it_imports(modules: Callable[..., str]) -> None:
    first = modules()
    assert modules() == first
    assert modules(other="C = 2\n") == first
    assert modules(stage_x="from triptych import near\n") != first
    changed = {first, modules(far="A = 2\n"), modules(near="import triptych.far\n"), modules(stage_x="")}
    assert len(changed) == 4


def test_progress_is_no_part_of_what_a_result_depends_on(modules: Callable[..., str]) -> None:
    modules()
    assert Sources().reached("triptych.stage_x") == {f"triptych.{name}" for name in ("stage_x", "near", "far")}


FUNCTION = '''def half(x: float, *, times: int = 2) -> float:
    """Half of it."""
    return x / times
'''


@pytest.mark.parametrize("same", [
    FUNCTION.replace("Half of it.", "A half."),
    FUNCTION.replace('    """Half of it."""\n', ""),
    '"""The module."""\n\n' + FUNCTION,
    FUNCTION.replace("    return", "    # divided\n    return"),
    FUNCTION.replace("x / times", "(\n        x\n        / times\n    )"),
    FUNCTION + '"""What stands alone."""\n',
])
def test_comments_docstrings_and_the_form_change_no_version(modules: Callable[..., str], same: str) -> None:
    assert modules(far=same) == modules(far=FUNCTION)


@pytest.mark.parametrize("other", [
    FUNCTION.replace("= 2", "= 3"), FUNCTION.replace("= 2", "= 2.0"), FUNCTION.replace("= 2", "= True"),
    FUNCTION.replace("x / times", "times / x"), FUNCTION.replace("x / times", "x // times"),
    FUNCTION.replace("*, ", ""), FUNCTION.replace("half", "part"), FUNCTION.replace("float:", "int:"),
    FUNCTION.replace("    return", "    x = \"\"\n    return"), FUNCTION + "TEXT = 'Half of it.'\n",
])
def test_whatever_runs_otherwise_changes_the_version(modules: Callable[..., str], other: str) -> None:
    assert modules(far=other) != modules(far=FUNCTION)


def test_data_beside_a_module_is_part_of_its_version(modules: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "unnamed.txt").write_text("1")
    template = tmp_path / "templates" / "score.jinja"
    template.write_text("How good is it?")
    first = modules(far="from pathlib import Path\nFOLDER = Path(__file__).parent / 'templates'\n")
    (tmp_path / "unnamed.txt").write_text("2")
    assert modules() == first
    template.write_text("How good is it, really?")
    second = modules()
    template.rename(template.with_name("other.jinja"))
    assert len({first, second, modules()}) == 3


def test_a_judges_questions_are_part_of_what_it_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(path: Path) -> str:
        seen.append(path.name)
        return sha256(path)

    monkeypatch.setattr(fingerprints, "sha256", counted)
    Sources().version("triptych.reward.judge")
    assert sorted(seen) == ["compare.jinja", "score.jinja"]


def test_what_computes_depends_on_the_device_and_other_work_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ["triptych.base.pretraining", "triptych.dataset.preparation"]
    versions = [code_version(module) for module in modules]
    other = torch.float32 if compute_dtype() == torch.bfloat16 else torch.bfloat16
    monkeypatch.setattr(fingerprints, "compute_dtype", lambda: other)
    assert [code_version(module) == before for module, before in zip(modules, versions, strict=True)] == [False, True]


def test_stages_depend_on_the_engine_and_not_on_each_other() -> None:
    sources = Sources()
    rooms = [
        "base.pretraining", "instruct.finetuning", "feedback.labelling", "reward.training", "improve.grpo",
        "improve.dpo",
    ]
    for room in rooms:
        names = sources.reached(f"triptych.{room}")
        assert "triptych.engine.packing" in names
        assert "triptych.progress" not in names
        foreign = {other.split(".")[0] for other in rooms} - {room.split(".")[0]}
        assert not {name for name in names if name.split(".")[1] in foreign}
