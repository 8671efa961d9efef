"""Several people label: names, answers taken back, "both bad", overlap, agreement, guideline, JSON that is indented."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from test_page import asked
from triptych import json_text
from triptych.cli import app
from triptych.data.files import json_line, read_comparisons, read_saying, read_thumbs, read_verdicts, write
from triptych.errors import AnsweredError, DataError, RecipeError
from triptych.evaluate.answers import Pair
from triptych.evaluate.panel import preferred
from triptych.people.inbox import Inbox, PeopleLabelling, add_comparisons
from triptych.people.page import Deal, PageAnswer, PageWithdrawal
from triptych.people.questionnaire import Annotation, Questionnaire
from triptych.people.questions import Labels, Thumbs
from triptych.people.verdicts import Panel
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Comparison, Conversation, Prompt, Question, Thumb, Verdict, Withdrawal, user
from triptych.statistics.reliability import Reliability, alpha, kappa

KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Four observers and twelve units: example C of Krippendorff (2011), Computing Krippendorff's Alpha-Reliability."""

FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006
10050 11040 03300 10050 02031 00501 30012 51000 02040 10203
00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
"""The diagnoses of thirty patients, each by six psychiatrists, in five classes: table 1 of Fleiss (1971)."""


def test_alpha_is_the_one_of_the_published_example() -> None:
    units = zip(*(row.split() for row in KRIPPENDORFF.strip().splitlines()), strict=True)
    ballots = [[value for value in unit if value != "."] for unit in units]
    several = alpha([said for said in ballots if len(said) > 1])
    assert several == pytest.approx(0.743, abs=0.0005)
    assert Reliability.of(ballots, 4).alpha == several  # a unit with one value says nothing


def test_kappa_is_the_one_of_the_published_example() -> None:
    ballots = [[name for name, count in zip("abcde", row, strict=True) for _ in range(int(count))]
               for row in FLEISS.split()]
    assert (len(ballots), set(map(len, ballots))) == (30, {6})
    assert kappa(ballots) == pytest.approx(0.430, abs=0.0005)
    shares = [sum(said.count(name) for said in ballots) / 180 for name in "abcde"]
    assert shares == pytest.approx([0.144, 0.144, 0.167, 0.306, 0.239], abs=0.0006)


def test_agreement_is_told_only_where_it_can_be() -> None:
    assert Reliability.of([], 0).sentence.startswith("nobody has answered")
    alike = Reliability.of([["up", "up"], ["up", "up"], ["down"]], 2)
    assert (alike.alpha, alike.kappa, alike.several) == (None, None, 2)
    assert "agreement cannot be told from chance" in alike.sentence
    mixed = Reliability.of([["up", "up"], ["down", "down"], ["up", "down"], ["up", "up", "up"], ["up"]], 3)
    # Of those with two answers: P̄ = 2/3, P̄e = ½.
    assert mixed.raters == 2
    assert mixed.kappa == pytest.approx(1 / 3)
    # (n − 1) pairs that differ, 2 of 9, over those by chance, 2 · 6 · 3 of 72: 1 − 8 · 2 / 36
    assert mixed.alpha == pytest.approx(1 - 8 * 2 / 36)
    assert mixed.choices == {"down": 3, "up": 7}
    assert mixed.sentence.startswith("answers: 10 to 5 different questions (down 3, up 7), of 3 named people; answered "
                                     "by several: 4, Krippendorff's alpha 0.56, Fleiss' kappa 0.33")


def question(number: int, first: str = "one", second: str = "two") -> Question:
    return Question(Prompt(user(f"question {number}")), first, second)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Four questions, each for two people."""
    write(tmp_path / "questions.jsonl", [question(number) for number in range(4)])
    return Labels(tmp_path / "questions.jsonl", tmp_path / "labels.jsonl", Annotation(overlap=1))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_answer_has_a_name_and_the_last_word_of_each_person_counts(labels: Labels) -> None:
    labels.add(question(0), "first", "Ada")
    labels.add(question(0), "second", "Bo")
    before = labels.file.read_bytes()
    labels.take_back(question(0), "Ada")
    assert labels.file.read_bytes().startswith(before)  # nothing that was said is written over
    assert lines(labels.file)[0]["annotator"] == "Ada"
    assert lines(labels.file)[2] == {
        "prompt": [{"role": "user", "content": "question 0"}], "first": "one", "second": "two", "better": "withdrawn",
        "annotator": "Ada",
    }
    labels.take_back(question(0), "Ada")  # again, because the first reply was lost
    labels.take_back(question(1), "Ada")  # she said nothing there
    assert len(lines(labels.file)) == 3
    (only,) = read_comparisons(labels.file)
    assert only == question(0).compared(first_is_better=False)  # what is learnt has no name
    labels.add(question(0), "second", "Ada")
    (both,) = read_comparisons(labels.file)
    assert (both.chosen, both.votes_for_chosen, both.num_annotators, both.annotator) == ("two", 2, 2, None)
    append(labels.file, question(0).compared(first_is_better=True, annotator="Bo"))  # a program, without a withdrawal
    with pytest.raises(DataError, match=r"no row is left: 1 question that people answered give no pair: no majority"):
        read_comparisons(labels.file)


def append(file: Path, *records: Comparison | Thumb | Verdict | Withdrawal) -> None:
    with open(file, "a", encoding="utf-8") as open_file:
        open_file.writelines(map(json_line, records))


def test_a_file_without_names_is_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "old.jsonl"
    rows = [question(0).compared(True), question(0).compared(False), question(1).compared(True),
            Comparison(Prompt(user("p")), "a", "b", margin=2.0, votes_for_chosen=3, num_annotators=4)]
    write(file, rows)
    assert '"annotator"' not in file.read_text()
    assert read_comparisons(file) == rows
    said = [Verdict(question(0), "first"), Verdict(question(0), "tie"), Verdict(question(0), "second")]
    write(file, said)
    assert read_verdicts(file) == said
    liked = [Thumb(Prompt(user("p")), "a", True), Thumb(Prompt(user("p")), "a", False)]
    write(file, liked)
    assert read_thumbs(file) == liked


def test_where_both_are_bad_there_is_no_pair_and_it_is_counted(labels: Labels, tmp_path: Path) -> None:
    for number, choice in enumerate(("first", "both bad", "both bad")):
        labels.add(question(number), choice, "Ada")
    labels.add(question(2), "second", "Bo")
    assert lines(labels.file)[1]["better"] == "both bad"
    assert "chosen" not in lines(labels.file)[1]  # no other tool takes it for a pair
    said: list[str] = []
    assert [row.chosen for row in read_saying(read_comparisons, [labels.file], said.append)] == ["one"]
    (note,) = said
    assert note.endswith("2 questions that people answered give no pair: both bad (1), no majority (1)")
    assert labels.reliability.choices == {"both bad": 2, "first": 1, "second": 1}
    inbox = Inbox(labels.file, tmp_path / "arrivals")
    assert inbox.waiting == 1  # what would be learnt
    assert inbox.take(1).read_bytes() == labels.file.read_bytes()

    pair = Pair(question(0).prompt, "one", "two", 1, 1)
    assert preferred([pair], [Verdict(question(0), "both bad")]) == [0.5]


@pytest.mark.parametrize(
    ("said", "share"),
    [
        (["two", "two", "one"], 1.0), (["one", "two", "one"], 0.0), (["one", "two"], 0.5), (["two", "tie"], 0.5),
        (["two", "two", "tie"], 1.0), (["two", "two", "one", "both bad"], 0.5), (["both bad", "both bad", "two"], 0.5),
    ],
)
def test_at_the_gate_a_question_counts_once_by_its_majority(said: Sequence[str], share: float) -> None:
    turned = Question(question(0).prompt, "two", "one")
    verdicts = [
        Verdict(asked_, {asked_.first: "first", asked_.second: "second"}.get(each, each), f"person {place}")
        for place, each in enumerate(said) for asked_ in [(question(0), turned)[place % 2]]
    ]
    assert preferred([Pair(question(0).prompt, "one", "two", 1, 1)], verdicts) == [share]


def test_thumbs_of_several_people_become_one(tmp_path: Path) -> None:
    asked_about = [Conversation(Prompt(user("p")), answer) for answer in ("a", "b", "c")]
    write(tmp_path / "questions.jsonl", asked_about)
    thumbs = Thumbs(tmp_path / "questions.jsonl", tmp_path / "t.jsonl", Annotation(overlap=1, annotators=3))
    for name, choices in (("Ada", ("up", "down", "up")), ("Bo", ("up", "up", "down")), ("Cy", ("down", "down"))):
        for each, choice in zip(asked_about, choices, strict=False):
            thumbs.add(each, choice, name)
    thumbs.take_back(asked_about[2], "Bo")
    assert lines(thumbs.file)[-1]["label"] == "withdrawn"
    assert [(row.completion, row.label) for row in read_thumbs(thumbs.file)] == [("a", True), ("b", False), ("c", True)]
    assert list(thumbs.open_to("Bo").values()) == [asked_about[2]]
    assert thumbs.reliability.several == 2


def test_only_who_has_a_name_takes_an_answer_back(tmp_path: Path) -> None:
    row = {"prompt": "p", "first": "a", "second": "b", "better": "withdrawn"}
    (tmp_path / "v.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=re.escape("v.jsonl:1: annotator: missing: expected the name of whoever takes")):
        read_verdicts(tmp_path / "v.jsonl")


def test_each_person_gets_others_first_and_none_twice(labels: Labels) -> None:
    def next_for(name: str | None) -> list[str]:
        return [each.prompt.messages[0].content[-1] for each in labels.open_to(name).values()]

    assert next_for("Ada") == ["0", "1", "2", "3"]
    labels.add(question(0), "first", "Ada")
    labels.add(question(2), "first", "Bo")
    assert (next_for("Ada"), next_for("Bo")) == (["1", "3", "2"], ["1", "3", "0"])
    assert (next_for("Cy"), next_for(None)) == (["1", "3", "0", "2"], ["1", "3"])
    labels.add(question(0), "second", "Bo")
    assert "0" not in next_for("Cy")  # two have answered
    for name in ("Ada", "Cy"):
        with pytest.raises(AnsweredError):
            labels.add(question(0), "first", name)
    with pytest.raises(AnsweredError):
        labels.add(question(2), "first")  # nobody's: it may be Bo again
    labels.take_back(question(0), "Ada")
    assert next_for("Cy") == ["1", "3", "0", "2"]
    assert len(labels.open) == 4


def test_a_share_of_the_questions_is_asked_of_several() -> None:
    annotation = Annotation(overlap=0.2, annotators=3)
    wanted = [annotation.asked_of(question(number).key) for number in range(1000)]
    assert set(wanted) == {1, 3}
    assert 160 < wanted.count(3) < 240
    assert [Annotation(overlap=0.3).asked_of(question(number).key) for number in range(1000) if wanted[number] == 3] \
        == [2] * wanted.count(3)  # a larger share holds the smaller one
    assert {Annotation().asked_of(question(number).key) for number in range(100)} == {1}


def test_on_the_page_an_answer_is_taken_back_and_asked_again(labels: Labels) -> None:
    deal = Deal([labels])
    first = asked(deal, "Ada")["question"]
    said = PageAnswer(question=first, choice="first", name="x", annotator=" Ada\n")
    assert deal.take(said)
    assert deal.take(said)  # sent again
    assert asked(deal, "Bo")["question"] != first  # others first
    again = deal.take_back(PageWithdrawal(question=first, annotator="Ada"))
    assert (again["question"], again["open"]) == (first, 4)
    assert deal.take_back(PageWithdrawal(question=first, annotator="Ada")) == again
    assert deal.take(said.model_copy(update={"choice": "second", "name": "y"}))
    written = [row.get("better") or row["chosen"][0]["content"] for row in lines(labels.file)]
    assert written == ["one", "withdrawn", "two"]
    with pytest.raises(AnsweredError, match="not asked any more; your answer stays"):
        deal.take_back(PageWithdrawal(question=question(9).key, annotator="Ada"))
    restarted = Deal([Labels(labels.questions, labels.file, labels.annotation)])
    assert asked(restarted, "Ada")["open"] == 3
    restarted.take_back(PageWithdrawal(question=first, annotator="Ada"))
    assert asked(restarted, "Ada")["open"] == 4


def test_what_an_earlier_round_learnt_is_not_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    inbox = Inbox(file, tmp_path / "arrivals")
    append(file, question(0).compared(True, "Ada"), question(1).compared(True, "Bo"), Withdrawal(question(1), "Bo"))
    assert inbox.waiting == 1
    assert inbox.teaches(inbox.take(1))
    append(file, Withdrawal(question(0), "Ada"), question(0).compared(False, "Ada"))
    assert inbox.waiting == 0
    assert not inbox.teaches(inbox.take(2))
    assert inbox.give_back() == 0
    append(file, *(question(number).compared(True, "Ada") for number in range(2, 40)),
           Verdict(question(40), "both bad", "Bo"),
           question(0).compared(False, "Cy"), question(1).compared(False, "Cy"))  # 0 is settled, 1 was taken back
    assert inbox.waiting == 39
    (tmp_path / "output").mkdir()
    (tmp_path / "data").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    added = add_comparisons(context, PeopleLabelling(), tmp_path / "data", {"labels": inbox.take(2)})
    assert (added.comparisons, added.both_bad, added.too_late) == (39, 1, 2)
    assert "annotator" not in "".join(path.read_text() for path in (tmp_path / "output").iterdir())


RECIPE = (
    "name: tiny\nstorybook: {}\nbase: {train: {}}\n"
    "feedback: [{people: labels.jsonl, guideline: rules.md, overlap: 1}]\n"
    "gate: {judge: exact, people: verdicts.jsonl, overlap: 0.5, annotators: 3}\n"
)


def test_people_in_a_terminal_have_names_a_guideline_undo_and_hear_how_far_they_agree(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "rules.md").write_text("# Rules\n\nBe **kind**.\n")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    write(tmp_path / "runs" / "tiny" / "questions.jsonl", [question(number) for number in range(3)])

    def label(*arguments: str, typed: str = "") -> str:
        call = ["label", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), *arguments]
        ended = CliRunner().invoke(app, call, input=typed)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    shown = label("--name", "Ada", typed="z\n1\nb\nz\n2\n1\n")
    assert "Be **kind**." in shown
    assert "there is no answer that you gave now and could take back" in shown
    assert "3 answers added" in shown
    assert "3 to 3 different questions (first 2, second 1), of 1 named person; none was answered by two" in shown
    shown = label("--name", "Bo", typed="1\n2\n2\nq\n")
    assert "answered by several: 3, Krippendorff's alpha 0.44, Fleiss' kappa 0.33" in shown
    assert label("--agreement").count("answers: 6 to 3 different questions (first 3, second 3), of 2 named people") == 1
    assert [(row.chosen, row.votes_for_chosen) for row in read_comparisons(tmp_path / "labels.jsonl")] == [
        ("one", 2), ("two", 2)
    ]
    (tmp_path / "own.md").write_text("Be short.")
    assert "Be short." in label("--name", "Cy", "--guideline", str(tmp_path / "own.md"))
    refused = CliRunner().invoke(app, ["label", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"),
                                       "--name", " "])
    assert "label writes a name beside each answer" in refused.stderr


def test_a_guideline_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"rules.md: a guideline is a file of text or Markdown, and it"):
        load(tmp_path / "recipe.yaml")
    (tmp_path / "rules.md").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load(tmp_path / "recipe.yaml")
    (tmp_path / "rules.md").write_text("x" * 50_001)
    with pytest.raises(RecipeError, match="at most 50,000 characters"):
        load(tmp_path / "recipe.yaml")
    (tmp_path / "rules.md").write_text("x")
    recipe = load(tmp_path / "recipe.yaml")
    assert (recipe.annotation.overlap, recipe.gate.annotation.annotators) == (1, 3)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("people: verdicts.jsonl, ", ""))
    with pytest.raises(RecipeError, match="are of people, who decide where the gate names their file"):
        load(tmp_path / "recipe.yaml")


def test_a_gate_waits_for_as_many_people_as_should_answer(tmp_path: Path) -> None:
    write(tmp_path / "questions.jsonl", [question(number) for number in range(40)])
    panel = Panel(tmp_path / "questions.jsonl", tmp_path / "v.jsonl", Annotation(overlap=0.5))
    for each in panel.all.values():
        panel.add(each, "first", "Ada")
    twice = len(panel.open)
    assert 10 < twice < 30
    with pytest.raises(Exception, match=f"{twice} of 40 questions are open, {twice} of them for another person"):
        panel.require("the gate", panel.questions, "triptych label")
    for each in panel.open_to("Bo").values():
        panel.add(each, "tie", "Bo")
    panel.require("the gate", panel.questions, "triptych label")
    last = next(iter(panel.all.values()))
    panel.take_back(last, "Ada")
    assert len(read_verdicts(panel.take(tmp_path / "kept.jsonl"))) == 40 + twice - 1


@pytest.mark.parametrize(
    ("text", "lines_"),
    [
        ('{"a":1.0,"b":[1e400,{"c":[]},{}],"a":"{,:\\u00e9\\""}',
         ["{", '  "a": 1.0,', '  "b": [', "    1e400,", "    {", '      "c": []', "    },", "    {}", "  ],",
          '  "a": "{,:\\u00e9\\""', "}"]),
        (" [] ", ["[]"]), ("[true,null]", ["[", "  true,", "  null", "]"]),
        ('"text"', None), ("3", None), ('{"a":', None), ("[NaN]", None), ("Yes.", None), ("[" * 200 + "]" * 200, None),
        ("[" * 100_000, None),
    ],
)
def test_json_is_indented_and_nothing_in_it_changes(text: str, lines_: list[str] | None) -> None:
    shown = json_text.indented(text)
    assert shown == (None if lines_ is None else "\n".join(lines_))
    assert shown is None or re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)


@pytest.mark.parametrize("kind", [Panel, Labels, Thumbs])
def test_what_is_written_can_be_taken_back_and_read(tmp_path: Path, kind: type[Questionnaire[Any]]) -> None:
    asked_about = Conversation(Prompt(user("p")), "a") if kind is Thumbs else question(0)
    write(tmp_path / "questions.jsonl", [asked_about])
    source = kind(tmp_path / "questions.jsonl", tmp_path / "answers.jsonl")
    for choice in kind.choices:
        source.add(asked_about, choice.name, "Ada")
        assert [vote.choice for votes in source.answers.values() for vote in votes] == [choice.name]
        source.take_back(asked_about, "Ada")
        assert not any(source.answers.values())
    assert source.faults == []
