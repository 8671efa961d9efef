"""The recipe: composed of the stages' settings, flat in its file, its files found as it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.audit.stage import Audit
from triptych.configuration import UserFile, identity_of
from triptych.cycle import plan
from triptych.errors import RecipeError
from triptych.evaluate.answers import Answering
from triptych.evaluate.gate import Gate
from triptych.feedback.labelling import Labelling
from triptych.improve.dpo import Dpo
from triptych.instruct.finetuning import Finetuning
from triptych.recipe import Recipe, TrainedJudge, load
from triptych.reward.mixture import MixtureReward

RECIPE = """\
name: files
base: {from: model, chat_template: own.jinja, text: [text.txt]}
instruct: {data: [data/answers.jsonl], epochs: 3}
feedback:
  - file: preferences.jsonl
  - thumbs: thumbs.jsonl
  - judged: {by: {kind: judge, model: asked, template: question.jinja}, prompts: 20}
reward:
  kind: mixture
  parts:
    - {name: learnt, weight: 1, reward: {batch_pairs: 4}}
    - {name: own, weight: 1, reward: {kind: rules, rules: [{rule: function, function: 'mine.py:score'}]}}
  audit: {least_prompts: 7, required: false}
improve: {prompts: [owner/prompts], method: dpo, loss: ipo, rounds: 2}
compare: [{method: rloo, kl_coefficient: 0.5}]
gate: {judge: {share_of_feedback: 0.4, batch_pairs: 8}, people: verdicts.jsonl, prompts: 50, error: 0.1}
release: {sign: {key: private.pem}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in ("model", "asked"):
        (tmp_path / name).mkdir()
    for name in ("own.jinja", "question.jinja", "mine.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_each_stage_has_its_own_settings_whole(path: Path) -> None:
    recipe = load(path)
    assert recipe.finetuning == Finetuning(epochs=3)
    assert (recipe.improve.rounds, recipe.improve.method) == (2, Dpo(loss="ipo"))
    assert isinstance(recipe.reward.model, MixtureReward)
    assert (recipe.reward.audit.checks, recipe.reward.audit.required) == (Audit(least_prompts=7), False)
    assert recipe.labelling == Labelling(prompts=20)
    assert (recipe.gate.answering, recipe.gate.decision) == (Answering(prompts=50), Gate(error=0.1))
    assert isinstance(recipe.gate.judge, TrainedJudge)
    assert (recipe.gate.judge.share_of_feedback, recipe.gate.judge.model.batch_pairs) == (0.4, 8)
    configs = {stage.name: stage.config for stage in plan(recipe)}
    assert configs["instruct"] is recipe.finetuning
    assert configs["judge"] is recipe.gate.judge.model
    assert configs["round-2/improve"] is recipe.improve.method
    assert configs["round-2/gate"] is recipe.gate.decision


def test_files_are_found_as_the_recipe_is_read_and_only_their_names_are_kept(path: Path) -> None:
    recipe, folder = load(path), path.parent
    assert recipe.base.from_ == UserFile("model", folder / "model")
    assert recipe.base.chat_template == UserFile("own.jinja", folder / "own.jinja")
    assert recipe.sources == {
        "text.txt": folder / "text.txt", "data/answers.jsonl": folder / "data/answers.jsonl",
        "preferences.jsonl": folder / "preferences.jsonl", "thumbs.jsonl": folder / "thumbs.jsonl",
        "owner/prompts": Path("owner/prompts"),  # a dataset's
    }
    assert recipe.reward_files == {name: folder / name for name in ("mine.py", "asked", "question.jinja")}
    assert recipe.gate.people is not None
    assert recipe.gate.people.path == folder / "verdicts.jsonl"
    assert recipe.release.sign is not None
    assert recipe.release.sign.key == UserFile("private.pem", folder / "private.pem")
    for stage in plan(recipe):
        assert str(folder) not in stage.config.model_dump_json()


def test_a_recipe_is_written_as_it_is_read(path: Path) -> None:
    recipe = load(path)
    written = recipe.model_dump(mode="json", by_alias=True)
    given = yaml.safe_load(RECIPE)
    assert {**given["improve"], "prompts": written["improve"]["prompts"]}.items() <= written["improve"].items()
    assert written["improve"]["prompts"][0]["file"] == "owner/prompts"
    assert {key: written["gate"][key] for key in ("people", "prompts", "error")} == {
        "people": "verdicts.jsonl", "prompts": 50, "error": 0.1,
    }
    assert written["reward"]["audit"]["least_prompts"] == 7
    path.write_text(yaml.safe_dump(written))
    assert load(path) == recipe
    assert Recipe.model_validate(written).model_dump(mode="json", by_alias=True) == written


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("feedback.0={fil: x}", "feedback.0: missing one of file, ratings, thumbs, exact, judged, people, which says "
         "of what kind it is"),
        ("feedback.0=x.jsonl", "feedback.0: must be a mapping of fields, got 'x.jsonl'"),
        ("feedback.0.people=x.jsonl", "feedback.0.people: unknown field; it does not go with the other fields here"),
        ("feedback.2.judged.prompts=1", "feedback.2.judged.prompts: must be a whole number at least 10, got 1"),
        ("feedback.2.judged.by.model=3", "feedback.2.judged.by.model: must be text, got 3; put it in quotes"),
        ("instruct.data=[3]", "instruct.data.0.file: must be text, got 3; put it in quotes"),
        ("instruct.data=[{file: x, splt: y}]", "instruct.data.0.splt: unknown field; did you mean split?"),
        ("feedback.1.fields=x", "feedback.1.fields: must be a mapping of fields, got 'x'"),
        ("instruct.epoch=1", "instruct.epoch: unknown field; did you mean epochs?"),
        ("reward.parts.0.reward.batch_pair=1", "reward.parts.0.reward.batch_pair: unknown field; did you mean "
         "batch_pairs?"),
        ("reward.audit.require=true", "reward.audit.require: unknown field; did you mean required?"),
        ("reward.epochs=2", "reward.epochs: unknown field; it does not go with the other fields here"),
        ("improve.round=2", "improve.round: unknown field; did you mean rounds?"),
        ("compare.0.rounds=2", "compare.0.rounds: unknown field; "),
        ("compare.0={method: rlo}", "compare.0: method must be one of grpo, gspo, rloo, ppo, dpo, kto, best_of_n, got "
         "'rlo'; did you mean rloo?"),
        ("gate.judge=exat", "gate.judge: must be exact, got 'exat'; did you mean exact?"),
        ("gate.judge={kind: rule}", "gate.judge: kind must be one of exact, pairwise, rules, judge, remote, taken, got "
         "'rule'; did you mean rules?"),
        ("gate.judge.share_of_feedback=1", "gate.judge.share_of_feedback: must be a number greater than 0 and less "
         "than 1, got 1"),
        ("gate.people=x.json", "gate.people: must be a .jsonl file, which people's answers are added to, got 'x.json'"),
        ("gate.prompt=1", "gate.prompt: unknown field; did you mean prompts?"),
        ("decoding.temperatures=[0, -1]", "decoding.temperatures.1: must be a number"),
    ],
)
def test_a_wrong_field_is_named_as_the_recipe_has_it(path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(path, [override])
    (problem,) = str(caught.value).splitlines()
    assert problem.startswith(f"--set {override}: {message}")


def test_adapters_are_released_where_every_stage_has_them(path: Path) -> None:
    overrides = ["release.form=adapters"]
    for stage, field in (("instruct", "instruct.lora"), ("improve", "improve.lora"),
                         ("reward", "reward.parts.0.reward.lora")):
        with pytest.raises(RecipeError, match=f"release.form is adapters, and {stage} is trained whole: give it `lora"):
            load(path, overrides)
        overrides.append(f"{field}={{}}")
    assert load(path, overrides).release.form == "adapters"


def test_a_line_of_the_file_is_named(path: Path) -> None:
    path.write_text(RECIPE.replace("error: 0.1", "eror: 0.1").replace("method: dpo", "method: dpo, nl: 1"))
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:14: improve.nl: unknown field; did you mean nll?",
        f"{path}:16: gate.eror: unknown field; did you mean error?",
    ]


def test_how_patiently_something_is_done_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    tiny = Path(__file__).parent / "tiny.yaml"
    judge = "{kind: judge, ask: score, endpoint: {url: 'http://127.0.0.1:9/v1', model: m%s}}"

    def identities(pace: str, *more: str) -> list[Any]:
        mixture = f"reward={{kind: mixture, parts: [{{name: a, weight: 1, reward: {judge % pace}}}]}}"
        recipe = load(tiny, [mixture, "reward.audit.required=false", *more])
        return [identity_of(recipe.reward.model), identity_of(recipe.improve), identity_of(recipe)]

    plain = identities("")
    assert identities(", parallel: 9, retries: 1, seconds: 5, requests_per_minute: 7", "improve.patience=9") == plain
    assert identities(", key_env: KEY") != plain
    assert identities("", "improve.learning_rate=1e-6") != plain
    assert "patience" not in json.dumps(plain)
    kept = load(tiny, ["improve.patience=9"]).improve.model_dump(mode="json")
    assert kept["patience"] == 9  # the recipe itself is written down whole
