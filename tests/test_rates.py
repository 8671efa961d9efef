"""What judge and reward are made of, and each kind of instruction, before and after."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from test_verdict import noisy, told
from triptych.cli import app
from triptych.data.files import write
from triptych.data.folder import DataFolder
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scores
from triptych.evaluate import measurement
from triptych.evaluate.answers import take
from triptych.evaluate.gate import Decided, Gate, decide
from triptych.evaluate.measurement import Measurement, measure
from triptych.evaluate.survey import survey
from triptych.instructions import following
from triptych.instructions.following import followed, followed_by_kind
from triptych.instructions.instruction import Instruction
from triptych.instructions.registry import INSTRUCTIONS
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Check, Conversation, Message, Prompt
from triptych.report.page import render_gate
from triptych.reward.mixture import Mixture, Part, Weighted
from triptych.reward.rules import Rules, RulesReward
from triptych.statistics.intervals import mean_interval
from triptych.statistics.scores import PairedScore, means_by_name, paired_by_name

NO_COMMA = Check("punctuation:no_comma")
TITLE = Check("detectable_format:title")


def asking(text: str, *checks: Check, task: str | None = None, reference: str | None = None) -> Prompt:
    return Prompt((Message("user", text),), reference, task, checks=checks)


def rules(*entries: dict[str, Any]) -> Rules:
    return Rules(RulesReward.model_validate({"rules": list(entries)}))


def test_scores_are_paired_by_prompt_where_both_models_have_them() -> None:
    before = [{"a": 0.0, "b": 1.0}, {"a": 1.0}, {}]
    after = [{"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.0}, {"c": 1.0}]
    scores = paired_by_name(before, after)
    _, interval = mean_interval([1.0, 0.0])
    assert scores == {
        "a": PairedScore(before=0.5, after=1.0, gain=0.5, interval=interval, prompts=2, share=True),
        "b": PairedScore(before=1.0, after=0.5, gain=-0.5, interval=(-0.5, -0.5), prompts=1, share=True),
    }
    assert means_by_name(after) == {"a": 1.0, "b": 0.25, "c": 1.0}
    assert not paired_by_name([], [])
    assert not means_by_name([])


def test_each_kind_of_instruction_is_followed_or_not() -> None:
    prompt = asking("Name a bird.", NO_COMMA, TITLE)
    assert followed(prompt, "<<Birds>> an owl") == [True, True]
    assert followed_by_kind(prompt, "<<Birds>> an owl, a hen") == {
        "punctuation:no_comma": 0.0, "detectable_format:title": 1.0
    }
    assert followed_by_kind(prompt, " \n") == {"punctuation:no_comma": 0.0, "detectable_format:title": 0.0}
    assert followed_by_kind(asking("Name a bird."), "an owl") == {}


def test_an_instruction_that_cannot_be_checked_in_time_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Instruction):
        kind = "slow"

        def follows(self, answer: str) -> bool:
            while answer == "slow":
                time.sleep(0.01)
            return bool(1 / len(answer.strip("x")))

    monkeypatch.setattr(following, "SECONDS", 0.1)
    monkeypatch.setitem(INSTRUCTIONS, "slow", Slow)
    prompt = asking("?", Check("slow"), NO_COMMA)
    assert followed_by_kind(prompt, "slow") == {"slow": 0.0, "punctuation:no_comma": 1.0}
    assert followed_by_kind(prompt, "xx") == {"slow": 0.0, "punctuation:no_comma": 1.0}
    assert followed_by_kind(prompt, "owl") == {"slow": 1.0, "punctuation:no_comma": 1.0}


def test_parts_of_a_score_are_those_that_apply_to_the_answer() -> None:
    scores = Scores([1.0, 2.0], {"length": [1.0, None], "json": [None, 0.5]})
    assert scores.parts_of(0, "judge") == {"judge/length": 1.0}
    assert scores.parts_of(1, "reward") == {"reward/json": 0.5}


PROMPTS = [asking("One.", NO_COMMA, task="checked"), asking("Two.", NO_COMMA, TITLE, task="checked"), asking("Three.")]
OLD, NEW = ["a, b", "a, b", "an owl an owl"], ["a b", "<<a>>, b", "a hen"]


def gated(folder: Path, reward: Rules | Mixture) -> Decided:
    context = StageContext(folder, folder, Silent(), 1, 60.0)
    before, after = ([Conversation(*row) for row in zip(PROMPTS, answers, strict=True)] for answers in (OLD, NEW))
    measured = take(context, before, after, ("old.jsonl", "new.jsonl"))
    judge = rules({"rule": "instructions", "tasks": ["checked"]}, {"rule": "length", "most": 3, "weight": 0.5})
    return decide(context, Gate(), folder, measured, reward, judge)


def test_the_gate_tells_every_rules_rate_and_every_kinds(tmp_path: Path) -> None:
    inner = rules({"rule": "instructions"})
    mixed = Mixture([Weighted(Part(name="checks", weight=2.0, tasks=("checked",)), inner),
                     Weighted(Part(name="short", weight=1.0), rules({"rule": "length", "most": 3}))])
    gate = gated(tmp_path, mixed)
    rates = {name: (score.before, score.after, score.prompts) for name, score in gate.parts.items()}
    assert rates == {
        "judge/instructions": (0.0, 0.75, 2), "judge/length": (pytest.approx(2 / 3), 1.0, 3),
        "reward/checks": (0.0, 0.75, 2), "reward/checks.instructions": (0.0, 0.75, 2),
        "reward/short": (pytest.approx(2 / 3), 1.0, 3), "reward/short.length": (pytest.approx(2 / 3), 1.0, 3),
    }
    kinds = {name: (score.before, score.after, score.prompts) for name, score in gate.instructions.items()}
    assert kinds == {"punctuation:no_comma": (0.0, 0.5, 2), "detectable_format:title": (0.0, 1.0, 1)}
    assert gate.reward_before == pytest.approx(2 / 3)
    assert gate.reward_after == pytest.approx((1 + 2 * 1.0 + 1 + 2 * 0.5 + 1) / 3)
    page = " ".join(re.sub(r"<[^>]+>", " ", render_gate(gate, [], "old", "new", "1")).split())
    assert "instructions of the judge 0.0% → 75.0% +75.0 +50.0 to +100.0 points 2 " in page
    assert "punctuation:no_comma 0.0% → 50.0% +50.0 ±0.0 to +100.0 points 2 " in page


def test_a_mean_is_a_rate_where_every_score_is_one() -> None:
    assert PairedScore.of([0.0, 1.0], [1.0, 0.25]).share
    assert not PairedScore.of([0.0, 1.0], [1.0, 1.5]).share
    assert not PairedScore.of([-0.5, 1.0], [1.0, 0.5]).share


def test_a_measured_model_and_a_survey_have_them_too(policy_folder: Path, tmp_path: Path) -> None:
    DataFolder(tmp_path).prompts("test").write(PROMPTS)
    context = StageContext(tmp_path, tmp_path, Silent(), 1, 60.0)
    judge, reward = rules({"rule": "length", "most": 0}), rules({"rule": "instructions", "tasks": ["checked"]})
    measure(context, Measurement(), policy_folder, tmp_path, judge, Sampling(6, 0.0), reward=reward)
    rows = measurement.tested_prompts(tmp_path)
    assert [row.deployed.parts.keys() for row in rows] == [
        {"judge/length", "reward/instructions"}, {"judge/length", "reward/instructions"}, {"judge/length"}
    ]
    followed = [followed_by_kind(prompt, row.deployed.answer) for prompt, row in zip(PROMPTS, rows, strict=True)]
    assert [row.deployed.instructions for row in rows] == followed
    assert [len(kinds) for kinds in followed] == [1, 2, 0]
    policy = Policy.open(policy_folder / "model")
    numbers = survey(policy, PROMPTS, Sampling(6, 0.0, seed=1), judge, Silent())
    assert numbers.parts == {"reward/length": numbers.reward}
    assert numbers.instructions == means_by_name(followed)
    assert survey(policy, PROMPTS, Sampling(6, 0.0), None, Silent()).parts == {}


def test_the_verdict_has_them_of_instruct_and_champion() -> None:
    warm = noisy(0.5)
    ways = {"temperature 0.5": warm, "greedy": warm, "temperature 1": warm}
    verdict = told(ways, ways, parts=({"judge/length": 0.25}, {"judge/length": 0.75, "reward/x": 1.0}))
    assert {name: (score.before, score.after) for name, score in verdict.parts.items()} == {
        "judge/length": (0.25, 0.75)
    }
    assert verdict.instructions == {}


def test_the_command_tells_them_of_one_model(policy_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write(prompts, PROMPTS)
    (tmp_path / "rules").mkdir()
    entries = [{"rule": "instructions", "tasks": ["checked"]}, {"rule": "length", "most": 9}]
    (tmp_path / "rules/reward.json").write_text(json.dumps({"kind": "rules", "rules": entries}))
    output = tmp_path / "numbers.json"
    outcome = CliRunner().invoke(app, [
        "evaluate", str(policy_folder / "model"), "--prompts", str(prompts), "--reward", str(tmp_path / "rules"),
        "--max-tokens", "6", "--temperature", "0", "--output", str(output),
    ])
    assert outcome.exit_code == 0, outcome.output
    numbers = json.loads(output.read_text())
    assert numbers["reward"] == pytest.approx((2 * numbers["reward/instructions"] + 3 * numbers["reward/length"]) / 3)
    assert {"punctuation:no_comma", "detectable_format:title"} <= numbers.keys()
    assert not {"parts", "instructions"} & numbers.keys()
    assert "reward/instructions" in outcome.output
