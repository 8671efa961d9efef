"""What a stage leaves on disk: a folder with a manifest; without a manifest it does not exist.

A manifest holds nothing that differs between two equal runs: no time stamps, no durations, no absolute paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from triptych.errors import RunError
from triptych.storage import sha256, sync

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder.

    Attributes:
        name: the stage's name, as "round-1/reward".
        folder: where it is.
        manifest: what it holds and came from.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, name: str, folder: Path) -> Artifact | None:
        """The artifact in `folder`, or None where there is none."""
        path = folder / MANIFEST
        if not path.exists():
            return None
        try:
            return cls(name, folder, json.loads(path.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise RunError(f"{path} is damaged ({error}); delete the folder {folder} to compute it again") from None

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest, which holds every file's digest."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """The hash of what the stage was computed from."""
        return str(self.manifest["fingerprint"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the stage measured."""
        metrics: Mapping[str, Any] = self.manifest["metrics"]
        return metrics

    def damage(self) -> str | None:
        """What is wrong with the files, or None: sizes only, which is quick; digests are for `verify`."""
        for name, entry in self.manifest["files"].items():
            path = self.folder / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes where {entry['bytes']} were written"
        return None


def seal(folder: Path, destination: Path, content: Mapping[str, Any]) -> None:
    """Makes an artifact of `folder`: files flushed, manifest written last, renamed into place."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"sha256": sha256(path), "bytes": path.stat().st_size}
            sync(path)
    manifest = dict(content) | {"files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(destination, ignore_errors=True)  # what lies there has no manifest, and so does not exist
    os.rename(folder, destination)
    sync(destination.parent)
