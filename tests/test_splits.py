"""Splits: one purpose for each use of a hash, what asks the same in one part, and what was learnt never measured on."""

from __future__ import annotations

import ast
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.base.pretrained import has_reasoning
from triptych.data import splits
from triptych.data.files import read_comparisons, write
from triptych.data.folder import DataFolder
from triptych.data.normal_form import normalised
from triptych.data.separation import COMPARED, PROVING, RATED, exposed, require_apart, shared, stored
from triptych.data.source import Source
from triptych.data.splits import PromptedRecord, form, fraction
from triptych.dataset import preparation
from triptych.dataset.preparation import DataPreparation, Prepared, prepare_data
from triptych.errors import DataError, RunError
from triptych.feedback.accumulation import accumulate
from triptych.instructions.registry import instruction
from triptych.pipeline.stage import StageContext
from triptych.records import Check, Comparison, Conversation, Message, Prompt, Rating, user
from triptych.reward.regression import FITTED_ON, _fits_weights

SOURCE = Path(splits.__file__).parents[1]
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def asked(count: int, what: str = "question {}") -> list[Prompt]:
    return [Prompt(user(what.format(number))) for number in range(count)]


def prompts_of(records: Sequence[PromptedRecord]) -> set[str]:
    return {form(record) for record in records}


class Listening:
    """Progress whose words are kept."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, note: str = "") -> None:
        pass

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def desk_at(folder: Path, seed: int = 1) -> StageContext:
    folder.mkdir(exist_ok=True)
    return StageContext(folder, folder, Listening(), seed, 60.0)


# Fractions

def purposes(path: Path) -> Iterator[str]:
    """The purpose of every call in a file to a function that takes one; what passes its own purpose on has none."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name) and node.func.id in ("fraction", "share_of", "split", "divided")
    ]
    for call in calls:
        purpose = call.args[0]
        written_out = isinstance(purpose, ast.Constant)
        passed_on = isinstance(purpose, ast.Name) and purpose.id == "purpose"
        assert written_out or passed_on, f"{path}:{call.lineno}: a purpose is written out where it is used"
        if isinstance(purpose, ast.Constant):
            yield str(purpose.value)


def test_no_two_uses_of_a_hash_have_the_same_purpose() -> None:
    files = [*SOURCE.rglob("*.py"), *(SOURCE.parents[1] / "benchmarks").rglob("*.py")]
    used = Counter(purpose for path in files for purpose in purposes(path))
    assert [purpose for purpose, count in used.items() if count > 1] == []
    assert used.keys() >= {"feedback", "conversations", "fit weights", "hold out new comparisons", "flip"}
    assert not any("\n" in purpose for purpose in used)


def test_fraction_is_uniform_and_fixed() -> None:
    places = [fraction("test", str(number), 0) for number in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert abs(sum(places) / 4000 - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    # From the definition: the first 53 bits of sha256("test\n7\nkey").
    assert fraction("test", "key", 7) == 0.9209216682022654
    assert len({fraction("test", "key", 8), fraction("other", "key", 7), fraction("test", "key", 7)}) == 3


def test_fractions_of_two_purposes_are_independent() -> None:
    """Of the keys that one purpose has in any tenth, the other has a tenth in each of its tenths."""
    pairs = Counter(
        (int(10 * fraction("one", str(key), 1)), int(10 * fraction("other", str(key), 1))) for key in range(20_000)
    )
    square = sum((pairs[i, j] - 200) ** 2 / 200 for i in range(10) for j in range(10))
    assert 60 < square < 150  # χ² with 99 degrees of freedom: 99 ± 14


@pytest.mark.parametrize("seed", [1, 2])
def test_the_regressions_fifth_is_a_fifth_of_every_split_and_of_what_arrives(tmp_path: Path, seed: int) -> None:
    rows = [Comparison(prompt, "a", "b") for prompt in asked(5000)]
    shares = {"reward": 0.5 * 0.85, "heldout": 0.5 * 0.15, "judge": 0.5 * 0.85, "judge_heldout": 0.5 * 0.15}
    parts = splits.split("feedback", rows, shares, seed)
    (tmp_path / "data").mkdir()
    arrived = [Comparison(prompt, "a", "b") for prompt in asked(2000, "another {}")]
    found = accumulate(desk_at(tmp_path / "new", seed), arrived, 0.2, tmp_path / "data", None)
    for part in (*parts.values(), found.train, found.heldout):
        fitted = sum(_fits_weights(row, seed) for row in part)
        assert abs(fitted - FITTED_ON * len(part)) < 4 * (len(part) * FITTED_ON * (1 - FITTED_ON)) ** 0.5


def test_a_prompt_is_in_one_split_whatever_the_order() -> None:
    rows = [Conversation(prompt, answer) for prompt in asked(1000) for answer in ("a", "b")]
    shares = {"train": 0.8, "none": 0.0, "test": 0.15, "judge": 0.05}
    parts = splits.split("test", rows, shares, seed=3)
    keys = {name: prompts_of(part) for name, part in parts.items()}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values())) == 1000
    assert sum(map(len, parts.values())) == 2000
    assert parts["none"] == []
    for name, share in shares.items():
        assert abs(len(keys[name]) - 1000 * share) <= 4 * (1000 * share * (1 - share)) ** 0.5
    some = random.Random(0).sample(rows, len(rows))[:1500]
    again = splits.split("test", some, shares, seed=3)
    assert all(prompts_of(part) <= keys[name] for name, part in again.items())
    assert splits.split("test", rows, shares, seed=4) != parts
    with pytest.raises(ValueError, match="add up to 1"):
        splits.split("test", rows, {"train": 0.5}, seed=0)


# The normal form

PROSE = "Write a long story about {} that finds its way home, with many friends and no enemies at all{}"


@pytest.mark.parametrize(("one", "other"), [
    ("What is it?", "WHAT  is\n it"), ("Which is 5?", "WHICH IS 5 ?"), ("Hello, how are you?", "hello how are you!"),
    ("What is C++?", "what is c++"), ("¿Qué hora es?", "qué hora es"), ("Don’t", "don't"), ("Café", "Cafe\u0301"),
    ("भारत की राजधानी क्या है?", "भारत की राजधानी क्या है।"), ("你好。", "你好"), ("3.5.", "3.5"),
    (PROSE.format("a dog (small)", "."), PROSE.format("a dog - small", "")),
    (PROSE.format("'a' dog", "!"), PROSE.format("a “dog”", "?")),
])
def test_prompts_that_ask_the_same(one: str, other: str) -> None:
    assert normalised(Prompt(user(one))) == normalised(Prompt(user(other)))


@pytest.mark.parametrize(("one", "other"), [
    ("3 + 4", "3 − 4"), ("3 + 4", "3 - 4"), ("What is C?", "What is C++?"), ("What is C?", "What is C#?"),
    ("C++", "C#"), ("1.5", "15"), ("-5", "5"), ("5!", "5?"), ("(3 + 4) * 2", "3 + (4 * 2)"), ("x > y?", "x < y?"),
    ("$5", "€5"), ("किताब", "कतब"), ("कि", "की"), ("resume", "résumé"), ("!?", "?!"), ("hi 🙂", "hi 🙁"), (":)", ":("),
    ("What does ; do?", "What does : do?"), ("What is f'(x)?", "What is f(x)?"), ("a.b", "a,b"),
    (PROSE.format("a program in C", "."), PROSE.format("a program in C#", ".")),
    (PROSE.format("a dog of 3 + 4 years", "."), PROSE.format("a dog of 3 - 4 years", ".")),
    (PROSE.format("a dog of 3 - 4 years", "."), PROSE.format("a dog of 3 4 years", ".")),
])
def test_prompts_that_differ_in_what_counts(one: str, other: str) -> None:
    assert normalised(Prompt(user(one))) != normalised(Prompt(user(other)))


def test_a_request_under_other_instructions_that_were_added_asks_the_same() -> None:
    plain = Prompt(user("Tell me about cats."))
    added = [
        replace(plain, messages=user(f"Tell me about cats. {made.sentences[0]}"), checks=(Check(kind, given),))
        for kind, given in (("change_case:english_lowercase", {}), ("detectable_format:number_bullet_lists",
                            {"num_bullets": 3})) for made in [instruction(kind, given)]
    ]
    assert {form(prompt) for prompt in (plain, *added)} == {form(plain)}
    assert shared({"prompts_test": [added[0]], "demonstrations": [plain], "prompts_improve": [added[1]]}) == {
        ("prompts_test", "demonstrations"): 1, ("prompts_test", "prompts_improve"): 1,
    }
    parts = preparation.set_apart([plain, *added, *asked(30)], DataPreparation.model_construct(
        test=100, gate=100, validation=100), 3)
    assert sum(form(row) == form(plain) for rows in parts.values() for row in rows) <= 1


def test_parts_with_fewer_prompts_than_asked_for_are_told() -> None:
    prepared = Prepared.model_construct(prompts_test=20, prompts_gate=10, prompts_validation=7)
    asked = DataPreparation.model_construct(test=400, gate=10, validation=8)
    (line,) = preparation.fewer_set_apart(prepared, asked)
    assert line.startswith("prompts set apart: 20 of 400 for test, 7 of 8 for validation, for each takes at most a")
    assert preparation.fewer_set_apart(prepared, DataPreparation.model_construct(test=20, gate=9, validation=7)) == []


def test_all_turns_count() -> None:
    def turns(*texts: str, system: str = "") -> Prompt:
        roles = ("user", "assistant")
        said = [Message(roles[place % 2], text) for place, text in enumerate(texts)]  # type: ignore[arg-type]
        return Prompt((*([Message("system", system)] if system else []), *said))

    assert form(turns("A story.", "Once.", "Continue.")) == form(turns("a story", "once", "CONTINUE"))
    different = [
        turns("Continue."), turns("A story.", "Once.", "Continue."), turns("A poem.", "Once.", "Continue."),
        turns("A story.", "Twice.", "Continue."), turns("Continue.", system="Be brief."),
    ]
    assert len(prompts_of(different)) == len(different)


# Duplicates, contradictions, contamination

def test_duplicates_go_and_the_order_stays() -> None:
    a, b = asked(2)
    rating = Rating(a, "x", {"help": 1.0, "truth": 2.0})
    with_task = Prompt(b.messages, task="t")
    assert splits.deduplicate([b, a, b, with_task]) == ([b, a, with_task], [b])
    assert splits.deduplicate([rating, Rating(a, "x", {"truth": 2.0, "help": 1.0})]) == ([rating], [rating])


def test_contradictions_are_the_same_pair_labelled_both_ways() -> None:
    a, b = asked(2)
    one, other = Comparison(a, "x", "y"), Comparison(a, "y", "x")
    assert splits.contradictions([one, Comparison(b, "y", "x"), Comparison(a, "x", "z"), other]) == [(one, other)]
    assert splits.contradictions([one, one]) == []


def test_held_out_prompts_leave_training() -> None:
    train = [Conversation(Prompt(user(text)), "a") for text in ("what is it", "What is that?", "!?", "?!")]
    kept, removed = splits.decontaminate(train, [Prompt(user("What  is IT?")), Prompt(user("!?"))])
    assert [row.prompt.messages[0].content for row in kept] == ["What is that?", "?!"]
    assert removed == [train[0], train[2]]


def test_every_answer_of_a_dialogue_is_learnt() -> None:
    turns = (*user("What is it?"), Message("assistant", "a"), *user("And that?"))
    dialogue = Conversation(Prompt(turns), "b")
    shorter = Conversation(Prompt(user("what is IT")), "c")
    for asked in (turns[:1], turns):
        assert splits.decontaminate([dialogue], [Prompt(asked)]) == ([], [dialogue])
    assert splits.decontaminate([dialogue], [Prompt(turns[2:])]) == ([dialogue], [])
    assert splits.decontaminate([Prompt(turns)], [Prompt(turns[:1])]) == ([Prompt(turns)], [])  # teaches no answer
    assert splits.taught_forms(dialogue) == {splits.form(shorter), splits.form(dialogue)}
    assert splits.opening(dialogue) == splits.opening(shorter) == splits.form(shorter)


@pytest.mark.parametrize("seed", range(3))
def test_a_dialogue_that_goes_on_where_another_ends_is_not_measured_on(tmp_path: Path, seed: int) -> None:
    def talk(number: int, *more: str) -> dict[str, Any]:
        texts = (f"Who is {number}?", f"{number} is here.", *more)
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
        return {"messages": turns}

    conversations = [row for number in range(40) for row in (talk(number), talk(number, "And now?", "Here."))]
    prompts = [{"prompt": f"Who is {number}?"} for number in range(0, 80)]
    folder = tmp_path / str(seed)
    taken_in(folder, {"conversations": conversations, "prompts": prompts})
    data = DataFolder(folder / "out")
    proving = {splits.form(row) for name in ("test", "gate", "validation") for row in data.prompts(name).read()}
    learnt = data.demonstrations("train").read()
    assert learnt
    taught = set[str]().union(*map(splits.taught_forms, learnt))
    assert not taught & proving
    assert not taught & set(map(splits.form, data.demonstrations("heldout").read()))


# The data stage

def varied(text: str, place: int) -> str:
    """The same question, written in one of three ways."""
    return (text, text.upper().replace("?", " ?"), text.lower().rstrip("?") + "!")[place % 3]


def taken_in(folder: Path, rows: dict[str, list[dict[str, Any]]], **settings: Any) -> tuple[Prepared, list[str]]:
    folder.mkdir(exist_ok=True)
    sources = {}
    for kind, content in rows.items():
        sources[f"{kind}.jsonl"] = path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    context = desk_at(folder / "out")
    names: dict[str, Any] = {kind: (f"{kind}.jsonl",) for kind in rows}
    metrics = prepare_data(context, DataPreparation(**names, **settings), sources)
    assert isinstance(context.progress, Listening)
    return metrics, context.progress.said


def kinds(count: int) -> dict[str, list[dict[str, Any]]]:
    """Conversations, comparisons, ratings, thumbs and prompts that ask the same `count` questions, each three times."""
    questions = [[varied(f"Who is number {number} here?", place) for place in range(3)] for number in range(count)]
    every = [text for texts in questions for text in texts]
    return {
        "conversations": [{"prompt": text, "completion": f"A {i}."} for i, text in enumerate(every)],
        "comparisons": [{"prompt": text, "chosen": f"A {i}.", "rejected": "B"} for i, text in enumerate(every)],
        "ratings": [{"prompt": text, "response": f"A {i}.", "scores": {"good": i % 5}} for i, text in enumerate(every)],
        "thumbs": [{"prompt": text, "completion": f"A {i}.", "label": i % 2 == 0} for i, text in enumerate(every)],
        "prompts": [{"prompt": text} for text in every],
    }


def test_nothing_is_measured_on_what_was_learnt_however_it_is_written(tmp_path: Path) -> None:
    """SFT on the chosen answers, every prompt in three ways, in five kinds of data."""
    settings = {"judge": 0.5, "heldout": 0.3, "test": 40, "gate": 40, "validation": 20}
    metrics, said = taken_in(tmp_path, kinds(400), **settings)
    parts = stored(tmp_path / "out")
    assert [name for name, rows in parts.items() if not rows] == ["thumbs_heldout"]  # held out where there is no reward
    assert shared(parts) == {}
    forms = {name: prompts_of(rows) for name, rows in parts.items()}
    for one in PROVING:
        assert not any(forms[one] & forms[other] for other in forms if other != one)
        assert len(forms[one]) == len(parts[one])
    for name, rated in zip(COMPARED, RATED, strict=True):
        assert forms[name] == forms[rated]
        assert len(parts[name]) == 3 * len(forms[name])  # the whole group of variants
        assert not any(forms[name] & forms[other] for other in COMPARED if other != name)
    audited = forms["comparisons_heldout"] | forms["comparisons_judge_heldout"]
    assert not audited & (forms["demonstrations"] | forms["demonstrations_heldout"])
    assert not (forms["comparisons_judge"] | forms["comparisons_judge_heldout"]) & forms["prompts_feedback"]
    # 300 questions are left, of which 0.3 are measured on: the others are demonstrated.
    measured = len(audited)
    assert len(forms["demonstrations"]) + len(forms["demonstrations_heldout"]) == 300 - measured
    assert metrics.demonstrations_removed == 3 * measured
    assert not audited & forms["thumbs"]
    assert (metrics.thumbs, metrics.thumbs_removed) == (3 * (300 - measured), 300 + 3 * measured)
    assert metrics.conversations_removed == metrics.comparisons_removed == metrics.ratings_removed == 300
    assert metrics.prompts_removed == 200  # two of three variants: the third is the one that is held out
    assert any(line.startswith(f"data: {3 * measured} conversations have the prompt of a held-out") for line in said)
    assert any("300 comparisons have a prompt that is held out" in line for line in said)


def test_what_is_left_out_is_said_with_its_lines(tmp_path: Path) -> None:
    rows = kinds(100)
    del rows["ratings"]
    rows["comparisons"] += rows["comparisons"][4:6] + rows["comparisons"][:2]
    rows["prompts"] += [rows["prompts"][7]]
    metrics, said = taken_in(tmp_path, rows, test=10, gate=10, validation=10)
    assert metrics.duplicate_comparisons == 4
    assert (
        "data: 4 comparisons are exact repetitions and are left out "
        "(comparisons.jsonl:301, comparisons.jsonl:302, comparisons.jsonl:303, ...)"
    ) in said
    assert "data: 1 prompts have the same turns as an earlier one and are left out (prompts.jsonl:301)" in said


def test_where_a_prompt_goes_does_not_depend_on_the_order(tmp_path: Path) -> None:
    rows = kinds(120)
    settings = {"judge": 0.4, "test": 15, "gate": 15, "validation": 10}
    taken_in(tmp_path / "one", rows, **settings)
    for content in rows.values():
        random.Random(3).shuffle(content)
    taken_in(tmp_path / "other", rows, **settings)
    one, other = (stored(tmp_path / name / "out") for name in ("one", "other"))
    assert {name: prompts_of(part) for name, part in one.items()} == {
        name: prompts_of(part) for name, part in other.items()
    }
    assert all(one[name] == other[name] for name in PROVING)


def test_too_few_prompts_to_keep_apart_are_refused(tmp_path: Path) -> None:
    few = {kind: rows for kind, rows in kinds(6).items() if kind in ("conversations", "comparisons")}
    with pytest.raises(DataError, match=r"too few different prompts|none is left"):
        taken_in(tmp_path, few, judge=0.5, test=2, gate=2, validation=8)


def test_parts_that_share_a_prompt_stop_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (Comparison(prompt, "x", "y") for prompt in (Prompt(user("Who?")), Prompt(user("WHO"))))
    with pytest.raises(RunError, match="comparisons_train and comparisons_heldout share 1"):
        require_apart({"comparisons_train": [a], "comparisons_heldout": [b]})
    with pytest.raises(RunError, match="comparisons_heldout and comparisons_judge share 1"):
        require_apart({"comparisons_heldout": [a], "ratings_judge": [Rating(b.prompt, "x", {"good": 1.0})]})
    require_apart({"comparisons_train": [a], "ratings_train": [Rating(b.prompt, "x", {"good": 1.0})]})
    require_apart({"comparisons_heldout": [a], "prompts_improve": [b.prompt]})
    # By its own fault the stage would write these: it asks before it writes.
    monkeypatch.setattr(preparation, "decontaminate", lambda rows, held_out: (list(rows), []))
    with pytest.raises(RunError, match="prompts_test and comparisons_train share"):
        taken_in(tmp_path, {kind: rows for kind, rows in kinds(60).items() if kind != "ratings"}, test=8, gate=8)


def test_what_comes_later_goes_where_its_prompt_is(tmp_path: Path) -> None:
    """Variants of what was compared or rated, with a seed that would deal them otherwise."""
    data = tmp_path / "data"
    data.mkdir()
    compared = [Comparison(prompt, "x", "y") for prompt in asked(40, "Who is {} here?")]
    rated = [Rating(prompt, "x", {"good": 1.0}) for prompt in asked(40, "What is {} here?")]
    for name, rows in (("train", compared[:20]), ("heldout", compared[20:])):
        write(data / f"comparisons_{name}.jsonl", rows)
    for name, ratings in (("train", rated[:20]), ("heldout", rated[20:])):
        write(data / f"ratings_{name}.jsonl", ratings)
    known: list[Comparison | Rating] = [*compared, *rated]
    new = [
        Comparison(Prompt(user(varied(row.prompt.messages[0].content, place))), "new", "y")
        for row in known for place in (1, 2)
    ]
    found = accumulate(desk_at(tmp_path / "out", seed=7), new, 0.5, data, data)
    both = {"comparisons_train": found.train, "comparisons_heldout": found.heldout}
    assert shared({**stored(data, "ratings_train", "ratings_heldout"), **both}) == {}
    assert prompts_of(found.train) == prompts_of([*compared[:20], *rated[:20]])
    assert prompts_of(found.heldout) == prompts_of([*compared[20:], *rated[20:]])
    write(data / "comparisons_judge.jsonl", [Comparison(Prompt(user("The judge's?")), "x", "y")])
    with pytest.raises(RunError, match="share 1"):
        accumulate(desk_at(tmp_path / "bad"), [Comparison(Prompt(user("the JUDGE'S")), "x", "y")], 0.5, data, None)


def test_no_comparison_that_comes_later_is_held_out_on_what_demonstrations_taught(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shown, other = asked(40, "Who is {} here?"), asked(40, "What is {} here?")
    write(data / "demonstrations.jsonl", [Conversation(prompt, "x") for prompt in shown])
    taught = [Comparison(Prompt(user(varied(prompt.messages[0].content, 1))), "x", "y") for prompt in shown]
    free = [Comparison(prompt, "x", "y") for prompt in other]
    said = Listening()
    found = accumulate(replace(desk_at(tmp_path / "out", seed=7), progress=said), [*taught, *free], 0.5, data, None)
    assert found.taught == 40
    assert prompts_of(found.train) >= prompts_of(taught)
    assert 0 < len(found.heldout) < 40
    assert prompts_of(found.heldout) < prompts_of(free)
    assert said.said == ["feedback: 40 of 80 new comparisons have the prompt of a demonstration, and train the reward "
                          "model: none of them is held out"]
    said = Listening()
    found = accumulate(replace(desk_at(tmp_path / "all"), progress=said), taught, 0.5, data, None)
    assert (len(found.train), found.heldout) == (40, [])
    assert DataFolder(tmp_path / "all").crossfitted("train")
    assert exposed(data, tmp_path / "all", "train")
    (data / "demonstrations.jsonl").unlink()  # of a model that is tuned already there are none
    assert not exposed(data, tmp_path / "all", "train")
    (line,) = said.said
    assert line.endswith("so they are cross-fitted, and the reward models start from the Base")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_real_comparisons_whose_chosen_answers_are_demonstrated(tmp_path: Path) -> None:
    source = REAL / "preferences" / "hh_harmless.jsonl"
    rows = read_comparisons(source, [])
    write(tmp_path / "sft.jsonl", [Conversation(row.prompt, row.chosen) for row in rows])
    config = DataPreparation(
        conversations=(Source(file="sft.jsonl"),), comparisons=(Source(file="hh.jsonl"),), wrong_rows="skip",
        judge=0.5, heldout=0.3, test=100, gate=100,
    )
    context = desk_at(tmp_path / "out")
    metrics = prepare_data(context, config, {"sft.jsonl": tmp_path / "sft.jsonl", "hh.jsonl": source})
    assert shared(stored(tmp_path / "out")) == {}
    assert metrics.conversations_removed == 278  # of 1,496: 264 ask what is held out, 14 go on from it
    assert metrics.demonstrations > 780


def with_thoughts(folder: Path) -> dict[str, Path]:
    """Conversations with reasoning, and three comparisons of which two differ in theirs alone."""
    rows = [
        {"messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "Yes.", "reasoning_content": f"Thought {number}."},
        ]}
        for number in range(40)
    ]
    chosen = "<think>\na\n</think>\n\nYes."
    pairs = [
        {"prompt": f"Which {number}?", "chosen": chosen, "rejected": "Yes." if number else "No."} for number in range(3)
    ]
    for name, written in (("sft.jsonl", rows), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in written))
    return {name: folder / name for name in ("sft.jsonl", "pairs.jsonl")}


def test_reasoning_is_learnt(tmp_path: Path) -> None:
    sources = with_thoughts(tmp_path)
    config = DataPreparation.model_validate({"conversations": ["sft.jsonl"], "comparisons": ["pairs.jsonl"]})
    counts = prepare_data(desk_at(tmp_path / "out"), config, sources)
    assert (counts.reasoning_left_out, counts.comparisons_alike) == (0, 0)
    assert has_reasoning(DataFolder(tmp_path / "out"))


def test_reasoning_that_is_left_out_is_counted(tmp_path: Path) -> None:
    sources = with_thoughts(tmp_path)
    config = DataPreparation.model_validate({"conversations": ["sft.jsonl"], "reasoning": "leave_out"})
    desk = desk_at(tmp_path / "out")
    counts = prepare_data(desk, config, sources)
    assert counts.reasoning_left_out == 40
    assert not has_reasoning(DataFolder(tmp_path / "out"))
    assert desk.progress.said[0] == (  # type: ignore[attr-defined]
        "data: 40 rows have reasoning before an answer, which is left out (sft.jsonl:1, sft.jsonl:2, sft.jsonl:3, ...)"
    )
    alike = config.model_copy(update={"comparisons": (Source(file="pairs.jsonl"),)})
    with pytest.raises(DataError, match="too few different prompts to divide into train, heldout"):
        prepare_data(desk, alike, sources)  # one is left
