"""Reads rows into typed records, and says of every wrong row what would be right.

A source is a file of rows (:mod:`triptych.data.rows`), a folder of such files, the name of a dataset on the Hub, or the
https address of a file.
The formats are those of TRL's documentation, and every other form that :mod:`triptych.data.forms` knows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from triptych.data import forms
from triptych.data.remote import fetch
from triptych.data.row import Row
from triptych.data.rows import Place, Values, numbered, opened, refuse_choice, rows_of, shown, text_of
from triptych.data.selection import is_meant
from triptych.data.source import Source, is_address, is_stdlib, kind_of
from triptych.data.stdlib import stdlib_files
from triptych.data.votes import BOTH_BAD, Vote, settled, standing
from triptych.errors import DataError, Fault
from triptych.instructions.constraining import constrain, constrain_answers
from triptych.records import (
    WITHDRAWN,
    Comparison,
    Conversation,
    Document,
    Message,
    Messages,
    Prompt,
    Question,
    Rating,
    Record,
    Thumb,
    Verdict,
    Withdrawal,
    differ,
    to_json,
    user,
)
from triptych.storage import entries, sha256_all, sha256_once

DOCUMENT_CHARACTERS = 2000
"""How many characters of paragraphs make one document of a `.txt` file."""

BETTER = ("first", "second", "tie", BOTH_BAD)

R = TypeVar("R", bound=Record)
AnyPlace = str | Path | Source


def read_documents(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Document]:
    """Reads `{"text"}` rows, the paragraphs of a `.txt` file, or Python's standard library, a module a document.

    The paragraphs of a `.txt` file are joined into documents of about 2,000 characters, whose texts
    together are exactly the file's. These are the rows that `rows` counts.

    Args:
        source: a file, a folder, a dataset's name or an address.
        skipped: where given, wrong rows are left out and their faults appended here; otherwise they
            are raised together. The same for all readers.
        places: gets the place of each row that is returned.
        notes: gets what was not read of the rows, and what was done to them, once for each file.

    Raises:
        DataError: the file cannot be used, or rows are wrong and `skipped` is None.
    """
    source = Source.of(source)
    if (texts := _plain_texts(source)) is not None:
        refuse_choice(source)
        _refuse_unread(source, "documents")
        if source.fields:
            raise DataError([Fault(source.file, None, "fields", "is of rows with fields, and this is plain text")])
        chosen = texts[slice(*source.rows or (None,))]
        if texts and not chosen:
            what = f"leaves none of the {len(texts):,} documents that the text makes"
            raise DataError([Fault(source.file, None, "rows", what)])
        if places is not None:
            places += [place for place, _ in chosen]
        return [Document(text) for _, text in chosen]
    return _read(source, "documents", _document, skipped, places, notes, (".txt",))


def read_documents_of_domains(source: AnyPlace) -> list[Document]:
    """Reads the `{"text", "domain"}` rows of a data folder."""
    return _read(source, None, _document_of_domain, None)


def _plain_texts(source: Source) -> list[tuple[Place, str]] | None:
    """The documents of a source that has no rows, each with its place; None of one that has."""
    if is_stdlib(source.file):
        return [(Place(name, 1), text) for name, text in stdlib_files()]
    if kind_of(Path(source.file))[0] != ".txt":
        return None
    text = text_of(fetch(source.file) if is_address(source.file) else Path(source.file))
    return [(Place(source.file, number), part) for number, part in enumerate(_paragraphs(text), start=1)]


def read_conversations(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Conversation]:
    """Reads `{"messages"}` or `{"prompt", "completion"}` rows; see :func:`read_documents`."""
    config = Source.of(source).constrain
    conversations = _read(source, "conversations", parse_conversation, skipped, places, notes)
    return constrain_answers(conversations, config) if config else conversations


def read_prompts(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Prompt]:
    """Reads `{"prompt"}` rows with optional `reference` and `task`; see :func:`read_documents`."""
    source = Source.of(source)
    if source.reference == "answer":
        source = source.model_copy(update={"reference": None})
        answered = _read(source, "conversations", parse_conversation, skipped, places, notes)
        prompts = [replace(row.prompt, reference=row.answer or None) for row in answered]
    else:
        prompts = _read(source, "prompts", _prompt, skipped, places, notes)
    return constrain(prompts, source.constrain) if source.constrain else prompts


def read_comparisons(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Comparison]:
    """Reads `{"prompt", "chosen", "rejected"}` rows; see :func:`read_documents`.

    Where `prompt` is absent, `chosen` and `rejected` are whole conversations and the turns that they
    share are the prompt. Of lines that people added with their names those count that :func:`votes.settled` says.
    """
    rows = _settled(source, "comparisons", skipped, places, notes)
    return [row for row in rows if isinstance(row, Comparison)]


def read_ratings(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Rating]:
    """Reads `{"prompt", "response", "scores"}` rows; see :func:`read_documents`."""
    return _read(source, "ratings", _rating, skipped, places, notes)


def read_thumbs(
    source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Thumb]:
    """Reads `{"prompt", "completion", "label"}` rows, `label` true or false; see :func:`read_documents`."""
    rows = _settled(source, "thumbs", skipped, places, notes)
    return [row for row in rows if isinstance(row, Thumb)]


def read_votes(
    kind: VoteKind, source: AnyPlace, skipped: list[Fault] | None = None, places: list[Place] | None = None,
    notes: list[Fault] | None = None,
) -> list[Vote]:
    """Reads the lines of comparisons or thumbs as they were added, with those that take others back."""
    return _read(source, kind, _VOTES[kind], skipped, places, notes)


def _settled(
    source: AnyPlace, kind: VoteKind, skipped: list[Fault] | None, places: list[Place] | None,
    notes: list[Fault] | None,
) -> list[Comparison | Thumb]:
    """What is learnt from the lines of a file.

    Raises:
        DataError: nothing is.
    """
    all_places: list[Place] = []
    learnt = settled(read_votes(kind, source, skipped, all_places, notes))
    if not learnt.rows:
        raise DataError([Fault(Source.of(source).file, None, None, f"no row is left: {learnt.note or WITHDRAWN}")])
    if notes is not None and learnt.note:
        notes.append(Fault(Source.of(source).file, None, None, learnt.note))
    if places is not None:
        places += [all_places[place] for place, _ in learnt.rows]
    return [row for _, row in learnt.rows]


def read_verdicts(source: str | Path, skipped: list[Fault] | None = None) -> list[Verdict]:
    """Reads `{"prompt", "first", "second", "better"}` rows, those that stand; see :func:`read_documents`."""
    return [row for row in standing(_read(source, None, parse_verdict, skipped)) if isinstance(row, Verdict)]


READERS: Mapping[str, Callable[..., list[Any]]] = {
    "text": read_documents, "conversations": read_conversations, "comparisons": read_comparisons,
    "ratings": read_ratings, "thumbs": read_thumbs, "prompts": read_prompts,
}
"""What reads a user's files of each kind of data."""


CONSTRAINED = ("prompts", "conversations")
"""The kinds of rows that instructions can be added to."""


@dataclass(frozen=True, slots=True)
class GoodRows(Generic[R]):
    """The good rows of a source, each with its place.

    Attributes:
        file: the source's.
    """

    file: str
    placed: Sequence[tuple[Place, R]]


def good_rows(
    kind: str, source: AnyPlace, skipped: list[Fault] | None = None, notes: list[Fault] | None = None
) -> GoodRows[Any]:
    """What the reader of a kind finds in a source; wrong rows are left out, also where nobody asks which.

    Raises:
        DataError: the file cannot be used, or has no good row.
    """
    places: list[Place] = []
    rows = READERS[kind](source, [] if skipped is None else skipped, places, notes)
    return GoodRows(Source.of(source).file, list(zip(places, rows, strict=True)))


def read_saying(
    read: Callable[..., list[R]], sources: Iterable[AnyPlace], say: Callable[[str], None],
    skipped: list[Fault] | None = None, places: list[Place] | None = None,
) -> list[R]:
    """The rows of all sources by one of the readers above; what of them nobody read is said, as is what was left out.

    Whoever reads a user's rows for work that reads them once reads them by this.
    """
    notes: list[Fault] = []
    rows = [row for source in sources for row in read(source, skipped, places, notes)]
    for fault in skipped or ():
        say(f"left out: {fault}")
    for note in notes:
        say(f"note: {note}")
    return rows


def has_lines(path: Path) -> bool:
    """Whether something is there that is not an empty file; what is no file at all, its reader refuses."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def read_any(path: Path, reader: Callable[[Path], list[R]]) -> list[R]:
    """What a reader finds in a file that may be empty, or not be there yet."""
    return reader(path) if has_lines(path) else []


def json_line(record: Record) -> str:
    """A record as a line of JSON Lines."""
    return json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n"


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Writes records as JSON Lines that the readers turn back into equal records."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json_line(record))


def faults_of(record: Record) -> list[Fault]:
    """What the reader of a file would say of a record that is a line of it; only what has no fault is asked or written.

    Of what people are asked, and of what they say.
    """
    parsers: dict[type, Callable[[Row], Any]] = {
        Comparison: parse_comparison, Conversation: parse_conversation, Question: parse_question, Thumb: parse_thumb,
        Verdict: parse_verdict,
    }
    kind = type(record)
    if isinstance(record, Withdrawal):
        kind = Verdict if isinstance(record.question, Question) else Thumb
    return parse_lines("", [json_line(record).encode()], parsers[kind])[1]


def digest(path: str | Path) -> str:
    """Sha256 of a file, or of a folder's files and their names, in hexadecimal."""
    path = Path(path)
    if path.is_dir():
        return sha256_all(path, (file for file in entries(path) if file.is_file()))
    opened(path).close()  # says what is wrong with it
    return sha256_once(path)


def parse_lines(
    file: str, lines: Iterable[bytes], parse: Callable[[Row], R | None], first: int = 1
) -> tuple[list[R], list[Fault]]:
    """The records in lines of JSON Lines, and what is wrong with the others.

    Args:
        file: its name, for faults.
        first: the number of the first line.
    """
    records: list[R] = []
    faults: list[Fault] = []
    for values in numbered(file, lines, first):
        if isinstance(values, Fault):
            faults.append(values)
            continue
        row = Row(values.place, values.fields)
        record = parse(row)
        if record is not None and not row.faults:
            records.append(record)
        faults += row.faults
    return records, faults


def _read(
    source: AnyPlace,
    kind: forms.Kind | None,
    parse: Callable[[Row], R | None],
    skipped: list[Fault] | None,
    places: list[Place] | None = None,
    notes: list[Fault] | None = None,
    also: tuple[str, ...] = (),
) -> list[R]:
    source = Source.of(source)
    _refuse_unread(source, kind)
    reading = _Reading(source, kind)
    records: list[R] = []
    faults: list[Fault] = []
    for values in islice(rows_of(source, also), *source.rows or (None,)):
        if isinstance(values, Fault):
            reading.rows += 1
            faults.append(values)
            continue
        for row in reading.rows_in(values):
            record = None if row.faults else parse(row)
            if record is not None and not row.faults and reading.means(record):
                records.append(record)
                if places is not None:
                    places.append(row.place)
            faults += row.faults
            reading.note_unread(row.place, row.unread)
    faults += reading.faults()
    if not records and not faults:
        raise DataError(reading.emptiness())
    if skipped is None or not records:
        if faults:
            raise DataError(faults)
    else:
        skipped += faults
    if notes is not None:
        notes += reading.notes()
    return records


def _refuse_unread(source: Source, kind: forms.Kind | None) -> None:
    """Refuses what such rows are not read by: a setting that nothing reads would be told as if it counted."""
    refused = {
        "constrain": (source.constrain is not None and kind not in CONSTRAINED, " and ".join(CONSTRAINED)),
        "where": (bool(source.where) and kind in ("documents", None), "rows with a prompt"),
        "reference": (source.reference is not None, "prompts"),
    }
    for field, (unread, of) in refused.items():
        if unread:
            raise DataError([Fault(source.file, None, field, f"is of {of}, and these are {kind or 'others'}")])


class _Reading:
    """The rows of one source in our fields, and what is to be said of all of them together."""

    def __init__(self, source: Source, kind: forms.Kind | None) -> None:
        self.source, self.kind = source, kind
        self.rows = 0
        self._passed = 0
        self._seen: set[str] = set()
        self._given: set[str] = set()
        self._unread: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._first: dict[str, Place] = {}
        if kind is not None:
            _require_fields(source, kind)

    def rows_in(self, values: Values) -> Iterator[Row]:
        self.rows += 1
        if self.kind is None:
            yield Row(values.place, values.fields)
            return
        mapped = self._mapped(values.fields) if self.source.fields else values.fields
        turned = forms.turned(self.kind, mapped, self.source.fields)
        names = {our: self.source.fields.get(name, name) for our, name in turned.names.items()}
        names = {**self.source.fields, **names}
        self._given |= {name for ours in turned.rows for name in ours}
        self.note_unread(values.place, turned.unread)
        for note in turned.notes:
            self._noted[note] += 1
            self._first.setdefault(note, values.place)
        if turned.faults:
            row = Row(values.place, values.fields, self.source.fields)
            for field, message in turned.faults:
                row.fault(field, message)
            yield row
        for ours in turned.rows:
            yield Row(values.place, ours, names)

    def means(self, record: Record) -> bool:
        """Whether the recipe means the row, by what stands in it."""
        meant = is_meant(record, self.source.where)
        self._passed += not meant
        return meant

    def note_unread(self, place: Place, fields: Iterable[str]) -> None:
        for field in dict.fromkeys(fields):
            self._unread[field] += 1
            self._first.setdefault(field, place)

    def _mapped(self, fields: Any) -> dict[str, Any]:
        """The row with the fields that the recipe says are ours."""
        mapped = {name: value for name, value in fields.items() if name not in self.source.fields.values()}
        for our, name in self.source.fields.items():
            value = fields.get(name)
            if value is None:
                value = fields
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    mapped.pop(name.partition(".")[0], None)
            mapped[our] = value
            if value is not None:
                self._seen.add(our)
        return mapped

    def faults(self) -> list[Fault]:
        """Fields that the recipe names and no row has."""
        return [] if not self.rows else [
            Fault(self.source.file, None, f"fields.{our}", f"no row has a field {name}")
            for our, name in self.source.fields.items() if our not in self._seen
        ]

    def emptiness(self) -> list[Fault]:
        """Why there is no record and no fault."""
        if self._passed:
            what = f"is found in none of {self._passed:,} rows; it is searched as a regular expression"
            return [Fault(self.source.file, None, "where", what)]
        if self._noted:
            note, rows = self._noted.most_common(1)[0]
            return [Fault(self.source.file, None, None, f"no row is left: {_rows(rows, self.rows)} {note}")]
        return [Fault(self.source.file, None, None, "empty: expected at least one row")]

    @property
    def _absent(self) -> list[str]:
        """Our fields that no row has: what a misspelt one may have meant."""
        return [name for name in forms.OWN[self.kind] if name not in self._given] if self.kind else []

    def notes(self) -> list[Fault]:
        """What nobody read, and what was done to rows, each with the number of rows."""
        notes = [self._fault(note, None, f"{_rows(rows, self.rows)}: {note}") for note, rows in self._noted.items()]
        if self._passed:
            notes.append(Fault(self.source.file, None, "where", f"passes over {_rows(self._passed, self.rows)}"))
        other = []
        for field, rows in self._unread.items():
            bare = field.rpartition(".")[2]
            nearest = forms.near(bare, self._absent) if bare == field else None
            if bare not in forms.MEANING and nearest is None:
                other.append(f"{field} ({rows:,})")
                continue
            what = f", {forms.MEANING[bare]}" if bare in forms.MEANING else f"; did you mean {nearest}?"
            notes.append(self._fault(field, field, f"is not read, in {_rows(rows, self.rows)}{what}"))
        if other:
            what = f"not read, with the rows that have it: {', '.join(other)}"
            notes.append(Fault(self.source.file, None, None, what))
        return notes

    def _fault(self, key: str, field: str | None, message: str) -> Fault:
        return Fault(*self._first[key], field, message)


def _rows(count: int, of: int) -> str:
    return f"{'all' if count == of > 1 else f'{count:,} of'} {of:,} row{'' if of == 1 else 's'}"


def _require_fields(source: Source, kind: forms.Kind) -> None:
    """Refuses a mapping to a field that is none of ours."""
    known = sorted({*forms.OWN[kind], *forms.fields_of(kind)})
    faults = []
    for our in source.fields:
        if our not in known:
            nearest = forms.near(our, known)
            hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(forms.OWN[kind])}"
            faults.append(Fault(source.file, None, f"fields.{our}", f"no field of {kind}; {hint}"))
    if faults:
        raise DataError(faults)


def _document(row: Row) -> Document | None:
    if row.required("text") is None:
        return None
    text = row.text("text")
    if text is not None and not text.strip():
        row.fault("text", "empty: expected some text")
    return None if text is None else Document(text)


def _document_of_domain(row: Row) -> Document | None:
    document = _document(row)
    return document and replace(document, domain=row.text("domain"))


def _prompt(row: Row) -> Prompt | None:
    value = row.required("prompt")
    if value is None:
        return None
    turns = user(value) if isinstance(value, str) else row.turns("prompt")
    return None if turns is None else _asked(row, "prompt", turns)


def parse_conversation(row: Row, *, may_be_empty: bool = False) -> Conversation | None:
    """A prompt and its answer, or None; what is wrong stands in the row.

    Args:
        may_be_empty: whether the answer may be, as one that is scored and not learnt.
    """
    if row.has("completion") or (row.has("prompt") and not row.has("messages")):
        prompt = _prompt(row)
        answer = _last_turn(row, "completion", prompt, may_be_empty)
        return None if prompt is None or answer is None else Conversation(prompt, answer.content, answer.tool_calls)
    if not row.has("messages"):
        meant = row.meant("messages", "prompt", "completion")
        row.fault("messages", f'missing: expected {{"messages"}} or {{"prompt", "completion"}}{meant}')
        return None
    turns = row.turns("messages")
    if turns is None or not _ends_with_assistant(row, "messages", turns, ASKED_LAST, may_be_empty):
        return None
    turns = _up_to_learnt(turns)
    if not turns:
        row.fault("messages", "nothing to learn: every turn of the assistant has weight 0; leave the row out")
        return None
    prompt = _asked(row, "messages", turns, answered=True)
    return None if prompt is None else Conversation(prompt, turns[-1].content, turns[-1].tool_calls)


def _up_to_learnt(turns: Messages) -> Messages:
    """The turns up to the last that is learnt: what comes behind it is neither learnt nor seen by what is."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learnt), default=-1)
    return turns[: last + 1]


def parse_comparison(row: Row) -> Comparison | None:
    """A comparison, or None; what is wrong stands in the row."""
    prompt = _prompt(row) if row.has("prompt") else _shared_prompt(row)
    if prompt is None and not row.has("prompt"):
        return None
    chosen, rejected = _answer(row, "chosen", prompt), _answer(row, "rejected", prompt)
    if chosen is not None and rejected is not None and not differ(chosen, rejected):
        row.fault("chosen", "the same as rejected: expected two different answers")
    votes, people = row.count("votes_for_chosen"), row.count("num_annotators")
    if votes is not None and people is not None and votes > people:
        row.fault("votes_for_chosen", f"must be at most num_annotators, {people}, got {votes}")
    margin, source = row.number("margin"), row.text("source")
    section, subset, first = row.text("section"), row.text("subset"), row.flag("chosen_first")
    if prompt is None or chosen is None or rejected is None:
        return None
    return Comparison(prompt, chosen, rejected, margin, source, votes, people, section, subset, first, row.name())


def _rating(row: Row) -> Rating | None:
    prompt = _prompt(row)
    response, scores = _answer(row, "response", prompt), row.scores("scores")
    return None if prompt is None or response is None else Rating(prompt, response, scores)


def parse_label(row: Row) -> Comparison | Verdict | Withdrawal | None:
    """A line of comparisons that people add to: one that prefers no answer has the form of a verdict."""
    said = row.has("better") and not row.has("chosen")
    return parse_verdict(row) if said else parse_comparison(row)


def parse_thumb(row: Row) -> Thumb | Withdrawal | None:
    """An answer that was liked or not, or None; what is wrong stands in the row."""
    prompt = _prompt(row)
    completion = _answer(row, "completion", prompt)
    if row.values.get("label") == WITHDRAWN:
        return _withdrawal(row, None if prompt is None or completion is None else Conversation(prompt, completion))
    label = row.flag("label") if row.required("label") is not None else None
    if prompt is None or completion is None or label is None:
        return None
    return Thumb(prompt, completion, label, row.name())


def parse_question(row: Row) -> Question | None:
    """Two answers to choose between, or None; what is wrong stands in the row."""
    prompt = _prompt(row)
    # One of them may be empty: a model that says nothing is compared too.
    first, second = (row.text(name) if row.required(name) is not None else None for name in ("first", "second"))
    if first is not None and second is not None and not differ(first, second):
        row.fault("second", "the same as first: expected two different answers")
    return None if prompt is None or first is None or second is None else Question(prompt, first, second)


def parse_verdict(row: Row) -> Verdict | Withdrawal | None:
    """What somebody said to a question, or None; what is wrong stands in the row."""
    question, better = parse_question(row), row.required("better")
    if better == WITHDRAWN:
        return _withdrawal(row, question)
    if better is not None and better not in BETTER:
        row.fault("better", f"must be one of {', '.join(BETTER)}, got {shown(better)}")
    return None if question is None or better not in BETTER else Verdict(question, better, row.name())


def _withdrawal(row: Row, question: Question | Conversation | None) -> Withdrawal | None:
    """An answer taken back; only whoever has a name can."""
    if (annotator := row.name()) is None:
        row.fault("annotator", "missing: expected the name of whoever takes an answer back")
    return None if question is None or annotator is None else Withdrawal(question, annotator)


VoteKind = Literal["comparisons", "thumbs"]
_VOTES: Mapping[VoteKind, Callable[[Row], Vote | None]] = {"comparisons": parse_label, "thumbs": parse_thumb}


def _shared_prompt(row: Row) -> Prompt | None:
    """The turns that two whole conversations share: the form of a comparison without `prompt`."""
    for field in ("chosen", "rejected"):
        if row.required(field) is not None and isinstance(row.values[field], str):
            row.fault("prompt", f"missing: expected a prompt, or a whole conversation in {field}")
            return None
    if row.faults:
        return None
    chosen, rejected = row.turns("chosen"), row.turns("rejected")
    if chosen is None or rejected is None:
        return None
    if chosen[:-1] != rejected[:-1]:
        row.fault(
            "rejected", "must be the same conversation as chosen but for its last turn, or give a prompt"
        )
        return None
    if not _ends_with_assistant(row, "chosen", chosen):
        return None
    return _asked(row, "chosen", chosen, answered=True)


FOLLOWING = {"system": ("user",), "user": ("assistant",), "assistant": ("user",), "tool": ("assistant", "tool")}
"""Who may speak after whom; after an assistant that calls tools, these."""
MERGE = "merge turns of one speaker that follow each other, or leave the row out (`wrong_rows: skip`)"
ASKED_LAST = "; take the last turn away, or name the file where prompts are read, `improve: {prompts: [FILE]}`"


def _asked(row: Row, field: str, turns: Messages, answered: bool = False) -> Prompt | None:
    """The turns as a prompt, without the answer at their end where there is one.

    After an optional system turn, user and assistant must take turns, with an assistant's tools between, and the user
    or a tool speaks last.
    """
    for index, turn in enumerate(turns):
        before = turns[index - 1] if index else None
        following = ("system", "user") if before is None else ("tool",) if before.tool_calls else FOLLOWING[before.role]
        if turn.role not in following:
            expected = "user" if before is None else " or ".join(following)
            place = f"{field}[{index}].role"
            hint = f"; {MERGE}" if before is not None and before.role == turn.role else ""
            row.fault(place, f"must be {expected}, got {turn.role}: user and assistant take turns{hint}")
            return None
    asked = turns[:-1] if answered else turns
    if asked[-1].role not in ("user", "tool"):
        row.fault(field, f"must end with the user, got {asked[-1].role}")
    elif asked[-1].role == "user" and not asked[-1].content.strip():
        row.fault(field, "empty: expected a user turn with some text")
    else:
        return Prompt(asked, row.reference(), row.text("task"), row.tools(), row.checks())
    return None


def _answer(row: Row, field: str, prompt: Prompt | None) -> str | None:
    """An answer of text alone, as what is compared or rated; see :func:`_last_turn`."""
    value = row.values.get(field)
    calls = [turn for turn in value if isinstance(turn, dict) and turn.get("tool_calls")] \
        if isinstance(value, list) else []
    if calls and isinstance(value, list) and not (prompt is not None and len(value) == len(prompt.messages) + 1
                                                  and value[-1] is not calls[-1]):
        row.fault(field, "calls tools, and what is compared or rated here is one text: leave the row out "
                         "(`wrong_rows: skip`), or put the calls and the tools' turns into the prompt")
        return None
    turn = _last_turn(row, field, prompt)
    return None if turn is None else turn.content


def _last_turn(row: Row, field: str, prompt: Prompt | None, may_be_empty: bool = False) -> Message | None:
    """An answer: a text, one assistant turn, or the whole conversation that ends with it."""
    value = row.required(field)
    if value is None:
        return None
    turns = (Message("assistant", value),) if isinstance(value, str) else row.turns(field)
    if turns is None or not _ends_with_assistant(row, field, turns, may_be_empty=may_be_empty):
        return None
    if len(turns) > 1 and prompt is not None and turns[:-1] != prompt.messages:
        row.fault(
            field, f"must be one assistant turn, or the prompt's turns and one more; got {len(turns)} turns"
        )
        return None
    return turns[-1]


def _ends_with_assistant(
    row: Row, field: str, turns: Messages, remedy: str = "", may_be_empty: bool = False
) -> bool:
    if turns[-1].role != "assistant":
        row.fault(field, f"must end with the assistant, got {turns[-1].role}{remedy}")
    elif not may_be_empty and not turns[-1].content.strip() and not turns[-1].tool_calls:
        row.fault(field, "empty answer: expected some text from the assistant")
    else:
        return True
    return False


def _paragraphs(text: str) -> Iterator[str]:
    """Cuts after blank lines, each piece as many paragraphs as fit; the pieces together are the text."""
    start = end = 0
    for blank in re.finditer(r"\n[ \t\r]*\n\s*", text):
        if end > start and blank.end() - start > DOCUMENT_CHARACTERS:
            yield text[start:end]
            start = end
        end = blank.end()
    if end > start and len(text) - start > DOCUMENT_CHARACTERS and text[end:].strip():
        yield text[start:end]
        start = end
    yield text[start:]
