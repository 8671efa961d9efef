"""Commands that look at a run."""

from __future__ import annotations

import secrets
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from triptych.cli.app import app
from triptych.cli.arguments import RunFolder, find_run
from triptych.cli.listening import listening
from triptych.cli.terminal import say, show, table_of
from triptych.display import duration
from triptych.storage import write_whole

TONES = {
    "done": "green", "reused": "green", "under way": "blue", "interrupted": "yellow", "stopped": "yellow",
    "failed": "red", "to come": "dim",
}


@app.command()
def status(name: RunFolder) -> None:
    """Shows how far a run is: each stage of its plan, done, under way or to come, with its time and result.

    Example: [bold]triptych status quickstart[/bold]
    """
    from triptych.pipeline.state import RunState

    folder = find_run(name)
    run = RunState.of(folder)
    if run.stages:
        table = table_of("stage", "state", "time", "result", "fingerprint")
        for stage in run.stages:
            spent = duration(stage.seconds) if stage.fingerprint else ""
            state = Text(stage.state, TONES.get(stage.state, ""))
            table.add_row(stage.name, state, spent, stage.headline, stage.fingerprint[:12])
        show(table)
    else:
        say(f"{folder}: nothing was run yet")
    say("no process is at work on it" if run.process is None else f"process {run.process} is at work on it")
    if run.ends is not None:
        say(f"likely to be done in {duration(max(0.0, run.ends - time.time()))}")
    if (folder / "report.html").exists():
        say(f"report   {folder / 'report.html'}")
    if (folder / "release").exists():
        say(f"release  {folder / 'release'}")


@app.command()
def report(
    name: RunFolder,
    live: Annotated[
        bool, typer.Option("--live", help="Serves the page while the run goes on, until Ctrl-C; it keeps itself new.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Opens it in the browser.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where --live listens on this machine; 0 for any that is free.")
    ] = 8378,
) -> None:
    """Writes report.html again from a run's summary and samples, and prints its path.

    With --live the page is served on this machine: the plan with what is done, under way and to come, and the curves
    so far; when the run is at its end, its report.

    Example: [bold]triptych report quickstart --live --open[/bold]
    """
    from triptych.report.live import read
    from triptych.report.page import render

    folder = find_run(name)
    if live:
        _serve(folder, port, open_)
        return
    write_whole(folder / "report.html", render(*read(folder)))
    say(str(folder / "report.html"))
    if open_:
        webbrowser.open((folder / "report.html").resolve().as_uri())


def _serve(folder: Path, port: int, open_: bool) -> None:
    """The page, until Ctrl-C."""
    from triptych.report.live import serve

    key = secrets.token_urlsafe(16)
    with listening("127.0.0.1", port) as (server, address):
        say(f"{address}/?key={key}")
        say("whoever has this address on this machine sees the page; Ctrl-C ends it")
        if open_:
            webbrowser.open(f"{address}/?key={key}")
        serve(folder, key).run(sockets=[server])
