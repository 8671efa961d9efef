"""Rules give the values that are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from triptych.errors import DataError, RewardError
from triptych.pipeline.stage import Desk
from triptych.progress import Silent
from triptych.records import Conversation, Prompt, user
from triptych.reward.kinds import open_reward
from triptych.reward.language import share_in
from triptych.reward.rules import AnyRule, Rules, RulesReward, keep_rules, number_in
from triptych.reward.trust import Trust


def said(answer: str, reference: str | None = None, task: str | None = None, asked: str = "?") -> Conversation:
    return Conversation(Prompt(user(asked), reference, task), answer)


def value(rule: dict[str, Any], answer: str, reference: str | None = None) -> float:
    return TypeAdapter(AnyRule).validate_python(rule).value(said(answer, reference))  # type: ignore[union-attr]


@pytest.mark.parametrize(("rule", "answer", "reference", "expected"), [
    ({"rule": "exact"}, "  the  Cat\n", "The cat", 1),
    ({"rule": "exact", "case": True}, "the Cat", "The cat", 0),
    ({"rule": "exact", "extract": r"answer: (\w+)"}, "answer: no, answer: yes", "yes", 1),
    ({"rule": "exact", "extract": r"answer: (\w+)"}, "yes", "yes", 0),
    ({"rule": "numeric"}, "so it is 1,234.50 in all", "1234.5", 1),
    ({"rule": "numeric"}, "12 or 13", "12", 0),
    ({"rule": "numeric"}, "none", "12", 0),
    ({"rule": "numeric", "tolerance": 0.1}, "10.9", "10", 1),
    ({"rule": "numeric", "tolerance": 0.1}, "11.1", "10", 0),
    ({"rule": "pattern", "pattern": r"<b>.*</b>"}, "x <b>a\nb</b> y", None, 1),
    ({"rule": "pattern", "pattern": r"<b>.*</b>", "whole": True}, "x <b>a</b>", None, 0),
    ({"rule": "length", "least": 2, "most": 3}, "one two three", None, 1),
    ({"rule": "length", "least": 2, "most": 3}, "one", None, 0),
    ({"rule": "length", "most": 5, "unit": "characters"}, "sixsix", None, 0),
    # Words a b c a b c: runs abc bca cab abc, three different of four.
    ({"rule": "repetition"}, "a b c a b c", None, 0.75),
    ({"rule": "repetition"}, "a b", None, 1),
    ({"rule": "forbidden", "texts": ["as an AI"]}, "Well, As an ai I", None, 0),
    ({"rule": "refusal"}, "I’m sorry, but no. Here is more.", None, 0),
    ({"rule": "refusal"}, "Here it is. I can't say more.", None, 1),
])
def test_a_rules_value(rule: dict[str, Any], answer: str, reference: str | None, expected: float) -> None:
    assert value(rule, answer, reference) == expected


@pytest.mark.parametrize(("text", "number"), [
    ("-3.5e2", -350.0), ("3/4", 0.75), ("1/0", None), ("no", None), ("a 1, b 2.", 2.0), ("1,000,000", 1e6),
])
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_json_is_checked_by_a_schema_of_the_rule_or_of_the_reference() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    rule = {"rule": "json", "json_schema": schema}
    assert value(rule, '{"a": 1}') == 1
    assert value(rule, 'Here:\n```json\n{"a": 1}\n```\n') == 1
    assert value(rule, '{"a": "1"}') == 0
    assert value(rule, "{a: 1}") == 0
    assert value({"rule": "json"}, "[1]", '{"type": "array"}') == 1
    with pytest.raises(DataError, match="JSON schema"):
        value({"rule": "json"}, "[1]", "not one")
    with pytest.raises(ValidationError, match="no JSON schema"):
        value({"rule": "json", "json_schema": {"type": "nothing"}}, "{}")


@pytest.mark.parametrize(("language", "text", "low", "high"), [
    ("en", "The cat is on the mat and it was not there.", 1, 1),
    ("de", "The cat is on the mat and it was not there.", 0, 0.4),
    ("de", "Die Katze ist nicht auf dem Dach und das ist gut.", 1, 1),
    ("fr", "Le chat est dans la maison avec une souris.", 1, 1),
    ("ru", "Кошка сидит на крыше", 1, 1),
    ("ru", "The cat", 0, 0),
    ("zh", "猫在屋顶上", 1, 1),
    ("en", "Кошка", 0, 0),
    ("en", "42!", 1, 1),
    ("en", "Xylophone", 0.5, 0.5),
])
def test_languages_are_told_by_script_and_common_words(language: str, text: str, low: float, high: float) -> None:
    assert low <= share_in(language, text) <= high


def test_the_reward_is_the_weighted_sum_of_the_rules_for_the_prompts_task() -> None:
    config = RulesReward.model_validate({"rules": [
        {"rule": "exact", "weight": 2, "tasks": ["question"]},
        {"rule": "length", "most": 2, "weight": 0.5},
        {"rule": "length", "least": 2, "weight": -1, "name": "long"},
    ]})
    rows = [said("yes", "yes", "question"), said("no way", "yes", "question"), said("a b c", None, "story")]
    scores = Rules(config).details(rows)
    assert scores.totals == [2.5, 0.5 - 1, -1]
    assert scores.parts == {"exact": [1, 0, None], "length": [1, 1, 0], "long": [0, 1, 1]}
    assert scores.numbers(["question", "question", "story"]) == {
        "reward/exact": 0.5, "reward/exact/question": 0.5, "reward/length": 2 / 3, "reward/length/question": 1,
        "reward/length/story": 0, "reward/long": 2 / 3, "reward/long/question": 0.5, "reward/long/story": 1,
    }


def test_a_rule_without_a_reference_says_what_would_be_right() -> None:
    with pytest.raises(DataError, match="rule's `tasks`"):
        value({"rule": "exact"}, "yes")


def desk_at(folder: Path) -> Desk:
    (folder / "output").mkdir(parents=True)
    return Desk(folder / "output", folder, Silent(), 1, 60.0)


def test_ones_own_function_is_kept_with_the_artifact_and_only_run_where_it_is_trusted(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def score(conversation):\n    return len(conversation.answer) / 10\n")
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "sub/mine.py:score"}]})
    desk = desk_at(tmp_path / "desk")
    keep_rules(desk, config, {"sub/mine.py": source})
    source.unlink()
    assert open_reward(desk.output, trust=Trust(functions=True)).score([said("abcde")]) == [0.5]
    assert sorted(path.name for path in desk.output.rglob("*")) == ["0.py", "functions", "reward.json"]
    with pytest.raises(RewardError, match=r"mine\.py"):
        open_reward(desk.output)


@pytest.mark.parametrize(("code", "message"), [
    ("def other(x): return 1", "no function called score"),
    ("1/0", "ZeroDivisionError"),
])
def test_a_function_that_cannot_be_loaded_is_named(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    with pytest.raises(RewardError, match=message):
        keep_rules(desk_at(tmp_path / "desk"), config, {"mine.py": tmp_path / "mine.py"})


@pytest.mark.parametrize("returned", ["float('nan')", "'much'", "1/0"])
def test_a_function_that_gives_no_number_is_named(tmp_path: Path, returned: str) -> None:
    (tmp_path / "mine.py").write_text(f"def score(conversation): return {returned}")
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    desk = desk_at(tmp_path / "desk")
    keep_rules(desk, config, {"mine.py": tmp_path / "mine.py"})
    with pytest.raises(RewardError, match=r"mine\.py:score"):
        open_reward(desk.output, trust=Trust(functions=True)).score([said("x")])
