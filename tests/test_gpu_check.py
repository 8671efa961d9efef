"""The check of a CUDA device: its parts end in time, leave nothing behind, and their results are on disk at once."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import MINUTES, PARTS, QUICKSTART, Figure, Outcome, changed, outcome_of, table, write_outcome
from conftest import every_core
from triptych.recipe import load

ROOT = Path(__file__).resolve().parents[1]
MACHINE = PARTS[0]


def test_all_time_outs_together_are_within_the_limit() -> None:
    assert sum(part.seconds for part in PARTS) <= 60 * MINUTES
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_goals_are_at_least_or_at_most() -> None:
    assert Figure("speed", 3.0, 3).met is True
    assert Figure("speed", 2.9, 3).met is False
    assert Figure("peak", 22.0, 22, at_most=True).met is True
    assert Figure("peak", 22.1, 22, at_most=True).met is False
    assert Figure("device", "a name").met is None


def test_the_table_shows_what_was_reached_missed_and_left_undone() -> None:
    outcomes = [
        Outcome("sft", "fine-tuning", "done", 61.4, [Figure("share", 0.512, 0.5), Figure("ratio", 3.1, 3.5)]),
        Outcome("grpo", "a step", "out of time", 75.0, [Figure("tokens/s", 12_345.0)], "loading | of weights"),
        Outcome("cycle", "a cycle", "failed", 3.0, [], "no space"),
    ]
    assert table(outcomes, judged=True).splitlines()[2:] == [
        "| sft | 61 | share | 0.512 | at least 0.5, reached |",
        "|  |  | ratio | 3.1 | at least 3.5, missed |",
        "| grpo | 75 | tokens/s | 12,345 |  |",
        "|  |  | out of time | loading ¦ of weights |  |",
        "| cycle | 3 | failed | no space |  |",
    ]
    assert "| sft | 61 | share | 0.512 | at least 0.5 |" in table(outcomes, judged=False)


def test_the_quickstarts_smaller_cycle_is_a_recipe(tmp_path: Path) -> None:
    import yaml

    origin = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    recipe = changed(origin, QUICKSTART)
    assert recipe["base"] == {"train": {"tokens": 1_200_000, "batch_tokens": 4096}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert load(tmp_path / "recipe.yaml").improve.rounds == 1
    assert origin["improve"]["rounds"] == 2


def outcome_with(
    program: str, seconds: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """How a part ends whose process runs this program."""
    start = subprocess.Popen

    def started(command: Any, **settings: Any) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(subprocess, "Popen", started)
    return outcome_of(replace(MACHINE, seconds=seconds), folder, dry=False)


def test_a_parts_figures_are_what_its_process_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
print('{"name": "passed", "value": 1}')
print('{"name": "ratio", "value": 4.5, "goal": 4}')
print('{"name": "passed", "value": 2}')
"""
    outcome = outcome_with(program, 60, tmp_path, monkeypatch)
    assert (outcome.ended, outcome.error) == ("done", "")
    assert outcome.figures == (Figure("passed", 2), Figure("ratio", 4.5, 4))
    with (tmp_path / "results.jsonl").open("w", encoding="utf-8") as results:
        write_outcome(outcome, results)
        line = json.loads((tmp_path / "results.jsonl").read_text("utf-8"))  # before the file is closed
    assert [(figure["name"], figure["met"]) for figure in line["figures"]] == [("passed", None), ("ratio", True)]


def test_a_part_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
print('{"name": "passed", "value": 1}', flush=True)
raise SystemExit("no memory is left")
"""
    outcome = outcome_with(program, 60, tmp_path, monkeypatch)
    assert (outcome.ended, outcome.error) == ("failed", "no memory is left")
    assert outcome.figures == (Figure("passed", 1),)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print('{"name": "child", "value": %d}' % child.pid, flush=True)
sys.stderr.write("still busy\\n")
sys.stdout.write('{"name": "cut')
sys.stdout.flush()
time.sleep(600)
"""
    outcome = outcome_with(program, 3, tmp_path, monkeypatch)
    assert (outcome.ended, outcome.error) == ("out of time", "still busy")
    (figure,) = outcome.figures
    deadline = time.monotonic() + 20
    while alive(int(figure.value)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody waits for any more is none."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_test_marked_gpu_stands_where_the_check_runs_them() -> None:
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text("utf-8")}
    assert marked - {Path(__file__).name} == {"test_gpu.py"}


def test_what_a_machine_without_an_index_lacks_is_imported_where_it_is_used() -> None:
    at_once = {
        (path.name, name)
        for path in (ROOT / "src").rglob("*.py")
        for statement in ast.parse(path.read_text("utf-8")).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in ([each.name for each in statement.names] if isinstance(statement, ast.Import)
                     else [statement.module or ""])
    }
    assert ("endpoint.py", "asyncio") in at_once
    assert not {each for each in at_once if each[1].partition(".")[0] in ("httpx2", "langdetect", "sacrebleu")}


def test_a_part_that_is_not_there_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "speed"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "there is no part speed; there are machine, tests" in run.stderr


@pytest.mark.slow
def test_the_whole_check_runs_dry(tmp_path: Path) -> None:
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with every_core():
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_check", "--dry", "--out", str(tmp_path)], cwd=ROOT,
            env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True,
        )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu-check.jsonl").read_text("utf-8").splitlines()]
    assert [(line["part"], line["ended"]) for line in lines] == [(part.name, "done") for part in PARTS]
    goals = {line["part"]: [f["name"] for f in line["figures"] if f["goal"] is not None] for line in lines}
    machine = {figure["name"] for figure in lines[0]["figures"]}
    assert {"torch", "transformers", "trl", "device", "compute type"} <= machine
    assert {part for part, names in goals.items() if names} >= {"sft", "grpo", "sampling", "continuous"}
    assert (tmp_path / "gpu-check.md").read_text("utf-8") == run.stdout
