"""One artifact made of others: their files are linked, not copied, where the disk allows it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LEFT = ("manifest.json", "curve.jsonl")
"""What speaks of an artifact as such."""


def linked(source: Path, target: Path) -> None:
    """Puts the files of a finished artifact's folder into another that is being made."""

    def link(file: str, place: str) -> None:
        try:
            os.link(file, place)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(file, place)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(*LEFT))
