"""A refreshed reward model beside its predecessor: what it still says, and what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.audit.agreement import outcomes
from triptych.audit.length import spearman
from triptych.audit.record import Drift
from triptych.records import Comparison
from triptych.statistics.intervals import mean_interval


def drift(
    rows: Sequence[Comparison], new: Sequence[bool], differences: Sequence[float], before: Sequence[float]
) -> list[Drift]:
    """Agreement and accuracy on old and on new comparisons.

    Args:
        rows: the audit's comparisons.
        new: which of them are of this round.
        differences: r_chosen − r_rejected by the model.
        before: the same by its predecessor.
    """
    drifts = []
    for name, wanted in (("old", False), ("new", True)):
        members = [place for place, is_new in enumerate(new) if is_new == wanted]
        if not members:
            continue
        prompts = [rows[i].prompt.key for i in members]
        now, then = [differences[i] for i in members], [before[i] for i in members]
        right, earlier = outcomes(now, [0.0] * len(now)), outcomes(then, [0.0] * len(then))
        agreement, interval = mean_interval([1 - abs(a - b) for a, b in zip(right, earlier, strict=True)], prompts)
        lead, lead_interval = mean_interval([a - b for a, b in zip(right, earlier, strict=True)], prompts)
        drifts.append(Drift(
            comparisons=name, count=len(members), agreement=agreement, interval=interval,
            accuracy=sum(right) / len(right), predecessor=sum(earlier) / len(earlier),
            lead=lead, lead_interval=lead_interval, correlation=spearman(now, then),
        ))
    return drifts
