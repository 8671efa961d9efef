"""The commands of docs/tutorial.md do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.configuration import load
from triptych.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
FAILS = "triptych run library/recipe.yaml"
SAID = {
    "triptych check library/recipe.yaml": "library/recipe.yaml is fine",
    FAILS: "the reward model may not train anything",
    "triptych run library/recipe.yaml --set reward.epochs=6 --set gate.judge.epochs=6": "promoted: ",
    "triptych status library": "promoted, win rate",
    "triptych verify runs/library/release": "holds what its manifest lists",
}
"""What each command prints in any case, whatever the machine's numbers are."""


def commands() -> list[str]:
    """The commands of the page, in order."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def test_the_recipe_is_one_and_the_page_runs_what_is_expected() -> None:
    assert load(ROOT / "docs" / "tutorial" / "recipe.yaml", Recipe).name == "library"
    assert [command for command in commands() if command in SAID] == list(SAID)


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }
    for command in commands():
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == (command == FAILS), done.stderr
        assert SAID.get(command, "") in done.stdout + done.stderr
    assert (tmp_path / "runs" / "library" / "release" / "instruct" / "model.safetensors").is_file()
