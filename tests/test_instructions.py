"""Instructions that code can check: right and wrong answers of each, and what IFEval's own code says of the same."""

from __future__ import annotations

import importlib
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from triptych.data.files import json_line, read_comparisons, read_conversations, read_prompts
from triptych.data.normal_form import normalised
from triptych.data.rows import Place
from triptych.data.source import Source
from triptych.errors import DataError
from triptych.instructions.constraining import Constraining, constrain, constrain_answers, unconstrained
from triptych.instructions.following import followed
from triptych.instructions.registry import DRAWN, IFEVAL, INSTRUCTIONS, instruction
from triptych.instructions.text import sentences
from triptych.records import Check, Conversation, Prompt, user
from triptych.reward.rules import Rules, RulesReward

THREE = Constraining(most=3, seed=4)

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sea", "boat"]}, "A Boat on the SEA.", "A boat on the lake."),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea, seaside", "sea"),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, "sea", "sea sea"),
    ("keywords:word_count_different_numbers", {"keyword": "a.b", "frequency": 1, "relation": "at least"}, "a.b", "acb"),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "seaside", "the Sea"),
    ("keywords:letter_frequency", {"letter": "T", "let_frequency": 3, "let_relation": "at least"}, "Ttt", "tt"),
    ("letters:letter_counting2", {"letter": "t", "let_frequency": 3, "let_relation": "less than"}, "tt", "Ttt"),
    ("language:response_language", {"language": "de"}, "Das ist ein Haus und hier wohnen wir alle.",
     "That is a house, and all of us live here."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Dr. A came. He sat.",
     "Dr. A came by train."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "there are three"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
     "We ate.\n\n\"then, we slept.", "Then.\n\nWe slept."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
     "", "a"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a and b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yes. p. s. no", "Yes. PS no"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Yes.\nP.P.S no", "Yes.\nP.S. no"),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, "Yes.\nnote: no", "Yes. No"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b\n- c\n- d"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 a\nDay 2 b", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1'),
    ("detectable_format:title", {}, "<<a day>>\nIt was.", "<< >>\nIt was."),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "So it is."}, "Well. so it is.\"", "So it is. Well."),
    ("startend:quotation", {}, ' "yes" ', '"yes" he said'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "The (NASA) and ESA", "The nasa and ESA"),
    # DO N'T, CAN NOT and GON NA are two words each, as nltk has them; I is one.
    ("change_case:capital_word_frequency", {"capital_frequency": 6, "capital_relation": "at least"},
     "DON'T, you CANNOT, is GONNA be", "DON'T, you CANNOT, I see"),
    ("change_case:english_capital", {}, "THIS IS WHAT WE SAID TO THEM.", "This is what we said to them."),
    ("change_case:english_lowercase", {}, "this is what we said to them.", "This is what we said to them."),
    ("punctuation:no_comma", {}, "a b", "a, b"),
    ("keywords:word_once", {"keyword": "sea"}, "The Sea.", "Sea and seaside"),
    ("count:count_increment_word", {"keyword1": "a1", "keyword2": "b1"}, "a1 b1 B1", "a1 b1"),
    ("keywords:exclude_word_harder", {"keyword": "sea"}, "the sea.", "the sea is"),
    ("keywords:palindrome", {}, "A kayak!  level", "Boats only"),
    ("keywords:no_adjacent_consecutive", {}, "all cats bathe", "all big"),
    ("count:count_unique", {}, "one two three", "one two one"),
    ("first_word:first_word_answer", {"first_word": "Yes"}, "yes we can", "Yes, we can"),
    ("last_word:last_word_answer", {"last_word": "can"}, "Yes we can!", "Yes we can do"),
    ("keywords:start_end", {}, "Sea by the sea", "Sea by the sea."),
    ("copy:copy", {"prompt_to_repeat": "Say hi."}, " say HI.", "Say hi. Hi"),
    ("copy:copying_simple", {"prompt_to_repeat": "Say hi."}, "Say hi.", "Hi."),
    ("letters:letter_counting", {"N": 3, "relation": "at least"}, "a b c", "1 a b"),
    ("paragraphs:paragraphs", {}, "one\n***\ntwo", "one\n\ntwo"),
    ("paragraphs:paragraphs2", {}, "one\n\ntwo", "one\n\n\n\ntwo"),
    ("first_word:first_word_sent", {"first_word": "We"}, "We ate. We slept.", "We ate. They slept."),
    ("last_word:last_word_sent", {"last_word": "sea"}, "By the sea. In the sea!", "By the sea. In it."),
    ("detectable_format:square_brackets", {}, "[a] [b]", "[a b]"),
    ("detectable_format:bigram_wrapping", {}, "<<a b>> <<c d>> e", "<<a b>> c d"),
    ("count:lowercase_counting", {"N": 1}, "ONLY one", "only one"),
    ("punctuation:punctuation_dot", {}, "a!", "a."),
    ("punctuation:punctuation_exclamation", {}, "a.", "a!"),
]


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), CASES)
def test_a_right_answer_follows_and_a_wrong_one_does_not(
    kind: str, arguments: dict[str, Any], right: str, wrong: str
) -> None:
    checked = instruction(kind, arguments)
    assert [checked.follows(text) for text in (right, wrong)] == [bool(right), False]


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _, _, _ in CASES} == set(INSTRUCTIONS)
    assert len(IFEVAL) == 25


@pytest.mark.parametrize(("text", "count"), [
    ("Dear Ann,\n\nI am well. It rains.", 2), ("It rains.\n\nP.S. Call me.", 3), ("1. Eggs\n2. Milk\n3. Bread", 4),
    ("Who wins? #ourtown", 2), ("We won! and how", 2), ("He knows Dr. Brown. She does not.", 2),
    ("It is cold (i.e. below zero). Stay in.", 3), ("The book is by J. Smith. Read it.", 2),
    ('He said "No." Then he left.', 2), ("It grows.\n* It wilts.\n* It dies.", 3), ("Wait... What? Yes.", 2),
    ("It costs 3.50 euros. Cheap.", 2), ("no capital. here either. none", 3),
])
def test_sentences_are_as_many_as_nltks_punkt_finds(text: str, count: int) -> None:
    assert len(sentences(text)) == count
    nltk = pytest.importorskip("nltk")
    try:
        found = nltk.sent_tokenize(text)
    except LookupError:
        return  # its model is a download; the counts are its own
    assert len(found) == count


def test_sentences_are_whole() -> None:
    text = 'He said "No."  Then (she left.) *Why?* Dr.  Brown knows.'
    assert sentences(text) == ['He said "No."', "Then (she left.)", "*Why?*", "Dr.  Brown knows."]
    assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


def answers() -> list[str]:
    """Texts of many forms: two bodies in each of a dozen shapes."""
    bodies = (
        "The sea is wide. People sail on it, and Dr. Lee of NASA studies it! Isn't that great? We learn important "
        "things from water every time.",
        "Plan for a small garden\n\nFirst, dig. Then plant [flowers] and [herbs].\n\nIt's 3.5 metres wide (see MAP).",
    )
    return [shape for body in bodies for shape in (
        body, body.upper(), body.lower(), f'"{body}"', f"<<A title>>\n{body}", body.replace(". ", ".\n* "),
        "***".join(body.split(". ")), f"{body}******{body[4:]}", f"{body}\nP.S. Bring water.",
        json.dumps({"text": body}), f"```json\n{json.dumps([body])}\n```", body.replace(" ", " *and* ", 2),
        f"{body.replace(',', '')}\n\n**Note** Have a nice day!", f"Section 1\n{body}\nSection 2 - done",
    )]


def test_ifevals_own_code_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 kinds × 28 answers × 2 draws of arguments.

    Its models of sentences are a download; both sides cut them as we do, and words as nltk does.
    """
    pytest.importorskip("nltk")
    import nltk

    # Where it is imported first, it would download them.
    monkeypatch.setattr(nltk, "download", lambda *_, **__: True)
    theirs = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
    counting = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
    words = nltk.tokenize.NLTKWordTokenizer()
    monkeypatch.setattr(counting, "count_sentences", lambda text: len(sentences(text)))
    monkeypatch.setattr(
        counting.nltk, "word_tokenize", lambda text: [word for part in sentences(text) for word in words.tokenize(part)]
    )
    given = {"language:response_language": [{"language": "en"}, {"language": "de"}],
             "combination:repeat_prompt": [{"prompt_to_repeat": "the sea"}, {"prompt_to_repeat": "plan for"}]}
    rng = random.Random(0)
    tried, followed = 0, 0
    for cls in IFEVAL:
        likely = ["sea", "water", "people", "garden"]
        drawn = given.get(cls.kind) or [
            cls.draw(rng, likely, "Tell me about it.").model_dump(mode="json") for _ in range(2)
        ]
        for arguments, answer in itertools.product(drawn, answers()):
            other = theirs[cls.kind](cls.kind)
            other.build_description(**arguments)
            expected = bool(other.check_following(answer))
            assert instruction(cls.kind, arguments).follows(answer) is expected, (cls.kind, arguments, answer)
            tried, followed = tried + 1, followed + expected
    assert tried == 1400
    assert 200 < followed < 1100  # both kinds of answers


def test_added_instructions_are_the_same_again_and_do_not_contradict() -> None:
    prompts = [Prompt.of(f"Write about the number {number} and what people think of it.") for number in range(300)]
    made = constrain(prompts, THREE)
    assert made == constrain(prompts, THREE)
    assert made[7:9] == constrain(prompts[7:9], THREE)
    assert made != constrain(prompts, Constraining(most=3, seed=5))
    assert {len(prompt.checks) for prompt in made} == {1, 2, 3}
    assert {check.kind for prompt in made for check in prompt.checks} == set(DRAWN)
    for prompt, before in zip(made, prompts, strict=True):
        assert prompt.messages[-1].content.startswith(before.messages[-1].content)
        claims = [INSTRUCTIONS[check.kind].claims for check in prompt.checks]
        assert all(not one & other for one, other in itertools.combinations(claims, 2))
        assert all(instruction(check.kind, check.arguments) for check in prompt.checks)


def test_answers_follow_the_instructions_that_are_added() -> None:
    body = (
        "The sea near {} is wide and cold. People sail there in summer, and they like it! Some of them swim every "
        "morning. Others watch birds from the harbour wall. In winter nobody goes there at all."
    )
    asked = [Prompt.of(f"Tell me about place {place} by the sea.") for place in range(400)]
    conversations = [Conversation(prompt, body.format(place)) for place, prompt in enumerate(asked)]
    made = constrain_answers(conversations, THREE)
    assert made == constrain_answers(conversations, THREE)
    assert made[5:6] == constrain_answers(conversations[5:6], THREE)
    assert len(made) == len(conversations)
    kinds = {check.kind for conversation in made for check in conversation.prompt.checks}
    assert len(kinds) >= 30  # the others cannot be had from these sentences by a change of form
    for conversation in made:
        checks = conversation.prompt.checks
        assert checks
        assert all(instruction(check.kind, check.arguments).follows(conversation.answer) for check in checks)


def test_a_prompts_own_instructions_stay_and_are_not_contradicted() -> None:
    own = Check("change_case:english_capital")
    prompts = [Prompt(Prompt.of(f"Shout about {number}.").messages, checks=(own,)) for number in range(200)]
    for prompt in constrain(prompts, THREE):
        assert prompt.checks[0] == own
        assert not any(INSTRUCTIONS[check.kind].claims & {"case"} for check in prompt.checks[1:])
    conversations = [Conversation(prompt, "IT IS WIDE. IT IS COLD, AND WE LIKE THE SEA.") for prompt in prompts]
    for conversation in constrain_answers(conversations, THREE):
        assert conversation.prompt.checks[0] == own
        assert len(conversation.prompt.checks) > 1
        assert conversation.answer.isupper()
    everything = Prompt(prompts[0].messages, checks=(Check("detectable_format:square_brackets"),))
    only = Constraining(only=("startend:quotation",))
    assert constrain([everything], only) == [everything]


def test_added_instructions_are_taken_off_again() -> None:
    own = replace(Prompt.of("Name 3 birds; be brief"), checks=(Check("punctuation:no_comma"),))
    texts = [f"Describe the harbour of town {i}{end}" for i in range(200) for end in ("", ".", "?")]
    prompts = [own, *map(Prompt.of, texts)]
    for before, after in zip(prompts, constrain(prompts, THREE), strict=True):
        assert after != before
        assert normalised(unconstrained(after)) == normalised(before)
        assert unconstrained(after).checks == before.checks
        assert unconstrained(before) == before
    conversations = [Conversation(prompt, "An old one. It lies in the north.") for prompt in prompts[1:]]
    for conversation, learnt in zip(conversations, constrain_answers(conversations, THREE), strict=True):
        assert normalised(unconstrained(learnt.prompt)) == normalised(conversation.prompt)


def test_kinds_are_held_out() -> None:
    held = ("punctuation:no_comma", "startend:quotation")
    prompts = [Prompt.of(f"Question {number}?") for number in range(60)]
    trained = constrain(prompts, Constraining(without=held))
    assert not {check.kind for prompt in trained for check in prompt.checks} & set(held)
    measured = constrain(prompts, Constraining(only=held))
    assert {check.kind for prompt in measured for check in prompt.checks} == set(held)


def test_a_collections_name_stands_for_its_kinds() -> None:
    config = Constraining(only=("ifeval",))
    theirs = config.kinds
    assert config.only == ("ifeval",)  # it is shown as it was written
    assert set(theirs) == {cls.kind for cls in IFEVAL} & set(DRAWN)
    assert set(Constraining(without=("ifeval",)).kinds) == set(DRAWN) - set(theirs)
    assert set(Constraining(only=("open-instruct", "startend:quotation")).kinds) == (
        set(DRAWN) - set(theirs) | {"startend:quotation"}
    )


@pytest.mark.parametrize(("settings", "what"), [
    ({"only": ["punctuation:no_commas"]}, "did you mean 'punctuation:no_comma'"),
    ({"only": ["no_coma"]}, "did you mean 'punctuation:no_comma'"),
    ({"without": ["ifevel"]}, "did you mean 'ifeval'"),
    ({"without": ["copy:copy"]}, "written for it"),
    ({"only": ["punctuation:no_comma"], "without": ["punctuation:no_comma"]}, "no kind of instruction is left"),
    ({"most": 0}, "greater than or equal to 1"),
    ({"least": 3}, "least is 3 and most is 2"),
])
def test_what_cannot_be_added_is_named(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Constraining.model_validate(settings)


def test_a_source_is_constrained_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    rows = [{"instruction": f"Tell me about {i}.", "output": "The sea is wide. It is cold."} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    places: list[Place] = []
    source = Source(file=str(path), rows=(2, 5), constrain=Constraining(only=("punctuation:no_comma",)))
    conversations = read_conversations(source, places=places)
    assert [place.line for place in places] == [3, 4, 5]
    assert [conversation.prompt.messages[-1].content[:15] for conversation in conversations] == [
        f"Tell me about {i}" for i in (2, 3, 4)
    ]
    assert all(conversation.prompt.checks == (Check("punctuation:no_comma"),) for conversation in conversations)
    assert [prompt.checks for prompt in read_prompts(source)] == [(Check("punctuation:no_comma"),)] * 3
    compared = tmp_path / "pairs.jsonl"
    compared.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(DataError, match="constrain: is of prompts and conversations, and these are comparisons"):
        read_comparisons(Source(file=str(compared), constrain=Constraining()))


def test_a_kind_that_is_named_again_is_drawn_more_often_and_never_twice_for_a_prompt() -> None:
    prompts = [Prompt.of(f"Tell me about the number {i}.") for i in range(300)]
    two = ("keywords:existence", "punctuation:no_comma")

    def counted(only: tuple[str, ...]) -> Counter[str]:
        asked = constrain(prompts, Constraining(least=1, most=1, only=only))
        return Counter(check.kind for prompt in asked for check in prompt.checks)

    even, often = counted(two), counted((*two, two[0], two[0]))
    assert abs(even[two[0]] - 150) < 30  # 3.5 deviations
    assert abs(often[two[0]] - 225) < 27
    both = constrain(prompts, Constraining(least=2, most=2, only=(*two, two[0])))
    assert all({check.kind for check in prompt.checks} == set(two) for prompt in both)
    assert all(len(prompt.checks) == 2 for prompt in both)


@pytest.mark.parametrize(("answer", "bullets"), [
    ("1. Wash the rice.\n2. Cook it. Stir.\n3. Serve.", "* Wash the rice.\n* Cook it. Stir.\n* Serve."),
    ("- red\n\n- green\n- blue", "* red\n* green\n* blue"),
    ("One is red. Two is green. Three is blue.", "* One is red.\n* Two is green.\n* Three is blue."),
    ("1. red\n2. green", None),
    ("Colours:\n- red\n- green. Blue is third.", None),
])
def test_a_list_becomes_bullets_of_as_many_entries(answer: str, bullets: str | None) -> None:
    asked = instruction("detectable_format:number_bullet_lists", {"num_bullets": 3})
    changed = asked.rewrite(answer)
    assert asked.follows(changed) == (bullets is not None)
    assert bullets is None or changed == bullets


def test_a_list_is_cut_between_its_lines_alone() -> None:
    asked = instruction("length_constraints:number_paragraphs", {"num_paragraphs": 2})
    assert asked.rewrite("1. Wash.\n2. Cook it. Stir.\n3. Serve.") == "1. Wash.\n2. Cook it. Stir.\n***\n3. Serve."
    assert asked.rewrite("Wash it. Cook it.\n\nStir. Stir.\nServe.") == "Wash it. Cook it.\n***\nStir. Stir.\nServe."
    assert not asked.follows(asked.rewrite("Wash it."))
    shorter = instruction("length_constraints:number_words", {"num_words": 5, "relation": "less than"})
    assert shorter.rewrite("1. Wash it.\n2. Cook it. Stir.") == "1. Wash it."


@pytest.mark.parametrize(("answer", "changed"), [
    ("It rains. Bring a coat.", "It rains.\n\nP.S. Bring a coat."),
    ("One.\n\nTwo. Three.", "One.\n\nTwo.\n\nP.S. Three."),
    ("It rains.", None),
    ("It rains.\n***\nBring a coat.", None),
    ("Bring:\n- a coat\n- a hat", None),
])
def test_a_postscript_stands_behind_something(answer: str, changed: str | None) -> None:
    asked = instruction("detectable_content:postscript", {"postscript_marker": "P.S."})
    assert asked.rewrite(answer) == (changed or answer)
    assert asked.follows(asked.rewrite(answer)) == (changed is not None)


def test_the_order_of_the_draw_does_not_change_where_things_stand() -> None:
    answer = "Yesterday it rained. The sea is high. Boats stay inside. Bring something warm. Come soon. We wait."
    kinds = ("detectable_content:postscript", "length_constraints:number_paragraphs", "startend:quotation",
             "detectable_content:number_placeholders", "detectable_format:json_format")
    drawn = [constrain_answers([Conversation(Prompt.of("What is new?"), answer)],
                               Constraining(least=3, most=3, only=kinds, seed=seed))[0] for seed in range(60)]
    asked = [[check.kind for check in made.prompt.checks] for made in drawn]
    both = [made for made, found in zip(drawn, asked, strict=True) if set(kinds[:2]) <= set(found)]
    assert len({found.index(kinds[0]) < found.index(kinds[1]) for found in asked if set(kinds[:2]) <= set(found)}) == 2
    assert all("\n\nP." in made.answer.rpartition("***")[2] for made in both)
    marked = [made for made, found in zip(drawn, asked, strict=True) if {kinds[3], kinds[4]} <= set(found)]
    assert marked
    assert all(made.answer.startswith('{"answer": ') for made in marked)


def test_instructions_without_a_choice_give_one_answer_in_any_order() -> None:
    row = Conversation(Prompt.of("What is new?"), "Yesterday, it rained. Everybody stayed inside. Bring a coat.")
    kinds = ("detectable_format:title", "change_case:english_lowercase", "punctuation:no_comma")
    made = [constrain_answers([row], Constraining(least=3, most=3, only=kinds, seed=seed))[0] for seed in range(60)]
    assert len({tuple(check.kind for check in one.prompt.checks) for one in made}) == 6
    (answer,) = {one.answer for one in made}
    assert answer == "<<yesterday it rained everybody stayed>>\n\n" + row.answer.replace(",", "").lower()


def test_an_answer_is_put_into_small_letters_last() -> None:
    row = Conversation(Prompt.of("What is new?"), "It rained. Everybody stayed inside. Bring something warm.")
    kinds = ("detectable_content:postscript", "change_case:english_lowercase")
    for seed in range(10):
        (made,) = constrain_answers([row], Constraining(least=2, most=2, only=kinds, seed=seed))
        assert len(made.prompt.checks) == 2
        assert made.answer.islower()


def test_rows_hold_instructions_in_several_forms(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    checks = (Check("punctuation:no_comma"), Check("length_constraints:number_words",
                                                   {"num_words": 3, "relation": "at least"}))
    arguments = [{}, {"num_words": 3, "relation": "at least", "num_bullets": None}]
    kinds = [check.kind for check in checks]
    rows = [
        {"prompt": "a", "checks": [{"kind": check.kind, **check.arguments} for check in checks]},
        {"prompt": "a", "instruction_id_list": kinds, "kwargs": arguments},
        {"prompt": "a", "ground_truth": json.dumps([{"instruction_id": kinds, "kwargs": [None, arguments[1]]}])},
        {"prompt": "a", "ground_truth": repr([{"instruction_id": kinds, "kwargs": [None, arguments[1]]}])},
        {"prompt": "a", "ground_truth": [json.dumps({"instruction_id": kinds, "kwargs": [None, arguments[1]]})]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(path)
    assert [prompt.checks for prompt in prompts] == [checks] * 5
    path.write_text(json_line(prompts[0]))
    assert read_prompts(path) == prompts[:1]


@pytest.mark.parametrize(("row", "field", "what"), [
    ({"checks": [{"kind": "punctuation:no_commas"}]}, "checks[0]", "did you mean 'punctuation:no_comma'"),
    ({"checks": [{"kind": "startend:end_checker"}]}, "checks[0]", "end_phrase: field required"),
    ({"checks": [{"kind": "punctuation:no_comma", "n": 1}]}, "checks[0]", "n: extra inputs"),
    ({"checks": "punctuation:no_comma"}, "checks", "expected [{"),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "kwargs", "for each of the instructions"),
])
def test_a_wrong_instruction_is_a_fault_of_its_row(tmp_path: Path, row: dict[str, Any], field: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a", **row}) + "\n")
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    (fault,) = caught.value.faults
    assert (fault.line, fault.field) == (1, field)
    assert what in fault.message


def test_what_was_thought_before_an_answer_follows_nothing() -> None:
    prompt = Prompt(user("a"), checks=(Check("punctuation:no_comma"),))
    assert followed(prompt, "<think>\nWell, then\n</think>\n\nso") == [True]
    assert followed(prompt, "<think>\nWell then") == [False]


def test_the_rule_gives_the_share_that_is_followed() -> None:
    checks = (Check("punctuation:no_comma"), Check("punctuation:punctuation_dot"))
    prompt = Prompt(Prompt.of("a").messages, checks=checks)
    conversations = [Conversation(prompt, answer) for answer in ("a", "a.", "a, b.", " ")]
    share = Rules(RulesReward.model_validate({"rules": [{"rule": "instructions"}]}))
    strict = Rules(RulesReward.model_validate({"rules": [{"rule": "instructions", "strict": True}]}))
    assert share.score(conversations) == [1, 0.5, 0, 0]
    assert strict.score(conversations) == [1, 0, 0, 0]
    nothing = share.details([Conversation(Prompt.of("a"), answer) for answer in ("b", "")])
    assert nothing.totals == [0, 0]
    assert nothing.parts == {"instructions": [None, None]}


def test_the_page_lists_every_kind_with_its_arguments() -> None:
    page = (Path(__file__).parents[1] / "docs/instructions.md").read_text(encoding="utf-8")
    for kind, cls in INSTRUCTIONS.items():
        assert f"| `{kind}` | {', '.join(f'`{name}`' for name in cls.model_fields)} |" in page
