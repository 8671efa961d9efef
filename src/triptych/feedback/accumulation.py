"""New comparisons added to all earlier ones, in training and in what is only measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triptych.data.files import read_comparisons, write
from triptych.data.splits import fraction
from triptych.pipeline.stage import Desk
from triptych.records import Comparison

PARTS = ("reward", "heldout")


def accumulate(
    desk: Desk, new: Sequence[Comparison], share: float, earlier: Path | None
) -> dict[str, list[Comparison]]:
    """Writes `reward.jsonl`, `heldout.jsonl` and `heldout_new.jsonl`; all comparisons of a prompt are in one part.

    A prompt that was compared before stays where it was, so that nothing is measured on what was learnt.

    Args:
        share: of the new prompts, held out.
        earlier: the folder of the comparisons before.

    Returns:
        Both parts, old and new.
    """
    before = {name: read_comparisons(earlier / f"{name}.jsonl") if earlier else [] for name in PARTS}
    trained, measured = ({row.prompt.key for row in before[name]} for name in PARTS)

    def held(key: str) -> bool:
        return key in measured or (key not in trained and fraction(key, desk.seed) < share)

    added = {
        "reward": [row for row in new if not held(row.prompt.key)],
        "heldout": [row for row in new if held(row.prompt.key)],
    }
    found = {name: [*before[name], *added[name]] for name in PARTS}
    write(desk.output / "heldout_new.jsonl", added["heldout"])
    for name, rows in found.items():
        write(desk.output / f"{name}.jsonl", rows)
    return found
