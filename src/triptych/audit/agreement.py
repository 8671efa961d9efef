"""How often a reward model orders comparisons as they were labelled, beside trivial rules and beside people."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.audit.record import Lead, Person, TaskScore
from triptych.records import Comparison
from triptych.statistics.intervals import mean_interval

SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
"""The sections of RewardBench (Lambert et al. 2024, table 1) and their subsets."""


def outcomes(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """For each comparison 1 where the chosen answer has the higher score, 0 the lower, a half where they tie."""
    return [0.5 if a == b else float(a > b) for a, b in zip(chosen, rejected, strict=True)]


def trivial(rows: Sequence[Comparison]) -> dict[str, list[float]]:
    """The outcomes of the rules that know nothing of what is said; length is in characters."""
    longer = outcomes([len(row.chosen) for row in rows], [len(row.rejected) for row in rows])
    return {"random": [0.5] * len(rows), "longer wins": longer, "shorter wins": [1 - value for value in longer]}


def leads(
    right: Sequence[float], rules: dict[str, list[float]], prompts: Sequence[str]
) -> dict[str, Lead]:
    """The accuracy minus each rule's, the interval over the paired differences: both meet the same comparisons."""
    by_baseline = {}
    for name, rule in rules.items():
        lead, interval = mean_interval([a - b for a, b in zip(right, rule, strict=True)], prompts)
        by_baseline[name] = Lead(lead=lead, interval=interval)
    return by_baseline


def by_group(rows: Sequence[Comparison], right: Sequence[float]) -> dict[str, TaskScore]:
    """Accuracy by section, subset, task and source; a source that all comparisons share says nothing more."""
    kinds = {
        "section": [row.section or _section(row.subset) for row in rows],
        "subset": [row.subset for row in rows],
        "task": [row.prompt.task for row in rows],
        "source": [row.source for row in rows],
    }
    groups: dict[str, TaskScore] = {}
    for kind, names in kinds.items():
        if groups and len(set(names)) == 1:
            continue
        for name in sorted({name for name in names if name}):
            members = [place for place, other in enumerate(names) if other == name]
            mean, interval = mean_interval([right[i] for i in members], [rows[i].prompt.key for i in members])
            score = TaskScore(score=mean, interval=interval, prompts=len(members))
            groups[f"{name} ({kind})" if name in groups else name] = score
    return groups


def _section(subset: str | None) -> str | None:
    return next((section for section, subsets in SECTIONS.items() if subset in subsets), None)


def beside_a_person(rows: Sequence[Comparison], right: Sequence[float]) -> Person | None:
    """The reward model's agreement with one of the people, and that of another of them.

    Of the n people who compared a pair, v preferred the chosen answer. A person's accuracy cannot be measured
    against a majority that holds that person's own vote, so model and person are both measured against one
    vote, drawn at random. The model agrees with it with probability v/n where it prefers the chosen answer, and
    (n − v)/n where it prefers the other one. Another of the people, drawn without replacement, agrees with it with
    probability

        (v (v − 1) + (n − v) (n − v − 1)) / (n (n − 1)),

    the observed agreement of Fleiss (1971, equation 2), which is unbiased for two people of the same population,
    however few voted. Votes that are not for the chosen answer count as votes for the other one. Both are averaged
    over the comparisons with an odd n ≥ 3; None where there are none. Where n is even, the questions on which people
    were divided gave no comparison, and those that are left agree by their selection: of two people always.
    """
    voted = [
        (row.votes_for_chosen, row.num_annotators, value, row.prompt.key)
        for row, value in zip(rows, right, strict=True)
        if row.votes_for_chosen is not None and row.num_annotators is not None
        and row.num_annotators >= 3 and row.num_annotators % 2
    ]
    if not voted:
        return None
    model = [value * v / n + (1 - value) * (n - v) / n for v, n, value, _ in voted]
    person = [(v * (v - 1) + (n - v) * (n - v - 1)) / (n * (n - 1)) for v, n, _, _ in voted]
    prompts = [key for *_, key in voted]
    mean, interval = mean_interval(model, prompts)
    lead, lead_interval = mean_interval([a - b for a, b in zip(model, person, strict=True)], prompts)
    return Person(
        comparisons=len(voted), model=mean, model_interval=interval, person=sum(person) / len(person),
        lead=lead, lead_interval=lead_interval,
    )
