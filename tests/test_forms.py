"""The known forms of rows: each becomes its record, or is refused by its name; nothing of a row is left unsaid."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.data import files, forms
from triptych.data.rows import Place
from triptych.data.source import Source
from triptych.data.turning import REFERENCES
from triptych.dataset.preparation import read_all
from triptych.errors import DataError, Fault, RecipeError
from triptych.recipe import load
from triptych.records import (
    Comparison,
    Conversation,
    Document,
    Message,
    Prompt,
    Rating,
    Record,
    Thumb,
    ToolCall,
    user,
)

CASES = Path(__file__).parent.parent.parent / "shared" / "cases" / "forms.jsonl"
READERS: dict[str, Callable[..., list[Any]]] = {
    "documents": files.read_documents, "conversations": files.read_conversations, "prompts": files.read_prompts,
    "comparisons": files.read_comparisons, "ratings": files.read_ratings, "thumbs": files.read_thumbs,
}

ASK = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "So."}
BAD = {"role": "assistant", "content": "No."}
WHY = Prompt(user("Why?"))
BRIEF = Prompt((Message("system", "Be brief."), *user("Why?")))
TALK = Conversation(WHY, "So.")
PAIR = Comparison(WHY, "So.", "No.")
LIKED = Thumb(WHY, "So.", True)
LONG = Conversation(Prompt((*user("Hi"), Message("assistant", "Ho"), *user("Why?"))), "So.")

READ: list[tuple[str, dict[str, Any], list[Record]]] = [
    # Thumbs.
    ("thumbs", {"prompt": "Why?", "completion": "So.", "label": True}, [LIKED]),
    ("thumbs", {"prompt": "Why?", "completion": "So.", "label": "true"}, [LIKED]),
    ("thumbs", {"instruction": "Why?", "input": "", "output": "So.", "kto_tag": True}, [LIKED]),
    ("thumbs", {"messages": [ASK, GOOD], "label": False}, [Thumb(WHY, "So.", False)]),
    ("thumbs", {"prompt": "Why?", "response": "So.", "category": {"a": False}, "is_safe": True}, [LIKED]),
    # What a row says as a prompt is what its readers as a conversation or a comparison take for one.
    ("prompts", {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
                                              ASK, GOOD]}, [LONG.prompt]),
    ("prompts", {"prompt": "Why?", "messages": [{"role": "system", "content": "Be brief."}, ASK, GOOD]}, [BRIEF]),
    ("prompts", {"prompt": "Why?", "chosen": [{"role": "system", "content": "Be brief."}, ASK, GOOD],
                 "rejected": [{"role": "system", "content": "Be brief."}, ASK, BAD]}, [BRIEF]),
    ("prompts", {"instruction": "Why?", "input": "Now.", "output": ["So.", "No."]}, [Prompt(user("Why?\n\nNow."))]),
    # What somebody did not like, or rated, need not be right; a number may be a question's level.
    ("prompts", {"question": "Why?", "answer": "No.", "liked": False}, [WHY]),
    ("prompts", {"prompt": "Why?", "answer": "No.", "helpfulness": 1, "correctness": 0}, [WHY]),
    ("prompts", {"problem": "Why?", "answer": "4", "level": 5}, [Prompt(user("Why?"), "4")]),
    # Ratings.
    ("ratings", {"prompt": "Why?", "response": "So.", "helpfulness": 4, "annotator": 17},
     [Rating(WHY, "So.", {"helpfulness": 4.0})]),
    ("ratings", {"prompt": "Why?", "response": "So.", "scores": {"good": 4, "short": None}},
     [Rating(WHY, "So.", {"good": 4.0})]),
    ("ratings", {"prompt": "Why?", "response": "So.", "correctness": 4, "verbosity": "1", "turn_id": 9, "tokens": 3},
     [Rating(WHY, "So.", {"correctness": 4.0, "verbosity": 1.0})]),
    ("ratings", {"instruction": "Why?", "completions": [
        {"response": "So.", "annotations": {"honesty": {"Rating": "4"}, "truth": {"Rating": "N/A"}}},
        {"response": "No.", "overall_score": 3.5},
    ]}, [Rating(WHY, "So.", {"honesty": 4.0}), Rating(WHY, "No.", {"overall": 3.5})]),
    # Comparisons.
    ("comparisons", {"messages": [ASK], "chosen": GOOD, "rejected": BAD}, [PAIR]),
    ("comparisons", {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "So."},
                     "rejected": {"from": "gpt", "value": "No."}}, [PAIR]),
    ("comparisons", {"prompt": "Why?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [PAIR]),
    ("comparisons", {"prompt": "Why?", "chosen": [{"role": "system", "content": "Be brief."}, ASK, GOOD],
                     "rejected": [{"role": "system", "content": "Be brief."}, ASK, BAD]},
     [Comparison(BRIEF, "So.", "No.")]),
    ("comparisons", {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_rating": 4.5,
                     "rejected_rating": "2"}, [Comparison(WHY, "So.", "No.", margin=2.5)]),
    ("comparisons", {"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "No."},
     [Comparison(BRIEF, "So.", "No.")]),
    ("comparisons", {"instruction": "Why?", "chosen_response": "So.", "rejected_response": "No."}, [PAIR]),
    ("comparisons", {"question": "Why?", "response_j": "So.", "response_k": "No."}, [PAIR]),
    ("comparisons", {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 3, "score_rejected": 4},
     [Comparison(WHY, "So.", "No.", margin=-1.0)]),
    ("comparisons", {"chosen": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant: So.",
                     "rejected": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant: No."},
     [Comparison(LONG.prompt, "So.", "No.")]),
    ("comparisons", {"chosen": "Grass is green.", "rejected": "Grass is grey."},
     [Comparison(Prompt(user("Grass is")), " green.", " grey.")]),
    ("comparisons", {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, [PAIR]),
    ("comparisons", {"instruction": "Why?", "input": "", "output": ["So.", "No."]}, [PAIR]),
    ("comparisons", {"prompt": '["Why?"]', "response_a": '["No."]', "response_b": '["So."]', "winner_model_a": 0,
                     "winner_model_b": 1, "winner_tie": 0}, [PAIR]),
    ("comparisons", {"conversation_a": [ASK, BAD], "conversation_b": [ASK, GOOD], "winner": "model_b"}, [PAIR]),
    ("comparisons", {"prompt": "Why?", "response_1": "No.", "response_2": "So.", "preference_strength": 2},
     [Comparison(WHY, "So.", "No.", margin=2.0)]),
    ("comparisons", {"context": [ASK], "response1": "So.", "response2": "No.", "overall_preference": -3},
     [Comparison(WHY, "So.", "No.", margin=3.0)]),
    ("comparisons", {"history": "Why?", "human_ref_A": "No.", "human_ref_B": "So.", "labels": 0}, [PAIR]),
    ("comparisons", {"prompt": "Why?", "response_0": "No.", "response_1": "So.", "better_response_id": 1}, [PAIR]),
    ("comparisons", {"question": {"full_text": "Why?", "id": "x"}, "answer_0": "No.", "answer_1": "So.",
                     "score_0": -0.5, "score_1": 0.5}, [Comparison(WHY, "So.", "No.", margin=1.0)]),
    ("comparisons", {"info": {"post": "Why?"}, "summaries": [{"text": "No."}, {"text": "So."}], "choice": 1}, [PAIR]),
    ("comparisons", {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": [
        {"answer": "No.", "rank": 2}, {"answer": "So.", "rank": 1}, {"answer": "Never.", "rank": 3.0}]},
     [PAIR, Comparison(WHY, "So.", "Never.")]),
    ("comparisons", {"question": "Why?", "response_A": "No.", "response_B": "So.", "label": "B>A"}, [PAIR]),
    ("comparisons", {"prompt": "Why?", "answer_1": "So.", "answer_2": "No.", "preferred": "answer_1"}, [PAIR]),
    ("comparisons", {"trajectory": [{"from": "user", "value": "Why?"}], "chosen": "So.", "rejected": "No."}, [PAIR]),
    ("comparisons", {"instruction": "Why?", "input": "1 2", "output_1": "No.", "output_2": "So.", "preference": 2},
     [Comparison(Prompt(user("Why?\n\n1 2")), "So.", "No.")]),
    ("comparisons", {"idx": 7, "motivation_app": "a", "cmp_key": "m_n", "instruction": "Why?", "input": "1 2",
                     "response1": "No.", "response2": "So.", "annotator1": 2, "annotator2": 0, "annotator3": 2},
     [Comparison(Prompt(user("Why?\n\n1 2")), "So.", "No.", votes_for_chosen=2, num_annotators=3)]),
    ("comparisons", {"scenario": "advice", "label": 1, "prompt": "Why?", "response 1": "No.", "response 2": "So."},
     [Comparison(Prompt(user("Why?"), task="advice"), "So.", "No.")]),
    # Conversations.
    ("conversations", {"role_1": "a", "message_1": "Why?", "message_2": "So."}, [TALK]),
    ("conversations", {"messages": [ASK, GOOD], "prompt": "Why?", "prompt_id": "7"}, [TALK]),
    ("conversations", {"messages": [{"role": "developer", "content": "Be brief."}, ASK, GOOD]},
     [Conversation(BRIEF, "So.")]),
    ("conversations", {"messages": [ASK, GOOD | {"reasoning_content": "Hm."}]},
     [Conversation(WHY, "<think>\nHm.\n</think>\n\nSo.")]),
    ("conversations", {"messages": [ASK | {"content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
                                    GOOD]}, [TALK]),
    ("conversations", {"messages": [ASK, BAD | {"weight": 0}, ASK, GOOD | {"weight": 1}]},
     [Conversation(Prompt((*user("Why?"), Message("assistant", "No.", learnt=False), *user("Why?"))), "So.")]),
    ("conversations", {"messages": [ASK, GOOD, ASK, BAD | {"weight": 0}]}, [TALK]),
    ("conversations", {"prompt": [ASK], "completion": [GOOD]}, [TALK]),
    ("conversations", {"conversations": ["Why?", "So."]}, [TALK]),
    ("conversations", {"data": ["Hi", "Ho", "Why?", "So."], "id": "3"}, [LONG]),
    ("conversations", {"conversation": [{"input": "Hi", "output": "Ho"}, {"input": "Why?", "output": "So."}]}, [LONG]),
    ("conversations", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
                       "system": "Be brief."}, [Conversation(BRIEF, "So.")]),
    ("conversations", {"conversation": [ASK, GOOD], "model": "m"}, [TALK]),
    ("conversations", {"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": [
        {"role": "user", "parts": [{"text": "Wh"}, {"text": "y?"}]}, {"role": "model", "parts": [{"text": "So."}]}]},
     [Conversation(BRIEF, "So.")]),
    ("conversations", {"instruction": "Why?", "input": "1 2", "output": "So.", "history": [["Hi", "Ho"]]},
     [Conversation(Prompt((*user("Hi"), Message("assistant", "Ho"), *user("Why?\n\n1 2"))), "So.")]),
    ("conversations", {"instruction": "Why?", "context": "", "response": "So.", "category": "qa"}, [TALK]),
    ("conversations", {"prompt": "Why?", "response": "So."}, [TALK]),
    ("conversations", {"system_prompt": "Be brief.", "question": "Why?", "response": "So."},
     [Conversation(BRIEF, "So.")]),
    ("conversations", {"query": "Why?", "response": "So."}, [TALK]),
    ("conversations", {"inputs": "Why?", "targets": "So."}, [TALK]),
    ("conversations", {"input": [ASK], "output": "So."}, [TALK]),
    # Prompts.
    ("prompts", {"prompt": [ASK], "reward_model": {"style": "rule", "ground_truth": ["4"]}, "data_source": "sums"},
     [Prompt(user("Why?"), "4", "sums")]),
    ("prompts", {"text": "Add.", "code": "def f(): ...", "test_list": ["assert f() == 1", "assert f() < 2"]},
     [Prompt(user("Add."), "assert f() == 1\nassert f() < 2")]),
    ("prompts", {"prompt": "def f():", "test": "def check(g): assert g() == 1", "entry_point": "f"},
     [Prompt(user("def f():"), "def check(g): assert g() == 1\n\ncheck(f)\n")]),
    ("prompts", {"messages": [ASK], "ground_truth": "4", "dataset": "sums"}, [Prompt(user("Why?"), "4", "sums")]),
    ("prompts", {"prompt": "Why?", "answer": 4}, [Prompt(user("Why?"), "4")]),
    ("prompts", {"prompt": "Why?", "reference": 0.5}, [Prompt(user("Why?"), "0.5")]),
    ("prompts", {"instruction": "Why?", "input": "1 2", "output": "3"}, [Prompt(user("Why?\n\n1 2"))]),
    ("prompts", {"question": "Why?", "answer": "Two and two.\n#### 1,004"}, [Prompt(user("Why?"), "1,004")]),
    ("prompts", {"problem": "Why?", "solution": r"So \boxed{1} and \boxed{\frac{1}{2}}."},
     [Prompt(user("Why?"), r"\frac{1}{2}")]),
    ("prompts", {"inputs": "Why?", "targets": "So."}, [WHY]),
    ("prompts", {"messages": [ASK, GOOD]}, [WHY]),
    ("prompts", {"messages": [ASK, GOOD, ASK]}, [Prompt((*user("Why?"), Message("assistant", "So."), *user("Why?")))]),
    ("prompts", {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [WHY]),
    # Documents.
    ("documents", {"text": "Words."}, [Document("Words.")]),
    ("documents", {"content": "def f(): ...", "path": "f.py"}, [Document("def f(): ...")]),
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("comparisons", {"prompt": "Why?", "completion": "So.", "label": False},
     r"KTO \(TRL\): thumbs, not comparisons; name the file as `feedback: \[\{thumbs: FILE\}\]`"),
    ("conversations", {"prompt": "Why?", "completion": "So.", "label": False}, r"KTO \(TRL\): thumbs, not conv"),
    ("conversations", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}, r"comparisons, not conversations"),
    ("conversations", {"prompt": "Why?", "response": "So.", "helpfulness": 4, "verbosity": 1}, r"HelpSteer.*: ratings"),
    ("comparisons", {"prompt": "Why?", "response": "So.", "helpfulness": 4, "verbosity": 1}, r"HelpSteer.*: ratings"),
    ("ratings", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}, r"comparisons, not ratings"),
    ("thumbs", {"messages": [ASK, GOOD]}, r"conversations, not thumbs"),
    ("documents", {"messages": [ASK, GOOD]}, r"conversations, not documents; name the file as `instruct"),
    ("ratings", {"prompt": "Why?", "completions": ["One.", "Two."], "labels": [True, False]},
     r"process rewards.*jq -c"),
    ("ratings", {"input": "1 ки\n2 ки", "label": "1 +\n2 -", "task": "sums"}, r"Math-Shepherd: labels of single steps"),
    ("ratings", {"question": {"problem": "Why?"}, "label": {"steps": []}}, r"PRM800K's own: labels of single steps"),
    ("comparisons", {"ask": "Why is it?", "chosen": "It is so.", "rejected": "It is not."},
     r"prompt: missing.*`fields: \{prompt: ask\}`"),
    ("conversations", {"frage": "Why?", "antwort": "So."},
     r"no known form, with the fields frage, antwort; .*`fields: \{prompt: NAME, completion: NAME\}`"),
    ("conversations", {"Prompt": "Why?", "Completion": "So."},
     r"did you mean prompt by Prompt\?; did you mean completion"),
    ("conversations", {"message_tree_id": "1", "prompt": {"text": "Why?", "replies": []}}, r"oasst's trees, whole"),
    ("comparisons", {"prompt": "Why?", "chosen": ["So."], "rejected": ["No.", "Never."]},
     r"RewardBench 2.*triptych audit"),
    ("conversations", {"text": "### Human: Why?### Assistant: So."}, r"a transcript in one text.*python -c"),
    ("conversations", {"text": "<|im_start|>user\nWhy?<|im_end|>"}, r"text that is templated already"),
    ("conversations", {"message_id": "1", "parent_id": None, "text": "Why?", "role": "prompter", "lang": "en"},
     r"oasst's trees"),
    ("conversations", {"segments": [{"label": False, "text": "Why?"}, {"label": True, "text": "So."}]},
     r"axolotl's segments: .*jq -c"),
    ("comparisons", {"prompt": [ASK], "chosen": [GOOD | {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
                     "rejected": [BAD]}, r"chosen: calls tools"),
    ("comparisons", {"question": "Why?", "response_a": "So.", "response_b": "No.", "winner": 1},
     r"winner: must say who"),
    ("comparisons", {"instruction": "Why?", "response1": "So.", "response2": "No.", "annotator1": 1, "annotator2": 3},
     r"annotator2: must be 1 or 2"),
    ("comparisons", {"prompt": "Why?", "response 1": "So.", "response 2": "No.", "label": 3}, r"label: must be 0 or 1"),
    ("conversations", {"messages": [ASK, GOOD | {"weight": 0}]}, r"nothing to learn"),
    ("conversations", {"messages": [ASK, GOOD | {"weight": 2}]}, r"messages\[1\].weight: must be 0 or 1, got 2"),
    ("conversations", {"messages": [ASK | {"content": [{"type": "image_url", "image_url": {}}]}, GOOD]},
     r"a part of type \"image_url\": only text is read"),
    ("conversations", {"messages": [ASK, ASK, GOOD]}, r"merge turns .*wrong_rows: skip"),
    ("conversations", {"instruction": 3, "output": "So."},
     r":1: instruction: must be text or a list of messages, got 3"),
    ("conversations", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": 4}]},
     r":1: conversations\[1\].content: must be text, got 4"),
    ("prompts", {"promt": "Why?"}, r":1: prompt: missing; did you mean prompt by promt\?"),
    ("conversations", {"messages": [{"role": "system", "content": "Be long."}, ASK, GOOD], "system": "Be brief."},
     r":1: system: differs from the system turn"),
]


def written(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "row", "records"), READ, ids=[f"{kind}: {', '.join(row)}" for kind, row, _ in READ])
def test_a_known_form_becomes_its_records(
    tmp_path: Path, kind: str, row: dict[str, Any], records: list[Record]
) -> None:
    assert READERS[kind](written(tmp_path, row)) == records


@pytest.mark.parametrize(("kind", "row", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_be_read_is_refused_with_what_would_be_right(
    tmp_path: Path, kind: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        READERS[kind](written(tmp_path, row))
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_every_form_of_the_table_has_a_row_here() -> None:
    known = {form.name for kind, row, *_ in [*READ, *REFUSED] if (form := forms.recognised(kind, row))}  # type: ignore[arg-type]
    assert known == {form.name for form in forms.FORMS}


def table() -> str:
    """The known forms as docs/data.md has them."""
    lines = ["| form | row | read as |", "|---|---|---|"]
    for form in forms.FORMS:
        read = f"refused: {form.refused.partition(';')[0].partition(': `')[0]}" if form.refused else form.kind
        row = re.sub(r"^(\{.*?\})(?=$|: |, with)", r"`\1`", form.shown)
        lines.append(f"| {form.name} | {row} | {read} |")
    return "\n".join(lines) + "\n"


def test_the_documents_have_the_table_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    assert table() in page
    assert ", ".join(f"`{name}`" for name in REFERENCES) in page


def test_the_line_that_turns_a_transcript_turns_it(tmp_path: Path) -> None:
    row = {"text": "### Human: Hi### Assistant: Ho\nand ho### Human: Why?### Assistant: So."}
    path = written(tmp_path, row)
    with pytest.raises(DataError) as caught:
        files.read_conversations(path)
    line = re.search(r"python -c '(.*?)' <", str(caught.value), re.DOTALL)
    assert line is not None
    with path.open() as file:
        turned = subprocess.run([sys.executable, "-c", line[1]], stdin=file, capture_output=True, text=True, check=True)
    (tmp_path / "turned.jsonl").write_text(turned.stdout)
    prompt = Prompt((*user("Hi"), Message("assistant", "Ho\nand ho"), *user("Why?")))
    assert files.read_conversations(tmp_path / "turned.jsonl") == [Conversation(prompt, "So.")]


@pytest.mark.parametrize("calls", [
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "sky", "arguments": {"at": "noon"}}}]},
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "sky", "arguments": '{"at": "noon"}'}}]},
])
def test_tools_their_calls_and_their_turns_are_read_and_written_again(tmp_path: Path, calls: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "sky", "parameters": {}}}
    answered = {"role": "tool", "tool_call_id": "1", "name": "sky", "content": "blue"}
    row = {"messages": [ASK, {"role": "assistant", "content": None} | calls, answered, GOOD], "tools": [tool]}
    (read,) = files.read_conversations(written(tmp_path, row))
    call = ToolCall("sky", '{"at": "noon"}', "1")
    prompt = Prompt((*user("Why?"), Message("assistant", "", (call,)), Message("tool", "blue", (), "sky", "1")),
                    tools=(json.dumps(tool),))
    assert read == Conversation(prompt, "So.")
    files.write(tmp_path / "again.jsonl", [read])
    assert files.read_conversations(tmp_path / "again.jsonl") == [read]
    (ending,) = files.read_conversations(written(tmp_path, row | {"messages": row["messages"][:2]}))
    assert ending == Conversation(Prompt(user("Why?"), tools=(json.dumps(tool),)), "", (call,))
    shared = row | {"conversations": [
        {"from": "human", "value": "Why?"},
        {"from": "function_call", "value": '{"name": "sky", "arguments": {"at": "noon"}}'},
        {"from": "observation", "value": "blue"}, {"from": "gpt", "value": "So."}], "tools": json.dumps([tool])}
    del shared["messages"]
    (other,) = files.read_conversations(written(tmp_path, shared))
    assert [turn.role for turn in other.prompt.messages] == ["user", "assistant", "tool"]
    assert other.prompt.messages[1].tool_calls == (ToolCall("sky", '{"at": "noon"}'),)
    assert other.prompt.tools == prompt.tools


def notes_of(kind: str, path: Path | Source) -> list[str]:
    notes: list[Fault] = []
    READERS[kind](path, [], None, notes)
    return [str(note).replace(str(Source.of(path).file), "") for note in notes]


def test_fields_that_mean_something_are_named_once_for_each_file_with_the_number_of_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": "So.", "id": n} for n in range(6)]
    rows[1] |= {"solution": "4", "images": ["a.png"]}
    rows[4] |= {"solution": "5", "refrence": "4"}
    assert notes_of("conversations", written(tmp_path, *rows)) == [
        ":2: solution: is not read, in 2 of 6 rows, a reference",
        ":2: images: is not read, in 1 of 6 rows, pictures; only text is read",
        ":5: refrence: is not read, in 1 of 6 rows; did you mean reference?",
        ": not read, with the rows that have it: id (6)",
    ]
    assert notes_of("conversations", written(tmp_path, {"prompt": "Why?", "completion": "So.", "tools": []})) == []
    both = {"prompt": "Why?", "completion": "So.", "messages": [ASK, BAD]}
    assert notes_of("conversations", written(tmp_path, both)) == [
        ":1: messages: is not read, in 1 of 1 row, a conversation"
    ]
    turn = {"messages": [ASK, GOOD | {"audio": {"id": 1}}]}
    assert notes_of("conversations", written(tmp_path, turn)) == [
        ":1: messages[].audio: is not read, in 1 of 1 row, sound; only text is read"
    ]


def test_a_preferences_context_is_named_where_it_is_not_read(tmp_path: Path) -> None:
    notes: list[Fault] = []
    row = {"question": "Why?", "context": "It is late.", "chosen": "So.", "rejected": "No."}
    assert files.read_comparisons(written(tmp_path, row), notes=notes) == [PAIR]
    assert "context" in str(notes[0])


def test_an_objects_fields_that_other_rows_of_a_column_have_are_not_its_own(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": name, "arguments": arguments}}]}]}
        for name, arguments in (("weather", {"city": "Rome"}), ("sum", {"of": "2+2"}))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = files.read_conversations(tmp_path / "rows.parquet")
    assert read == files.read_conversations(written(tmp_path, *rows))
    assert [json.loads(row.tool_calls[0].arguments) for row in read] == [{"city": "Rome"}, {"of": "2+2"}]


def test_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    path = written(tmp_path, pair | {"winner": "model_a"}, pair | {"winner": "tie"}, pair | {"winner": "tie (bothbad)"})
    assert files.read_comparisons(path) == [PAIR]
    voted = {"instruction": "Why?", "response1": "So.", "response2": "No.", "annotator1": 1, "annotator2": 1}
    lines = [voted | {"annotator3": 0}, voted | {"annotator1": 2, "annotator3": 0}, voted | {"annotator2": 0}]
    assert files.read_comparisons(written(tmp_path, *lines, name="voted.jsonl")) == [
        Comparison(WHY, "So.", "No.", votes_for_chosen=2, num_annotators=3)
    ]
    placed = {"prompt": "Why?", "response 1": "So.", "response 2": "No."}
    lines = [placed | {"label": label} for label in (0, 2)]
    assert files.read_comparisons(written(tmp_path, *lines, name="placed.jsonl")) == [PAIR]
    assert notes_of("comparisons", path) == [
        ":2: 2 of 3 rows: is a tie, and says of no answer that it is better: left out"
    ]
    with pytest.raises(DataError, match="no row is left: 1 of 1 row is a tie"):
        files.read_comparisons(written(tmp_path, pair | {"winner": "tie"}))


def test_scores_that_become_a_margin_are_said(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "score_chosen": 2, "score_rejected": 1}
    assert notes_of("comparisons", written(tmp_path, row, row)) == [
        ":1: all 2 rows: score_chosen less score_rejected is the margin; `reward: {margin: none}` trains without"
    ]


def test_the_recipe_maps_any_other_form(tmp_path: Path) -> None:
    row = {"frage": "Why?", "meta": {"richtig": 4}, "prompt": "another"}
    path = written(tmp_path, row, row | {"frage": 3})
    source = Source(file=str(path), fields={"prompt": "frage", "reference": "meta.richtig"})
    skipped: list[Fault] = []
    assert files.read_prompts(source, skipped) == [Prompt(user("Why?"), "4")]
    assert skipped == [Fault(str(path), 2, "frage", "must be text or a list of messages, got 3")]
    said = [{"role": "user", "content": "Hi"}, GOOD]
    talk = written(tmp_path, {"frage": "Why?", "messages": said}, name="talk.jsonl")
    assert files.read_prompts(Source(file=str(talk), fields={"prompt": "frage"})) == [WHY]
    chosen = written(tmp_path, {"prompt": "Why?", "chosen": "So.", "rejected": "No."}, name="pairs.jsonl")
    assert files.read_conversations(Source(file=str(chosen), fields={"completion": "chosen"})) == [TALK]
    with pytest.raises(DataError, match=r"fields\.prompt: no row has a field fragge"):
        files.read_prompts(Source(file=str(path), fields={"prompt": "fragge"}))
    with pytest.raises(DataError, match=r"fields\.promt: no field of prompts; did you mean prompt\?"):
        files.read_prompts(Source(file=str(path), fields={"promt": "frage"}))


def test_a_recipe_says_which_fields_are_meant_and_where_a_dataset_is(tmp_path: Path) -> None:
    written(tmp_path, {"frage": "Why?", "antwort": "So."}, name="talk.jsonl")
    written(tmp_path, {"frage": "Why?", "besser": "So.", "schlechter": "No."}, name="pairs.jsonl")
    written(tmp_path, {"frage": "Why?", "gut": True, "antwort": "So."}, name="liked.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
name: mapped
base: {from: model}
instruct: {data: [{file: talk.jsonl, fields: {prompt: frage, completion: antwort}}]}
feedback:
  - {file: pairs.jsonl, fields: {prompt: frage, chosen: besser, rejected: schlechter}}
  - {thumbs: liked.jsonl, fields: {prompt: frage, completion: antwort, label: gut}}
improve: {prompts: [{file: talk.jsonl, fields: {prompt: frage}}]}
""")
    read = load(recipe)
    assert load(recipe, ["improve.prompts.0=talk.jsonl"]).preparation.prompts == (Source(file="talk.jsonl"),)
    records = read_all(read.preparation, read.sources)
    assert (records.conversations, records.comparisons, records.thumbs, records.prompts) == (
        [TALK], [PAIR], [LIKED], [WHY]
    )
    hub = load(recipe, ["improve.prompts.0={file: someone/sums, configuration: main, split: test, revision: v1}"])
    (source,) = hub.preparation.prompts
    assert hub.located(source) == Source(file="someone/sums", configuration="main", split="test", revision="v1")
    with pytest.raises(RecipeError, match="fieldz"):
        load(recipe, ["improve.prompts.0={file: talk.jsonl, fieldz: {}}"])


def test_arrays_tables_and_compressed_files_are_read_with_the_lines_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n {"prompt": "a"},\n\n {"prompt":\n "b"}, {"prompt": 3}]\n')
    (tmp_path / "a.csv").write_text('\ufeffprompt,reference\n"a, b\nc",4\n\nd,NA\ne\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text('messages\treference\n"[{""role"": ""user"", ""content"": ""a""}]"\t\n')
    (tmp_path / "b.csv").write_text("prompt;reference\na;1,5\n")
    read: dict[str, tuple[list[Prompt], list[Fault], list[Place]]] = {}
    for name in ("a.json", "a.csv", "a.tsv", "b.csv"):
        skipped: list[Fault] = []
        places: list[Place] = []
        read[name] = files.read_prompts(tmp_path / name, skipped, places), skipped, places
    a, b, c, d = (str(tmp_path / name) for name in read)
    assert read["a.json"] == (
        [Prompt(user("a")), Prompt(user("b"))], [Fault(a, 5, "prompt", "must be text or a list of messages, got 3")],
        [Place(a, 2), Place(a, 4)],
    )
    what = "has 1 cells, and the first line names 2 columns; put texts with ',' or line breaks into quotes"
    assert read["a.csv"] == (
        [Prompt(user("a, b\nc"), "4"), Prompt(user("d"), "NA")], [Fault(b, 6, None, what)], [Place(b, 2), Place(b, 5)],
    )
    assert read["a.tsv"] == ([Prompt(user("a"))], [], [Place(c, 2)])
    assert read["b.csv"] == ([Prompt(user("a"), "1,5")], [], [Place(d, 2)])


@pytest.mark.parametrize(("text", "message"), [
    ('[{"prompt": "a"} {"prompt": "b"}]', ":1: invalid JSON, a comma or the end of the array is missing"),
    ('[{"prompt": "a"},\n{"prompt" "b"}]', ":2: invalid JSON at column 11"),
    ('[{"prompt": "a"}]\n[]', ":1: more stands behind the end of the array"),
    ('[{"prompt": "a", "prompt": "b"}]', ":1: prompt: stands twice in one object"),
    ('[{"prompt": "a"}, ', ":1: invalid JSON at column"),
])
def test_an_array_is_read_as_strictly_as_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        files.read_prompts(path)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
def test_compressed_files_are_read_as_what_is_in_them(tmp_path: Path, name: str, ending: str) -> None:
    import pyarrow

    texts = {"rows.jsonl": '{"text": "a"}\n', "rows.json": '[{"text": "a"}]', "rows.csv": "text\na\n", "rows.txt": "a"}
    path = tmp_path / f"{name}{ending}"
    with pyarrow.output_stream(str(path), compression="detect") as file:
        file.write(texts[name].encode())
    assert files.read_documents(path) == [Document("a")]


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 100_000)[:-40])
    with pytest.raises(DataError, match=r"rows.jsonl.gz: cannot be unpacked"):
        files.read_documents(path)
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl.gz: cannot be unpacked"):
        files.read_documents(path)


def test_a_folder_of_shards_is_read_in_order_and_of_several_splits_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "README.md").write_text("A card.")
    for number, text in enumerate("ab"):
        written(data, {"text": text}, {"text": 3}, name=f"train-0000{number}-of-00002.jsonl")
    written(data, {"text": "c"}, name="test-00000-of-00001.jsonl")
    skipped: list[Fault] = []
    places: list[Place] = []
    assert files.read_documents(tmp_path, skipped, places) == [Document("a"), Document("b")]
    assert [Path(place.file).name for place in places] == [f"train-0000{n}-of-00002.jsonl" for n in (0, 1)]
    assert [fault.line for fault in skipped] == [2, 2]
    assert files.read_documents(Source(file=str(tmp_path), split="test")) == [Document("c")]
    with pytest.raises(DataError, match="split: no split dev: there are test, train"):
        files.read_documents(Source(file=str(tmp_path), split="dev"))
    plain = tmp_path / "plain"
    plain.mkdir()
    written(plain, {"text": "e"}, name="2.jsonl")
    shutil.copy(written(plain, {"text": "d"}, name="1.jsonl"), plain / "3.json")
    assert files.read_documents(plain) == [Document("d"), Document("e"), Document("d")]


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one, other = (datasets.Dataset.from_list([{"prompt": [ASK], "reference": text}]) for text in ("1", "2"))
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(str(tmp_path / "both"))
    assert files.read_prompts(tmp_path / "one") == [Prompt(user("Why?"), "1")]
    assert files.read_prompts(tmp_path / "both") == [Prompt(user("Why?"), "1")]
    assert files.read_prompts(Source(file=str(tmp_path / "both"), split="test")) == [Prompt(user("Why?"), "2")]
    with pytest.raises(DataError, match="split: no split dev: there are test, train"):
        files.read_prompts(Source(file=str(tmp_path / "both"), split="dev"))


@pytest.mark.skipif(not CASES.is_file(), reason="needs ../shared/cases/forms.jsonl")
def test_the_forms_that_people_bring_are_read_or_refused_by_name(tmp_path: Path) -> None:
    refused = {
        "rewardbench_v2": "RewardBench 2", "rmbench": "RM-Bench", "kto_unpaired_conv": "thumbs: FILE",
        "kto_unpaired_std": "thumbs: FILE", "pref_tools": "calls tools", "pref_same_but_whitespace": "two different",
        "two_users_in_a_row": "merge turns", "ends_with_user": "take the last turn away", "oasst_text": "transcript",
        "prm_stepwise": "process rewards",
    }
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        path = written(tmp_path, *case["rows"])
        if case["name"] in refused:
            with pytest.raises(DataError, match=refused[case["name"]]):
                READERS[case["kind"]](path)
        else:
            assert READERS[case["kind"]](path), case["name"]
