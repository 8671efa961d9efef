"""The golden record: what `tiny.yaml` computes for every trained stage and method, held while code is moved about.

The record (`golden.json`) has each step's loss and gradient norm and the digest of the weights. Bytes are compared on
the machine that a record is of; elsewhere, where sums round otherwise and a sampled token may be another, the losses of
the stages before any sampling are. A change of results on purpose is recorded anew with `python -m tests.test_golden`.
"""

import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from triptych.cli import app
from triptych.data.folder import DataFolder
from triptych.engine.device import settle
from triptych.improve.improvement import improve
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Thumb
from triptych.reward.registry import open_reward
from triptych.storage import read_rows, sha256

RECIPE = Path(__file__).parent / "tiny.yaml"
RECORD = Path(__file__).parent / "golden.json"
METHODS = ("grpo", "gspo", "rloo", "ppo", "dpo", "best_of_n", "kto")
STAGES = ("base", "instruct", "round-1-reward")
BEFORE_SAMPLING = ("base", "instruct")

Record = dict[str, dict[str, Any]]


def computed(runs: Path, *overrides: str, methods: Sequence[str] = METHODS) -> Record:
    """Each stage's steps and weights; the stages before improvement are computed once."""
    found: Record = {}
    for method in methods:
        if method == "kto":
            found[method] = learnt_from_thumbs(runs, *overrides)
            continue
        options = [f"improve.method={method}", "improve.rounds=1", *overrides]
        if method in ("dpo", "best_of_n"):  # what they have no setting for
            options.append("improve.steps=4")
        run(runs, "round-1/improve", *options)
        for stage in (*STAGES, "round-1-improve"):
            (folder,) = (path for path in runs.glob(f"tiny/artifacts/{stage}-*") if is_of(path, method))
            name = stage if stage in STAGES else method
            if name in found:
                continue
            found[name] = made_in(folder)
    return found


def run(runs: Path, until: str, *overrides: str) -> None:
    """The recipe's stages up to one."""
    arguments = ["run", str(RECIPE), "--runs", str(runs), "--until", until]
    for override in overrides:
        arguments += ["--set", override]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (overrides, result.output, result.exception)


def learnt_from_thumbs(runs: Path, *overrides: str) -> dict[str, Any]:
    """KTO on the comparisons of the other methods' run, their answers as thumbs up and thumbs down."""
    done = runs / "tiny" / "artifacts"
    data, instruct, comparisons, reward = (
        next(done.glob(f"{stage}-*")) for stage in ("data", "instruct", "round-1-feedback", "round-1-reward")
    )
    folder = runs / "kto"
    shutil.copytree(data, folder / "data")
    (folder / "output").mkdir()
    DataFolder(folder / "data").thumbs.write(
        Thumb(row.prompt, answer, liked) for row in DataFolder(comparisons).comparisons("train").read()
        for answer, liked in ((row.chosen, True), (row.rejected, False))
    )
    recipe = load(RECIPE, overrides)
    context = StageContext(folder / "output", folder, Silent(), recipe.seed, checkpoint_seconds=600.0)
    config = recipe.with_method("kto").improve.method
    improve(context, config, instruct, folder / "data", open_reward(reward), judge=None)
    return made_in(folder / "output")


def made_in(folder: Path) -> dict[str, Any]:
    """The steps and the weights of a training in its folder."""
    steps = [[row["loss"], row["gradient_norm"]] for row in read_rows(folder / "curve.jsonl") if "gradient_norm" in row]
    return {"steps": steps, "weights": sha256(folder / "model" / "model.safetensors")}


def is_of(folder: Path, method: str) -> bool:
    config = json.loads((folder / "manifest.json").read_text())["config"]
    return bool(config.get("method", method) == method)


def machine() -> str:
    """What the bytes depend on beside the code."""
    settle()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    threads = torch.get_num_threads()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, torch {torch.__version__}, " \
        f"{platform.system()}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def mine(place: Path) -> Record:
    return computed(place)


def taken_over(runs: Path, place: Path, *stages: str) -> Path:
    """A folder for runs in which these stages are done."""
    for stage in stages:
        (folder,) = place.glob(f"tiny/artifacts/{stage}-*")
        shutil.copytree(folder, runs / "tiny" / "artifacts" / folder.name)
    return runs


def test_every_stage_computes_what_is_on_record(mine: Record) -> None:
    records = json.loads(RECORD.read_text())
    if machine() in records:
        assert mine == records[machine()]
    else:
        (other, *_) = records.values()
        for stage in BEFORE_SAMPLING:
            for step, kept in zip(mine[stage]["steps"], other[stage]["steps"], strict=True):
                assert step == pytest.approx(kept, rel=0.02), stage


def test_other_micro_batches_change_rounding_only(mine: Record, place: Path, tmp_path: Path) -> None:
    # Each on the same data: what is sampled from another Instruct, or scored by another reward, is something else.
    runs = taken_over(tmp_path / "1", place, "data", "base")
    run(runs, "instruct", "instruct.micro_batch=256")
    (instruct,) = runs.glob("tiny/artifacts/instruct-*")
    others = {"instruct": made_in(instruct)}
    runs = taken_over(tmp_path / "2", place, "data", "base", "instruct", "round-1-feedback")
    smaller = computed(runs, "reward.micro_batch=384", "improve.micro_batch=384")
    others |= {stage: record for stage, record in smaller.items() if stage not in BEFORE_SAMPLING}
    for stage, record in others.items():
        assert len(record["steps"]) == len(mine[stage]["steps"])
        count = 1 if stage in METHODS else None  # behind an update a sampled token may be another
        for step, kept in zip(record["steps"][:count], mine[stage]["steps"][:count], strict=True):
            assert step == pytest.approx(kept, rel=0.01, abs=1e-3), stage


if __name__ == "__main__":
    # Whole and never in part: what another machine or a single core recorded before would be of former results.
    records = {}
    cores = os.sched_getaffinity(0)
    for used in ({min(cores)}, cores):  # as a worker of xdist, and alone
        os.sched_setaffinity(0, used)
        with TemporaryDirectory() as folder:
            records[machine()] = computed(Path(folder))
    RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
