"""The benchmark's own figures: operations counted in closed form, medians, the table and its files."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from benchmarks import table
from benchmarks.__main__ import agree
from benchmarks.flops import Size
from benchmarks.reward import needed
from benchmarks.row import Case, Row, Run
from benchmarks.rows import ROWS
from conftest import FAMILIES
from triptych.data.lengths import TokenizedComparison


def test_operations_of_a_tiny_model_in_closed_form() -> None:
    config = FAMILIES["llama"](tie_word_embeddings=True)
    size = Size.of(config)
    # Width 16, 4 query heads and 2 key-value heads of 8, 24 inside, 2 layers, vocabulary 61.
    layer = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24 + 2 * 16
    assert size == Size(trunk=2 * layer + 16, head=61 * 16)
    assert size.trunk + size.head == sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    assert size.forward(10, 3) == 2 * (size.trunk * 10 + size.head * 3)
    assert size.training(10, 3) == 6 * (size.trunk * 10 + size.head * 3)


def test_a_shared_prompt_and_a_repeated_answer_are_needed_once() -> None:
    prompt = (1, 2, 3)
    rows = [TokenizedComparison(prompt, (4, 5), (6,)), TokenizedComparison(prompt, (4, 5), (7, 8))]
    assert needed(rows) == 3 + 2 + 1 + 2
    assert needed([*rows, TokenizedComparison((9,), (4, 5), (6,))]) == 8 + 1 + 2 + 1


def nothing(case: Case) -> None:
    raise AssertionError("no side is run here")


ROW = Row("toy", "a toy", "pairs", 2, nothing, nothing, tolerance=0.01)  # type: ignore[arg-type]
OURS = [Run(1.0, 8, 100, 5e9, (2.0,)), Run(2.0, 8, 100, 5e9, (2.0,)), Run(4.0, 8, 100, 5e9, (2.0,))]
PEER = [Run(8.0, 8, 100, 5e9, (2.01,)), Run(16.0, 8, 100, 5e9, (2.01,)), Run(80.0, 8, 100, 5e9, (2.01,))]
RESULT = table.Result(ROW, OURS, PEER, rate=1e10)


def test_medians_ratio_and_fractions() -> None:
    assert table.speed(OURS) == 4
    assert table.speed(PEER) == 0.5
    assert RESULT.ratio == 8
    assert RESULT.fraction(OURS) == pytest.approx(0.25)
    assert RESULT.fraction(PEER) == pytest.approx(0.03125)


def test_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    cells = [cell.strip() for cell in table.table([RESULT]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["toy", "a toy", "pairs", "4", "0.5", "8.00", "2", "100 (8 pairs)", "25%", "3%", "3"]
    written = json.loads(table.write(RESULT, "cpu", tmp_path).read_text())
    assert (tmp_path / "toy.json").is_file()
    assert (written["ratio"], written["ours_per_second"], written["goal"]) == (8, 4, 2)
    assert [run["seconds"] for run in written["peer"]] == [8, 16, 80]


def test_sides_that_compute_something_else_are_refused() -> None:
    agree(ROW, (2.0,), (2.01,))
    for theirs in ((2.1,), (2.0, 2.0), (math.nan,)):
        with pytest.raises(RuntimeError, match="do not compute the same"):
            agree(ROW, (2.0,), theirs)
    with pytest.raises(RuntimeError, match="do not compute the same"):
        agree(replace(ROW, tolerance=0.0), (5.0, 7.0), (5.0, 8.0))


def test_the_command_lists_every_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("benchmarks", run_name="__main__")
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ROWS)
