"""Every stage can be used alone, on plain folders and files, and does what it does in a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import triptych
from test_check import tiny_model
from triptych.data import files
from triptych.errors import DataError
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Check, Comparison, Conversation, Prompt, Thumb, ToolCall, user
from triptych.storage import sha256

WORDS = ("small", "red", "cat", "sat", "saw", "dog", "mat")
PROMPTS = [Prompt(user(f"a {one} {other}")) for one in WORDS for other in WORDS if one != other]
SFT: dict[str, Any] = {"epochs": 1, "batch_tokens": 256, "micro_batch": 128, "learning_rate": 1e-3}
ROUND: dict[str, Any] = {
    "steps": 2, "prompts_per_step": 2, "group_size": 2, "max_tokens": 6, "eval_every": 1, "eval_prompts": 8
}


class Length:
    """Prefers long answers."""

    name = identity = "length"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [float(len(each.answer)) for each in conversations]


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Killed(Exception):  # noqa: N818 (it is no error)
    """What stands for a kill."""


class Deadly(Silent):
    """Ends the work behind its second step."""

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        if done == 2:
            raise Killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind."""
    folder = tmp_path_factory.mktemp("files")
    files.write(folder / "answers.jsonl", [Conversation(each, "a dog saw a mat") for each in PROMPTS])
    files.write(folder / "preferences.jsonl", [Comparison(each, "a red cat", "the mat") for each in PROMPTS])
    files.write(folder / "questions.jsonl", PROMPTS)
    return folder


@pytest.mark.parametrize(("own", "expected"), [
    ({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None"),
])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(own: dict[str, str], expected: str) -> None:
    program = "import os, sys, triptych; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    known = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, env=known | own
    )
    assert done.stdout.strip() == expected


def test_an_import_loads_nothing_and_a_folder_never_hides_a_function() -> None:
    program = (
        "import sys, triptych.audit, triptych.evaluate, triptych.improve, triptych.errors\n"
        "assert not {'torch', 'transformers', 'pydantic', 'triptych.api'} & set(sys.modules)\n"
        "assert not {'audit', 'evaluate', 'improve'} & set(vars(triptych)), vars(triptych)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert callable(triptych.audit)
    assert callable(triptych.evaluate)
    assert callable(triptych.improve)
    assert all(getattr(triptych, name).__doc__ for name in triptych.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        triptych.train  # noqa: B018 (that is the test)
    assert sorted(triptych.__all__) == triptych.__all__


def test_a_cycle_runs_and_goes_on(tmp_path: Path) -> None:
    recipe = Path(__file__).parent / "tiny.yaml"
    summary = triptych.run(recipe, ["base.train.tokens=2000"], runs=tmp_path, until="instruct", progress=Silent())
    assert summary is not None
    assert summary.ended == "it was to end behind instruct"
    assert "round-1/gate" in summary.missing
    assert json.loads((tmp_path / "tiny" / "summary.json").read_text())["missing"] == summary.missing
    loaded = triptych.Recipe.model_validate(yaml.safe_load((tmp_path / "tiny" / "recipe.yaml").read_text()))
    again = triptych.run(loaded, runs=tmp_path, until="instruct", progress=Silent())
    assert again is not None
    assert [stage.name for stage in again.stages] == [stage.name for stage in summary.stages]
    events = [json.loads(line)["event"] for line in (tmp_path / "tiny" / "ledger.jsonl").read_text().splitlines()]
    assert events == ["planned", *["started", "finished"] * 3, "planned", *["reused"] * 3]
    with pytest.raises(triptych.TriptychError, match="has no such stage"):
        triptych.run(recipe, runs=tmp_path, until="instrct", progress=Silent())


def test_a_chat_forgets_the_first_turns_and_goes_on(tmp_path: Path) -> None:
    policy = triptych.Policy.open(tiny_model(tmp_path / "model", positions=100))
    sampling = triptych.Sampling(max_tokens=30, temperature=1.0, seed=5)
    chat = triptych.Chat(policy, sampling)
    replies = [chat.reply(text) for text in ("One", "Two", "Three")]
    assert replies[0].forgotten == replies[1].forgotten - 2 * bool(replies[1].forgotten) == 0
    assert sum(reply.forgotten for reply in replies) == 6 - len(chat.turns) > 0
    turns = chat.turns[:-1]
    assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    assert len(policy.render(Prompt(tuple(turns)))) + 30 <= 100
    ((again,),) = policy.write([Prompt(tuple(turns))], dataclasses.replace(sampling, seed=7))
    assert replies[2].rollout == again
    with pytest.raises(triptych.TriptychError, match="no room for an answer of 30 tokens in the model's context"):
        chat.reply("a" * 80)
    assert chat.turns[:-1] == turns


def test_a_model_and_a_reward_are_evaluated_on_files(policy_folder: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The cat sat.", encoding="utf-8")
    sampling = triptych.Sampling(max_tokens=4, seed=1)
    found = triptych.evaluate(
        policy_folder, Length(), prompts=folder / "questions.jsonl", comparisons=folder / "preferences.jsonl",
        text=tmp_path / "book.txt", sampling=sampling, progress=Silent(),
    )
    answers = [group[0] for group in triptych.Policy.open(policy_folder / "model").write(PROMPTS, sampling)]
    assert found.answers is not None
    assert found.answers.prompts == len(PROMPTS)
    assert found.answers.mean_length == pytest.approx(sum(len(each.tokens) for each in answers) / len(answers))
    assert found.answers.reward == pytest.approx(sum(len(each.answer) for each in answers) / len(answers))
    assert found.agreement is not None
    assert (found.agreement.comparisons, found.agreement.accuracy) == (len(PROMPTS), 1.0)
    assert found.agreement.baselines["longer wins"] == 1.0
    assert found.bits_per_byte is not None
    assert found.bits_per_byte > 0
    with pytest.raises(triptych.TriptychError, match="nothing to measure"):
        triptych.evaluate(policy_folder, Length())
    with pytest.raises(triptych.TriptychError, match="by a reward: give one"):
        triptych.evaluate(policy_folder, comparisons=folder / "preferences.jsonl")
    with pytest.raises(triptych.TriptychError, match="by a model: give one"):
        triptych.evaluate(None, Length(), prompts=folder / "questions.jsonl")


def test_what_nobody_reads_of_a_file_is_said_by_whoever_reads_it(policy_folder: Path, tmp_path: Path) -> None:
    def written(name: str, **fields: str) -> Path:
        rows = [{"prompt": f"{number} cats", **fields, "refrence": "a"} for number in range(2)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / name

    questions, book = written("asked.jsonl"), written("book.jsonl", text="A cat.")
    pairs, answers = written("pairs.jsonl", chosen="a", rejected="b"), written("answers.jsonl", completion="a cat")
    near = "refrence: is not read, in all 2 rows; did you mean reference?"
    sampling, heard = triptych.Sampling(max_tokens=2), Lines()
    triptych.evaluate(policy_folder, prompts=questions, text=book, sampling=sampling, progress=heard)
    assert [line for line in heard.said if line.startswith("note")] == [
        f"note: {questions}:1: {near}",
        f"note: {book}: not read, with the rows that have it: prompt (2), refrence (2)",
    ]
    heard = Lines()
    triptych.evaluate(reward=Length(), comparisons=pairs, progress=heard)
    assert heard.said == [f"note: {pairs}:1: {near}"]
    heard = Lines()
    triptych.gate(policy_folder, policy_folder, questions, judge=Length(), max_tokens=2, progress=heard)
    assert heard.said[0] == f"note: {questions}:1: {near}"
    heard = Lines()
    triptych.gate(answers, answers, judge=Length(), progress=heard)
    assert heard.said[:2] == [f"note: {answers}:1: {near}"] * 2


def test_an_audit_leaves_its_record_and_page(folder: Path, tmp_path: Path) -> None:
    record = triptych.audit(
        Length(), folder / "preferences.jsonl", output=tmp_path / "audit", name="how long it is", progress=Silent()
    )
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["accuracy"] == record.accuracy == 1.0
    assert "how long it is" in (tmp_path / "audit" / "audit.html").read_text()


def test_an_audit_says_that_it_cannot_know_what_a_reward_learnt(folder: Path, tmp_path: Path) -> None:
    rows = folder / "preferences.jsonl"
    record = triptych.audit(Length(), rows, progress=Silent())
    assert record.warnings[-1].startswith("training: nothing says which comparisons it was trained on")
    files.write(tmp_path / "learnt.jsonl", [Comparison(Prompt(user("Who?")), "a red cat", "a cat")])
    known = triptych.audit(Length(), rows, training=tmp_path / "learnt.jsonl", progress=Silent())
    assert not any(warning.startswith("training:") for warning in known.warnings)
    kept = tmp_path / "rules"
    kept.mkdir()
    (kept / "reward.json").write_text('{"kind": "rules", "rules": [{"rule": "length", "most": 1}]}')
    rules = triptych.audit(kept, rows, progress=Silent())
    assert not any(warning.startswith("training:") for warning in rules.warnings)
    (reason,) = rules.reasons
    assert reason.endswith("change its rules, its question or who is asked, or look for wrong labels")


def test_fine_tuning_alone_is_the_stage_and_resumes_to_the_same_bits(
    policy_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_CHECKPOINT_SECONDS", "0")
    data = folder / "answers.jsonl"
    made = triptych.train_sft(policy_folder, data, tmp_path / "sft", progress=Silent(), **SFT)
    work = tmp_path / "work"
    (work / "output").mkdir(parents=True)
    files.write(work / "demonstrations.jsonl", files.read_conversations(made.learnt))
    files.write(work / "demonstrations_heldout.jsonl", files.read_conversations(made.heldout))
    context = StageContext(work / "output", work, Silent(), 0, 60.0)
    assert finetune(context, Finetuning.model_validate(SFT), policy_folder, work) == made.result
    digest = sha256(made.model / "model.safetensors")
    assert sha256(work / "output" / "model" / "model.safetensors") == digest
    assert len(files.read_conversations(made.learnt)) + len(files.read_conversations(made.heldout)) == len(PROMPTS)

    again = tmp_path / "again"
    with pytest.raises(Killed):
        triptych.train_sft(policy_folder / "model", data, again, progress=Deadly(), **SFT)
    (left,) = tmp_path.glob(".again-*")
    assert not again.exists()
    assert (left / "training.pt").exists()
    other = triptych.train_sft(policy_folder / "model", data, again, seed=1, progress=Silent(), **SFT)
    assert sha256(other.model / "model.safetensors") != digest
    assert left.exists()
    again.rename(tmp_path / "other")
    first = []

    class Watching(Silent):
        def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
            first.append(done)

    resumed = triptych.train_sft(policy_folder / "model", data, again, progress=Watching(), **SFT)
    assert first[0] > 1
    assert sha256(resumed.model / "model.safetensors") == digest
    assert not left.exists()
    assert {path.name for path in again.iterdir()} == {"model", "curve.jsonl", "learnt.jsonl", "heldout.jsonl"}


def test_a_reward_model_is_trained_audited_and_used(policy_folder: Path, folder: Path, tmp_path: Path) -> None:
    made = triptych.train_reward(
        policy_folder, folder / "preferences.jsonl", tmp_path / "reward", progress=Silent(), heldout=0.3,
        epochs=3, batch_pairs=8, micro_batch=128, learning_rate=3e-3,
    )
    reward = triptych.open_reward(made.model)
    asked = PROMPTS[0]
    good, bad = reward.score([Conversation(asked, "a red cat"), Conversation(asked, "the mat")])
    assert good > bad
    record = triptych.audit(
        reward, folder / "preferences.jsonl", training=made.learnt, progress=Silent(), least_prompts=5, perturbed=0
    )
    assert record.comparisons == len(files.read_comparisons(made.heldout))
    assert record.accuracy == 1
    assert triptych.open_reward(str(made.model)).identity == reward.identity != ""
    with pytest.raises(triptych.TriptychError, match="no comparison is left"):
        triptych.audit(reward, made.learnt, training=made.learnt, progress=Silent())

    better = triptych.improve(
        policy_folder, made.model, folder / "questions.jsonl", tmp_path / "better", progress=Silent(), heldout=0.2,
        learning_rate=1e-3, **ROUND,
    )
    assert better.result.watched_by == "reward"
    pairs = triptych.improve(
        policy_folder, Length(), folder / "questions.jsonl", tmp_path / "pairs", method="dpo", pairs="comparisons",
        comparisons=folder / "preferences.jsonl", progress=Silent(), judge=reward, learning_rate=1e-3, **ROUND,
    )
    assert pairs.result.watched_by == "judge"
    (tmp_path / "thumbs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Is it {i}?", "completion": "a cat", "label": i > 3}) + "\n" for i in range(8))
    )
    liked = triptych.improve(
        policy_folder, Length(), folder / "questions.jsonl", tmp_path / "liked", method="kto",
        thumbs=tmp_path / "thumbs.jsonl", progress=Silent(), learning_rate=1e-3, **ROUND,
    )
    assert (liked.result.numbers["thumbs"], liked.result.numbers["thumbs_up"]) == (8, 4)
    decided = triptych.gate(
        policy_folder, better.folder, folder / "questions.jsonl", judge=Length(), output=tmp_path / "gate",
        progress=Silent(), max_tokens=8,
    )
    rows = [json.loads(line) for line in (tmp_path / "gate" / "scores.jsonl").read_text().splitlines()]
    assert decided.prompts == len(rows) == len(PROMPTS)
    assert decided.win_rate == pytest.approx(sum(row["won"] for row in rows) / len(rows))
    assert triptych.gate(
        policy_folder, better.folder, folder / "questions.jsonl", judge=Length(), progress=Silent(), max_tokens=8,
    ) == decided
    answers = triptych.Policy.open(better.model).write([asked], triptych.Sampling(4))
    assert answers[0][0].prompt == asked


def test_pairs_and_thumbs_improve_a_model_without_a_reward(policy_folder: Path, folder: Path, tmp_path: Path) -> None:
    files.write(tmp_path / "thumbs.jsonl", [
        Thumb(each, text, label) for each in PROMPTS for text, label in (("a red cat", True), ("the mat", False))
    ])
    given: dict[str, dict[str, Any]] = {
        "dpo": {"comparisons": folder / "preferences.jsonl"}, "kto": {"thumbs": tmp_path / "thumbs.jsonl"}
    }
    for method, feedback in given.items():
        made = triptych.improve(
            policy_folder, None, (), tmp_path / method, method=method, heldout=0.25, progress=Silent(),
            learning_rate=3e-3, **feedback, **ROUND | {"steps": 6},
        )
        rows = [json.loads(line) for line in (made.folder / "curve.jsonl").read_text().splitlines()]
        assert made.result.watched_by == "loss"
        assert not any("validation_reward" in row for row in rows)
        losses = {row["step"]: row["validation_loss"] for row in rows if row["step"] > 0}
        assert made.result.kept == min(losses, key=lambda step: (losses[step], -step))
        # At the start the policy is its own reference: log σ(0) of each pair, and half of what a thumb can gain.
        assert rows[0]["validation_loss"] == pytest.approx(math.log(2) if method == "dpo" else 0.5)
        assert min(losses.values()) < 0.95 * rows[0]["validation_loss"]
        learnt, heldout = ({row.key for row in files.read_prompts(rows)} for rows in (made.learnt, made.heldout))
        assert len(learnt) + len(heldout) == len(PROMPTS)
        assert not learnt & heldout
    for method, feedback, message in (
        ("dpo", {"pairs": "sampled", **given["dpo"]}, "learns from scores: give a reward"),
        ("dpo", {"loss": "rpo", **given["dpo"]}, "learns from scores: give a reward"),
        ("grpo", {}, "learns from scores: give a reward"), ("kto", {}, "kto learns from thumbs: give some"),
    ):
        with pytest.raises(triptych.TriptychError, match=message):
            triptych.improve(policy_folder, None, (), tmp_path / "none", method=method, **feedback)
    with pytest.raises(triptych.TriptychError, match="grpo writes answers: give prompts"):
        triptych.improve(policy_folder, Length(), (), tmp_path / "none")


@pytest.mark.parametrize(("settings", "what"), [
    ({"epoch": 1}, "epoch: unknown setting, did you mean epochs?"),
    ({"zzz": 1}, "zzz: unknown setting; there are "),
    ({"lora": {"rank": 0}}, "lora.rank: must be a whole number at least 1, got 0"),
    ({"epochs": 0, "batch_tokens": 1}, "epochs: must be a number greater than 0, got 0\nbatch_tokens: must be a whole"),
])
def test_wrong_settings_are_all_named(
    policy_folder: Path, folder: Path, tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(triptych.TriptychError) as raised:
        triptych.train_sft(policy_folder, folder / "answers.jsonl", tmp_path / "sft", **settings)
    assert what in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_used_is_named(policy_folder: Path, folder: Path, tmp_path: Path) -> None:
    data, prompts = folder / "answers.jsonl", folder / "questions.jsonl"
    with pytest.raises(triptych.TriptychError, match="exists; give another output"):
        triptych.train_sft(policy_folder, data, tmp_path)
    with pytest.raises(triptych.TriptychError, match="no model's folder"):
        triptych.train_sft(tmp_path, data, tmp_path / "sft")
    with pytest.raises(triptych.TriptychError, match="there is no method 'grp'; there are grpo"):
        triptych.improve(policy_folder, Length(), prompts, tmp_path / "better", method="grp")
    with pytest.raises(triptych.TriptychError, match="learns from comparisons: give some"):
        triptych.improve(policy_folder, Length(), prompts, tmp_path / "better", method="dpo", pairs="comparisons")
    with pytest.raises(triptych.TriptychError, match="kto learns from thumbs: give some"):
        triptych.improve(policy_folder, Length(), prompts, tmp_path / "better", method="kto")
    with pytest.raises(triptych.TriptychError, match=r"answers\.jsonl:1"):
        triptych.train_reward(policy_folder, data, tmp_path / "reward")


@pytest.mark.parametrize(("rules", "missing"), [
    ([{"rule": "instructions"}], "has no `checks`; rule instructions"),
    ([{"rule": "repetition"}, {"rule": "exact"}], "missing; a rule compares answers with it"),
    ([{"rule": "repetition", "tasks": ["math"]}], "nothing of this reward applies to it"),
])
def test_what_a_reward_says_nothing_of_is_refused_before_the_work(
    policy_folder: Path, tmp_path: Path, rules: list[dict[str, Any]], missing: str
) -> None:
    reward = tmp_path / "reward.yaml"
    reward.write_text(yaml.safe_dump({"kind": "rules", "rules": rules}), encoding="utf-8")
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(yaml.safe_dump({"kind": "mixture", "parts": [
        {"name": "rules", "weight": 1, "reward": {"kind": "rules", "rules": rules}},
    ]}), encoding="utf-8")
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    # The second alone has all that any of these rules needs.
    needed: dict[str, Any] = {"checks": [{"kind": "punctuation:no_comma"}], "reference": "a cat", "task": "math"}
    rows = [{"prompt": "a dog"}, {"prompt": "a cat"} | needed]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers.write_text("".join(json.dumps(row | {"completion": "a"}) + "\n" for row in rows), encoding="utf-8")
    for scorer in (reward, mixed):
        for file, call in (
            (prompts, lambda given: triptych.improve(policy_folder, given, prompts, tmp_path / "better", **ROUND)),
            (prompts, lambda given: triptych.evaluate(policy_folder, given, prompts=prompts)),
            (prompts, lambda given: triptych.gate(policy_folder, policy_folder, prompts, judge=given)),
            (answers, lambda given: triptych.gate(answers, answers, judge=given)),
        ):
            with pytest.raises(DataError) as refused:
                call(scorer)
            assert {(fault.file, fault.line) for fault in refused.value.faults} == {(str(file), 1)}
            assert missing in str(refused.value)
    assert not (tmp_path / "better").exists()


def test_an_audit_leaves_out_what_the_reward_says_nothing_of(tmp_path: Path) -> None:
    reward = tmp_path / "reward.yaml"
    reward.write_text(yaml.safe_dump({"kind": "rules", "rules": [{"rule": "instructions"}]}), encoding="utf-8")
    checked = Check("punctuation:no_comma")
    silent = [Comparison(prompt, "a, b", "a") for prompt in PROMPTS]
    spoken = [Comparison(dataclasses.replace(prompt, checks=(checked,)), "a", "a, b") for prompt in PROMPTS[:9]]
    files.write(tmp_path / "some.jsonl", [*silent[9:], *spoken])
    heard = Lines()
    record = triptych.audit(reward, tmp_path / "some.jsonl", progress=heard)
    assert (record.comparisons, record.accuracy) == (9, 1)
    left_out = len(PROMPTS) - 9
    assert heard.said == [f"note: {left_out} comparisons are left out, for nothing of this reward applies to them"]
    agreement = triptych.evaluate(reward=reward, comparisons=tmp_path / "some.jsonl").agreement
    assert agreement is not None
    assert agreement.comparisons == 9
    files.write(tmp_path / "none.jsonl", silent)
    for measure in (triptych.audit, lambda given, rows: triptych.evaluate(reward=given, comparisons=rows)):
        with pytest.raises(triptych.TriptychError, match="applies to any of the 42 comparisons"):
            measure(reward, tmp_path / "none.jsonl")


def test_two_files_of_answers_pass_the_gate(tmp_path: Path) -> None:
    files.write(tmp_path / "old.jsonl", [Conversation(each, "a cat") for each in PROMPTS])
    files.write(tmp_path / "new.jsonl", [Conversation(each, "a red cat and a dog") for each in reversed(PROMPTS)])
    decided = triptych.gate(
        tmp_path / "old.jsonl", tmp_path / "new.jsonl", judge=Length(), output=tmp_path / "gate", progress=Silent(),
        max_length_ratio=4,
    )
    assert (decided.decision, decided.win_rate, decided.prompts) == ("promoted", 1.0, len(PROMPTS))
    assert (decided.kl, decided.length_before, decided.length_after) == (None, 2, 6)
    assert json.loads((tmp_path / "gate/gate.json").read_text())["decision"] == "promoted"
    page = (tmp_path / "gate/gate.html").read_text()
    assert "a <ins>red</ins> cat <ins>and a dog</ins>" in page
    assert "new.jsonl: promoted" in page


def test_a_prompt_that_stands_twice_proves_nothing_twice(policy_folder: Path, tmp_path: Path) -> None:
    asked, again = tmp_path / "asked.jsonl", tmp_path / "again.jsonl"
    files.write(asked, PROMPTS[:8])
    files.write(again, PROMPTS[:6])
    longer = tmp_path / "longer"
    shutil.copytree(policy_folder, longer)
    settings = longer / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": False, "max_new_tokens": 7}))
    own = tmp_path / "own"
    shutil.copytree(policy_folder, own)
    settings = own / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": False, "max_new_tokens": 5}))
    heard = Lines()
    decided = triptych.gate(own, longer, [asked, again], judge=Length(), output=tmp_path / "gate", progress=heard)
    assert decided.prompts == 8
    assert decided.p_value == 1  # the same model, as long as the other may write
    assert decided.length_before == decided.length_after > 5
    assert decided.cut_before == decided.cut_after
    assert "note: 6 prompts stand in the files already and are left out" in heard.said
    assert any("own limits are 5 and 7 tokens an answer; both have 7" in said for said in heard.said)
    measured = triptych.evaluate(own, prompts=[asked, again], progress=Silent()).answers
    assert measured is not None
    assert measured.prompts == 8


def test_answers_that_call_tools_are_told_apart(tmp_path: Path) -> None:
    def called(city: str) -> list[Conversation]:
        return [Conversation(each, "", (ToolCall("weather", json.dumps({"city": city})),)) for each in PROMPTS]

    files.write(tmp_path / "old.jsonl", called("X"))
    files.write(tmp_path / "new.jsonl", called("Paris"))
    decided = triptych.gate(
        tmp_path / "old.jsonl", tmp_path / "new.jsonl", judge=Length(), output=tmp_path / "gate", progress=Silent(),
    )
    assert (decided.decision, decided.win_rate) == ("promoted", 1.0)


def test_what_files_of_answers_cannot_be_compared_by_is_named(tmp_path: Path, policy_folder: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    files.write(old, [Conversation(each, "a cat") for each in PROMPTS])
    files.write(new, [Conversation(each, "a dog") for each in PROMPTS[:-1]])
    with pytest.raises(triptych.TriptychError, match=r"new.jsonl: has no answer to 'a mat dog', as .*old.jsonl has"):
        triptych.gate(old, new, judge=Length(), progress=Silent())
    files.write(new, [Conversation(each, "a dog") for each in [*PROMPTS, PROMPTS[0]]])
    with pytest.raises(triptych.TriptychError, match=r"new.jsonl: has two answers to 'a small red'"):
        triptych.gate(old, new, judge=Length(), progress=Silent())
    with pytest.raises(triptych.TriptychError, match="not one of each"):
        triptych.gate(old, policy_folder, judge=Length(), progress=Silent())
    with pytest.raises(triptych.TriptychError, match="leave the prompts out"):
        triptych.gate(old, old, new, judge=Length(), progress=Silent())
    with pytest.raises(triptych.TriptychError, match="no distance is known"):
        triptych.gate(old, old, judge=Length(), progress=Silent(), max_kl=3)


def test_what_a_validator_says_is_told_in_its_own_words(policy_folder: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(triptych.TriptychError) as raised:
        triptych.improve(
            policy_folder, Length(), folder / "questions.jsonl", tmp_path / "x", method="dpo", pairs="comparisons",
            comparisons=folder / "preferences.jsonl", updates_per_rollout=2, progress=Silent(),
        )
    assert str(raised.value).startswith("updates_per_rollout is of samplings")
