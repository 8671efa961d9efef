"""New comparisons added to all earlier ones, in training and in what is only measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.data.folder import DataFolder
from triptych.data.folds import CrossFit, cross_fits
from triptych.data.separation import PROVING, RATED, require_apart, stored
from triptych.data.splits import form, fraction, taught_forms
from triptych.errors import RunError
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison
from triptych.storage import Folder


@dataclass(frozen=True, slots=True)
class Accumulated:
    """All comparisons, old and new.

    Attributes:
        taught: how many new ones have the prompt of a demonstration, and so train.
    """

    train: list[Comparison]
    heldout: list[Comparison]
    taught: int


def accumulate(
    context: StageContext, new: Sequence[Comparison], share: float, data: Folder, earlier: Folder | None,
    thumbs: Folder | None = None, cross_fit: CrossFit = False,
) -> Accumulated:
    """Writes the comparisons to train on, those held out, and the new ones of these; a prompt's are in one part.

    A prompt that was compared or rated before, in its normal form, stays where it was, and one that has thumbs or a
    demonstration is trained on, so that nothing is measured on what was learnt. Where all of the first comparisons have
    demonstrations, they are cross-fitted, and the reward models start from the Base; see `separation.exposed`.

    Args:
        share: of the new prompts, held out.
        data: the folder of the run's data.
        earlier: the folder of the comparisons before.
        thumbs: the folder of all thumbs; by default those of the run's data.
        cross_fit: whether none is held out, see `triptych.data.folds`; those that go on from cross-fitted ones are.

    Raises:
        RunError: a new prompt is one that test, gate, validation or the gate's judge have for themselves; or all
            comparisons fell into one part.
    """
    files = DataFolder(earlier) if earlier else None
    before_train = files.comparisons("train").read() if files else []
    before_heldout = files.comparisons("heldout").read_any() if files else []
    rated, liked = stored(data, *RATED), stored(thumbs or data, "thumbs")
    demonstrated = stored(data, "demonstrations")
    shown = set[str]().union(*map(taught_forms, demonstrated["demonstrations"]))
    trained = shown | {form(row) for row in (*before_train, *rated["ratings_train"], *liked["thumbs"])}
    measured = {form(row) for row in (*before_heldout, *rated["ratings_heldout"])}

    def held(row: Comparison) -> bool:
        asked = form(row)
        if asked in trained or asked in measured:
            return asked in measured  # no thumb and no demonstration has such a prompt
        return fraction("hold out new comparisons", asked, context.seed) < share

    train = [*before_train, *(row for row in new if not held(row))]
    added = [row for row in new if held(row)]
    heldout = [*before_heldout, *added]
    taught = [row for row in new if form(row) in shown]
    none_free = 0 < len(taught) == len(new)
    crossfitted = files.crossfitted("train") if files else none_free or cross_fits(cross_fit, added)
    if taught:
        context.progress.say(
            f"feedback: {len(taught):,} of {len(new):,} new comparisons have the prompt of a demonstration, and "
            + ("so they are cross-fitted, and the reward models start from the Base" if crossfitted
               else "train the reward model: none of them is held out")
        )
    if crossfitted:
        train, added, heldout = [*before_train, *new], [], []
    parts = {"comparisons_train": train, "comparisons_heldout": heldout}
    kept = stored(data, *PROVING, "comparisons_judge", "comparisons_judge_heldout")
    require_apart({**kept, **rated, **liked, **demonstrated, **parts})
    for rows, what in ((train, "trained on"), (heldout, "held out for the audit")):
        if not rows and not (crossfitted and train):
            raise RunError(
                f"none of {len(new)} comparisons is {what}: they are of too few prompts; compare answers to more "
                "prompts, or change the held-out share"
            )
    output = DataFolder(context.output)
    output.new_comparisons.write(added)
    output.comparisons("train").write(train)
    output.comparisons("heldout").write(heldout)
    return Accumulated(train, heldout, len(taught))
