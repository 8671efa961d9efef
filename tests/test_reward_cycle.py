"""The small cycle with rewards that are not one model: it ends in a release that is whole and says what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from conftest import by_plan, with_stages
from test_check import rows, write_recipe
from triptych import results
from triptych.cycle import cycle, plan
from triptych.data.files import read_ratings
from triptych.errors import AuditError, RecipeError, RewardError
from triptych.execution import execute
from triptych.family import Family
from triptych.feedback.labelling import Labelled
from triptych.feedback.rated import implied
from triptych.pipeline.runner import Runner, Until
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Prompt, Rating, user
from triptych.release.verification import verify
from triptych.reward.registry import open_reward

TINY = Path(__file__).parent / "tiny.yaml"
SHORT = ["improve.rounds=1", "improve.steps=1", "reward.audit.required=false"]
RULES = "reward={kind: rules, audit: {required: false}, rules: [{rule: length, most: 12}, {rule: repetition}]}"
MIXTURE = (
    "reward={kind: mixture, audit: {required: false}, parts: ["
    "{name: people, weight: 1, reward: {kind: pairwise, learning_rate: 1e-3, batch_pairs: 8, epochs: 1}}, "
    "{name: itself, weight: 1, reward: {kind: judge}}, "
    "{name: form, weight: 0.5, reward: {kind: rules, rules: [{rule: function, function: mine.py:score}]}}]}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A folder with the tiny recipe; data, Base and Instruct are computed once for all of its runs."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in ("run", "alone", "failing"):
        with_stages(folder / name, tiny_run, "data", "base", "instruct")
    (folder / "recipe.yaml").write_text(TINY.read_text())
    (folder / "mine.py").write_text("def score(conversation):\n    return -len(conversation.answer) / 100\n")
    return folder


def run_cycle(place: Path, *overrides: str) -> tuple[Family, Path]:
    """What the tiny recipe in a folder came to, and its release, which is whole."""
    recipe = load(place / "recipe.yaml", overrides)
    runner, family = Runner(place / "run", Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    results.write(recipe, family, runner)
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(recipe)]
    assert verify(place / "run" / "release") == []
    return family, place / "run" / "release"


def run(place: Path, *overrides: str) -> tuple[Family, Path]:
    return run_cycle(place, *overrides, *SHORT)


def test_without_rounds_a_reward_is_trained_audited_and_released_and_a_round_goes_on_from_it(place: Path) -> None:
    recipe = load(place / "recipe.yaml", ["improve.rounds=0", "reward.audit.required=false", "gate.judge=exact"])
    runner, family = Runner(place / "alone", Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(recipe)] == [
        "data", "base", "instruct", "round-1/feedback", "round-1/reward", "round-1/audit", "decoding/instruct",
        "test/base", "test/instruct",
    ]
    summary = results.write(recipe, family, runner)
    assert summary.rounds == []
    assert [(audit.round, audit.verdict) for audit in summary.audits] == [(1, runner.done[5].result.verdict)]
    assert [(model.name, model.champion) for model in summary.models] == [("base, few-shot", False), ("instruct", True)]
    assert all(model.reward is not None for model in summary.models)
    release = place / "alone" / "release"
    assert verify(release) == []
    assert AutoModelForSequenceClassification.from_pretrained(release / "reward").config.num_labels == 1
    cards = [path.read_text() for path in sorted(release.rglob("README.md"))]
    assert len(cards) == 4
    assert not any("rounds of improvement" in card or "improved against" in card for card in cards)
    assert family.instruct is not None
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["models"]["instruct"]["fingerprint"] == family.instruct.fingerprint

    again = Runner(place / "alone", Silent(), recipe.seed, until="round-1/improve")
    with pytest.raises(Until):
        cycle(load(place / "recipe.yaml", SHORT), again, Family())
    assert [artifact.digest for artifact in again.done[:7]] == [artifact.digest for artifact in runner.done[:7]]


def test_without_rounds_a_failed_audit_releases_nothing(place: Path) -> None:
    recipe = load(place / "recipe.yaml", ["improve.rounds=0", "reward.audit={required: true, least_prompts: 1000}"])
    with pytest.raises(AuditError, match="1000 are the least that count"):
        execute(recipe, place / "failing", Silent())
    assert json.loads((place / "failing" / "summary.json").read_text())["release"] is None
    assert not (place / "failing" / "release").exists()


def test_rules_are_released_as_what_they_are(place: Path) -> None:
    family, release = run(place, RULES)
    assert {path.name for path in (release / "reward").iterdir()} == {"README.md", "audit.json", "reward.json"}
    assert "This is no model" in (release / "reward" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" not in (release / "README.md").read_text()
    assert open_reward(release / "reward").name == "rules"
    candidate = family.rounds[0].candidate
    assert candidate is not None
    rows = [json.loads(line) for line in (candidate.folder / "curve.jsonl").read_text().splitlines()]
    assert {"reward/length", "reward/repetition"} <= rows[1].keys()
    assert any(name.startswith("reward/length/") for name in rows[1])


def test_an_ensemble_is_released_as_its_models(place: Path) -> None:
    family, release = run(place, "reward.kind=ensemble", "reward.members=2")
    named = {path.name for path in (release / "reward").iterdir()}
    assert named == {"README.md", "audit.json", "reward.json", "models"}
    for member in ("0", "1"):
        AutoModelForSequenceClassification.from_pretrained(release / "reward" / "models" / member)
    reward = family.rounds[0].reward
    assert reward is not None
    assert reward.audit is not None
    one, two = (reward.parts[name] for name in ("0", "1"))
    assert one.name == "round-1/reward/0"
    weights = [(each.folder / "model" / "model.safetensors").read_bytes() for each in (one, two)]
    assert weights[0] != weights[1]


def test_a_mixtures_parts_are_stages_and_its_functions_are_not_run_from_a_release(place: Path) -> None:
    family, release = run(place, MIXTURE)
    assert family.rounds[0].reward is not None
    assert set(family.rounds[0].reward.parts) == {"people", "itself", "form", ""}
    assert {path.name for path in (release / "reward" / "parts").iterdir()} == {"people", "itself", "form"}
    assert (release / "reward" / "parts" / "form" / "functions" / "0.py").is_file()
    with pytest.raises(RewardError, match=r"mine\.py"):
        open_reward(release / "reward", models={"policy": release / "instruct"})
    told = [path.read_text() for path in release.rglob("*.json")]
    assert not any(str(place) in text for text in told)


SELF_REWARDING = (
    "reward={kind: judge, model: policy, audit: {required: false}}",
    "improve={method: dpo, steps: 1, prompts_per_step: 4, group_size: 4, max_tokens: 24, eval_prompts: 8, rounds: 2}",
)


def test_a_policy_that_rewards_itself_is_measured_as_a_judge_in_every_round(place: Path) -> None:
    recipe = load(place / "recipe.yaml", SELF_REWARDING)
    runner, family = Runner(place / "run", Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(recipe)]
    for round in family.rounds:
        assert round.reward is not None
        assert round.reward.audit is not None
        assert 0 <= round.reward.audit.result.accuracy <= 1
        assert round.reward.artifact.manifest["parents"]["policy"]["stage"] in ("instruct", "round-1/improve")
        assert round.candidate is not None
        assert round.candidate.result.method == "dpo"


JUDGED = ("feedback=[{judged: {by: {kind: judge}, prompts: 24, answers: 4, least_difference: 1e-9, max_tokens: 24, "
          "heldout: 0.4}}]")


def test_a_language_model_labels_what_the_champion_writes(place: Path) -> None:
    family, _ = run(place, JUDGED)
    feedback = family.rounds[0].feedback
    assert feedback is not None
    assert isinstance(feedback.result, Labelled)
    assert feedback.result.labelled_by == "a language model"
    assert feedback.result.comparisons > 0
    assert feedback.result.ceiling is None


@pytest.mark.parametrize(("override", "message"), [
    ("reward.kind=regression", "feedback must name ratings"),
    ("reward={kind: magic}", "kind must be one of pairwise, regression, ensemble, rules, judge, remote, mixture"),
    ("reward={kind: rules, rules: [{rule: function, function: ../mine.py:score}]}", "no such file"),
    ("reward={kind: rules, rules: [{rule: length, most: 1, least: 2}]}", "must be at least"),
    ("reward={kind: rules, epochs: 2, rules: [{rule: refusal}]}", "reward.epochs"),
    ("reward={kind: judge, endpoint: {url: 'ftp://x', model: m}}", "must begin with https"),
])
def test_what_a_reward_cannot_be_is_said_with_what_would_be_right(place: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        load(place / "recipe.yaml", [override])


def test_who_labels_may_not_judge_at_the_gate(place: Path) -> None:
    by = "{kind: judge, endpoint: {url: 'http://127.0.0.1:9/v1', model: m}}"
    with pytest.raises(RecipeError, match=r"gate\.judge labels the comparisons too"):
        load(place / "recipe.yaml", [f"feedback=[{{judged: {{by: {by}}}}}]", f"gate.judge={by}"])


@pytest.mark.parametrize("reward", [
    "{kind: judge, endpoint: {url: 'http://127.0.0.1:9/v1/', model: m, parallel: 2}}",
    "{kind: mixture, parts: [{name: a, weight: 1, reward: {kind: judge, endpoint: {url: 'http://127.0.0.1:9/v1', "
    "model: m}}}, {name: b, weight: 1, reward: {kind: rules, rules: [{rule: refusal}]}}]}",
])
def test_who_rewards_may_not_judge_at_the_gate_however_patiently_it_is_asked(place: Path, reward: str) -> None:
    judge = "gate.judge={kind: judge, endpoint: {url: 'http://127.0.0.1:9/v1', model: m, seconds: 7}}"
    with pytest.raises(RecipeError, match=r"gate\.judge trains the policy too"):
        load(place / "recipe.yaml", [f"reward={reward}", judge])
    load(place / "recipe.yaml", [f"reward={reward}", judge.replace("model: m", "model: another")])


def test_a_function_outside_the_recipes_folder_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def score(conversation): return 1\n")
    override = f"reward={{kind: rules, rules: [{{rule: function, function: {tmp_path}/other.py:score}}]}}"
    with pytest.raises(RecipeError, match="own folder"):
        load(place / "recipe.yaml", [override])


def test_a_reward_of_ratings_alone_is_audited_on_what_they_imply(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    rows(tmp_path / "ratings.jsonl", [
        {"prompt": f"Which is {i}?", "response": text, "scores": {"kind": kind, "short": 5 - kind}}
        for i in range(120) for text, kind in ((f"Dear friend, this is {i}.", 4), (f"No, not {i}.", 1))
    ])
    loaded = load(recipe, [
        "feedback=[{ratings: ratings.jsonl}]",
        "reward={kind: regression, weights: {kind: 1.0}, epochs: 4, batch_pairs: 8}",
        "gate={judge: {kind: rules, rules: [{rule: length, most: 50}]}}", "improve.rounds=1",
    ])
    runner, family = Runner(tmp_path / "run", Silent(), loaded.seed), Family()
    with pytest.raises(AuditError, match="'longer wins'"):  # the better answer is the longer one
        cycle(loaded, runner, family)
    made = [artifact.name for artifact in runner.done]
    assert made == [stage.name for stage in plan(loaded)][: len(made)]
    assert made[-3:] == ["round-1/rated", "round-1/reward", "round-1/audit"]
    audited = runner.done[-1].result
    assert audited.comparisons > 5
    assert 0 <= audited.accuracy <= 1
    summary = results.write(loaded, family, runner)
    assert [each.comparisons for each in summary.audits] == [audited.comparisons]
    assert family.data is not None
    (learnt,) = results._learnt_by_reward(loaded, family.data, None)
    assert learnt.name == "ratings_train.jsonl"
    assert learnt.rows == len(read_ratings(family.data.folder / learnt.name))


def test_ratings_imply_the_better_sum_and_ties_imply_nothing() -> None:
    def rated(prompt: str, response: str, **scores: float) -> Rating:
        return Rating(Prompt(user(prompt)), response, scores)

    found = implied([
        rated("p", "a", kind=1, right=1), rated("p", "b", kind=0, right=3), rated("p", "c", kind=2, right=0.5),
        rated("q", "d", kind=1, right=1), rated("q", "d\n", kind=2, right=1), rated("q", "e", kind=5),
    ], {"kind": 1.0, "right": 2.0})
    assert [(row.chosen, row.rejected) for row in found] == [("b", "a"), ("b", "c")]
