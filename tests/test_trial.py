"""A reward that cannot work is found by a check, on a row of the data, and said with its file, field and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from test_check import tiny_model, write_recipe
from triptych.preflight import check

LENGTH = {"kind": "rules", "rules": [{"rule": "length"}]}


def found_in(folder: Path, code: str | None = None, **changes: Any) -> check.Findings:
    """What a check finds of a recipe without comparisons."""
    without: dict[str, Any] = {"feedback": [], "reward": LENGTH, "gate": {"judge": LENGTH}}
    path = write_recipe(folder, **without | changes)
    if code is not None:
        (folder / "mine.py").write_text(code, encoding="utf-8")
    return check.check(path)


def problems(folder: Path, code: str | None = None, **changes: Any) -> list[str]:
    return found_in(folder, code, **changes).problems


def function(**more: Any) -> dict[str, Any]:
    return {"kind": "rules", "rules": [{"rule": "length"}, {"rule": "function", "function": "mine.py:score", **more}]}


@pytest.mark.parametrize(("code", "reason"), [
    ("def score(conversation):\n    return conversation.reply\n", "AttributeError: "),
    ("def score(conversation):\n    return float('nan')\n", "must give a finite number, got nan"),
    ("def score(conversation):\n    return 'good'\n", "could not convert string to float"),
    ("def score(conversation):\n    while True: pass\n", "longer than 0.5 s"),
    ("def other(conversation):\n    return 1.0\n", "the file has no function called score"),
    ("import nothing_of_this_name\n", "cannot be loaded: ModuleNotFoundError"),
    ("def score(conversation:\n", "cannot be loaded: SyntaxError"),
])
def test_a_function_that_cannot_score(tmp_path: Path, code: str, reason: str) -> None:
    (found,) = problems(tmp_path, code, reward=function(limit=0.5))
    assert found.startswith("reward.rules[1].function: mine.py:score")
    assert reason in found


def test_a_function_that_fails_on_one_answer_alone_is_only_noted(tmp_path: Path) -> None:
    code = "seen = []\ndef score(conversation):\n    seen.append(1)\n    return 1 / (len(seen) - 1)\n"
    found = found_in(tmp_path, code, reward=function())
    assert found.problems == []
    (note,) = (note for note in found.notes if "mine.py" in note)
    assert "ZeroDivisionError" in note


def test_a_function_that_works_is_tried_on_a_row_of_the_data(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\ndef score(conversation):\n"
        f"    Path({str(tmp_path / 'seen')!r}).write_text(conversation.prompt.messages[-1].content)\n    return 1\n"
    )
    assert problems(tmp_path, code, gate={"judge": function()}) == []
    assert (tmp_path / "seen").read_text().startswith("What about ")


def test_a_rule_for_a_task_that_no_prompt_has(tmp_path: Path) -> None:
    mixed = {"kind": "mixture", "parts": [
        {"name": "form", "weight": 1, "reward": {"kind": "rules", "rules": [{"rule": "length", "tasks": ["sum"]}]}},
    ]}
    (found,) = problems(tmp_path, reward=mixed)
    assert found.startswith("reward.parts[0].reward.rules[0]: no prompt has the task sum; ")


@pytest.mark.parametrize(("template", "reason"), [
    ("Grade {{ answr }}.", "answr"),
    ("Grade {{ answer }", "unexpected"),
    ("{% for x in range(10**9) %}{{ x }}{% endfor %}", "template"),
])
def test_a_judges_template_that_fails(tmp_path: Path, template: str, reason: str) -> None:
    (tmp_path / "grade.jinja").write_text(template, encoding="utf-8")
    (found,) = problems(tmp_path, reward={"kind": "judge", "template": "grade.jinja"})
    assert found.startswith("reward.template: grade.jinja: the judge's template: ")
    assert reason in found


def test_a_judges_endpoint_and_key_are_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    (found,) = problems(tmp_path, gate={"judge": {"kind": "judge", "endpoint": asked}})
    assert found.startswith("gate.judge.endpoint: http://127.0.0.1:9/v1: gave up after 1 attempts")
    monkeypatch.delenv("NO_KEY", raising=False)
    (found,) = problems(tmp_path, gate={"judge": {"kind": "judge", "endpoint": asked | {"key_env": "NO_KEY"}}})
    assert "the environment variable NO_KEY is not set" in found


def test_a_judge_in_a_folder_is_asked(tmp_path: Path) -> None:
    tiny_model(tmp_path / "judge")
    assert problems(tmp_path, gate={"judge": {"kind": "judge", "model": "judge", "ask": "compare"}}) == []
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"no weights")
    (found,) = problems(tmp_path, gate={"judge": {"kind": "judge", "model": "judge"}})
    assert found.startswith("gate.judge.model: ")


def test_the_storybooks_rows_are_tried_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(conversation):\n    return conversation.reply\n", encoding="utf-8")
    recipe = tmp_path / "story.yaml"
    recipe.write_text(
        "name: story\nstorybook: {}\nbase: {train: {}}\nfeedback: [{exact: {}}]\ngate: {judge: exact}\n"
        "reward: {kind: rules, rules: [{rule: function, function: 'mine.py:score'}]}\n", encoding="utf-8",
    )
    (found,) = check.check(recipe).problems
    assert found.startswith("reward.rules[0].function: mine.py:score fails on an answer to ")
