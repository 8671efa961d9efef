"""The page of a run while it goes on: how far it is, and when nobody works on it any more, its report."""

from __future__ import annotations

import hashlib
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import TypeAdapter, ValidationError

from triptych.errors import RunError
from triptych.people.guard import by_address, guarded
from triptych.pipeline.state import RunState, curve_of
from triptych.report.page import render, render_progress
from triptych.report.summary import Sample, Summary

POLICY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Beside the page's own, which allows its script and its style and nothing else."""


def read(run: Path) -> tuple[Summary, list[Sample]]:
    """What a run came to.

    Raises:
        RunError: nothing yet, or the files are damaged.
    """
    try:
        summary = Summary.model_validate_json((run / "summary.json").read_bytes())
        return summary, TypeAdapter(list[Sample]).validate_json((run / "samples.json").read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} is not there: it is written when the run has a Base or more") from None
    except ValidationError as error:
        raise RunError(f"{run}: summary.json or samples.json is damaged; run the recipe again: {error}") from None


def page(run: Path) -> str:
    """The page as it is now.

    Raises:
        RunError: a file of the run is damaged.
    """
    state, has_report = RunState.of(run), (run / "summary.json").exists()
    if has_report and state.process is None:
        return render(*read(run), live=True)
    curves = {stage.name: curve_of(run, stage.name, stage.fingerprint) for stage in state.stages}
    return render_progress(run.resolve().name, state, curves, has_report=has_report)


def serve(run: Path, key: str) -> uvicorn.Server:
    """The page's server; whoever has the address with the key in it sees the page."""
    # No documentation pages: they would load scripts from elsewhere.
    application = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None)

    @application.get("/")
    def shown(request: Request) -> Response:
        html = page(run)
        version = hashlib.sha256(html.encode()).hexdigest()
        headers = {"ETag": f'"{version}"', "Content-Security-Policy": POLICY}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html.replace("VERSION", version, 1), headers=headers)

    @application.exception_handler(RunError)
    @application.exception_handler(OSError)
    def failed(request: Request, error: RunError | OSError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    return guarded(application, by_address(key))
