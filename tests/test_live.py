"""The page of a run while it goes on: what it says is what is on the disk, and it keeps itself new."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_cli import small_summary
from test_page import CHROMIUM
from test_trackers import a_run, row
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.lock import claimed
from triptych.report import live
from triptych.report import page as report

KEY = "a key"


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a run's page, with its key."""
    server = live.serve(run, KEY)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/?key=a%20key"
        finally:
            server.should_exit = True
            thread.join()


def asked(address: str, version: str = "") -> tuple[int, str, str]:
    """Status, version and body of a reply."""
    request = urllib.request.Request(address, headers={"If-None-Match": version} if version else {})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.headers["ETag"], reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("ETag", ""), error.read().decode()


def rows(html: str) -> list[list[str]]:
    """The plan's rows, as words."""
    body = re.search(r'<section id="plan">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    assert body
    return [re.sub(r"<[^>]+>", " ", line).split() for line in re.findall(r"<tr>(.*?)</tr>", body[1])]


def test_the_page_says_what_is_done_under_way_and_to_come(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    curve = a_run(run)
    with claimed(run):
        html = live.page(run)
        assert "<h1 class=\"good\">base is under way</h1>" in html
        ((base, under, way, since, clock), instruct) = rows(html)
        assert (base, under, way, since, instruct) == ("base", "under", "way", "since", ["instruct", "to", "come"])
        assert re.fullmatch(r"\d\d:\d\d", clock)
        assert "loss 0.333 at step 3" in html
        assert live.page(run) == html
        curve.add(row(4, accuracy=0.5))
        grown = live.page(run)
        assert "loss 0.250 at step 4" in grown
        Ledger(run / "ledger.jsonl").add("started", "base", fingerprint="a" * 64, left=60)
        assert re.search(r"The run is likely to end at \d\d:\d\d\.", live.page(run))
        assert "accuracy 0.500 at step 4" in grown
    html = live.page(run)
    assert "No process is at work on this run" in html
    assert rows(html)[0][:2] == ["base", "interrupted"]
    Ledger(run / "ledger.jsonl").add("failed", "base", fingerprint="a" * 64, seconds=90.0)
    assert rows(live.page(run))[0] == ["base", "failed", "1", "min", "30", "s"]


def test_where_nobody_works_on_the_run_the_page_is_its_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    (run / "summary.json").write_text(json.dumps(small_summary()))
    (run / "samples.json").write_text("[]")
    with claimed(run):
        assert "base is under way" in live.page(run)
        assert "What an earlier command came to is in <code>report.html</code>." in live.page(run)
    html = live.page(run)
    assert "Triptych report · " in html
    assert html == report.render(*live.read(run), live=True)
    alone = report.render(*live.read(run))
    assert ("connect-src" in alone, "fetch(" in alone, "VERSION" in alone) == (False, False, False)
    assert ("connect-src 'self'" in html, "fetch(" in html) == (True, True)


def test_what_models_and_files_are_called_is_text(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    Ledger(tmp_path / "run" / "ledger.jsonl").plan(["<script>alert(1)</script>"])
    assert "<script>alert" not in live.page(tmp_path / "run")


def test_the_address_needs_its_key_and_an_old_version_is_told_from_a_new_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    curve = a_run(run)
    with served(run) as address:
        status, version, html = asked(address)
        assert (status, f'data-version={version}' in html) == (200, True)
        assert asked(address, version) == (304, version, "")
        curve.add(row(4))
        status, newer, _ = asked(address, version)
        assert status == 200
        assert newer != version
        bare = address.split("?")[0]
        for wrong in (bare, bare + "?key=another", address + "&key=another", bare + "openapi.json"):
            status, _, body = asked(wrong)
            assert (status, "needs its key" in body) == (403, True)
        (run / "ledger.jsonl").write_text("{}\n")
        assert asked(address)[0] == 503


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_the_page_loads_itself_again_and_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = tmp_path / "run", tmp_path / "report"
    curve = a_run(run)
    Ledger(run / "ledger.jsonl").plan(["base", *(f"stage {number}" for number in range(60))])
    Ledger(run / "ledger.jsonl").add("started", "base", fingerprint="a" * 64)
    shutil.copytree(report.FOLDER, folder)
    with open(folder / "live.js", "a", encoding="utf-8") as script:  # somebody who scrolls, and says what is seen
        script.write("""
          const scroll = () => scrollTo({ top: 700, behavior: "instant" });
          if (!sessionStorage.getItem("loads")) addEventListener("load", () => setTimeout(scroll, 500));
          sessionStorage.setItem("loads", 1 + Number(sessionStorage.getItem("loads")));
          setInterval(() => { document.body.dataset.seen = `${sessionStorage.getItem("loads")} ${scrollY}`; }, 100);
        """)
    monkeypatch.setattr(report, "FOLDER", folder)
    opened, page = threading.Event(), live.page

    def seen(run: Path) -> str:
        html = page(run)
        if not opened.is_set():  # from here on there is another one
            opened.set()
            curve.add(row(4))
        return html

    monkeypatch.setattr(live, "page", seen)
    assert CHROMIUM
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-extensions",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--window-size=900,500", "--virtual-time-budget=14000", "--dump-dom")
    with served(run) as address:
        done = subprocess.run(
            [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", address],
            capture_output=True, text=True, timeout=120, check=False,
        )
    assert "loss 0.250 at step 4" in done.stdout, done.stdout[:2000] + done.stderr[-2000:]
    assert 'data-seen="2 700"' in done.stdout, re.findall(r'data-seen="[^"]*"', done.stdout)
    assert re.search(r'id="away"[^>]* hidden', done.stdout)
