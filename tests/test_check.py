"""A check finds what a run would meet: problems of every kind at once, and numbers that are right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from triptych.base.pretrained import require_reward_head
from triptych.base.pretraining import Pretraining, architecture
from triptych.cycle import cycle, plan
from triptych.data import lengths, template
from triptych.data.files import read_comparisons, read_conversations, read_prompts
from triptych.data.remote import reach_hub
from triptych.engine import models
from triptych.engine.device import device
from triptych.errors import DataError, ModelError, RecipeError
from triptych.family import Family
from triptych.pipeline.runner import Runner
from triptych.preflight import check, memory
from triptych.preflight.costs import DISPATCH, EFFICIENCY, HALF, Machine, from_scratch
from triptych.preflight.memory import Architecture
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.records import Conversation, Prompt


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    letters = ["<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>")
    template.attach(made, "chatml")
    return made


def tiny_model(folder: Path, positions: int = 1024) -> Path:
    shared = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(shared), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=positions, tie_word_embeddings=True,
    )
    models.save(LlamaForCausalLM(config), shared, folder)
    return folder


def rows(path: Path, content: Sequence[Mapping[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


UNAUDITED: dict[str, Any] = {"comparisons": 200, "reward": {"audit": {"required": False}}}
"""For what has nothing to do with comparisons."""


def write_recipe(folder: Path, comparisons: int = 1000, **changes: Any) -> Path:
    """A recipe of enough rows, all of them right; fewer comparisons are read sooner and audit too little."""
    tiny_model(folder / "model")
    rows(folder / "answers.jsonl", [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(60)])
    rows(folder / "preferences.jsonl", [  # the longer answer is preferred as often as the shorter one
        {"prompt": f"Which is {i}?", "chosen": f"This is {i}.", "rejected": "No."} if i % 2 else
        {"prompt": f"Which is {i}?", "chosen": "Yes.", "rejected": f"That is not {i}."}
        for i in range(comparisons)
    ])
    rows(folder / "questions.jsonl", [{"prompt": f"What about {i}?"} for i in range(500)])
    recipe = {
        "name": "tiny",
        "base": {"from": "model"},
        "instruct": {"data": ["answers.jsonl"]},
        "feedback": [{"file": "preferences.jsonl"}],
        "improve": {"prompts": ["questions.jsonl"]},
        "splits": {"heldout": 0.4, "test": 100, "gate": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def test_a_good_recipe_has_no_problem_and_its_numbers_are_right(tmp_path: Path) -> None:
    found = check.check(write_recipe(tmp_path))
    assert found.problems == []
    assert found.notes == []
    prompts = {"prompts_improve", "prompts_validation", "prompts_gate", "prompts_test"}
    learnt = {"demonstrations", "comparisons_train", "comparisons_judge"}
    assert set(found.lengths) == {*learnt, *prompts}  # its Base has a chat template, and is shown no examples
    assert found.lengths["prompts_test"].count == found.lengths["prompts_gate"].count == 100
    prompt = len(template.prompt_tokens(tokenizer(), Prompt.of("What about 100?")))
    assert found.lengths["prompts_improve"].longest == prompt
    assert found.lengths["prompts_improve"].limit == 1024 - 96
    assert [cost.stage for cost in found.costs] == [
        "base", "instruct", "judge", "judge/audit", "round-1/reward", "round-1/audit", "decoding/instruct",
        "round-1/improve", "round-1/decoding", "round-1/answers", "round-1/gate", "test/base", "test/instruct",
        "test/round-1",
    ]
    instruct = found.costs[1]
    assert instruct.tokens == pytest.approx(2 * found.lengths["demonstrations"].count * 46, rel=0.2)
    assert all(cost.gib > 0 for cost in found.costs)
    assert "GFLOP/s" in found.assumption


def test_an_audit_costs_what_it_scores_and_not_what_is_learnt(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **UNAUDITED)
    with (tmp_path / "preferences.jsonl").open("a", encoding="utf-8") as file:
        for i in range(100):
            row = {"prompt": f"Tell me of {i}!", "chosen": f"It is {i} " + "and so on " * 20, "rejected": "No."}
            file.write(json.dumps(row) + "\n")

    def tokens(context: int) -> dict[str, int]:
        return {cost.stage: cost.tokens for cost in check.check(path, [f"reward.context={context}"]).costs}

    long, short = tokens(512), tokens(64)
    assert short["round-1/reward"] < long["round-1/reward"] / 2  # the long ones are left out
    assert short["round-1/audit"] == long["round-1/audit"] > 10_000  # but audited all the same


def test_a_round_costs_what_its_method_computes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, comparisons=200)

    def tokens(*overrides: str) -> int:
        costs = check.check(path, ["improve.steps=10", "improve.prompts_per_step=4", *overrides]).costs
        return next(cost.tokens for cost in costs if cost.stage == "round-1/improve")

    # Answers are taken to be as long as those that are learnt: "Answer 12." and its end.
    prompts, answer = tokens("improve.max_tokens=1", "improve.group_size=2"), 11
    prompts -= 40 * 2 * 4  # written, scored, given to the reference and learnt
    assert tokens() == prompts + 40 * 8 * 4 * answer
    assert tokens("improve.method=dpo") == prompts + 40 * (8 * 2 + 2 * 2) * answer
    pairs = tokens("improve.method=dpo", "improve.pairs=comparisons")
    assert pairs == pytest.approx(40 * 2 * 48, rel=0.1)  # a pair of 48 bytes


def test_time_is_that_of_products_and_of_weights_that_are_read() -> None:
    model, machine = from_scratch(Pretraining()), Machine(rate=1e12, bandwidth=1e10)
    product = 2 * model.parameters / (model.width / (model.width + HALF) * 1e12)
    assert machine.applying(model, 7) == pytest.approx(7 * product)
    assert machine.training(model, 7, adapters=False) == pytest.approx(7 * 3 * product)
    assert machine.training(model, 7, adapters=True) == pytest.approx(7 * 2 * product)
    wide = replace(model, width=4096)
    assert machine.applying(wide, 7) == pytest.approx(14 * model.parameters / (EFFICIENCY * 1e12))
    read = memory.itemsize() * model.parameters / 1e10 + (DISPATCH * model.layers if device().type == "cpu" else 0)
    assert machine.decoding(model, 640, 64) == pytest.approx(640 * product + 10 * read)
    assert machine.decoding(model, 640, 1) == pytest.approx(640 * product + 640 * read)


def test_thumbs_are_read_and_what_they_cost_is_told(tmp_path: Path) -> None:
    thumbs = [{"prompt": f"Is it {i:02}?", "completion": "Sure.", "label": i % 2 == 0} for i in range(20)]
    rows(tmp_path / "thumbs.jsonl", thumbs)
    feedback = [{"file": "preferences.jsonl"}, {"thumbs": "thumbs.jsonl"}]
    improve = {"prompts": ["questions.jsonl"], "method": "kto", "steps": 10, "prompts_per_step": 4}
    found = check.check(write_recipe(tmp_path, feedback=feedback, improve=improve, **UNAUDITED))
    assert found.problems == []
    (tokens,) = (cost.tokens for cost in found.costs if cost.stage == "round-1/improve")
    prompt = len(template.prompt_tokens(tokenizer(), Prompt.of("Is it 00?")))
    one = prompt + len(template.answer_tokens(tokenizer(), Prompt.of("Is it 00?"), ["Sure."])[1][0])
    assert tokens == 10 * 4 * one * 4  # each is trained on; the reference reads it, and both read what is mismatched
    rows(tmp_path / "thumbs.jsonl", [*thumbs, {"prompt": "Is it?", "completion": "Sure."}])
    (problem,) = check.check(tmp_path / "recipe.yaml").problems
    assert problem.endswith("thumbs.jsonl:21: label: missing")
    with pytest.raises(RecipeError, match=r"improve\.method kto learns from thumbs, and feedback names none"):
        load(write_recipe(tmp_path, improve=improve))


def test_thumbs_that_people_will_give_are_told_beforehand(tmp_path: Path) -> None:
    improve = {"prompts": ["questions.jsonl"], "method": "kto", "steps": 10, "prompts_per_step": 4, "max_tokens": 30}
    people = [{"file": "preferences.jsonl"}, {"people": "thumbs.jsonl"}]
    path = write_recipe(tmp_path, feedback=people, improve=improve, **UNAUDITED)
    found = check.check(path)
    assert found.problems == []
    (tokens,) = (cost.tokens for cost in found.costs if cost.stage == "round-1/improve")
    prompt = found.lengths["prompts_improve"].median
    assert tokens == pytest.approx(10 * 4 * (prompt + 30) * 4, rel=0.05)  # as if every answer were as long as it may be
    rows(tmp_path / "thumbs.jsonl", [{"prompt": "Is it?", "completion": "Sure.", "label": "yes"}])
    with open(tmp_path / "thumbs.jsonl", "a") as file:
        file.write('{"prompt": "half a li')  # waits for its end
    (problem,) = check.check(path).problems
    assert problem.endswith('thumbs.jsonl:1: label: must be true or false, got the text "yes"')
    found = check.check(path, ["wrong_rows=skip"])
    assert (found.problems, problem in str(found.notes)) == ([], True)
    compared = check.check(path, ["feedback.1.ask_for=comparisons", "improve.method=grpo"])
    assert "thumbs.jsonl:1: chosen: missing" in str(compared.problems)


def test_problems_of_every_kind_are_found_together(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, base={"from": "./nowhere"}, improve={"prompts": ["gone.jsonl"], "stepps": 4},
    )
    rows(tmp_path / "answers.jsonl", [{"prompt": "a", "completion": "b"}, '{"prompt": "a"', {"prompt": "a"}])
    found = check.check(path, ["instruct.context=long"])
    assert sorted(problem.replace(str(tmp_path), "DIR") for problem in found.problems) == sorted([
        "DIR/recipe.yaml:8: improve.stepps: unknown field; did you mean steps?",
        "--set instruct.context=long: instruct.context: must be a whole number at least 16, got 'long'",
        "DIR/answers.jsonl:2: invalid JSON at column 15: Expecting ',' delimiter; "
        "expected one whole object on each line",
        "DIR/answers.jsonl:3: completion: missing",
        "DIR/gone.jsonl: no such file in DIR",
        "base.from: DIR/nowhere: there is no such folder, and it cannot be a name on the Hub",
    ])


def test_a_file_is_read_as_a_recipe_with_faults_says(tmp_path: Path) -> None:
    asked = {"question": "a", "chosen": "b", "rejected": "c"}
    feedback = {"file": "asked.jsonl", "fields": {"prompt": "question"}}
    path = write_recipe(tmp_path, feedback=[feedback])
    rows(tmp_path / "asked.jsonl", [asked, asked | {"chosen": 3}])
    problems = [problem.replace(str(tmp_path), "DIR") for problem in check.check(path, ["seeed=1"]).problems]
    assert problems[0] == "--set seeed=1: seeed: unknown field; did you mean seed?"
    assert [problem.split(": ")[:2] for problem in problems[1:]] == [["DIR/asked.jsonl:2", "chosen"]]


def test_rewards_that_are_not_trained_and_those_on_ratings_are_checked_too(tmp_path: Path) -> None:
    rules = {"kind": "rules", "rules": [{"rule": "repetition"}], "audit": {"required": False}}
    findings = check.check(write_recipe(tmp_path, comparisons=200, reward=rules))
    assert findings.problems == []
    assert "comparisons_train" not in findings.lengths
    rows(tmp_path / "ratings.jsonl", [
        {"prompt": f"Which is {i}?", "response": "Yes.", "scores": {"clear": i % 5}} for i in range(100)
    ])
    feedback = [{"file": "preferences.jsonl"}, {"ratings": "ratings.jsonl"}]
    regression = {"kind": "regression", "audit": {"required": False}}
    findings = check.check(write_recipe(tmp_path, comparisons=200, feedback=feedback, reward=regression))
    assert findings.problems == []
    assert findings.lengths["comparisons_train"].count > 0
    rows(tmp_path / "ratings.jsonl", [{"prompt": "Which?", "response": "Yes.", "scores": {"clear": "very"}}])
    problems = check.check(tmp_path / "recipe.yaml").problems
    assert any("scores.clear: must be a number" in problem for problem in problems)


def test_what_a_chat_template_leaves_out_is_a_problem_with_its_rows(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    without = "{% if message['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    own = template.CHATML.replace("{% for message in messages %}", "{% for message in messages %}" + without)
    edited = models.load_tokenizer(tmp_path / "model")
    edited.chat_template = own
    edited.save_pretrained(tmp_path / "model")
    system = {"role": "system", "content": "Be brief."}
    asked = [[system] * (i < 30) + [{"role": "user", "content": f"Question {i}?"}] for i in range(60)]
    rows(tmp_path / "answers.jsonl", [
        {"messages": [*turns, {"role": "assistant", "content": f"Answer {i}."}], "tools": [{"name": f"tool{i}"}]}
        if i < 10 else {"messages": [*turns, {"role": "assistant", "content": f"Answer {i}."}]}
        for i, turns in enumerate(asked)
    ])
    assert check.check(path).problems == [
        "demonstrations: 30 of 60 rows have a system turn, which the chat template does not write: no system turn; set "
        "base.chat_template, or take it out of the rows",
        "demonstrations: 10 of 60 rows have tools, which the chat template does not write: it leaves out what they "
        "say; set base.chat_template, or take it out of the rows",
    ]


def test_a_base_that_can_have_no_reward_head_is_a_problem(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **UNAUDITED)
    shared = tokenizer()
    config = GraniteConfig(
        vocab_size=len(shared), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=True,
    )
    models.save(GraniteForCausalLM(config), shared, tmp_path / "model")
    why = "transformers has no sequence classification for Granite; no reward model can be trained on it, so take rules"
    (problem,) = check.check(path).problems
    assert problem.startswith(f"base.from: {why}")
    with pytest.raises(ModelError, match=f"^model: {why}"):
        require_reward_head(tmp_path, "model")


def test_what_a_hub_that_does_not_answer_should_give_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    reach_hub.cache_clear()
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Why?"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
name: far
base: {from: someone/model, text: [https://example.org/words.txt]}
instruct: none
feedback:
  - {file: someone/pairs, data_dir: part, rows: [0, 9]}
  - {thumbs: "someone/thumbs:test"}
improve: {prompts: [mine.jsonl, {file: someone/prompts, split: test, constrain: {most: 3}}]}
evaluate: {tasks: [{name: words, file: "https://example.org/tasks.jsonl", rules: [{rule: f1}]}]}
""")
    (problem,) = check.check(recipe).problems
    overrides = re.findall(r"  (\S+):  --set '?(.*?)'?$", problem, re.MULTILINE)
    assert overrides == [
        ("someone/model", "base.from=FOLDER"),
        ("https://example.org/words.txt", "base.text.0={file: FILE}"),
        ("someone/pairs", "feedback.0={file: FILE, rows: [0, 9]}"),
        ("someone/thumbs:test", "feedback.1={thumbs: FILE}"),
        ("someone/prompts", "improve.prompts.1={file: FILE, constrain: {most: 3}}"),
        ("https://example.org/tasks.jsonl", "evaluate.tasks.0={file: FILE, name: words, rules: [{rule: f1}]}"),
    ]
    (tmp_path / "FILE").write_text("")
    (tmp_path / "FOLDER").mkdir()
    assert [str(path) for path in load(recipe, [override for _, override in overrides]).sources.values()] == [
        str(tmp_path / "FILE"), str(tmp_path / "mine.jsonl"),
    ]


def test_a_recipe_that_is_no_yaml_has_one_problem(tmp_path: Path) -> None:
    path = rows(tmp_path / "recipe.yaml", ["name: [a"])
    (problem,) = check.check(path).problems
    assert "recipe.yaml:" in problem


def test_wrong_rows_may_be_left_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, wrong_rows="skip")
    with open(tmp_path / "questions.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    found = check.check(path)
    assert found.problems == []
    assert found.notes == [f"left out: {tmp_path}/questions.jsonl:501: prompt: missing"]


def test_repeated_contradicting_and_leaking_rows_are_noted(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    pair = {"prompt": "Twice?", "chosen": "Yes.", "rejected": "No."}
    questions = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    with open(tmp_path / "preferences.jsonl", "a", encoding="utf-8") as file:
        for row in (pair, pair, pair | {"chosen": "No.", "rejected": "Yes."}):
            file.write(json.dumps(row) + "\n")
        for i, row in enumerate(questions):  # some of them are held out
            file.write(json.dumps(row | {"chosen": "Yes.", "rejected": "No." if i % 2 else "Not so."}) + "\n")
    found = check.check(path)
    assert found.problems == []
    repeated, removed, contradicting = found.notes
    assert repeated == "1 comparisons are exact repetitions and are left out (preferences.jsonl:1002)"
    assert removed.startswith(  # 100 + 100 + 64 prompts
        "264 comparisons have a prompt that is held out for test, gate or validation, and are left out (preferences.jso"
    )
    assert contradicting.startswith(f"{tmp_path}/preferences.jsonl:1003: 1 pair of comparisons contradicting")


def test_too_few_rows_are_a_problem(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    rows(tmp_path / "questions.jsonl", [{"prompt": f"Why {i}?"} for i in range(20)])
    rows(tmp_path / "preferences.jsonl", [{"prompt": f"{i}?", "chosen": "Yes.", "rejected": "No."} for i in range(40)])
    problems = check.check(path).problems
    assert [problem.split(":")[0] for problem in problems] == [
        "too few test prompts", "too few gate prompts",
        "held-out comparisons to audit the reward model", "held-out comparisons to audit the gate's judge",
    ]
    allowed = check.check(path, ["reward.audit.required=false"])
    assert len(allowed.problems) == 2
    assert sum("the audit will fail" in note for note in allowed.notes) == 2


def test_gate_prompts_that_do_not_last_for_all_rounds_are_noted(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **UNAUDITED)  # 100 of them
    assert not any("decide again" in note for note in check.check(path, ["gate.prompts=50", "improve.rounds=2"]).notes)
    (note,) = (note for note in check.check(path, ["gate.prompts=50", "improve.rounds=3"]).notes if "again" in note)
    assert note.startswith("100 gate prompts at 50 a round (gate.prompts) are enough for 2 rounds; after that")


def test_rows_that_cannot_be_split_are_a_problem(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    rows(tmp_path / "questions.jsonl", [{"prompt": "Why?"}])
    assert "too few" in check.check(path).problems[0]


def test_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, instruct={"data": ["answers.jsonl"], "context": 48}, **UNAUDITED)
    rows(tmp_path / "answers.jsonl", [{"prompt": f"{i}?", "completion": "x" * (i % 40)  + "."} for i in range(80)])
    found = check.check(path)
    report = found.lengths["demonstrations"]
    assert 0 < report.over < report.count
    assert found.problems == []
    (note,) = [note for note in found.notes if note.startswith("demonstrations: ")]
    assert note.startswith(f"demonstrations: {report.over} of {report.count} rows are longer than instruct.context, 48")
    kept = next(cost for cost in found.costs if cost.stage == "instruct").tokens
    assert kept <= 2 * 48 * (report.count - report.over)


def test_rows_longer_than_the_model_are_a_problem(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **UNAUDITED)
    tiny_model(tmp_path / "model", positions=40)
    problems = check.check(path).problems
    assert any(problem.startswith("demonstrations: rows have up to") for problem in problems)
    assert any("leave no room for an answer of 96 tokens" in problem for problem in problems)


def test_a_base_from_scratch_is_checked_on_its_text(tmp_path: Path) -> None:
    book = "\n\n".join(f"Sentence {number} is about tools." for number in range(400))
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    train = {"vocabulary": 300, "width": 32, "heads": 2, "layers": 1, "tokens": 5000}
    found = check.check(write_recipe(tmp_path, base={"train": train, "text": ["book.txt"]}, **UNAUDITED))
    assert found.problems == []
    assert (found.costs[0].stage, found.costs[0].tokens) == ("base", 5000)
    (tmp_path / "book.txt").write_text("One short document.", encoding="utf-8")
    (problem,) = check.check(tmp_path / "recipe.yaml").problems
    assert problem.startswith("base.text: no document is left to train on")


def test_the_storybook_has_nothing_to_read() -> None:
    found = check.check(Path(__file__).parents[1] / "recipes/quickstart.yaml")
    assert found.problems == []
    assert "nothing to read" in found.notes[0]


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_base_is_counted_as_it_is_stored(
    dtype: torch.dtype, stored: int, policy_folder: Path, tmp_path: Path
) -> None:
    folder = policy_folder / "model"
    models.save(models.load_policy(folder), models.load_tokenizer(folder), tmp_path / "base", dtype=dtype)
    assert check.open_model(str(tmp_path / "base"), lambda _: [], check.Findings())[1].stored == stored


def test_the_size_of_a_base_from_scratch_is_its_own() -> None:
    config = Pretraining(width=48, heads=4, key_value_heads=2, layers=3, vocabulary=300, context=32)
    shared = tokenizer()
    shared.add_tokens([f"<{number}>" for number in range(300 - len(shared))])
    model = LlamaForCausalLM(architecture(config, shared))
    counted = from_scratch(config)
    assert counted.parameters == models.parameters(model)
    assert counted == Architecture.of(model.config, counted.parameters)


@pytest.mark.attack("failing stage")
def test_few_shot_prompts_that_do_not_fit_are_told_before_the_run(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, base={"from": "model", "chat_template": "chatml"}, **UNAUDITED)
    long = "Say more. " * 40  # 400 bytes, which the tiny tokenizer has a token each for
    rows(tmp_path / "answers.jsonl", [{"prompt": f"{i}? {long}", "completion": "Yes."} for i in range(60)])
    found = check.check(path, ["instruct.context=1024", "decoding.max_tokens=48"])
    assert found.problems == []
    (note,) = [note for note in found.notes if note.startswith("test/base")]
    report = found.lengths["prompts_test, few-shot"]
    assert (report.over, report.count, report.limit) == (100, 100, 1024 - 48)
    assert report.longest > 1200
    assert note == (
        f"test/base: 100 of 100 prompts leave no room for 3 examples and an answer of 48 tokens (the longest has "
        f"{report.longest:,}, and the model knows 1,024 positions): they get fewer examples. Lower evaluate.shots or "
        "decoding.max_tokens"
    )
    fitting = check.check(path, ["instruct.context=1024", "evaluate.shots=1", "decoding.max_tokens=48"])
    assert not any(note.startswith("test/base") for note in fitting.notes)


def test_lengths_are_those_that_training_measures(tmp_path: Path) -> None:
    write_recipe(tmp_path, comparisons=200)
    shared = tokenizer()
    for name, reader in {
        "answers": read_conversations, "preferences": read_comparisons, "questions": read_prompts
    }.items():
        records: Any = reader(tmp_path / f"{name}.jsonl")
        counted, sizes, answers = check.measured(records, shared)
        assert counted == [
            len(template.prompt_tokens(shared, record)) if isinstance(record, Prompt)
            else lengths.tokenized(record, shared).length for record in records
        ]
        report = check.length_report(counted, 50)
        assert (report.count, report.longest, report.over) == (
            len(records), max(counted), sum(length > 50 for length in counted)
        )
        assert answers == [
            len(template.answer_tokens(shared, record.prompt, [record.answer])[1][0]) for record in records
            if isinstance(record, Conversation)
        ]
        more = name == "preferences"  # the prompt with both answers is computed
        assert all((size > length) == more for size, length in zip(sizes, counted, strict=True))


def own(folder: Path, rounds: int) -> Recipe:
    return load(write_recipe(folder), [f"improve.rounds={rounds}"])


def quickstart(folder: Path, rounds: int) -> Recipe:
    return load(Path(__file__).parents[1] / "recipes/quickstart.yaml", [f"improve.rounds={rounds}"])


@pytest.mark.parametrize("kind", [own, quickstart])
def test_the_plan_names_every_stage_of_the_cycle(tmp_path: Path, kind: Any) -> None:
    exact = kind is quickstart
    start = ["data", "base", "instruct", *([] if exact else ["judge", "judge/audit"])]
    round = ["improve", "decoding", "answers", "gate"]
    reward = (["feedback"] if exact else []) + ["reward", "audit"]

    def names(rounds: int) -> list[str]:
        return [stage.name for stage in plan(kind(tmp_path, rounds))]

    tests = ["test/base", "test/instruct"]
    rewarded = [*(f"round-1/{part}" for part in reward), "decoding/instruct"]
    assert names(0) == [*start, *rewarded, *tests]
    first = [*rewarded, *(f"round-1/{part}" for part in round)]
    second = [f"round-2/{part}" for part in ((reward if exact else []) + round)]
    assert names(2) == [*start, *first, *second, *tests, "test/round-1", "test/round-2"]


@pytest.mark.attack("data files")
@pytest.mark.parametrize(("rule", "reference", "message"), [
    ({"rule": "numeric"}, "1e400", "holds no number that rule numeric can use"),
    ({"rule": "numeric"}, None, "missing; a rule compares answers with it"),
    ({"rule": "json"}, '{"$ref": "#/nowhere"}', "leads nowhere"),
])
@pytest.mark.parametrize("within", [False, True])
def test_a_reference_that_a_rule_cannot_use_is_named_before_the_run(
    tmp_path: Path, rule: dict[str, Any], reference: str | None, message: str, within: bool
) -> None:
    good = {"numeric": "3", "json": "{}"}[rule["rule"]]
    reward: dict[str, Any] = {"kind": "rules", "rules": [rule | {"tasks": ["sums"]}]}
    if within:
        reward = {"kind": "mixture", "parts": [{"name": "sums", "weight": 1, "reward": reward}]}
    judge = {"kind": "rules", "rules": [{"rule": "length"}]}
    path = write_recipe(tmp_path, reward=reward, feedback=[], gate={"judge": judge})
    asked = [{"prompt": f"What about {i}?", "reference": good, "task": "sums"} for i in range(500)]
    rows(tmp_path / "questions.jsonl", [
        *asked[:2], asked[2] | {"reference": reference}, asked[3] | {"reference": reference, "task": "talk"}, *asked[4:]
    ])
    wanted = [f"{tmp_path / 'questions.jsonl'}:3: reference: "]
    found = [problem for problem in check.check(path).problems if "reference" in problem]
    assert [problem[: len(wanted[0])] for problem in found] == wanted
    assert message in found[0]
    with pytest.raises(DataError, match=re.escape(wanted[0])):
        cycle(load(path), Runner(tmp_path / "run", Silent(), 1), Family())  # before anything runs
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("more", "refused"), [([], True), ([{"rule": "repetition"}], False)])
def test_comparisons_need_no_reference_where_something_else_says_which_answer_is_better(
    tmp_path: Path, more: list[dict[str, str]], refused: bool
) -> None:
    rules = {"kind": "rules", "audit": {"required": False}, "rules": [{"rule": "chrf"}, *more]}
    judge = {"kind": "rules", "rules": [{"rule": "repetition"}]}
    path = write_recipe(tmp_path, comparisons=200, reward=rules, gate={"judge": judge})
    rows(tmp_path / "questions.jsonl", [{"prompt": f"What about {i}?", "reference": "That."} for i in range(500)])
    lacking = [problem for problem in check.check(path).problems if "a rule compares answers with it" in problem]
    wanted = {str(tmp_path / "preferences.jsonl")} if refused else set()
    assert {problem.partition(":")[0] for problem in lacking} == wanted


def test_comparisons_need_no_instructions_to_follow_where_prompts_have_them(tmp_path: Path) -> None:
    rules = {"kind": "rules", "rules": [{"rule": "instructions"}]}
    reward = {"kind": "mixture", "audit": {"required": False}, "parts": [
        {"name": "instructions", "weight": 1, "reward": rules}, {"name": "people", "weight": 0.1, "reward": {}},
    ]}
    path = write_recipe(tmp_path, comparisons=200, reward=reward, gate={"judge": rules})
    (lacking, *_) = [problem for problem in check.check(path).problems if "checks" in problem]
    assert f"{tmp_path / 'questions.jsonl'}:1: reference: has no `checks`" in lacking
    path = write_recipe(
        tmp_path, comparisons=200, reward=reward, gate={"judge": rules},
        improve={"prompts": [{"file": "questions.jsonl", "constrain": {"only": ["ifeval"]}}]},
    )
    assert check.check(path).problems == []
