"""The field's benchmarks in a run: opened before it, every model measured once, who forgets rejected."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval.api.group import Group
from typer.testing import CliRunner

from conftest import by_plan
from test_check import rows, write_recipe
from test_gate import decided
from test_reward_benchmarks import item
from test_tasks import SHORT, computed, run
from triptych.audit.benchmarks import read_benchmark
from triptych.benchmarks import measure_benchmarks
from triptych.cli import app
from triptych.cycle import begin, improve_and_gate, plan, reward_of_round
from triptych.engine.rollout import Policy
from triptych.errors import DataError, RecipeError, TriptychError
from triptych.evaluate import benchmarking
from triptych.evaluate.benchmarking import SCORES, BenchmarkBudget, changed, measured_as
from triptych.evaluate.benchmarks import HarnessScore, HarnessTasks
from triptych.evaluate.gate import PROMOTED, REJECTED
from triptych.family import Family, Round
from triptych.pipeline.plan import Planner
from triptych.pipeline.runner import Runner
from triptych.preflight import check
from triptych.recipe import load
from triptych.report.summary import Summary
from triptych.statistics.intervals import mean_interval
from triptych.statistics.scores import BenchmarkChange
from triptych.storage import read_rows

WORDS = ("cat", "dog", "mat", "red", "small", "saw", "sat", "and")
CHOOSING = {
    "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer", "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
WRITING = {
    "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False}, "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
    ],
}
CHOICES = [
    {"question": f"What is {place}?", "choices": [WORDS[(place + k * (place % 3 + 1)) % 8] for k in range(4)],
     "answer": place % 4}
    for place in range(40)
]


REWARDBENCH = [item(1, [3], [1, 2, 0], "Math"), item(2, [1], [1, 11, 0], "Math"), item(3, [1], [22, 1, 0], "Focus")]


def write_task(folder: Path, name: str, settings: dict[str, Any], content: list[dict[str, Any]], **more: Any) -> Path:
    rows(folder / f"{name}.jsonl", content)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"task": name, "test_split": "test"} | data | settings | more), encoding="utf-8")
    return path


def recipe_of(folder: Path, benchmarks: list[Any], **changes: Any) -> Path:
    """A recipe that is run in seconds, whose candidate has unlearnt what it knew."""
    write_task(folder, "choosing", CHOOSING, CHOICES)
    rows(folder / "questions.csv.jsonl", [{"question": f"Write {word}", "answer": word} for word in WORDS])
    (folder / "writing.yaml").write_text(yaml.safe_dump({"task": "writes", "test_split": "test"} | WRITING))
    rows(folder / "rewards.jsonl", REWARDBENCH)
    return write_recipe(folder, **{
        "base": {"from": "model", "chat_template": "chatml"},  # the recipe's, so that the Base is asked in plain text
        "feedback": [], "reward": SHORT, "decoding": {"max_tokens": 24, "temperature": 1.0}, "diagnosis": None,
        "gate": {"judge": SHORT, "max_length_ratio": 1e6, "min_length_ratio": None},
        "splits": {"test": 8, "gate": 8, "validation": 8}, "instruct": {"data": ["answers.jsonl"], "epochs": 1},
        "improve": {"method": "best_of_n", "prompts": ["questions.jsonl"], "steps": 2, "prompts_per_step": 8,
                    "group_size": 2, "max_tokens": 64, "eval_prompts": 8, "learning_rate": 0.1},
        "evaluate": {"best_of": 0, "shots": 1, "benchmarks": benchmarks},
    } | changes)


BENCHMARKS: list[Any] = [
    {"task": "choosing.yaml", "metric": "acc_norm", "max_loss": 0.05, "limit": 32},
    {"task": "writing.yaml", "data": "questions.csv.jsonl"},
    {"reward": "rewards.jsonl"},
]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `datasets` keeps lies apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family, Runner, Summary]:
    path = recipe_of(tmp_path_factory.mktemp("benchmarks"), BENCHMARKS)
    return path, *run(path)


Ran = tuple[Path, Family, Runner, Summary]


def values_of(runner: Runner, stage: str, metric: str) -> list[float]:
    (artifact,) = [artifact for artifact in runner.done if artifact.name == stage]
    (row,) = [row for row in read_rows(artifact / SCORES) if row["metric"] == metric]
    return list(row["values"])


def test_each_model_is_measured_once_as_it_is_asked(ran: Ran) -> None:
    path, family, runner, summary = ran
    names = [artifact.name for artifact in runner.done]
    assert by_plan(names) == [stage.name for stage in plan(load(path))]
    assert [name for name in names if "/benchmarks/" in name] == [
        f"{model}/benchmarks/{benchmark}" for model in ("base", "instruct") for benchmark in ("choosing", "writing")
    ] + ["round-1/reward/benchmarks/rewards", "round-1/benchmarks/choosing", "round-1/benchmarks/writing"]
    tasks = HarnessTasks([str(path.parent / "choosing.yaml")])
    models = {"base": family.base, "instruct": family.instruct, "round-1": family.rounds[0].candidate}
    choosing, writing = summary.benchmarks
    for (name, model), score in zip(models.items(), choosing.measures[0].scores, strict=True):
        assert model is not None
        (alone,) = [
            row for row in tasks.measure(Policy.open(model / "model"), limit=32, chat_template=name != "base")
            if row.metric == "acc_norm"
        ]
        assert list(alone.values) == values_of(runner, f"{name}/benchmarks/choosing", "acc_norm")
        assert (score.value, score.interval) == (alone.value, alone.interval)
    assert [score.plain for score in choosing.measures[0].scores] == [True, False, False]
    assert [measure.measure for measure in choosing.measures] == ["choosing/acc_norm", "choosing/acc"]
    assert (choosing.documents, choosing.max_loss) == (32, 0.05)
    assert [measure.measure for measure in writing.measures] == ["writes/exact_match", "writes/bleu"]
    assert (writing.documents, writing.max_loss) == (8, None)


def test_differences_are_paired_by_document(ran: Ran) -> None:
    _, _, runner, summary = ran
    before, after = (values_of(runner, f"{model}/benchmarks/choosing", "acc_norm") for model in ("instruct", "round-1"))
    gain, interval = mean_interval([new - old for old, new in zip(before, after, strict=True)])
    assert set(before) == set(after) == {0, 1}
    base, instruct, candidate = summary.benchmarks[0].measures[0].scores
    assert base.change is instruct.change is None
    assert candidate.change is not None
    assert (candidate.change.gain, candidate.change.interval) == (gain, interval)
    assert [score.change for score in summary.benchmarks[1].measures[1].scores] == [None] * 3  # BLEU is no mean
    (gate,) = summary.rounds
    assert gate.benchmarks == {"choosing": candidate.change.model_copy(update={"max_loss": 0.05})}


def test_a_candidate_that_forgets_is_rejected_by_name(ran: Ran) -> None:
    (gate,) = ran[3].rounds
    change = gate.benchmarks["choosing"]
    assert change.interval[0] < -0.05
    assert (gate.decision, gate.reason.split(";")[:2]) == ("rejected", (
        f"choosing may be lost: choosing/acc_norm is {change.before:.3f} with the champion and "
        f"{change.after:.3f} with the candidate ({change.gain:+.3f}; by the 95% interval it may have lost "
        f"{change.most_lost:.3f}), and its max_loss is 0.05"
    ).split(";"))
    assert gate.reason.endswith("cut at max_tokens and 100% of the champion's, and are judged as far as they go")


def test_the_rounds_reward_is_measured_as_its_benchmark_has_it(ran: Ran) -> None:
    path, family, _, summary = ran
    (measured,) = summary.reward_benchmarks
    benchmark, reward = read_benchmark(path.parent / "rewards.jsonl"), family.scorer
    assert benchmark is not None
    assert reward is not None
    assert (measured.name, measured.round) == ("rewards", 1)
    assert measured.scores == benchmark.scores(reward.score)
    assert list(measured.scores.measures)[-1] == "mean of subsets"


def test_report_cards_and_command_tell_them_and_nothing_is_done_again(ran: Ran) -> None:
    path, _, runner, summary = ran
    before = computed(runner)
    command = CliRunner().invoke(app, ["run", str(path), "--runs", str(path.parent / "runs")])
    assert command.exit_code == 0, command.output
    assert computed(runner) == before
    scores = summary.benchmarks[0].measures[0].scores
    assert f"choosing: {scores[1].value:.3f} by choosing/acc_norm (instruct) on 32 documents" in command.output
    assert "rewards: the reward of round 1 on RewardBench 2, mean of subsets " in command.output
    page = re.sub(r"<[^>]+>|\s+", " ", (runner.folder / "report.html").read_text())
    assert re.search(r"choosing: 32 documents, of which a candidate may lose 0\.05 to the champion .*base +in ", page)
    assert re.search(r"The reward of round 1 on rewards \(RewardBench 2\)", page)
    cards = {role: (runner.folder / "release" / role / "README.md").read_text() for role in ("base", "instruct")}
    for role, place in (("base", 0), ("instruct", 1)):
        (listed,) = [entry for entry in yaml.safe_load(cards[role].split("---")[1])["model-index"][0]["results"]
                     if entry["dataset"]["name"] == "choosing"]
        (metric,) = listed["metrics"]
        assert (metric["type"], metric["value"]) == ("acc_norm", round(scores[place].value, 4))
    assert re.search(r"\| choosing/acc_norm \| 32 \| base\* \|", cards["instruct"])


def test_a_changed_file_is_measured_again_and_nothing_is_trained(ran: Ran) -> None:
    path, _, runner, _ = ran
    data = path.parent / "choosing.jsonl"  # which only the task's file names
    content, before = data.read_text(), len(computed(runner))
    try:
        rows(data, CHOICES[::-1])
        run(path)
        again = computed(runner)[before:]
    finally:
        data.write_text(content)
    assert again == [
        "base/benchmarks/choosing", "instruct/benchmarks/choosing", "round-1/benchmarks/choosing", "round-1/gate"
    ]


def test_methods_are_compared_inside_the_same_budget(ran: Ran) -> None:
    recipe, family = load(ran[0]), Family()
    planner = Planner(seed=recipe.seed)
    start, current = begin(recipe, planner, family), Round(1)
    reward_of_round(recipe, planner, family, start, current)
    measure_benchmarks(recipe, planner, family, "instruct", start.instruct, bounded=True)
    planner.plan.clear()
    improve_and_gate(recipe, planner, family, start, current, "compare-grpo")
    names = [stage.name for stage in planner.plan]
    assert [name for name in names if "/benchmarks/" in name] == ["compare-grpo/benchmarks/choosing"]
    bounded = {name: artifact.name for name, artifact in planner.plan[-1].parents.items() if " of the " in name}
    assert bounded == {
        "choosing of the champion": "instruct/benchmarks/choosing",
        "choosing of the candidate": "compare-grpo/benchmarks/choosing",
    }


def change(before: list[float], after: list[float], max_loss: float | None = None) -> BenchmarkChange:
    sides = [
        HarnessScore(task="arc", metric="acc", value=sum(side) / len(side), documents=len(side), values=tuple(side))
        for side in (before, after)
    ]
    made = benchmarking.change(sides[0], sides[1], max_loss)
    assert made is not None
    return made


def test_the_worse_end_of_the_interval_counts() -> None:
    few_lost = change([1.0] * 100, [1.0] * 97 + [0.0] * 3)
    assert few_lost.gain == pytest.approx(-0.03)
    low, high = few_lost.interval
    assert low == pytest.approx(-0.07)
    assert high == 0
    assert few_lost.bounds is not None
    lost, won = few_lost.bounds
    assert lost < low < high < won
    for bound, holds in ((0.02, False), (-lost - 1e-6, False), (-lost, True), (None, True)):
        assert few_lost.model_copy(update={"max_loss": bound}).holds is holds
        turned = few_lost.model_copy(update={"max_loss": bound, "higher_is_better": False, "bounds": (0.0, -lost)})
        assert turned.holds is holds
    assert decided(benchmarks={"arc": few_lost.model_copy(update={"max_loss": 0.1})})[0] == PROMOTED
    decision, reason = decided(benchmarks={"arc": few_lost.model_copy(update={"max_loss": 0.05})})
    assert (decision, reason) == (
        REJECTED, "arc may be lost: arc/acc is 1.000 with the champion and 0.970 with the candidate (-0.030; by the "
        f"95% interval it may have lost {-lost:.3f}), and its max_loss is 0.05",
    )


def test_few_documents_on_which_two_models_agree_do_not_show_that_nothing_is_lost() -> None:
    """A loss of 5 points is seen in none of 20 documents in more than a third of draws."""
    assert not change([1.0] * 20, [1.0] * 20, max_loss=0.05).holds
    assert change([1.0] * 400, [1.0] * 400, max_loss=0.01).holds
    assert change([3.5, 2.0], [3.5, 2.0], max_loss=0.0).bounds is None  # no rates: nothing is known of their range


def test_documents_that_are_not_the_same_are_not_paired(tmp_path: Path) -> None:
    folders = {}
    for who, values in (("champion", [1.0, 0.0]), ("candidate", [1.0])):
        folder = folders[measured_as("arc", who)] = tmp_path / who
        folder.mkdir()
        score = {"task": "arc", "metric": "acc", "value": 0.5, "documents": len(values), "values": values}
        (folder / SCORES).write_text(json.dumps(score) + "\n")
    with pytest.raises(RecipeError, match="arc/acc is no mean over documents"):
        changed({"arc": BenchmarkBudget(metric=None, max_loss=0.1)}, folders)


def group_of(folder: Path, weighted: bool) -> HarnessTasks:
    """A group of two tasks, of 5 and 2 documents, as the harness makes its own."""
    parts = [str(write_task(folder, name, CHOOSING, content))
             for name, content in (("long", CHOICES[:5]), ("short", CHOICES[5:7]))]
    opened = HarnessTasks(parts)
    mean = {"metric": "acc", "weight_by_size": weighted}
    group = Group.from_config({"group": "both", "task": parts, "aggregate_metric_list": [mean]})
    for task in opened.tasks["tasks"].values():
        group.add(task)
    opened.tasks = {**opened.tasks, "groups": {"both": group}, "group_map": {"both": ["long", "short"]}}
    return opened


def test_a_groups_documents_have_values_where_it_is_their_mean(tmp_path: Path, policy_folder: Path) -> None:
    policy = Policy.open(policy_folder / "model")
    tasks = group_of(tmp_path, weighted=True)
    assert (tasks.measures("both"), tasks.documents(4)) == ({"acc": True}, 6)
    scores = {score.name: score for score in tasks.measure(policy)}
    both = scores["both/acc"]
    assert both.values == scores["long/acc"].values + scores["short/acc"].values
    assert both.documents == 7
    assert both.value == pytest.approx(sum(both.values) / 7)
    assert group_of(tmp_path, weighted=False).measures("both") == {"acc": False}


def test_what_a_benchmark_asks_is_known_by_its_content(tmp_path: Path) -> None:
    def identity(limit: int | None = None) -> str:
        return HarnessTasks([str(path)]).identity(limit)

    def scoring(value: int) -> None:
        (path.parent / "scored.py").write_text(f"def process_results(doc, results):\n    return {{'acc': {value}}}\n")

    path = write_task(tmp_path, "own", CHOOSING, CHOICES)
    first = identity()
    assert identity(3) != first
    (tmp_path / "elsewhere").mkdir()
    path = write_task(tmp_path / "elsewhere", "own", CHOOSING, CHOICES)
    assert identity() == first
    rows(tmp_path / "elsewhere/own.jsonl", CHOICES[:-1])
    assert identity() != first
    path = write_task(tmp_path, "own", CHOOSING, CHOICES, description="Choose.")
    assert identity() != first
    path.write_text(path.read_text() + "process_results: !function scored.process_results\n")
    scoring(1)
    by_function = identity()
    scoring(10)  # a file of another length, whatever its time is
    assert identity() not in (first, by_function)


def lacking(folder: Path) -> list[Any]:
    code = "def lacking(doc, results):\n    raise LookupError('****\\n Resource punkt_tab not found\\n****')\n"
    (folder / "scored.py").write_text(code)
    path = write_task(folder, "needy", WRITING, [{"question": "a", "answer": "b"}])
    path.write_text(path.read_text() + "process_results: !function scored.lacking\n")
    return [path.name]


def unreadable(folder: Path) -> list[Any]:
    rows(folder / "wrong.jsonl", ["{"])
    return [{"task": "writing.yaml", "data": "wrong.jsonl"}]


def undefined(folder: Path) -> list[Any]:
    return [write_task(folder, "odd", CHOOSING | {"doc_to_text": "{{question.upper.lower}}"}, CHOICES[:2]).name]


def grouped(folder: Path) -> list[Any]:
    (folder / "both.yaml").write_text("group: both\ntask: [choosing]\n")
    return ["both.yaml"]


def beams(folder: Path) -> list[Any]:
    kwargs = {"generation_kwargs": {"until": [], "num_beams": 4}}
    return [write_task(folder, "beams", WRITING | kwargs, [{"question": "a", "answer": "b"}]).name]


def taught(folder: Path) -> list[Any]:
    write_task(folder, "taught", CHOOSING, CHOICES, num_fewshot=2, fewshot_split="train")
    return [{"task": "taught.yaml", "data": "taught.jsonl"}]


@pytest.mark.parametrize(("benchmarks", "kind", "message"), [
    (["none.yaml"], RecipeError, r"evaluate\.benchmarks: .*none\.yaml: there is no such file"),
    ([{"task": "choosing.yaml", "metric": "f1"}], RecipeError, "choosing has no metric f1; it has acc, acc_norm"),
    ([{"task": "writing.yaml", "data": "questions.csv.jsonl", "metric": "bleu", "max_loss": 0.1}], RecipeError,
     r"max_loss bounds the mean over documents, and bleu is none; name another metric \(exact_match\)"),
    ([{"task": "writing.yaml", "data": "none.jsonl"}], DataError, "none.jsonl"),
    ([{"task": "writing.yaml", "data": {"train": "questions.csv.jsonl"}}], RecipeError, "are its split test: name it"),
    (unreadable, DataError, r"writing\.yaml: data: cannot be read"),
    (undefined, RecipeError, r"odd\.yaml: is no task of lm-evaluation-harness: .* no attribute"),
    (lacking, DataError, "needy: document 1 cannot be scored: Resource punkt_tab not found"),
    (grouped, RecipeError, r"both\.yaml: is a group's file"),
    (beams, TriptychError, "a task asks for num_beams: 4"),
    (taught, RecipeError, "takes 2 worked examples from its split train: name a file for each: {test: FILE, train: FI"),
    ([{"reward": "answers.jsonl"}], DataError, r"answers\.jsonl: holds no rows of RewardBench 2, RM-Bench or JudgeB"),
])
def test_faults_are_named_before_anything_is_trained(
    tmp_path: Path, benchmarks: list[Any] | Callable[[Path], list[Any]], kind: type[TriptychError], message: str
) -> None:
    path = recipe_of(tmp_path, benchmarks if isinstance(benchmarks, list) else benchmarks(tmp_path))
    found = check.Findings()
    check.check_benchmarks(load(path), found)
    (problem,) = found.problems
    assert re.search(message, problem), problem
    with pytest.raises(kind, match=message):
        run(path)
    assert not (tmp_path / "runs/tiny/artifacts").exists()


def test_a_check_opens_them_and_says_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe_of(tmp_path, [*BENCHMARKS, write_task(
        tmp_path, "lengthy", WRITING | {"generation_kwargs": {"until": [], "max_gen_toks": 2000}},
        [{"question": "a", "answer": "b"}] * 200,
    ).name])
    found = check.check(path)
    (problem,) = found.problems
    assert problem.startswith("evaluate.benchmarks: lengthy lets answers have 2000 tokens, which leave no room for a ")
    notes = [note for note in found.notes if note.startswith("benchmark ")]
    assert notes[0] == (
        "benchmark choosing: 32 documents; the time that they take is not estimated. An interval over so few hides all "
        "but large differences, and a candidate that lost nothing may be rejected by max_loss"
    )
    assert notes[3] == "benchmark lengthy: 200 documents; the time that they take is not estimated"
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    missing = check.Findings()
    check.check_benchmarks(load(path), missing)
    assert all("pip install 'triptych[harness]'" in problem for problem in missing.problems)
    assert len(missing.problems) == 3


@pytest.mark.parametrize(("benchmarks", "message"), [
    (["ifeval", "ifeval"], "each needs a name of its own, and two are ifeval"),
    ([{"task": "ifeval", "max_loss": -1}], "max_loss"),
    ([{"task": "ifeval", "limit": 0}], "limit"),
    ([{"task": "ifeval", "maxloss": 0}], "maxloss"),
    ([{"limit": 3}], "one of task, reward"),
])
def test_a_wrong_benchmark_is_named_in_the_recipe(tmp_path: Path, benchmarks: list[Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load(recipe_of(tmp_path, benchmarks))
    assert re.search(rf"recipe\.yaml:\d+: evaluate\.benchmarks.*{message}", str(refused.value)), refused.value


def test_rules_that_need_a_reference_are_not_measured_where_there_is_none(tmp_path: Path) -> None:
    exact = {"kind": "rules", "rules": [{"rule": "exact"}]}
    found = check.Findings()
    check.check_benchmarks(load(recipe_of(tmp_path, [{"reward": "rewards.jsonl"}], reward=exact)), found)
    (problem,) = found.problems
    assert problem == (
        "rewards.jsonl: reference: the reward is not measured by a benchmark, whose prompts have no references "
        "(missing; a rule compares answers with it. Give it, or name the rule's `tasks`)"
    )
