"""What a run says of the time that is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import with_stages
from triptych import execution
from triptych.execution import execute
from triptych.pipeline.forecast import TRUST, Forecast
from triptych.progress import Silent
from triptych.recipe import load

TINY = Path(__file__).parent / "tiny.yaml"


class Heard(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.stages: dict[str, str] = {}
        self.said: list[str] = []

    def stage(self, name: str, note: str = "") -> None:
        self.stages[name] = note

    def say(self, text: str) -> None:
        self.said.append(text)


def test_what_is_left_is_what_was_foreseen_times_how_much_slower_it_has_gone() -> None:
    forecast = Forecast(lambda: {"a": 100.0, "b": 200.0, "c": 100.0})
    assert forecast.left == 400
    assert forecast.sentence == "0% done, about 6 min 40 s left"
    forecast.finish("a", 300.0)
    assert forecast.left == pytest.approx(300 * (300 + TRUST * 400) / (100 + TRUST * 400))
    forecast.finish("b")  # by an earlier command: how long it took says nothing of this machine
    assert forecast.left == pytest.approx(100 * (300 + TRUST * 400) / (100 + TRUST * 400))
    assert forecast.sentence.startswith("75% done, about ")
    forecast.finish("c", 1.0)
    assert (forecast.left, forecast.sentence) == (0, "")


def test_a_short_stage_does_not_decide_how_long_the_long_ones_take() -> None:
    forecast = Forecast(lambda: {"short": 1.0, "long": 999.0})
    forecast.finish("short", 10.0)  # some of it is not the work that was counted
    assert forecast.left == pytest.approx(999, rel=0.1)


def test_where_nobody_knows_nothing_is_told_and_it_is_asked_again() -> None:
    known: dict[str, float] = {}
    forecast = Forecast(lambda: known)
    assert (forecast.left, forecast.sentence) == (None, "")
    known["a"] = 5.0
    assert forecast.sentence == "0% done, about 5.0 s left"


def test_a_run_tells_it_from_its_base_on_of_the_stages_that_it_will_do(tmp_path: Path, tiny_run: Path) -> None:
    with_stages(tmp_path / "run", tiny_run, "data", "base", "instruct")
    heard = Heard()
    execute(load(TINY), tmp_path / "run", heard, until="round-1/reward")
    assert {name: "left" in note for name, note in heard.stages.items()} == {
        "data": False, "base": False, "instruct": False, "round-1/feedback": False, "round-1/reward": False,
    }
    with_stages(tmp_path / "third", tiny_run, "data", "base")
    execute(load(TINY), tmp_path / "third", heard, until="round-1/feedback")
    assert heard.stages["instruct"] == "3 of 22"  # nobody knows before how many comparisons there will be
    with_stages(tmp_path / "other", tiny_run, "data", "base")
    execute(load(TINY), tmp_path / "other", heard, until="instruct")
    assert re.fullmatch(r"3 of 22, \d\d% done, about [\d.]+ s left", heard.stages["instruct"])


def test_what_cannot_be_estimated_is_run_all_the_same(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise KeyError("prompts_test")

    monkeypatch.setattr(execution, "expect", fail)
    with_stages(tmp_path / "run", tiny_run, "data", "base")
    heard = Heard()
    execute(load(TINY), tmp_path / "run", heard, until="round-1/feedback")
    assert sum("how long the run takes cannot be told" in said for said in heard.said) == 1
