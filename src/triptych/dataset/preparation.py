"""The user's own files, read once: checked, deduplicated, split by prompt, and written as the cycle's data.

What proves is set apart first: the test, gate and validation prompts, then the held-out comparisons and ratings. A
training row whose prompt asks the same, in its normal form, is removed, so that nothing is measured on what was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from triptych.configuration import Config
from triptych.data import files, near
from triptych.data.folder import HELD_OUT as SPLITS
from triptych.data.folder import DataFolder
from triptych.data.folds import CrossFit, cross_fits, fold_of
from triptych.data.near import NearDuplicates
from triptych.data.overlap import Benchmarks
from triptych.data.rows import Place
from triptych.data.separation import require_apart
from triptych.data.source import AnySource, Source
from triptych.data.splits import (
    PromptedRecord,
    contradictions,
    decontaminate,
    deduplicate,
    form,
    fraction,
    opening,
    prompt_of,
    share_of,
)
from triptych.errors import DataError, Fault
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, alone
from triptych.records import Comparison, Conversation, Document, Prompt, Rating, Thumb, differ, without_reasoning

A = TypeVar("A", bound=PromptedRecord)
NearRows = Literal["report", "leave_out"]

EXAMPLES = 3
"""How many lines of what was left out are named."""
HELD_OUT = "have a prompt that is held out for test, gate or validation, and are left out"
WHY = {
    "duplicate_conversations": "conversations are exact repetitions and are left out",
    "duplicate_comparisons": "comparisons are exact repetitions and are left out",
    "duplicate_ratings": "ratings are exact repetitions and are left out",
    "duplicate_thumbs": "thumbs are exact repetitions and are left out",
    "duplicate_prompts": "prompts have the same turns as an earlier one and are left out",
    "reasoning_left_out": "rows have reasoning before an answer, which is left out",
    "comparisons_alike": "comparisons differ in their reasoning alone, and are left out with it",
    "benchmark_rows": "rows hold a part of a prompt of a benchmark that `decontaminate` names, and are left out",
    "near_held_out": "rows nearly repeat a prompt that is held out for measuring",
    "near_within": "rows nearly repeat an earlier one",
    "prompts_removed": "prompts ask the same as one that is held out for test, gate or validation, and are left out",
    "conversations_removed": f"conversations {HELD_OUT}",
    "comparisons_removed": f"comparisons {HELD_OUT}",
    "ratings_removed": f"ratings {HELD_OUT}",
    "thumbs_removed": "thumbs have a prompt that is held out for measuring, and are left out",
    "demonstrations_removed": "conversations have the prompt of a held-out comparison or rating, and are left out",
    "demonstrations_shared": "conversations have the prompt of a cross-fitted comparison, and so the reward models "
    "start from the Base",
}
"""What the counts in the stage's metrics are of."""


LEFT, KEPT = ", and are left out", ", and are kept; near_duplicates: leave_out leaves them out"


class Splits(Config):
    """How much of the user's own data is kept for measuring.

    Attributes:
        test, gate, validation: prompts held out for the final measurement, the gate, and the curves.
        heldout: share of the comparisons' prompts (and of the text) kept for measuring.
        cross_fit: whether no comparison is held out, and each is audited by a model that was trained without it; by
            default where fewer than 40 prompts would be held out. See `triptych.data.folds`.
    """

    test: int = Field(default=300, ge=2)
    gate: int = Field(default=600, ge=2)
    validation: int = Field(default=64, ge=8)
    heldout: float = Field(default=0.15, gt=0, lt=0.5)
    cross_fit: CrossFit = "auto"


class DataPreparation(Splits):
    """Which files, and how much of them is held out.

    Attributes:
        text, conversations, comparisons, ratings, thumbs, prompts: files, as the recipe names them. Without prompts
            those of the conversations are used.
        benchmarks: files of prompts of which no row may hold a part.
        near_duplicates: what happens to rows to learn from that nearly repeat a held-out prompt, or an earlier row.
        wrong_rows: whether a wrong row stops the run, or is left out and reported.
        reasoning: whether the reasoning that answers begin with is learnt, or left out of them.
        judge: share of the comparisons' prompts that train the gate's own judge and nothing else.
        thumbs_heldout: share of the thumbs' prompts by which improvement is watched, where no reward watches.
    """

    text: tuple[AnySource, ...] = ()
    conversations: tuple[AnySource, ...] = ()
    comparisons: tuple[AnySource, ...] = ()
    ratings: tuple[AnySource, ...] = ()
    thumbs: tuple[AnySource, ...] = ()
    prompts: tuple[AnySource, ...] = ()
    benchmarks: tuple[AnySource, ...] = ()
    near_duplicates: NearRows = "report"
    wrong_rows: Literal["refuse", "skip"] = "refuse"
    reasoning: Literal["learn", "leave_out"] = "learn"
    judge: float = Field(default=0.0, ge=0, lt=1)
    thumbs_heldout: float = Field(default=0.0, ge=0, lt=0.5)


class Prepared(Result):
    """How many rows each file of the data has, and what was left out.

    Attributes:
        left_out_lines: for each kind that was left out, where the first ones stand.
        near_left_out: whether the near duplicates are left out, and not only counted.
    """

    wrong_rows_left_out: int = 0
    contradictions: int = 0
    reasoning_left_out: int = 0
    comparisons_alike: int = 0
    duplicate_conversations: int = 0
    duplicate_comparisons: int = 0
    duplicate_ratings: int = 0
    duplicate_prompts: int = 0
    benchmark_rows: int = 0
    near_held_out: int = 0
    near_within: int = 0
    near_left_out: bool = False
    prompts_removed: int = 0
    conversations_removed: int = 0
    comparisons_removed: int = 0
    ratings_removed: int = 0
    thumbs_removed: int = 0
    duplicate_thumbs: int = 0
    demonstrations_removed: int = 0
    demonstrations_shared: int = 0
    feedback_prompts_removed: int = 0
    prompts_test: int
    prompts_gate: int
    prompts_validation: int
    prompts_improve: int
    prompts_feedback: int
    comparisons_train: int = 0
    comparisons_heldout: int = 0
    comparisons_judge: int = 0
    comparisons_judge_heldout: int = 0
    ratings_train: int = 0
    ratings_heldout: int = 0
    ratings_judge: int = 0
    ratings_judge_heldout: int = 0
    thumbs: int = 0
    thumbs_heldout: int = 0
    crossfitted: bool = False
    demonstrations: int = 0
    demonstrations_heldout: int = 0
    text: int = 0
    text_heldout: int = 0
    left_out_lines: dict[str, list[str]] = Field(default_factory=dict)


@dataclass
class RowsLeftOut:
    """The rows that were left out, and those that something was left out of, by why; see `WHY`."""

    reasoning_left_out: Sequence[PromptedRecord] = ()
    comparisons_alike: Sequence[PromptedRecord] = ()
    duplicate_conversations: Sequence[PromptedRecord] = ()
    duplicate_comparisons: Sequence[PromptedRecord] = ()
    duplicate_ratings: Sequence[PromptedRecord] = ()
    duplicate_thumbs: Sequence[PromptedRecord] = ()
    duplicate_prompts: Sequence[PromptedRecord] = ()
    benchmark_rows: Sequence[PromptedRecord] = ()
    near_held_out: Sequence[PromptedRecord] = ()
    near_within: Sequence[PromptedRecord] = ()
    prompts_removed: Sequence[PromptedRecord] = ()
    conversations_removed: Sequence[PromptedRecord] = ()
    comparisons_removed: Sequence[PromptedRecord] = ()
    ratings_removed: Sequence[PromptedRecord] = ()
    thumbs_removed: Sequence[PromptedRecord] = ()
    demonstrations_removed: Sequence[PromptedRecord] = ()
    demonstrations_shared: Sequence[PromptedRecord] = ()
    feedback_prompts_removed: Sequence[PromptedRecord] = ()


@alone
def prepare_data(context: StageContext, config: DataPreparation, sources: Mapping[str, str | Path]) -> Prepared:
    """Reads every file and writes the cycle's data; says what was left out, why, and in which lines it stands.

    Raises:
        DataError: every wrong row of every file, unless they are to be skipped.
        RunError: a prompt to measure on would be trained on; see `separation`.
    """
    records = read_all(config, sources)
    for fault in records.skipped:
        context.progress.say(f"left out: {fault}")
    for note in records.notes:
        context.progress.say(f"data: {note}")
    left = RowsLeftOut(reasoning_left_out=records.reasoned, benchmark_rows=records.leave_out_benchmarks())
    conversations, left.duplicate_conversations = deduplicate(records.conversations)
    left.comparisons_alike = [row for row in records.comparisons if not differ(row.chosen, row.rejected)]
    comparisons, left.duplicate_comparisons = deduplicate(
        row for row in records.comparisons if differ(row.chosen, row.rejected)
    )
    ratings, left.duplicate_ratings = deduplicate(records.ratings)
    thumbs, left.duplicate_thumbs = deduplicate(records.thumbs)
    prompts, left.duplicate_prompts = of_different_turns(records.prompts)
    contradicting = contradictions(comparisons)

    asked = prompts or of_different_turns(row.prompt for row in conversations)[0]
    measured = set_apart(asked, config, context.seed)
    proving = [prompt for part in measured.values() for prompt in part]
    own = {prompt.key for prompt in proving}
    improve, left.prompts_removed = decontaminate([row for row in asked if row.key not in own], proving)
    nearly, measuring = Nearly(config.near_duplicates), NearDuplicates(map(near.asked, proving))
    improve = nearly.once(nearly.apart_from(improve, measuring))
    if not improve:
        what = f"{len(asked)} different prompts are too few: some improve, others are held out for test, gate, curves"
        raise DataError([Fault("prompts", None, None, what)])
    conversations, left.conversations_removed = decontaminate(conversations, proving)
    comparisons, left.comparisons_removed = decontaminate(comparisons, proving)
    ratings, left.ratings_removed = decontaminate(ratings, proving)
    comparisons, ratings = nearly.apart_from(comparisons, measuring), nearly.apart_from(ratings, measuring)

    shares = {
        "train": (1 - config.judge) * (1 - config.heldout), "heldout": (1 - config.judge) * config.heldout,
        "judge": config.judge * (1 - config.heldout), "judge_heldout": config.judge * config.heldout,
    }
    compared, rated = divided("feedback", (comparisons, ratings), shares, context.seed)
    crossfitted = bool(comparisons) and any(
        cross_fits(config.cross_fit, compared[heldout]) for trained, heldout in SPLITS.items() if compared[trained]
    )
    if crossfitted:
        compared, rated = undivided(compared), undivided(rated)
        if any(len({fold_of(row, context.seed) for row in rows}) == 1 for rows in compared.values()):
            what = "too few different prompts to cross-fit: all of them are in one fold; give more of them"
            raise DataError([Fault("comparisons", None, None, what)])
    feedback = [(name, row) for parts in (compared, rated) for name, rows in parts.items() for row in rows]
    audited = [row for name, row in feedback if "heldout" in name]
    judged = [row for name, row in feedback if "judge" in name]
    conversations, left.demonstrations_removed = decontaminate(conversations, audited)
    auditing = NearDuplicates(map(near.asked, audited))
    conversations = nearly.once(nearly.apart_from(conversations, measuring, auditing))
    # Cross-fitted rewards do not start from what learnt these; see `separation.exposed`.
    left.demonstrations_shared = decontaminate(
        conversations, [row for rows in compared.values() for row in rows] if crossfitted else []
    )[1]
    thumbs, left.thumbs_removed = decontaminate(thumbs, [*proving, *audited])
    thumbs = nearly.apart_from(thumbs, measuring, auditing)
    if not crossfitted:
        for name in ("train", "judge"):
            compared[name] = nearly.apart_from(compared[name], auditing)
            rated[name] = nearly.apart_from(rated[name], auditing)
    left.near_held_out, left.near_within = nearly.held_out, nearly.within
    if records.thumbs and not thumbs:
        what = "none is left: every one has a prompt that is held out for measuring; give more, with other prompts"
        raise DataError([Fault("thumbs", None, None, what)])
    parts: dict[str, Sequence[PromptedRecord]] = {**measured}
    parts |= {f"comparisons_{name}": rows for name, rows in compared.items()} if comparisons else {}
    parts |= {f"ratings_{name}": rows for name, rows in rated.items()} if ratings else {}
    shares = {"heldout": config.thumbs_heldout, "train": 1 - config.thumbs_heldout}
    (liked,) = divided("thumbs", (thumbs,), shares, context.seed)
    parts |= {"thumbs": liked["train"]} if thumbs else {}
    parts |= {"thumbs_heldout": liked["heldout"]} if liked["heldout"] else {}
    if records.conversations and not conversations:
        what = "none is left: every one has a prompt that is held out for measuring; give more, with other prompts"
        raise DataError([Fault("conversations", None, None, what)])
    (learnt,) = divided("conversations", (conversations,), {"heldout": 0.04, "train": 0.96}, context.seed)
    parts |= {"demonstrations": learnt["train"], "demonstrations_heldout": learnt["heldout"]} if conversations else {}
    asking, left.feedback_prompts_removed = decontaminate(improve, judged)
    parts |= {"prompts_improve": improve, "prompts_feedback": asking}

    require_apart(parts)
    output = DataFolder(context.output)
    for name, rows in parts.items():
        output.named(name).write(rows)
    output.examples.write(learnt["train"][:12])
    text = split_text(records.documents, config.heldout, context.seed) if records.documents else {}
    for name, documents in text.items():
        output.named(name).write(documents)
    prepared = Prepared(
        wrong_rows_left_out=len(records.skipped), contradictions=len(contradicting),
        reasoning_left_out=len(left.reasoning_left_out), benchmark_rows=len(left.benchmark_rows),
        near_held_out=len(left.near_held_out), near_within=len(left.near_within),
        near_left_out=config.near_duplicates == "leave_out",
        comparisons_alike=len(left.comparisons_alike),
        duplicate_conversations=len(left.duplicate_conversations),
        duplicate_comparisons=len(left.duplicate_comparisons), duplicate_ratings=len(left.duplicate_ratings),
        duplicate_thumbs=len(left.duplicate_thumbs), duplicate_prompts=len(left.duplicate_prompts),
        prompts_removed=len(left.prompts_removed), conversations_removed=len(left.conversations_removed),
        comparisons_removed=len(left.comparisons_removed), ratings_removed=len(left.ratings_removed),
        thumbs_removed=len(left.thumbs_removed), demonstrations_removed=len(left.demonstrations_removed),
        demonstrations_shared=len(left.demonstrations_shared),
        feedback_prompts_removed=len(left.feedback_prompts_removed),
        prompts_test=len(measured["prompts_test"]), prompts_gate=len(measured["prompts_gate"]),
        prompts_validation=len(measured["prompts_validation"]), prompts_improve=len(improve),
        prompts_feedback=len(asking),
        comparisons_train=len(compared["train"]), comparisons_heldout=len(compared.get("heldout", ())),
        comparisons_judge=len(compared["judge"]), comparisons_judge_heldout=len(compared.get("judge_heldout", ())),
        ratings_train=len(rated["train"]), ratings_heldout=len(rated.get("heldout", ())),
        ratings_judge=len(rated["judge"]), ratings_judge_heldout=len(rated.get("judge_heldout", ())),
        thumbs=len(liked["train"]), thumbs_heldout=len(liked["heldout"]), crossfitted=crossfitted,
        demonstrations=len(learnt["train"]), demonstrations_heldout=len(learnt["heldout"]),
        text=len(text.get("text", ())), text_heldout=len(text.get("text_heldout", ())),
        left_out_lines={
            why.name: [records.places[id(prompt_of(row))] for row in rows[:EXAMPLES]]
            for why in fields(left) if (rows := getattr(left, why.name))
        },
    )
    for line in (*left_out(prepared), *fewer_set_apart(prepared, config)):
        context.progress.say(f"data: {line}")
    return prepared


class Nearly:
    """Rows that nearly repeat others, counted, and left out if that is asked for.

    Attributes:
        held_out: those that repeat a held-out prompt.
        within: those that repeat an earlier row of their kind.
    """

    def __init__(self, rule: NearRows) -> None:
        self._leave_out = rule == "leave_out"
        self.held_out: list[PromptedRecord] = []
        self.within: list[PromptedRecord] = []

    def apart_from(self, rows: list[A], *others: NearDuplicates) -> list[A]:
        """The rows to go on with: where they are left out, those whose prompt nearly repeats none of the others'."""
        kept, close = near.apart_from(rows, *others)
        self.held_out += close
        return kept if self._leave_out else rows

    def once(self, rows: list[A]) -> list[A]:
        """The rows to go on with: where they are left out, the first of those that nearly repeat each other."""
        kept, close = near.apart(rows)
        self.within += close
        return kept if self._leave_out else rows


def left_out(prepared: Prepared) -> list[str]:
    """What of the user's rows was left out, and why, with the first lines of each kind."""
    lines = []
    for name, why in WHY.items():
        if count := getattr(prepared, name):
            places = ", ".join(prepared.left_out_lines[name])
            more = ", ..." if count > EXAMPLES else ""
            if name.startswith("near"):
                why += LEFT if prepared.near_left_out else KEPT
            lines.append(f"{count:,} {why} ({places}{more})")
    return lines


def fewer_set_apart(prepared: Prepared, asked: Splits) -> list[str]:
    """Which parts have fewer prompts than asked for, as one line; none where each has as many."""
    parts = [
        f"{count:,} of {wanted:,} for {name}" for name, wanted in _measured(asked)
        if (count := getattr(prepared, f"prompts_{name}")) < wanted
    ]
    if not parts:
        return []
    return [f"prompts set apart: {', '.join(parts)}, for each takes at most a fifth of those that ask different things"]


def set_apart(prompts: Sequence[Prompt], config: DataPreparation, seed: int) -> dict[str, list[Prompt]]:
    """The prompts of test, gate and validation, each at most a fifth of those that ask different things.

    Of prompts with the same normal form one is taken, whatever their order.
    """
    groups: dict[str, Prompt] = {}
    for prompt in prompts:
        first = groups.setdefault(form(prompt), prompt)
        groups[form(prompt)] = min(first, prompt, key=lambda row: row.key)
    ordered = sorted(groups, key=lambda key: fraction("hold out prompts", key, seed))
    parts = {}
    for name, count in _measured(config):
        taken = ordered[: max(1, min(count, len(groups) // 5))]
        ordered = ordered[len(taken) :]
        parts[f"prompts_{name}"] = [groups[key] for key in taken]
    return parts


def _measured(splits: Splits) -> tuple[tuple[str, int], ...]:
    """The parts that measure, and how many prompts each is to have."""
    return ("test", splits.test), ("gate", splits.gate), ("validation", splits.validation)


def divided(
    purpose: str, kinds: Sequence[Sequence[A]], shares: Mapping[str, float], seed: int
) -> list[dict[str, list[A]]]:
    """Records of some kinds, each split by prompt: a prompt is in the same share in all kinds.

    Dialogues are split by how they open, for one may go on where another ends.

    No part of a kind is empty, unless the whole of it is; in small data chance may leave one without any, which then
    gets the first prompt of the largest.

    Raises:
        DataError: there are fewer prompts than parts.
    """
    places = {opening(record): "" for records in kinds for record in records}
    places = {key: share_of(purpose, key, shares, seed) for key in places}
    wanted = [name for name, share in shares.items() if share > 0]

    def parts_of(records: Sequence[A]) -> dict[str, list[A]]:
        parts: dict[str, list[A]] = {name: [] for name in shares}
        for record in records:
            parts[places[opening(record)]].append(record)
        return parts

    for records in kinds:
        for name in wanted if records else ():
            parts = parts_of(records)
            donor = max(parts.values(), key=lambda rows: len(set(map(opening, rows))))
            if not parts[name]:
                places[opening(donor[0])] = name
    splits = [parts_of(records) for records in kinds]
    for records, parts in zip(kinds, splits, strict=True):
        if records and not all(parts[name] for name in wanted):
            what = f"too few different prompts to divide into {', '.join(shares)}; give more of them"
            raise DataError([Fault(f"{type(records[0]).__name__.lower()}s", None, None, what)])
    return splits


def undivided(parts: Mapping[str, Sequence[A]]) -> dict[str, list[A]]:
    """What trains with what was held out from it."""
    return {trained: [*parts[trained], *parts[audited]] for trained, audited in SPLITS.items()}


def of_different_turns(prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of which no other has the same turns, or the first of those that have, and the others."""
    first: dict[str, Prompt] = {}
    repeated = [prompt for prompt in prompts if first.setdefault(prompt.key, prompt) is not prompt]
    return list(first.values()), repeated


class UserRecords:
    """Every record of every file, and the rows that were left out.

    Attributes:
        reasoned: those that had reasoning, which is left out of them.
        notes: what of the files nobody read, and what was done to their rows.
        places: the file and line of each record's prompt, by the prompt's identity: equal ones stand in several.
    """

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.conversations: list[Conversation] = []
        self.comparisons: list[Comparison] = []
        self.ratings: list[Rating] = []
        self.thumbs: list[Thumb] = []
        self.prompts: list[Prompt] = []
        self.benchmarks: list[Prompt] = []
        self.reasoned: list[PromptedRecord] = []
        self.skipped: list[Fault] = []
        self.notes: list[Fault] = []
        self.places: dict[int, str] = {}

    def leave_out_benchmarks(self) -> list[PromptedRecord]:
        """Leaves out what holds a part of a benchmark, and gives it."""
        if not self.benchmarks:
            return []
        benchmarks = Benchmarks(self.benchmarks)
        removed: list[PromptedRecord] = []
        for kind in ("conversations", "comparisons", "ratings", "thumbs", "prompts"):
            kept, held = benchmarks.apart(getattr(self, kind))
            setattr(self, kind, kept)
            removed += held
        return removed


def read_all(config: DataPreparation, sources: Mapping[str, str | Path]) -> UserRecords:
    """Reads all files before saying what is wrong with any of them."""
    records = UserRecords()
    faults: list[Fault] = []
    skipped = records.skipped if config.wrong_rows == "skip" else None

    def read(named: Sequence[Source], reader: Callable[..., list[A]], into: list[A]) -> None:
        for source in named:
            places: list[Place] = []
            try:
                rows = reader(source.at(sources[source.file]), skipped, places, records.notes)
            except DataError as error:
                faults.extend(error.faults)
                continue
            if config.reasoning == "leave_out":
                plain = [without_reasoning(row) for row in rows]
                records.reasoned += [row for row, before in zip(plain, rows, strict=True) if row != before]
                rows = plain
            into += rows
            records.places |= {
                id(prompt_of(row)): _place(source, sources, place) for row, place in zip(rows, places, strict=True)
            }

    for source in config.text:
        try:
            read_now = files.read_documents(source.at(sources[source.file]), skipped, notes=records.notes)
            records.documents += [replace(document, domain=source.file) for document in read_now]
        except DataError as error:
            faults.extend(error.faults)
    for kind, reader in files.READERS.items():
        if kind != "text":
            read(getattr(config, kind), reader, getattr(records, kind))
    read(config.benchmarks, files.READERS["prompts"], records.benchmarks)
    if faults:
        raise DataError(faults)
    return records


def _place(source: Source, sources: Mapping[str, str | Path], place: Place) -> str:
    """Where a row stands, by the name that the recipe gives its file; in a folder by the file in it."""
    return f"{place.file.replace(str(sources[source.file]), source.file, 1)}:{place.line}"


def split_text(documents: Sequence[Document], share: float, seed: int) -> dict[str, list[Document]]:
    """Documents for training and, of each domain at least one, held out; equal documents go the same way."""
    ordered = sorted(documents, key=lambda document: fraction("hold out text", document.text, seed))
    heldout: set[str] = set()
    for domain in dict.fromkeys(document.domain for document in documents):
        texts = [document.text for document in ordered if document.domain == domain]
        heldout.update(texts[: max(1, round(share * len(texts)))])
    return {
        "text": [document for document in documents if document.text not in heldout],
        "text_heldout": [document for document in documents if document.text in heldout],
    }
