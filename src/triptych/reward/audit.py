"""The audit: what a reward model is worth, measured on comparisons it was not trained on.

A reward model may train a policy only if it beats the trivial rules (random, longer wins, shorter wins) on
held-out comparisons. Every interval is clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import read_comparisons
from triptych.engine.scoring import RewardModel
from triptych.intervals import mean_interval
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Comparison, Conversation

BINS = 10


class Audit(Config):
    """What a reward model must show before it may train a policy.

    Attributes:
        required: stop the run if the audit fails; if False it goes on and the release records the failure.
        least_margin: by how much the accuracy must exceed the best trivial rule's.
        least_comparisons: fewer held-out comparisons than this prove nothing.
    """

    required: bool = True
    least_margin: float = Field(default=0.0, ge=0, lt=0.5)
    least_comparisons: int = Field(default=30, ge=1)


def audit(
    desk: Desk, config: Audit, reward: Path, comparisons: Path, share: str = "heldout"
) -> Metrics:
    """Measures a reward model on `comparisons/{share}.jsonl`; the metrics are the audit."""
    rows = read_comparisons(comparisons / f"{share}.jsonl")
    scorer = RewardModel(reward / "model")
    scores = scorer.raw([
        Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)
    ])
    return audited(rows, scores[0::2], scores[1::2], config)


def audited(
    rows: Sequence[Comparison], chosen: Sequence[float], rejected: Sequence[float], config: Audit
) -> dict[str, Any]:
    """The audit's numbers from the scores of each comparison's two answers."""
    prompts = [row.prompt.key for row in rows]
    right = [0.5 if a == b else float(a > b) for a, b in zip(chosen, rejected, strict=True)]
    accuracy, interval = mean_interval(right, prompts)
    longer = [_longer(row) for row in rows]
    baselines = {
        "random": 0.5,
        "longer wins": sum(longer) / len(rows),
        "shorter wins": 1 - sum(longer) / len(rows),
    }
    bins, error = reliability([a - b for a, b in zip(chosen, rejected, strict=True)])
    lengths = [len(answer) for row in rows for answer in (row.chosen, row.rejected)]
    scores = [score for pair in zip(chosen, rejected, strict=True) for score in pair]
    best = max(baselines, key=lambda name: baselines[name])
    reasons = []
    if len(rows) < config.least_comparisons:
        reasons.append(
            f"only {len(rows)} held-out comparisons, where {config.least_comparisons} are the least that count"
        )
    if accuracy <= baselines[best] + config.least_margin:
        reasons.append(
            f"accuracy {accuracy:.1%} does not beat '{best}' ({baselines[best]:.1%}): the reward model has learnt "
            "nothing beyond it; give it more comparisons, more epochs or a better starting model"
        )
    return {
        "comparisons": len(rows),
        "accuracy": accuracy,
        "interval": interval,
        "baselines": baselines,
        "by_group": _by_group(rows, right),
        "calibration_error": error,
        "bins": bins,
        "length_correlation": spearman(scores, lengths),
        "when_longer": _mean([r for r, is_longer in zip(right, longer, strict=True) if is_longer == 1.0]),
        "when_shorter": _mean([r for r, is_longer in zip(right, longer, strict=True) if is_longer == 0.0]),
        "passed": not reasons,
        "reasons": reasons,
    }


def reliability(differences: Sequence[float]) -> tuple[list[dict[str, float]], float]:
    """A reliability diagram of σ(r_chosen − r_rejected), and the expected calibration error.

    The model's confidence in its own choice, max(p, 1 − p), against how often that choice was the labelled one
    (Guo et al. 2017, equation 3), in bins of equal width over [0.5, 1].
    """
    confidence = np.array([1 / (1 + math.exp(-min(abs(d), 700.0))) for d in differences])
    right = np.array([0.5 if d == 0 else float(d > 0) for d in differences])
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for place in range(BINS):
        members = places == place
        if members.any():
            mean, accuracy = float(confidence[members].mean()), float(right[members].mean())
            bins.append({"confidence": mean, "accuracy": accuracy, "count": int(members.sum())})
            error += abs(mean - accuracy) * float(members.mean())
    return bins, error


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The rank correlation; 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    numbers = np.asarray(values, dtype=np.float64)
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray = ((ends - counts + ends - 1) / 2)[places]
    return means


def _longer(row: Comparison) -> float:
    """1 where the chosen answer is the longer one in characters, a half where they are as long."""
    return 0.5 if len(row.chosen) == len(row.rejected) else float(len(row.chosen) > len(row.rejected))


def _by_group(rows: Sequence[Comparison], right: Sequence[float]) -> dict[str, Any]:
    """Accuracy by task where prompts have one, else by source."""
    names = [row.prompt.task or row.source or "" for row in rows]
    groups = {}
    for name in sorted(set(names) - {""}):
        members = [place for place, other in enumerate(names) if other == name]
        mean, interval = mean_interval([right[i] for i in members], [rows[i].prompt.key for i in members])
        groups[name] = {"score": mean, "interval": interval, "prompts": len(members)}
    return groups


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
