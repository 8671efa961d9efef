"""Commands that look at a run."""

from __future__ import annotations

import fcntl
import json
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from triptych.cli.app import app
from triptych.cli.arguments import RunFolder, find_run
from triptych.cli.terminal import say, show, table_of
from triptych.display import duration
from triptych.errors import RunError
from triptych.storage import write_whole


@app.command()
def status(name: RunFolder) -> None:
    """Shows how far a run is: each stage, its state, time and result.

    Example: [bold]triptych status quickstart[/bold]
    """
    from triptych.pipeline.ledger import Ledger

    folder = find_run(name)
    ledger = Ledger(folder / "ledger.jsonl")
    owner = _owner(folder)
    spent = ledger.seconds()
    last = {event["stage"]: event for event in ledger.events()}
    if not last:
        say(f"{folder}: nothing was run yet")
    table = table_of("stage", "state", "time", "result", "fingerprint")
    for stage, event in last.items():
        mark = event["fingerprint"]
        seconds = spent.get(mark, 0.0)
        state, tone = {
            "finished": ("done", "green"), "reused": ("reused", "green"), "stopped": ("stopped", "yellow"),
            "failed": ("failed", "red"),
        }.get(event["event"], ("under way", "blue"))
        if state == "under way":
            seconds += max(0.0, time.time() - event["time"])
            if owner is None:
                state, tone, seconds = "interrupted", "yellow", spent.get(mark, 0.0)
        result = _result(folder / "artifacts" / f"{stage.replace('/', '-')}-{mark[:12]}" / "manifest.json")
        table.add_row(stage, Text(state, tone), duration(seconds), result, mark[:12])
    if last:
        show(table)
    say("no process is at work on it" if owner is None else f"process {owner} is at work on it")
    if (folder / "report.html").exists():
        say(f"report   {folder / 'report.html'}")
    if (folder / "release").exists():
        say(f"release  {folder / 'release'}")


def _owner(folder: Path) -> str | None:
    """The process that holds the run, by the lock that `triptych run` keeps."""
    try:
        with open(folder / "lock", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return lock.read().strip() or "unknown"
    except OSError:
        pass
    return None


def _result(manifest: Path) -> str:
    """The one number that a reader of a stage's row looks for."""
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError):
        return ""


@app.command()
def report(
    name: RunFolder, open_: Annotated[bool, typer.Option("--open", help="Opens it in the browser.")] = False
) -> None:
    """Writes report.html again from a run's summary and samples, and prints its path.

    Example: [bold]triptych report quickstart --open[/bold]
    """
    from pydantic import TypeAdapter, ValidationError

    from triptych.report.page import render
    from triptych.report.summary import Sample, Summary

    folder = find_run(name)
    try:
        summary = Summary.model_validate_json((folder / "summary.json").read_bytes())
        samples = TypeAdapter(list[Sample]).validate_json((folder / "samples.json").read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} is not there: it is written when the run has a Base or more") from None
    except ValidationError as error:
        raise RunError(f"{folder}: summary.json or samples.json is damaged; run the recipe again: {error}") from None
    write_whole(folder / "report.html", render(summary, samples))
    say(str(folder / "report.html"))
    if open_:
        webbrowser.open((folder / "report.html").resolve().as_uri())
