"""What a person types and what they are told: exit codes, messages, and no traceback for what they can mend."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from test_check import rows, tiny_model, tokenizer
from triptych import __version__
from triptych.api import open_reward
from triptych.cli import app
from triptych.cli.arguments import Allowed
from triptych.cycle import plan
from triptych.engine import models
from triptych.engine.generation import generate
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import AuditError
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.lock import claimed
from triptych.pipeline.state import RunState
from triptych.progress import Silent
from triptych.recipe import Recipe, TakenBase, load
from triptych.records import Message, Prompt
from triptych.release.verification import FORMAT, Manifest, ModelEntry, listing, seal

QUICKSTART = Path(__file__).parents[1] / "recipes/quickstart.yaml"
COMMANDS = (
    "init", "check", "run", "status", "report", "chat", "evaluate", "audit", "export", "verify", "push", "reward",
    "improve", "gate",
)


def call(*arguments: object, typed: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def refused(*arguments: object) -> str:
    """What a command says that must end with exit code 1 and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    _, error, text = result.stderr.partition("error: ")
    assert error
    return f"{error}{text}"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs`, in a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with tiny models, as far as the commands look at it."""
    folder = tmp_path_factory.mktemp("family")
    tiny_model(folder / "instruct")
    shutil.copytree(folder / "instruct", folder / "base")
    models.save(models.load_reward(folder / "instruct", fresh=True, seed=1), tokenizer(), folder / "reward")
    entry = ModelEntry(parents=[], data=[], fingerprint="0")
    seal(folder, Manifest(
        format=FORMAT, name="tiny", version="1.0", license="other", recipe="0",
        models={"base": entry, "instruct": entry, "reward": entry}, files=listing(folder),
    ))
    return folder


def without_torch(*arguments: str) -> str:
    """What a command prints in a fresh process, in which torch stays unloaded: it takes seconds to load."""
    code = (
        "import sys\n"
        "from triptych.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_needs_no_torch_and_names_every_command() -> None:
    text = without_torch("--help")
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert f"Example: triptych {name}" in " ".join(result.stdout.split())


def test_the_version_is_the_package_s() -> None:
    assert call("--version").stdout == f"triptych {__version__}\n"


def test_a_command_that_is_not_there_is_refused_with_the_nearest() -> None:
    result = call("stauts")
    assert result.exit_code == 2
    assert "status" in result.stderr


def test_what_init_writes_passes_the_check(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert call("init", folder).exit_code == 0
    recipe = (folder / "recipe.yaml").read_text()
    assert 20 <= len(recipe.splitlines()) <= 32
    counts = {path.stem: len(path.read_text().splitlines()) for path in (folder / "data").iterdir()}
    assert counts == {"answers": 34, "preferences": 43, "questions": 42}
    assert (folder / "README.md").exists()
    assert not list(folder.rglob("*.py"))

    result = call("check", folder / "recipe.yaml", "--set", f"base.from={tiny_model(tmp_path / 'model')}")
    assert result.exit_code == 0, result.output
    assert f"{folder / 'recipe.yaml'} is fine" in result.stdout
    assert "round-1/improve" in result.stdout


@pytest.mark.parametrize(("schema", "judge"), [(False, "pairwise"), (True, "rules")])
def test_init_makes_a_recipe_of_a_model_and_files_that_passes_the_check(
    tmp_path: Path, schema: bool, judge: str
) -> None:
    call("init", tmp_path / "example")
    data, model = tmp_path / "example/data", tiny_model(tmp_path / "model")
    long = {"prompt": "What is lent?", "completion": "A ladder. " * 60}
    (data / "answers.jsonl").open("a").write(json.dumps(long) + "\n")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    given = ["--answers", data / "answers.jsonl", "--comparisons", data / "preferences.jsonl"]
    result = call(
        "init", tmp_path / "mine", "--from", model, *given, "--prompts", data / "questions.jsonl",
        *(["--schema", tmp_path / "schema.json"] if schema else []),
    )
    assert result.exit_code == 0, result.output
    path = tmp_path / "mine/recipe.yaml"
    assert f"{path} is fine: triptych run {path}" in result.stdout
    assert "reward.audit.required=false" in result.stdout  # forty comparisons prove no reward
    recipe = load(path)
    assert isinstance(recipe.base, TakenBase)
    assert recipe.base.from_.path.resolve() == model.resolve()
    assert recipe.gate.judging is not None
    assert recipe.gate.judging.kind == judge
    assert recipe.reward.model.kind == ("mixture" if schema else "pairwise")
    assert recipe.finetuning is not None
    assert recipe.finetuning.context > 512  # the longest conversation has room
    assert yaml.safe_load(path.read_text())["feedback"] == [{"file": "../example/data/preferences.jsonl"}]
    assert call("check", path).exit_code == 0


@pytest.mark.parametrize(("given", "why"), [
    (["--answers", "a.jsonl"], "go with --from MODEL"),
    (["--from", "m", "--answers", "a.jsonl"], "nothing says what a good answer is"),
    (["--from", "m", "--comparisons", "c.jsonl"], "nothing to improve on"),
    (["--from", "m", "--answers", "a.jsonl", "--schema", "nowhere.json"], "nowhere.json: No such file"),
])
def test_init_says_what_a_recipe_lacks_and_writes_nothing(tmp_path: Path, given: list[str], why: str) -> None:
    assert why in refused("init", tmp_path / "mine", *given)
    assert not (tmp_path / "mine").exists()


def test_init_leaves_a_folder_with_files_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "is not an empty folder" in refused("init", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert "is not an empty folder" in refused("init", tmp_path / "precious.txt")


def test_check_lists_every_problem_and_exits_with_1(tmp_path: Path) -> None:
    call("init", tmp_path / "mine")
    rows(tmp_path / "mine/data/questions.jsonl", ["{", {"prompt": ""}])
    (tmp_path / "mine/data/answers.jsonl").unlink()
    text = refused("check", tmp_path / "mine/recipe.yaml", "--set", "base.from=no/such/model", "--set", "gaet=1")
    assert text.startswith("error: 5 problems:\n")
    for part in ("did you mean gate?", "questions.jsonl:1: invalid JSON", "questions.jsonl:2: prompt: empty",
                 "answers.jsonl: no such file", "base.from: "):
        assert part in text


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_recipe_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, command: str) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a")
    assert f"did you mean {tmp_path / 'recipe.yaml'}?" in refused(command, tmp_path / "recpie.yaml")


def test_run_refuses_an_unknown_stage_before_any_work(runs: Path) -> None:
    text = refused("run", QUICKSTART, "--until", "rewards")
    assert "--until rewards: this recipe has no such stage" in text
    rounds = (
        "round-1/feedback, round-1/reward, round-1/audit, decoding/instruct, round-1/improve, round-1/decoding, "
        "round-1/answers, round-1/gate, round-2/"
    )
    assert rounds in text
    assert list(runs.iterdir()) == []


def test_run_refuses_a_wrong_field(runs: Path) -> None:
    assert "reward.learning_rate" in refused("run", QUICKSTART, "--set", "reward.learning_rate=-1")
    assert list(runs.iterdir()) == []


def test_run_refuses_a_folder_in_use(runs: Path) -> None:
    with claimed(runs / "quickstart"):
        assert "is in use by another process" in refused("run", QUICKSTART)


def test_run_refuses_a_checkpoint_interval_that_is_no_number(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CHECKPOINT_SECONDS", "often")
    assert "must be a number of seconds, got 'often'" in refused("run", QUICKSTART)


def test_run_keeps_the_resolved_recipe_and_stops_where_it_was_told(runs: Path) -> None:
    small = ["documents=20", "demonstrations=20", "feedback_prompts=10", "improve_prompts=10",
             "validation_prompts=8", "gate_prompts=10", "test_prompts=10"]
    changes = [part for change in small for part in ("--set", f"storybook.{change}")]
    result = call("run", QUICKSTART, "--until", "data", *changes)
    assert result.exit_code == 0, result.output
    kept = runs / "quickstart/recipe.yaml"
    expected: Recipe = load(QUICKSTART, changes[1::2])
    assert load(kept).model_dump() == expected.model_dump()
    assert yaml.safe_load(kept.read_text())["reward"]["audit"]["least_prompts"] == 30
    events = [event["event"] for event in Ledger(runs / "quickstart/ledger.jsonl").events()]
    assert events == ["planned", "started", "finished"]


def test_status_shows_the_stages_that_the_run_planned(runs: Path) -> None:
    changes = [part for change in ("documents=20", "demonstrations=20", "feedback_prompts=10", "improve_prompts=10")
               for part in ("--set", f"storybook.{change}")]
    assert call("run", QUICKSTART, "--until", "data", *changes).exit_code == 0
    planned = [stage.name for stage in plan(load(QUICKSTART, changes[1::2]))]
    shown = RunState.of(runs / "quickstart").stages
    assert [stage.name for stage in shown] == planned
    assert [stage.state for stage in shown] == ["done", *["to come"] * (len(planned) - 1)]
    assert states(call("status", "quickstart").stdout)["test/round-2"] == "to come"


def test_a_wrong_row_stops_a_run_with_its_place(runs: Path, tmp_path: Path) -> None:
    call("init", tmp_path / "mine")
    rows(tmp_path / "mine/data/questions.jsonl", [{"prompt": "a"}, {"promt": "a"}])
    assert "questions.jsonl:2: prompt: missing" in refused("run", tmp_path / "mine/recipe.yaml")


def made_up(folder: Path) -> Ledger:
    folder.mkdir(parents=True)
    ledger = Ledger(folder / "ledger.jsonl")
    for stage, event, seconds in (("data", "finished", 1.5), ("base", "stopped", 30.0), ("base", "finished", 95.0)):
        ledger.add("started", stage, fingerprint=stage * 10)
        ledger.add(event, stage, fingerprint=stage * 10, seconds=seconds)
    ledger.add("started", "round-1/audit", fingerprint="a" * 64)
    ledger.add("failed", "round-1/audit", fingerprint="a" * 64, seconds=2.0)
    ledger.add("started", "instruct", fingerprint="c" * 64)
    artifact = folder / f"artifacts/base-{'base' * 3}"
    artifact.mkdir(parents=True)
    (artifact / "manifest.json").write_text(json.dumps({"headline": "1.250 bits per byte"}))
    return ledger


def states(text: str) -> dict[str, str]:
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}


def test_status_shows_each_stage_without_torch(runs: Path) -> None:
    made_up(runs / "mine")
    (runs / "mine/report.html").write_text("")
    text = without_torch("status", "mine")
    shown = states(text)
    assert shown["data"] == "done 1.5 s datadatadata"
    assert shown["base"] == "done 2 min 05 s 1.250 bits per byte basebasebase"
    assert shown["round-1/audit"] == f"failed 2.0 s {'a' * 12}"
    assert shown["instruct"].startswith("interrupted")
    assert "no process is at work on it" in text
    assert shown["report"] == "runs/mine/report.html"
    assert call("status", runs / "mine").stdout.splitlines()[:5] == text.splitlines()[:5]


def test_what_an_earlier_command_did_is_still_to_come_until_it_is_found(runs: Path) -> None:
    # Whether the changed recipe's results are the same is known only when the run comes to them.
    ledger = made_up(runs / "mine")
    ledger.plan(["data", "base", "round-1/audit"])
    ledger.add("reused", "data", fingerprint="d" * 64)
    ledger.add("started", "base", fingerprint="e" * 64)
    ledger.add("finished", "compare/instruct", fingerprint="f" * 64, seconds=3.0)
    assert [(stage.name, stage.state) for stage in RunState.of(runs / "mine").stages] == [
        ("data", "reused"), ("base", "interrupted"), ("round-1/audit", "to come"), ("compare/instruct", "done"),
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    assert "there/mine: Not a directory" in refused("init", tmp_path / "there" / "mine")


def test_status_knows_that_a_process_is_at_work(runs: Path) -> None:
    ledger = made_up(runs / "mine")
    with open(runs / "mine/lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        text = call("status", "mine").stdout
        ledger.add("started", "round-1/reward", fingerprint="b" * 64, left=3719)
        later = call("status", "mine").stdout
    assert states(text)["instruct"].startswith("under way")
    assert "process 4711 is at work on it" in text
    assert ("likely to be done" in text, "likely to be done in 1 h 0" in later) == (False, True)
    assert "likely to be done" not in call("status", "mine").stdout  # nobody is at work any more


def test_a_run_that_is_not_there_is_refused_with_those_that_are(runs: Path) -> None:
    made_up(runs / "mine")
    for command in ("status", "report"):
        assert "nope: neither a run's folder nor a name in runs/; runs/ has mine" in refused(command, "nope")


def small_summary() -> dict[str, Any]:
    base = {"source": "x", "parameters": 1, "vocabulary": 1, "bits_per_byte": None, "tokens_seen": None}
    return {
        "name": "mine", "version": "0", "judge": "none", "verdict": None, "base": base, "models": [], "audits": [],
        "rounds": [], "stages": [], "losses": {}, "seconds": 0.0, "peak_memory_gib": 0.0, "release": None,
    }


def test_report_is_written_again(runs: Path) -> None:
    made_up(runs / "mine")
    assert "summary.json is not there" in refused("report", "mine")
    (runs / "mine/summary.json").write_text(json.dumps(small_summary()))
    (runs / "mine/samples.json").write_text("[]")
    result = call("report", "mine")
    assert result.exit_code == 0, result.output
    assert result.stdout == "runs/mine/report.html\n"
    assert "<html" in (runs / "mine/report.html").read_text()
    (runs / "mine/summary.json").write_text('{"name": 1}')
    assert "is damaged" in refused("report", "mine")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_plainly(runs: Path) -> None:
    made_up(runs / "mine")
    (runs / "mine/summary.json").write_text(json.dumps(small_summary()))
    (runs / "mine/samples.json").write_text("[]")
    (runs / "mine/report.html.partial").symlink_to("/dev/full")
    assert "the disk is full" in refused("report", "mine")


def test_verify_names_what_was_changed(release: Path, tmp_path: Path, runs: Path) -> None:
    result = call("verify", release)
    assert (result.exit_code, result.stdout) == (0, f"OK: {release} holds what its manifest lists\n")
    copy = shutil.copytree(release, runs / "mine/release")
    (copy / "base/config.json").write_text("{}")
    (copy / "instruct/generation_config.json").unlink()
    (copy / "note.txt").write_text("added")
    text = refused("verify", "mine")
    for part in ("base/config.json: was changed", "instruct/generation_config.json: is missing", "note.txt: was added"):
        assert part in text
    assert "is missing, so this is not a release" in refused("verify", tmp_path)


def test_chat_reads_a_pipe_remembers_and_begins_anew(release: Path) -> None:
    typed = "Hello\nAgain\n\n/reset\nHello\n/quit\nnever read\n"
    settings = ("--max-tokens", 8, "--temperature", 0)
    result = call("chat", release, *settings, typed=typed)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("reward ") == 3
    first, rest = result.stdout.split("(a new conversation)\n")
    # Greedy decoding: the same question gets the same answer when nothing went before.
    assert first.startswith(rest)
    assert "reward" not in call("chat", release / "instruct", *settings, typed="Hello\n").stdout


def test_chat_forgets_what_no_longer_fits(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", positions=100)
    result = call("chat", model, "--max-tokens", 30, typed="One\nTwo\nThree\n")
    assert result.exit_code == 0, result.output
    assert "turns no longer fit the model's 100 tokens" in result.stdout


def test_chat_draws_the_same_answers_from_a_seed(release: Path) -> None:
    settings = ("--max-tokens", 12, "--temperature", 1)
    drawn = [call("chat", release / "instruct", *settings, "--seed", seed, typed="Hi\n").stdout for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_chat_decodes_as_the_release_says_unless_told_otherwise(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "instruct"
    shutil.copytree(release / "instruct", folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 5}))

    def said(*settings: object) -> str:
        return str(call("chat", folder, *settings, typed="Hi\n").stdout)

    assert said("--seed", 1) == said("--seed", 2) == said("--temperature", 0, "--max-tokens", 5)
    assert said("--seed", 1) != said("--seed", 1, "--max-tokens", 9)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 1.5, "max_new_tokens": 5})
    )
    assert said("--seed", 1) == said("--seed", 1, "--temperature", 1.5) != said("--seed", 2)


def test_chat_asks_behind_the_prompt_that_a_release_has(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(release / "instruct", tmp_path / "instruct")
    before = Message("user", "Hello"), Message("assistant", "Good day.")
    shown = [{"role": turn.role, "content": turn.content} for turn in before]
    (folder / "prompt.json").write_text(json.dumps({"messages": shown}))
    asked: list[list[int]] = []

    def watched(model: Any, prompts: list[list[int]], *args: Any, **more: Any) -> Any:
        asked.extend(prompts)
        return generate(model, prompts, *args, **more)

    monkeypatch.setattr("triptych.engine.sampler.generate", watched)
    call("chat", folder, "--max-tokens", 4, typed="Hi\nAnd now?\n/reset\nHi\n")
    call("chat", release / "instruct", "--max-tokens", 4, typed="Hi\n")
    hi = Message("user", "Hi")
    policy = Policy.open(release / "instruct")
    behind, alone = policy.render(Prompt((*before, hi))), policy.render(Prompt((hi,)))
    assert [asked[0], asked[2], asked[3]] == [behind, behind, alone]
    assert asked[1][: len(behind)] == behind  # once, before the whole conversation


def test_chat_needs_a_model_that_writes(release: Path, tmp_path: Path) -> None:
    assert "neither a model's folder, nor a release, nor a run" in refused("chat", tmp_path)
    assert "this model scores answers; one that writes them is needed" in refused("chat", release / "reward")


def test_evaluate_measures_answers_agreement_and_text(release: Path, tmp_path: Path) -> None:
    prompts = rows(tmp_path / "prompts.jsonl", [{"prompt": f"{i}?"} for i in range(3)])
    pairs = rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "longer", "rejected": "b"},
                                            {"prompt": "b", "chosen": "also longer", "rejected": "c"}])
    (tmp_path / "book.txt").write_text("Some text.", encoding="utf-8")
    output = tmp_path / "numbers.json"
    result = call(
        "evaluate", release, "--prompts", prompts, "--reward", release, "--comparisons", pairs,
        "--text", tmp_path / "book.txt", "--max-tokens", 4, "--output", output,
    )
    assert result.exit_code == 0, result.output
    numbers = json.loads(output.read_text())
    assert (numbers["prompts"], numbers["comparisons"]) == (3, 2)
    assert numbers["decoding"] == Sampling.of(release / "instruct").name
    assert 1 <= numbers["mean_length"] <= 4
    low, high = numbers["reward_interval"]
    assert low <= numbers["reward"] <= high
    assert (numbers["accuracy_of_longer_wins"], numbers["accuracy_of_shorter_wins"]) == (1.0, 0.0)
    # An untrained model of 260 tokens, one for each byte, knows next to nothing: log2 260 bits for each.
    assert numbers["bits_per_byte"] == pytest.approx(8.02, abs=0.3)
    assert "bits per byte" in result.stdout


def test_evaluate_needs_something_to_measure_and_the_right_model(release: Path, tmp_path: Path) -> None:
    assert "nothing to measure" in refused("evaluate", release)
    prompts = rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    assert "this model scores answers" in refused("evaluate", release / "reward", "--prompts", prompts)
    wrong = ("evaluate", release / "instruct", "--comparisons", prompts)
    assert "this model writes answers; one that scores them is needed" in refused(*wrong)
    assert "chosen: missing" in refused("evaluate", release, "--comparisons", prompts)


def test_evaluate_says_which_prompts_leave_no_room_for_an_answer(release: Path, tmp_path: Path) -> None:
    asked = [{"prompt": "short?"}, {"prompt": "a" * 1020}, {"prompt": "also short?"}, {"prompt": "b" * 2000}]
    prompts, output = rows(tmp_path / "prompts.jsonl", asked), tmp_path / "numbers.json"
    result = call("evaluate", release, "--prompts", prompts, "--max-tokens", 4, "--output", output)
    assert result.exit_code == 0, result.output
    said = "".join(result.output.split())
    assert "2of4promptsleftout" in said
    assert f"({prompts}:2,{prompts}:4)" in said
    numbers = json.loads(output.read_text())
    assert (numbers["prompts"], numbers["prompts_left_out"]) == (2, 2)
    rows(prompts, asked[1:2])
    assert "no prompt fits the model's context of 1024 tokens" in refused("evaluate", release, "--prompts", prompts)


def test_audit_writes_a_record_and_a_page_and_fails_a_model_that_guesses(release: Path, tmp_path: Path) -> None:
    asked = [
        {"prompt": f"{i}?", "chosen": "Yes." + "!" * (i % 3), "rejected": "No.", "subset": "xstest-should-refuse"}
        for i in range(12)
    ]
    data, training = rows(tmp_path / "data.jsonl", asked), rows(tmp_path / "training.jsonl", asked[:2])
    out = tmp_path / "out"
    result = call("audit", release, "--data", data, "--training", training, "--output", out, "--predecessor", release)
    assert result.exit_code == 1
    assert "failed its audit: only 10 held-out prompts, where 30 are the least" in " ".join(result.stderr.split())
    assert "note: 2 comparisons have a prompt of the training comparisons and are left out" in result.stdout
    record = json.loads((out / "audit.json").read_text())
    assert record["comparisons"] == record["by_group"]["Safety"]["prompts"] == 10
    assert "bag of words" in record["baselines"]
    assert [row["agreement"] for row in record["drift"]] == [1.0]
    assert all(row["difference"] < row["tolerance"] for row in record["consistency"] if row["tolerance"])
    page = (out / "audit.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "failed its audit" in page
    assert "padded on the left" in page
    again = refused("audit", release, "--data", data, "--training", data)
    assert "every prompt is one of the training comparisons" in again


def test_a_failed_audit_stops_unless_the_recipe_allows_it() -> None:
    from triptych.audit.record import AuditRecord
    from triptych.pipeline.artifact import Artifact
    from triptych.recipe import RequiredAudit
    from triptych.rewards import require

    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    def audited(verdict: str, reasons: list[str], warnings: list[str]) -> Artifact[AuditRecord]:
        record = AuditRecord.model_construct(verdict=verdict, reasons=reasons, warnings=warnings)
        return Artifact("round-1/audit", Path(), {}, "0", record)

    failed = audited("failed", ["too few"], ["length"])
    with pytest.raises(AuditError, match=r"round-1/audit: .*too few.*--allow-failed-audit"):
        require(failed, RequiredAudit(), Heard())
    assert said == []
    require(failed, RequiredAudit(required=False), Heard())
    assert "round-1/audit: FAILED" in said[0]
    assert "used all the same (reward.audit.required: false): too few" in said[0]
    require(audited("passed with reservations", [], ["length", "drift"]), RequiredAudit(), Heard())
    assert said[1] == "round-1/audit: passed with reservations: length (and 1 more in the report)"
    require(audited("passed", [], []), RequiredAudit(), Heard())
    assert len(said) == 2


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A reward of rules that likes few words, and two files of answers to the same 40 prompts."""
    (tmp_path / "short").mkdir()
    rules = {"kind": "rules", "rules": [{"rule": "length", "most": 3}]}
    (tmp_path / "short/reward.json").write_text(json.dumps(rules))
    for name, answer in (("long", "one two three four"), ("short", "one two three")):
        lines = [json.dumps({"prompt": f"Question {number}?", "completion": answer}) for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_gate_decides_between_files_of_answers(alone: Path) -> None:
    long, short, judge = alone / "long.jsonl", alone / "short.jsonl", alone / "short"
    result = call("gate", long, short, "--judge", judge, "--out", alone / "gate")
    assert result.exit_code == 0, result.output
    assert "promoted: the candidate is preferred by rules: win rate 100.0%" in result.stdout
    assert "words in an answer" in result.stdout
    assert (alone / "gate/gate.html").exists()
    assert call("gate", short, long, "--judge", judge, "--out", alone / "again").exit_code == 1
    assert call("gate", long, long, "--judge", judge, "--out", alone / "same").exit_code == 2
    result = call("gate", long, short, "--judge", judge, "--out", alone / "gate")
    assert (result.exit_code, "exists; give another output" in result.stderr) == (3, True)
    result = call("gate", long, short, "--judge", judge, "--out", alone / "x", "--set", "max_length_ratio=1e-1")
    assert (result.exit_code, "over the budget of 0.1" in result.stdout) == (1, True)


def test_a_reward_and_a_policy_are_made_without_a_recipe(alone: Path, policy_folder: Path) -> None:
    rows = [{"prompt": f"a {word} cat?", "chosen": "a red cat", "rejected": "the mat"} for word in "abcdefghijklmnop"]
    (alone / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = call(
        "reward", alone / "preferences.jsonl", "--from", policy_folder, "--out", alone / "reward",
        "--set", "epochs=1", "--set", "micro_batch=128",
    )
    assert result.exit_code == 0, result.output
    assert f"triptych audit {alone / 'reward'} --data" in result.stdout
    result = call(
        "improve", policy_folder, "--prompts", alone / "long.jsonl", "--reward", alone / "reward",
        "--out", alone / "better", "--set", "steps=1", "--set", "prompts_per_step=2", "--set", "group_size=2",
        "--set", "max_tokens=4", "--set", "eval_prompts=8",
    )
    assert result.exit_code == 0, result.output
    assert (alone / "better/model/config.json").exists()
    assert "epoch: unknown setting, did you mean epochs?" in refused(
        "reward", alone / "preferences.jsonl", "--from", policy_folder, "--out", alone / "r", "--set", "epoch=1"
    )


def test_data_constrain_adds_instructions(alone: Path) -> None:
    out = alone / "a folder that is not there yet" / "constrained.jsonl"
    only = ["--only", "punctuation:no_comma"]
    result = call("data", "constrain", alone / "long.jsonl", "--out", out, *only)
    assert "40 prompts with 40 instructions of 1 kind\n" in result.stdout
    unread = rows(alone / "unread.jsonl", [{"prompt": "Why?", "refrence": "So."}])
    said = call("data", "constrain", unread, "--out", alone / "read.jsonl", *only).stdout
    assert "refrence: is not read, in 1 of 1 row; did you mean reference?" in said
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["checks"] for row in made] == [[{"kind": "punctuation:no_comma"}]] * 40
    assert "is there already" in refused("data", "constrain", alone / "long.jsonl", "--out", out)
    unknown = refused("data", "constrain", alone / "long.jsonl", "--out", alone / "o", "--without", "startend:quote")
    assert "did you mean 'startend:quotation'" in unknown


def test_a_reward_that_a_command_opens_is_known_by_all_that_it_asks(alone: Path) -> None:
    """By its identity a stage alone knows whose checkpoints it may go on from."""
    other = alone / "other"
    other.mkdir()
    (other / "reward.json").write_text((alone / "short/reward.json").read_text().replace("3", "4"))
    allowed = Allowed(None, None, functions=False, template=False, models=None)
    identities = [allowed.reward(str(folder)).identity for folder in (alone / "short", other, alone / "short")]
    assert identities[0] == identities[2] == open_reward(alone / "short").identity
    assert identities[0] != identities[1]
    asked = alone / "asked"
    asked.mkdir()
    (asked / "config.json").write_text("{}")
    with_model = open_reward(alone / "short", models={"asked": asked}).identity
    (asked / "config.json").write_text('{"a": 1}')
    assert len({identities[0], with_model, open_reward(alone / "short", models={"asked": asked}).identity}) == 3


def test_the_commands_stand_in_their_order() -> None:
    names = [re.match(r"│ ([a-z]+) ", line) for line in call("--help").stdout.splitlines()]
    assert [name[1] for name in names if name] == [
        "init", "check", "run", "watch", "compare", "label", "reward", "improve", "gate", "status", "report", "chat",
        "evaluate", "audit", "merge", "export", "verify", "push", "serve", "data", "sampler",
    ]


def test_a_release_is_exported_a_model_at_a_time(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("export", release).stdout
    assert said.splitlines()[0] == "pre-tokenizer gpt-2; ends at <|im_end|>"
    assert call("export", release, "--model", "base", "--type", "q8_0").exit_code == 0
    made = [f"{release.name}-{name}" for name in ("base-Q8_0", "instruct-F16")]
    names = sorted(f"{name}.{ending}" for name in made for ending in ("Modelfile", "gguf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "a reward model is not exported" in refused("export", release, "--model", "reward")
    assert "exists; nothing was written" in refused("export", release)
    assert "q4_k: must be one of" in refused("export", release, "--type", "q4_k", "--out", "other.gguf")


def test_a_file_of_answers_that_is_not_there_is_named(alone: Path) -> None:
    missing = call("gate", alone / "lng.jsonl", alone / "short.jsonl", "--judge", alone / "short", "--out", alone / "g")
    assert missing.exit_code == 3
    assert "lng.jsonl: no such file; did you mean" in missing.stderr
    judge = call("gate", alone / "long.jsonl", alone / "short.jsonl", "--judge", alone / "x", "--out", alone / "g")
    assert judge.exit_code == 3
    assert "nor a folder with a reward.json" in judge.stderr
