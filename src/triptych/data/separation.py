"""What is measured on was not learnt: the parts of a run's data that may not share a prompt, and whether they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from triptych.data.folder import DataFolder, TrainedOn
from triptych.data.splits import PromptedRecord, decontaminate, form, taught_forms
from triptych.errors import RunError
from triptych.storage import Folder

COMPARED = ("comparisons_train", "comparisons_heldout", "comparisons_judge", "comparisons_judge_heldout")
"""What trains and what measures the reward model, and the gate's own one."""
RATED = ("ratings_train", "ratings_heldout", "ratings_judge", "ratings_judge_heldout")
"""Ratings of the same splits, which may share prompts with the comparisons of theirs."""
PROVING = ("prompts_test", "prompts_gate", "prompts_validation")
"""Prompts on which models are measured; they are nowhere else."""
OTHERS = (
    "demonstrations", "demonstrations_heldout", "thumbs", "thumbs_heldout", "prompts_improve", "prompts_feedback",
)

APART = (
    *combinations(PROVING, 2), *product(PROVING, (*COMPARED, *OTHERS)), *combinations(COMPARED, 2),
    ("demonstrations", "demonstrations_heldout"), ("thumbs", "thumbs_heldout"),
    # The reward model goes on from what learnt the demonstrations. Improvement learns neither answers nor labels of
    # its prompts, and a reward model may be measured on these.
    ("demonstrations", "comparisons_heldout"), ("demonstrations", "comparisons_judge_heldout"),
    # A later round's reward model may go on from a champion that learnt the thumbs.
    ("thumbs", "comparisons_heldout"), ("thumbs", "comparisons_judge_heldout"),
    # The reward model would learn from labels on the judge's prompts.
    ("prompts_feedback", "comparisons_judge"), ("prompts_feedback", "comparisons_judge_heldout"),
)
"""Every two parts that may not share a prompt."""

Parts = Mapping[str, Sequence[PromptedRecord]]
"""Records by their part's name, which is that of its file."""


def stored(folder: Folder, *names: str) -> dict[str, Sequence[PromptedRecord]]:
    """The parts in a folder: these, or by default all; those that it has not are empty."""
    data = DataFolder(folder)
    return {name: data.named(name).read_any() for name in names or (*PROVING, *COMPARED, *RATED, *OTHERS)}


def shared(parts: Parts) -> dict[tuple[str, str], int]:
    """How many prompts, by their normal form, each two parts share that may not; without those that share none."""
    forms: dict[str, set[str]] = {}
    for name, records in parts.items():
        learnt = name == "demonstrations"
        forms.setdefault(name.replace("ratings_", "comparisons_"), set()).update(
            *(taught_forms(record) if learnt else {form(record)} for record in records)
        )
    counts = {pair: len(forms.get(pair[0], set()) & forms.get(pair[1], set())) for pair in APART}
    return {pair: count for pair, count in counts.items() if count}


def exposed(data: Folder, comparisons: Folder, split: TrainedOn) -> bool:
    """Whether what learnt the demonstrations must not become a reward that is audited on these comparisons.

    That is so where they are cross-fitted, and so all of them audit, and share a prompt with the demonstrations. Where
    comparisons are held out, demonstrations with a prompt of theirs are left out instead.
    """
    if not DataFolder(comparisons).crossfitted(split):
        return False
    compared = DataFolder(comparisons).comparisons(split).read()
    demonstrations = DataFolder(data).demonstrations("train").read_any()  # a model that is tuned already has none
    return bool(decontaminate(demonstrations, compared)[1])


def require_apart(parts: Parts) -> None:
    """Goes on only where no two parts share a prompt that may not.

    Raises:
        RunError: some do; every two of them are named.
    """
    if counts := shared(parts):
        pairs = "; ".join(f"{one} and {other} share {count:,}" for (one, other), count in counts.items())
        raise RunError(f"what is measured on would be learnt: but for case and punctuation, {pairs} prompts")
