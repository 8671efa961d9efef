"""Tasks: prompts of their own on which every model is measured at the end, by rules of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import by_plan
from test_check import rows, write_recipe
from triptych import results
from triptych.cli import app
from triptych.cycle import cycle, plan, prepare, prompts_of
from triptych.data.files import read_prompts
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import DataError, RecipeError
from triptych.family import Family
from triptych.pipeline.runner import Runner, Until
from triptych.preflight import check
from triptych.progress import Silent
from triptych.recipe import load
from triptych.report.charts import number, percent
from triptych.report.summary import Summary
from triptych.statistics.intervals import mean_interval
from triptych.storage import read_rows

SHORT: dict[str, Any] = {"kind": "rules", "rules": [{"rule": "length", "most": 9}]}
TASKS: list[dict[str, Any]] = [
    {"name": "translation", "file": "translations.jsonl", "rules": [{"rule": "chrf"}]},
    {"name": "answering", "file": "quiz.jsonl", "fields": {"reference": "right"}, "rows": [1, 5],
     "rules": [{"rule": "f1"}, {"rule": "length", "most": 400, "weight": 0.5}]},
    {"name": "instructions", "file": "asked.jsonl", "constrain": {"only": ["punctuation:no_comma"]},
     "rules": [{"rule": "instructions", "strict": True}]},
]


def recipe_of(folder: Path, tasks: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A recipe that is run in seconds, with three tasks."""
    rows(folder / "translations.jsonl", [{"prompt": f"Translate {i}!", "reference": f"lumi {i}"} for i in range(7)])
    rows(folder / "quiz.jsonl", [{"prompt": f"Who is {i}?", "right": f"the {i}th"} for i in range(9)])
    rows(folder / "asked.jsonl", [{"prompt": f"Tell me of {i}."} for i in range(6)])
    return write_recipe(folder, **{
        "base": {"from": "model", "chat_template": "chatml"},  # the recipe's, so that the Base is shown examples
        "feedback": [], "gate": {"judge": SHORT}, "reward": SHORT, "decoding": {"max_tokens": 24, "temperature": 1.0},
        "splits": {"test": 8, "gate": 8, "validation": 8}, "instruct": {"data": ["answers.jsonl"], "epochs": 1},
        "improve": {"prompts": ["questions.jsonl"], "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_tokens": 8,
                    "eval_prompts": 8},
        "evaluate": {"best_of": 0, "shots": 1, "tasks": TASKS if tasks is None else tasks},
    } | changes)


def run(path: Path) -> tuple[Family, Runner, Summary]:
    """As `triptych run` does, into runs/tiny beside the recipe."""
    recipe = load(path)
    runner, family = Runner(path.parent / "runs/tiny", Silent(), recipe.seed), Family()
    cycle(recipe, runner, family)
    return family, runner, results.write(recipe, family, runner)


def computed(runner: Runner) -> list[str]:
    """The stages that were computed, by whichever command, in order."""
    lines = [json.loads(line) for line in runner.ledger.path.read_text().splitlines()]
    return [line["stage"] for line in lines if line["event"] == "finished"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family, Runner, Summary]:
    path = recipe_of(tmp_path_factory.mktemp("tasks"))
    return path, *run(path)


def scores_of(family: Family, task: int, model: int) -> list[float]:
    measured = family.tasks[task].tests[model].artifact
    return [row["deployed"]["judge"] for row in read_rows(measured / "answers.jsonl")]


def test_every_model_is_measured_on_every_task_by_its_own_rules(ran: tuple[Path, Family, Runner, Summary]) -> None:
    path, family, runner, summary = ran
    assert by_plan(artifact.name for artifact in runner.done) == [stage.name for stage in plan(load(path))]
    assert [(task.name, task.scored_by) for task in summary.tasks] == [
        ("translation", "chrf"), ("answering", "f1, length"), ("instructions", "instructions")
    ]
    for place, task in enumerate(summary.tasks):
        assert [model.name for model in task.models] == ["base, few-shot", "instruct", "round 1"]
        ways = [set(model.decodings) for model in task.models]  # as deployed, and nothing else
        assert ways == [{"greedy"}, {"temperature 1"}, {"temperature 1"}]
        for which, model in enumerate(task.models):
            assert (model.score, model.interval) == mean_interval(scores_of(family, place, which))
    assert [task.models[0].prompts for task in summary.tasks] == [7, 4, 6]
    translation, quiz, asked = (read_prompts(task.prompts / "prompts_test.jsonl") for task in family.tasks)
    assert [prompt.reference for prompt in translation] == [f"lumi {i}" for i in range(7)]
    assert [prompt.reference for prompt in quiz] == [f"the {i}th" for i in range(1, 5)]
    assert [[check.kind for check in prompt.checks] for prompt in asked] == [["punctuation:no_comma"]] * 6
    assert [sample["task"] for sample in json.loads((runner.folder / "samples.json").read_text())][-9:] == [
        *["translation"] * 3, *["answering"] * 3, *["instructions"] * 3
    ]


def test_a_base_that_was_tuned_already_is_asked_as_instruct_is(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, base={"from": "model"})
    family, _, summary = run(path)
    assert [model.name for model in summary.models] == ["base", "instruct", "round 1"]
    assert [task.models[0].name for task in summary.tasks] == ["base"] * 3
    base = family.tests[0].artifact
    assert family.data
    assert family.base
    assert set(base.result.decodings) == {"greedy", "temperature 1"}
    asked = read_prompts(family.data / "prompts_test.jsonl")
    policy = Policy.open(family.base / "model")
    answers = [group[0].answer for group in policy.write(asked, Sampling(24, 0.0))]
    assert [row["deployed"]["answer"] for row in read_rows(base / "answers.jsonl")] == answers
    assert summary.verdict is not None
    free = {baseline.name for baseline in summary.verdict.baselines if baseline.free}
    assert free == {"greedy Base", "Base at temperature 1", "greedy Instruct", "Instruct at temperature 1"}


def promoted(family: Family) -> Family:
    """The same where the gate promoted the candidate.

    The Base's answers stand for the candidate's, which its one step has left as they were.
    """
    (only,) = family.rounds
    assert only.gate is not None
    gate = replace(only.gate, result=only.gate.result.model_copy(update={"decision": "promoted"}))
    tasks = [
        replace(task, tests=[base, instruct, replace(candidate, artifact=base.artifact)])
        for task in family.tasks for base, instruct, candidate in [task.tests]
    ]
    return replace(family, rounds=[replace(only, gate=gate)], champion=only.candidate, tasks=tasks)


def test_before_and_after_are_paired_where_a_candidate_was_promoted(
    ran: tuple[Path, Family, Runner, Summary]
) -> None:
    path, family, runner, kept = ran
    assert not family.rounds[0].promoted
    assert [task.change for task in kept.tasks] == [None] * 3
    family = promoted(family)
    summary = results.write(load(path), family, runner)
    for place, task in enumerate(summary.tasks):
        before, after = (scores_of(family, place, model) for model in (1, 2))
        gain, interval = mean_interval([new - old for new, old in zip(after, before, strict=True)])
        assert task.change is not None
        assert (task.change.gain, task.change.interval) == (gain, interval)
        assert (task.change.before, task.change.after) == (task.models[1].score, task.models[2].score)
    assert [set(task.parts) for task in summary.tasks] == [{"chrf"}, {"f1", "length"}, {"instructions"}]
    assert [set(task.instructions) for task in summary.tasks] == [set(), set(), {"punctuation:no_comma"}]
    page = " ".join(re.sub(r"<[^>]+>", " ", (runner.folder / "report.html").read_text()).split())
    translation = summary.tasks[0]
    assert translation.change is not None
    assert translation.change.gain != 0
    assert re.search(rf"translation +chrf +7 .* {re.escape(number(translation.change.gain, 3, sign=True))} ", page)
    assert "answering: each rule" in page
    assert "instructions: each kind of instruction" in page
    length = summary.tasks[1].parts["length"]
    assert f"length {percent(length.before)} → {percent(length.after)}" in page
    card = (runner.folder / "release/instruct/README.md").read_text()
    (row,) = re.findall(r"^\| translation .*$", card, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    scores = [f"{model.score:.3f}" for model in translation.models]
    assert cells[:7] == ["translation", "chrf", "7", *scores, f"{translation.change.gain:+.3f}"]
    assert "7 prompts of translation" in card.split("---")[1]  # the model-index of the Hub


def test_the_command_ends_with_each_tasks_score_and_does_nothing_again(
    ran: tuple[Path, Family, Runner, Summary]
) -> None:
    path, _, runner, summary = ran
    before = computed(runner)
    told = CliRunner().invoke(app, ["run", str(path), "--runs", str(path.parent / "runs")])
    assert told.exit_code == 0, told.output
    assert computed(runner) == before
    for task in summary.tasks:
        assert f"{task.name}: {task.models[1].score:.3f} by {task.scored_by} (instruct) on" in told.output


def test_a_task_is_told_where_every_model_was_measured_on_it(ran: tuple[Path, Family, Runner, Summary]) -> None:
    path, _, runner, _ = ran
    ending, family = Runner(runner.folder, Silent(), runner.seed, until="tasks/answering/instruct"), Family()
    with pytest.raises(Until):
        cycle(load(path), ending, family)
    assert [len(task.tests) for task in family.tasks] == [3, 2, 0]
    summary = results.write(load(path), family, ending, results.Ending("it was to end there", failed=False, missing=[]))
    assert [task.name for task in summary.tasks] == ["translation"]
    assert (summary.ended, summary.release) == ("it was to end there", "release")


def test_a_changed_task_is_measured_again_and_nothing_else_is(ran: tuple[Path, Family, Runner, Summary]) -> None:
    path, _, runner, _ = ran
    before = len(computed(runner))
    tasks = [TASKS[0] | {"rules": [{"rule": "chrf", "word_order": 2}]}, *TASKS[1:], {**TASKS[0], "name": "added"}]
    content = path.read_text()
    try:
        recipe_of(path.parent, tasks)
        run(path)
        measured = [f"tasks/{name}/{what}" for name in ("translation", "added")
                    for what in ("rules", "base", "instruct", "round-1")]
        assert computed(runner)[before:] == ["tasks/added", *measured]
    finally:
        path.write_text(content)


def added(folder: Path, content: Sequence[dict[str, Any]], **task: Any) -> Path:
    """The recipe with one task."""
    rows(folder / "more.jsonl", content)
    return recipe_of(folder, [{"name": "more", "file": "more.jsonl", "rules": [{"rule": "f1"}]} | task])


def asked(*texts: str) -> list[dict[str, str]]:
    return [{"prompt": text, "reference": "right"} for text in texts]


def prepared(path: Path) -> list[str]:
    """The task's prompts as a run has them."""
    recipe = load(path)
    runner = Runner(path.parent / "runs/tiny", Silent(), recipe.seed)
    data = prepare(recipe, runner)
    kept = prompts_of(recipe, runner, recipe.evaluate.tasks[0], data)
    return [prompt.messages[-1].content for prompt in read_prompts(kept.prompts / "prompts_test.jsonl")]


def test_what_the_run_learns_from_or_chooses_by_is_left_out_of_a_task(tmp_path: Path) -> None:
    # Of 500 questions 8 each are for the gate and for validation, 8 are the test's, and all others are trained on.
    questions = [f"What about {i}?" for i in range(500)]
    path = added(tmp_path, asked("New?", "question 3", "New?", "WHAT ABOUT 400", *questions))
    kept = prepared(path)
    assert kept[0] == "New?"
    (data,) = (tmp_path / "runs/tiny/artifacts").glob("data-*")
    tested = [prompt.messages[-1].content for prompt in read_prompts(data / "prompts_test.jsonl")]
    assert sorted(kept[1:]) == sorted(tested)
    assert len(tested) == 8
    found = check.check(path)
    assert found.problems == []
    (left,) = [note for note in found.notes if "learns from" in note]
    assert left.startswith(
        "tasks/more: 494 prompts are among those that the run learns from or chooses by, and are left out "
        "(more.jsonl:2, more.jsonl:4, "
    )
    assert "tasks/more: 1 prompts have the same turns as an earlier one and are left out" in found.notes


def test_a_prompt_that_is_trained_on_with_other_instructions_is_left_out_too(tmp_path: Path) -> None:
    questions = [f"Describe the harbour of town {i}" for i in range(60)]
    rows(tmp_path / "towns.jsonl", [{"prompt": text} for text in questions])
    path = added(
        tmp_path, asked(*questions[:30], "Describe the harbour of town", "Describe a town."),
        constrain={"only": ["punctuation:no_comma"]}, rules=[{"rule": "instructions"}],
    )
    kept = prepared(path)
    assert len(kept) == 32
    text = path.read_text().replace("prompts:\n  - questions.jsonl", "prompts:\n  - {file: towns.jsonl, constrain: {}}")
    assert text != path.read_text()
    path.write_text(text)
    data = prepare(load(path), Runner(tmp_path / "runs/tiny", Silent(), 1))
    tested = [prompt.messages[-1].content for prompt in read_prompts(data / "prompts_test.jsonl")]
    free = sum(any(re.match(rf"{question}\b", text) for text in tested) for question in questions[:30])
    assert 0 < free < 30
    assert len(prepared(path)) == 2 + free


@pytest.mark.parametrize(("content", "task", "message"), [
    (asked("Question 3?"), {}, "more.jsonl: prompts: none is left: the run learns from all of these 1, or chooses by "
                               "them; give others"),
    ([{"prompt": "New?"}], {}, "more.jsonl:1: reference: missing; a rule compares answers with it"),
    ([{"reference": "x"}], {}, "more.jsonl:1: prompt: missing"),
    (asked("New?"), {"rules": [{"rule": "instructions"}]}, "more.jsonl:1: reference: has no `checks`"),
    (asked("New?"), {"rules": [{"rule": "length", "tasks": ["story"]}]}, "no prompt has the task story"),
    (asked("New?"), {"file": "none.jsonl"}, "none.jsonl"),
])
def test_a_tasks_faults_are_named_before_any_work(
    tmp_path: Path, content: list[dict[str, Any]], task: dict[str, Any], message: str
) -> None:
    path = added(tmp_path, content, **task)
    problems = "\n".join(check.check(path).problems)
    assert message in problems


def test_a_run_ends_on_a_tasks_faults_before_anything_is_trained(tmp_path: Path) -> None:
    for content in (asked("Question 3?"), [{"prompt": "New?"}]):
        path = added(tmp_path, content)
        with pytest.raises(DataError, match=r"more\.jsonl"):
            run(path)
        assert not list((tmp_path / "runs/tiny").glob("artifacts/base-*"))


def test_a_check_counts_a_tasks_prompts_and_their_time(tmp_path: Path) -> None:
    path = recipe_of(tmp_path)
    found = check.check(path)
    assert found.problems == []
    counts = {name: report.count for name, report in found.lengths.items() if name.startswith("tasks/")}
    assert counts == {f"tasks/{task}{way}": count for way in ("", ", few-shot")
                      for task, count in (("translation", 7), ("answering", 4), ("instructions", 6))}
    stages = {cost.stage: cost for cost in found.costs}
    for task, count in (("translation", 7), ("answering", 4), ("instructions", 6)):
        for model in ("base", "instruct", "round-1"):
            cost = stages[f"tasks/{task}/{model}"]
            assert cost.seconds > 0
            way = ", few-shot" if model == "base" else ""
            read = found.lengths[f"tasks/{task}{way}"]
            sampled = 11 * count  # as long as the answers that are learnt
            assert cost.tokens == pytest.approx(read.median * count + sampled, rel=0.05)
    assert "tasks/translation: only 7 prompts: an interval over so few hides all but large gains" in found.notes


@pytest.mark.parametrize(("tasks", "message"), [
    ([TASKS[0], TASKS[0]], "each task needs a name of its own"),
    ([TASKS[0] | {"name": "a b"}], "name"),
    ([TASKS[0] | {"rules": []}], "rules"),
    ([{"name": "x", "file": "quiz.jsonl"}], "rules: missing"),
    ([TASKS[0] | {"ruls": []}], "ruls"),
])
def test_a_wrong_task_is_named_in_the_recipe(tmp_path: Path, tasks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load(recipe_of(tmp_path, tasks))
    assert re.search(rf"recipe\.yaml:\d+: evaluate.*{message}", str(refused.value)), refused.value


def test_a_storybook_has_tasks_of_the_users_own(tmp_path: Path) -> None:
    rows(tmp_path / "quiz.jsonl", [{"prompt": "Who?", "reference": "the king"}])
    tiny = (Path(__file__).parent / "tiny.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(tiny)
    task = "evaluate.tasks=[{name: quiz, file: quiz.jsonl, rules: [{rule: f1}]}]"
    found = check.check(tmp_path / "recipe.yaml", [task])
    assert (found.problems, found.notes[0]) == ([], "tasks/quiz: 1 prompts")
    rows(tmp_path / "quiz.jsonl", [{"prompt": "Who?"}])
    (problem,) = check.check(tmp_path / "recipe.yaml", [task]).problems
    assert problem.endswith("a rule compares answers with it. Give it, or name the rule's `tasks`")
