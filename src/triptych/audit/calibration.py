"""Whether a reward model is as often right as it is sure, and what a temperature would mend.

Everything here takes differences in log-odds; of scores that are none there is nothing to measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.audit.record import Bin, Calibration
from triptych.data.splits import fraction
from triptych.statistics.logistic import fit, sigmoid

BINS = 10
SIMULATIONS = 200
LEAST, MOST = 1e-3, 1e3
"""The ends of the range of 1/T, in units of 1 by the spread of the differences."""
TINY = 1e-12
"""A ridge that moves nothing."""

Numbers = NDArray[np.float64]


def reliability(differences: Sequence[float]) -> tuple[list[Bin], float]:
    """A reliability diagram of σ(r_chosen − r_rejected), and the expected calibration error.

    The model's confidence in its own choice, max(p, 1 − p), against how often that choice was the labelled one
    (Guo et al. 2017, equation 3), in bins of equal width over [0.5, 1].
    """
    confidence = _confidence(differences)
    numbers = np.asarray(differences, dtype=np.float64)
    return _binned(confidence, np.where(numbers == 0, 0.5, numbers > 0))


def temperature(differences: Sequence[float]) -> float:
    """T that minimises the mean of −log σ(difference / T) (Guo et al. 2017, section 4.2), within [1e-3, 1e3] spreads.

    A logistic regression on the difference alone, of the weight 1/T. Where the model is never wrong, or no better than
    chance, there is no minimum, and the end of the range is returned.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    spread = float(np.sqrt(np.mean(numbers**2))) or 1.0
    scaled = numbers / spread
    if scaled.sum() <= 0:
        sharpness = LEAST
    elif scaled.min() >= 0:
        sharpness = MOST
    else:
        sharpness = float(np.clip(fit(scaled[:, None], ridge=TINY)[0], LEAST, MOST))
    return spread / sharpness


def calibration(differences: Sequence[float], prompts: Sequence[str]) -> Calibration | None:
    """The temperature fitted on one half of the prompts and what it does on the other; None where a half is empty."""
    halves: tuple[list[float], list[float]] = ([], [])
    for difference, prompt in zip(differences, prompts, strict=True):
        halves[fraction("calibrate", prompt, 0) < 0.5].append(difference)
    fitted, measured = halves
    if not fitted or not measured:
        return None
    mending = temperature(fitted)
    return Calibration(
        temperature=mending, error=reliability(measured)[1],
        mended_error=reliability([difference / mending for difference in measured])[1],
        chance_error=chance_error(measured),
    )


def chance_error(differences: Sequence[float]) -> float:
    """The mean calibration error where every label is drawn with the probability that the model gives it."""
    confidence = _confidence(differences)
    random = np.random.default_rng(0)
    drawn = [_binned(confidence, random.random(len(confidence)) < confidence)[1] for _ in range(SIMULATIONS)]
    return float(np.mean(drawn))


def _binned(confidence: Numbers, right: Numbers | NDArray[np.bool_]) -> tuple[list[Bin], float]:
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for place in range(BINS):
        members = places == place
        if members.any():
            mean, accuracy = float(confidence[members].mean()), float(right[members].mean())
            bins.append(Bin(confidence=mean, accuracy=accuracy, count=int(members.sum())))
            error += abs(mean - accuracy) * float(members.mean())
    return bins, error


def _confidence(differences: Sequence[float]) -> Numbers:
    return sigmoid(np.abs(np.asarray(differences, dtype=np.float64)))
