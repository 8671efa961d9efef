"""Ranks that one command starts: here, on several machines by the script for Slurm, and by Ray.

Machines are stood for by processes of this one: `srun` and `scontrol` by two scripts that do what these do here, a Ray
cluster by two nodes of Ray's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import triptych.cluster
from conftest import every_core
from triptych.cli import app
from triptych.engine import distributed, nf4

RECIPE = Path(__file__).parent / "tiny.yaml"
SHIPPED = Path(triptych.cluster.__file__).parent
RUN = [sys.executable, "-m", "triptych", "run", str(RECIPE)]


def outcome(*options: str) -> str:
    """What the command says that is wrong."""
    result = CliRunner().invoke(app, ["run", str(RECIPE), *options])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def test_what_cannot_be_started_is_refused_before_anything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--nodes 2 needs --rendezvous HOST:PORT" in outcome("--nodes", "2")
    assert "--rendezvous is for several machines" in outcome("--rendezvous", "here:1")
    assert "leave out --nodes" in outcome("--ray", "--nodes", "2")
    assert "must be an integer" in outcome("--nodes", "2", "--rendezvous", "here:there")
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert "install triptych[ray]" in outcome("--ray", "--ranks", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun has started the ranks already" in outcome("--ranks", "2")


@pytest.mark.skipif(not nf4.available(), reason="bitsandbytes is not installed")
def test_an_optimizer_of_one_rank_is_refused_on_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    output = outcome("--runs", str(tmp_path), "--set", "improve.optimizer=adamw_8bit")
    assert "round-1/improve: optimizer adamw_8bit works on one rank alone" in output
    monkeypatch.undo()
    assert outcome("--ranks", "2", "--runs", str(tmp_path / "two"), "--set", "improve.optimizer=adamw_8bit") == output
    said = outcome("--ranks", "2", "--runs", str(tmp_path / "two"), "--until", "instuct")
    assert said.count("--until instuct: this recipe has no such stage") == 1
    assert not (tmp_path / "two").exists()  # no rank was started


def test_a_recipe_that_is_wrong_is_told_once_and_starts_nothing(tmp_path: Path) -> None:
    assert "improve.steps" in outcome("--ranks", "2", "--runs", str(tmp_path), "--set", "improve.steps=none")
    assert not list(tmp_path.iterdir())


def ran(command: list[str], **environment: str) -> str:
    """What a command printed that ended well."""
    with every_core():
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=900, env=os.environ | environment, cwd=RECIPE.parent
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def losses(folder: Path) -> list[float]:
    """Of the Base's and the Instruct's training; what comes later hangs on what was sampled."""
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    return [row["loss"] for stage in ("base", "instruct") for row in summary["losses"][stage]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run until Instruct, by one process."""
    folder = tmp_path_factory.mktemp("alone")
    ran([*RUN, "--runs", str(folder), "--until", "instruct"])
    return folder


def require_same(folder: Path, alone: Path) -> None:
    """The run was that of one process, and each of its stages was done once."""
    assert losses(folder) == pytest.approx(losses(alone), rel=0.02)
    events = [json.loads(line) for line in (folder / "tiny" / "ledger.jsonl").read_text().splitlines()]
    done = [event["stage"] for event in events if event["event"] in ("started", "finished")]
    assert sorted(done) == sorted(2 * ["data", "base", "instruct"])


@pytest.mark.slow
def test_a_run_that_is_stopped_on_two_ranks_goes_on_on_two(alone: Path, tmp_path: Path) -> None:
    command = [*RUN, "--runs", str(tmp_path), "--until", "instruct", "--ranks", "2"]
    stopped = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ledger = tmp_path / "tiny" / "ledger.jsonl"
    for _ in range(3000):
        if ledger.exists() and '"base"' in ledger.read_text():
            break
        time.sleep(0.1)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ran(command, TMPDIR=str(scratch))
    assert not list(scratch.iterdir())  # torchrun leaves a folder for each launch
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.02)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_is_named(tmp_path: Path) -> None:
    command = [*RUN, "--runs", str(tmp_path), "--ranks", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if (tmp_path / "tiny" / "ledger.jsonl").exists():
            break
        time.sleep(0.1)
    ranks = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "was ended by SIGKILL" in said
    assert "memory" in said


SRUN = """#!/bin/bash
# A task for each machine, all here, each with a core of its own.
while [[ $1 == --* ]]; do [[ $1 == --*=* ]] && shift || shift 2; done
for ((node = 0; node < SLURM_NNODES; node++)); do taskset -c $((node % $(nproc --all))) "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""
SCONTROL = """#!/bin/bash
[[ "$1 $2 $3" == "show hostnames here[1-2]" ]] && printf '127.0.0.1\\n127.0.0.2\\n'
"""


@pytest.mark.slow
def test_the_script_for_slurm_starts_one_run_on_two_machines(alone: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    triptych = f'#!/bin/bash\nexec {sys.executable} -m triptych "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "triptych": triptych}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        job = str(taken.getsockname()[1])
    command = ["bash", str(SHIPPED / "slurm.sh"), str(RECIPE), "--runs", str(tmp_path), "--until", "instruct"]
    ran(command, PATH=f"{programs}:{os.environ['PATH']}", SLURM_NNODES="2", SLURM_JOB_NODELIST="here[1-2]",
        SLURM_JOB_ID=job)
    require_same(tmp_path, alone)


@pytest.fixture
def ray_job() -> Iterator[list[str]]:
    """The command that submits a job to a Ray cluster of two nodes on this machine, a processor each."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (pip install 'triptych[ray]')")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True})
    cluster.add_node(num_cpus=1)
    try:
        program = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
        yield [program, "job", "submit", "--address", f"http://{cluster.head_node.webui_url}", "--"]
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_ray_starts_the_ranks_of_a_job(ray_job: list[str], alone: Path, tmp_path: Path) -> None:
    ran([*ray_job, *RUN, "--runs", str(tmp_path), "--until", "instruct", "--ranks", "2", "--ray"])
    require_same(tmp_path, alone)


def test_the_task_for_skypilot_runs_what_there_is() -> None:
    task = yaml.safe_load((SHIPPED / "skypilot.yaml").read_text())
    assert (RECIPE.parents[1] / task["envs"]["RECIPE"]).is_file()
    checked = subprocess.run(["bash", "-n"], input=task["run"] + task["setup"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    for script in (task["run"], (SHIPPED / "slurm.sh").read_text()):
        options = {word for word in script.replace("(", " ").split() if word.startswith("--")}
        help_text = CliRunner().invoke(app, ["run", "--help"]).output
        assert options & {"--ranks", "--nodes", "--rendezvous"} == {"--ranks", "--nodes", "--rendezvous"}
        assert all(option in help_text for option in ("--ranks", "--nodes", "--rendezvous", "--runs"))
