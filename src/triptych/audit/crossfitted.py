"""Models that were each trained without one fold of the comparisons, as one scorer, in an audit of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from triptych.audit.words import bag_of_words
from triptych.data.folds import fold_of
from triptych.engine.scoring import Scorer, log_odds
from triptych.records import Comparison, Conversation


@dataclass
class CrossFitted:
    """Scores each answer by the model that has not seen its prompt.

    The models' scores have each a scale of their own. Where all of them say how sure they are, the score is the
    log-odds.

    Attributes:
        models: by the fold that each was trained without.
        seed: of the folds.
    """

    models: Sequence[Scorer]
    seed: int
    name: str = "cross-fitted"
    identity: str = ""

    @cached_property
    def _units(self) -> list[float]:
        units = [log_odds(model) for model in self.models]
        known = [unit for unit in units if unit is not None]
        return known if len(known) == len(units) else []

    @property
    def log_odds(self) -> float | None:
        """See `Preferring`."""
        return 1.0 if self._units else None

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A score for each answer."""
        scores = [0.0] * len(conversations)
        folds = [fold_of(row, self.seed) for row in conversations]
        for fold, model in enumerate(self.models):
            places = [place for place, own in enumerate(folds) if own == fold]
            unit = self._units[fold] if self._units else 1.0
            for place, score in zip(places, model.score([conversations[place] for place in places]), strict=True):
                scores[place] = unit * score
        return scores


def cross_fitted_words(rows: Sequence[Comparison], seed: int) -> list[float]:
    """The outcomes of a bag of words on each row, learnt from the other folds' rows."""
    leads = [0.5] * len(rows)
    folds = [fold_of(row, seed) for row in rows]
    for fold in set(folds):
        places = [place for place, own in enumerate(folds) if own == fold]
        training = [row for row, own in zip(rows, folds, strict=True) if own != fold]
        if training:
            for place, value in zip(places, bag_of_words(training, [rows[place] for place in places]), strict=True):
                leads[place] = value
    return leads
