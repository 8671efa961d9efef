"""Comparisons and thumbs that people add while a run goes on: each round takes the new ones, once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import by_plan, with_stages
from triptych.cli import app
from triptych.cycle import plan
from triptych.data.files import json_line, read_comparisons, read_conversations, read_prompts, read_thumbs, write
from triptych.errors import AuditError, DataError, RecipeError, RunError
from triptych.people.inbox import Inbox, PeopleLabelling, add_comparisons, add_thumbs
from triptych.people.questions import Asking, Form, Labels, ask
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.records import Comparison, Conversation, Prompt, Thumb, to_json, user
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

    def execute(loaded: Recipe, *_: object) -> None:
        if number := loaded.improve.rounds:
            asked.append((number, len(read_comparisons(arrivals.take(number)))))
        if asked and asked[-1] == (1, 3):
            append(labels, range(3, 6))
            raise AuditError("it fails")

    monkeypatch.setattr("triptych.execution.execute", execute)
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


def thumb(number: int) -> Thumb:
    return Thumb(comparison(number).prompt, f"No {number}.", number % 3 == 0)


def test_thumbs_are_taken_as_comparisons_are(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    inbox = Inbox(file, tmp_path / "arrivals", "thumbs")
    write(file, map(thumb, range(3)))
    with open(file, "a") as open_file:
        open_file.write(json_line(comparison(3)))
    with pytest.raises(DataError, match=r"thumbs.jsonl:4: completion: missing"):
        inbox.take(1)
    assert inbox.rounds == 0
    write(file, map(thumb, range(3)))
    assert read_thumbs(inbox.take(1)) == [thumb(0), thumb(1), thumb(2)]
    append_line(file, json_line(thumb(4)))
    assert (inbox.rounds, inbox.waiting) == (1, 1)
    assert inbox.give_back() == 3
    assert len(read_thumbs(inbox.take(1))) == 4
    file.write_text("")
    with pytest.raises(RunError, match="thumbs are added at the end"):
        inbox.take(2)


def test_no_prompt_that_is_measured_on_has_a_thumb(tmp_path: Path) -> None:
    data, earlier, compared = tmp_path / "data", tmp_path / "earlier", tmp_path / "compared"
    for folder in (data, earlier, compared, tmp_path / "output"):
        folder.mkdir()
    for number, name in enumerate(("test", "gate", "validation")):
        write(data / f"prompts_{name}.jsonl", [comparison(number).prompt])
    write(data / "comparisons_heldout.jsonl", [comparison(3)])
    write(data / "comparisons_judge_heldout.jsonl", [comparison(4)])
    write(data / "comparisons_judge.jsonl", [comparison(5)])
    write(compared / "comparisons_heldout.jsonl", [comparison(6)])
    write(compared / "comparisons_train.jsonl", [comparison(7)])
    write(earlier / "thumbs.jsonl", [thumb(20), thumb(8)])
    write(tmp_path / "new.jsonl", [*map(thumb, range(10)), thumb(9)])
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    sources = {"thumbs.jsonl": tmp_path / "new.jsonl"}
    result = add_thumbs(context, PeopleLabelling(), data, sources, earlier, compared)
    assert read_thumbs(context.output / "thumbs.jsonl") == [thumb(20), thumb(8), thumb(5), thumb(7), thumb(9)]
    assert (result.thumbs, result.thumbs_up, result.duplicates, result.removed) == (4, 1, 1, 6)
    write(tmp_path / "new.jsonl", map(thumb, range(5)))
    with pytest.raises(RunError, match="none of 5 thumbs is left to learn from"):
        add_thumbs(context, PeopleLabelling(), data, sources)


def test_a_prompt_with_a_thumb_is_trained_on_when_it_is_compared(tmp_path: Path) -> None:
    data, liked = tmp_path / "data", tmp_path / "liked"
    for folder in (data, liked, tmp_path / "output"):
        folder.mkdir()
    write(data / "thumbs.jsonl", map(thumb, range(20)))
    write(liked / "thumbs.jsonl", map(thumb, range(40)))
    append(tmp_path / "new.jsonl", range(80))
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    for thumbs, count in ((None, 20), (liked, 40)):
        add_comparisons(
            context, PeopleLabelling(heldout=0.5, cross_fit=False), data, {"new": tmp_path / "new.jsonl"},
            thumbs=thumbs,
        )
        trained, measured = (read_comparisons(context.output / f"comparisons_{name}.jsonl")
                             for name in ("train", "heldout"))
        assert set(map(comparison, range(count))) <= set(trained)
        assert len(measured) > (80 - count) * 0.3


@pytest.mark.parametrize(
    ("feedback", "method", "form"),
    [
        ("[{people: a.jsonl}]", "kto", "thumbs"), ("[{people: a.jsonl}]", "grpo", "comparisons"),
        ("[{people: a.jsonl, ask_for: thumbs}, {exact: {}}]", "grpo", "thumbs"),
        ("[{exact: {}}, {people: a.jsonl}]", "kto", "thumbs"), ("[{exact: {}}]", "grpo", None),
    ],
)
def test_thumbs_are_asked_for_where_the_method_learns_from_them_or_the_recipe_says_so(
    tmp_path: Path, feedback: str, method: str, form: Form | None
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"name: x\nstorybook: {{}}\nbase: {{train: {{}}}}\ngate: {{judge: exact}}\nfeedback: {feedback}\n"
        f"improve: {{method: {method}}}\nreward: {{kind: rules, rules: [{{rule: repetition}}]}}\n"
    )
    recipe = load(tmp_path / "recipe.yaml")
    assert recipe.people_give == form
    stages = {stage.name for stage in plan(recipe)}
    assert ("round-1/thumbs" in stages) == (form == "thumbs")
    assert ("round-1/feedback" in stages) == (form == "comparisons" or "exact" in feedback)


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("[{people: a.jsonl, ask_for: comparisons}]", "kto learns from thumbs, and feedback names none"),
        ("[{people: a.jsonl}, {people: b.jsonl}]", "one file that people add to, once"),
        ("[{exact: {}}, {people: a.jsonl, ask_for: comparisons}]", "beside a judge people may be asked for thumbs"),
        ("[{people: a.jsonl, ask_for: stars}]", "ask_for"),
    ],
)
def test_what_people_cannot_be_asked_for_is_said(tmp_path: Path, feedback: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"name: x\nstorybook: {{}}\nbase: {{train: {{}}}}\ngate: {{judge: exact}}\nfeedback: {feedback}\n"
        "improve: {method: kto}\nreward: {kind: rules, rules: [{rule: repetition}]}\n"
    )
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "recipe.yaml")


def test_each_round_learns_from_the_thumbs_that_people_gave_so_far(tmp_path: Path, tiny_run: Path) -> None:
    text = TINY.read_text()
    begin, end = text.index("feedback:"), text.index("improve:")
    recipe, thumbs, runs = tmp_path / "recipe.yaml", tmp_path / "thumbs.jsonl", tmp_path / "runs"
    recipe.write_text(
        text[:begin] + "feedback: [{people: thumbs.jsonl, prompts: 8, max_tokens: 120}]\n"
        "reward: {kind: rules, rules: [{rule: length, most: 12}]}\n"
        + text[end:].replace("method: grpo", "method: kto").replace(" group_size: 4,", "")
    )
    with_stages(runs / "tiny", tiny_run, "data", "base", "instruct")
    short = ["--runs", str(runs), "--set", "improve.steps=1", "--set", "decoding.temperature=1"]
    none = CliRunner().invoke(app, ["run", str(recipe), *short])
    assert none.exit_code == 1
    assert "no thumb has arrived" in none.stderr
    questions = read_conversations(runs / "tiny" / "questions.jsonl")
    assert 8 < len(questions) <= 16
    label = ["label", str(recipe), "--runs", str(runs)]
    said = CliRunner().invoke(app, label, input="u\n1\nd\ns\nu\nq\n")
    assert "Is the answer good?" in said.stdout
    assert "u 👍 Good  d 👎 Not good  s I cannot tell: skip  q Stop" in said.stdout
    assert "3 answers added" in said.stdout
    first = [Thumb(questions[place].prompt, questions[place].answer, label) for place, label in
             ((0, True), (1, False), (3, True))]
    assert read_thumbs(thumbs) == first

    watch = ["watch", str(recipe), *short, "--at-least", "3", "--every", "0.1", "--rounds"]
    ended = CliRunner().invoke(app, [*watch, "1"])
    assert ended.exit_code == 0, ended.output
    questions = read_conversations(runs / "tiny" / "questions.jsonl")
    second = [Thumb(question.prompt, question.answer, False) for question in questions[:4]]
    for given in second:
        append_line(thumbs, json_line(given))
    ended = CliRunner().invoke(app, [*watch, "2"])
    assert ended.exit_code == 0, ended.output
    learnt = []
    for number in (1, 2):
        (folder,) = runs.glob(f"tiny/artifacts/round-{number}-improve-*")
        numbers = json.loads((folder / "manifest.json").read_text())["metrics"]["numbers"]
        learnt.append((numbers["thumbs"], numbers["thumbs_up"]))
    assert learnt == [(3, 2), (7, 2)]
    (last,) = runs.glob("tiny/artifacts/round-2-thumbs-*")
    assert read_thumbs(last / "thumbs.jsonl") == [*first, *second]


def test_what_the_reward_is_least_sure_of_is_asked_first(policy_folder: Path, tmp_path: Path) -> None:
    class Lengths:
        name = identity = "lengths"

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            return [float(len(each.answer)) for each in conversations]

    write(tmp_path / "prompts_feedback.jsonl", [comparison(number).prompt for number in range(12)])

    def asked(name: str, round: int, reward: Lengths | None) -> list[dict[str, str]]:
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, tmp_path, Silent(), seed=1, checkpoint_seconds=60)
        metrics = ask(context, Asking(prompts=8, answers=3, max_tokens=200), tmp_path, policy_folder, round, reward)
        rows = [json.loads(line) for line in (tmp_path / name / "questions.jsonl").read_text().splitlines()]
        assert metrics.questions == len(rows)
        return rows

    plain, sorted_rows, later = asked("a", 1, None), asked("b", 1, Lengths()), asked("c", 2, None)
    gaps = [abs(len(row["first"]) - len(row["second"])) for row in sorted_rows]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert sorted(map(json.dumps, plain)) == sorted(map(json.dumps, sorted_rows))
    assert json.dumps(plain[0]["prompt"]) != json.dumps(later[0]["prompt"])


def test_a_round_starts_when_enough_comparisons_have_arrived(tmp_path: Path, tiny_run: Path) -> None:
    text = TINY.read_text()
    begin, end = text.index("feedback:"), text.index("reward:")
    recipe, labels = tmp_path / "recipe.yaml", tmp_path / "labels.jsonl"
    recipe.write_text(text[:begin] + "feedback: [{people: labels.jsonl, prompts: 8, max_tokens: 120}]\n" + text[end:])
    runs = tmp_path / "runs"
    with_stages(runs / "tiny", tiny_run, "data", "base", "instruct")
    short = ["--runs", str(runs), "--set", "improve.steps=1", "--set", "splits.cross_fit=false"]
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
    assert set(by_plan(names)) == {stage.name for stage in plan(load(recipe, ["improve.rounds=2"]))}
    again = CliRunner().invoke(app, watch)
    assert again.exit_code == 0, again.output
