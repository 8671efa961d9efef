"""Every kind of reward behind one interface: what each leaves on disk, opened as a scorer.

A trained kind leaves `model/`, a plain Hugging Face folder. One that is not trained leaves `reward.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.engine.scoring import RewardModel, Scorer
from triptych.errors import RewardError

DESCRIPTION = "reward.json"


def open_reward(folder: Path, *, identity: str = "", name: str | None = None) -> Scorer:
    """The reward in an artifact's folder, or in a released one, as a scorer.

    A folder without `reward.json` is a model: any `AutoModelForSequenceClassification` with its tokenizer.

    Args:
        folder: an artifact of this stage, a release's `reward` folder, or a model folder.
        identity: what it is, exactly, for the fingerprint of what it scores.
        name: for the reader of a report; by default the kind's.

    Raises:
        RewardError: the folder holds no reward that is known here.
    """
    if not (folder / DESCRIPTION).is_file():
        model = folder / "model" if (folder / "model").is_dir() else folder
        return RewardModel(model, name=name or "reward model", identity=identity)
    raise RewardError(f"{folder / DESCRIPTION}: its kind {described(folder)['kind']!r} is not known")


def described(folder: Path) -> dict[str, Any]:
    """What `reward.json` says.

    Raises:
        RewardError: it cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise RewardError(f"{path}: must be an object with a kind")
    return content
