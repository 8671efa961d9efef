"""What people say is never lost: one rule for what is asked, written and read; whole lines; nobody swallowed."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from triptych import storage
from triptych.cli import app
from triptych.data import growing
from triptych.data.files import (
    json_line,
    parse_lines,
    parse_verdict,
    read_comparisons,
    read_thumbs,
    read_verdicts,
    write,
)
from triptych.data.growing import GrowingFile
from triptych.errors import AnsweredError, DataError
from triptych.evaluate.answers import Pair
from triptych.evaluate.panel import preferred
from triptych.people.inbox import Inbox
from triptych.people.page import Deal, PageAnswer
from triptych.people.questions import FORMS, Asking, Form, Labels, Thumbs, ask, distances
from triptych.people.verdicts import Panel
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Prompt, Question, Rollout, Thumb, Verdict, Withdrawal, user


def question(number: int, first: str = "one", second: str = "two") -> Question:
    return Question(Prompt(user(f"question {number}")), first, second)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Five questions that nobody has answered."""
    write(tmp_path / "questions.jsonl", [question(number) for number in range(5)])
    return Labels(tmp_path / "questions.jsonl", tmp_path / "labels.jsonl")


def test_an_answer_of_which_no_thumb_could_be_read_is_not_asked_about(tmp_path: Path) -> None:
    asked = Prompt(user("really?"))
    write(tmp_path / "questions.jsonl", [Conversation(asked, answer) for answer in ("yes", " \n", "no")])
    thumbs = Thumbs(tmp_path / "questions.jsonl", tmp_path / "thumbs.jsonl")
    assert [question.answer for question in thumbs.open.values()] == ["yes", "no"]
    with pytest.raises(DataError):
        thumbs.add(Conversation(asked, " \n"), "up")
    assert not thumbs.file.exists()
    thumbs.add(Conversation(asked, "no"), "down")
    with pytest.raises(AnsweredError):
        Thumbs(thumbs.questions, thumbs.file).add(Conversation(asked, "no"), "up")
    assert [question.answer for question in thumbs.open.values()] == ["yes"]
    assert read_thumbs(thumbs.file) == [Thumb(asked, "no", False)]


LOOK_ALIKE = [("yes", "yes\n"), ("yes", "\u00a0yes"), ("yes\u2028", "\tyes"), ("", "\n"), (" ", "")]


@pytest.mark.attack("people")
@pytest.mark.parametrize(("first", "second"), [*LOOK_ALIKE, ("yes", ""), ("\n", "yes")])
def test_what_could_not_be_read_is_neither_asked_nor_written(labels: Labels, first: str, second: str) -> None:
    odd = question(9, first, second)
    write(labels.questions, [question(0), odd])
    assert list(labels.open.values()) == [question(0)]
    for choice in labels.choices:
        with pytest.raises(DataError):
            labels.add(odd, choice.name)
    assert not labels.file.exists()
    labels.add(question(0), "second")
    assert len(read_comparisons(labels.file)) == 1


@pytest.mark.attack("people")
@pytest.mark.parametrize(("first", "second"), LOOK_ALIKE)
def test_a_gate_asks_nobody_about_answers_that_look_alike(tmp_path: Path, first: str, second: str) -> None:
    write(tmp_path / "questions.jsonl", [question(0), question(9, first, second), question(1, "", "two")])
    panel = Panel(tmp_path / "questions.jsonl", tmp_path / "verdicts.jsonl")
    assert list(panel.open.values()) == [question(0), question(1, "", "two")]
    for each in panel.open.values():
        panel.add(each, "second")
    assert len(read_verdicts(panel.file)) == 2
    assert preferred([Pair(Prompt(user("question 9")), first, second, 1, 1)], []) == [0.5]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("comparisons", [("yes", "no"), ("yes", "perhaps"), ("no", "perhaps")]),
     ("thumbs", [("yes",), ("no",), ("perhaps",)])],
)
def test_of_answers_that_look_alike_one_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, expected: list[tuple[str, ...]]
) -> None:
    said = ["yes", "yes\n", "no", " ", "no ", "perhaps"]

    class Model:
        def fitting(self, prompts: Sequence[Prompt], *_: object) -> Sequence[Prompt]:
            return prompts

        def write(self, prompts: Sequence[Prompt], *_: object, **__: object) -> list[list[Rollout]]:
            return [[Rollout(prompt, (1,), (2,), (0.0,), each, True) for each in said] for prompt in prompts]

    monkeypatch.setattr("triptych.people.questions.Policy.open", lambda folder: Model())
    write(tmp_path / "prompts_feedback.jsonl", [Prompt(user("really?"))])
    context = StageContext(tmp_path, tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    config = Asking(ask_for=form, prompts=1, answers=6)
    assert ask(context, config, tmp_path, tmp_path).questions == 3
    asked = FORMS[form](tmp_path / "questions.jsonl", tmp_path / "none.jsonl").open.values()
    assert {frozenset(question.answers) for question in asked} == set(map(frozenset, expected))


def test_a_question_is_the_clearer_the_further_a_reward_tells_its_answers_apart() -> None:
    assert distances([[1.0, 4.0], [2.0, 2.5]]) == [3.0, 0.5]
    assert distances([[1.0], [2.0], [7.0]]) == [1.0, 0.0, 5.0]  # their median is 2


@pytest.mark.attack("people")
def test_a_last_line_without_an_end_swallows_no_answer(labels: Labels, tmp_path: Path) -> None:
    labels.file.write_text(json_line(question(0).compared(first_is_better=True)).rstrip("\n"))
    assert len(labels.open) == 4  # it counts already
    assert Inbox(labels.file, tmp_path / "arrivals").waiting == 1
    assert labels.add(question(1), "second") is None
    assert [row.chosen for row in read_comparisons(labels.file)] == ["one", "two"]
    assert len(Inbox(labels.file, tmp_path / "arrivals").take(1).read_text().splitlines()) == 2


@pytest.mark.attack("people")
@pytest.mark.parametrize("tail", [b'{"prompt": "half a li', b"\xff\xfe\xc3", b"\0\0\0\0", b'{"prompt": "\xe2\x82'])
def test_an_unfinished_line_refuses_nobody_and_is_set_aside(labels: Labels, tmp_path: Path, tail: bytes) -> None:
    labels.add(question(0), "first")
    with open(labels.file, "ab") as file:
        file.write(tail)
    arrivals = Inbox(labels.file, tmp_path / "arrivals")
    assert f"ends in {len(tail)} bytes that are no whole line" in arrivals.note
    assert len(read_comparisons(arrivals.take(1))) == 1
    (note,) = labels.notes
    assert "labels.jsonl.unfinished" in note
    assert len(labels.open) == 4
    assert labels.add(question(1), "second") == tail.decode("utf-8", "replace")
    assert labels.notes == []
    assert arrivals.note == ""
    assert len(read_comparisons(labels.file)) == 2
    assert len(read_comparisons(arrivals.take(2))) == 1
    assert json.loads((tmp_path / "labels.jsonl.unfinished").read_text()) == tail.decode("utf-8", "replace")


@pytest.mark.attack("full disk")
def test_a_full_disk_leaves_the_file_whole_and_the_answer_with_who_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nstorybook: {}\nbase: {train: {}}\nfeedback: [{people: labels.jsonl}]\ngate: {judge: exact}\n"
    )
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    write(tmp_path / "runs" / "tiny" / "questions.jsonl", [question(0), question(1, "a\x1b]0;owned\x07b", "\x1b[2Jc")])
    room, real = iter([3, 5, None, None]), os.write

    def written(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: next(room)] if data.startswith(b'{"prompt"') else data)

    monkeypatch.setattr(os, "write", written)
    ended = CliRunner().invoke(
        app, ["label", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs")], input="1\n\n\n2\n"
    )
    assert ended.exit_code == 0, ended.output
    assert ended.stderr.count("No space left on device; what you said is kept") == 2
    assert "2 answers added" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert [row.chosen for row in read_comparisons(tmp_path / "labels.jsonl")] == ["one", "\x1b[2Jc"]


@pytest.mark.attack("people")
def test_two_people_on_one_question_and_the_second_is_told(labels: Labels) -> None:
    other = Labels(labels.questions, labels.file)  # as another program has it
    assert len(other.open) == 5
    labels.add(question(0), "first")
    with pytest.raises(AnsweredError, match="answered meanwhile; what you said was not added"):
        other.add(question(0), "second")
    assert len(read_comparisons(labels.file)) == 1


@pytest.mark.attack("people")
def test_of_many_who_answer_at_once_each_question_keeps_one(tmp_path: Path) -> None:
    questions = [question(number) for number in range(20)]
    write(tmp_path / "questions.jsonl", questions)
    added: list[str] = []
    told: list[str] = []

    def person(number: int) -> None:
        own = Labels(tmp_path / "questions.jsonl", tmp_path / "labels.jsonl")
        for each in random.Random(number).sample(questions, len(questions)):
            try:
                own.add(each, "first")
                added.append(each.key)
            except AnsweredError:
                told.append(each.key)

    people = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for each in people:
        each.start()
    for each in people:
        each.join(timeout=60)
    assert sorted(added) == sorted(each.key for each in questions)
    assert len(told) == 60
    assert len(read_comparisons(tmp_path / "labels.jsonl")) == 20


@pytest.mark.attack("people")
def test_an_answer_that_is_sent_again_counts_once(labels: Labels) -> None:
    deal = Deal([labels])
    said = PageAnswer(question=question(0).key, choice="first", name="mine")
    assert deal.take(said)
    assert deal.take(said)  # the first reply was lost
    yours = said.model_copy(update={"name": "yours"})
    for other in (yours, said.model_copy(update={"name": ""})):
        with pytest.raises(AnsweredError):
            deal.take(other)
    assert len(read_comparisons(labels.file)) == 1


@pytest.mark.attack("people")
def test_who_keeps_the_file_locked_is_not_waited_for_for_ever(labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    with open(labels.file, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another program keeps it locked"):
            labels.add(question(0), "first")
    labels.add(question(0), "first")


@pytest.mark.attack("people")
def test_an_answer_is_not_written_to_a_file_that_an_editor_has_replaced(
    labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels.add(question(0), "first")
    flock = fcntl.flock

    def late(file: Any, how: int) -> None:
        """The editor saves between opening and lock."""
        monkeypatch.setattr(fcntl, "flock", flock)
        saved = labels.file.with_suffix(".new")
        saved.write_bytes(labels.file.read_bytes())
        saved.replace(labels.file)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    labels.add(question(1), "first")
    assert len(read_comparisons(labels.file)) == 2


def verdicts(path: Path) -> GrowingFile[Verdict | Withdrawal]:
    return GrowingFile(path, parse_verdict, lambda verdict: verdict.question.key)


def line(number: int, better: str = "first") -> bytes:
    return json_line(Verdict(question(number), better)).encode()


@pytest.mark.attack("people")
@pytest.mark.parametrize("seed", range(4))
def test_a_file_that_grows_is_known_as_one_that_is_read_anew(tmp_path: Path, seed: int) -> None:
    chance, path = random.Random(seed), tmp_path / "verdicts.jsonl"
    known = verdicts(path)
    for step in range(120):
        content = path.read_bytes() if path.exists() else b""
        what = chance.choice(["add", "add", "add", "half", "end", "blank", "cut", "save", "edit", "remove", "wrong"])
        if what == "remove":
            path.unlink(missing_ok=True)
        elif what == "save":  # as an editor does
            (tmp_path / "new").write_bytes(line(step) + content)
            (tmp_path / "new").replace(path)
        elif what in ("cut", "edit"):
            size = len(content)
            path.write_bytes(content[: size // 2] if what == "cut" else content.replace(b'"tie"', b'"first"'))
        else:
            added = {"half": line(step)[:20], "end": b"\n", "blank": b"\r\n\n", "wrong": b'{"better": 3}\n'}
            with open(path, "ab") as file:
                file.write(added.get(what, line(step, chance.choice(["first", "tie"]))))
        fresh = verdicts(path)
        assert known.look() == fresh.look(), (step, what)
        assert (known.faults, known.unfinished) == (fresh.faults, fresh.unfinished), (step, what)


def test_only_what_was_added_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(b"".join(map(line, range(300))))
    known, parse = verdicts(path), parse_lines
    assert len(known.look()) == 300
    parsed: list[int] = []

    def counted(file: str, lines: list[bytes], *rest: Any) -> Any:
        parsed.append(len(lines))
        return parse(file, lines, *rest)

    monkeypatch.setattr(growing, "parse_lines", counted)
    known.look()
    assert parsed == []
    with open(path, "ab") as file:
        file.write(line(300) + line(301) + b'{"better": 3}\n')
    assert len(known.look()) == 302
    assert parsed == [3]
    assert [fault.line for fault in known.faults] == [303] * len(known.faults)
    with pytest.raises(DataError, match=r"verdicts.jsonl:303"):
        Panel(tmp_path / "none.jsonl", path).take(tmp_path / "kept.jsonl")


SERVER = """
import sys
from pathlib import Path
from triptych.people.page import serve
from triptych.people.verdicts import Panel

folder = Path(sys.argv[1])
server = serve([Panel(folder / "questions.jsonl", folder / "verdicts.jsonl")], "key")
server.config.port = int(sys.argv[2])
server.run()
"""


def killed_while_answered(folder: Path, kills: int) -> tuple[list[str], list[Verdict]]:
    """The questions whose answers were acknowledged, and what the file holds after so many kill -9."""
    write(folder / "questions.jsonl", [question(number) for number in range(2000)])
    acknowledged: list[str] = []
    for kill in range(kills):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(port)], stderr=subprocess.PIPE)
        before = len(acknowledged)
        while True:
            if len(acknowledged) - before >= 12 + kill:
                threading.Timer(0.003 * kill, server.kill).start()
                before = sys.maxsize
            try:
                shown = call(port, "question")["question"]
                call(port, "answer", {"question": shown, "choice": "tie"})
                acknowledged.append(shown)
            except (OSError, ValueError):
                if server.poll() is not None:
                    break
                time.sleep(0.01)  # so that it can start
        assert server.returncode == -signal.SIGKILL, server.stderr and server.stderr.read()
    return acknowledged, [] if not acknowledged else read_verdicts(folder / "verdicts.jsonl")


def call(port: int, path: str, body: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}", json.dumps(body).encode() if body else None,
        {"X-Key": "key", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read())


@pytest.mark.attack("kill -9")
@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_acknowledged_answers_survive_kills(tmp_path: Path, kills: int) -> None:
    acknowledged, found = killed_while_answered(tmp_path, kills)
    assert len(acknowledged) >= 12 * kills
    kept = [verdict.question.key for verdict in found]
    assert len(kept) == len(set(kept))
    assert set(acknowledged) <= set(kept)
    assert len(kept) - len(acknowledged) <= kills  # one for each kill was written and its reply lost
