"""The user's own files, read once: checked, deduplicated, split by prompt, and written as the cycle's data.

What proves is set apart first: the test, gate and validation prompts, and the held-out comparisons. A training
row that has one of these prompts is then removed, so that nothing is measured on what was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from triptych.configuration import Config
from triptych.data import files
from triptych.data.splits import contradictions, decontaminate, deduplicate, fraction, split
from triptych.errors import DataError, Fault
from triptych.pipeline.stage import Desk, Metrics
from triptych.records import Comparison, Conversation, Document, Prompt, Rating

R = TypeVar("R", Document, Conversation, Prompt, Comparison, Rating)
A = TypeVar("A", Conversation, Comparison, Rating)


class Intake(Config):
    """Which files, and how much of them is held out.

    Attributes:
        text, conversations, comparisons, ratings, prompts: names of files, as the recipe gives them. Without prompts
            those of the conversations are used.
        wrong_rows: whether a wrong row stops the run, or is left out and reported.
        test, gate, validation: prompts held out for the final measurement, the gate, and the curves.
        heldout: share of the comparisons' prompts (and of the text) kept for measuring.
        judge: share of the comparisons' prompts that train the gate's own judge and nothing else.
    """

    text: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    ratings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    wrong_rows: Literal["refuse", "skip"] = "refuse"
    test: int = Field(default=300, ge=2)
    gate: int = Field(default=600, ge=2)
    validation: int = Field(default=64, ge=8)
    heldout: float = Field(default=0.15, gt=0, lt=0.5)
    judge: float = Field(default=0.0, ge=0, lt=1)


def take_in(desk: Desk, config: Intake, sources: Mapping[str, str | Path]) -> Metrics:
    """Reads every file and writes the cycle's data.

    Raises:
        DataError: every wrong row of every file, unless they are to be skipped.
    """
    found = read_all(config, sources)
    for fault in found.skipped:
        desk.progress.say(f"left out: {fault}")
    metrics: Metrics = {"wrong_rows_left_out": len(found.skipped)}
    conversations, metrics["duplicate_conversations"] = deduplicate(found.conversations)
    comparisons, metrics["duplicate_comparisons"] = deduplicate(found.comparisons)
    metrics["contradictions"] = len(contradictions(comparisons))

    asked = found.prompts or [conversation.prompt for conversation in conversations]
    unique = list({prompt.key: prompt for prompt in asked}.values())
    measured = {"test": config.test, "gate": config.gate, "validation": config.validation}
    ordered = sorted(unique, key=lambda prompt: fraction(f"hold out {prompt.key}", desk.seed))
    held: list[Prompt] = []
    for name, count in measured.items():
        part = ordered[: max(1, min(count, len(unique) // 5))]
        ordered = ordered[len(part) :]
        held += part
        files.write(desk.output / f"prompts_{name}.jsonl", part)
        metrics[f"prompts_{name}"] = len(part)
    if not ordered:
        what = f"{len(unique)} different prompts are too few: some improve, others are held out for test, gate, curves"
        raise DataError([Fault("prompts", None, None, what)])
    improve, removed = decontaminate(ordered, held)
    conversations, removed_conversations = decontaminate(conversations, held)
    comparisons, removed_comparisons = decontaminate(comparisons, held)
    ratings, removed_ratings = decontaminate(found.ratings, held)
    metrics |= {
        "prompts_removed": removed,
        "conversations_removed": removed_conversations,
        "comparisons_removed": removed_comparisons,
    }

    parts = divided(conversations, {"heldout": 0.04, "train": 0.96}, desk.seed)
    files.write(desk.output / "demonstrations.jsonl", parts["train"])
    files.write(desk.output / "demonstrations_heldout.jsonl", parts["heldout"])
    files.write(desk.output / "examples.jsonl", parts["train"][:12])
    metrics["demonstrations"] = len(parts["train"])

    shares = {
        "reward": (1 - config.judge) * (1 - config.heldout), "heldout": (1 - config.judge) * config.heldout,
        "judge": config.judge * (1 - config.heldout), "judge_heldout": config.judge * config.heldout,
    }
    for name, rows in divided(comparisons, shares, desk.seed).items() if comparisons else ():
        files.write(desk.output / f"{name}.jsonl", rows)
        metrics[f"comparisons_{name}"] = len(rows)
    # By the same fractions of a prompt's key: it is in one share, whether compared or rated.
    for name, rated in divided(ratings, shares, desk.seed).items() if ratings else ():
        files.write(desk.output / f"ratings_{name}.jsonl", rated)
        metrics[f"ratings_{name}"] = len(rated)
    metrics["ratings_removed"] = removed_ratings
    files.write(desk.output / "prompts_improve.jsonl", improve)
    files.write(desk.output / "prompts_feedback.jsonl", improve)
    metrics["prompts_improve"] = len(improve)

    if found.documents:
        text = split_text(found.documents, config.heldout, desk.seed)
        for name, documents in text.items():
            files.write(desk.output / f"{name}.jsonl", documents)
            metrics[name] = len(documents)
    return metrics


def divided(records: Sequence[A], shares: Mapping[str, float], seed: int) -> dict[str, list[A]]:
    """The records split by prompt, no part empty: in small data chance may leave one without any.

    Raises:
        DataError: there are fewer prompts than parts.
    """
    parts = split(records, shares, seed)
    for name, share in shares.items():
        if share > 0 and not parts[name]:
            donor = max(parts.values(), key=len)
            moved = donor[0].prompt.key if donor else ""
            parts[name] = [record for record in donor if record.prompt.key == moved]
            donor[:] = [record for record in donor if record.prompt.key != moved]
            if not donor:
                kind = type(records[0]).__name__.lower() + "s" if records else "conversations"
                what = f"too few different prompts to divide into {', '.join(shares)}; give more of them"
                raise DataError([Fault(kind, None, None, what)])
    return parts


class Found:
    """Every record of every file, and the rows that were left out."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.conversations: list[Conversation] = []
        self.comparisons: list[Comparison] = []
        self.ratings: list[Rating] = []
        self.prompts: list[Prompt] = []
        self.skipped: list[Fault] = []


def read_all(config: Intake, sources: Mapping[str, str | Path]) -> Found:
    """Reads all files before saying what is wrong with any of them."""
    found = Found()
    faults: list[Fault] = []
    skipped = found.skipped if config.wrong_rows == "skip" else None

    def read(names: Sequence[str], reader: Callable[..., list[R]], into: list[R]) -> None:
        for name in names:
            try:
                into += reader(sources[name], skipped)
            except DataError as error:
                faults.extend(error.faults)

    read(config.text, files.read_documents, found.documents)
    read(config.conversations, files.read_conversations, found.conversations)
    read(config.comparisons, files.read_comparisons, found.comparisons)
    read(config.ratings, files.read_ratings, found.ratings)
    read(config.prompts, files.read_prompts, found.prompts)
    if faults:
        raise DataError(faults)
    return found


def split_text(documents: Sequence[Document], share: float, seed: int) -> dict[str, list[Document]]:
    """Documents for training and, at least one of them, held out; equal documents go the same way."""
    ordered = sorted(documents, key=lambda document: fraction(document.text, seed))
    count = max(1, round(share * len(documents)))
    heldout = {document.text for document in ordered[:count]}
    return {
        "text": [document for document in documents if document.text not in heldout],
        "text_heldout": [document for document in documents if document.text in heldout],
    }
