"""Reads rows into typed records, and says of every wrong row what would be right.

A source is a JSON Lines or Parquet file, a `.txt` file (documents only), or the name of a dataset that
the `datasets` library loads, `owner/name` or `owner/name:split`. The formats are those of TRL's
documentation; a text may stand wherever a list of messages may.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from triptych import json_text
from triptych.errors import DataError, Fault
from triptych.instructions.rows import checks_in
from triptych.records import (
    Check,
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
    differ,
    to_json,
    user,
)
from triptych.storage import IrregularFile, entries, open_regular, sha256_all, sha256_once

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TEXT = (".txt",)

LINE = 64 << 20
"""How many bytes a line of JSON Lines may have."""
BATCH = 1024
"""How many rows of Parquet are unpacked at once."""

DOCUMENT_CHARACTERS = 2000
"""How many characters of paragraphs make one document of a `.txt` file."""

ROLES = ("system", "user", "assistant")
BETTER = ("first", "second", "tie")

R = TypeVar("R", bound=Record)


class Row:
    """One row under reading; what is wrong with it gathers in `faults`."""

    def __init__(self, file: str, line: int, values: Mapping[str, Any]) -> None:
        self.file = file
        self.line = line
        self.values = values
        self.faults: list[Fault] = []

    def fault(self, field: str | None, message: str) -> None:
        """Notes that `field` is wrong; `message` says what was expected."""
        self.faults.append(Fault(self.file, self.line, field, message))

    def has(self, field: str) -> bool:
        """Whether the row gives the field; null, which Parquet has for every absent value, is absent."""
        return self.values.get(field) is not None

    def required(self, field: str) -> Any:
        """The field's value, or None and a fault."""
        if not self.has(field):
            self.fault(field, "missing")
        return self.values.get(field)

    def text(self, field: str) -> str | None:
        """An optional text."""
        value = self.values.get(field)
        if value is None or isinstance(value, str):
            return value
        self.fault(field, f"must be text, got {_kind(value)}")
        return None

    def number(self, field: str) -> float | None:
        """An optional finite number."""
        return self._number(field, self.values.get(field)) if self.has(field) else None

    def count(self, field: str) -> int | None:
        """An optional whole number from 0."""
        value = self.values.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fault(field, f"must be a whole number from 0, got {_kind(value)}")
            return None
        return value

    def flag(self, field: str) -> bool | None:
        """An optional true or false."""
        value = self.values.get(field)
        if value is None or isinstance(value, bool):
            return value
        self.fault(field, f"must be true or false, got {_kind(value)}")
        return None

    def checks(self) -> tuple[Check, ...]:
        """The instructions that code can check, in any of their forms."""
        try:
            found = checks_in(self.values)
        except ValueError as error:
            field, _, what = str(error).partition(": ")
            self.fault(field, what)
            return ()
        return () if found is None else found[1]

    def scores(self, field: str) -> dict[str, float]:
        """Numbers by attribute."""
        value = self.required(field)
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            self.fault(
                field, f"must be an object of at least one attribute and its number, got {_kind(value)}"
            )
            return {}
        numbers = {name: self._number(f"{field}.{name}", score) for name, score in value.items()}
        return {name: number for name, number in numbers.items() if number is not None}

    def turns(self, field: str) -> Messages | None:
        """A list of messages, each with a known role and a text."""
        value = self.values[field]
        if not isinstance(value, list) or not value:
            self.fault(field, f"must be text or a list of messages, got {_kind(value)}")
            return None
        before = len(self.faults)
        turns = [self._turn(f"{field}[{index}]", turn) for index, turn in enumerate(value)]
        return None if len(self.faults) > before else tuple(turn for turn in turns if turn is not None)

    def _turn(self, field: str, value: Any) -> Message | None:
        if not isinstance(value, dict):
            self.fault(field, f'must be an object {{"role", "content"}}, got {_kind(value)}')
            return None
        role, content = value.get("role"), value.get("content")
        if role not in ROLES:
            self.fault(f"{field}.role", f"must be one of {', '.join(ROLES)}, got {_shown(role)}")
        if not isinstance(content, str):
            self.fault(f"{field}.content", f"must be text, got {_kind(content)}")
        return Message(role, content) if role in ROLES and isinstance(content, str) else None

    def _number(self, field: str, value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(field, f"must be a number, got {_kind(value)}")
            return None
        if not math.isfinite(value):
            self.fault(field, f"must be a finite number, got {value}")
            return None
        return float(value)


def read_documents(source: str | Path, skipped: list[Fault] | None = None) -> list[Document]:
    """Reads `{"text"}` rows, or the paragraphs of a `.txt` file.

    The paragraphs of a `.txt` file are joined into documents of about 2,000 characters, whose texts
    together are exactly the file's.

    Args:
        source: a file or a dataset's name.
        skipped: where given, wrong rows are left out and their faults appended here; otherwise they
            are raised together. The same for all readers.

    Raises:
        DataError: the file cannot be used, or rows are wrong and `skipped` is None.
    """
    path = Path(source)
    if path.suffix.lower() in TEXT:
        return [Document(text) for text in _paragraphs(_decoded(path))]
    return _read(source, _document, skipped, TEXT)


def read_conversations(
    source: str | Path, skipped: list[Fault] | None = None, lines: list[int] | None = None
) -> list[Conversation]:
    """Reads `{"messages"}` or `{"prompt", "completion"}` rows; see :func:`read_comparisons`."""
    return _read(source, parse_conversation, skipped, lines=lines)


def read_prompts(
    source: str | Path, skipped: list[Fault] | None = None, lines: list[int] | None = None
) -> list[Prompt]:
    """Reads `{"prompt"}` rows with optional `reference` and `task`; see :func:`read_comparisons`."""
    return _read(source, _prompt, skipped, lines=lines)


def read_comparisons(
    source: str | Path, skipped: list[Fault] | None = None, lines: list[int] | None = None
) -> list[Comparison]:
    """Reads `{"prompt", "chosen", "rejected"}` rows; see :func:`read_documents`.

    Where `prompt` is absent, `chosen` and `rejected` are whole conversations and the turns that they
    share are the prompt. The line of each row that is returned is appended to `lines`, where that is given.
    """
    return _read(source, parse_comparison, skipped, lines=lines)


def read_ratings(
    source: str | Path, skipped: list[Fault] | None = None, lines: list[int] | None = None
) -> list[Rating]:
    """Reads `{"prompt", "response", "scores"}` rows; see :func:`read_comparisons`."""
    return _read(source, _rating, skipped, lines=lines)


def read_thumbs(
    source: str | Path, skipped: list[Fault] | None = None, lines: list[int] | None = None
) -> list[Thumb]:
    """Reads `{"prompt", "completion", "label"}` rows, `label` true or false; see :func:`read_comparisons`."""
    return _read(source, parse_thumb, skipped, lines=lines)


def read_verdicts(source: str | Path, skipped: list[Fault] | None = None) -> list[Verdict]:
    """Reads `{"prompt", "first", "second", "better"}` rows; see :func:`read_documents`."""
    return _read(source, parse_verdict, skipped)


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
    return parse_lines("", [json_line(record).encode()], parsers[type(record)])[1]


def digest(path: str | Path) -> str:
    """Sha256 of a file, or of a folder's files and their names, in hexadecimal."""
    path = Path(path)
    if path.is_dir():
        return sha256_all(path, (file for file in entries(path) if file.is_file()))
    _opened(path).close()  # says what is wrong with it
    return sha256_once(path)


def dataset_name(source: str | Path) -> tuple[str, str] | None:
    """The dataset and the split that a source names, or None where it means a file."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?::(\w[\w.\[\]:%-]*))?", str(source))
    if found is None or Path(source).exists():
        return None
    path = Path(found[1])
    # A name with a data file's extension, or in a folder that is there, is a file misspelt.
    if path.suffix.lower() in LINES + PARQUET + TEXT or path.parent.is_dir():
        return None
    return found[1], found[2] or "train"


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
    for row in _numbered_rows(file, lines, first):
        record = None if isinstance(row, Fault) else parse(row)
        found = [row] if isinstance(row, Fault) else row.faults
        if record is not None and not found:
            records.append(record)
        faults += found
    return records, faults


def _read(
    source: str | Path,
    parse: Callable[[Row], R | None],
    skipped: list[Fault] | None,
    also: tuple[str, ...] = (),
    lines: list[int] | None = None,
) -> list[R]:
    records: list[R] = []
    faults: list[Fault] = []
    rows = 0
    for row in _rows(source, also):
        rows += 1
        if isinstance(row, Fault):
            faults.append(row)
            continue
        record = parse(row)
        if record is not None and not row.faults:
            records.append(record)
            if lines is not None:
                lines.append(row.line)
        faults += row.faults
    if rows == 0:
        raise DataError([Fault(str(source), None, None, "empty: expected at least one row")])
    if skipped is None or not records:
        if faults:
            raise DataError(faults)
    else:
        skipped += faults
    return records


def _rows(source: str | Path, also: tuple[str, ...]) -> Iterator[Row | Fault]:
    name = dataset_name(source)
    if name is not None:
        return _dataset_rows(str(source), *name)
    path = Path(source)
    _opened(path).close()
    suffix = path.suffix.lower()
    if suffix in LINES:
        return _line_rows(path)
    if suffix in PARQUET:
        return _parquet_rows(path)
    known = ", ".join(LINES + PARQUET + also)
    named = f"unknown extension {suffix}" if suffix else "no extension"
    raise DataError([Fault(str(path), None, None, f"{named}: expected one of {known}")])


def _line_rows(path: Path) -> Iterator[Row | Fault]:
    with _opened(path) as file:
        yield from _numbered_rows(str(path), _lines(path, file))


def _lines(path: Path, file: BufferedReader) -> Iterator[bytes]:
    """Bytes up to each "\n"; text would also be split at U+2028, which JSON strings may hold."""
    number = 0
    while line := file.readline(LINE + 1):
        number += 1
        if len(line) > LINE:
            what = f"has more than {LINE >> 20} MiB without an end: expected one object on each line"
            raise DataError([Fault(str(path), number, None, what)])
        yield line


def _numbered_rows(file: str, lines: Iterable[bytes], first: int = 1) -> Iterator[Row | Fault]:
    for number, raw in enumerate(lines, start=first):
        if number == 1:
            _refuse_utf16(file, raw)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        line = _line(file, number, raw.rstrip(b"\r\n"))
        yield from [line] if isinstance(line, Fault) else _parsed(file, number, line)


def _parsed(file: str, number: int, line: str) -> list[Row | Fault]:
    """The row, or what is wrong with it."""
    try:
        values = json_text.parse(line)
    except json_text.JsonError as error:
        wanted = "; expected one whole object on each line"
        return [
            Fault(file, number, place, what + wanted if what.startswith("invalid JSON") else what)
            for place, what in error.faults
        ]
    if not isinstance(values, dict):
        return [Fault(file, number, None, f"must be an object, got {_kind(values)}")]
    return [Row(file, number, values)]


def _parquet_rows(path: Path) -> Iterator[Row | Fault]:
    import pyarrow
    import pyarrow.parquet

    file = str(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError([Fault(file, None, twice, "stands twice: each column needs a name of its own")])
            number = 0
            for batch in table.iter_batches(BATCH):
                for row in _batch_rows(batch):
                    number += 1
                    yield Row(file, number, row) if isinstance(row, dict) else Fault(file, number, *row)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # whatever a damaged one brings about
        raise DataError([Fault(file, None, None, f"cannot be read as Parquet: {error}")]) from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """Each row of a batch, or the field that cannot be read and why."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # a text that is not UTF-8, a time beyond Python's
        columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for index in range(batch.num_rows):
        values: dict[str, Any] = {}
        fault = None
        for name, column in columns:
            try:
                values[name] = column[index].as_py()
            except UnicodeDecodeError:
                fault = fault or (name, "not UTF-8: expected text in UTF-8")
            except (ValueError, OverflowError) as error:
                fault = fault or (name, f"cannot be read: {error}")
        yield fault or values


def _dataset_rows(source: str, name: str, split: str) -> Iterator[Row | Fault]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (
        Exception
    ) as error:  # the library raises many kinds, and each is the name, the split or the network
        what = f"no such file, and datasets cannot load it as {name}, split {split}: {error}"
        raise DataError([Fault(source, None, None, what)]) from error
    for number, values in enumerate(rows, start=1):
        yield Row(source, number, values)


def _document(row: Row) -> Document | None:
    if row.required("text") is None:
        return None
    text = row.text("text")
    if text is not None and not text.strip():
        row.fault("text", "empty: expected some text")
    return None if text is None else Document(text)


def _prompt(row: Row) -> Prompt | None:
    value = row.required("prompt")
    if value is None:
        return None
    turns = user(value) if isinstance(value, str) else row.turns("prompt")
    return None if turns is None else _asked(row, "prompt", turns)


def parse_conversation(row: Row) -> Conversation | None:
    """A prompt and its answer, or None; what is wrong stands in the row."""
    if row.has("prompt") or row.has("completion"):
        prompt = _prompt(row)
        answer = _answer(row, "completion", prompt)
        return None if prompt is None or answer is None else Conversation(prompt, answer)
    if not row.has("messages"):
        row.fault("messages", 'missing: expected {"messages"} or {"prompt", "completion"}')
        return None
    turns = row.turns("messages")
    if turns is None or not _ends_with_assistant(row, "messages", turns):
        return None
    prompt = _asked(row, "messages", turns, answered=True)
    return None if prompt is None else Conversation(prompt, turns[-1].content)


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
    return Comparison(prompt, chosen, rejected, margin, source, votes, people, section, subset, first)


def _rating(row: Row) -> Rating | None:
    prompt = _prompt(row)
    response, scores = _answer(row, "response", prompt), row.scores("scores")
    return None if prompt is None or response is None else Rating(prompt, response, scores)


def parse_thumb(row: Row) -> Thumb | None:
    """An answer that was liked or not, or None; what is wrong stands in the row."""
    prompt = _prompt(row)
    completion = _answer(row, "completion", prompt)
    label = row.flag("label") if row.required("label") is not None else None
    return None if prompt is None or completion is None or label is None else Thumb(prompt, completion, label)


def parse_question(row: Row) -> Question | None:
    """Two answers to choose between, or None; what is wrong stands in the row."""
    prompt = _prompt(row)
    # One of them may be empty: a model that says nothing is compared too.
    first, second = (row.text(name) if row.required(name) is not None else None for name in ("first", "second"))
    if first is not None and second is not None and not differ(first, second):
        row.fault("second", "the same as first: expected two different answers")
    return None if prompt is None or first is None or second is None else Question(prompt, first, second)


def parse_verdict(row: Row) -> Verdict | None:
    """What somebody said to a question, or None; what is wrong stands in the row."""
    question, better = parse_question(row), row.required("better")
    if better is not None and better not in BETTER:
        row.fault("better", f"must be one of {', '.join(BETTER)}, got {_shown(better)}")
    return None if question is None or better not in BETTER else Verdict(question, better)


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


def _asked(row: Row, field: str, turns: Messages, answered: bool = False) -> Prompt | None:
    """The turns as a prompt, without the answer at their end where there is one.

    After an optional system turn, user and assistant must take turns, and the user asks last.
    """
    first = 1 if turns[0].role == "system" else 0
    for index, turn in enumerate(turns[first:]):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            place = f"{field}[{first + index}].role"
            row.fault(place, f"must be {expected}, got {turn.role}: user and assistant take turns")
            return None
    asked = turns[:-1] if answered else turns
    if asked[-1].role != "user":
        row.fault(field, f"must end with the user, got {asked[-1].role}")
    elif not asked[-1].content.strip():
        row.fault(field, "empty: expected a user turn with some text")
    else:
        return Prompt(asked, row.text("reference"), row.text("task"), checks=row.checks())
    return None


def _answer(row: Row, field: str, prompt: Prompt | None) -> str | None:
    """An answer: a text, one assistant turn, or the whole conversation that ends with it."""
    value = row.required(field)
    if value is None:
        return None
    turns = (Message("assistant", value),) if isinstance(value, str) else row.turns(field)
    if turns is None or not _ends_with_assistant(row, field, turns):
        return None
    if len(turns) > 1 and prompt is not None and turns[:-1] != prompt.messages:
        row.fault(
            field, f"must be one assistant turn, or the prompt's turns and one more; got {len(turns)} turns"
        )
        return None
    return turns[-1].content


def _ends_with_assistant(row: Row, field: str, turns: Messages) -> bool:
    if turns[-1].role != "assistant":
        row.fault(field, f"must end with the assistant, got {turns[-1].role}")
    elif not turns[-1].content.strip():
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


def _decoded(path: Path) -> str:
    file = str(path)
    with _opened(path) as opened:
        raw = opened.read()
    _refuse_utf16(file, raw)
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    read = [_line(file, number, line) for number, line in enumerate(lines, start=1)]
    faults = [line for line in read if isinstance(line, Fault)]
    if faults:
        raise DataError(faults)
    text = "\n".join(line for line in read if isinstance(line, str))
    if not text.strip():
        raise DataError([Fault(file, None, None, "empty: expected some text")])
    return text


def _line(file: str, number: int, raw: bytes) -> str | Fault:
    if b"\0" in raw:
        column = raw.index(b"\0") + 1
        return Fault(file, number, None, f"holds a NUL at byte {column} of the line: expected text in UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        return Fault(file, number, None, f"{what}; save the file as UTF-8")


def _refuse_utf16(file: str, raw: bytes) -> None:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError([Fault(file, 1, None, "not UTF-8 but UTF-16: save the file as UTF-8")])


def _opened(path: Path) -> BufferedReader:
    """The file, opened for reading.

    Raises:
        DataError: there is none, it is something else than a file, or may not be read.
    """
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except IrregularFile as error:
        raise DataError([Fault(str(path), None, None, f"{error.found}: expected a file")]) from None
    except (OSError, ValueError) as error:  # a path may hold what no path can
        what = error.strerror if isinstance(error, OSError) else error
        raise DataError([Fault(str(path), None, None, f"cannot be read: {what}")]) from None


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError([Fault(str(path), None, None, f"no such file: there is no folder {folder}")])
    near = difflib.get_close_matches(
        path.name, sorted(file.name for file in folder.iterdir()), n=1, cutoff=0.7
    )
    hint = f"; did you mean {folder / near[0]}?" if near else f" in {folder.resolve()}"
    return DataError([Fault(str(path), None, None, f"no such file{hint}")])


def _kind(value: Any) -> str:
    """What JSON calls the value, with the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    return f"{'an empty' if not value else 'a' if isinstance(value, list) else 'an'} " + (
        "list" if isinstance(value, list) else "object"
    )


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
