"""The comparisons of a split without one fold, on which a model is trained that is audited on this fold."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder, TrainedOn
from triptych.data.folds import FOLDS, fold_of
from triptych.data.separation import require_apart
from triptych.data.splits import PromptedRecord
from triptych.errors import DataError, Fault
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, alone
from triptych.storage import Folder


class LeaveOut(Config):
    """Which fold is left out."""

    fold: int = Field(ge=0, lt=FOLDS)


class Folded(Result):
    """How many comparisons are left, and how many were left out."""

    comparisons: int
    heldout: int


@alone
def leave_out(
    context: StageContext, config: LeaveOut, comparisons: Folder, ratings: Folder | None = None,
    share: TrainedOn = "train",
) -> Folded:
    """Writes what trains, without the prompts of the fold, and these apart, both in a data folder of their own.

    Args:
        ratings: the folder of the ratings that train along, if any do.

    Raises:
        DataError: all comparisons are in this fold.
    """
    whole: dict[str, Sequence[PromptedRecord]] = {"comparisons": DataFolder(comparisons).comparisons(share).read()}
    if ratings is not None:
        whole["ratings"] = DataFolder(ratings).ratings(share).read_any()
    parts: dict[str, Sequence[PromptedRecord]] = {}
    for kind, rows in whole.items():
        held = [fold_of(row, context.seed) == config.fold for row in rows]
        parts[f"{kind}_train"] = [row for row, out in zip(rows, held, strict=True) if not out]
        parts[f"{kind}_heldout"] = [row for row, out in zip(rows, held, strict=True) if out]
    if not parts["comparisons_train"]:
        what = "too few different prompts to cross-fit: all of them are in one fold; give more of them"
        raise DataError([Fault("comparisons", None, None, what)])
    require_apart(parts)
    for name, rows in parts.items():
        if rows:
            DataFolder(context.output).named(name).write(rows)
    return Folded(comparisons=len(parts["comparisons_train"]), heldout=len(parts["comparisons_heldout"]))
