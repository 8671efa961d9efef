"""What a recipe says of one of the user's files: where it is, and which of its fields are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from triptych.configuration import Config
from triptych.instructions.constraining import Constraining

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""How the name of a data file ends, before `.gz` and the like."""
COMPRESSED: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
"""How a compressed file's name ends, and what pyarrow calls its compression."""
STDLIB = "python-stdlib"
"""The name of Python's standard library as text, see :mod:`triptych.data.stdlib`."""

CHOICE = ("configuration", "data_dir", "split", "revision")
"""Fields that choose within a dataset."""


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]
"""A regular expression of Python's."""
Part = Literal["prompt", "answer", "task"]
"""What of a row a regular expression is searched in."""


class Reading(Config):
    """How a source is read.

    Attributes:
        fields: for fields of ours those of the file, `{prompt: question}`; a dot leads into an object.
        configuration: of a dataset on the Hub, where it has several.
        data_dir: of a dataset on the Hub: the folder in it, where it has several.
        split: of a dataset, or of a folder with several; `train` by default.
        revision: of a dataset on the Hub: a branch, a tag or a commit.
        rows: of all rows those from the first number on to before the second, counted from 0.
        where: of these rows those in whose prompt (its last turn), answer or task the expressions are found; of a
            prompt the answer is its reference.
        reference: with "answer" the rows are conversations, and a prompt's reference is the answer that follows it. It
            answers the request without the instructions that `constrain` adds: rules `chrf` and `f1` say how much of it
            an answer holds.
        constrain: of prompts, and of conversations to learn: instructions that code can check are added.
    """

    fields: Mapping[str, str] = Field(default_factory=dict)
    configuration: str | None = None
    data_dir: str | None = None
    split: str | None = None
    revision: str | None = None
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = None
    where: Mapping[Part, Expression] = Field(default_factory=dict)
    reference: Literal["answer"] | None = None
    constrain: Constraining | None = None


class Source(Reading):
    """A file of rows, a folder of such files, a dataset's name on the Hub, or a file's address.

    Attributes:
        file: its path, `owner/name` with `:split`, or `https://...`.
    """

    file: str

    @classmethod
    def of(cls, place: str | Path | Source) -> Source:
        """The source that a path or a name alone means."""
        if isinstance(place, Source):
            return place
        name = str(place)
        # As a path, which a command's argument is, an address has lost a slash.
        return cls(file=name.replace(":/", "://", 1) if name.startswith("https:/") and not is_address(name) else name)

    def at(self, place: str | Path) -> Source:
        """The same, at another place."""
        return self.model_copy(update={"file": str(place)})


def _named(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


AnySource = Annotated[Source, BeforeValidator(_named)]
"""A source, or the name of its file alone."""


def kind_of(path: Path) -> tuple[str, str | None]:
    """How a file's rows are written, by its name's end, and how it is compressed: `(".jsonl", "gzip")`."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        return Path(path.stem).suffix.lower(), COMPRESSED[suffix]
    return suffix, None


def is_data_file(place: str | Path) -> bool:
    """Whether the path is a file, or its name ends as a data file's does, be it there or not."""
    return Path(place).is_file() or kind_of(Path(place))[0] in SUFFIXES


def is_address(source: str | Path) -> bool:
    """Whether a source is the address of a file."""
    return str(source).startswith("https://")


def is_stdlib(source: str | Path) -> bool:
    """Whether a source is Python's standard library, by its name alone or with the version behind it."""
    return str(source).startswith(STDLIB) and not Path(source).exists()


def dataset_name(source: str | Path) -> tuple[str, str] | None:
    """The dataset and the split that a source names, or None where it means a file."""
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?::(\w[\w.\[\]:%+-]*))?", str(source))
    if match is None or Path(source).exists():
        return None
    path = Path(match[1])
    # A name with a data file's extension, or in a folder that is there, is a file misspelt.
    if kind_of(path)[0] in SUFFIXES or path.parent.is_dir():
        return None
    return match[1], match[2] or "train"
