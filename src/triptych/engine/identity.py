"""What a model in a folder is, exactly: one digest of the files that are read of it, and of its trunk's."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

from triptych.engine.hub import HUB_FILES, downloaded
from triptych.engine.inspection import ADAPTER, adapter_settings, trunk_of
from triptych.errors import ModelError
from triptych.storage import sha256_all


def model_digest(folder: Path) -> str:
    """One digest of what a model is computed by: the files of its folder that are read, and those of its trunk.

    Raises:
        ModelError: it has adapters, and their trunk is not there.
    """
    own = sha256_all(folder, (file for file in folder.iterdir() if any(fnmatch(file.name, name) for name in HUB_FILES)))
    if not (folder / ADAPTER).exists():
        return own
    name = str(adapter_settings(folder)["base_model_name_or_path"])
    try:
        trunk = trunk_of(folder)
    except ModelError:
        taken = Path(name).expanduser() if (Path(name).expanduser() / "config.json").is_file() else downloaded(name)
        if taken is None:
            raise
        trunk = taken
    return hashlib.sha256(f"{own} {model_digest(trunk)}".encode()).hexdigest()


def is_model(path: Path) -> bool:
    """Whether a folder holds a model's weights or adapters, and nothing that is more than one."""
    return any((path / name).is_file() for name in ("config.json", ADAPTER)) and not (path / "reward.json").exists()
