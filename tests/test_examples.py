"""The notebooks run, and show what they say."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "a notebook is kept without its outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output["text"] for cell in notebook.cells for output in cell.get("outputs", ())
        if output["output_type"] == "stream" and output["name"] == "stdout"
    )
    (accuracy,) = re.findall(r"^passed.*: orders ([\d.]+)% of", printed, re.MULTILINE)
    first, best = re.findall(r"of 8 (\d+)%", printed)
    assert float(accuracy) > 95
    assert int(first) < 75 < int(best), printed
