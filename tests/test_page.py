"""The page on which several people compare answers."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from triptych.cli import app
from triptych.configuration import UserFile
from triptych.data.files import BETTER, read_comparisons, read_thumbs, read_verdicts, write
from triptych.errors import AnsweredError, DataError
from triptych.people import guard, page
from triptych.people.page import Deal, PageAnswer
from triptych.people.questionnaire import SKIP, UNDO, Annotation, Questionnaire
from triptych.people.questions import Labels, Thumbs
from triptych.people.verdicts import Panel
from triptych.records import Conversation, Prompt, Question, Thumb, user

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


def asked(deal: Deal, annotator: str | None = None) -> dict[str, Any]:
    found = deal.next(annotator)
    assert found is not None
    return found


def names(shown: dict[str, Any]) -> list[str]:
    return [choice["name"] for choice in shown["choices"]]


def test_the_gates_questions_come_first_and_nobody_sees_anothers(sources: tuple[Panel, Labels]) -> None:
    deal = Deal(sources)
    first, second, again = (asked(deal) for _ in range(3))
    assert first["question"] != second["question"]
    assert again["question"] == first["question"]  # all are looked at: the one that was shown longest ago
    assert names(first) == ["first", "second", "tie", "both bad", "skip"]
    assert deal.take(PageAnswer(question=first["question"], choice="tie"))
    with pytest.raises(AnsweredError):
        deal.take(PageAnswer(question=first["question"], choice="first"))
    assert deal.take(PageAnswer(question=second["question"], choice="second"))
    (tie, better) = read_verdicts(sources[0].file)
    assert (tie.better, better.better, better.question) == ("tie", "second", question(1))

    others = [asked(deal) for _ in range(3)]
    assert [each["open"] for each in others] == [3, 3, 3]
    assert names(others[0]) == ["first", "second", "both bad", "skip"]
    assert not deal.take(PageAnswer(question=others[0]["question"], choice="tie"))  # a tie teaches nothing
    assert deal.take(PageAnswer(question=others[0]["question"], choice="skip"))
    for each in others:
        assert deal.take(PageAnswer(question=each["question"], choice="first"))
    assert deal.next() is None
    assert [row.chosen for row in read_comparisons(sources[1].file)] == ["one"] * 3


@pytest.mark.parametrize("kind", [Panel, Labels, Thumbs])
def test_no_two_choices_have_the_same_key(kind: type[Questionnaire[Any]]) -> None:
    choices = (*kind.choices, SKIP, UNDO)
    assert len({choice.key for choice in choices} - {"q"}) == len({choice.name for choice in choices}) == len(choices)


def test_the_choices_at_a_gate_are_those_of_a_verdict() -> None:
    assert tuple(choice.name for choice in Panel.choices) == BETTER


def test_a_question_that_was_left_is_shown_again(
    sources: tuple[Panel, Labels], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("triptych.people.page.time.monotonic", lambda: now)
    deal = Deal(sources[1:])
    first = asked(deal)["question"]
    now = page.LEASE - 1
    assert asked(deal)["question"] != first
    now = page.LEASE
    assert asked(deal)["question"] == first


@contextmanager
def running(server: uvicorn.Server) -> Iterator[str]:
    """The address of a server, until it has ended."""
    server.config.port = 0
    worker = threading.Thread(target=server.run, daemon=True)
    worker.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    worker.join(timeout=20)
    assert not worker.is_alive()


@contextmanager
def served(*sources: Questionnaire[Any]) -> Iterator[str]:
    """The address of a page."""
    with running(page.serve(sources, KEY)) as place:
        yield place


@pytest.fixture
def address(sources: tuple[Panel, Labels]) -> Iterator[str]:
    """Where the page is served."""
    with served(*sources) as place:
        yield place


def call(address: str, body: dict[str, str] | None = None, key: str = KEY) -> Any:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, {"X-Key": key, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read() or "null")


def test_several_people_answer_until_no_question_is_open(address: str, sources: tuple[Panel, Labels]) -> None:
    for name in ("/question", "/answer"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            call(address + name, {"question": "", "choice": "first"} if name == "/answer" else None, key="another")
        assert refused.value.code == 403

    refusals: list[int] = []

    def person() -> None:
        while shown := call(address + "/question"):
            try:
                call(address + "/answer", {"question": shown["question"], "choice": "second"})
            except urllib.error.HTTPError as told:
                refusals.append(told.code)

    people = [threading.Thread(target=person) for _ in range(4)]
    for each in people:
        each.start()
    for each in people:
        each.join(timeout=30)
    assert set(refusals) <= {409}  # somebody was faster
    assert len(read_verdicts(sources[0].file)) == 2  # each question once
    assert len(read_comparisons(sources[1].file)) == 3
    assert call(address + "/question") is None
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(address + "/answer", {"choice": "first"})
    assert refused.value.code == 422


def test_thumbs_are_asked_for_behind_the_gate_and_taken_once(
    tmp_path: Path, sources: tuple[Panel, Labels]
) -> None:
    good, bad = (Conversation(Prompt(user("Is it?")), answer) for answer in ("Yes.", "No idea."))
    write(tmp_path / "questions.jsonl", [good, bad])
    thumbs = Thumbs(tmp_path / "questions.jsonl", tmp_path / "thumbs.jsonl")
    with served(sources[0], thumbs) as place:
        for question in sources[0].all:
            call(place + "/answer", {"question": question, "choice": "tie"})
        shown = call(place + "/question")
        assert (shown["question"], shown["title"], shown["open"]) == (good.key, "Is the answer good?", 2)
        assert shown["answers"] == ["Yes."]
        assert [(choice["name"], choice["key"]) for choice in shown["choices"]] == [
            ("up", "u"), ("down", "d"), ("skip", "s")
        ]
        statuses = []
        for conversation, choice in ((good, "first"), (good, "skip"), (good, "up"), (good, "down"), (bad, "down")):
            try:
                call(place + "/answer", {"question": conversation.key, "choice": choice})
                statuses.append(200)
            except urllib.error.HTTPError as refused:
                statuses.append(refused.code)
        assert statuses == [422, 200, 200, 409, 200]
        assert call(place + "/question") is None
    assert read_thumbs(thumbs.file) == [Thumb(good.prompt, "Yes.", True), Thumb(bad.prompt, "No idea.", False)]


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


def sent(address: str, *pieces: bytes, every: float = 0.0) -> bytes:
    """What the server says to a request that comes in pieces, up to the end of the connection."""
    host, _, port = address.removeprefix("http://").partition(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(every)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while piece := connection.recv(65536):
                said += piece
        except ConnectionResetError:
            pass
    return said


def headers(method: str, path: str, *more: str, key: str | None = KEY) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: page", *([f"X-Key: {key}"] if key else []), *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


LARGE = f"Content-Length: {300 * 2**20}"


@pytest.mark.attack("page")
@pytest.mark.parametrize(
    ("key", "more", "status"),
    [
        (None, LARGE, 403), ("wrong", LARGE, 403), (None, "Transfer-Encoding: chunked", 403), (KEY, LARGE, 413),
        (KEY, "Content-Length: 65537", 413), (KEY, "Content-Length: " + "9" * 5000, 400),
        (KEY, "Content-Length: 3\r\nContent-Length: 4", 400),
    ],
)
def test_a_request_is_refused_by_its_headers_before_a_body_is_read(
    address: str, key: str | None, more: str, status: int
) -> None:
    said = sent(address, headers("POST", "/answer", more, key=key))  # not a byte of the body is ever sent
    assert said.startswith(f"HTTP/1.1 {status} ".encode()), said


@pytest.mark.attack("page")
def test_a_body_without_a_length_is_read_to_its_limit(address: str) -> None:
    chunk = b"2000\r\n" + b" " * 8192 + b"\r\n"
    said = sent(address, headers("POST", "/answer", "Transfer-Encoding: chunked"), *[chunk] * 64)
    assert said.startswith(b"HTTP/1.1 413 ") or said == b""  # what was sent meanwhile may end the connection first
    assert call(address + "/question")


@pytest.mark.attack("page")
@pytest.mark.parametrize("key", ["", KEY[:-1], KEY + "x", KEY.upper(), "ключ", f"{KEY}\r\nX-Key: {KEY}", "x" * 4000])
@pytest.mark.parametrize("path", ["/question", "/question?key=a key", "/answer", "//question", "/openapi.json"])
def test_without_the_key_there_is_nothing_but_the_page(address: str, key: str, path: str) -> None:
    said = sent(address, headers("GET", path.replace(" ", "%20"), key=key))
    assert said.startswith(b"HTTP/1.1 403 ")
    assert b"question 0" not in said


@pytest.mark.attack("page")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8377", "127.0.0.1"])
def test_another_site_gets_no_leave(address: str, sources: tuple[Panel, Labels], host: str) -> None:
    asks = [
        headers("OPTIONS", "/answer", "Origin: http://evil.example", "Access-Control-Request-Method: POST",
                "Access-Control-Request-Headers: x-key", f"Host2: {host}", key=None).replace(b"page", host.encode()),
        headers("POST", "/answer", "Origin: http://evil.example", "Content-Type: text/plain", "Content-Length: 2",
                key=None).replace(b"Host: page", b"Host: " + host.encode()) + b"{}",
    ]
    for ask in asks:
        said = sent(address, ask)
        assert said.startswith(b"HTTP/1.1 403 ")
        assert b"access-control-allow" not in said.lower()
    assert not sources[0].file.exists()


@pytest.mark.attack("page")
@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[" * 60000, b'{"question": "x", "choice": ' + b'{"a":' * 9000, b"\xff\xfe",
        b'{"question": 1e400}',
        b'{"question": ["x"], "choice": "first"}', b'{"question": "\\ud800", "choice": "first"}',
        b'{"question": "x", "choice": "first", "name": "' + b"y" * 65 + b'"}', b'{"choice": NaN}',
    ],
)
def test_a_body_that_is_no_answer_is_refused_in_words(address: str, sources: tuple[Panel, Labels], body: bytes) -> None:
    said = sent(address, headers("POST", "/answer", "Content-Type: application/json", "Connection: close",
                                 f"Content-Length: {len(body)}") + body)
    status = int(said.split()[1])
    assert 400 <= status < 500
    assert json.loads(said.partition(b"\r\n\r\n")[2])["detail"]
    assert not sources[0].file.exists()


@pytest.mark.attack("page")
@pytest.mark.parametrize("path", ["/", "/question", "/nothing"])
@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_no_reply_is_framed_sniffed_or_kept(address: str, path: str, key: str) -> None:
    said = sent(address, headers("GET", path, "Connection: close", key=key)).partition(b"\r\n\r\n")[0].decode().lower()
    assert "frame-ancestors 'none'" in said
    for each in ("x-frame-options: deny", "x-content-type-options: nosniff", "cache-control: no-store",
                 "referrer-policy: no-referrer", "default-src 'none'"):
        assert said.count(each) == 1
    assert "server:" not in said


@pytest.mark.attack("page")
@pytest.mark.parametrize(
    "pieces",
    [
        [], [b"GET / HT"], [bytes([byte]) for byte in b"GET /question HTTP/1.1\r\n" + b"X-A: b\r\n" * 20],
        [headers("GET", "/question"), *(bytes([byte]) for byte in b"GET /question HTTP/1.1\r\nHost: " + b"a" * 200)],
    ],
    ids=["nothing", "half a line", "a byte at a time", "after a first request"],
)
def test_who_sends_headers_slowly_is_not_waited_for(
    address: str, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    monkeypatch.setattr(guard, "HEADERS_SECONDS", 0.4)
    began = time.monotonic()
    said = sent(address, *pieces, every=0.02)
    assert time.monotonic() - began < 4
    assert said.count(b"HTTP/1.1 200") == (len(pieces) > 1 and pieces[0].endswith(b"\r\n\r\n"))


@pytest.mark.attack("page")
@pytest.mark.parametrize("more", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
def test_who_sends_a_body_slowly_is_told_and_left(address: str, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.4)
    began = time.monotonic()
    said = sent(address, headers("POST", "/answer", more), *[b"1\r\n \r\n"] * 10, every=0.02)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"was not there within" in said
    assert time.monotonic() - began < 4


@pytest.mark.attack("page")
def test_who_never_reads_the_reply_is_left(
    sources: tuple[Panel, Labels], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HEADERS_SECONDS", 0.3)
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.3)
    write(sources[0].questions, [Question(Prompt(user("question")), "one", "x" * 20_000_000)])
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(headers("GET", "/question"))
        time.sleep(3)
        got = 0
        try:
            while piece := connection.recv(1 << 20):
                got += len(piece)
        except ConnectionResetError:
            pass
    assert got < 20_000_000


@pytest.mark.attack("page")
def test_connections_have_a_number_and_come_back(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.BoundedProtocol, "most", 5)
    host, _, port = address.removeprefix("http://").partition(":")
    opened = [socket.create_connection((host, int(port)), timeout=5) for _ in range(9)]
    closed = 0
    for each in opened:
        each.settimeout(0.3)
        try:
            closed += each.recv(1) == b""
        except TimeoutError:
            pass
        except ConnectionResetError:
            closed += 1
    assert closed == 4
    for each in opened:
        each.close()
    time.sleep(0.1)
    assert call(address + "/question")


@pytest.mark.attack("page")
def test_headers_without_end_are_refused(address: str) -> None:
    said = sent(address, b"GET /question HTTP/1.1\r\n", *[b"X-A: " + b"b" * 4000 + b"\r\n"] * 40)
    assert said.startswith(b"HTTP/1.1 400 ") or said == b""
    assert call(address + "/question")


CHROMIUM = next((found for name in ("chromium", "google-chrome", "chromium-browser") if (found := which(name))), None)

PERSON = """<script nonce="NONCE">
"use strict";
const seen = [], asked = [], sayings = SAYINGS;
let step = 0;
if (!annotator) {
  place("name").value = " Ada ";
  place("begin").click();
}
const look = () => {
  const why = place("note").hidden ? "" : place("why").textContent;
  if (seen.at(-1) !== why) seen.push(why);
  if (shown && !kept && step < sayings.length) {
    asked.push([document.title, place("title").textContent, place("prompt").textContent, place("ask").innerText]);
    const said = sayings[step++], key = { key: said };
    document.body.dispatchEvent(new KeyboardEvent("keydown", { ...key, ctrlKey: true, bubbles: true }));
    document.body.dispatchEvent(new KeyboardEvent("keydown", { ...key, bubbles: true }));
    if (!kept && shown) document.querySelector(`[data-choice="${said}"]`).click();
  }
  const frame = document.getElementById("found") || document.body.appendChild(document.createElement("pre"));
  frame.id = "found";
  frame.textContent = JSON.stringify({ seen, asked, done, kept: kept && kept.choice,
                                       stored: sessionStorage.getItem("said"),
                                       name: localStorage.getItem("annotator"), rules: place("guideline").innerText,
                                       status: place("status").textContent, undo: place("undo").disabled,
                                       disabled: document.querySelector("[data-choice]")?.disabled });
};
setInterval(look, 50);
// Nobody is so quick that the question before is answered again while the next one is on its way.
const keeping = keep;
keep = (said) => { keeping(said); if (!said) look(); };
</script>"""


def person(address: str, folder: Path, seconds: int) -> dict[str, Any]:
    """What a watched page shows on which somebody answers; the seconds are the browser's own."""
    assert CHROMIUM
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
        *(f"--virtual-time-budget={seconds * 1000}", "--dump-dom"),
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", address],
        capture_output=True, text=True, timeout=120, check=False,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-3000:] + done.stderr[-2000:]
    return dict(json.loads(unescape(found[1])))


def put_before_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sayings: Sequence[str]) -> None:
    """Has somebody say this, a choice that is clicked or a key that is pressed for each question."""
    html = page.HTML.read_text(encoding="utf-8")
    script = PERSON.replace("SAYINGS", json.dumps(sayings))
    (tmp_path / "page.html").write_text(html.replace("</body>", script + "</body>"), encoding="utf-8")
    monkeypatch.setattr(page, "HTML", tmp_path / "page.html")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page with somebody before it who prefers the second answer of the first question."""
    put_before_the_page(tmp_path, monkeypatch, ["second"])


@pytest.mark.attack("people")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_a_failed_request_keeps_what_was_said(
    address: str, sources: tuple[Panel, Labels], tmp_path: Path, watched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, fails = Panel.add, iter([OSError(errno.ENOSPC, "No space left on device"), DataError([]), None])

    def full(panel: Panel, question: Question, choice: str, annotator: str | None = None) -> str | None:
        if error := next(fails, None):
            raise error
        return add(panel, question, choice, annotator)

    monkeypatch.setattr(Panel, "add", full)
    found = person(f"{address}/#key={KEY}", tmp_path, 20)
    kept = "The server cannot do it now: No space left on device. What you said is kept and is sent again in 2 seconds."
    assert found["seen"][:2] == ["", kept]
    assert "sent again in 4 seconds" in found["seen"][2]
    assert found["seen"][3:] == [""]
    assert (found["done"], found["kept"], found["stored"], found["disabled"]) == (1, None, None, False)
    (verdict,) = read_verdicts(sources[0].file)
    assert (verdict.better, verdict.annotator) == ("second", "Ada")


@pytest.mark.attack("page")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_a_wrong_key_is_said_in_words(address: str, tmp_path: Path, watched: None) -> None:
    found = person(f"{address}/#key=another", tmp_path, 3)
    assert found["seen"][-1].startswith("This address has no key, or an old one")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_one_answer_gets_a_thumb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_about = [Conversation(Prompt(user(f"question {number}")), UNTRUSTED) for number in range(4)]
    write(tmp_path / "questions.jsonl", asked_about)
    thumbs = Thumbs(tmp_path / "questions.jsonl", tmp_path / "thumbs.jsonl")
    put_before_the_page(tmp_path, monkeypatch, ["down", "u", "d"])
    with served(thumbs) as place:
        found = person(f"{place}/#key={KEY}", tmp_path, 4)
    assert [row[:3] for row in found["asked"]] == [["Is the answer good?"] * 2 + [f"user: question {number}"]
                                                   for number in range(3)]
    shown = found["asked"][0][3].split()
    assert shown == f"user: question 0 {UNTRUSTED} 👍 Good u 👎 Not good d I cannot tell: skip s".split()
    assert (found["done"], found["kept"], found["stored"], found["disabled"]) == (3, None, None, False)
    labels = [False, True, False]
    assert read_thumbs(thumbs.file) == [
        Thumb(question.prompt, question.answer, label) for question, label in zip(asked_about, labels, strict=False)
    ]
    assert list(thumbs.open) == [asked_about[3].key]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_somebody_with_a_name_takes_an_answer_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.md").write_text("Prefer <b>short</b> answers.\n")
    guideline = UserFile("rules.md", tmp_path / "rules.md")
    write(tmp_path / "questions.jsonl", [
        Question(Prompt(user(f"question {number}")), '{"a":[1.0,{"b":"<i>"}]}', "no JSON") for number in range(3)
    ])
    labels = Labels(
        tmp_path / "questions.jsonl", tmp_path / "labels.jsonl", Annotation(guideline=guideline, overlap=1)
    )
    put_before_the_page(tmp_path, monkeypatch, ["1", "z", "2", "both bad", "first"])
    with served(labels) as place:
        found = person(f"{place}/#key={KEY}", tmp_path, 6)
    assert [row[2][-1] for row in found["asked"]] == ["0", "1", "0", "2", "1"]  # 1 is on its way to whoever saw it
    assert '{\n  "a": [\n    1.0,\n    {\n      "b": "<i>"\n    }\n  ]\n}' in found["asked"][0][3]
    assert found["asked"][0][3].count("JSON, shown indented") == 1
    assert "Prefer <b>short</b> answers." in found["rules"]
    assert (found["name"], found["done"], found["kept"], found["undo"]) == ('"Ada"', 3, None, False)
    assert found["status"] == "No question is open to Ada. You answered 3. New ones are looked for."
    said = [json.loads(line) for line in labels.file.read_text().splitlines()]
    assert [(row["annotator"], row.get("better", row.get("chosen_first"))) for row in said] == [
        ("Ada", True), ("Ada", "withdrawn"), ("Ada", False), ("Ada", "both bad"), ("Ada", True)
    ]
    assert [row.chosen for row in read_comparisons(labels.file)] == ["no JSON", '{"a":[1.0,{"b":"<i>"}]}']
    assert len(labels.open) == 3  # each waits for another person
