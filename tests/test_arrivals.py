"""Comparisons that people add while a run goes on: each round takes the new ones, once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.cli import cycle as commands
from triptych.cycle import plan
from triptych.data.files import json_line, read_comparisons, read_prompts, write
from triptych.errors import AuditError, DataError, RunError
from triptych.people.inbox import Inbox, PeopleLabelling, add_comparisons
from triptych.people.questions import Asking, Labels, ask
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.records import Comparison, Conversation, Prompt, to_json, user
from triptych.storage import append_line

TINY = Path(__file__).parent / "tiny.yaml"


def comparison(number: int) -> Comparison:
    return Comparison(Prompt(user(f"question {number}")), "The red fox went to the river.", f"No {number}.")


def append(path: Path, numbers: range) -> None:
    fresh = path.with_suffix(".new.jsonl")
    write(fresh, [comparison(number) for number in numbers])
    with open(path, "a", encoding="utf-8") as file:
        file.write(fresh.read_text())


def test_a_round_takes_what_is_new_and_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    arrivals = Inbox(file, tmp_path / "arrivals")
    assert (arrivals.rounds, arrivals.waiting) == (0, 0)
    append(file, range(3))
    with open(file, "a") as open_file:
        open_file.write('{"prompt": "half a li')
    assert arrivals.waiting == 3
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    assert read_comparisons(arrivals.take(1)) == [comparison(0), comparison(1), comparison(2)]
    append(file, range(3, 5))
    assert (arrivals.rounds, arrivals.waiting) == (1, 2)
    assert len(read_comparisons(arrivals.take(1))) == 3
    assert read_comparisons(arrivals.take(2)) == [comparison(3), comparison(4)]
    assert arrivals.take(3).read_text() == ""  # a round without news stays one, whatever comes
    append(file, range(5, 6))
    assert arrivals.take(3).read_text() == ""
    assert arrivals.waiting == 1
    file.write_text(file.read_text().replace("question 1", "question 9"))
    with pytest.raises(RunError, match="comparisons are added at the end"):
        arrivals.take(4)


def test_an_answer_may_hold_any_character_that_ends_a_line(tmp_path: Path) -> None:
    odd = Comparison(Prompt(user("one\u2028two")), "three\x85four\x0bfive", "six\u2029", source="people")
    labels = tmp_path / "labels.jsonl"
    append_line(labels, json_line(odd))
    arrivals = Inbox(labels, tmp_path / "arrivals")
    assert arrivals.waiting == 1
    assert read_comparisons(arrivals.take(1)) == [odd]
    row = to_json(odd.prompt) | {"first": odd.chosen, "second": "seven\u2028"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (question,) = Labels(tmp_path / "questions.jsonl", labels).open.values()
    assert (question.prompt, question.first) == (odd.prompt, odd.chosen)


def test_a_round_whose_reward_model_fails_its_audit_waits_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nstorybook: {}\nbase: {train: {}}\nfeedback: [{people: labels.jsonl}]\ngate: {judge: exact}\n"
    )
    labels, asked = tmp_path / "labels.jsonl", []
    append(labels, range(3))
    arrivals = Inbox(labels, tmp_path / "runs" / "tiny" / "arrivals")

    def carried_out(loaded: Recipe, recipe: Path, runs: Path) -> None:
        if number := loaded.improve.rounds:
            asked.append((number, len(read_comparisons(arrivals.take(number)))))
        if asked and asked[-1] == (1, 3):
            append(labels, range(3, 6))
            raise AuditError("it fails")

    monkeypatch.setattr(commands, "_carry_out", carried_out)
    arguments = ["watch", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), "--at-least", "3"]
    ended = CliRunner().invoke(app, [*arguments, "--rounds", "1", "--every", "0.1"])
    assert ended.exit_code == 0, ended.output
    assert asked == [(1, 3), (1, 6)]
    assert "it fails" in ended.stderr
    assert arrivals.rounds == 1


def test_a_wrong_row_is_named_where_it_was_written_and_nothing_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    arrivals = Inbox(file, tmp_path / "arrivals")
    append(file, range(2))
    arrivals.take(1)
    with open(file, "a") as open_file:
        open_file.write('{"prompt": "p", "chosen": "a"}\n')
    with pytest.raises(DataError, match=r"labels.jsonl:3.*rejected"):
        arrivals.take(2)
    assert arrivals.rounds == 1
    arrivals.take(2, wrong_rows="skip")
    assert arrivals.rounds == 2


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    data, earlier = tmp_path / "data", tmp_path / "earlier"
    for folder in (data, earlier):
        folder.mkdir()
    for number, name in enumerate(("test", "gate", "validation")):
        write(data / f"prompts_{name}.jsonl", [comparison(number).prompt])
    write(data / "comparisons_judge.jsonl", [comparison(3)])
    write(earlier / "comparisons_train.jsonl", [comparison(number) for number in range(4, 40)])
    write(earlier / "comparisons_heldout.jsonl", [comparison(number) for number in range(40, 80)])
    append(tmp_path / "new.jsonl", range(120))
    (tmp_path / "output").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    sources = {"labels.jsonl": tmp_path / "new.jsonl"}
    metrics = add_comparisons(context, PeopleLabelling(heldout=0.3), data, sources, earlier)
    assert (metrics.comparisons, metrics.removed) == (116, 4)
    trained, measured, new = (
        [row.prompt.key for row in read_comparisons(context.output / f"comparisons_{name}.jsonl")]
        for name in ("train", "heldout", "heldout_new")
    )
    assert not set(trained) & set(measured)
    assert set(new) <= set(measured)
    assert not {comparison(number).prompt.key for number in range(4)} & {*trained, *measured}
    assert {comparison(number).prompt.key for number in range(4, 40)} <= set(trained)
    assert {comparison(number).prompt.key for number in range(40, 80)} <= set(measured)
    fresh = {comparison(number).prompt.key for number in range(80, 120)}
    assert 4 < len(fresh & set(measured)) < 24  # 0.3 of 40


def test_what_the_reward_is_least_sure_of_is_asked_first(policy_folder: Path, tmp_path: Path) -> None:
    class Lengths:
        name = identity = "lengths"

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            return [float(len(each.answer)) for each in conversations]

    write(tmp_path / "prompts_feedback.jsonl", [comparison(number).prompt for number in range(12)])

    def asked(name: str, round: int, reward: Lengths | None) -> list[dict[str, str]]:
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, tmp_path, Silent(), seed=1, checkpoint_seconds=60)
        metrics = ask(context, Asking(prompts=8, answers=3, max_tokens=12), tmp_path, policy_folder, round, reward)
        rows = [json.loads(line) for line in (tmp_path / name / "questions.jsonl").read_text().splitlines()]
        assert metrics.questions == len(rows)
        return rows

    plain, sorted_rows, later = asked("a", 1, None), asked("b", 1, Lengths()), asked("c", 2, None)
    gaps = [abs(len(row["first"]) - len(row["second"])) for row in sorted_rows]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert sorted(map(json.dumps, plain)) == sorted(map(json.dumps, sorted_rows))
    assert json.dumps(plain[0]["prompt"]) != json.dumps(later[0]["prompt"])


def test_a_round_starts_when_enough_comparisons_have_arrived(tmp_path: Path) -> None:
    text = TINY.read_text()
    begin, end = text.index("feedback:"), text.index("reward:")
    recipe, labels = tmp_path / "recipe.yaml", tmp_path / "labels.jsonl"
    recipe.write_text(text[:begin] + "feedback: [{people: labels.jsonl, prompts: 8, max_tokens: 24}]\n" + text[end:])
    runs = tmp_path / "runs"
    short = ["--runs", str(runs), "--set", "improve.steps=1"]
    none = CliRunner().invoke(app, ["run", str(recipe), *short])
    assert none.exit_code == 1
    assert "no comparison has arrived" in none.stderr
    questions = read_prompts(runs / "tiny" / "questions.jsonl")
    assert 0 < len(questions) <= 8
    label = ["label", str(recipe), "--runs", str(runs)]
    said = CliRunner().invoke(app, label, input="1\nwhat\n2\ns\nq\n")
    assert "2 answers added" in said.stdout
    first, second = read_comparisons(labels)
    assert (first.chosen_first, second.chosen_first, first.source) == (True, False, "people")
    assert [first.prompt, second.prompt] == questions[:2]  # task and reference too
    rest = CliRunner().invoke(app, label, input="1\n" * 9)
    assert "no open question left" in rest.stdout
    assert len(read_comparisons(labels)) == len(questions)
    labels.unlink()
    append(labels, range(40))

    def people() -> None:
        while not (runs / "tiny" / "arrivals" / "round-1.jsonl").exists():
            time.sleep(0.1)
        append(labels, range(40, 60))
        append(labels, range(60, 70))

    worker = threading.Thread(target=people, daemon=True)
    worker.start()
    watch = ["watch", str(recipe), *short, "--at-least", "30", "--rounds", "2", "--every", "0.1"]
    ended = CliRunner().invoke(app, watch)
    assert ended.exit_code == 0, ended.output
    worker.join(timeout=1)
    run = runs / "tiny"
    sizes = [len(read_comparisons(run / "arrivals" / f"round-{number}.jsonl")) for number in (1, 2)]
    assert sizes == [40, 30]
    (last,) = run.glob("artifacts/round-2-feedback-*")
    assert sum(len(read_comparisons(last / f"comparisons_{name}.jsonl")) for name in ("train", "heldout")) == 70
    summary = json.loads((run / "summary.json").read_text())
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    finished = [event["stage"] for event in events if event["event"] == "finished"]
    once = [name for name in finished if not name.startswith("test/")]  # tests are scored by the newest reward model
    assert len(once) == len(set(once))  # the second round did nothing again
    for number in (1, 2, 3):  # what each round was asked, and what the next one is
        assert len(list(run.glob(f"artifacts/round-{number}-questions-*"))) == 1
    names = [event["stage"] for event in events if event["event"] in ("finished", "reused")]
    assert set(names) == {stage.name for stage in plan(load(recipe, ["improve.rounds=2"]))}
    again = CliRunner().invoke(app, watch)
    assert again.exit_code == 0, again.output
