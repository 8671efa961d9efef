"""People who decide at the gate: blind questions, a gate that waits for their answers, and one that keeps them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import triptych
from conftest import with_stages
from triptych.cli import app
from triptych.data.files import json_line, read_verdicts, write
from triptych.errors import AnsweredError, DataError, RecipeError, WaitingError
from triptych.evaluate.answers import QUESTIONS, Pair, answered
from triptych.evaluate.panel import beside, preferred
from triptych.people.verdicts import Panel
from triptych.recipe import Recipe, load
from triptych.records import Prompt, Question, Verdict, user
from triptych.storage import append_line

TINY = Path(__file__).parent / "tiny.yaml"


def pair(number: int, after: str = "new") -> Pair:
    return Pair(Prompt(user(f"question {number}")), "old", after, 1, 1)


def verdict(of: Pair, preferred: str, seed: int = 1) -> Verdict:
    """Somebody's, who saw the two in the seed's order."""
    question = of.question(seed)
    return Verdict(question, "tie" if preferred == "tie" else "first" if question.first == preferred else "second")


def test_a_verdict_counts_for_an_answer_in_whatever_place_it_stood() -> None:
    pairs = [pair(number) for number in range(4)] + [pair(4, after="old")]
    said = [
        verdict(pairs[0], "new", seed=1), verdict(pairs[0], "new", seed=2), verdict(pairs[0], "old", seed=3),
        verdict(pairs[1], "old"), verdict(pairs[2], "tie"), verdict(pairs[3], "new"),
    ]
    assert preferred(pairs, said) == [1.0, 0.0, 0.5, 1.0, 0.5]  # of the first two of three prefer the candidate
    found = beside(preferred(pairs, said), [1.0, 1.0, 1.0, 1.0, 0.5])
    assert (found.win_rate, found.prompts) == (0.9, 3)
    assert found.agreement == pytest.approx(2 / 3)


def test_the_order_says_nothing_about_who_wrote_which() -> None:
    first = [pair(number).question(7).first for number in range(400)]
    assert 150 < first.count("new") < 250
    assert [pair(number).question(7).first for number in range(400)] == first


def test_a_panel_waits_for_all_and_then_keeps_what_it_took(tmp_path: Path) -> None:
    pairs = [pair(number) for number in range(3)]
    write(tmp_path / QUESTIONS, [each.question(1) for each in pairs])
    panel = Panel(tmp_path / QUESTIONS, tmp_path / "verdicts.jsonl")
    assert len(panel.open) == 3
    for each in pairs[:2]:
        said = verdict(each, "new", seed=5)
        panel.add(said.question, said.better)
    panel.add(pair(9).question(1), "first")  # of another gate
    (still,) = panel.open.values()
    assert still.prompt == pairs[2].prompt
    panel.add(still, "tie")
    assert panel.open == {}
    kept = panel.take(tmp_path / "kept.jsonl")
    assert preferred(pairs, read_verdicts(kept)) == [1.0, 1.0, 0.5]
    with pytest.raises(AnsweredError):
        panel.add(pairs[0].question(1), "tie")
    append_line(panel.file, json_line(Verdict(pairs[0].question(1), "tie")))
    assert len(read_verdicts(panel.take(kept))) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": "new"}, 'verdicts.jsonl:1: better: must be one of first, second, tie, both bad, got "new"'),
        ({"better": None}, "verdicts.jsonl:1: better: missing"),
        ({"second": "old"}, "verdicts.jsonl:1: second: the same as first: expected two different answers"),
        ({"first": 3}, "verdicts.jsonl:1: first: must be text, got 3"),
    ],
)
def test_a_wrong_verdict_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"prompt": "p", "first": "old", "second": "new", "better": "tie"}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(row | change) + "\n")
    with pytest.raises(DataError) as caught:
        read_verdicts(tmp_path / "verdicts.jsonl")
    assert str(caught.value).endswith(message)


def test_a_verdict_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = Verdict(Question(Prompt(user("one\u2028two"), reference="r", task="t"), "", "three\x85\n"), "second")
    (tmp_path / "verdicts.jsonl").write_text(json_line(odd), encoding="utf-8")
    assert read_verdicts(tmp_path / "verdicts.jsonl") == [odd]


def test_those_who_decide_may_not_train(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nstorybook: {}\nbase: {train: {}}\nfeedback: [{people: a.jsonl}]\n"
                    "gate: {judge: exact, people: a.jsonl}\n")
    with pytest.raises(RecipeError, match=re.escape("gate.people is the file of feedback, which is trained on")):
        load(path)


def test_watch_goes_on_when_people_have_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nstorybook: {}\nbase: {train: {}}\nfeedback: [{people: labels.jsonl}]\n"
        "gate: {judge: exact, people: verdicts.jsonl}\n"
    )
    asked = []

    def execute(loaded: Recipe, folder: Path, *_: object) -> None:
        asked.append(loaded.improve.rounds)
        if len(asked) == 1:
            raise WaitingError("round-1/gate waits for people")
        (folder / "arrivals").mkdir(parents=True)
        (folder / "arrivals" / "round-1.jsonl").touch()

    def sleep(seconds: float) -> None:
        (tmp_path / "verdicts.jsonl").touch()

    monkeypatch.setattr("triptych.execution.execute", execute)
    monkeypatch.setattr("triptych.watching.time.sleep", sleep)
    ended = CliRunner().invoke(app, [
        "watch", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), "--rounds", "1", "--every", "0.1",
    ])
    assert ended.exit_code == 0, ended.output
    assert asked == [0, 0]
    assert "waits for people" in ended.stdout


def test_a_run_waits_at_its_gate_and_goes_on_to_what_people_decided(tmp_path: Path, tiny_run: Path) -> None:
    recipe, runs = tmp_path / "recipe.yaml", tmp_path / "runs"
    text = TINY.read_text()
    assert "judge: exact" in text
    recipe.write_text(text.replace("judge: exact", "judge: exact, people: verdicts.jsonl"))
    with_stages(
        runs / "tiny", tiny_run, "data", "base", "instruct", "round-1/feedback", "round-1/reward", "round-1/audit"
    )
    arguments = [str(recipe), "--runs", str(runs)]
    settings = ("improve.rounds=1", "improve.steps=1", "decoding.temperature=1")
    run = ["run", *arguments, *(part for setting in settings for part in ("--set", setting))]
    waits = CliRunner().invoke(app, run)
    assert waits.exit_code == 1
    found = re.search(r"round-1/gate waits for people: (\d+) of \1 questions are open", waits.stderr)
    assert found, waits.stderr
    questions = list(Panel(runs / "tiny" / "gate-questions.jsonl", tmp_path / "verdicts.jsonl").all.values())
    assert len(questions) == int(found[1])
    assert (runs / "tiny" / "report.html").exists()

    some = CliRunner().invoke(app, ["label", *arguments], input="1\nt\ns\nq\n")
    assert "2 answers added" in some.stdout
    assert not re.search("champion|candidate", some.stdout)  # nobody is told which is which
    waits = CliRunner().invoke(app, run)
    assert f"{len(questions) - 2} of {len(questions)} questions are open" in waits.stderr

    # The others are told to like the candidate.
    (folder,) = runs.glob("tiny/artifacts/round-1-answers-*")
    after = {each.prompt.key: each.after for each in answered(folder)}
    panel = Panel(runs / "tiny" / "gate-questions.jsonl", tmp_path / "verdicts.jsonl")
    for question in panel.open.values():
        panel.add(question, "first" if question.first == after[question.prompt.key] else "second")
    ended = CliRunner().invoke(app, run)
    assert ended.exit_code == 0, ended.output
    (round_,) = json.loads((runs / "tiny" / "summary.json").read_text())["rounds"]
    assert (round_["decided_by"], round_["decision"]) == ("a panel of people", "promoted")
    assert round_["reason"].startswith("the candidate is preferred by a panel of people: win rate ")
    assert round_["win_rate"] > 0.5
    assert 0 <= round_["judge_win_rate"] <= 1
    assert "People and judge agree" in (runs / "tiny" / "report.html").read_text()
    assert not (runs / "tiny" / "gate-questions.jsonl").exists()

    for question in questions:  # what is added later changes nothing
        append_line(panel.file, json_line(Verdict(question, "tie")))
    again = CliRunner().invoke(app, run)
    assert again.exit_code == 0, again.output
    (same,) = json.loads((runs / "tiny" / "summary.json").read_text())["rounds"]
    assert same["win_rate"] == round_["win_rate"]


def test_people_decide_at_a_gate_without_a_recipe(tmp_path: Path) -> None:
    def answers(name: str, answer: str, count: int = 10) -> Path:
        rows = [{"prompt": f"{number}?", "completion": answer} for number in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def call(*arguments: object, typed: str | None = None) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)

    old, new = answers("old.jsonl", "three words here"), answers("new.jsonl", "four words are here")
    out = tmp_path / "gate"
    gate = ("gate", old, new, "--people", "--out", out)
    waits = call(*gate)
    assert waits.exit_code == 4
    assert f"10 of 10 questions are open ({out / 'questions.jsonl'})" in waits.stdout
    assert f"triptych label {out}" in waits.stdout
    assert not (out / "gate.json").exists()
    other = call("gate", old, answers("other.jsonl", "so it is not"), "--people", "--out", out)
    assert (other.exit_code, "has answers of other models" in other.stderr) == (3, True)

    asked = call("label", out, typed="t\nq\n")
    assert f"1 answer added to {out / 'verdicts.jsonl'}" in asked.stdout
    assert not re.search("champion|candidate", asked.stdout)
    assert "9 of 10 questions are open" in call(*gate).stdout
    panel = Panel(out / "questions.jsonl", out / "verdicts.jsonl")
    for question in panel.open.values():  # a program adds to the file
        panel.add(question, "first" if question.first.startswith("four") else "second")
    ended = call(*gate)
    assert ended.exit_code == 0, ended.output
    assert "promoted: the candidate is preferred by a panel of people: win rate 95.0%" in ended.stdout
    record = json.loads((out / "gate.json").read_text())
    assert (record["decided_by"], record["win_rate"], record["judge_win_rate"]) == ("a panel of people", 0.95, None)
    assert (record["judge_before"], record["judge_after"]) == (pytest.approx(0.05), pytest.approx(0.95))
    assert sorted(path.name for path in out.iterdir()) == [
        "answers.jsonl", "gate.html", "gate.json", "questions.jsonl", "scores.jsonl", "verdicts.jsonl"
    ]
    assert "is decided, and no verdict changes it" in call("label", out).stderr
    assert call(*gate).exit_code == 3
    assert "neither a recipe nor the folder of a gate" in call("label", tmp_path).stderr
    assert "nobody decides" in call("gate", old, new, "--out", tmp_path / "x").stderr


def test_a_judge_stands_beside_people_at_a_gate_without_a_recipe(tmp_path: Path) -> None:
    for name, answer in (("old", "three words here"), ("new", "four words are here")):
        rows = [json.dumps({"prompt": f"{number}?", "completion": answer}) for number in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "judge.yaml").write_text("kind: rules\nrules: [{rule: length, most: 3}]\n")
    both = (tmp_path / "old.jsonl", tmp_path / "new.jsonl")

    def gate() -> Any:
        return triptych.gate(*both, judge=tmp_path / "judge.yaml", people=True, output=tmp_path / "gate")

    with pytest.raises(WaitingError, match="8 of 8 questions are open"):
        gate()
    panel = Panel(tmp_path / "gate/questions.jsonl", tmp_path / "gate/verdicts.jsonl")
    for place, question in enumerate(panel.all.values()):
        likes_new = place != 0
        panel.add(question, "first" if question.first.startswith("four") == likes_new else "second")
    decided = gate()
    assert (decided.win_rate, decided.judge, decided.judge_win_rate) == (7 / 8, "rules", 0)
    assert (decided.agreement, decided.agreement_prompts) == (1 / 8, 8)
    page = (tmp_path / "gate/gate.html").read_text()
    assert "By rules alone" in page
    assert "People and judge agree, on 8 prompts" in page
    with pytest.raises(RecipeError, match="people find their questions in the output"):
        triptych.gate(*both, people=True)
