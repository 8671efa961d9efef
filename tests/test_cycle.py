"""One small whole cycle: what it leaves, that a second run does nothing, and that kills change no byte."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.testing import CliRunner, Result

import triptych.cycle
import triptych.results
from triptych import storage
from triptych.cli import app
from triptych.cli import cycle as commands
from triptych.errors import ModelError, RewardError
from triptych.release.verification import verify
from triptych.storage import read_rows

RECIPE = Path(__file__).parent / "tiny.yaml"

# One process imports everything once and forks the ranks of each attempt; it uses no threads of its own before.
FORKS = """
import os, signal, sys
import triptych.results, triptych.cli
import transformers.models.llama.modeling_llama
for line in sys.stdin:
    runs, count, port = line.split()
    children = []
    for rank in range(int(count)):
        child = os.fork()
        if child == 0:
            os.setsid()
            log = os.open(runs + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            if int(count) > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count,
                               "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            sys.argv = ["triptych", "run", sys.argv[1], "--runs", runs]
            try:
                triptych.cli.app()
            except SystemExit as leave:
                os._exit(leave.code or 0)
            os._exit(0)
        children.append(child)
    print(*children, flush=True)
    worst = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        worst = worst or status
        for other in children if status else ():  # as torchrun does
            os.kill(other, signal.SIGKILL)
    print(worst, flush=True)
"""


class Attempts:
    """Runs the tiny recipe in children that can be killed."""

    def __init__(self) -> None:
        environment = os.environ | {"TRIPTYCH_CHECKPOINT_SECONDS": "0", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(RECIPE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )

    def start(self, runs: Path, ranks: int = 1) -> list[int]:
        """The processes of a new attempt."""
        assert self.process.stdin
        assert self.process.stdout
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process.stdin.write(f"{runs} {ranks} {port}\n")
        self.process.stdin.flush()
        return [int(each) for each in self.process.stdout.readline().split()]

    def status(self) -> int:
        """What the attempt ended with; waits for that."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def finish(self, runs: Path, ranks: int = 1) -> None:
        """An attempt that nobody disturbs."""
        self.start(runs, ranks)
        assert self.status() == 0, Path(f"{runs}.log").read_text()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def kill(children: Sequence[int]) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def attempts() -> Iterator[Attempts]:
    attempts = Attempts()
    yield attempts
    attempts.end()


@pytest.fixture
def whole(tiny_run: Path) -> Path:
    """An uninterrupted run, which others look at too: what changes it has a copy."""
    return tiny_run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "ledger.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be under way


def test_a_run_leaves_summary_report_and_release(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["base, few-shot", "instruct", "round 1", "round 2"]
    assert len(summary["rounds"]) == 2
    assert len(summary["audits"]) == 2
    assert summary["audits"][0]["ceiling"] == 0.9
    # The tiny recipe goes on with a reward model that failed, and the release says so.
    assert [audit["required"] for audit in summary["audits"]] == [False, False]
    card = (whole / "release/reward/README.md").read_text()
    assert ("was allowed to go on" in card) == (summary["audits"][1]["verdict"] == "failed")
    assert summary["audits"][1]["drift"][0]["comparisons"] == "old"  # so small a round may bring no new ones
    assert all(row["difference"] <= (row["tolerance"] or 1) for row in summary["audits"][0]["consistency"])
    champion = next(model["name"] for model in summary["models"] if model["champion"]).replace(" ", "-")
    folders = (next(whole.glob(f"artifacts/test-{name}-*")) for name in ("instruct", champion))
    before, after = ({row["key"]: row for row in read_rows(each / "answers.jsonl")} for each in folders)
    verdict, models = summary["verdict"], {model["name"]: model for model in summary["models"]}
    free = {way: each["score"] for way, each in models["instruct"]["decodings"].items() if each["drawn"] == 1}
    assert {"greedy", "temperature 1", models["instruct"]["decoding"]} == free.keys()
    assert models["instruct"]["decodings"]["best of 3"]["drawn"] == 3
    examples = {way: each["score"] for way, each in models["base, few-shot"]["decodings"].items()}
    assert len(verdict["baselines"]) == len(free) + 1 + len(examples)
    rival = next(each for each in verdict["baselines"] if each["name"] == verdict["rival"])
    assert rival["score"] == max(*free.values(), *examples.values())
    asked, rows = ("few-shot Base", "base") if "Base" in rival["name"] else ("Instruct", "instruct")
    way = "greedy" if rival["name"] == f"greedy {asked}" else rival["name"].removeprefix(f"{asked} at ")
    theirs = read_rows(next(whole.glob(f"artifacts/test-{rows}-*")) / "answers.jsonl")
    gains = [after[row["key"]]["deployed"]["judge"] - row["decodings"][way]["judge"] for row in theirs]
    assert verdict["gain"] == pytest.approx(sum(gains) / len(gains))
    won = [0.5 if gain == 0 else float(gain > 0) for gain in gains]
    assert verdict["win_rate"] == (None if champion == "instruct" else pytest.approx(sum(won) / len(won)))
    for name in ("round-1", "round-2"):
        (folder,) = whole.glob(f"artifacts/test-{name}-*")
        judged = [(row["deployed"]["judge"], before[row["key"]]["deployed"]["judge"])
                  for row in read_rows(folder / "answers.jsonl")]
        assert models[name.replace("-", " ")]["beside_instruct"] == {
            "better": sum(one > other for one, other in judged), "worse": sum(one < other for one, other in judged),
            "as_good": sum(one == other for one, other in judged),
        }
    for round in summary["rounds"]:  # gate and test are at the same decoding, which was chosen on validation prompts
        assert round["decoding_after"] == models[f"round {round['round']}"]["decoding"]
        (chosen,) = whole.glob(f"artifacts/round-{round['round']}-decoding-*/manifest.json")
        table = json.loads(chosen.read_text())["metrics"]["temperatures"]
        best = min(row["temperature"] for row in table if row["score"] == max(row["score"] for row in table))
        assert round["decoding_after"] == ("greedy" if best == 0 else f"temperature {best:g}")
    assert summary["base"]["bits_per_byte"] > 0
    assert {"base", "instruct", "round-1/reward", "round-2/improve"} <= summary["losses"].keys()
    assert [point["step"] for point in summary["rounds"][0]["curve"]] == [0, 2, 4]
    assert summary["rounds"][0]["curve"][0]["kl"] == 0
    assert summary["rounds"][0]["validation_prompts"] == 8
    for point in summary["rounds"][1]["curve"]:
        for scorer in ("reward", "judge"):
            low, high = point[f"{scorer}_interval"]
            assert low <= point[scorer] <= high
    assert summary["units"] == {
        name: "tokens" if name in ("base", "instruct") else "answer tokens" if "improve" in name else "pairs"
        for name in summary["losses"]
    }
    first, second = summary["rounds"]
    assert first["level"] == 0.025
    assert second["level"] == 0.025 / (1 if first["decision"] == "promoted" else 3)
    assert (first["prompts_again"], second["prompts_again"]) == (None, 1)  # there are 12, fewer than gate.prompts
    assert "the prompts of round 1 decide again" in second["reason"]
    assert (whole / "report.html").read_text().startswith("<!doctype html>")
    assert {path.name for path in (whole / "release").iterdir()} >= {"base", "instruct", "reward", "manifest.json"}


def test_the_release_is_verified_and_a_change_is_named(whole: Path) -> None:
    assert verify(whole / "release") == []


def test_the_release_holds_no_path_of_this_machine(whole: Path) -> None:
    texts = {
        name: content for name, content in contents(whole / "release").items() if not name.endswith(".safetensors")
    }
    assert len(texts) > 15
    for name, content in texts.items():
        assert str(whole.parent).encode() not in content, name


def test_no_prompt_proves_what_it_taught(whole: Path) -> None:
    data = next((whole / "artifacts").glob("data-*"))
    seen: dict[str, str] = {}
    for path in sorted(data.glob("*.jsonl")):
        if path.name.startswith("text"):
            continue
        for line in path.read_text().splitlines():
            row = json.loads(line)
            prompt = json.dumps(row.get("prompt") or row["messages"][:-1])
            assert seen.setdefault(prompt, path.name) == path.name


def test_a_second_run_does_nothing(whole: Path, attempts: Attempts, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    attempts.finish(tmp_path)
    assert contents(tmp_path / "tiny" / "artifacts") == contents(whole / "artifacts")
    started = [event for event in events(tmp_path / "tiny") if event["event"] == "started"]
    assert len(started) == len({event["stage"] for event in started})


@pytest.mark.attack("power loss")
def test_what_is_told_was_flushed_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    exchange = storage.exchange

    def exchanged(one: Path, other: Path) -> bool:
        order.append(f"exchange {one.name} {other.name}")
        return exchange(one, other)

    monkeypatch.setattr(storage, "exchange", exchanged)
    monkeypatch.setattr(commands, "say", lambda *parts: order.append(f"told {parts}"))
    assert CliRunner().invoke(app, ["run", str(RECIPE), "--runs", str(tmp_path)]).exit_code == 0
    order = order[: next(place for place, each in enumerate(order) if "told ('report" in each)]
    place = order.index("exchange release.partial release")
    flushed = [f"fsync {path.name}" for path in (tmp_path / "tiny" / "release").rglob("*")]
    assert len(flushed) > 15
    assert sorted(order[place - len(flushed) - 1 : place]) == sorted([*flushed, "fsync release.partial"])
    assert order[place + 1] == "fsync tiny"
    for name in ("summary.json", "samples.json", "report.html"):
        at = order.index(f"rename {name}.partial {name}")
        assert (order[at - 1], order[at + 1]) == (f"fsync {name}.partial", "fsync tiny")


def failing_at(
    runs: Path, monkeypatch: pytest.MonkeyPatch, work: str, error: Exception
) -> tuple[Result, dict[str, Any]]:
    """The run given again with a stage that fails; what it said, and its summary."""

    def fail(*_: object, **__: object) -> None:
        raise error

    fail.__annotations__ = {"return": get_type_hints(getattr(triptych.cycle, work))["return"]}
    monkeypatch.setattr(triptych.cycle, work, fail)
    ended = CliRunner().invoke(app, ["run", str(RECIPE), "--runs", str(runs)])
    return ended, json.loads((runs / "tiny" / "summary.json").read_text())


@pytest.mark.attack("failing stage")
@pytest.mark.parametrize("error", [ModelError("no prompt fits"), ZeroDivisionError("by zero")])
def test_a_last_stage_that_fails_keeps_the_results(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "tiny" / "release")
    ended, summary = failing_at(tmp_path, monkeypatch, "measure", error)
    assert ended.exit_code == 1
    assert str(error) in (ended.stderr if isinstance(error, ModelError) else str(ended.exception))
    assert summary["ended"] == ("no prompt fits" if isinstance(error, ModelError) else "ZeroDivisionError: by zero")
    missing = ["test/base", "test/instruct", "test/round-1", "test/round-2"]
    assert summary["missing"] == missing
    assert f"missing: {', '.join(missing)}" in ended.stdout
    assert f"Missing: {', '.join(missing)}." in (tmp_path / "tiny" / "report.html").read_text()
    assert (summary["release"], len(summary["rounds"]), summary["models"]) == ("release", 2, [])
    release, before = contents(tmp_path / "tiny" / "release"), contents(whole / "release")
    assert verify(tmp_path / "tiny" / "release") == []
    differing = {name for name in before if release[name] != before[name]}
    assert all(name.endswith("README.md") or name.startswith("manifest") for name in differing), differing
    assert "No scores were measured in this run." in release["instruct/README.md"].decode()


@pytest.mark.attack("failing stage")
def test_a_stage_that_fails_before_its_gate_releases_nothing_and_leaves_what_was_released(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    ended, summary = failing_at(tmp_path, monkeypatch, "decide", RewardError("the judge is silent"))
    assert (ended.exit_code, summary["ended"], summary["release"]) == (1, "the judge is silent", None)
    assert summary["missing"][0] == "round-1/gate"
    assert "round-2/improve" in summary["missing"]
    assert len(summary["audits"]) == 1
    assert contents(tmp_path / "tiny" / "release") == contents(whole / "release")


@pytest.mark.attack("failing stage")
def test_where_the_disk_is_full_the_first_error_is_still_told(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(triptych.results, "write_whole", full)
    ended, _ = failing_at(tmp_path, monkeypatch, "measure", ModelError("no prompt fits"))
    assert ended.exit_code == 1
    assert "what the run came to could not be written: [Errno 28] No space left" in ended.stderr
    assert "error: no prompt fits" in ended.stderr


FORGED = {
    "weights": ("round-2-improve-*/model/model.safetensors", "model/model.safetensors was changed"),
    "config": ("base-*/model/config.json", "model/config.json was changed"),
    "gate decision": ("round-1-gate-*/manifest.json", "manifest.json was changed"),
    "answers": ("test-instruct-*/answers.jsonl", "answers.jsonl was changed"),
    "curve": ("round-1-improve-*/curve.jsonl", "curve.jsonl was changed"),
}


@pytest.mark.attack("damage")
@pytest.mark.parametrize("name", FORGED)
def test_no_changed_artifact_goes_into_report_or_release(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    pattern, message = FORGED[name]
    (path,) = (tmp_path / "tiny" / "artifacts").glob(pattern)
    content = bytearray(path.read_bytes())
    place = content.index(b"decision") + 12 if name == "gate decision" else len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    written = contents(tmp_path / "tiny" / "release")
    ended = CliRunner().invoke(app, ["run", str(RECIPE), "--runs", str(tmp_path)])
    assert ended.exit_code == 1
    folder = next(each for each in path.parents if each.parent.name == "artifacts")
    assert f"{folder}: {message}" in ended.stderr
    assert "delete this folder to compute it again" in ended.stderr
    assert contents(tmp_path / "tiny" / "release") == written
    shutil.rmtree(folder)  # the way out leads to the same bytes
    assert CliRunner().invoke(app, ["run", str(RECIPE), "--runs", str(tmp_path)]).exit_code == 0
    assert contents(tmp_path / "tiny" / "release") == contents(whole / "release")


def test_kills_at_any_moment_change_no_byte(whole: Path, attempts: Attempts, tmp_path: Path) -> None:
    seconds = {event["stage"]: event["seconds"] for event in events(whole) if event["event"] == "finished"}
    stages = list(seconds)
    draw = random.Random(7)
    # A kill in every kind of stage, spread over the run; the later ones meet what the earlier ones left.
    targets = [stage for stage in stages if not stage.startswith(("round-2/audit", "test/base", "test/round-1"))]
    trained = ["base", "instruct", f"round-{draw.choice([1, 2])}/reward", f"round-{draw.choice([1, 2])}/improve"]
    others = draw.sample([target for target in targets if target not in trained], 4)
    targets = sorted([*trained, *others], key=stages.index)
    run = tmp_path / "tiny"
    kills = []
    for target in targets:
        children = attempts.start(tmp_path)
        begun = wait_for_start(run, target)
        if begun:
            moment = draw.random() * seconds[target]
            if target == "instruct":  # surely between two of its many checkpoints
                wait_for_checkpoint(run, target)
            else:
                time.sleep(moment)
            kills.append(target)
        kill(children)
        attempts.status()
    attempts.finish(tmp_path)
    assert len(kills) >= 6, kills  # on a busy machine a short stage may be over before its kill
    assert contents(run / "release") == contents(whole / "release")
    resumed = Path(f"{tmp_path}.log").read_text()
    assert "going on from step" in resumed, "no training was interrupted between two checkpoints"


def wait_for_checkpoint(run: Path, stage: str) -> None:
    """Waits until a stage under way has a checkpoint."""
    for _ in range(6000):
        if any(run.glob(f"work/{stage}-*/training.pt")):
            return
        time.sleep(0.01)
    raise AssertionError(f"{stage} has no checkpoint")


def wait_for_start(run: Path, stage: str) -> bool:
    """Waits until the newest attempt begins the stage; False if it was done before."""
    count = len(events(run))
    for _ in range(6000):
        new = events(run)[count:]
        if any(event.get("stage") == stage and event["event"] == "started" for event in new):
            return True
        if any(event.get("stage") == stage and event["event"] in ("reused", "finished") for event in new):
            return False
        time.sleep(0.01)
    raise AssertionError(f"{stage} never began")
