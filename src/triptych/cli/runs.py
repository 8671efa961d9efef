"""Commands that look at a run."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer
from rich.text import Text

from triptych.cli.app import app
from triptych.cli.arguments import RunFolder, find_run
from triptych.cli.terminal import say, show, table_of
from triptych.display import duration
from triptych.errors import RunError
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
    if (folder / "report.html").exists():
        say(f"report   {folder / 'report.html'}")
    if (folder / "release").exists():
        say(f"release  {folder / 'release'}")


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
