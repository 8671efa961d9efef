"""What a stage leaves on disk: a folder with a manifest; without a manifest it does not exist.

A manifest holds nothing that differs between two equal runs: no time stamps, no durations, no absolute paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from triptych.errors import RunError
from triptych.pipeline.result import Result
from triptych.storage import (
    Fields,
    entries,
    irregular,
    make_folder,
    read_object,
    sha256,
    sha256_each,
    sha256_once,
    sync,
    sync_tree,
)

MANIFEST = "manifest.json"

R_co = TypeVar("R_co", bound=Result, covariant=True)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Artifact(Generic[R_co]):
    """A finished stage's folder.

    Attributes:
        name: the stage's name, as "round-1/reward".
        folder: where it is.
        manifest: what it holds and came from.
        digest: sha256 of the manifest's file, which holds every other file's digest; of a part, of its files' digests.
        result: what the stage found.
        beginnings: of the names of the files of a part; None of the whole.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    digest: str
    result: R_co
    beginnings: tuple[str, ...] | None = None

    @staticmethod
    def open(name: str, folder: Path, kind: type[R]) -> Artifact[R] | None:
        """The artifact in `folder`, or None where there is none.

        Args:
            kind: of its result.

        Raises:
            RunError: its manifest is damaged.
        """
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return None
        manifest = read_object(path)
        for field in ("files", "metrics", "parents"):
            if not isinstance(manifest[field], Fields):
                raise RunError(f"{path} is damaged: its {field!r} is no object; {manifest.remedy}")
        try:
            result = kind.model_validate(dict(manifest["metrics"]))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise RunError(
                f"{folder}: {MANIFEST} was changed: its metrics are no {kind.__name__} ({where}: {fault['msg']}); "
                "delete this folder to compute it again"
            ) from None
        return Artifact(name, folder, manifest, sha256(path), result)

    def __truediv__(self, name: str) -> Path:
        """What its folder holds under this name, which is one of the part's."""
        assert self.beginnings is None or name.startswith(self.beginnings), f"{name} is no part of {self.beginnings}"
        return self.folder / name

    def part(self, beginnings: tuple[str, ...]) -> Artifact[R_co]:
        """The files of it whose names begin so: whatever the others hold, it is the same."""
        files = self.manifest.get("files", {})  # a planned one has none
        held = {name: files[name]["sha256"] for name in sorted(files) if name.startswith(beginnings)}
        digest = hashlib.sha256(json.dumps(held).encode()).hexdigest()
        return replace(self, digest=digest, beginnings=beginnings)

    def __fspath__(self) -> str:
        """Where it is."""
        return str(self.folder)

    @property
    def fingerprint(self) -> str:
        """The hash of what the stage was computed from."""
        return str(self.manifest["fingerprint"])

    def damage(self) -> str | None:
        """What differs from what was written, or None; files are hashed, each once in a process."""
        if sha256_once(self.folder / MANIFEST) != self.digest:
            return f"{MANIFEST} was changed while the run went on"
        left: dict[str, Any] = dict(self.manifest["files"])
        for path in entries(self.folder):
            name = path.relative_to(self.folder).as_posix()
            if name == MANIFEST or (path.is_dir() and not path.is_symlink()):
                continue
            if (kind := irregular(path)) or name not in left:
                return f"{name} is {kind}" if kind else f"{name} was added"
            if sha256_once(path) != left.pop(name)["sha256"]:
                return f"{name} was changed"
        return f"{min(left)} is missing" if left else None

    def prove(self) -> None:
        """Sees that it is what was written.

        Raises:
            RunError: it is not.
        """
        if damage := self.damage():
            raise RunError(f"{self.folder}: {damage}; delete this folder to compute it again")


def folder_name(stage: str, fingerprint: str) -> str:
    """What the folder of a stage's artifact is called."""
    return f"{stage.replace('/', '-')}-{fingerprint[:12]}"


def seal(folder: Path, content: Mapping[str, Any]) -> str:
    """Writes the manifest last, and flushes all that is in the folder; the artifact's digest."""
    paths = [path for path in entries(folder) if path.is_file()]
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest, "bytes": path.stat().st_size}
        for path, digest in zip(paths, sha256_each(paths), strict=True)
    }
    text = json.dumps(dict(content) | {"files": files}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_bytes(text.encode())
    sync_tree(folder)
    return hashlib.sha256(text.encode()).hexdigest()


def publish(folder: Path, destination: Path) -> None:
    """Renames a sealed folder into its place, so that it is there whole or not at all."""
    make_folder(destination.parent)
    shutil.rmtree(destination, ignore_errors=True)  # what lies there has no manifest, and so does not exist
    os.replace(folder, destination)
    sync(destination.parent)
