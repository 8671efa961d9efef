"""Rows as they stand in files, each with its place: JSON Lines and arrays, CSV, Parquet, folders of these, datasets.

The `datasets` library opens what it saved, and :mod:`triptych.data.remote` what comes over the network. Files are read
here, because a row that two readers could understand differently is refused. None is guessed: in CSV "NA" is a text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NamedTuple

from triptych import json_text
from triptych.data.remote import fetch, load_rows
from triptych.data.source import CHOICE, COMPRESSED, SUFFIXES, Source, dataset_name, is_address, kind_of
from triptych.errors import DataError, Fault
from triptych.storage import IrregularFile, entries, nearest_file, open_regular

LINE = 64 << 20
"""How many bytes a line of JSON Lines may have."""
WHOLE = 4 << 30
"""How many bytes a file may have that is read whole (an array, text), once it is unpacked."""
BATCH = 1024
"""How many rows of Parquet are unpacked at once."""
_BLANK = re.compile(r"\s*")
ROWS = tuple(suffix for suffix in SUFFIXES if suffix not in (".txt", ".arrow"))


class Place(NamedTuple):
    """Where a row stands; the line is its number where a file has no lines."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Values(NamedTuple):
    """A row's fields."""

    place: Place
    fields: Mapping[str, Any]


def rows_of(source: Source, also: Sequence[str] = ()) -> Iterator[Values | Fault]:
    """Every row of a source, and what is wrong with those that are none.

    Args:
        source: a file, a folder, a dataset or an address.
        also: endings that the caller reads besides, for the message.

    Raises:
        DataError: the file cannot be used.
    """
    name = dataset_name(source.file)
    if name is not None:
        return _dataset_rows(source, *name)
    path = Path(source.file)
    if path.is_dir() and kind_of(path)[0] not in SUFFIXES:
        return _folder_rows(path, source)
    refuse_choice(source)
    if is_address(source.file):
        return _fetched_rows(source.file, also)
    return _file_rows(path, also)


def refuse_choice(source: Source) -> None:
    """Refuses what chooses within a dataset, beside a file."""
    field = next((name for name in CHOICE if getattr(source, name)), None)
    if field is not None:
        raise DataError([Fault(source.file, None, field, "is of datasets, and this is a file")])


def _fetched_rows(address: str, also: Sequence[str]) -> Iterator[Values | Fault]:
    """Rows with the address as their place; where the cache has the file means nothing to anybody."""
    try:
        for row in _file_rows(fetch(address), also):
            if isinstance(row, Fault):
                yield replace(row, file=address)
            else:
                yield Values(Place(address, row.place.line), row.fields)
    except DataError as error:
        raise DataError([replace(fault, file=address) for fault in error.faults]) from error


def _file_rows(path: Path, also: Sequence[str] = ()) -> Iterator[Values | Fault]:
    opened(path).close()
    suffix, packed = kind_of(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json_rows(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, "\t" if suffix == ".tsv" else None)
    if suffix == ".parquet" and packed is None:
        return _parquet_rows(path)
    known = ", ".join([*ROWS, *also])
    named = f"unknown extension {suffix}" if suffix else "no extension"
    raise DataError([Fault(str(path), None, None, f"{named}: expected one of {known}, or with .gz or .zst behind")])


def numbered(file: str, lines: Iterable[bytes], start: int = 1) -> Iterator[Values | Fault]:
    """The rows in lines of JSON Lines."""
    for number, raw in enumerate(lines, start=start):
        if number == 1:
            refuse_utf16(file, raw)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        line = decoded_line(file, number, raw.rstrip(b"\r\n"))
        yield from [line] if isinstance(line, Fault) else _parsed(file, number, line)


def _json_rows(path: Path) -> Iterator[Values | Fault]:
    """JSON Lines, or one array of objects."""
    with opened(path) as file:
        with unpacking(path):
            start = file.peek(64)[:64]
        start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"[") and path.suffix.lower() != ".jsonl":
            yield from _array_rows(str(path), read_whole(path, file))
        else:
            yield from numbered(str(path), _lines(path, file))


def _lines(path: Path, file: BufferedReader) -> Iterator[bytes]:
    """Bytes up to each "\n"; text would also be split at U+2028, which JSON strings may hold."""
    number = 0
    while True:
        with unpacking(path):
            line = file.readline(LINE + 1)
        if not line:
            return
        number += 1
        if len(line) > LINE:
            what = f"has more than {LINE >> 20} MiB without an end: expected one object on each line"
            raise DataError([Fault(str(path), number, None, what)])
        yield line


def _array_rows(file: str, text: str) -> Iterator[Values | Fault]:
    """The rows of an array, each with the line on which it begins."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def after(place: int) -> int:
        """Where the next character is that is no blank; lines are counted on the way."""
        nonlocal line, counted
        match = _BLANK.match(text, place)
        assert match is not None
        line, counted = line + text.count("\n", counted, match.end()), match.end()
        return match.end()

    def fault(message: str) -> DataError:
        return DataError([Fault(file, line, None, f"{message}: expected one array of objects")])

    place = after(after(0) + 1)
    while text[place : place + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            line += text.count("\n", place, error.pos)
            raise fault(f"invalid JSON at column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise fault("holds values inside values too deep") from None
        yield from _parsed(file, line, text[place:end])
        place = after(end)
        if text[place : place + 1] == ",":
            place = after(place + 1)
        elif text[place : place + 1] != "]":
            raise fault("invalid JSON, a comma or the end of the array is missing")
    if text[place + 1 :].strip():
        raise fault("more stands behind the end of the array")


def _parsed(file: str, number: int, line: str) -> list[Values | Fault]:
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
        return [Fault(file, number, None, f"must be an object, got {shown_kind(values)}")]
    return [Values(Place(file, number), values)]


def _table_rows(path: Path, delimiter: str | None) -> Iterator[Values | Fault]:
    """CSV or TSV; every cell is text, or nothing where it is empty."""
    file = str(path)
    text = text_of(path)
    head = text[: text.find("\n")] if "\n" in text else text
    if delimiter is None:
        delimiter = ";" if ";" in head and "," not in head else ","
    csv.field_size_limit(LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if not names:
                names = [name.strip() for name in cells]
                _require_columns(file, names)
            elif len(cells) != len(names):
                what = f"has {len(cells)} cells, and the first line names {len(names)} columns"
                yield Fault(file, line, None, f"{what}; put texts with {delimiter!r} or line breaks into quotes")
            else:
                values = {name: _cell(cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
                yield Values(Place(file, line), values)
    except csv.Error as error:
        raise DataError([Fault(file, reader.line_num, None, f"cannot be read as CSV: {error}")]) from error


def _require_columns(file: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError([Fault(file, 1, twice or None, "stands twice: each column needs a name of its own")])


def _cell(text: str) -> Any:
    """A cell's text; a list of messages stands in CSV as JSON."""
    if not text.startswith(("[{", '{"')):
        return text
    try:
        value = json_text.parse(text)
    except json_text.JsonError:
        return text
    first = value[0] if isinstance(value, list) else value
    return value if isinstance(first, dict) and {"role", "from"} & set(first) else text


def _parquet_rows(path: Path) -> Iterator[Values | Fault]:
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
                    place = Place(file, number)
                    yield Values(place, _given(row)) if isinstance(row, dict) else Fault(file, number, *row)
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


def _folder_rows(path: Path, source: Source) -> Iterator[Values | Fault]:
    """A folder of shards, or one that `save_to_disk` wrote."""
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        yield from _saved_rows(path, source)
        return
    if source.configuration or source.data_dir or source.revision:  # the folder of a dataset on the Hub, with its card
        yield from _dataset_rows(source, str(path), "train")
        return
    shards = _shards(path, source.split)
    for shard in shards:
        yield from _file_rows(shard)


def _shards(path: Path, split: str | None) -> list[Path]:
    """The data files of a folder, in the order of their names; of several splits those of one."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    wanted = {file.resolve(): file for file in entries(path)
              if file.is_file() and kind_of(file)[0] in ROWS and not file.name.startswith((".", "dataset_info"))}
    try:
        patterns = get_data_patterns(str(path.resolve()))
    except EmptyDatasetError:
        patterns = {}
    splits = {}
    for split_name, globs in patterns.items():
        matched = {Path(file) for pattern in globs for file in _resolved(resolve_pattern, pattern, path)}
        if shards := sorted(wanted[file] for file in matched if file in wanted):
            splits[str(split_name)] = shards
    if not splits:
        what = f"is a folder without a data file: expected files that end in one of {', '.join(ROWS)}"
        raise DataError([Fault(str(path), None, None, what)])
    name = split or "train"
    if name not in splits:
        raise DataError([Fault(str(path), None, "split", f"no split {name}: there are {', '.join(sorted(splits))}")])
    return splits[name]


def _resolved(resolve: Any, pattern: str, path: Path) -> list[str]:
    try:
        files: list[str] = resolve(pattern, str(path.resolve()))
    except FileNotFoundError:
        return []
    return files


def _saved_rows(path: Path, source: Source) -> Iterator[Values | Fault]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder brings about
        raise DataError([Fault(str(path), None, None, f"cannot be read as a saved dataset: {error}")]) from error
    if isinstance(saved, datasets.DatasetDict):
        name = source.split or "train"
        if name not in saved:
            what = f"no split {name}: there are {', '.join(sorted(map(str, saved)))}"
            raise DataError([Fault(str(path), None, "split", what)])
        saved = saved[name]
    for number, values in enumerate(saved, start=1):
        yield Values(Place(str(path), number), _given(values))


def _dataset_rows(source: Source, name: str, split: str) -> Iterator[Values | Fault]:
    rows = load_rows(source, name, split)
    for number, values in enumerate(rows, start=1):
        yield Values(Place(source.file, number), _given(values))


def _given(value: Any) -> Any:
    """A row of columns without the fields of objects that are null.

    A column has one type, so that each object in it has the fields of all of them: one tool's arguments those of every
    other tool.
    """
    if isinstance(value, dict):
        return {name: _given(field) for name, field in value.items() if field is not None}
    return [_given(entry) for entry in value] if isinstance(value, list) else value


def text_of(path: Path) -> str:
    """A whole file of text in UTF-8.

    Raises:
        DataError: with every line that is not.
    """
    with opened(path) as file:
        text = read_whole(path, file)
    if not text.strip():
        raise DataError([Fault(str(path), None, None, "empty: expected some text")])
    return text


def read_whole(path: Path, opened: BufferedReader) -> str:
    """What is left of an opened file, as text."""
    file = str(path)
    with unpacking(path):
        raw = opened.read(WHOLE + 1)
    if len(raw) > WHOLE:
        raise DataError([Fault(file, None, None, f"has more than {WHOLE >> 30} GiB: divide it, or give JSON Lines")])
    refuse_utf16(file, raw)
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    read = [decoded_line(file, number, line) for number, line in enumerate(lines, start=1)]
    faults = [line for line in read if isinstance(line, Fault)]
    if faults:
        raise DataError(faults)
    return "\n".join(line for line in read if isinstance(line, str))


def decoded_line(file: str, number: int, raw: bytes) -> str | Fault:
    """A line as text, or what is wrong with it."""
    if b"\0" in raw:
        column = raw.index(b"\0") + 1
        return Fault(file, number, None, f"holds a NUL at byte {column} of the line: expected text in UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        return Fault(file, number, None, f"{what}; save the file as UTF-8")


def refuse_utf16(file: str, raw: bytes) -> None:
    """Refuses a file that begins as UTF-16 does."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError([Fault(file, 1, None, "not UTF-8 but UTF-16: save the file as UTF-8")])


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """While a file is read: what a damaged one brings about is said of it."""
    try:
        yield
    except (OSError, EOFError) as error:
        what = "unpacked" if kind_of(path)[1] else "read"
        raise DataError([Fault(str(path), None, None, f"cannot be {what}: {error}")]) from error


def opened(path: Path) -> BufferedReader:
    """The file, opened for reading, and unpacked where its name says that it is compressed.

    Raises:
        DataError: there is none, it is something else than a file, or may not be read.
    """
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except IrregularFile as error:
        raise DataError([Fault(str(path), None, None, f"{error.kind}: expected a file")]) from None
    except (OSError, ValueError) as error:  # a path may hold what no path can
        what = error.strerror if isinstance(error, OSError) else error
        raise DataError([Fault(str(path), None, None, f"cannot be read: {what}")]) from None
    compression = COMPRESSED.get(path.suffix.lower())
    return file if compression is None else _unpacked(file, compression)


def _unpacked(file: IO[bytes], compression: str) -> BufferedReader:
    import pyarrow

    return BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), compression))


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError([Fault(str(path), None, None, f"no such file: there is no folder {folder}")])
    near = nearest_file(path)
    hint = f"; did you mean {near}?" if near else f" in {folder.resolve()}"
    return DataError([Fault(str(path), None, None, f"no such file{hint}")])


def shown_kind(value: Any) -> str:
    """What JSON calls the value, with the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return f"{'an empty' if not value else 'a' if isinstance(value, list) else 'an'} " + (
        "list" if isinstance(value, list) else "object"
    )


def shown(value: Any) -> str:
    """A value in JSON, cut where it is long."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
