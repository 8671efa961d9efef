"""Does a release still hold what its manifest says?

The manifest lists every other file; `manifest.sha256`, in the form that `sha256sum -c` reads, guards the
manifest. This finds damage and careless edits. It is not a signature: who can change the files can change
both, so compare the manifest's digest with one that was published elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from triptych.release.lineage import Role

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
FORMAT = 1


class Part(BaseModel):
    """A part of the manifest; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Part):
    """One file of the release."""

    sha256: str
    size: int


class ParentEntry(Part):
    """A model that another started from."""

    name: str
    digest: str


class DataEntry(Part):
    """A file that a model was trained on."""

    name: str
    sha256: str
    rows: int | None


class ModelEntry(Part):
    """One model: what it was made from and by which stage."""

    parents: list[ParentEntry]
    data: list[DataEntry]
    fingerprint: str


class Manifest(Part):
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


def digest(path: Path) -> str:
    """A file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path) -> dict[str, FileEntry]:
    """Every file below `folder` but the manifest and its seal."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: FileEntry(sha256=digest(path), size=path.stat().st_size)
        for name, path in sorted(paths.items())
        if name not in (MANIFEST, SEAL)
    }


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and, last, the file that guards it."""
    text = json.dumps(manifest.model_dump(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_bytes(text.encode())
    (folder / SEAL).write_bytes(f"{digest(folder / MANIFEST)}  {MANIFEST}\n".encode())


def verify(folder: Path) -> list[str]:
    """What is wrong with a release, one sentence for each file; nothing where it is whole."""
    if not folder.is_dir():
        return [f"{folder}: there is no such folder"]
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST}: is missing, so this is not a release, or not a whole one"]
    problems = _check_seal(folder)
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return [*problems, f"{MANIFEST}: is malformed: {place + ': ' if place else ''}{first['msg']}"]
    if manifest.format != FORMAT:
        return [*problems, f"{MANIFEST}: has format {manifest.format}; this version reads format {FORMAT}"]
    found, expected = listing(folder), manifest.files
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            problems.append(f"{name}: is missing")
        elif name not in expected:
            problems.append(f"{name}: was added; the manifest does not list it")
        elif found[name] != expected[name]:
            problems.append(f"{name}: was changed")
    return problems


def _check_seal(folder: Path) -> list[str]:
    if not (folder / SEAL).is_file():
        return [f"{SEAL}: is missing"]
    if (folder / SEAL).read_bytes() != f"{digest(folder / MANIFEST)}  {MANIFEST}\n".encode():
        return [f"{MANIFEST}: was changed; {SEAL} has another digest"]
    return []
