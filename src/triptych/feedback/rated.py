"""The comparisons that ratings imply, so that a reward model trained on ratings alone is audited like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Rating, differ
from triptych.storage import Folder


class RatingWeights(Config):
    """What an attribute is worth.

    Attributes:
        weights: of the attributes; an answer that lacks one of them is compared with none.
    """

    weights: dict[str, float]


class Implied(Result):
    """How many comparisons the ratings imply, in training and held out."""

    labelled_by: str = "ratings"
    comparisons: int
    heldout: int

    @classmethod
    def planned(cls) -> Implied:
        """Some are held out, so that there is an audit."""
        return cls(comparisons=1, heldout=1)


def imply(context: StageContext, config: RatingWeights, data: Folder) -> Implied:
    """Writes comparisons to train on and held out ones, from the ratings of the same splits."""
    files, output = DataFolder(data), DataFolder(context.output)
    train = implied(files.ratings("train").read(), config.weights)
    heldout = implied(files.ratings("heldout").read(), config.weights)
    output.comparisons("train").write(train)
    output.comparisons("heldout").write(heldout)
    if not heldout:
        context.progress.say("ratings: no held-out prompt has two answers of different worth, and so there is no audit")
    return Implied(comparisons=len(train), heldout=len(heldout))


def implied(ratings: Sequence[Rating], weights: Mapping[str, float]) -> list[Comparison]:
    """Every two answers to a prompt whose weighted sums of ratings differ, the higher one chosen."""
    groups: dict[str, list[tuple[float, Rating]]] = {}
    for rating in ratings:
        if weights.keys() <= rating.scores.keys():
            worth = sum(weight * rating.scores[name] for name, weight in weights.items())
            groups.setdefault(rating.prompt.key, []).append((worth, rating))
    comparisons = []
    for group in groups.values():
        for (a, one), (b, other) in combinations(group, 2):
            if a != b and differ(one.response, other.response):
                better, worse = (one, other) if a > b else (other, one)
                comparisons.append(Comparison(one.prompt, better.response, worse.response, source="ratings"))
    return comparisons
