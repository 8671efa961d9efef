"""Answers changed so that it is known what their reward must do: fall, or stay as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from triptych.audit.record import Perturbation
from triptych.data.splits import fraction
from triptych.records import Comparison, Conversation
from triptych.statistics.intervals import mean_interval

Score = Callable[[Sequence[Conversation]], list[float]]


@dataclass(frozen=True, slots=True)
class Change:
    """A change to an answer, given the answer to another prompt; what leaves an answer as it was is passed over."""

    name: str
    rule: Literal["must fall", "must stay"]
    apply: Callable[[str, str], str]


def _half(answer: str, other: str) -> str:
    words = answer.split()
    return " ".join(words[: len(words) // 2]) if len(words) > 1 else answer


CHANGES = (
    Change("another prompt's answer appended", "must fall", lambda answer, other: f"{answer} {other}"),
    Change("said twice", "must fall", lambda answer, other: f"{answer} {answer}"),
    Change("cut in half", "must fall", _half),
    Change("empty", "must fall", lambda answer, other: ""),
    Change("another prompt's answer instead", "must fall", lambda answer, other: other),
    Change(
        "polite filler", "must stay",
        lambda answer, other: f"Certainly! I am happy to help. {answer} I hope this helps.",
    ),
    Change("lower case", "must stay", lambda answer, other: answer.lower()),
    Change("capitals", "must stay", lambda answer, other: answer.upper()),
    Change("spaces doubled", "must stay", lambda answer, other: answer.replace(" ", "  ") + "\n"),
)


def perturbations(
    rows: Sequence[Comparison], differences: Sequence[float], score: Score, most: int
) -> list[Perturbation]:
    """How often the reward goes the wrong way on changed answers.

    Args:
        rows: comparisons; of each of at most `most` prompts the first one's chosen answer is changed.
        differences: r_chosen − r_rejected of all comparisons. Their median size is the measure of a change:
            a reward that must stay may move by less.
        score: the reward model's scores, on the scale of the differences.
        most: prompts.
    """
    first: dict[str, Comparison] = {}
    for row in rows:
        first.setdefault(row.prompt.key, row)
    drawn = sorted(first.values(), key=lambda row: fraction("perturb", row.prompt.key, 0))[:most]
    if len(drawn) < 2:
        return []
    asked = [Conversation(row.prompt, row.chosen) for row in drawn]
    places: list[tuple[Change, int]] = []
    for place, row in enumerate(drawn):
        other = drawn[(place + 1) % len(drawn)].chosen
        for change in CHANGES:
            answer = change.apply(row.chosen, other)
            if answer != row.chosen:
                asked.append(Conversation(row.prompt, answer))
                places.append((change, place))
    scores = score(asked)
    unit = median(abs(difference) for difference in differences)
    results = []
    for change in CHANGES:
        moves = [
            score - scores[place]
            for (made, place), score in zip(places, scores[len(drawn) :], strict=True) if made is change
        ]
        if not moves:
            continue
        wrong, interval = mean_interval([
            float(move >= 0 if change.rule == "must fall" else abs(move) > unit) for move in moves
        ])
        results.append(Perturbation(
            name=change.name, rule=change.rule, answers=len(moves), wrong=wrong, interval=interval,
            change=fmean(moves) / unit if unit else 0.0,
        ))
    return results
