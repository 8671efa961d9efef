"""Reading files, splits and lengths: each bad input by its exact message, each record by value."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.data import files
from triptych.data import rows as data_rows
from triptych.data.normal_form import normalised
from triptych.data.remote import reach_hub
from triptych.data.rows import Place
from triptych.data.source import Source, dataset_name
from triptych.errors import DataError, Fault
from triptych.instructions.constraining import Constraining
from triptych.records import (
    Comparison,
    Conversation,
    Document,
    Message,
    Prompt,
    Rating,
    Thumb,
    ToolCall,
    split_reasoning,
    to_json,
    user,
    with_reasoning,
)
from triptych.storage import read_rows

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
BYE = {"role": "assistant", "content": "Bye"}


def lines(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def faults(read: Callable[..., Any], path: Path | str) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path)
    return [str(fault).removeprefix(str(path)) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("read", "row", "record"),
    [
        (files.read_documents, {"text": " a\n"}, Document(" a\n")),
        (files.read_conversations, {"messages": [HI, HELLO]}, Conversation(Prompt(user("Hi")), "Hello")),
        (
            files.read_conversations,
            {"prompt": "Hi", "completion": " Hello "},
            Conversation(Prompt(user("Hi")), " Hello "),
        ),
        (
            files.read_conversations,
            {"prompt": [HI], "completion": [HELLO]},
            Conversation(Prompt(user("Hi")), "Hello"),
        ),
        (
            files.read_conversations,
            {"messages": [{"role": "system", "content": "s"}, HI, HELLO, HI, BYE], "task": "t"},
            Conversation(
                Prompt(
                    (
                        Message("system", "s"),
                        Message("user", "Hi"),
                        Message("assistant", "Hello"),
                        Message("user", "Hi"),
                    ),
                    task="t",
                ),
                "Bye",
            ),
        ),
        (
            files.read_prompts,
            {"prompt": "Hi", "reference": "r", "task": "t"},
            Prompt(user("Hi"), "r", "t"),
        ),
        (
            files.read_comparisons,
            {
                "prompt": "Hi",
                "chosen": "Hello",
                "rejected": "Bye",
                "margin": 2,
                "source": "people",
                "votes_for_chosen": 2,
                "num_annotators": 3,
            },
            Comparison(Prompt(user("Hi")), "Hello", "Bye", 2.0, "people", 2, 3),
        ),
        (
            files.read_comparisons,
            {"chosen": [HI, HELLO], "rejected": [HI, BYE]},
            Comparison(Prompt(user("Hi")), "Hello", "Bye"),
        ),
        (
            files.read_comparisons,
            {"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, BYE]},
            Comparison(Prompt(user("Hi")), "Hello", "Bye"),
        ),
        (
            files.read_ratings,
            {"prompt": "Hi", "response": "Hello", "scores": {"help": 4, "truth": 0.5}},
            Rating(Prompt(user("Hi")), "Hello", {"help": 4.0, "truth": 0.5}),
        ),
        (
            files.read_thumbs,
            {"prompt": [HI], "completion": [HELLO], "label": False},
            Thumb(Prompt(user("Hi")), "Hello", False),
        ),
    ],
)
def test_each_format_becomes_its_record(tmp_path: Path, read: Callable[..., Any], row: object, record: object) -> None:
    assert read(lines(tmp_path, row)) == [record]


MERGE = "merge turns of one speaker that follow each other, or leave the row out (`wrong_rows: skip`)"
CONVERSATION_FAULTS = [
    ([HI, HELLO], ":1: must be an object, got a list"),
    (
        {"turns": []},
        ":1: no known form, with the fields turns; say which of them are meant beside the file's name, "
        "`fields: {prompt: NAME, completion: NAME}`",
    ),
    ({"task": "t"}, ':1: messages: missing: expected {"messages"} or {"prompt", "completion"}'),
    ({"messages": "Hi"}, ':1: messages: must be text or a list of messages, got the text "Hi"'),
    ({"messages": []}, ":1: messages: must be text or a list of messages, got an empty list"),
    ({"messages": ["Hi"]}, ':1: messages[0]: must be an object {"role", "content"}, got the text "Hi"'),
    (
        {"messages": [HI, {"role": "bot", "content": "x"}]},
        ':1: messages[1].role: must be one of system, user, assistant, tool, got "bot"',
    ),
    (
        {"messages": [HI, {"role": "assistant", "content": 3}]},
        ":1: messages[1].content: must be text, got 3",
    ),
    (
        {"messages": [HI]},
        ":1: messages: must end with the assistant, got user; take the last turn away, or name the file where prompts "
        "are read, `improve: {prompts: [FILE]}`",
    ),
    (
        {"messages": [HI, {"role": "assistant", "content": " \n"}]},
        ":1: messages: empty answer: expected some text from the assistant",
    ),
    (
        {"messages": [HI, HELLO, BYE]},
        f":1: messages[2].role: must be user, got assistant: user and assistant take turns; {MERGE}",
    ),
    (
        {"messages": [HI, HI, HELLO]},
        f":1: messages[1].role: must be assistant, got user: user and assistant take turns; {MERGE}",
    ),
    (
        {"messages": [HI, {"role": "system", "content": "s"}, HELLO]},
        ":1: messages[1].role: must be assistant, got system: user and assistant take turns",
    ),
    (
        {"messages": [{"role": "system", "content": "s"}, HELLO]},
        ":1: messages[1].role: must be user, got assistant: user and assistant take turns",
    ),
    (
        {"messages": [HELLO]},
        ":1: messages[0].role: must be user, got assistant: user and assistant take turns",
    ),
    (
        {"prompt": [{"role": "system", "content": "s"}], "completion": "a"},
        ":1: prompt: must end with the user, got system",
    ),
    (
        {"messages": [{"role": "user", "content": " "}, HELLO]},
        ":1: messages: empty: expected a user turn with some text",
    ),
    ({"prompt": "Hi"}, ":1: completion: missing"),
    ({"prompt": "Hi", "completion": None}, ":1: completion: missing"),
    ({"prompt": 4, "completion": "a"}, ":1: prompt: must be text or a list of messages, got 4"),
    ({"prompt": "", "completion": "a"}, ":1: prompt: empty: expected a user turn with some text"),
    ({"prompt": [HI, HELLO], "completion": "a"}, ":1: prompt: must end with the user, got assistant"),
    ({"prompt": "Hi", "completion": "a", "task": 1}, ":1: task: must be text, got 1"),
]


@pytest.mark.parametrize(("row", "message"), CONVERSATION_FAULTS, ids=[m for _, m in CONVERSATION_FAULTS])
def test_a_wrong_conversation_is_named(tmp_path: Path, row: object, message: str) -> None:
    assert faults(files.read_conversations, lines(tmp_path, row)) == [message]


COMPARISON_FAULTS = [
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "a "},
        [":1: chosen: the same as rejected: expected two different answers"],
    ),
    (
        {"prompt": "Hi", "chosen": " ", "rejected": ""},
        [
            ":1: chosen: empty answer: expected some text from the assistant",
            ":1: rejected: empty answer: expected some text from the assistant",
        ],
    ),
    ({"prompt": "Hi", "chosen": "a"}, [":1: rejected: missing"]),
    (
        {"chosen": "a", "rejected": "b"},
        [":1: prompt: missing: chosen and rejected are texts that do not begin alike; expected a prompt, or a whole "
         "conversation in each"],
    ),
    (
        {"chosen": [HI, HELLO], "rejected": [{"role": "user", "content": "Ho"}, BYE]},
        [":1: rejected: must be the same conversation as chosen but for its last turn, or give a prompt"],
    ),
    (
        {"prompt": "Ho", "chosen": [HI, HELLO], "rejected": "b"},
        [":1: chosen: must be one assistant turn, or the prompt's turns and one more; got 2 turns"],
    ),
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "big"},
        [':1: margin: must be a number, got the text "big"'],
    ),
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "votes_for_chosen": 4, "num_annotators": 3},
        [":1: votes_for_chosen: must be at most num_annotators, 3, got 4"],
    ),
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "num_annotators": True},
        [":1: num_annotators: must be a whole number from 0, got true"],
    ),
]


@pytest.mark.parametrize(("row", "messages"), COMPARISON_FAULTS, ids=[m[0] for _, m in COMPARISON_FAULTS])
def test_a_wrong_comparison_is_named(tmp_path: Path, row: object, messages: list[str]) -> None:
    assert faults(files.read_comparisons, lines(tmp_path, row)) == messages


def test_wrong_scores_are_named(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "response": "a"}
    path = lines(
        tmp_path,
        row,
        row | {"scores": {}},
        row | {"scores": {"help": True}},
        row | {"scores": {"truth": float("nan")}},
    )
    assert faults(files.read_ratings, path) == [
        ":1: scores: missing",
        ":2: scores: must be an object of at least one attribute and its number, got an empty object",
        ":3: scores.help: must be a number, got true",
        ":4: scores.truth: must be a finite number, got nan",
    ]


def test_all_faults_of_a_file_come_together_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\r\n'
        b"\n"
        b'{"prompt": "b"\n'
        b'{"prompt": "caf\xe9"}\n'
        b'"c"\n'
        b'{"prompt": "\\ud800"}\n'
        b'{"prompt": "d\0"}\n'
        b'{"prompt": "e"}'
    )
    messages = [
        ":3: invalid JSON at column 15: Expecting ',' delimiter; expected one whole object on each line",
        ":4: not UTF-8: byte 0xe9 at byte 16 of the line; save the file as UTF-8",
        ':5: must be an object, got the text "c"',
        ":6: prompt: holds half of a surrogate pair (\\ud800 to \\udfff): not a character",
        ":7: holds a NUL at byte 14 of the line: expected text in UTF-8",
    ]
    assert faults(files.read_prompts, path) == messages
    skipped: list[Fault] = []
    assert files.read_prompts(path, skipped) == [Prompt(user("a")), Prompt(user("e"))]
    assert [str(fault).removeprefix(str(path)) for fault in skipped] == messages


def test_a_file_with_no_right_row_is_an_error_even_where_faults_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no known form, with the fields a; say which of them are meant"):
        files.read_prompts(lines(tmp_path, {"a": 1}), [])


def test_faults_beyond_the_twentieth_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)rows.jsonl:20: prompt: missing\nand 5 more$"):
        files.read_prompts(lines(tmp_path, *[{}] * 25))


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    lines(tmp_path, {"prompt": "a"}, name="questions.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "rows.xls").write_text("a,b")
    (tmp_path / "inner").mkdir()
    (tmp_path / "rows").write_text("{}")
    (tmp_path / "bad.parquet").write_text("{}")
    (tmp_path / "wide.jsonl").write_bytes('{"prompt": "a"}'.encode("utf-16"))
    read = files.read_prompts
    near = f": no such file; did you mean {tmp_path / 'questions.jsonl'}?"
    assert faults(read, tmp_path / "question.jsonl") == [near]
    assert faults(read, tmp_path / "zzz.jsonl") == [f": no such file in {tmp_path}"]
    folder = tmp_path / "no" / "a.jsonl"
    assert faults(read, folder) == [f": no such file: there is no folder {tmp_path / 'no'}"]
    known = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet"
    assert faults(read, tmp_path / "inner") == [
        f": is a folder without a data file: expected files that end in one of {known}"
    ]
    assert faults(read, tmp_path / "empty.jsonl") == [": empty: expected at least one row"]
    known = f"expected one of {known}, or with .gz or .zst behind"
    assert faults(read, tmp_path / "rows.xls") == [f": unknown extension .xls: {known}"]
    assert faults(read, tmp_path / "rows") == [f": no extension: {known}"]
    assert faults(read, tmp_path / "wide.jsonl") == [":1: not UTF-8 but UTF-16: save the file as UTF-8"]
    (fault,) = faults(read, tmp_path / "bad.parquet")
    assert fault.startswith(": cannot be read as Parquet: ")


def test_parquet_rows_are_read_and_their_faults_numbered(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    rows = [{"prompt": [HI], "task": None}, {"prompt": [HI, HELLO], "task": "t"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    skipped: list[Fault] = []
    assert files.read_prompts(path, skipped) == [Prompt(user("Hi"))]
    assert skipped == [Fault(str(path), 2, "prompt", "must end with the user, got assistant")]


def test_a_dataset_name_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert dataset_name("trl-lib/tldr") == ("trl-lib/tldr", "train")
    assert dataset_name("trl-lib/tldr:validation") == ("trl-lib/tldr", "validation")
    assert dataset_name("trl-lib/tldr:train[:10%]") == ("trl-lib/tldr", "train[:10%]")
    for file in ("here/rows", "support/rows.jsonl", "rows", "a/b/c", str(tmp_path), "../a"):
        assert dataset_name(file) is None


def test_a_dataset_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, configuration: str | None, **chosen: str | None) -> object:
        asked.append((name, configuration, *(chosen[field] for field in ("data_dir", "split", "revision"))))
        split = chosen["split"]
        if split == "none":
            raise ValueError("Unknown split")
        return datasets.Dataset.from_list([{"text": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert files.read_documents("someone/thing:test") == [Document("a")]
    named = Source(file="someone/thing", configuration="main", data_dir="part", split="train[:5]", revision="v1")
    assert files.read_documents(named) == [Document("a")]
    assert asked == [
        ("someone/thing", None, None, "test", None), ("someone/thing", "main", "part", "train[:5]", "v1"),
    ]
    message = "no such file, and datasets cannot load it as someone/thing, split none: Unknown split"
    assert faults(files.read_documents, "someone/thing:none") == [f": {message}"]


@pytest.mark.parametrize("field", ["configuration", "data_dir", "split", "revision"])
def test_what_chooses_within_a_dataset_is_refused_beside_a_file(tmp_path: Path, field: str) -> None:
    (tmp_path / "a.txt").write_text("Words.")
    for path in (lines(tmp_path, {"text": "Words."}), tmp_path / "a.txt"):
        assert files.read_documents(path) == [Document("Words.")]
        with pytest.raises(DataError, match=f"{path}: {field}: is of datasets, and this is a file"):
            files.read_documents(Source.model_validate({"file": str(path), field: "part"}))


def test_an_address_is_fetched_and_stands_for_the_file_in_all_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    pages = {"rows.jsonl": '{"prompt": "Hi"}\n{"prompt": 3}\n', "text.txt": "Some words.\n", "page.jsonl": "<html>"}
    asked: list[str] = []

    def download(manager: object, address: str) -> str:
        asked.append(address)
        if not address.startswith("https://example.org/"):
            raise ConnectionError("no such host")
        cached = tmp_path / str(len(asked))  # the cache names a file by a hash, without how it ends
        cached.write_text(pages[address.removeprefix("https://example.org/")])
        return str(cached)

    monkeypatch.setattr(datasets.DownloadManager, "download", download)
    skipped: list[Fault] = []
    places: list[Place] = []
    assert files.read_prompts("https://example.org/rows.jsonl", skipped, places) == [Prompt(user("Hi"))]
    assert [str(fault) for fault in skipped] == [
        "https://example.org/rows.jsonl:2: prompt: must be text or a list of messages, got 3"
    ]
    assert places == [Place("https://example.org/rows.jsonl", 1)]
    assert files.read_prompts(Path("https://example.org/rows.jsonl"), []) == [Prompt(user("Hi"))]
    places.clear()
    assert files.read_documents("https://example.org/text.txt", places=places) == [Document("Some words.\n")]
    assert places == [Place("https://example.org/text.txt", 1)]
    for address, message in (
        ("https://example.org/page.jsonl", "page.jsonl:1: invalid JSON"),
        ("https://example.com/rows.jsonl", "rows.jsonl: cannot be fetched: no such host"),
    ):
        with pytest.raises(DataError, match=message):
            files.read_prompts(address)
    assert files.read_prompts(lines(tmp_path, {"prompt": "Hi"})) == [Prompt(user("Hi"))]
    assert len(asked) == 5


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, huggingface_hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            asked.append(address)
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    reach_hub.cache_clear()
    try:
        for name in ("someone/one", "someone/other"):
            with pytest.raises(DataError, match=f"datasets cannot load it as {name}"):
                files.read_prompts(name)
        assert not reach_hub()
        assert huggingface_hub.is_offline_mode()
    finally:
        reach_hub.cache_clear()
    assert asked == [huggingface_hub.constants.ENDPOINT]


def test_each_wrong_thumb_says_what_is_expected(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "a"}
    path = lines(tmp_path, row, row | {"label": "up"}, row | {"label": 1}, {"prompt": "Hi", "label": True})
    assert faults(files.read_thumbs, path) == [
        ":1: label: missing",
        ':2: label: must be true or false, got the text "up"',
        ":3: label: must be true or false, got 1",
        ":4: completion: missing",
    ]


def test_records_survive_writing(tmp_path: Path) -> None:
    odd = ' "quote" \\ \u2028 \u0085 é \U0001f600 \r\n\t\0 '
    asked = Prompt((Message("system", ""), *user(odd)), reference="r", task="t")
    for read, records in (
        (files.read_documents, [Document(odd), Document("b")]),
        (files.read_prompts, [asked, Prompt(user("b"))]),
        (files.read_conversations, [Conversation(asked, odd)]),
        (files.read_comparisons, [Comparison(asked, odd, "b", -0.1, "s", 0, 1), Comparison(asked, "a", "b")]),
        (files.read_ratings, [Rating(asked, odd, {"é": 1 / 3})]),
        (files.read_thumbs, [Thumb(asked, odd, True), Thumb(asked, "a", False)]),
    ):
        path = tmp_path / "rows.jsonl"
        files.write(path, records)
        assert read(path) == records


def test_text_is_cut_at_paragraphs_and_stays_exact(tmp_path: Path) -> None:
    draw = random.Random(1)
    words = ["a" * 300, "b\n" * 40, "é\r\n", "\n", "\n \t\n", "\r\n\r\n", "\n\n\n", "c" * 2500, "d\f"]
    for _ in range(50):
        text = "x" + "".join(draw.choice(words) for _ in range(60))
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        texts = [document.text for document in files.read_documents(tmp_path / "a.txt")]
        assert "".join(texts) == text
        assert all(part.strip() for part in texts)
        # Only a paragraph that is longer by itself makes a longer document.
        assert all(len(part) <= 2000 or "\n\n" not in part.strip("\r\n\t ") for part in texts)


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\n  \xff bad\n")
    assert faults(files.read_documents, path) == [
        ":3: not UTF-8: byte 0xff at byte 3 of the line; save the file as UTF-8"
    ]
    path.write_text(" \n")
    assert faults(files.read_documents, path) == [": empty: expected some text"]


def test_digest_changes_with_contents_and_names(tmp_path: Path) -> None:
    assert files.digest(lines(tmp_path, name="none.jsonl")) == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_text("a")
    first = files.digest(folder)
    assert files.digest(folder) == first
    (folder / "inner" / "a").rename(folder / "inner" / "b")
    renamed = files.digest(folder)
    (folder / "inner" / "b").write_text("b")
    assert len({first, renamed, files.digest(folder)}) == 3
    with pytest.raises(DataError, match="no such file"):
        files.digest(tmp_path / "missing")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_files_are_read_whole() -> None:
    conversations = files.read_conversations(SHARED / "instruct/alpaca_5000.jsonl")
    assert len(conversations) == 4998
    assert conversations[1].answer == "E, G, B"
    pandalm = files.read_comparisons(SHARED / "preferences/pandalm.jsonl")
    assert len(pandalm) == 586
    assert len({comparison.prompt.key for comparison in pandalm}) == 106
    longer = sum(len(comparison.chosen) > len(comparison.rejected) for comparison in pandalm)
    assert round(longer / len(pandalm), 2) == 0.66
    prompts = files.read_prompts(SHARED / "prompts/self_instruct_seeds.jsonl")
    assert len(prompts) == 175
    assert {prompt.task for prompt in prompts} >= {"generation"}
    text = SHARED / "text/tinyshakespeare.txt"
    assert "".join(document.text for document in files.read_documents(text)).encode() == text.read_bytes()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_comparisons_with_roles_out_of_order_are_named_and_can_be_skipped() -> None:
    path = SHARED / "preferences/hh_harmless.jsonl"
    skipped: list[Fault] = []
    assert len(files.read_comparisons(path, skipped)) == 1496
    rule = f"must be user, got assistant: user and assistant take turns; {MERGE}"
    assert [fault.message for fault in skipped] == [rule] * 3
    with pytest.raises(DataError) as caught:
        files.read_comparisons(path)
    assert list(caught.value.faults) == skipped


def test_rows_of_our_own_are_whole_whatever_a_model_wrote_in_them(tmp_path: Path) -> None:
    answers = ["one\u2028two", "three\x85four", "five\x0bsix\x1c", "seven\r\neight"]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"answer": each}, ensure_ascii=False) + "\n" for each in answers))
    assert [row["answer"] for row in read_rows(path)] == answers

    with open(path, "a") as file:
        file.write('{"answer": "cut by a ki')
    assert len(read_rows(path)) == 4
    assert read_rows(tmp_path / "none.jsonl") == []


def strange_files(folder: Path) -> dict[str, Path]:
    """What is no file, each under a name by which it would be read."""
    os.mkfifo(folder / "fifo.jsonl")
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "folder.jsonl").mkdir()
    (folder / "circle.jsonl").symlink_to("circle.jsonl")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(os.path.relpath(folder / "socket.jsonl"))
    return {path.stem: path for path in folder.glob("*.jsonl")}


@pytest.mark.attack("data files")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
@pytest.mark.parametrize(("name", "message"), [
    ("fifo", "is a FIFO: expected a file"), ("device", "is a device: expected a file"),
    ("folder", "is a folder: expected a file"), ("socket", "is a socket: expected a file"),
    ("circle", "cannot be read: Too many levels of symbolic links"),
])
def test_what_is_no_file_is_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = strange_files(tmp_path)[name].rename(tmp_path / f"{name}{suffix}")
    if name == "circle":
        path = tmp_path / f"again{suffix}"
        path.symlink_to(path.name)
    assert faults(files.read_documents, path) == [f": {message}"]
    if name != "folder":
        with pytest.raises(DataError, match=re.escape(message)):
            files.digest(path)
    if name != "circle":  # a link that leads nowhere is as if nothing were there
        with pytest.raises(DataError, match=re.escape(message)):
            files.read_any(path, files.read_documents)


@pytest.mark.attack("data files")
@pytest.mark.parametrize(("row", "message"), [
    ('{"prompt": "a", "prompt": "b"}', "prompt: stands twice in one object"),
    ('{"prompt": [{"role": "user", "content": "a", "role": "user"}]}', "role: stands twice in one object"),
    ('{"prompt": "a", "margin": NaN}', "margin: must be a finite number, got nan"),
    ('{"prompt": "a", "more": [0, {"x": -Infinity}]}', "more[1].x: must be a finite number, got -inf"),
    ('{"prompt": "a", "margin": 1e400}', "margin: must be a finite number, got inf"),
    (f'{{"prompt": "a", "margin": {"9" * 400}}}', "margin: must be a finite number, got inf"),
    (f'{{"prompt": "a", "margin": {"9" * 5000}}}', "margin: must be a finite number, got inf"),
    (f'{{"prompt": {"[" * 101}{"]" * 101}}}', "prompt: holds values inside values more than 100 deep"),
    ("[" * 100_000, "holds values inside values more than 100 deep"),
    ('{"prompt": [{"role": "user", "content": "\\uDFFF"}]}',
     "prompt[0].content: holds half of a surrogate pair (\\ud800 to \\udfff): not a character"),
    ('{"prompt": "a", "\\ud800": 1}', "has a field whose name holds half of a surrogate pair: not a character"),
    ('\ufeff{"prompt": "a"}', "invalid JSON at column 1: Unexpected UTF-8 BOM (decode using utf-8-sig); "
     "expected one whole object on each line"),
])
def test_json_that_could_be_misread_is_named_with_its_line_and_field(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "good"}\n' + row + "\n", encoding="utf-8")
    assert faults(files.read_prompts, path) == [f":2: {message}"]
    skipped: list[Fault] = []
    assert files.read_prompts(path, skipped) == [Prompt(user("good"))]
    assert len(skipped) == 1


@pytest.mark.attack("data files")
def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_rows, "LINE", 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "')
    os.truncate(path, 1 << 40)
    message = ":2: has more than 1 MiB without an end: expected one object on each line"
    assert faults(files.read_prompts, path) == [message]


@pytest.mark.attack("data files")
def test_texts_in_parquet_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array([b"good", b"caf\xe9", b"\xed\xa0\x80"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"prompt": texts}), path)
    assert faults(files.read_prompts, path) == [
        ":2: prompt: not UTF-8: expected text in UTF-8", ":3: prompt: not UTF-8: expected text in UTF-8"
    ]


@pytest.mark.attack("data files")
def test_a_column_of_parquet_that_stands_twice_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["prompt"] * 2), path)
    assert faults(files.read_prompts, path) == [": prompt: stands twice: each column needs a name of its own"]


READERS: list[Callable[..., list[Any]]] = [
    files.read_documents, files.read_conversations, files.read_prompts, files.read_comparisons, files.read_ratings,
    files.read_thumbs, files.read_verdicts,
]


@pytest.mark.attack("data files")
def test_no_line_does_more_than_be_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    good = [
        '{"text": "a"}', '{"prompt": "a", "completion": "b"}', '{"prompt": "a", "chosen": "b", "rejected": "c"}',
        '{"prompt": [{"role": "user", "content": "a"}], "response": "b", "scores": {"c": 1.5}}',
        '{"prompt": "a", "first": "b", "second": "c", "better": "tie"}',
        '{"prompt": "a", "reference": "1", "task": "t"}',
    ]
    parts = [
        *'{}[]",:0123456789-+.eE', "null", "true", "NaN", "1e999", "9" * 400, "\\ud800", "\\u0000", "\\x", "\0", "\x1b",
        "[" * 200, '{"a":' * 200, '"prompt"', '"role"', '"content"', '"system"', '"scores"', "\u2028", "\ufeff",
    ]
    rows = []
    for _ in range(1500):
        row = list(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(row) + 1)
            row[place : place + rng.randint(0, 5)] = [rng.choice(parts)]
        rows.append("".join(row).encode("utf-8", "surrogatepass"))
    rows += [bytes(rng.choices(range(256), k=rng.randint(1, 40))) for _ in range(300)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good[0].encode(), *rows]))
    for reader in READERS:
        skipped: list[Fault] = []
        try:
            records = reader(path, skipped)
        except DataError:
            continue
        assert skipped
        files.write(tmp_path / "again.jsonl", records)
        assert reader(tmp_path / "again.jsonl") == records


@pytest.mark.attack("data files")
def test_damaged_parquet_is_read_or_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = random.Random(1)
    rows = [{"prompt": [HI], "task": f"t{n}", "margin": n / 3} for n in range(50)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    path = tmp_path / "rows.parquet"
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randint(0, len(damaged))] if rng.random() < 0.2 else damaged)
        with contextlib.suppress(DataError):
            files.read_prompts(path, [])


def test_records_with_tools_and_reasoning_on_disk() -> None:
    call = ToolCall("weather", '{"city": "Ulm", "days": 2}', "c1")
    asked = Message("assistant", "", (call,), learnt=False)
    told = Message("tool", "rain", name="weather", tool_call_id="c1")
    tool = '{"type": "function", "function": {"name": "weather", "parameters": {}}}'
    prompt = Prompt((*user("Ulm?"), asked, told), tools=(tool,))
    answer = with_reasoning("It rains.", "Rain.")
    assert to_json(Conversation(prompt, answer)) == {
        "messages": [
            {"role": "user", "content": "Ulm?"},
            {
                "role": "assistant", "content": "", "weight": 0,
                "tool_calls": [{
                    "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm", "days": 2}},
                    "id": "c1",
                }],
            },
            {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "c1"},
            {"role": "assistant", "content": "<think>\nIt rains.\n</think>\n\nRain."},
        ],
        "tools": [json.loads(tool)],
    }
    assert split_reasoning(answer) == ("It rains.", "Rain.")
    assert split_reasoning("<think>a</think>b") == ("a", "b")
    assert split_reasoning("no <think> at the start</think>") == (None, "no <think> at the start</think>")
    plain = Prompt((*user("Ulm?"), Message("assistant", ""), told))
    keys = {each.key for each in (prompt, plain, Prompt(prompt.messages), Prompt(plain.messages, tools=(tool,)))}
    assert len(keys) == len({normalised(Prompt(p.messages, tools=p.tools)) for p in (prompt, plain)}) + 2 == 4


@pytest.mark.parametrize(
    ("reasoning", "answer"), [("a\nb", "c"), ("", "c"), ("a", ""), (" a ", " c\n"), ("\na\n", "\nc")]
)
def test_reasoning_is_split_off_as_it_was(reasoning: str, answer: str) -> None:
    assert split_reasoning(with_reasoning(reasoning, answer)) == (reasoning, answer)


def test_every_setting_of_how_a_file_is_read_is_followed_or_refused(tmp_path: Path) -> None:
    """What a recipe says of a file counts for every kind of rows, or is an error: never is it passed over."""
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text("\n\n".join(f"paragraph {number} " + "word " * 500 for number in range(6)))
    rows.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    whole = files.read_documents(text)
    places: list[Place] = []
    assert files.read_documents(Source(file=str(text), rows=(1, 3)), places=places) == whole[1:3]
    assert [place.line for place in places] == [2, 3]
    assert [row.text for row in files.read_documents(Source(file=str(rows), rows=(1, 3)))] == ["b", "c"]
    with pytest.raises(DataError, match=r"text\.txt: rows: leaves none of the 6 documents"):
        files.read_documents(Source(file=str(text), rows=(60, 70)))
    with pytest.raises(DataError, match="fields: is of rows with fields, and this is plain text"):
        files.read_documents(Source(file=str(text), fields={"text": "body"}))
    for kind in ("text", "comparisons", "ratings", "thumbs"):
        for place in (text, rows) if kind == "text" else (rows,):
            with pytest.raises(DataError, match="constrain: is of prompts and conversations, and"):
                files.READERS[kind](Source(file=str(place), constrain=Constraining()))
    with pytest.raises(DataError, match="where: is of rows with a prompt, and these are documents"):
        files.read_documents(Source(file=str(rows), where={"prompt": "a"}))
    with pytest.raises(DataError, match="reference: is of prompts, and these are conversations"):
        files.read_conversations(Source(file=str(rows), reference="answer"))


TALKS = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
    for asked, answer in (("Translate: dog", "le chien"), ("Who is it?", "a dog"), ("translate: cat", "le chat"))
]


def test_rows_are_chosen_by_what_stands_in_them(tmp_path: Path) -> None:
    path = lines(tmp_path, *TALKS)
    notes: list[Fault] = []
    places: list[Place] = []
    source = Source(file=str(path), where={"prompt": "(?i)^translate"})
    assert [row.answer for row in files.read_conversations(source, None, places, notes)] == ["le chien", "le chat"]
    assert [place.line for place in places] == [1, 3]
    assert [str(note) for note in notes] == [f"{path}: where: passes over 1 of 3 rows"]
    # Rows are counted before they are chosen, and every expression must be found.
    chosen = source.model_copy(update={"rows": (1, 3), "where": {"prompt": "(?i)translate", "answer": "chat"}})
    assert [row.answer for row in files.read_conversations(chosen)] == ["le chat"]
    pairs = lines(tmp_path, {"prompt": "p", "chosen": "one", "rejected": "two", "task": "a"},
                  {"prompt": "q", "chosen": "three", "rejected": "four", "task": "b"}, name="pairs.jsonl")
    assert [row.prompt for row in files.read_comparisons(Source(file=str(pairs), where={"task": "^b$"}))] \
        == [Prompt(user("q"), task="b")]
    assert len(files.read_comparisons(Source(file=str(pairs), where={"answer": "two|four"}))) == 2
    with pytest.raises(DataError, match="where: is found in none of 3 rows; it is searched as a regular expression"):
        files.read_conversations(Source(file=str(path), where={"prompt": "summarise"}))
    with pytest.raises(ValueError, match="is no regular expression: missing"):
        Source(file=str(path), where={"prompt": "(translate"})


def test_an_answer_is_the_reference_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = lines(tmp_path, *TALKS)
    prompts = files.read_prompts(Source(file=str(path), reference="answer", where={"answer": "^le "}))
    assert prompts == [Prompt(user("Translate: dog"), "le chien"), Prompt(user("translate: cat"), "le chat")]
    assert [prompt.reference for prompt in files.read_prompts(path)] == [None] * 3
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    called = lines(tmp_path, {"messages": [{"role": "user", "content": "call"}, call]}, name="called.jsonl")
    assert [row.reference for row in files.read_prompts(Source(file=str(called), reference="answer"))] == [None]
    constrained = files.read_prompts(Source(file=str(path), reference="answer", constrain=Constraining()))
    assert constrained == [replace(prompt, reference=talk["messages"][1]["content"]) for prompt, talk in zip(
        files.read_prompts(Source(file=str(path), constrain=Constraining())), TALKS, strict=True)]
