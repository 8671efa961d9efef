"""Servers that echo the key, drip, never end or reply nonsense: one clear error in time, and nothing that is no number.

The servers speak over a bare socket, so that they can say what no library would.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import math
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from triptych.engine.endpoint import LONGEST, Endpoint
from triptych.errors import RewardError
from triptych.reward.endpoint import EndpointJudge, replies_in

KEY = "sk-Very+Secret/0123456789=="
CHOICES = ["1", "2", "3"]


class Wire:
    """A server that answers every request with bytes of its own choice, or a piece at a time."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.says: Callable[[], Iterator[bytes]] = lambda: iter([completion("2")])
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += connection.recv(65536)
            head, _, body = heard.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lengths[0][15:]) if lengths else 0
            while len(body) < length:
                body += connection.recv(65536)
            self.heard.append(head + b"\r\n\r\n" + body)
            try:
                for piece in self.says():
                    connection.sendall(piece)
            except OSError:
                pass  # the other side has hung up


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.socket.close()


def http(body: bytes | str | object, status: str = "200 OK", headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    # The server hangs up behind each reply; a client that is not told might ask again on what is just being closed.
    length = f"Connection: close\r\nContent-Length: {len(content)}"
    return f"HTTP/1.1 {status}\r\n{headers}{length}\r\n\r\n".encode() + content


def completion(text: str) -> bytes:
    return http({"choices": [{"message": {"content": text}}]})


def asked(wire: Wire, cache: Path | None = None, **settings: Any) -> Any:
    given = {"url": wire.url, "model": "m", "retries": 0, "seconds": 5.0} | settings
    return EndpointJudge(Endpoint.model_validate(given), cache).choose(["Which?"], CHOICES)


def refused(wire: Wire, **settings: Any) -> str:
    with pytest.raises(RewardError) as error:
        asked(wire, **settings)
    assert KEY not in "".join(traceback.format_exception(error.value))
    return str(error.value)


FORMS = {
    "plain": KEY,
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 with its scheme": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "percent-encoded": quote(KEY, safe=""),
    "escaped as JSON": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "hexadecimal": KEY.encode().hex(),
    "capitals": KEY.upper(),
    "backwards": KEY[::-1],
    "spaced": " ".join(KEY),
    "on lines": "\n".join(KEY),
    "in halves": f"{KEY[:12]} and {KEY[12:]}",
}


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("place", ["message", "code", "text", "reason", "header"])
@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_the_server_says_again_is_not_printed(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, form: str, place: str
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echoed = FORMS[form]
    line = echoed.replace("\n", " ")
    wire.says = lambda: iter([{
        "message": http({"error": {"message": f"Incorrect key: {echoed}", "code": "invalid_api_key"}}, "401 No"),
        "code": http({"error": {"code": echoed, "type": echoed, "param": echoed}}, "401 No"),
        "text": http(f"wrong key {echoed}", "429 Wait"),
        "reason": http({}, f"401 {line}"),
        "header": f"HTTP/1.1 200 OK\r\nno header {line}\r\n\r\n".encode(),
    }[place]])
    said = refused(wire, key_env="MY_KEY")
    assert f"authorization: bearer {KEY}".lower() in wire.heard[0].decode().lower()
    assert not any(echoed[i : i + 5] in said for i in range(0, len(echoed) - 4))
    assert said.removeprefix(wire.url) in (
        ": 401 Unauthorized (invalid_api_key)", ": 401 Unauthorized",
        ": gave up after 1 attempts: 429 Too Many Requests", ": gave up after 1 attempts: what it replied is no HTTP",
    )


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("key", ["sk-a\rsk-b", "sk-a\nX-Other: b", "sk a", "sk-\x00a", "sk-é", "sk-\x1b[2J", " \r\n "])
def test_a_key_that_is_none_is_refused_before_anything_is_sent(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(os, "environ", {"MY_KEY": key})
    said = refused(wire, key_env="MY_KEY")
    assert "the environment variable MY_KEY" in said
    assert key not in said
    assert wire.heard == []


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "  {} "])
def test_a_key_that_was_read_from_a_file_is_stripped(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("MY_KEY", around.format(KEY))
    assert asked(wire, key_env="MY_KEY") == [{"1": 0.0, "2": 1.0, "3": 0.0}]
    assert f"bearer {KEY}\r\n".lower() in wire.heard[0].decode().lower()


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("url", [
    "http://example.org/v1", "http://10.0.0.1/v1", "HTTP://example.org/v1", "http://localhost.example.org/v1",
    "http://127.0.0.1.example.org/v1", "http://0.0.0.0/v1",
])
def test_a_key_is_not_sent_in_the_clear_but_on_this_machine(url: str) -> None:
    with pytest.raises(ValidationError, match="must begin with https"):
        Endpoint(url=url, model="m", key_env="MY_KEY")
    Endpoint(url=url, model="m")


@pytest.mark.parametrize("url", ["https://example.org/v1", "http://127.0.0.1:8/v1", "http://[::1]:8", "http://localhost"])
def test_where_a_key_may_go(url: str) -> None:
    assert Endpoint(url=url + "/", model="m", key_env="MY_KEY").url == url


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("url", [
    "ftp://a/v1", "https:///v1", "https://user:word@a/v1", "https://a@b/v1", "https://a/v1?key=b", "https://a/v1#b",
    "https://a b/v1", "https://a/v1\n", "https://a\r\nX: y/v1", "https://ä.org/v1", "https://a\\@b/v1", "file:///etc",
    "", "https://a/\x1b[2J", "https://[::1/v1", "https://a:99999999/v1",
])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must begin with https:// or http://"):
        Endpoint(url=url, model="m")


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_does_not_see_what_stays_on_this_machine(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = Wire()
    monkeypatch.setenv(variable, proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("MY_KEY", KEY)
    asked(wire, key_env="MY_KEY")
    proxy.socket.close()
    assert (len(wire.heard), proxy.heard) == (1, [])


@pytest.mark.attack("endpoint")
def test_a_proxy_sees_of_https_the_host_alone(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", wire.url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("MY_KEY", KEY)
    wire.says = lambda: iter([http(KEY, f"403 {KEY}")])
    said = refused(wire, url="https://example.invalid/v1", key_env="MY_KEY")
    assert said.endswith("the proxy refuses the connection")
    (heard,) = wire.heard
    assert heard.startswith(b"CONNECT example.invalid:443 ")
    assert KEY.encode() not in heard
    assert b"Which?" not in heard


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(wire: Wire, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    wire.says = lambda: iter([http(b"", status, f"Location: {wire.url}/elsewhere\r\n")])
    assert "redirects are not followed" in refused(wire, key_env="MY_KEY", retries=2)
    assert len(wire.heard) == 1


def drip(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    while True:
        time.sleep(0.02)
        yield piece


SLOW: dict[str, Callable[[], Iterator[bytes]]] = {
    "nothing": lambda: drip(b"", b""),
    "the status": lambda: drip(b"HTTP/1.1 20", b"0"),
    "headers": lambda: drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "hints": lambda: drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the body": lambda: drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "chunks": lambda: drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "an error": lambda: drip(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", b" "),
}


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("what", SLOW)
def test_a_reply_that_drips_ends_with_its_time(wire: Wire, what: str) -> None:
    wire.says = SLOW[what]
    began = time.monotonic()
    said = refused(wire, seconds=0.4)
    assert time.monotonic() - began < 2
    assert said.endswith("no whole reply within 0.4 s") or (what == "the status" and "no HTTP" in said)


def endless(head: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    def says() -> Iterator[bytes]:
        yield head
        while True:
            yield piece

    return says


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("says", [
    endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
    endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"[" * 65536),
    endless(b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
    endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"a" * 65536 + b"\r\n"),
], ids=["body", "length", "chunks", "headers"])
def test_a_reply_without_end_ends_with_its_size(wire: Wire, says: Callable[[], Iterator[bytes]]) -> None:
    wire.says = says
    began = time.monotonic()
    said = refused(wire, seconds=30)
    assert time.monotonic() - began < 5
    assert f"more than {LONGEST:,} bytes" in said or "no HTTP" in said


@pytest.mark.attack("endpoint")
def test_a_reply_that_is_large_when_unpacked_is_not_unpacked(wire: Wire) -> None:
    packed = gzip.compress(b" " * (64 << 20))
    wire.says = lambda: iter([http(packed, headers="Content-Encoding: gzip\r\n")])
    assert "no JSON that can be read" in refused(wire)
    assert b"accept-encoding: identity" in wire.heard[0].lower()


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("body", [
    "[" * 100_000, '{"choices":' * 50_000, "1" * 5000, b"\xff\xfe\x00", b"", "{",
], ids=["lists", "objects", "digits", "bytes", "nothing", "half"])
@pytest.mark.parametrize("status", ["200 OK", "400 No", "503 Wait"])
def test_json_that_cannot_be_read_is_one_clear_error(wire: Wire, body: bytes | str, status: str) -> None:
    wire.says = lambda: iter([http(body, status)])
    said = refused(wire)
    assert len(said) < 400
    assert said.isprintable()
    assert ("no JSON that can be read" in said) == (status == "200 OK")


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("number", [
    '"inf"', '"0"', "NaN", "Infinity", "1" * 400, "1e400", "5", "true", "null", "[]", "{}",
])
def test_a_log_probability_that_is_none_enters_nothing(wire: Wire, tmp_path: Path, number: str) -> None:
    row = f'{{"token": "2", "logprob": {number}}}'
    top = f'{{"token": "2", "logprob": 0, "top_logprobs": [{row}, {{"token": "1", "logprob": -1}}]}}'
    wire.says = lambda: iter([http(
        f'{{"choices": [{{"message": {{"content": "2"}}, "logprobs": {{"content": [{top}]}}}}]}}'
    )])
    with pytest.raises(RewardError, match="log-probability that is none"):
        asked(wire, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("number", ["-Infinity", "-" + "1" * 400, "-1e400", "-9999.0"])
def test_a_very_small_log_probability_is_that_of_nothing(wire: Wire, number: str) -> None:
    tops = f'[{{"token": "2", "logprob": {number}}}, {{"token": "1", "logprob": -1}}]'
    wire.says = lambda: iter([http(
        '{"choices": [{"message": {"content": "1"}, "logprobs": {"content": '
        f'[{{"token": "1", "logprob": -1, "top_logprobs": {tops}}}]}}}}]}}'
    )])
    assert asked(wire) == [{"1": 1.0, "2": 0.0, "3": 0.0}]


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("reply", [
    {"choices": [{"message": {"content": ["2"]}}]}, {"choices": {"0": 1}}, {"choices": [[]]}, {"choices": [None]},
    {"choices": [{"message": {"content": "2"}, "logprobs": {"content": {"a": 1}}}]},
    {"choices": [{"message": {"content": "2"}, "logprobs": {"content": [{"token": "2", "top_logprobs": "2"}]}}]},
    {"choices": [{"message": {"content": "2"}, "logprobs": 7}]},
    {"choices": [{"message": {"content": "a" * 500_000}}]},
])
def test_a_reply_of_another_shape_is_none_of_the_choices(reply: dict[str, Any]) -> None:
    assert replies_in(reply, CHOICES) is None


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize(("header", "wait"), [
    ("-5", None), ("nan", None), ("inf", 60), ("1e9", 60), ("1" * 5000, 60), ("soon", None), ("", None), ("0.25", 0.25),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 60), ("Fri, 99 Dec 99999 23:59 GMT", None),
    pytest.param(format_datetime(datetime.now(UTC) + timedelta(days=2)), 60, id="in two days"),
])
def test_what_a_server_asks_to_wait_is_believed_within_reason(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, header: str, wait: float | None
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    replies = iter([http({}, "429 Wait", f"Retry-After: {header}\r\n"), completion("3")])
    wire.says = lambda: iter([next(replies)])
    assert asked(wire, retries=1) == [{"1": 0.0, "2": 0.0, "3": 1.0}]
    pace, waited, _ = waits
    assert pace == 0
    assert waited == wait if wait is not None else 0.25 <= waited <= 0.75


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize("change", [
    {"parallel": 10**9}, {"retries": 10**9}, {"seconds": math.inf}, {"seconds": math.nan}, {"seconds": -1},
    {"requests_per_minute": 1e-300}, {"requests_per_minute": math.nan}, {"key_env": "A=B"}, {"key_env": "A\n"},
])
def test_settings_that_would_wait_for_ever_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Endpoint.model_validate({"url": "https://a/v1", "model": "m"} | change)


@pytest.mark.attack("endpoint")
def test_lines_of_the_cache_that_are_nonsense_are_asked_for_again(wire: Wire, tmp_path: Path) -> None:
    expected = asked(wire, tmp_path)
    file = tmp_path / "judge.jsonl"
    (line,) = file.read_bytes().splitlines()
    name = json.loads(line)["asked"]
    nonsense = [
        {"1": math.nan, "2": 0.5, "3": 0.5}, {"1": 2.0, "2": -1.0, "3": 0.0}, {"1": 0.5, "2": 0.5, "3": 0.5},
        {"A": 0.5, "B": 0.5}, {"1": "1", "2": "0", "3": "0"}, {"1": 10**400, "2": 0, "3": 0}, [1], None, "2", {},
    ]
    rows = [json.dumps({"asked": name, "replied": replied}).encode() for replied in nonsense]
    rows += [b"\xff\xfe", b"[" * 100_000, b"{}", b"[]", b"1" * 5000, json.dumps({"asked": [], "replied": {}}).encode()]
    for row in rows:
        file.write_bytes(row + b"\n")
        assert asked(wire, tmp_path) == expected
    assert len(wire.heard) == 1 + len(rows)
    file.write_bytes(line + b"\n" + rows[0][:20])  # a kill in the middle of a line
    assert asked(wire, tmp_path) == expected
    assert len(wire.heard) == 1 + len(rows)


@pytest.mark.attack("endpoint")
def test_a_cache_that_is_no_file_is_named(wire: Wire, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "judge.jsonl")
    with pytest.raises(RewardError, match=r"judge\.jsonl: cannot be read \(is a FIFO"):
        asked(wire, tmp_path)


def test_a_question_is_asked_once_and_the_first_error_ends_the_others(wire: Wire) -> None:
    judge = EndpointJudge(Endpoint(url=wire.url, model="m", parallel=2))
    assert judge.choose(["a", "b", "a", "a"], CHOICES)[0] == {"1": 0.0, "2": 1.0, "3": 0.0}
    assert judge.requests == len(wire.heard) == 2
    wire.says = lambda: iter([http({"error": {"message": "no such model"}}, "404 No")])
    with pytest.raises(RewardError, match="404 Not Found: no such model"):
        judge.choose([str(i) for i in range(100)], CHOICES)
    assert judge.requests <= 6


def test_it_asks_from_within_an_event_loop_too(wire: Wire) -> None:
    async def notebook() -> Any:
        return asked(wire)

    assert asyncio.run(notebook()) == [{"1": 0.0, "2": 1.0, "3": 0.0}]
