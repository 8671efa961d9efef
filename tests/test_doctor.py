"""The doctor: one planted fault for each finding, and no finding where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import tiny
from test_check import rows, tokenizer, write_recipe
from triptych.data import template
from triptych.data.files import good_rows
from triptych.engine.models import load_tokenizer, save
from triptych.preflight import check, doctor
from triptych.preflight.doctor import Finding, Located
from triptych.recipe import load
from triptych.records import Comparison, Conversation, Prompt, user
from triptych.reward.sandbox import Confinement
from triptych.reward.training import PairwiseReward

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "preferences"


def preferences(count: int = 1000) -> list[dict[str, Any]]:
    """Comparisons without a fault: half of the chosen answers are the longer ones."""
    return [
        {"prompt": f"Which is {i}?", "chosen": f"This is {i}.", "rejected": "No."} if i % 2 else
        {"prompt": f"Which is {i}?", "chosen": "Yes.", "rejected": f"That is not {i}."}
        for i in range(count)
    ]


def found(folder: Path, content: Sequence[Mapping[str, Any]], *overrides: str) -> list[Finding]:
    """The doctor's findings about a recipe with these comparisons."""
    path = write_recipe(folder)
    rows(folder / "preferences.jsonl", content)
    recipe = load(path, overrides)
    split_into = folder / "split"
    split_into.mkdir()
    findings = check.Findings()
    check.split_data(recipe, split_into, findings)
    read = [good_rows("comparisons", source.located) for source in recipe.comparison_files]
    return list(doctor.diagnose(recipe, split_into, read, tokenizer()))


def the_one(findings: Sequence[Finding], what: str) -> Finding:
    (finding,) = [finding for finding in findings if what in finding.what]
    return finding


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, reward: Path) -> None:
    assert found(tmp_path, preferences()) == []
    comparisons = [Comparison(Prompt(user(row["prompt"])), row["chosen"], row["rejected"]) for row in preferences(8)]
    assert list(doctor.diagnose_reward(reward, tokenizer(), comparisons)) == []


def test_a_finding_says_what_where_why_and_what_to_do() -> None:
    finding = Finding("it leaks", "a.jsonl:3", "that is bad", "mend it")
    assert str(finding) == "a.jsonl:3: it leaks; that is bad; mend it"


def test_contradictions(tmp_path: Path) -> None:
    good = preferences()
    opposite = good[4] | {"chosen": good[4]["rejected"], "rejected": good[4]["chosen"]}
    finding = the_one(found(tmp_path, [*good, opposite]), "contradicting")
    assert finding.what.startswith("1 pair of comparisons contradicting each other")
    assert f"(this one and {tmp_path}/preferences.jsonl:5)" in finding.what
    assert finding.where == f"{tmp_path}/preferences.jsonl:1001"


@pytest.mark.parametrize(("wrong", "what"), [
    ({"margin": -0.5}, "have a margin below 0"),
    ({"votes_for_chosen": 1, "num_annotators": 3}, "have fewer than half of the votes for the chosen answer"),
    ({"score_chosen": 2, "score_rejected": 4}, "have a margin below 0"),
])
def test_rows_whose_numbers_contradict_their_label(tmp_path: Path, wrong: dict[str, Any], what: str) -> None:
    right = {"margin": 0.5} if "margin" in wrong else {"votes_for_chosen": 1, "num_annotators": 2}
    content = [row | (wrong if i in (4, 7) else right) for i, row in enumerate(preferences(20))]
    path = rows(tmp_path / "preferences.jsonl", content)
    located = doctor.locate([good_rows("comparisons", path)])
    (finding,) = [each for each in doctor.look_at_comparisons(located) if "comparisons have" in each.what]
    assert finding.what == f"2 of 20 comparisons {what}"
    assert finding.where == f"{path}:5"
    assert not finding.stops
    half = [row | (wrong if i % 2 else right) for i, row in enumerate(preferences(20))]
    rows(path, half)
    located = doctor.locate([good_rows("comparisons", path)])
    (finding,) = [each for each in doctor.look_at_comparisons(located) if "comparisons have" in each.what]
    assert finding.stops


SERIALISED = [
    ('[{"role": "user", "content": "Hi"}]', "a conversation as JSON in a text"),
    ("[{'role': 'user', 'content': 'Hi'}]", "a conversation as JSON in a text"),
    ('{"messages": [{"from": "human", "value": "Hi"}]}', "a conversation as JSON in a text"),
    ("Human: Hi\n\nAssistant: Ho", "a transcript in a text, with marks for who speaks"),
    ("### Human: Hi### Assistant: Ho", "a transcript in a text, with marks for who speaks"),
    ("<|im_start|>user\nHi<|im_end|>", "a text that is templated already, with <|im_start|>"),
    ("[INST] Hi [/INST]", "a text that is templated already, with [INST]"),
    ("Ho.</s>", "a text that is templated already, with </s>"),
    ("Ho.<end>", "the end token <end> written out"),
]


@pytest.mark.parametrize(("text", "what"), SERIALISED)
@pytest.mark.parametrize("kind", ["conversations", "comparisons", "ratings", "thumbs", "prompts"])
def test_texts_that_hold_a_whole_conversation(tmp_path: Path, kind: str, text: str, what: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "conversations": {"prompt": "Hi", "completion": text}, "prompts": {"prompt": text},
        "comparisons": {"prompt": "Hi", "chosen": text, "rejected": "b"},
        "ratings": {"prompt": "Hi", "response": text, "scores": {"a": 1}},
        "thumbs": {"prompt": text, "completion": "a", "label": True},
    }
    row = kinds[kind]
    plain = row | {next(name for name, value in row.items() if value == text): 'Say {"role": 1}, or user: [1].'}
    path = rows(tmp_path / "rows.jsonl", [plain, plain, row])
    (finding,) = doctor.look_at_texts({kind: [good_rows(kind, path)]}, "<end>")
    assert finding.what == f"1 of 3 {kind} have {what}"
    assert finding.where == f"{path}:3"
    assert not finding.stops
    rows(path, [plain, row])
    (finding,) = doctor.look_at_texts({kind: [good_rows(kind, path)]}, "<end>")
    assert finding.stops
    rows(path, [plain])
    assert list(doctor.look_at_texts({kind: [good_rows(kind, path)]}, "<end>")) == []


@pytest.mark.parametrize(("share", "stops"), [(0.95, True), (0.7, False)])
def test_labels_that_follow_the_position(tmp_path: Path, share: float, stops: bool) -> None:
    placed = [row | {"chosen_first": i % 100 < 100 * share} for i, row in enumerate(preferences())]
    finding = the_one(found(tmp_path, placed), "shown first")
    assert f"preferred in {share:.0%} of 1,000" in finding.what
    assert finding.stops == stops


def test_labels_that_do_not_follow_the_position(tmp_path: Path) -> None:
    assert found(tmp_path, [row | {"chosen_first": i % 4 < 2} for i, row in enumerate(preferences())]) == []


def test_labels_that_follow_length(tmp_path: Path) -> None:
    """Where every label does, no reward model could be proved better."""
    most = [row for i, row in enumerate(preferences()) if i % 2 or i % 10 == 0]
    finding = the_one(found(tmp_path, most), "'the longer answer wins'")
    assert finding.where == f"{tmp_path}/preferences.jsonl"
    assert "right on 83% of the comparisons (8" in finding.what
    assert not finding.stops


def test_labels_that_are_length(tmp_path: Path) -> None:
    findings = found(tmp_path, preferences(2000)[::2])
    stops = [finding for finding in findings if finding.stops]
    assert [finding.what for finding in stops] == ["'shorter wins' is right on 100% of them"] * 2  # and for the judge
    assert "not even a reward model without a mistake" in stops[0].why
    (tmp_path / "other").mkdir()
    assert not any(
        finding.stops for finding in found(tmp_path / "other", preferences(2000)[::2], "reward.audit.required=false")
    )


def test_answers_that_the_context_cuts(tmp_path: Path) -> None:
    good = preferences()
    long = [row | {"chosen": "long " * 40} if i % 7 == 0 else row for i, row in enumerate(good)]
    findings = found(tmp_path, long, "reward.context=100", "reward.overlong=truncate")
    file, line = the_one(findings, "longer than reward.context").where.rsplit(":", 1)
    assert json.loads(Path(file).read_text().splitlines()[int(line) - 1])["chosen"].startswith("long long")
    good[7]["chosen"] = "long " * 40
    config = PairwiseReward(context=100, overlong="truncate")
    located = [
        Located("a.jsonl", i + 1, Comparison(Prompt(user(row["prompt"])), row["chosen"], row["rejected"]))
        for i, row in enumerate(good[:20])
    ]
    (finding,) = doctor.look_at_lengths(located, tokenizer(), "reward", config)
    assert finding.where == "a.jsonl:8"
    assert "1 of 20 comparisons are longer than reward.context, 100 tokens, and have their answers cut" in finding.what
    assert "raise reward.context to 2" in finding.remedy
    (left_out,) = doctor.look_at_lengths(located, tokenizer(), "reward", PairwiseReward(context=100))
    assert "are left out" in left_out.what


def test_too_few_comparisons_for_the_interval(tmp_path: Path) -> None:
    many = [Comparison(Prompt(user(f"{i}?")), "a" * (1 + i % 2), "b" * (2 - i % 2)) for i in range(200)]
    (few,) = doctor.look_at_count(many[:29], "it", 30, 0.0, required=True)
    assert few.stops
    assert few.what == "of 29 prompts, where 30 are the least"
    (coarse,) = doctor.look_at_count(many[:40], "it", 30, 0.0, required=True)
    assert not coarse.stops
    assert "for a lead of about 30 points or more" in coarse.why
    assert list(doctor.look_at_count(many, "it", 30, 0.0, required=True)) == []
    assert not next(doctor.look_at_count(many[:29], "it", 30, 0.0, required=False)).stops


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "reward"
    shared = tokenizer()
    model: Any = tiny("llama", reward=True, dtype=torch.float32)
    model.resize_token_embeddings(len(shared))
    save(model, shared, folder)
    return folder


def change(change: str) -> tuple[Any, dict[str, Any]]:
    """A tokenizer and a configuration with one fault."""
    own = tokenizer()
    config = {"pad_token_id": own.pad_token_id}
    match change:
        case "no pad":
            own.pad_token, config["pad_token_id"] = None, None
        case "pad is EOS":
            own.pad_token, config["pad_token_id"] = own.eos_token, own.eos_token_id
        case "another pad":
            config["pad_token_id"] = 7
        case "pad at the end":
            own.chat_template = template.CHATML.replace(template.TURN_END, template.TURN_END + own.pad_token)
        case "no template":
            own.chat_template = None
    return own, config


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no pad", "padding is missing"), ("pad is EOS", "padding is EOS, <|im_end|>"),
        ("another pad", "pad_token_id is 7 and the tokenizer pads with 0"),
        ("pad at the end", "the chat template ends a conversation with padding, <|pad|>"),
        ("no template", "there is no chat template"),
    ],
)
def test_padding_and_template_of_a_reward_model(fault: str, words: str) -> None:
    (finding,) = doctor.look_at_tokens(*change(fault), "reward")
    assert words in finding.what
    assert finding.where.startswith("reward/")
    assert finding.stops


def test_another_template_than_the_policys(reward: Path) -> None:
    other = tokenizer()
    other.chat_template = template.CHATML.replace("message['content']", "message['content'] | trim")
    own = load_tokenizer(reward)
    (finding,) = doctor.look_at_templates(other, own, "reward")
    assert "And now?" in finding.what  # only spaces around a turn tell the two apart
    assert finding.stops
    assert list(doctor.look_at_templates(tokenizer(), own, "reward")) == []


class Constant:
    name = identity = "constant"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [0.25] * len(conversations)


def test_scores_that_are_all_the_same() -> None:
    some = [Comparison(Prompt(user(f"{i}?")), "a", "b") for i in range(20)]
    (finding,) = doctor.look_at_scores(Constant(), some, "reward")
    assert finding.what == "all 32 answers that were tried have the same score, 0.25"
    assert finding.stops


def test_check_names_an_attribute_with_the_same_rating_in_every_row(tmp_path: Path) -> None:
    def rate(name: str, *scores: dict[str, float]) -> None:
        some = scores * (50 // len(scores))
        rows(tmp_path / name, [{"prompt": f"Which {i}?", "response": "a", "scores": one} for i, one in enumerate(some)])

    feedback = [{"file": "preferences.jsonl"}, {"ratings": "one.jsonl"}, {"ratings": "other.jsonl"}]
    path = write_recipe(tmp_path, feedback=feedback, reward={"kind": "regression"})
    rate("one.jsonl", {"clear": 1, "brief": 2})
    rate("other.jsonl", {"clear": 3, "brief": 2})
    findings = check.check(path)
    assert findings.problems == []
    (note,) = [note for note in findings.notes if "in every row" in note]
    assert note.startswith(f"{tmp_path}/one.jsonl, {tmp_path}/other.jsonl: brief is 2 in every row; there is nothing")
    rate("other.jsonl", {"clear": 3, "brief": 4})
    assert not [note for note in check.check(path).notes if "in every row" in note]
    rate("one.jsonl", {"clear": 3})
    rate("other.jsonl", {"clear": 3})
    (problem,) = [problem for problem in check.check(path).problems if "in every row" in problem]
    assert ": clear is 3 in every row; " in problem


def test_check_lists_the_doctors_findings(tmp_path: Path, reward: Path) -> None:
    path = write_recipe(tmp_path)
    broken = tmp_path / "reward"
    save_with_other_padding(reward, broken)
    (problem,) = check.check(path, (), broken).problems
    assert problem.startswith(f"{broken}/config.json: pad_token_id is 9 and the tokenizer pads with 0; in a padded")
    assert check.check(path, (), reward).problems == []


def save_with_other_padding(reward: Path, folder: Path) -> None:
    folder.mkdir()
    for file in reward.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 9}))


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not there")
def test_real_comparisons() -> None:
    """PandaLM's labels follow length, which its documentation says as well; HH's do not."""
    located = doctor.locate([good_rows("comparisons", REAL / name) for name in ("pandalm.jsonl", "hh_harmless.jsonl")])
    findings = list(doctor.look_at_comparisons(located))
    length = [finding for finding in findings if "answer wins" in finding.what]
    assert [Path(finding.where).name for finding in length] == ["pandalm.jsonl"]
    assert "'the longer answer wins' is right on 66%" in length[0].what
    assert not any(finding.stops for finding in findings)


@pytest.mark.parametrize(("missing", "unconfined", "stops"), [
    ("", False, []), ("no bubblewrap", False, [True]), ("no bubblewrap", True, [False]),
])
def test_a_machine_that_cannot_confine_code(
    missing: str, unconfined: bool, stops: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "confinement", lambda: Confinement(missing))
    rule = {"rule": "tests", "unconfined": unconfined}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({
        "name": "code", "base": {"from": "m"}, "instruct": {"data": ["a.jsonl"]}, "improve": {"prompts": ["b.jsonl"]},
        "reward": {"kind": "rules", "rules": [rule]}, "gate": {"judge": {"kind": "rules", "rules": [rule]}},
    }))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").touch()
    assert [finding.stops for finding in doctor.diagnose_sandbox(load(path))] == stops
