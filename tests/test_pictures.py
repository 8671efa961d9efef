"""The pictures of reports in the documents are what this version draws of the runs that they name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import triptych
from scripts.pictures import Record, page_of

ROOT = Path(__file__).resolve().parents[1]
RECORDS = sorted((ROOT / "docs").rglob("*.json"))


def stale(record: Record, picture: bytes) -> list[str]:
    """Why a picture no longer shows what this version would."""
    page = hashlib.sha256(page_of(record.summary, record.samples).encode()).hexdigest()
    reasons = {
        "the page of its run is another": page != record.page,
        "it was drawn from another record": hashlib.sha256(picture).hexdigest() != record.picture,
        "its run is of another version": record.summary["version"] != triptych.__version__,
    }
    return [reason for reason, holds in reasons.items() if holds]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_no_picture_is_stale(path: Path) -> None:
    record = Record(**json.loads(path.read_bytes()))
    assert stale(record, path.with_suffix(".png").read_bytes()) == [], "draw it again: make pictures"


def test_a_stale_picture_is_found() -> None:
    path = RECORDS[0]
    content = json.loads(path.read_bytes())
    picture = path.with_suffix(".png").read_bytes()
    renamed = Record(**content | {"summary": content["summary"] | {"name": "another"}})
    assert stale(renamed, picture) == ["the page of its run is another"]
    older = Record(**content | {"summary": content["summary"] | {"version": "0.0.1"}})
    assert "its run is of another version" in stale(older, picture)
    assert stale(Record(**content), picture + b" ") == ["it was drawn from another record"]
