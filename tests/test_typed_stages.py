"""A stage that is called wrongly is found by the type checker, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

SOURCE = Path(__file__).parents[1]
CALLS = '''
from pathlib import Path

from triptych.base.pretraining import Pretraining, pretrain
from triptych.base.record import BaseRecord
from triptych.engine.scoring import Scorer
from triptych.evaluate.gate import Decided, Gate, decide
from triptych.instruct.finetuning import Finetuned, Finetuning, finetune
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import StageContext
from triptych.storybook.world import Storybook, write_world


def calls(
    runner: Runner, context: StageContext, judge: Scorer, gate: Artifact[Decided], plain: Path
) -> None:
    data = runner.run("data", write_world, Storybook())
    base = runner.run("base", pretrain, Pretraining(), data=data)
    instruct = runner.run("instruct", finetune, Finetuning(), base=base, data=data)
    right: Artifact[Finetuned] = instruct
    known: float | None = base.result.bits_per_byte
    won: float = gate.result.win_rate
    finetune(context, Finetuning(), plain, plain)
    finetune(context, Finetuning(), base, data)
    runner.run("decided", decide, Gate(), answers=gate, measured=gate.result, reward=judge, judge=judge)
    runner.run("instruct", finetune, Finetuning(), bas=base, data=data)  # wrong: a misspelt input
    runner.run("instruct", finetune, Finetuning(), base=base)  # wrong: an input too few
    runner.run("instruct", finetune, Pretraining(), base=base, data=data)  # wrong: another stage's settings
    runner.run("decided", decide, Gate(), gate, gate.result, reward=base, judge=judge)  # wrong: no scorer
    runner.run("instruct", finetune, Finetuning(), base=judge, data=data)  # wrong: a scorer for a folder
    runner.run("decided", decide, Gate(), gate, base.result, reward=judge, judge=judge)  # wrong: another result
    base.result.bits_per_bite  # wrong: a misspelt metric
    gate.result.desicion == "promoted"  # wrong: a misspelt metric
    other: Artifact[BaseRecord] = instruct  # wrong: another stage's artifact
    data.metrics["documents"]  # wrong: no dict
'''


@pytest.mark.slow
def test_a_wrong_call_of_a_stage_is_found_and_a_right_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS, encoding="utf-8")
    told, _, _ = api.run([
        "--config-file", str(SOURCE / "pyproject.toml"), "--cache-dir", str(SOURCE / ".mypy_cache"),
        str(tmp_path / "calls.py"),
    ])
    found = {int(line.split("calls.py:")[1].split(":")[0]) for line in told.splitlines()
             if "calls.py:" in line and ": error:" in line}
    wrong = {number for number, line in enumerate(CALLS.splitlines(), start=1) if "# wrong" in line}
    assert len(wrong) == 10
    assert found == wrong, told
