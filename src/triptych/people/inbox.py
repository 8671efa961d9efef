"""Feedback that arrives while a run goes on: people add lines to a file, and each round takes the new ones.

What a round took is kept beside the run (`arrivals/round-N.jsonl`), so that the run goes on to the same results
whatever comes later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import Field

from triptych.configuration import Config
from triptych.data.files import parse_lines, read_any, read_saying, read_votes
from triptych.data.folder import DataFolder
from triptych.data.folds import CrossFit
from triptych.data.rows import Place
from triptych.data.separation import COMPARED, PROVING, RATED, require_apart, stored
from triptych.data.splits import PromptedRecord, decontaminate, deduplicate
from triptych.data.votes import BOTH_BAD, Vote, in_time, settled
from triptych.errors import DataError, Fault, RunError
from triptych.feedback.accumulation import accumulate
from triptych.people.questions import FORMS, FeedbackQuestionnaire, Form
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Thumb
from triptych.storage import Folder, lines_of, make_folder, open_regular, write_whole

R = TypeVar("R", Comparison, Thumb)


@dataclass(frozen=True, slots=True)
class Inbox:
    """A file of feedback that grows at its end, a line each, and what the rounds of a run took of it.

    Attributes:
        file: where the lines are added; one that is not there is one without lines.
        folder: where the rounds' own are kept.
        form: what the lines are.
    """

    file: Path
    folder: Path
    form: Form = "comparisons"

    @classmethod
    def of_run(cls, run: Path, file: Path, form: Form) -> Inbox:
        """The one of the run in this folder."""
        return cls(file, run / "arrivals", form)

    @property
    def kind(self) -> type[FeedbackQuestionnaire[Any]]:
        """The questions that the lines answer."""
        return FORMS[self.form]

    @property
    def rounds(self) -> int:
        """How many rounds took theirs."""
        numbers = [int(name[1]) for path in self.folder.glob("round-*.jsonl")
                   if (name := re.fullmatch(r"round-(\d+)", path.stem))]
        return max(numbers, default=0)

    @property
    def waiting(self) -> int:
        """How much no round took: what would be learnt of it, and wrong lines, which a round names."""
        return self._count(self._waiting(), self.rounds)

    def take(self, round: int, wrong_rows: Literal["refuse", "skip"] = "refuse") -> Path:
        """The round's own lines, in a file: what it took before, or all that wait now, which may be none.

        Raises:
            DataError: a row is wrong; nothing is taken then.
            RunError: the file lost lines that were taken.
        """
        path = self.folder / f"round-{round}.jsonl"
        if not path.exists():
            lines = self._waiting()
            if lines:
                read, faults = parse_lines(str(self.file), map(str.encode, _lines(self.file)[0]), self.kind.parse)
                if faults and not (read and wrong_rows == "skip"):
                    raise DataError(faults)
            make_folder(self.folder)
            write_whole(path, "".join(lines))
        return path

    def teaches(self, taken: Path) -> bool:
        """Whether anything is learnt of what a round took."""
        return self._count(_lines(taken)[0], _number(taken) - 1) > 0

    @property
    def note(self) -> str:
        """Of a last line that is not whole, that it waits; else nothing."""
        tail = _lines(self.file)[1]
        return f"{self.file} ends in {len(tail):,} bytes that are no whole line: they wait" if tail else ""

    def give_back(self) -> int:
        """Has what the last round took wait again; how much it is."""
        path = self.folder / f"round-{self.rounds}.jsonl"
        count = self._count(_lines(path)[0], self.rounds - 1)
        path.unlink()
        return count

    def _waiting(self) -> list[str]:
        lines, _ = _lines(self.file)
        taken = self._taken(self.rounds)
        if lines[: len(taken)] != taken:
            raise RunError(
                f"{self.file}: the first {len(taken)} lines are not those that earlier rounds took; {self.form} are "
                f"added at the end (the rounds' own are in {self.folder})"
            )
        return lines[len(taken) :]

    def _taken(self, rounds: int) -> list[str]:
        """The lines that the first rounds took."""
        return [line for round in range(1, rounds + 1) for line in _lines(self.folder / f"round-{round}.jsonl")[0]]

    def _count(self, lines: Sequence[str], rounds: int) -> int:
        """How much would be learnt of lines behind those of the first rounds."""
        votes, faults = self._parsed(lines)
        counted, _ = in_time(votes, self._parsed(self._taken(rounds))[0])
        return len(settled([vote for _, vote in counted]).rows) + len({fault.line for fault in faults})

    def _parsed(self, lines: Sequence[str]) -> tuple[list[Vote], list[Fault]]:
        return parse_lines(str(self.file), map(str.encode, lines), self.kind.parse)


def _number(taken: Path) -> int:
    """Which round took a file of lines; a file of another name is that of a first one."""
    name = re.fullmatch(r"round-(\d+)", taken.stem)
    return int(name[1]) if name else 1


def _lines(path: Path) -> tuple[list[str], bytes]:
    """The whole lines of a file, each with one "\\n", and what is unfinished behind them; none where there is no file.

    They end at "\\n" only: a text in them may hold other characters that end a line, as U+2028.

    Raises:
        DataError: a line is not text in UTF-8.
    """
    if not path.exists():
        return [], b""
    with open_regular(path) as file:
        lines, tail = lines_of(file.read())
    whole: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            whole.append(line.removesuffix(b"\r").decode() + "\n")
        except UnicodeDecodeError as error:
            raise DataError([Fault(str(path), number, None, f"not UTF-8: {error.reason}")]) from None
    return whole, tail


class PeopleLabelling(Config):
    """What becomes of them.

    Attributes:
        heldout: share of the prompts whose comparisons are never trained on.
        cross_fit: whether none is held out, see `triptych.data.folds`.
        wrong_rows: whether a wrong row stops the run, or is left out and reported.
    """

    heldout: float = Field(default=0.2, gt=0, lt=1)
    cross_fit: CrossFit = "auto"
    wrong_rows: Literal["refuse", "skip"] = "refuse"


class Omissions(TypedDict):
    """How much of what a round took was left out."""

    duplicates: int
    removed: int
    wrong_rows_left_out: int
    both_bad: int
    too_late: int


class FeedbackAdded(Result):
    """What became of what a round took.

    Attributes:
        duplicates: exact repetitions, which are left out.
        removed: rows whose prompts are kept for measuring, which are left out.
        both_bad: questions to which most said that both answers are bad, which gives no pair.
        too_late: answers, or answers taken back, to questions that an earlier round settled.
    """

    labelled_by: str = "people"
    duplicates: int
    removed: int
    wrong_rows_left_out: int
    both_bad: int = 0
    too_late: int = 0


class ComparisonsAdded(FeedbackAdded):
    """What became of the comparisons that a round took, and how many were added.

    Attributes:
        taught: those with the prompt of a demonstration, of which none is held out.
    """

    comparisons: int
    ties: int = 0
    taught: int = 0


class ThumbsAdded(FeedbackAdded):
    """What became of the thumbs that a round took, how many were added, and how many of these are up."""

    thumbs: int
    thumbs_up: int


def add_comparisons(
    context: StageContext, config: PeopleLabelling, data: Folder, sources: Mapping[str, str | Path],
    earlier: Folder | None = None, thumbs: Folder | None = None,
) -> ComparisonsAdded:
    """Adds what a round took to the earlier comparisons, to those that train and those held out.

    Comparisons of prompts that test, gate, validation or the gate's own judge have for themselves are left out.

    Args:
        thumbs: the folder of the thumbs that the champion may have learnt, if people gave any.

    Raises:
        RunError: there are too few prompts for a part to train on and a part to measure on.
    """
    judged = [name for name in (*COMPARED, *RATED) if "judge" in name]
    kept = stored(data, *PROVING, *judged)
    new, left_out = _read(context, config, sources, Comparison, "comparisons", kept)
    added = accumulate(context, new, config.heldout, data, earlier, thumbs, config.cross_fit)
    return ComparisonsAdded(comparisons=len(new), taught=added.taught, **left_out)


def add_thumbs(
    context: StageContext, config: PeopleLabelling, data: Folder, sources: Mapping[str, str | Path],
    earlier: Folder | None = None, comparisons: Folder | None = None,
) -> ThumbsAdded:
    """Adds what a round took to the earlier thumbs.

    Thumbs of prompts on which anything is measured are left out: a later round's reward model may start from the
    champion that learnt them.

    Args:
        earlier: the folder of the thumbs before.
        comparisons: the folder of the round's comparisons, where it has any of its own.

    Raises:
        RunError: none is left.
    """
    heldout = [name for name in (*COMPARED, *RATED) if "heldout" in name]
    kept = stored(data, *PROVING, *heldout)
    if comparisons:
        (own,) = stored(comparisons, "comparisons_heldout").values()
        kept["comparisons_heldout"] = [*kept["comparisons_heldout"], *own]
    new, left_out = _read(context, config, sources, Thumb, "thumbs", kept)
    before = DataFolder(earlier).thumbs.read() if earlier else []
    thumbs, _ = deduplicate([*before, *new])
    if not thumbs:
        raise RunError(f"none of {left_out['removed']} thumbs is left to learn from: all have prompts that are kept "
                       "for measuring; give more, with other prompts")
    require_apart({**kept, "thumbs": thumbs})
    DataFolder(context.output).thumbs.write(thumbs)
    return ThumbsAdded(thumbs=len(new), thumbs_up=sum(thumb.label for thumb in new), **left_out)


def _read(
    context: StageContext, config: PeopleLabelling, sources: Mapping[str, str | Path], record: type[R], form: Form,
    measured: Mapping[str, Sequence[PromptedRecord]],
) -> tuple[list[R], Omissions]:
    """What a round took without repetitions and without prompts that are measured on, and how many were left out."""
    skipped: list[Fault] = []
    (file,) = sources.values()
    places: list[Place] = []
    say = context.progress.say
    votes: list[Vote] = read_saying(
        partial(read_votes, form), [file], say, skipped if config.wrong_rows == "skip" else None, places
    )
    before = [Path(file).with_name(f"round-{round}.jsonl") for round in range(1, _number(Path(file)))]
    settled_before = [vote for path in before for vote in read_any(path, partial(read_votes, form, skipped=[]))]
    counted, too_late = in_time(votes, settled_before)
    if too_late:
        say(f"left out: {too_late:,} answers to questions that an earlier round settled, which stay so")
    learnt = settled([vote for _, vote in counted])
    if learnt.note:
        say(f"note: {learnt.note}")
    rows = [row for _, row in learnt.rows if isinstance(row, record)]
    lines = {id(row): places[counted[place][0]].line for place, row in learnt.rows}
    once, repeated = deduplicate(rows)
    new, removed = decontaminate(once, [kept for part in measured.values() for kept in part])
    for why, left in (("repeat others exactly", repeated), ("have prompts that are kept for measuring", removed)):
        if left:
            first = ", ".join(f"{Path(file).name}:{lines[id(row)]}" for row in left[:3])
            say(f"left out: {len(left):,} {form} that {why} ({first}{', ...' if left[3:] else ''})")
    return new, Omissions(
        duplicates=len(repeated), removed=len(removed), wrong_rows_left_out=len(skipped),
        both_bad=learnt.without.get(BOTH_BAD, 0), too_late=too_late,
    )
