"""`make smollm2`: runs recipes/smollm2.yaml with the model and the data that this machine has or can fetch.

What the recipe names on the network is looked for on this machine first. What cannot be had is told, with the file to
bring; the run goes on without what it does not need. Whatever stands behind the command is given to `triptych run`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.public import ROOT, SETS, PublicSet, find_model
from triptych.data.source import CHOICE
from triptych.errors import DataError, TriptychError

RECIPE = ROOT / "recipes" / "smollm2.yaml"
OPTIONAL = ("base.text",)
"""Lists that may become empty; of every other one something must be left."""


def main() -> None:
    """Finds everything, then runs the recipe."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    lacking: list[str] = []
    overrides: list[str] = []
    try:
        overrides.append(f"base.from={_from(RECIPE.parent, find_model())}")
    except TriptychError as error:
        lacking.append(str(error))
    overrides += located(recipe, RECIPE.parent, lacking)
    if lacking:
        sys.exit("\n".join(("make smollm2 cannot run without:", *lacking)))
    command = ["triptych", "run", str(RECIPE.relative_to(ROOT))]
    command += [word for override in overrides for word in ("--set", override)] + sys.argv[1:]
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", *command])


def located(recipe: dict[str, Any], folder: Path, lacking: list[str]) -> list[str]:
    """The overrides that name every set where it is.

    Args:
        recipe: as it stands in the file.
        folder: the recipe's.
        lacking: gets what cannot be had and the run cannot do without.
    """
    overrides = []
    for place, entries in lists_in(recipe):
        kept = []
        faults = []
        for entry in entries:
            try:
                kept.append(_entry(entry, folder))
            except DataError as error:
                faults.append(str(error))
        if faults and not kept and place not in OPTIONAL:
            lacking += faults
            continue
        for fault in faults:
            print(f"{place}: goes on without {fault}", file=sys.stderr, flush=True)
        if kept != entries:
            overrides.append(f"{place}={json.dumps(kept)}")
    return overrides


def lists_in(settings: Any, place: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The lists of a recipe that name a public set, each with its place."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from lists_in(value, f"{place}.{name}".lstrip("."))
    elif isinstance(settings, list) and any(map(public_set, settings)):
        yield place, settings


def public_set(entry: Any) -> PublicSet | None:
    """The set that an entry of a recipe names."""
    entry = entry if isinstance(entry, dict) else {"file": entry}
    return next((known for known in SETS.values() if known.remote.file == entry.get("file")
                 and known.remote.data_dir == entry.get("data_dir")), None)


def _entry(entry: Any, folder: Path) -> Any:
    """The entry with the file of the set where this machine has one."""
    known = public_set(entry)
    source = known.find() if known is not None else None
    if known is None or source is None or source == known.remote:
        return entry
    rest = entry if isinstance(entry, dict) else {}
    return {name: value for name, value in rest.items() if name not in CHOICE} | {"file": _from(folder, source.file)}


def _from(folder: Path, place: str) -> str:
    """A path as the recipe in the folder names it; a name on the Hub as it is."""
    return os.path.relpath(place, folder) if Path(place).exists() else place


if __name__ == "__main__":
    main()
