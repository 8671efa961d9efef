"""The page on which several people compare answers."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from triptych.cli import app
from triptych.data.files import read_comparisons, read_verdicts, write
from triptych.evaluate.people import Panel
from triptych.feedback.questions import Labels
from triptych.interview import page
from triptych.interview.page import Answer, Deal
from triptych.records import Prompt, Question, user

UNTRUSTED = "<img src=x onerror=alert(1)>"
KEY = "a key"


def question(number: int) -> Question:
    return Question(Prompt(user(f"question {number}")), "one", UNTRUSTED)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Panel, Labels]:
    """A gate with two questions, and three others."""
    write(tmp_path / "gate.jsonl", [question(number) for number in range(2)])
    write(tmp_path / "others.jsonl", [question(number) for number in range(2, 5)])
    return (
        Panel(tmp_path / "gate.jsonl", tmp_path / "verdicts.jsonl"),
        Labels(tmp_path / "others.jsonl", tmp_path / "labels.jsonl"),
    )


def asked(deal: Deal) -> dict[str, Any]:
    found = deal.next()
    assert found is not None
    return found


def test_the_gates_questions_come_first_and_nobody_sees_anothers(sources: tuple[Panel, Labels]) -> None:
    deal = Deal(sources)
    first, second, again = (asked(deal) for _ in range(3))
    assert first["question"] != second["question"]
    assert again["question"] == first["question"]  # all are looked at: the one that was shown longest ago
    assert first["choices"] == ["first", "second", "tie"]
    assert deal.take(Answer(question=first["question"], better="tie"))
    assert not deal.take(Answer(question=first["question"], better="first"))  # it was answered meanwhile
    assert deal.take(Answer(question=second["question"], better="second"))
    (tie, better) = read_verdicts(sources[0].file)
    assert (tie.better, better.better, better.question) == ("tie", "second", question(1))

    others = [asked(deal) for _ in range(3)]
    assert [each["open"] for each in others] == [3, 3, 3]
    assert others[0]["choices"] == ["first", "second"]
    assert not deal.take(Answer(question=others[0]["question"], better="tie"))  # a tie teaches nothing
    assert deal.take(Answer(question=others[0]["question"], better="skip"))
    for each in others:
        assert deal.take(Answer(question=each["question"], better="first"))
    assert deal.next() is None
    assert [row.chosen for row in read_comparisons(sources[1].file)] == ["one"] * 3


def test_a_question_that_was_left_is_shown_again(
    sources: tuple[Panel, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(page.time, "monotonic", lambda: now)
    deal = Deal(sources[1:])
    first = asked(deal)["question"]
    now = page.LEASE - 1
    assert asked(deal)["question"] != first
    now = page.LEASE
    assert asked(deal)["question"] == first


@pytest.fixture
def address(sources: tuple[Panel, Labels]) -> Iterator[str]:
    """Where the page is served."""
    server = uvicorn.Server(uvicorn.Config(page.serve(sources, KEY), port=0, log_level="warning"))
    worker = threading.Thread(target=server.run, daemon=True)
    worker.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    worker.join(timeout=10)


def call(address: str, body: dict[str, str] | None = None, key: str = KEY) -> Any:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, {"X-Key": key, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read() or "null")


def test_several_people_answer_until_no_question_is_open(address: str, sources: tuple[Panel, Labels]) -> None:
    for name in ("/question", "/answer"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            call(address + name, {"question": "", "better": "first"} if name == "/answer" else None, key="another")
        assert refused.value.code == 403

    def person() -> None:
        while shown := call(address + "/question"):
            call(address + "/answer", {"question": shown["question"], "better": "second"})

    people = [threading.Thread(target=person) for _ in range(4)]
    for each in people:
        each.start()
    for each in people:
        each.join(timeout=30)
    assert len(read_verdicts(sources[0].file)) == 2  # each question once
    assert len(read_comparisons(sources[1].file)) == 3
    assert call(address + "/question") is None
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(address + "/answer", {"better": "first"})
    assert refused.value.code == 422


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(address: str) -> None:
    with urllib.request.urlopen(address, timeout=10) as reply:
        html, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', html))
    assert f"script-src 'nonce-{nonce}'" in policy
    assert "default-src 'none'" in policy
    assert "innerHTML" not in html
    assert not re.search(r"https?://", html)
    assert KEY not in html


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nstorybook: {}\nbase: {train: {}}\nfeedback: [{people: labels.jsonl}]\ngate: {judge: exact}\n"
    )
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    write(tmp_path / "runs" / "tiny" / "questions.jsonl", [question(1)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["label", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), "--page", "--port", port]
        ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1
    assert f"--host 127.0.0.1 --port {port}: Address already in use; give another port" in ended.stderr
