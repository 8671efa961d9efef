"""Draw the pictures of reports that the documents show: `python scripts/pictures.py RUN PICTURE.png`.

Beside PICTURE.png lies PICTURE.json with the run's summary and samples, and the digests of the page and of the
picture: `tests/test_pictures.py` finds a picture that no longer shows what this version would. Where only the page is
another, `python scripts/pictures.py PICTURE.png` draws the same run again from PICTURE.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from triptych.report.page import render
from triptych.report.summary import Sample, Summary

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
SIZE = (1200, 1750)
"""In pixels: what stands at the top of a report."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a picture was drawn from.

    Attributes:
        page: sha256 of the report's HTML.
        picture: sha256 of the PNG.
        summary, samples: what a run left in summary.json and samples.json.
    """

    page: str
    picture: str
    summary: dict[str, Any]
    samples: list[dict[str, Any]]


def page_of(summary: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """The report's HTML as this version writes it."""
    return render(Summary.model_validate(summary), TypeAdapter(list[Sample]).validate_python(samples))


def photograph(page: str, picture: Path) -> None:
    """The top of a page as a PNG.

    Raises:
        SystemExit: where no browser is installed, or it leaves no picture.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "report.html"
        source.write_text(page, encoding="utf-8")
        flags = (
            "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={scratch}/profile", f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--screenshot={picture.resolve()}", source.as_uri(),
        )
        picture.unlink(missing_ok=True)
        done = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120, check=False)
    if not picture.is_file():
        sys.exit(f"{browser} left no picture: {done.stderr[-1000:]}")


def recorded(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's summary and samples, from its folder or from the record of a picture."""
    if run.is_dir():
        summary, samples = (json.loads((run / name).read_bytes()) for name in ("summary.json", "samples.json"))
        return summary, samples
    record = Record(**json.loads(run.read_bytes()))
    return record.summary, record.samples


def main(run: Path, picture: Path) -> None:
    """Draw the report of a run, and record what it was drawn from."""
    summary, samples = recorded(run)
    page = page_of(summary, samples)
    photograph(page, picture)
    digests = [hashlib.sha256(content).hexdigest() for content in (page.encode(), picture.read_bytes())]
    record = Record(digests[0], digests[1], summary, samples)
    picture.with_suffix(".json").write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")
    print(picture)


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    if len(paths) not in (1, 2):
        sys.exit(__doc__)
    main(paths[0] if len(paths) == 2 else paths[0].with_suffix(".json"), paths[-1])
