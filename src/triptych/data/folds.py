"""Cross-fitting of few comparisons: every one of them is held out once (Chernozhukov et al. 2018, *Double/Debiased
Machine Learning*, section 3; in the field also cross-validation).

Where a held-out part would be too small to show anything, none is set apart. The prompts are dealt to folds instead, a
model is trained without each fold, and is audited on that fold alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from triptych.data.splits import PromptedRecord, form, fraction

FOLDS = 5
"""How many: each model is trained on four fifths of the comparisons, nearly what the model of all has."""
FEW = 40
"""Where fewer prompts than these would be held out, `auto` cross-fits: at 15% that is fewer than about 270 prompts."""

CrossFit = bool | Literal["auto"]
"""Whether comparisons are cross-fitted; "auto" where they are few."""


def fold_of(record: PromptedRecord, seed: int) -> int:
    """The fold of the record's prompt, in its normal form; it does not change when others are added."""
    return int(FOLDS * fraction("fold", form(record), seed))


def cross_fits(setting: CrossFit, heldout: Iterable[PromptedRecord]) -> bool:
    """Whether comparisons are cross-fitted.

    Args:
        heldout: those that would be held out otherwise.
    """
    return len(set(map(form, heldout))) < FEW if setting == "auto" else setting
