"""Does a release hold what its manifest says, and nothing else?

The manifest lists every other file; `manifest.sha256`, in the form that `sha256sum -c` reads, guards the manifest. This
finds damage and careless edits. Who can change the files can change both: `signature.py` proves who made them.
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triptych.configuration import reason
from triptych.display import named, one_line
from triptych.errors import ReleaseError
from triptych.release.lineage import REQUIRED, ROLES, Role
from triptych.storage import entries, irregular, open_regular, sha256

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
SIGNATURE = "model.sig"
OWN = (MANIFEST, SEAL, SIGNATURE)
"""What the manifest does not list: it would have to hold its own digest."""

FORMAT = 1
LARGEST = 2**26
"""Bytes of a manifest or a signature, at most."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ManifestModel(BaseModel):
    """A part of the manifest; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(ManifestModel):
    """One file of the release."""

    sha256: Digest
    size: int = Field(ge=0)


class ParentEntry(ManifestModel):
    """A model that another started from."""

    name: str
    digest: str


class DataEntry(ManifestModel):
    """A file that a model was trained on."""

    name: str
    sha256: str
    rows: int | None


class ModelEntry(ManifestModel):
    """One model: what it was made from and by which stage."""

    parents: list[ParentEntry]
    data: list[DataEntry]
    fingerprint: str


class Manifest(ManifestModel):
    """`manifest.json`: no time stamps and no paths of a machine, so that equal releases are equal bytes.

    Attributes:
        recipe: digest of the resolved recipe.
        files: every file but the manifest and its seal, by its path inside the release.
    """

    format: int
    name: str
    version: str
    license: str
    recipe: str
    models: dict[Role, ModelEntry]
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        if absent := [role for role in {*REQUIRED, *self.models} if role not in self.models or not self._has(role)]:
            raise ValueError(f"lists no file of {', '.join(sorted(absent))}")
        if nameless := [role for role in ROLES if role not in self.models and self._has(role)]:
            raise ValueError(f"lists files of {', '.join(nameless)}, and no such model")
        alike: dict[str, str] = {}
        for name in self.files:
            if name in OWN or not _is_inside(name):
                raise ValueError(f"{named(name)} is no path of a file inside the release")
            # Where a file system tells no capitals apart, or writes accents another way, one would hide the other.
            other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if other != name:
                raise ValueError(f"{named(other)} and {named(name)} are the same file on some systems")
        return self

    @property
    def roles(self) -> tuple[Role, ...]:
        """The models that there are."""
        return tuple(role for role in ROLES if role in self.models)

    def _has(self, role: Role) -> bool:
        return any(name.startswith(f"{role}/") for name in self.files)

    @property
    def text(self) -> str:
        """The one way in which it is written."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def listing(folder: Path) -> dict[str, FileEntry]:
    """Every file below `folder` but the manifest, its seal and the signature."""
    names = {path.relative_to(folder).as_posix(): path for path in entries(folder) if path.is_file()}
    return {
        name: FileEntry(sha256=sha256(path), size=path.stat().st_size)
        for name, path in sorted(names.items()) if name not in OWN
    }


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and, last, the file that guards it."""
    (folder / MANIFEST).write_bytes(manifest.text.encode())
    (folder / SEAL).write_bytes(_seal_of(folder))


def verify(folder: Path) -> list[str]:
    """One sentence for each entry that is not as it was released; nothing where the release is whole.

    Only regular files are opened, and of those only the ones that the manifest lists.
    """
    if not folder.is_dir():
        return [f"{named(folder)}: there is no such folder"]
    problems = []
    try:
        problems += _check_seal(folder)
        problems += [sentence for _, sentence in sorted(_differences(folder, read_manifest(folder)))]
    except ReleaseError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{named(error.filename or folder)}: cannot be read: {error.strerror}")
    return problems


def _seal_of(folder: Path) -> bytes:
    return f"{sha256(folder / MANIFEST)}  {MANIFEST}\n".encode()


def _check_seal(folder: Path) -> list[str]:
    for name in (MANIFEST, SEAL):
        path = folder / name
        if not os.path.lexists(path):
            what = "is missing, so this is not a release, or not a whole one" if name == MANIFEST else "is missing"
            raise ReleaseError(f"{name}: {what}")
        if (kind := irregular(path)) or path.is_dir():
            raise ReleaseError(f"{name}: is {kind or 'a folder'}, and no file")
        if path.stat().st_size > LARGEST:
            raise ReleaseError(f"{name}: is larger than {LARGEST >> 20} MiB")
    with open_regular(folder / SEAL) as file:
        holds = file.read(LARGEST) == _seal_of(folder)
    return [] if holds else [f"{MANIFEST}: was changed; {SEAL} has another digest"]


def read_manifest(folder: Path) -> Manifest:
    """The manifest.

    Raises:
        ReleaseError: it is none.
    """
    with open_regular(folder / MANIFEST) as file:
        content = file.read(LARGEST)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(one_line(part) for part in first["loc"])
        fault = f"{place + ': ' if place else ''}{one_line(reason(first))}"
        raise ReleaseError(f"{MANIFEST}: is malformed: {fault}") from None
    if manifest.format != FORMAT:
        raise ReleaseError(f"{MANIFEST}: has format {manifest.format}; this version reads format {FORMAT}")
    if content != manifest.text.encode():
        raise ReleaseError(f"{MANIFEST}: is malformed: a key stands in it twice, or in another order than was released")
    return manifest


def _differences(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each entry that is not as it was released: its name, and a sentence."""
    files = manifest.files
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    yield from _loose(folder, ".")
    met, inside, linked = set(), Counter[tuple[int, int]](), []
    for path in entries(folder):
        name = path.relative_to(folder).as_posix()
        met.add(name)
        if what := irregular(path):
            target = f" to {named(os.readlink(path))}" if path.is_symlink() else ""
            yield name, f"{named(name)}: is {what}{target}; a release has files and folders only"
            continue
        yield from _loose(path, name)
        if path.is_dir():
            if name not in folders:
                yield name, f"{named(name)}: is a folder that was added; the manifest lists nothing in it"
            continue
        status = path.stat()
        inside[status.st_dev, status.st_ino] += 1
        linked += [(name, status)] if status.st_nlink > 1 else []
        if name not in files and name not in OWN:
            yield name, f"{named(name)}: was added; the manifest does not list it"
        elif name in files and (status.st_size != files[name].size or sha256(path) != files[name].sha256):
            yield name, f"{named(name)}: was changed"
    for name, status in linked:
        if status.st_nlink > inside[status.st_dev, status.st_ino]:
            yield name, f"{named(name)}: is a hard link: it has a name outside of the release too"
    for name in files.keys() - met:
        yield name, f"{named(name)}: is missing"


def _loose(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """A mode by which others may change a file or folder, or by which a file runs as somebody else."""
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH:
        yield name, f"{named(name)}: everybody may change it (mode {stat.S_IMODE(mode):o})"
    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(mode):  # a folder inherits set-gid
        yield name, f"{named(name)}: has set-uid or set-gid (mode {stat.S_IMODE(mode):o})"


def _is_inside(name: str) -> bool:
    """Whether it is a path below a folder, written in the one way, on every system."""
    return ":" not in name and all(  # a drive, or a second stream of a file
        path.as_posix() == name and path.parts and not path.root and ".." not in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )
