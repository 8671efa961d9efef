"""A reward that was made elsewhere: looked over first, taken, audited, and a part of the cycle like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from conftest import with_stages
from test_check import tiny_model, write_recipe
from test_reward_cycle import run_cycle
from triptych.configuration import UserFile
from triptych.cycle import cycle, plan
from triptych.data.folder import DataFolder
from triptych.engine import hub
from triptych.engine.models import load_reward, load_tokenizer, save
from triptych.engine.scoring import RewardModel
from triptych.errors import ModelError, RecipeError, RewardError
from triptych.family import Family
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import StageContext
from triptych.preflight import check, memory
from triptych.preflight.costs import Machine, Texts, costs
from triptych.preflight.memory import Architecture
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.records import Conversation, Prompt
from triptych.reward.judge import JudgeReward
from triptych.reward.registry import open_reward
from triptych.reward.taken import TakenReward
from triptych.reward.taking import RewardTaken, offered, take_reward
from triptych.reward_names import open_named

TINY = Path(__file__).parent / "tiny.yaml"
SHORT = ["improve.rounds=1", "improve.steps=1"]
ASKED = [Conversation(Prompt.of("Who are you?"), answer) for answer in ("A model.", "Go away.")]


def write_rules(folder: Path, **rule: object) -> Path:
    folder.mkdir()
    (folder / "reward.json").write_text(json.dumps({"kind": "rules", "rules": [rule or {"rule": "length", "most": 9}]}))
    return folder


def write_reward(folder: Path) -> Path:
    """A random reward model with a tokenizer of its own."""
    model = tiny_model(folder.with_name(f"{folder.name}-policy"))
    save(load_reward(model, fresh=True), load_tokenizer(model), folder)
    return folder


def settings(place: object, **more: object) -> TakenReward:
    return TakenReward.model_validate({"from": str(place), **more})


def take(config: TakenReward, base: Path, folder: Path) -> tuple[RewardTaken, Path]:
    folder.mkdir()
    context = StageContext(folder, folder, Silent(), 1, checkpoint_seconds=60.0)
    return take_reward(context, config, base, {}), folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A folder with the tiny recipe, the release of a run of it without rounds in `mine`, and its Base as a stage's."""
    folder = tmp_path_factory.mktemp("taken")
    (folder / "recipe.yaml").write_text(TINY.read_text())
    with_stages(folder / "run", tiny_run, "data", "base", "instruct")
    run_cycle(folder, "improve.rounds=0")
    shutil.copytree(folder / "run" / "release", folder / "mine")
    (folder / "base").mkdir()
    (folder / "base" / "model").symlink_to(folder / "mine" / "base")
    write_reward(folder / "theirs")
    return folder


def test_a_reward_with_the_familys_tokenizer_is_audited_drives_a_round_and_is_released(place: Path) -> None:
    family, release = run_cycle(place, "reward={from: mine, audit: {required: false}}", *SHORT)
    reward = family.rounds[0].reward
    assert reward is not None
    assert reward.artifact.name == "taken/reward"
    assert isinstance(reward.artifact.result, RewardTaken)
    assert (reward.artifact.result.source, reward.artifact.result.released) == ("mine", True)
    assert reward.audit is not None
    assert reward.audit.result.comparisons > 0
    assert family.rounds[0].candidate is not None
    assert family.rounds[0].candidate.manifest["parents"]["reward"]["stage"] == "taken/reward"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (release / "reward" / name).read_bytes() == (place / "mine" / "reward" / name).read_bytes()
    told = json.loads((release / "manifest.json").read_text())["models"]["reward"]
    assert told["parents"] == [{"name": "mine", "digest": reward.artifact.result.digest}]
    assert told["data"] == []
    card = (release / "reward" / "README.md").read_text()
    assert "what it was trained on is not known here" in card


def test_a_reward_with_another_tokenizer_drives_a_round_and_is_named_in_the_release(place: Path) -> None:
    family, release = run_cycle(place, "reward={from: theirs, audit: {required: false}}", *SHORT)
    reward = family.rounds[0].reward
    assert reward is not None
    assert isinstance(reward.artifact.result, RewardTaken)
    assert not reward.artifact.result.released
    assert {path.name for path in (release / "reward").iterdir()} == {"README.md", "audit.json", "reward.json"}
    told = json.loads((release / "reward" / "reward.json").read_text())
    assert told == {"kind": "taken", "model": "theirs", "model_digest": reward.artifact.result.digest}
    assert "**The model is not here**: theirs" in (release / "reward" / "README.md").read_text()
    with pytest.raises(RewardError, match="is the model 'theirs', which is not in this folder; --allow-model"):
        open_reward(release / "reward")
    opened = open_reward(release / "reward", models={"theirs": place / "theirs"})
    assert opened.score(ASKED) == reward.scorer.score(ASKED) == RewardModel(place / "theirs").score(ASKED)


def test_it_may_be_a_part_of_a_mixture_and_judge_at_the_gate(place: Path) -> None:
    mixture = (
        "reward={kind: mixture, audit: {required: false}, parts: [{name: other, weight: 2, reward: {from: theirs}}, "
        "{name: form, weight: 1, reward: {kind: rules, rules: [{rule: length, most: 9}]}}]}"
    )
    family, release = run_cycle(place, mixture, "gate.judge={from: mine}", *SHORT)
    assert family.rounds[0].reward is not None
    assert set(family.rounds[0].reward.parts) == {"", "other", "form"}
    alone, length = RewardModel(place / "theirs").score(ASKED), [1.0, 1.0]
    mixed = [2 * score + fits for score, fits in zip(alone, length, strict=True)]
    assert family.rounds[0].reward.scorer.score(ASKED) == pytest.approx(mixed)
    assert {path.name for path in (release / "reward" / "parts" / "other").iterdir()} == {"reward.json"}
    assert family.judge is not None
    assert family.judge.name == "mine"
    assert family.judging is not None
    assert family.judging.artifact.name == "taken/judge"


def test_what_names_more_than_the_recipe_allows_stops_before_anything_is_computed(place: Path) -> None:
    folder = write_rules(place / "code", rule="function", function="mine.py:score")
    (folder / "functions").mkdir()
    (folder / "functions" / "0.py").write_text("def score(conversation):\n    return 0.25\n")
    recipe = load(place / "recipe.yaml", ["reward={from: code, audit: {required: false}}"])
    runner = Runner(place / "refused", Silent(), recipe.seed)
    with pytest.raises(RewardError, match=r"(?s)would run mine\.py:score.*as `allow_functions: true`"):
        cycle(recipe, runner, Family())
    assert runner.done == []
    config = settings(folder, allow_functions=True)
    _, made = take(config, place / "base", place / "allowed")
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()) == [
        "functions/0.py", "reward.json",
    ]


def test_a_classifier_of_the_hub_is_taken_from_its_cache(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, revision = tmp_path / "models--someone--judge", "a" * 40
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    for number, path in enumerate(sorted((place / "theirs").iterdir())):
        shutil.copy(path, root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    download: Callable[..., Any] = snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **more: download(
        name, **more, cache_dir=tmp_path, local_files_only=True
    ))
    config = settings("someone/judge")
    assert config.from_ == UserFile("someone/judge", Path("someone/judge"))
    taken, made = take(config, place / "base", tmp_path / "made")
    assert (taken.source, taken.hub, taken.digest) == ("someone/judge", True, revision)
    assert not any(path.is_symlink() for path in made.rglob("*"))
    assert open_reward(made).score(ASKED) == RewardModel(place / "theirs").score(ASKED)
    with pytest.raises(ModelError, match="hf download someone/other"):
        offered(settings("someone/other"))


def test_what_is_no_reward_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    policy = tiny_model(tmp_path / "policy")
    with pytest.raises(RewardError, match="is LlamaForCausalLM; a reward is a sequence classifier"):
        offered(settings(policy))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match="no reward is here"):
        offered(settings(tmp_path / "empty"))
    with pytest.raises(RewardError, match="neither a name on the Hub nor an address"):
        offered(settings(tmp_path / "nowhere"))
    itself = tmp_path / "itself"
    itself.mkdir()
    (itself / "reward.json").write_text('{"kind": "judge", "model": "policy"}')
    (itself / "template.jinja").write_text("{{ prompt }}")
    with pytest.raises(RewardError, match="asks the policy, which is this run's own"):
        offered(settings(itself))
    mixed = tmp_path / "mixed"
    write_rules(tmp_path / "rules")
    (mixed / "parts").mkdir(parents=True)
    shutil.copytree(tmp_path / "rules", mixed / "parts" / "form")
    (mixed / "reward.json").write_text('{"kind": "mixture", "parts": [{"name": "form", "weight": 1}]}')
    assert offered(settings(mixed)).models == []
    with pytest.raises(RewardError, match="a mixture in a mixture"):
        offered(settings(mixed), is_part=True)


def test_models_of_an_ensemble_need_the_familys_tokenizer(place: Path, tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    shutil.copytree(place / "theirs", ensemble / "models" / "0")
    (ensemble / "reward.json").write_text('{"kind": "ensemble", "members": 1, "penalty": 0}')
    with pytest.raises(RewardError, match="the vocabulary of a model of it is not the Base's"):
        take(settings(ensemble), place / "base", tmp_path / "refused")
    policy = tmp_path / "base"
    (policy).mkdir()
    (policy / "model").symlink_to(place / "theirs")
    taken, made = take(settings(ensemble), policy, tmp_path / "made")
    assert taken.released
    assert open_reward(made).score(ASKED) == pytest.approx(RewardModel(place / "theirs").score(ASKED))


@pytest.mark.parametrize(("overrides", "message"), [
    (["feedback=[]", "reward={from: mine}"], "mine, is audited before it trains anything: feedback must name compar"),
    (["reward={from: mine}", "gate.judge={from: mine}"], r"gate\.judge trains the policy too"),
    (["reward={from: 'https://here/v1'}"], "name the model that is asked there too, as in https://here/v1#MODEL"),
    (["reward={from: mine, epochs: 2}"], r"reward\.epochs"),
    (["reward={from: 'http://here/v1#m', key_env: KEY}"], "would be sent a key in the clear"),
])
def test_what_does_not_go_together_is_said(place: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(place / "recipe.yaml", overrides)


def test_an_address_is_a_language_model_that_is_asked(place: Path) -> None:
    reward = "reward={from: 'https://here/v1#m', key_env: KEY, ask: compare, seconds: 9}"
    recipe: Recipe = load(place / "recipe.yaml", [reward])
    assert recipe.reward.model == JudgeReward.model_validate(
        {"endpoint": {"url": "https://here/v1", "model": "m", "key_env": "KEY", "seconds": 9}, "ask": "compare"}
    )
    again = Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True))
    assert again.reward == recipe.reward
    taken = load(place / "recipe.yaml", ["reward={from: mine}"])
    assert Recipe.model_validate(taken.model_dump(mode="json", by_alias=True)).reward.model.model_dump() == (
        taken.reward.model.model_dump()
    )


def test_check_looks_over_a_reward_made_elsewhere_and_counts_its_size(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    write_reward(tmp_path / "theirs")
    small = check.check(path, ["reward={from: theirs}", "gate.judge={kind: rules, rules: [{rule: repetition}]}"])
    assert small.problems == []
    assert not any("is not released" in note for note in small.notes)  # its tokenizer is the Base's
    with (tmp_path / "theirs" / "chat_template.jinja").open("a") as template:
        template.write("{# #}")
    other = check.check(path, ["reward={from: theirs}", "gate.judge={kind: rules, rules: [{rule: repetition}]}"])
    assert other.problems == []
    assert "reward: the chat template is not the Base's; it scores like any, and is not released" in other.notes
    assert [cost.stage for cost in small.costs][:2] == ["base", "taken/reward"]
    counted = {"taken/reward": 10**9}
    recipe = load(path, ["reward={from: theirs}", "gate.judge={kind: rules, rules: [{rule: repetition}]}"])
    model = Architecture(10**6, 100, 16, 32, 2, 2, 16, 8, 512)
    few = dict.fromkeys(("demonstrations", "prompts_improve", "prompts_validation", "prompts_gate", "prompts_test",
                         "prompts_test, few-shot", "comparisons_train"), Texts.of([9], [9]))
    alike, larger = (costs(plan(recipe), recipe, model, few, Machine(1e9, 1e9), taken) for taken in (None, counted))
    more = {one.stage: other.gib - one.gib for one, other in zip(alike, larger, strict=True)}
    beyond = pytest.approx(memory.itemsize() * (10**9 - 10**6) / 2**30)
    assert {stage for stage, gib in more.items() if gib} == {
        "taken/reward", "round-1/audit", "decoding/instruct", "round-1/improve", "round-1/decoding", "round-1/gate",
        "test/base", "test/instruct", "test/round-1",
    }
    assert more["round-1/improve"] == beyond
    write_rules(tmp_path / "code", rule="function", function="mine.py:score")
    bad = check.check(path, ["reward={from: model}", "gate.judge={from: code}"])
    assert any("reward: " in problem and "a reward is a sequence classifier" in problem for problem in bad.problems)
    assert any(problem.startswith("gate.judge: ") and "functions/0.py" in problem for problem in bad.problems)


def test_a_reward_that_learnt_what_would_audit_it_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    write_reward(tmp_path / "made" / "model")
    rows = (tmp_path / "preferences.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "made" / "learnt.jsonl").write_text("".join(rows[:500]))
    overrides = ["reward={from: made}", "gate.judge={kind: rules, rules: [{rule: repetition}]}"]
    recipe = load(path, overrides)
    runner = Runner(tmp_path / "run", Silent(), recipe.seed)
    with pytest.raises(RewardError) as raised:
        cycle(recipe, runner, Family())
    assert [artifact.name for artifact in runner.done] == ["data"]
    heldout = {row.prompt.key for row in DataFolder(runner.done[0].folder).comparisons("heldout").read()}
    learnt = {Prompt.of(json.loads(row)["prompt"]).key for row in rows[:500]}
    assert 100 < len(heldout & learnt) < len(heldout)
    said = f"made: it learnt {len(heldout & learnt)} of the {len(heldout)} prompts that it would be audited on"
    assert said in str(raised.value)
    assert [problem for problem in check.check(path, overrides).problems if said in problem]
    (tmp_path / "made" / "learnt.jsonl").write_text("".join(rows[:1]).replace("Which is 0", "Which is another"))
    assert check.check(path, overrides).problems == []


def test_references_that_rules_made_elsewhere_need_are_looked_for_first(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    write_rules(tmp_path / "rules", rule="exact")
    problems = check.check(path, ["reward={from: rules, audit: {required: false}}"]).problems
    assert any("questions.jsonl:1" in problem and "a rule compares answers with it" in problem for problem in problems)


def test_settings_that_a_command_is_given_may_take_a_reward_too(place: Path) -> None:
    (place / "mixed.yaml").write_text(
        "kind: mixture\nparts:\n  - {name: other, weight: 2, reward: {from: theirs}}\n"
        "  - {name: form, weight: 1, reward: {kind: rules, rules: [{rule: length, most: 9}]}}\n"
    )
    alone = RewardModel(place / "theirs").score(ASKED)
    assert open_named(place / "mixed.yaml").score(ASKED) == pytest.approx([2 * score + 1 for score in alone])
    (place / "other.yaml").write_text("{from: theirs}\n")
    assert open_named(place / "other.yaml").score(ASKED) == alone
