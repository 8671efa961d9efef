"""A reward model of several attributes, trained on ratings; comparisons may train it as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from triptych.data.folder import HELD_OUT, AuditedOn, DataFolder, RecordFile, TrainedOn
from triptych.data.splits import decontaminate, form, fraction
from triptych.engine.scoring import Output, Scale
from triptych.errors import RewardError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Comparison, Conversation, Rating
from triptych.reward.kind import Material
from triptych.reward.making import Making, given
from triptych.reward.training import RewardTrained, RewardTraining, answers_of, fit_model
from triptych.statistics.logistic import fit
from triptych.storage import Folder

PREFERENCE = "preference"
"""The output that comparisons train."""

FITTED_ON = 0.2
"""The share of the comparisons' prompts that fits the weights and trains nothing."""

LEAST_FITTED = 20
"""Fewer comparisons than this fit no weights."""


class RegressionReward(RewardTraining):
    """Several attributes at once, as in HelpSteer2 and Nemotron-4 340B; the reward is their weighted sum.

    The head has one output for each attribute that is rated, and where there are comparisons one more, "preference",
    which these train as in `pairwise`.

    Attributes:
        weights: of the attributes, in the units of their ratings, and of "preference"; what is not named has none.
            Without it they are fitted on a fifth of the comparisons' prompts, which then train nothing else.
        comparison_weight: of the comparisons' loss beside the ratings'; with 0 comparisons train nothing.
    """

    needs: ClassVar[frozenset[Material]] = frozenset({"ratings"})
    kind: Literal["regression"] = "regression"
    weights: dict[str, float] | None = None
    comparison_weight: float = Field(default=1.0, ge=0)

    def make(self, making: Making) -> Artifact[Result]:
        """A training on the ratings, and on the round's comparisons where there are any."""
        return making.runner.run(
            making.name, train_regression, self, start=making.start(self.start),
            ratings=given(making.materials.data), comparisons=making.materials.comparisons,
        )

    @property
    def implying(self) -> dict[str, float]:
        """The weights that its settings give the attributes."""
        return self.weights or {}


class RegressionTrained(RewardTrained):
    """What a reward model of several attributes was trained on.

    Attributes:
        weights: of its outputs.
        weights_fitted_on: comparisons; 0 where the recipe gives the weights.
    """

    weights: dict[str, float]
    weights_fitted_on: int


@reads(ratings=("ratings",), comparisons=("comparisons",))
def train_regression(
    context: StageContext, config: RegressionReward, start: Folder, ratings: Folder, comparisons: Folder | None = None,
    share: TrainedOn = "train",
) -> RegressionTrained:
    """Trains on the ratings of a split and, where there are any, its comparisons.

    Raises:
        RewardError: weights name what nobody rated, or cannot be fitted.
    """
    rated = _ratings(ratings, share).read()
    files = DataFolder(comparisons) if comparisons else None
    compared = files.comparisons(share).read() if files else []
    fitting = [] if config.weights else [row for row in compared if _fits_weights(row, context.seed)]
    if not config.weights and len(fitting) < LEAST_FITTED:
        raise RewardError(
            f"{len(fitting)} comparisons are too few to fit the attributes' weights, {LEAST_FITTED} are the least: "
            "give more comparisons, or name the weights in reward.weights"
        )
    # What fits the weights must be new to the model: its prompts' other comparisons and ratings would not be.
    compared = decontaminate(compared, fitting)[0] if config.comparison_weight else []
    rated = decontaminate(rated, fitting)[0]
    parts = standardised(rated)
    names = [*parts, *([PREFERENCE] if compared else [])]
    if unknown := sorted(set(config.weights or {}) - set(names)):
        raise RewardError(f"reward.weights names {', '.join(unknown)}; what is rated is {', '.join(names)}")

    trained = fit_model(
        context, config, start, compared, rated, list(parts.values()), names, context.seed, config.comparison_weight
    )
    outputs = parts | ({PREFERENCE: Output()} if compared else {})
    if config.weights:
        weights: Mapping[str, float] = config.weights
    else:
        scorer = trained.scorer(Scale(outputs))
        answers = [Conversation(row.prompt, text) for row in fitting for text in (row.chosen, row.rejected)]
        predicted = scorer.outputs(answers)
        weights = {
            name: weight / outputs[name].deviation
            for name, weight in zip(names, fitted_weights(predicted[0::2] - predicted[1::2]), strict=True)
        }
    outputs = {name: dataclasses.replace(part, weight=weights.get(name, 0.0)) for name, part in outputs.items()}
    heldout = files.comparisons(HELD_OUT[share]).read_any() if files else []
    # Weights that were fitted are those of a logistic regression on labels; others are in units of ratings.
    scale = Scale(outputs, log_odds=not config.weights)
    measured = answers_of(heldout, DataFolder(ratings).ratings(HELD_OUT[share]).read_any())
    numbers = trained.finish(context, scale, measured or answers_of(compared, rated))
    return RegressionTrained(
        weights={name: part.weight for name, part in outputs.items()}, weights_fitted_on=len(fitting),
        parameters=numbers.parameters, comparisons=numbers.comparisons, ratings=numbers.ratings,
        dropped=numbers.dropped, truncated=numbers.truncated, epochs=numbers.epochs,
        raw_mean=numbers.raw_mean, raw_deviation=numbers.raw_deviation,
    )


def standardised(ratings: Sequence[Rating]) -> dict[str, Output]:
    """Every rated attribute, by name, with the mean and deviation of its ratings."""
    parts = {}
    for name in sorted({name for rating in ratings for name in rating.scores}):
        values = np.array([rating.scores[name] for rating in ratings if name in rating.scores])
        parts[name] = Output(mean=float(values.mean()), deviation=float(values.std()) or 1.0)
    return parts


def fitted_weights(differences: Tensor, ridge: float = 1.0) -> list[float]:
    """The weights of a comparison's logistic regression on the differences of its answers' outputs.

    Args:
        differences: `[N, K]`, chosen minus rejected.
    """
    weights: list[float] = fit(differences.double().numpy(), ridge=ridge).tolist()
    return weights


def _fits_weights(row: Comparison, seed: int) -> bool:
    return fraction("fit weights", form(row), seed) < FITTED_ON


def _ratings(folder: Folder, split: TrainedOn | AuditedOn) -> RecordFile[Rating]:
    file = DataFolder(folder).ratings(split)
    if not file.exists:
        raise RewardError("reward.kind is regression, which needs ratings: name files in `feedback: [{ratings: ...}]`")
    return file
