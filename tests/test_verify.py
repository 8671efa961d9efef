"""`verify` names every entry that is not as it was released, opens only files, and never says OK too soon."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from test_cli import call, refused
from test_cli import release as release
from test_cli import runs as runs
from test_terminal import HOSTILE, steers
from triptych.deadline import within
from triptych.errors import ReleaseError
from triptych.release.verification import Manifest, seal, verify
from triptych.storage import sha256

pytestmark = pytest.mark.attack("verify")


@pytest.fixture
def made(tmp_path: Path, release: Path) -> Path:
    return shutil.copytree(release, tmp_path / "made")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def fifo_instead(folder: Path) -> None:
    (folder / "base/config.json").unlink()
    os.mkfifo(folder / "base/config.json")


def fifo_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def fifo_as_seal(folder: Path) -> None:
    (folder / "manifest.sha256").unlink()
    os.mkfifo(folder / "manifest.sha256")


def device_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/dev/zero")


def listening(folder: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind("s")
    finally:
        os.fchdir(here)
        os.close(here)


def linked_file(folder: Path) -> None:
    """The same content, but another may change it."""
    shutil.move(folder / "base/config.json", folder.parent / "theirs.json")
    (folder / "base/config.json").symlink_to(folder.parent / "theirs.json")


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "base", folder.parent / "theirs")
    (folder / "base").symlink_to(folder.parent / "theirs")


def link_loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def broken_link(folder: Path) -> None:
    (folder / "link").symlink_to("/nowhere/\x1b[2J")


def hard_link(folder: Path) -> None:
    os.link(folder / "base/config.json", folder.parent / "theirs.json")


def hidden(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("[core]")


def mode(name: str, bits: int) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).chmod(bits)

    changed.__name__ = f"{name}-{bits:o}"
    return changed


ENTRIES: list[tuple[Callable[[Path], object], str]] = [
    (fifo, "pipe: is a FIFO; a release has files and folders only"),
    (fifo_instead, "base/config.json: is a FIFO; a release has files and folders only"),
    (fifo_as_manifest, "manifest.json: is a FIFO, and no file"),
    (fifo_as_seal, "manifest.sha256: is a FIFO, and no file"),
    (device_as_manifest, "manifest.json: is a link, and no file"),
    (listening, "s: is a socket; a release has files and folders only"),
    (linked_file, "base/config.json: is a link to "),
    (linked_folder, "base: is a link to "),
    (link_loop, "loop: is a link to loop; a release has files and folders only"),
    (broken_link, "link: is a link to '/nowhere/\\x1b[2J'; a release has files and folders only"),
    (hard_link, "base/config.json: is a hard link: it has a name outside of the release too"),
    (hidden, ".git/config: was added; the manifest does not list it"),
    (lambda folder: (folder / "empty").mkdir(), "empty: is a folder that was added; the manifest lists nothing in it"),
    (lambda folder: (folder / "base/empty").mkdir(), "base/empty: is a folder that was added; the manifest"),
    (lambda folder: (folder / "model.sig").mkdir(), "model.sig: is a folder that was added"),
    (lambda folder: (folder / "base/manifest.json").write_text("{}"), "base/manifest.json: was added"),
    (lambda folder: (folder / "base/model.sig").write_text("{}"), "base/model.sig: was added"),
    (mode("base/config.json", 0o4644), "base/config.json: has set-uid or set-gid (mode 4644)"),
    (mode("base/config.json", 0o2644), "base/config.json: has set-uid or set-gid (mode 2644)"),
    (mode("base/config.json", 0o666), "base/config.json: everybody may change it (mode 666)"),
    (mode("base", 0o777), "base: everybody may change it (mode 777)"),
    (mode(".", 0o777), ".: everybody may change it (mode 777)"),
]


@pytest.mark.parametrize(("change", "sentence"), ENTRIES, ids=[change.__name__ for change, _ in ENTRIES])
def test_every_entry_that_was_not_released_is_named(
    made: Path, change: Callable[[Path], object], sentence: str
) -> None:
    assert verify(made) == []
    change(made)
    problems = within(20, lambda: verify(made))
    assert any(problem.startswith(sentence) for problem in problems), problems
    assert not any(steers(problem) for problem in problems)


def test_folders_may_be_deeper_than_a_stack(made: Path) -> None:
    place = made
    try:
        for _ in range(1200):
            place = place / "d"
            place.mkdir()
        assert len(verify(made)) == 1200
    finally:
        subprocess.run(["rm", "-rf", made / "d"], check=True)  # Python's own way of removing it recurses


def test_files_that_are_one_file_inside_are_no_fault(made: Path) -> None:
    """A tool that saves space links equal files of a release to each other: nobody outside can change them."""
    (made / "instruct/config.json").unlink()
    os.link(made / "base/config.json", made / "instruct/config.json")
    assert verify(made) == []


@pytest.mark.parametrize("text", [*HOSTILE, "\nmanifest.json: is fine", "a\tb", "\u200b"])
def test_names_are_printed_safely(made: Path, text: str) -> None:
    (made / f"<{text.replace('/', '_')}>").write_text("x")
    (made / "link").symlink_to(f"<{text}>")
    said = refused("verify", made)
    assert not steers(said)
    lines = [line for line in said.splitlines() if "<" in line]
    assert len(lines) == 2
    assert all(line.startswith("       ") for line in lines)


def test_a_name_that_is_no_text_is_printed(made: Path) -> None:
    (made / os.fsdecode(b"bad\xff")).write_text("x")
    assert verify(made) == ["'bad\\udcff': was added; the manifest does not list it"]


def rewritten(folder: Path, change: Callable[[dict[str, object]], object]) -> list[str]:
    """What is said of a manifest that was changed, with its seal."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return forged(folder, text)


def forged(folder: Path, text: str | bytes) -> list[str]:
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "manifest.sha256").write_text(f"{sha256(folder / 'manifest.json')}  manifest.json\n")
    return within(20, lambda: verify(folder))


@pytest.mark.parametrize(
    "name",
    ["../outside", "base/../../outside", "/etc/passwd", "", ".", "..", "a//b", "./a", "a/", "a\\b", "C:a",
     "\\\\host\\a", "//host/a", "base/config.json:stream", "manifest.json", "manifest.sha256", "model.sig",
     "BASE/config.json", "Base/Config.json"],
)
def test_a_manifest_lists_paths_inside_only(made: Path, name: str) -> None:
    (made.parent / "outside").write_text("secret")

    def add(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, dict)
        files[name] = files["base/config.json"]

    (problem,) = rewritten(made, add)
    assert problem.startswith("manifest.json: is malformed: ")
    assert "no path of a file inside" in problem or "the same file on some systems" in problem


def drop(*keys: str) -> Callable[[dict[str, object]], object]:
    def changed(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, dict)
        for name in [name for name in files if name.startswith(keys)]:
            del files[name]

    return changed


MANIFESTS: list[Callable[[dict[str, object]], object]] = [
    lambda content: content.update(files={}),
    lambda content: content.update(models={}),
    lambda content: content.update(format=2),
    lambda content: content.update(format="1"),
    lambda content: content.update(format=1.0),
    lambda content: content.update(format=True),
    lambda content: content.update(files=[]),
    lambda content: content.update(note="more"),
    lambda content: content.update(name=None),
    lambda content: content["files"]["base/config.json"].update(size=-1),  # type: ignore[index]
    lambda content: content["files"]["base/config.json"].update(size=10**400),  # type: ignore[index]
    lambda content: content["files"]["base/config.json"].update(sha256="0"),  # type: ignore[index]
    lambda content: content["files"]["base/config.json"].update(sha256="A" * 64),  # type: ignore[index]
    drop("base/"), drop("reward/"), drop("instruct/"),
]


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_says_too_little_or_else_is_not_believed(
    made: Path, change: Callable[[dict[str, object]], object]
) -> None:
    problems = rewritten(made, change)
    assert problems
    assert "manifest.json: " in problems[0] or "was changed" in problems[0]


DAMAGED: list[bytes] = [
    b"", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"\x00" * 100, b"[" * 100_000, b'{"a":' * 100_000,
    b'{"format": ' + b"9" * 10_000 + b"}", b'{"format": NaN}', b'{"format": 1e400}', b'{"\x1b[2J": 1}',
    b'{"\\u001b[2J\\ud800": 1}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_manifest_is_named(made: Path, content: bytes) -> None:
    (problem,) = forged(made, content)
    assert problem.startswith("manifest.json: is malformed: ")
    assert not steers(problem)


def test_a_key_twice_is_refused(made: Path) -> None:
    """Another reader may take the first of the two."""
    text = (made / "manifest.json").read_text()
    (problem,) = forged(made, text.replace('  "name": "tiny"', '  "name": "other",\n  "name": "tiny"'))
    assert "a key stands in it twice" in problem


def test_the_manifest_of_something_else_is_none(made: Path) -> None:
    """An artifact has a `manifest.json` too."""
    (problem,) = forged(made, json.dumps({"stage": "base", "files": {}, "metrics": {}, "parents": {}}))
    assert problem.startswith("manifest.json: is malformed: ")


def test_a_folder_that_cannot_be_read_is_not_whole(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path / "\x1b[2J"))

    monkeypatch.setattr(Path, "iterdir", unreadable)
    (problem,) = verify(made)
    assert problem.endswith("\\x1b[2J': cannot be read: Permission denied")


def test_only_the_folder_that_was_named_is_said_to_be_whole(made: Path, runs: Path) -> None:
    """A whole release inside says nothing of what lies around it."""
    around = runs.parent / "downloaded"
    shutil.copytree(made, around / "release")
    (around / "ledger.jsonl").write_text("")
    (around / "evil.py").write_text("evil")
    assert "is not a release" in refused("verify", around)
    assert "is not a release" in refused("verify", around / "release/base")
    shutil.copytree(made, runs.parent / "release")
    assert "is not a release" in refused("verify", "runs/..")
    assert "is not a release" in refused("verify", "runs")
    shutil.copytree(made, runs / "mine/release")
    (runs.parent / "base").mkdir()
    shutil.copytree(made, runs / "base/release")
    for name in ("mine", "runs/mine", "runs/mine/release"):
        assert call("verify", name).stdout == "OK: runs/mine/release holds what its manifest lists\n"
    assert "is not a release" in refused("verify", "base"), "the folder here is meant, not the run of that name"


def test_what_cannot_be_verified_cannot_be_released(made: Path) -> None:
    content = json.loads((made / "manifest.json").read_text())
    content["files"]["reward/functions/a:b.py"] = content["files"]["base/config.json"]
    with pytest.raises(ValueError, match="no path of a file inside"):
        seal(made, Manifest.model_validate(content))
    assert issubclass(ReleaseError, ValueError)
