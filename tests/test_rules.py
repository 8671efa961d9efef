"""Rules give the values that are worked out by hand."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from triptych.errors import DataError, RewardError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Prompt, user
from triptych.reward import expression
from triptych.reward.language import share_in
from triptych.reward.mixture import Mixture, Part, Weighted
from triptych.reward.registry import open_reward
from triptych.reward.rules import AnyRule, Rules, RulesReward, keep_rules
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
    # Of two and three words two are common: 2 * 2 / (2 + 3).
    ({"rule": "f1"}, "A red boat!", "the big red boat", 0.8),
    ({"rule": "f1"}, "none", "boat", 0),
    ({"rule": "f1"}, "", "the", 1),
    ({"rule": "f1", "extract": "is (.*)"}, "it is boat", "boat", 1),
    ({"rule": "chrf"}, "ein rotes Boot", "ein rotes Boot", 1),
    ({"rule": "chrf"}, "xyz", "ein rotes Boot", 0),
    # Reasoning comes before the answer, and is none while it has no end; an expression sees it.
    ({"rule": "exact"}, "<think>\nno\n</think>\n\nyes", "yes", 1),
    ({"rule": "exact"}, "<think>\nyes", "yes", 0),
    ({"rule": "f1"}, "<think>\na boat\n</think>\n\nboat", "boat", 1),
    ({"rule": "length", "most": 1}, "<think>\none two\n</think>\n\nyes", None, 1),
    ({"rule": "pattern", "pattern": "<think>.*</think>"}, "<think>\nno\n</think>\n\nyes", None, 1),
])
def test_a_rules_value(rule: dict[str, Any], answer: str, reference: str | None, expected: float) -> None:
    assert value(rule, answer, reference) == expected


@pytest.mark.attack("rules")
@pytest.mark.parametrize("answer", [
    "1e999999999/3", "1e400", "-1e400", "1e-999999999", "7" * 6000 + "/3", "3/" + "7" * 6000, "9" * 401, "nan", "inf",
    "1" + ",000" * 9999, "1/0", "-9e308/0",
])
def test_a_number_out_of_all_bounds_is_not_the_references(answer: str) -> None:
    assert value({"rule": "numeric"}, answer, "3") == 0
    assert value({"rule": "numeric", "tolerance": 1e300}, "3", "3") == 1


@pytest.mark.attack("rules")
@pytest.mark.parametrize("reference", ["1e400", "inf", "nan", "9" * 500, "1/0", "1e-999999999", ""])
def test_a_number_that_cannot_be_compared_with_is_no_reference(reference: str) -> None:
    with pytest.raises(DataError, match="reference: holds no number"):
        value({"rule": "numeric"}, "3", reference)


def test_a_reference_that_is_not_wholly_one_number_is_a_fault_of_the_data() -> None:
    with pytest.raises(DataError, match=r"reference: is not wholly one number.*got '2 or 3'"):
        value({"rule": "numeric"}, "3", "2 or 3")
    assert value({"rule": "numeric"}, r"so \(\frac{1}{2}\)", r"\boxed{0.5} km") == 1


def test_numbers_are_compared_exactly_up_to_the_tolerance() -> None:
    assert value({"rule": "numeric", "tolerance": 0.1}, "0.363", "0.33") == 1
    assert value({"rule": "numeric", "tolerance": 0.1}, "0.3630000000000000000001", "0.33") == 0
    assert value({"rule": "numeric", "tolerance": 0}, "12345678901234567891", "12345678901234567890") == 0


SLOW = r"^(\w|\w\w|a)+$"
"""An expression that `re` and `regex` need longer than the sun will shine to see that it does not match `STUCK`."""
STUCK = "a" * 40 + "!"
CIRCLE = json.dumps({"$defs": {
    **{f"s{i}": {"allOf": [{"$ref": f"#/$defs/s{i + 1}"}] * 2} for i in range(40)}, "s40": {}
}, "$ref": "#/$defs/s0"})


@pytest.mark.attack("rules")
@pytest.mark.parametrize(("rule", "answer", "reference"), [
    ({"rule": "pattern", "pattern": SLOW}, STUCK, None),
    ({"rule": "exact", "extract": SLOW}, STUCK, "x"),
    ({"rule": "json"}, f'"{STUCK}"', json.dumps({"pattern": SLOW})),
    ({"rule": "json"}, f'{{"{STUCK}": 1}}', json.dumps({"patternProperties": {SLOW: {}}})),
    ({"rule": "json"}, f'{{"{STUCK}": 1}}',
     json.dumps({"patternProperties": {SLOW: {}}, "additionalProperties": False})),
    ({"rule": "json"}, "[" * 400 + "]" * 400, '{"items": {"$ref": "#"}}'),
    ({"rule": "json"}, json.dumps([{"a": n} for n in range(30_000)]), '{"uniqueItems": true}'),
    ({"rule": "json"}, "9" * 400, '{"multipleOf": 0.1}'),
    ({"rule": "length", "least": 1}, "a" * 1_000_001, None),
])
def test_an_answer_on_which_a_rule_fails_is_given_what_rewards_least(
    rule: dict[str, Any], answer: str, reference: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.reward.rules.SECONDS", 1.0)
    monkeypatch.setattr("triptych.reward.expression.SECONDS", 0.1)
    began = time.process_time()
    for weight, least in ((0.5, 0), (-0.5, -0.5)):
        name = rule["rule"]
        scores = Rules(RulesReward.model_validate({"rules": [rule | {"weight": weight}]})).details(
            [said(answer, reference, asked="How?\x1b[2J")]
        )
        assert scores.totals == [least]
        assert scores.counts == {f"{name}.failed": 1}
        assert scores.numbers([None])[f"reward/{name}.failed"] == 1
        assert scores.notes[name].startswith("fails on an answer to 'How?', which gets ")
    assert time.process_time() - began < 10


@pytest.mark.attack("rules")
@pytest.mark.parametrize(("schema", "message"), [
    ('{"$ref": "#/nowhere"}', "leads nowhere"),
    ('{"properties": {"a": {"$ref": "https://example.org/x"}}}', "nothing is fetched"),
    ('{"$ref": "#"}', "goes round in circles"),
    ("[" * 9000, "nested too deep"),
    ('{"properties": {"a": {"pattern": "("}}}', "regex"),
    ('{"properties": {"a": {"pattern": "(?:a{60000}){60000}"}}}', "repeats too much"),
    ('{"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}', "at the top only"),
    ('{"patternProperties": {"a": {}}, "unevaluatedProperties": false}', "additionalProperties"),
    ('{"enum": ["' + "a" * 100_000 + '"]}', "100,000 characters"),
    ("3", "not of type"),
])
def test_a_schema_that_cannot_be_used_is_no_reference(schema: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        value({"rule": "json"}, "{}", schema)


@pytest.mark.attack("rules")
def test_a_schema_of_exponential_size_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.reward.schema.SECONDS", 0.5)
    with pytest.raises(DataError, match="took longer"):
        value({"rule": "json"}, "{}", CIRCLE)


@pytest.mark.attack("rules")
@pytest.mark.parametrize("pattern", [
    "(?:a{60000}){60000}", "(?x)(?:a{60000} # (\n){60000}", "a" * 10_001, "(?:" * 3000 + ")" * 3000,
    "a{99999999999999999999}",
])
def test_an_expression_that_grows_without_bounds_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"regular expression|repeats too much"):
        value({"rule": "pattern", "pattern": pattern}, "a")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of sets within sets, which are no such thing yet
def test_expressions_mean_what_they_mean_in_re() -> None:
    random = Random(1)
    parts = [
        *"ab1 ²-_é{}*+?.^$|()[]", r"\w", r"\W", r"\b", r"\d", r"\s", "[ab]", "[^a]", r"[\w-]", r"[^\W\d_]", r"[\W_]",
        "{e}", "{1,2}", "{i<=1}", "{,}", "{,2}", "*?", "(?:", r"\{", "(?i)", "(?=", "(?<=", "(?P<n>", r"\1", "[]a]",
    ]
    tried = 0
    grouped: list[tuple[str, str, str | None]] = []
    while tried < 1500:
        pattern = "".join(random.choices(parts, k=random.randint(1, 8)))
        text = "".join(random.choices("aab1 ²-_é{}eéA\n", k=random.randint(1, 8)))
        try:
            known = re.compile(pattern, re.DOTALL)
        except (re.error, OverflowError):
            with pytest.raises(ValueError, match="regular expression"):
                expression.expression(pattern)
            continue
        tried += 1
        assert expression.matches(pattern, text) == bool(known.search(text)), (pattern, text)
        assert expression.matches(pattern, text, whole=True) == bool(known.fullmatch(text)), (pattern, text)
        if known.groups:
            grouped.append((pattern, text, next(reversed([match[1] for match in known.finditer(text)]), None)))
    assert len(grouped) > 10
    for pattern, text, last in grouped:
        assert expression.last_group(pattern, text) == last, (pattern, text)


@pytest.mark.attack("rules")
def test_no_answer_ends_a_run() -> None:
    random = Random(2)
    parts = [
        *"[]{}\"',:/-+.eE0123456789 \n`!?", "```json\n", "```", "1e9", "NaN", "-Infinity", "\\u0000", "true", "٣",
        "\ud800", "\0", "\x1b[2J", "I'm sorry", "ﷺ", "İ", "9" * 500, "a" * 2000, "[" * 500, "\u2028", "1,000", "/0",
    ]
    config = RulesReward.model_validate({"rules": [
        {"rule": "exact"}, {"rule": "exact", "extract": r"(\d*)"}, {"rule": "numeric", "tasks": ["sum"]},
        {"rule": "json", "tasks": ["object"]},
        {"rule": "json", "json_schema": {
            "items": {"$ref": "#"}, "multipleOf": 0.1, "minimum": 0, "uniqueItems": True, "pattern": "a+$",
            "patternProperties": {"a|b": {"type": "number"}}, "additionalProperties": {"$ref": "#"},
        }},
        {"rule": "pattern", "pattern": r"\w\s?$"}, {"rule": "length", "most": 9},
        {"rule": "language", "language": "en"}, {"rule": "language", "language": "ja"},
        {"rule": "repetition"}, {"rule": "forbidden", "texts": ["İ", "e9"]},
        {"rule": "refusal", "weight": -1},
    ]})
    asked = Prompt(user("?"), '{"maximum": 3}', "object"), Prompt(user("?"), "3", "sum")
    rows = [Conversation(asked[n % 2], "".join(random.choices(parts, k=random.randint(0, 30)))) for n in range(1200)]
    scores = Rules(config).details(rows)
    for column in scores.parts.values():
        values = [each for each in column if each is not None]
        assert len(values) in (600, 1200)
        assert all(0 <= each <= 1 for each in values)


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


def desk_at(folder: Path) -> StageContext:
    (folder / "output").mkdir(parents=True)
    return StageContext(folder / "output", folder, Silent(), 1, 60.0)


def test_ones_own_function_is_kept_with_the_artifact_and_only_run_where_it_is_trusted(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def score(conversation):\n    return len(conversation.answer) / 10\n")
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "sub/mine.py:score"}]})
    context = desk_at(tmp_path / "context")
    keep_rules(context, config, {"sub/mine.py": source})
    source.unlink()
    assert open_reward(context.output, trust=Trust(functions=True)).score([said("abcde")]) == [0.5]
    assert sorted(path.name for path in context.output.rglob("*")) == ["0.py", "functions", "reward.json"]
    with pytest.raises(RewardError, match=r"mine\.py"):
        open_reward(context.output)


@pytest.mark.parametrize(("code", "message"), [
    ("def other(x): return 1", "no function called score"),
    ("1/0", "ZeroDivisionError"),
])
def test_a_function_that_cannot_be_loaded_is_named(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    with pytest.raises(RewardError, match=message):
        keep_rules(desk_at(tmp_path / "context"), config, {"mine.py": tmp_path / "mine.py"})


@pytest.mark.parametrize("returned", ["float('nan')", "'much'", "1/0"])
def test_a_function_that_gives_no_number_is_named(tmp_path: Path, returned: str) -> None:
    (tmp_path / "mine.py").write_text(f"def score(conversation): return {returned}")
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    context = desk_at(tmp_path / "context")
    keep_rules(context, config, {"mine.py": tmp_path / "mine.py"})
    reward = open_reward(context.output, trust=Trust(functions=True))
    assert reward.score([said("x")]) == [0]
    with pytest.raises(RewardError, match=r"mine\.py:score fails on an answer to '\?'.* on every one of 16 answers"):
        reward.score([said("x")] * 15)


@pytest.mark.attack("rules")
@pytest.mark.parametrize("failing", ["while True: pass", "1/0", "exit()", "return 10 ** 400", "return float('nan')",
                                     "score(conversation)", "raise MemoryError"])
def test_an_answer_on_which_ones_own_function_fails_gains_nothing(tmp_path: Path, failing: str) -> None:
    (tmp_path / "mine.py").write_text(
        f"def score(conversation):\n    if conversation.answer == 'bad':\n        {failing}\n"
        "    return -len(conversation.answer)"
    )
    for weight, totals in ((1.0, [-3, -5, -5]), (-1.0, [3, 5, 0])):
        rule = {"rule": "function", "function": "mine.py:score", "weight": weight, "limit": 0.05}
        config = RulesReward.model_validate({"rules": [rule]})
        context = desk_at(tmp_path / f"context {weight}")
        keep_rules(context, config, {"mine.py": tmp_path / "mine.py"})
        reward = open_reward(context.output, trust=Trust(functions=True))
        assert isinstance(reward, Rules)
        scores = reward.details([said("abc"), said("abcde"), said("bad")])
        assert scores.totals == totals
        assert scores.counts == {"function.failed": 1}
        assert reward.score([said("bad")] * 16 + [said("a")])[-1] == -weight  # it works, so the answers are bad


@pytest.mark.attack("rules")
def test_failing_a_reward_that_is_subtracted_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.reward.expression.SECONDS", 0.1)
    rules = Rules(RulesReward.model_validate({"rules": [{"rule": "pattern", "pattern": SLOW}]}))
    mixed = Mixture([Weighted(Part(name="shame", weight=-2), rules)])
    scores = mixed.details([said(STUCK), said("?")])
    assert scores.totals == [-2, 0]
    assert scores.counts == {"shame.pattern.failed": 1}


@pytest.mark.attack("data files")
def test_a_function_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    config = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    os.mkfifo(tmp_path / "mine.py")
    for number, source in enumerate((tmp_path / "mine.py", Path("/dev/zero"))):
        with pytest.raises(RewardError, match=r"mine\.py:score: the file cannot be read: is a (FIFO|device)"):
            keep_rules(desk_at(tmp_path / str(number)), config, {"mine.py": source})


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus(word_order: int) -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    answer, reference = "Das Boot ist sehr rot", "Das rote Boot ist groß"
    expected = metrics.CHRF(word_order=word_order).sentence_score(answer, [reference]).score / 100
    assert 0.3 < expected < 0.8
    assert value({"rule": "chrf", "word_order": word_order}, answer, reference) == expected
