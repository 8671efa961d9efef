"""Trackers: each point once, also behind a kill; what they do wrong, the run does not feel; they count in no result."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from triptych.engine.curve import GrowingCurve, Row
from triptych.errors import RecipeError
from triptych.execution import execute
from triptych.pipeline.artifact import seal
from triptych.pipeline.ledger import Ledger
from triptych.progress import Silent
from triptych.recipe import load
from triptych.storage import read_rows
from triptych.trackers import process
from triptych.trackers.points import Sent, is_other, numbers, send_new
from triptych.trackers.process import tracked
from triptych.trackers.tracker import TrackerName

RECIPE = Path(__file__).parent / "tiny.yaml"
OTHER = "b" * 64
Points = dict[str, list[tuple[int, float]]]


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def row(step: int, **more: float) -> Row:
    return {"step": step, "loss": 1 / step if step else float("nan"), "seen": 10.0 * step, **more}


def a_run(folder: Path) -> GrowingCurve:
    """A run whose Base is at step 3."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: a run\nseed: 1\nbase: {train: {width: 32}, text: []}\n")
    Ledger(folder / "ledger.jsonl").plan(["base", "instruct"])
    Ledger(folder / "ledger.jsonl").add("started", "base", fingerprint="a" * 64)
    return GrowingCurve(folder / "work" / "base-aaaaaaaaaaaa" / "curve.jsonl", [row(step) for step in range(4)])


def finish(folder: Path, **metrics: object) -> None:
    """Ends the Base."""
    (folder / "artifacts").mkdir()
    (folder / "work" / "base-aaaaaaaaaaaa").rename(folder / "artifacts" / "base-aaaaaaaaaaaa")
    seal(folder / "artifacts" / "base-aaaaaaaaaaaa", {"metrics": metrics, "parents": {}})
    Ledger(folder / "ledger.jsonl").add("finished", "base", fingerprint="a" * 64)


def test_each_point_is_sent_once(tmp_path: Path) -> None:
    curve = a_run(tmp_path / "run")
    sent = Sent.begin("a run")
    points: list[tuple[int, dict[str, float]]] = []
    kept: list[str] = []

    def send() -> list[tuple[int, dict[str, float]]]:
        points.clear()
        send_new(
            tmp_path / "run", sent, lambda values, step: points.append((step, values)),
            lambda: kept.append(sent.model_dump_json()),
        )
        return points

    assert send() == [
        (0, {"base/seen": 0.0}), (1, {"base/loss": 1.0, "base/seen": 10.0}), (2, {"base/loss": 0.5, "base/seen": 20.0}),
        (3, {"base/loss": 0.3333333, "base/seen": 30.0}),
    ]
    assert send() == []
    curve.add(row(4))
    assert send() == [(4, {"base/loss": 0.25, "base/seen": 40.0})]
    # A kill: the training goes on from its checkpoint of step 2, and comes to the same numbers again.
    curve = GrowingCurve(curve.path, [row(step) for step in range(3)])
    assert send() == []
    for step in range(3, 6):
        curve.add(row(step))
    assert [step for step, _ in send()] == [5]
    finish(tmp_path / "run", bits_per_byte=1.5, source="trained", domains=[1, 2], parameters=7, passed=True)
    assert send() == [(5, {"base/bits_per_byte": 1.5, "base/parameters": 7.0})]
    assert send() == []
    assert kept[-1] == sent.model_dump_json()


def test_what_was_computed_from_something_else_is_another_run(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    sent = Sent.begin("a run")
    assert not is_other(tmp_path / "run", sent)
    send_new(tmp_path / "run", sent, lambda values, step: None, lambda: None)
    assert not is_other(tmp_path / "run", sent)
    Ledger(tmp_path / "run" / "ledger.jsonl").plan(["base"])
    Ledger(tmp_path / "run" / "ledger.jsonl").add("started", "base", fingerprint=OTHER)
    assert is_other(tmp_path / "run", sent)


def test_names_are_such_as_every_tracker_takes() -> None:
    assert numbers("round-1/improve", {"reward/length/a=b?": 1, "flag": True, "rows": [1], "fault": "loss"}) == {
        "round-1/improve/reward/length/a_b_": 1.0
    }


def of_tensorboard(run: Path, id: str) -> Points:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard" / id))
    events.Reload()
    assert "name: a run" in str(events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0])
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of_trackio(run: Path, id: str) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for log in SQLiteStorage.get_logs("triptych", id):
        for name, value in log.items():
            if name.startswith("base/"):
                points.setdefault(name, []).append((log["step"], value))
    return points


def of_mlflow(run: Path, id: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    made = client.get_run(id)
    assert (made.info.run_name, made.info.status) == ("a run", "FINISHED")
    assert made.data.params["base.train.width"] == "32"
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(id, name)]
        for name in made.data.metrics
    }


def of_wandb(run: Path, id: str) -> Points:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    for file in sorted((run / "wandb").glob(f"offline-run-*/run-{id}.wandb")):
        for content in records(file.read_bytes()):
            record = Record.FromString(content)
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name in line:
                if name.startswith("base/"):
                    points.setdefault(name, []).append((line["step"], line[name]))
    return points


def records(content: bytes) -> list[bytes]:
    """The records of a LevelDB log behind a header of 7 bytes: blocks of 32 KiB, of pieces with a header of 7 bytes."""
    whole, part, place = [], b"", 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            whole.append(part)
            part = b""
    return whole


READERS: Mapping[TrackerName, Callable[[Path, str], Points]] = {
    "tensorboard": of_tensorboard, "trackio": of_trackio, "mlflow": of_mlflow, "wandb": of_wandb,
}


def ended(run: Path, name: str) -> bool:
    state = run / "trackers" / f"{name}.json"
    return state.exists() and bool(json.loads(state.read_text())["stages"].get("base", {}).get("ended"))


def wait(done: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(
    name: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the tracker itself, in its process; what it has is read back by its own means."""
    for variable, value in {
        "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "RANK": "0", "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(name)
    monkeypatch.setattr(process, "PATIENCE", 120.0)
    run, said = tmp_path / "run", Said()
    curve = a_run(run)
    with tracked([name], run, said):
        pass
    first = Sent.read(run / "trackers" / f"{name}.json", "a run")
    assert first.stages["base"].step == 3
    curve.add(row(4))
    finish(run, bits_per_byte=1.5)
    with tracked([name], run, said):
        pass
    second = Sent.read(run / "trackers" / f"{name}.json", "a run")
    assert (second.run, second.stages["base"].ended) == (first.run, True)
    assert [line.split(":")[0] for line in said.lines] == [name, name]
    points = READERS[name](run, first.run)
    assert [step for step, _ in points["base/loss"]] == [1, 2, 3, 4]
    assert [value for _, value in points["base/loss"]] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert [step for step, _ in points["base/seen"]] == [0, 1, 2, 3, 4]
    assert points["base/bits_per_byte"] == [(4, 1.5)]


def test_a_tracker_that_fails_is_told_of_and_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    a_run(tmp_path / "run")
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    said = Said()
    with tracked(["tensorboard"], tmp_path / "run", said):
        wait(lambda: bool(said.lines))
    assert len(said.lines) == 1
    assert said.lines[0].startswith("tensorboard: left out, and the run goes on: ")
    assert not (tmp_path / "run" / "trackers" / "tensorboard.json").exists()


def test_a_tracker_that_cannot_be_started_is_left_out(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    (tmp_path / "run" / "trackers").write_text("in the way")
    said = Said()
    with tracked(["tensorboard"], tmp_path / "run", said):
        pass
    assert len(said.lines) == 1
    assert "left out, and the run goes on" in said.lines[0]


def test_a_tracker_that_waits_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held up by the one of a run before, which still sends; alone it comes to its end."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    run, said = tmp_path / "run", Said()
    a_run(run)
    finish(run)
    (run / "trackers").mkdir()
    with open(run / "trackers" / "tensorboard.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with tracked(["tensorboard"], run, said):
            pass
        assert time.monotonic() - began < 5
        assert [line.split(",")[0] for line in said.lines] == ["tensorboard: it goes on sending"]
        assert not ended(run, "tensorboard")
    wait(lambda: ended(run, "tensorboard"))


def test_a_process_that_is_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "run")
    said = Said()
    companion = process.Companion("tensorboard", tmp_path / "run", said)
    companion.process.kill()
    companion.ask_to_end()
    companion.end(10)
    assert len(said.lines) == 1
    assert "left out, and the run goes on: it ended with -9" in said.lines[0]


def test_a_tracker_that_is_not_there_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match=r"tracker: wandb is not installed: pip install 'triptych\[wandb\]'"):
        load(RECIPE, ["tracker=wandb"])
    with pytest.raises(RecipeError, match="tracker"):
        load(RECIPE, ["tracker=[tensorbord]"])
    monkeypatch.undo()
    assert load(RECIPE, ["tracker=[tensorboard, tensorboard]"]).tracker == ("tensorboard",)
    assert load(RECIPE).tracker == load(RECIPE, ["tracker=null"]).tracker == ()


def test_a_tracker_changes_no_result_and_gets_what_was_done_before(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    small = ["base.train.tokens=3000", "storybook.documents=60"]
    for tracker in ("null", "tensorboard"):
        execute(load(RECIPE, [*small, f"tracker={tracker}"]), tmp_path / "tiny", Silent(), until="base")
    assert [event["event"] for event in read_rows(tmp_path / "tiny" / "ledger.jsonl")] == [
        "planned", "started", "finished", "started", "finished", "planned", "reused", "reused"
    ]
    (folder,) = (tmp_path / "tiny" / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    (curve,) = (tmp_path / "tiny" / "artifacts").glob("base-*/curve.jsonl")
    losses = [(event.step, event.value) for event in events.Scalars("base/loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in read_rows(curve)]
    assert len(losses) >= 3
