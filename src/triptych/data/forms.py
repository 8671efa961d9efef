"""The known forms of rows: each by its name, how it is recognised, and how it becomes a row in Triptych's own fields.

A row is recognised by its fields alone. Its values then bear our names, and pass the same strict reading as a row that
came with them. A form that cannot be read is refused by its name, with the line that turns it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from triptych.data.serialised import TEMPLATED, TRANSCRIPT
from triptych.data.turning import (
    ANNOTATORS,
    CHOSEN,
    LABELS,
    PAIRS,
    QUESTIONS,
    REFERENCES,
    REJECTED,
    Fields,
    FormError,
    LeftOut,
    Values,
    alternate,
    as_comparison,
    as_prompt,
    divide_answers,
    divide_outputs,
    divide_turns,
    first,
    gather_ratings,
    is_flag,
    is_texts,
    is_turns,
    join_input,
    join_parts,
    list_answers,
    named,
    number,
    order_by_annotators,
    order_by_number,
    order_by_place,
    order_by_scores,
    order_by_votes,
    order_by_winner,
    order_conversations,
    order_summaries,
    pair_in,
    pair_with_best,
    question_text,
    rating_columns,
    superseded,
    take_tests,
    take_truth,
    unfold_exchanges,
    unwrap_input,
    with_system,
)
from triptych.instructions.rows import checks_in

Kind = Literal["documents", "conversations", "prompts", "comparisons", "ratings", "thumbs"]

OWN: Mapping[Kind, tuple[str, ...]] = {
    "documents": ("text",),
    "conversations": ("messages", "prompt", "completion", "reference", "task", "tools", "checks"),
    "prompts": ("prompt", "reference", "task", "tools", "checks"),
    "comparisons": (
        "prompt", "chosen", "rejected", "margin", "source", "votes_for_chosen", "num_annotators", "section", "subset",
        "chosen_first", "annotator", "first", "second", "better", "reference", "task", "tools", "checks",
    ),
    "ratings": ("prompt", "response", "scores", "reference", "task", "tools", "checks"),
    "thumbs": ("prompt", "completion", "label", "annotator", "reference", "task", "tools", "checks"),
}
"""The fields that a reader knows."""

PLACES: Mapping[Kind, str] = {
    "documents": "base: {text: [FILE]}", "conversations": "instruct: {data: [FILE]}",
    "prompts": "improve: {prompts: [FILE]}", "comparisons": "feedback: [{file: FILE}]",
    "ratings": "feedback: [{ratings: FILE}]", "thumbs": "feedback: [{thumbs: FILE}]",
}
"""The line of a recipe that names a file of each kind."""

SIGNS: Mapping[Kind, tuple[str, ...]] = {
    "documents": ("text",), "conversations": ("messages", "completion"), "prompts": ("prompt",),
    "comparisons": ("chosen", "rejected"), "ratings": ("response", "scores"), "thumbs": ("completion", "label"),
}
"""Fields of which one says that a row is meant to be of the kind, so that what is missing of it is its fault."""

MAPPED: Mapping[Kind, tuple[str, ...]] = {
    "documents": ("text",), "conversations": ("prompt", "completion"), "prompts": ("prompt", "reference"),
    "comparisons": ("prompt", "chosen", "rejected"), "ratings": ("prompt", "response", "scores"),
    "thumbs": ("prompt", "completion", "label"),
}
"""The fields that a recipe maps where a row has no known form."""

SYSTEM = ("system", "system_prompt", "system_message")
MEANING: Mapping[str, str] = {
    "system": "a system turn", "tools": "the tools of a conversation", "functions": "the tools of a conversation",
    "tool_calls": "calls of tools", "function_call": "calls of tools", "tool_call_id": "which call a tool answers",
    "weight": "which turns are learnt", "reasoning_content": "reasoning", "thinking": "reasoning",
    "reasoning": "reasoning", "images": "pictures; only text is read", "image": "pictures; only text is read",
    "videos": "films; only text is read", "audio": "sound; only text is read",
    **dict.fromkeys((*REFERENCES[1:], "reward_model"), "a reference"),
    **dict.fromkeys(("score", "scores", "rating", "score_chosen", "score_rejected", "reward"), "scores"),
    "label": "a label", "answers": "references", "messages": "a conversation",
    **dict.fromkeys(("completion", "response", "output"), "an answer"),
    **dict.fromkeys(("chosen", "rejected"), "a comparison"),
    **dict.fromkeys(("context", "input"), "a part of the question"), "history": "earlier turns",
    **dict.fromkeys(("choices", "options"), "what is chosen from"),
}
"""Fields that mean something wherever they stand, and what."""

ATTRIBUTES = (
    "helpfulness", "correctness", "coherence", "complexity", "verbosity", "harmlessness", "honesty", "truthfulness",
    "instruction_following",
)
"""Attributes by which a row is known to be a rating, whoever reads it."""
@dataclass(frozen=True, slots=True)
class Form:
    """A known form.

    Attributes:
        name: whose it is.
        kind: what its rows are.
        names: for our fields those of the form: `a|b` is the first of the two that is given, `a?` may be missing.
        also: other fields of it that are read.
        when: what else is true of its rows.
        turn: what must be done to the values that bear our names; several rows may come of one.
        refused: where it cannot be read: why, and the line that turns it.
        row: as the documents show it, where the names do not.
    """

    name: str
    kind: Kind
    names: Mapping[str, str]
    also: tuple[str, ...] = ()
    when: Callable[[Values], bool] | None = None
    turn: Callable[[Values, Fields], list[Fields] | None] | None = None
    refused: str | None = None
    row: str | None = None

    def fits(self, names: Set[str]) -> bool:
        """Whether rows of such fields may have this form."""
        wanted = (choice for choice in self.names.values() if not choice.endswith("?"))
        return all(any(name in names for name in choice.split("|")) for choice in wanted)

    @property
    def shown(self) -> str:
        """Its row, as the documents show it."""
        names = (name.removesuffix("?").replace("|", " or ") for name in self.names.values())
        return self.row or f"{{{', '.join(names)}}}"


@dataclass(slots=True)
class Turned:
    """What became of a row.

    Attributes:
        rows: none, one or several, in our fields.
        names: the row's own names of our fields, for what is said of it.
        unread: fields that nobody reads.
        faults: what is wrong, with the row's own fields.
        notes: what was done to it that its reader should know.
    """

    rows: Sequence[Values] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    faults: list[tuple[str | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def turned(kind: Kind, values: Values, mapped: Collection[str] = ()) -> Turned:
    """A row in our fields.

    Args:
        kind: what is read.
        values: the row.
        mapped: our fields of which the recipe says itself what they are; where there are any, a row is what is read.
    """
    values = {name: value for name, value in values.items() if value is not None}
    try:
        instructions = checks_in(values)
    except ValueError as error:
        field, _, what = str(error).partition(": ")
        return Turned(faults=[(field, what)])
    if instructions is not None:
        checks = [{"kind": check.kind, **check.arguments} for check in instructions[1]]
        others = {name: value for name, value in values.items() if name not in (instructions[0], "kwargs")}
        values = others | {"checks": checks}
    form = recognised(kind, values, bool(mapped))
    if form is None and values and not any(name in OWN[kind] or near(name, OWN[kind]) for name in values):
        mapped_names = ", ".join(f"{our}: NAME" for our in MAPPED[kind])
        return Turned(faults=[(None, f"no known form, with the fields {', '.join(values)}; say which of them are meant "
                                     f"beside the file's name, `fields: {{{mapped_names}}}`")])
    if form is None:
        return Turned([values], unread=[name for name in values if name not in OWN[kind]])
    if form.refused is not None:
        return Turned(faults=[(None, f"{form.name}: {form.refused}")])
    if form.kind != kind and kind != "prompts":
        return Turned(faults=[(None, f"{form.name}: {form.kind}, not {kind}; name the file as `{PLACES[form.kind]}`")])
    return _turned(form, kind, values, given="prompt" in mapped)


def recognised(kind: Kind, values: Values, mapped: bool = False) -> Form | None:
    """The form of a row: of this kind, else of another; None where it is no known one."""
    names = frozenset(name for name, value in values.items() if value is not None)
    rated = kind == "conversations" and sum(number(values.get(name)) is not None for name in ATTRIBUTES) > 1
    return next((form for form in _with(names, kind, mapped, rated) if form.when is None or form.when(values)), None)


@lru_cache(1024)
def _with(names: frozenset[str], kind: Kind, mapped: bool, rated: bool) -> tuple[Form, ...]:
    """The forms that rows of such fields may have, in the order in which they are tried."""
    own = [form for form in FORMS if form.kind == kind]
    if kind == "prompts":
        own += [form for form in FORMS if form.kind in ("comparisons", "thumbs", "ratings", "conversations")]
    elif not mapped:
        # One that says more than what is read: an answer that somebody disliked is nothing to learn.
        before = {"conversations": ("thumbs", "comparisons"), "comparisons": ("thumbs",), "ratings": ("thumbs",)}
        more = [form for form in FORMS if form.kind in before.get(kind, ())]
        own = [*(form for form in FORMS if rated and form.kind == "ratings"), *more, *own]
    if not any(name in names for name in SIGNS[kind]):
        own += [form for form in FORMS if form.kind not in (kind, "prompts")]
    return tuple(form for form in own if form.fits(names))


def _turned(form: Form, kind: Kind, values: Values, *, given: bool) -> Turned:
    names = {ours: name for ours, choice in form.names.items() if (name := named(values, choice)) is not None}
    ours = {name: value for name, value in values.items() if name in OWN[kind]}
    ours |= {our: values[name] for our, name in names.items()}
    for our, name in names.items():
        if our != name and name in ours and name not in names:
            del ours[name]  # it stands under its other name
    read = {*OWN[kind], *names.values(), *form.also, *SYSTEM}
    if form.turn is gather_ratings:
        read |= set(rating_columns(values))
    notes: list[str] = []
    try:
        if names.get("prompt") == "instruction":
            join_input(values, ours)
            read |= {"input", "context", "history"}
        rows = form.turn(values, ours) if form.turn is not None else None
        rows = [ours] if rows is None else rows
        system = next((values[name] for name in SYSTEM if values.get(name)), None)
        if system is not None:
            rows = [with_system(row, system) for row in rows]
        if kind == "prompts":
            judged = _judged(values)
            asked = [as_prompt(row, values, read, judged, given=given) for row in rows[:1]]
            rows = [{name: value for name, value in row.items() if name in OWN[kind]} for row in asked]
        elif kind == "comparisons":
            rows = [as_comparison(row, values, read, notes) for row in rows]
    except FormError as error:
        return Turned(faults=[(error.field, error.message)])
    except LeftOut as reason:
        return Turned(notes=[str(reason)])
    if kind == "conversations":
        read -= {name for row in rows for name in superseded(row)}
    renamed = {our: name for our, name in names.items() if our != name}
    unread = [name for name, value in values.items() if name not in read and value not in ("", [], {})]
    return Turned(list(rows), renamed, unread, notes=notes)


def _judged(values: Values) -> set[str]:
    """The fields of a row that hold an answer which somebody rated, or liked or not."""
    names = frozenset(values)
    # Any number beside an answer may be a level of the question; only known attributes rate it.
    kinds = ("thumbs", "ratings") if any(number(values.get(name)) is not None for name in ATTRIBUTES) else ("thumbs",)
    forms = (form for form in FORMS if form.kind in kinds and form.refused is None and form.fits(names))
    return {
        name for form in forms if form.when is None or form.when(values)
        for ours in ("completion", "response") if (name := named(values, form.names.get(ours, ""))) is not None
    }


def _are_turns_before(row: Values) -> bool:
    """Whether the two answers do not hold the turns before them themselves."""
    whole = is_turns(row["chosen"]) and len(row["chosen"]) > 1
    return row.get("prompt") is None and is_turns(first(row, TURNS)) and not whole


TURNS = "messages|conversations|conversation|trajectory|dialogue|context|history"

FORMS: tuple[Form, ...] = (
    # -- thumbs
    Form("KTO (TRL)", "thumbs", {"prompt": "prompt", "completion": "completion", "label": "label"},
         when=lambda row: is_flag(row["label"])),
    Form("KTO (LLaMA-Factory)", "thumbs", {"prompt": "instruction", "completion": "output", "label": "kto_tag"}),
    Form("KTO, whole conversations", "thumbs",
         {"messages": "messages|conversations|conversation", "label": "label|kto_tag"},
         when=lambda row: is_flag(first(row, "label|kto_tag")), turn=divide_turns),
    Form("BeaverTails, PKU-SafeRLHF-QA, a flag beside an answer", "thumbs",
         {"prompt": QUESTIONS, "completion": "completion|response|output|answer",
          "label": "label|is_safe|liked|thumbs_up|is_good"},
         when=lambda row: is_flag(first(row, "label|is_safe|liked|thumbs_up|is_good"))),
    # -- ratings
    Form("process rewards, as PRM800K (TRL's stepwise supervision)", "ratings",
         {"prompt": "prompt", "completions": "completions", "labels": "labels"},
         when=lambda row: isinstance(row["completions"], list) and isinstance(row["labels"], list),
         refused="labels of single steps, which no reward learns from; the whole answer as a thumb: "
         "`jq -c '{prompt, completion: (.completions | join(\"\\n\")), label: (.labels | all)}' FILE`, named as "
         "`feedback: [{thumbs: FILE}]`"),
    Form("process rewards, as Math-Shepherd", "ratings", {"prompt": "input", "labels": "label"},
         when=lambda row: isinstance(row["input"], str) and "ки" in row["input"],
         refused="labels of single steps, which no reward learns from; leave the file out"),
    Form("process rewards, PRM800K's own", "ratings", {"question": "question", "label": "label"},
         when=lambda row: isinstance(row["label"], Mapping) and "steps" in row["label"],
         refused="labels of single steps, which no reward learns from; leave the file out"),
    Form("ratings by attribute", "ratings", {"prompt": "prompt", "response": "response", "scores": "scores"}),
    Form("UltraFeedback", "ratings", {"prompt": "instruction|prompt", "completions": "completions"},
         when=lambda row: is_turns(row["completions"]) and "response" in row["completions"][0], turn=divide_answers,
         row='{instruction, completions: [{response, annotations}]}'),
    Form("HelpSteer, HelpSteer2, numbers beside an answer", "ratings",
         {"prompt": QUESTIONS, "response": "response|completion|output|answer"},
         also=(), when=lambda row: bool(rating_columns(row)), turn=gather_ratings,
         row="{prompt, response, helpfulness, correctness, ...}: every column of numbers but counts, ids and people"),
    # -- comparisons
    Form("RewardBench 2, RM-Bench", "comparisons", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
         when=lambda row: is_texts(row["chosen"]) and is_texts(row["rejected"]),
         refused="several answers for each side, a benchmark to measure on: `triptych audit REWARD --data FILE`; pairs "
         "to train on: `jq -c '{prompt, chosen: .chosen[], rejected: .rejected[]}' FILE`"),
    Form("DPO (axolotl, LLaMA-Factory), turns before two answers", "comparisons",
         {"prompt": TURNS, "chosen": "chosen", "rejected": "rejected"},
         when=_are_turns_before, turn=list_answers),
    Form("preferences (TRL), UltraFeedback binarized, tulu-3, RewardBench, HelpSteer's", "comparisons",
         {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    Form("orca_dpo_pairs, argilla, stack-exchange-paired, a question and two answers", "comparisons",
         {"prompt": QUESTIONS, "chosen": CHOSEN, "rejected": REJECTED}),
    Form("preferences without a prompt (TRL), Skywork, HH-RLHF", "comparisons",
         {"chosen": CHOSEN, "rejected": REJECTED}),
    Form("OpenAI preferences", "comparisons",
         {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
         turn=unwrap_input),
    Form("DPO (LLaMA-Factory), two outputs", "comparisons", {"prompt": "instruction", "output": "output"},
         when=lambda row: is_texts(row["output"]) and len(row["output"]) == 2, turn=divide_outputs,
         row="{instruction, input, output: [chosen, rejected]}"),
    Form("Chatbot Arena, 55,000 votes", "comparisons",
         {"prompt": "prompt", "response_a": "response_a", "response_b": "response_b", "winner": "winner_model_a"},
         also=("winner_model_b", "winner_tie"), turn=order_by_votes),
    Form("LMSYS, Chatbot Arena, MT-Bench", "comparisons",
         {"conversation_a": "conversation_a", "conversation_b": "conversation_b", "winner": LABELS},
         also=("model_a", "model_b"), turn=order_conversations),
    Form("HelpSteer2 preferences", "comparisons",
         {"prompt": "prompt", "one": "response_1", "other": "response_2", "label": "preference_strength"},
         turn=order_by_number(("response_1", "response_2"), "preference_strength",
                         lambda value: None if value == 0 else value < 0, margin=True)),
    Form("HelpSteer3", "comparisons",
         {"prompt": "context|prompt", "one": "response1", "other": "response2", "label": "overall_preference"},
         turn=order_by_number(("response1", "response2"), "overall_preference",
                         lambda value: None if value == 0 else value < 0, margin=True)),
    Form("SHP", "comparisons",
         {"prompt": "history", "one": "human_ref_A", "other": "human_ref_B", "label": "labels"},
         also=("score_A", "score_B"),
         turn=order_by_number(("human_ref_A", "human_ref_B"), "labels", lambda value: value == 1)),
    Form("PKU-SafeRLHF", "comparisons",
         {"prompt": "prompt", "one": "response_0", "other": "response_1", "label": "better_response_id"},
         turn=order_by_number(("response_0", "response_1"), "better_response_id", lambda value: value == 0)),
    Form("PandaLM, two answers and what each annotator said", "comparisons",
         {"prompt": "instruction", "one": "response1", "other": "response2", "label": "annotator1"},
         also=ANNOTATORS, turn=order_by_annotators,
         row="{instruction, input, response1, response2, annotator1, annotator2, annotator3}: 1, 2, or 0 for a tie; "
         "what most say counts"),
    Form("Auto-J, two answers and the place of the better one", "comparisons",
         {"prompt": "prompt", "one": "response 1", "other": "response 2", "label": "label", "task": "scenario?"},
         turn=order_by_place, row="{prompt, response 1, response 2, label, scenario}: 0, 1, or 2 for a tie"),
    Form("WebGPT comparisons", "comparisons",
         {"prompt": "question", "one": "answer_0", "other": "answer_1", "score": "score_0", "worse": "score_1"},
         turn=order_by_scores(("answer_0", "answer_1"), ("score_0", "score_1"), question_text)),
    Form("summaries from feedback", "comparisons", {"info": "info", "summaries": "summaries", "choice": "choice"},
         turn=order_summaries),
    Form("Nectar, ranked answers", "comparisons", {"prompt": QUESTIONS, "answers": "answers"},
         when=lambda row: is_turns(row["answers"]) and "rank" in row["answers"][0], turn=pair_with_best,
         row="{prompt, answers: [{answer, rank}]}: the best above each other"),
    Form("an arena, JudgeBench, two answers and who won", "comparisons", {"prompt": QUESTIONS, "winner": LABELS},
         also=(*(name for pair in PAIRS for name in pair), "model_a", "model_b"),
         when=lambda row: pair_in(row) is not None, turn=order_by_winner,
         row="{prompt, response_a, response_b, winner: model_a, model_b or tie}: ties are left out, and counted"),
    # -- conversations
    Form("a transcript in one text (oasst, Guanaco)", "conversations", {"text": "text"},
         when=lambda row: isinstance(row["text"], str) and len(row) < 4 and not _instruction(row)
         and len(TRANSCRIPT.findall(row["text"])) > 1,
         refused="who speaks is said by marks in the text; turns of it: `python -c 'import json,re,sys\n"
         "for row in sys.stdin: print(json.dumps({\"messages\": [{\"role\": {\"Human\": \"user\"}.get(who, "
         "\"assistant\"), \"content\": said.strip()} for who, said in re.findall(r\"### (Human|Assistant): (.*?)"
         "(?=### (?:Human|Assistant): |$)\", json.loads(row)[\"text\"], re.S)]}))' < FILE > conversations.jsonl`"),
    Form("text that is templated already", "conversations", {"text": "text"},
         when=lambda row: isinstance(row["text"], str) and len(row) < 4 and not _instruction(row)
         and bool(TEMPLATED.search(row["text"])),
         refused="a chat template's own marks stand in it, and the model's template would write them again; give the "
         "conversations from before, as {\"messages\": [{\"role\", \"content\"}]}"),
    Form("oasst's trees", "conversations", {"text": "text", "node": "message_id", "role": "role"},
         refused="each row is one turn of a tree; paths of it: `load_dataset(\"OpenAssistant/oasst_top1_2023-08-25\")` "
         "has the best ones"),
    Form("oasst's trees, whole", "conversations", {"prompt": "prompt", "tree": "message_tree_id"},
         refused="each row is a tree of answers; paths of it: `load_dataset(\"OpenAssistant/oasst_top1_2023-08-25\")` "
         "has the best ones"),
    Form("axolotl's segments", "conversations", {"segments": "segments"},
         when=lambda row: isinstance(row["segments"], list),
         refused="texts without turns; one answer each: `jq -c '{prompt: (.segments[:-1] | map(.text) | add), "
         "completion: .segments[-1].text}' FILE`"),
    Form("conversations (TRL, OpenAI), UltraChat, no_robots, tulu-3", "conversations", {"messages": "messages"},
         when=lambda row: row.get("completion") is None),
    Form("prompt and completion (TRL)", "conversations", {"prompt": "prompt", "completion": "completion"}),
    Form("LIMA, UltraChat's own, texts in turn", "conversations",
         {"messages": "conversations|conversation|data|dialog|dialogue"},
         when=lambda row: is_texts(first(row, "conversations|conversation|data|dialog|dialogue")), turn=alternate),
    Form("Capybara", "conversations", {"messages": "conversation"},
         when=lambda row: is_turns(row["conversation"]) and {"input", "output"} <= set(row["conversation"][0]),
         turn=unfold_exchanges, row="{conversation: [{input, output}]}"),
    Form("ShareGPT, OpenHermes, LMSYS-Chat, WildChat, Magpie", "conversations",
         {"messages": "conversations|conversation|dialog|dialogue|chat"},
         when=lambda row: is_turns(first(row, "conversations|conversation|dialog|dialogue|chat"))),
    Form("Gemini, Vertex AI", "conversations", {"messages": "contents"},
         also=("systemInstruction", "system_instruction"), when=lambda row: is_turns(row["contents"]),
         turn=join_parts, row="{contents: [{role, parts: [{text}]}], systemInstruction}"),
    Form("Alpaca, Dolly", "conversations",
         {"prompt": "instruction", "completion": "output|response|completion|answer"}, also=("text",),
         row="{instruction, input or context, output or response}, with system and history"),
    Form("a prompt and its response", "conversations",
         {"prompt": "prompt", "completion": "response|output|answer|target"}),
    Form("OpenOrca, OpenMathInstruct, MetaMath, a question and its answer", "conversations",
         {"prompt": "question|query|problem",
          "completion": "response|generated_solution|solution|answer|output"}),
    Form("CAMEL", "conversations", {"prompt": "message_1", "completion": "message_2"}),
    Form("FLAN, Aya, P3", "conversations", {"prompt": "inputs", "completion": "targets"}),
    Form("Nemotron, input and output", "conversations", {"prompt": "input", "completion": "output|target|response"}),
    # -- prompts
    Form("verl, prime-rl, SkyRL", "prompts", {"prompt": "prompt", "settings": "reward_model|reward_spec",
                                              "task": "data_source?"},
         when=lambda row: isinstance(first(row, "reward_model|reward_spec"), Mapping), turn=take_truth,
         row="{prompt, reward_model: {ground_truth}, data_source}"),
    Form("MBPP", "prompts", {"prompt": "prompt|text", "tests": "test_list"},
         also=("test_setup_code", "test_imports"), turn=take_tests),
    Form("HumanEval", "prompts", {"prompt": "prompt", "test": "test", "entry": "entry_point"}, turn=take_tests),
    Form("RLVR (tulu-3)", "prompts", {"prompt": "messages", "reference": "ground_truth?", "task": "dataset?"},
         when=lambda row: "ground_truth" in row or "checks" in row),
    Form("prompts (TRL), GRPO", "prompts", {"prompt": "prompt"}),
    Form("Alpaca's instructions", "prompts", {"prompt": "instruction"},
         when=lambda row: not (is_texts(row.get("output")))),
    Form("GSM8K, MATH, OpenMathInstruct, DeepScaleR", "prompts", {"prompt": "question|problem|query"},
         when=lambda row: not ({"chosen", "rejected"} <= set(row)),
         row="{question or problem, answer or solution}: the reference is the number behind `####`, what stands in "
         "`\\boxed{}`, else all of it"),
    Form("FLAN's inputs", "prompts", {"prompt": "inputs|input"},
         when=lambda row: not (_instruction(row) or isinstance(first(row, "inputs|input"), Mapping))),
    # -- documents
    Form("plain text", "documents", {"text": "text"}),
    Form("The Stack, RedPajama, files of code", "documents", {"text": "content|raw_content|code|document"}),
)
"""Every known form; of those of a kind the first that fits."""


def _instruction(row: Values) -> bool:
    return row.get("instruction") is not None


def fields_of(kind: Kind) -> Iterator[str]:
    """Every name that a field of a row of this kind may have."""
    yield from OWN[kind]
    for form in FORMS:
        if form.kind == kind:
            yield from (name for choice in form.names.values() for name in choice.removesuffix("?").split("|"))


def near(name: str, known: Sequence[str]) -> str | None:
    """The known name that a misspelt one is nearest to."""
    alike = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1, 0.8)
    return alike[0] if alike and alike[0] != name else None
