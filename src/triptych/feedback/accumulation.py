"""New comparisons added to all earlier ones, in training and in what is only measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triptych.data.files import read_comparisons, write
from triptych.data.separation import PROVING, SHARES, require_apart, stored
from triptych.data.splits import Asked, form, fraction
from triptych.errors import RunError
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison

PARTS = ("reward", "heldout")


def accumulate(
    context: StageContext, new: Sequence[Comparison], share: float, data: Path, earlier: Path | None
) -> dict[str, list[Comparison]]:
    """Writes `reward.jsonl`, `heldout.jsonl` and `heldout_new.jsonl`; all comparisons of a prompt are in one part.

    A prompt that was compared or rated before, in its normal form, stays where it was, so that nothing is measured on
    what was learnt.

    Args:
        share: of the new prompts, held out.
        data: the folder of the run's data.
        earlier: the folder of the comparisons before.

    Returns:
        Both parts, old and new.

    Raises:
        RunError: a new prompt is one that test, gate, validation or the gate's judge have for themselves; or all
            comparisons fell into one part.
    """
    before = {name: read_comparisons(earlier / f"{name}.jsonl") if earlier else [] for name in PARTS}
    rated = stored(data, *(f"ratings_{name}" for name in SHARES))
    trained, measured = ({form(row) for row in (*before[name], *rated[f"ratings_{name}"])} for name in PARTS)

    def held(row: Comparison) -> bool:
        asked = form(row)
        if asked in trained or asked in measured:
            return asked in measured
        return fraction("hold out new comparisons", asked, context.seed) < share

    added = {"reward": [row for row in new if not held(row)], "heldout": [row for row in new if held(row)]}
    found = {name: [*before[name], *added[name]] for name in PARTS}
    others: dict[str, Sequence[Asked]] = stored(data, *PROVING, "judge", "judge_heldout")
    require_apart(others | rated | found)
    for name, rows in found.items():
        if not rows:
            raise RunError(
                f"none of {len(new)} comparisons is {'trained on' if name == 'reward' else 'held out for the audit'}: "
                "they are of too few prompts; compare answers to more prompts, or change the held-out share"
            )
    write(context.output / "heldout_new.jsonl", added["heldout"])
    for name, rows in found.items():
        write(context.output / f"{name}.jsonl", rows)
    return found
