"""What an answer's length has to do with its reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from triptych.audit.record import AuditRecord, Interval, LengthBias
from triptych.records import Comparison
from triptych.statistics.intervals import contrast_interval, mean_interval
from triptych.statistics.logistic import Numbers, curvature, fit, sigmoid

RIDGE = 1e-2
"""Keeps the coefficients finite where the reward orders every comparison rightly."""
LEAST_GAP = 0.1
"""A gap in accuracy between longer and shorter preferred answers below this is no leaning worth a word."""


def length_bias(rows: Sequence[Comparison], right: Sequence[float], differences: Sequence[float]) -> LengthBias | None:
    """What length has to do with the reward; None where length, or the reward, never differs."""
    prompts = [row.prompt.key for row in rows]
    extra = np.array([len(row.chosen) - len(row.rejected) for row in rows], dtype=np.float64)
    fitted = length_coefficient(differences, extra.tolist(), prompts)
    if fitted is None:
        return None
    longer, shorter = (extra > 0).astype(float), (extra < 0).astype(float)
    gap = contrast_interval(right, longer.tolist(), shorter.tolist(), prompts)
    reward, coefficient, interval = fitted
    apart = np.flatnonzero(extra)
    model = np.where(extra > 0, right, 1 - np.asarray(right))[apart]
    excess = mean_interval((model - longer[apart]).tolist(), [prompts[place] for place in apart])
    return LengthBias(
        prefers_longer=float(model.mean()), labels_longer=float(longer[apart].mean()),
        excess=excess[0], excess_interval=excess[1],
        gap=gap[0] if gap else None, gap_interval=gap[1] if gap else None,
        coefficient=coefficient, interval=interval, reward_coefficient=reward,
    )


def leaning(bias: LengthBias) -> Literal["longer", "shorter"] | None:
    """Which answers the reward leans towards beyond what quality and noisy labels explain.

    Neither measure accuses alone. Labels with errors make a gap in accuracy for a perfect model, where the truth
    prefers longer answers in most comparisons: most of the labels for shorter ones are errors there. An honest model
    that is unsure has no gap but a coefficient, for length then tells of the truth what the reward does not. In the
    terms of Kleinberg et al. (2016) these are the two conditions, separation and sufficiency, that no judgement
    with errors meets at once where the sides differ in number. A reward that takes length for quality breaks both in
    one direction: too often right where the longer is preferred, and with longer answers preferred less often than
    its choice says.
    """
    if bias.gap is None or bias.gap_interval is None or abs(bias.gap) <= LEAST_GAP:
        return None
    if bias.gap_interval[0] > 0 and bias.interval[1] < 0:
        return "longer"
    return "shorter" if bias.gap_interval[1] < 0 and bias.interval[0] > 0 else None


def blind_side(record: AuditRecord) -> tuple[Literal["longer", "shorter"], float] | None:
    """The answers whose preference it gets right less often than a coin, and than the others'; and how often."""
    if record.length is None or record.length.gap_interval is None:
        return None
    low, high = record.length.gap_interval
    if high < 0 and record.when_longer is not None and record.when_longer < 0.5:
        return "longer", record.when_longer
    if low > 0 and record.when_shorter is not None and record.when_shorter < 0.5:
        return "shorter", record.when_shorter
    return None


def length_coefficient(
    rewards: Sequence[float], lengths: Sequence[float], prompts: Sequence[str]
) -> tuple[float, float, Interval] | None:
    """The coefficients a and b in P(chosen) = σ(c sign Δr + a Δr/s_r + b Δl/s_l), and the interval of b.

    Δ is chosen minus rejected and s its root mean square, so that both are without unit; there is no intercept
    because a comparison has no order. With the model's choice, sign Δr, beside the size of the difference the formula
    holds with b = 0 for a perfect reward, whether labels are drawn from σ(Δr) or are flipped at one rate whatever the
    size. The interval is b ± 1.96 standard errors by the sandwich estimator over prompts
    (Liang and Zeger 1986). None where either never differs.
    """
    features = np.stack([np.sign(rewards), np.asarray(rewards, dtype=np.float64), np.asarray(lengths)], axis=1)
    spread = np.sqrt((features**2).mean(axis=0))
    if not (spread > 0).all():
        return None
    features = features / spread
    weights = fit(features, ridge=RIDGE)
    names = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    scores = np.zeros((len(names), 3))
    np.add.at(scores, [names[prompt] for prompt in prompts], features * sigmoid(-features @ weights)[:, None])
    bread = np.linalg.inv(curvature(weights, features, RIDGE))
    meat = scores.T @ scores * len(names) / max(1, len(names) - 1)
    error = float(np.sqrt((bread @ meat @ bread)[2, 2]))
    reward, coefficient = float(weights[1]), float(weights[2])
    return reward, coefficient, (coefficient - 1.96 * error, coefficient + 1.96 * error)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The rank correlation; 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> Numbers:
    """Ranks from 0, ties sharing their mean."""
    numbers = np.asarray(values, dtype=np.float64)
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Numbers = ((ends - counts + ends - 1) / 2)[places]
    return means
