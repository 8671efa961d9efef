"""What turns the values of a known form's row into ours: who won becomes chosen and rejected, a mark a turn.

Each function is given a row as it came, and what of it bears our names already, which it changes; where several rows
come of one, it returns them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from triptych.data.numerals import boxed

Values = Mapping[str, Any]
Fields = dict[str, Any]

ROLES: Mapping[str, str] = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "chatbot": "assistant", "developer": "system",
    "observation": "tool", "function": "tool", "ipython": "tool",
}
"""Names of roles in the field, and what they are with us."""

REFERENCES = (
    "reference", "answer", "final_answer", "expected_answer", "reference_answer", "gold_answer", "ground_truth",
    "gold_standard_solution", "solution",
)
"""What a right answer must agree with, by the names that the field has for it; the first that is given is read."""

SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"), ("chosen_reward", "rejected_reward"), ("reward_chosen", "reward_rejected"),
)
"""The two scores whose difference is a margin."""

COUNTS = re.compile(
    r"(^|[_-])(id|idx|index|ids|seed|turns?|tokens?|length|len|count|num|n|timestamp|tstamp|date|time|year)([_-]|$)"
    r"|^(num|n|id|len)_|_(id|idx|index|tokens|count|length)$", re.IGNORECASE
)
"""Columns of numbers that rate nothing."""

UNRATED = (
    "label", "annotator", "annotators", "worker", "rater", "prompt", "response", "completion", "output", "answer",
    "reference",
)
"""Fields that rate nothing, whatever number stands in them: labels, people, and the row's own texts."""


class FormError(ValueError):
    """A row of a known form that cannot be turned: `field`, and what would be right."""

    def __init__(self, field: str | None, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(message)


class LeftOut(ValueError):  # noqa: N818 - not an error: a tie is a good row that a comparison cannot hold
    """A row that is right and holds nothing of what is read; the message says why."""


def first(values: Values, choice: str) -> Any:
    """The value of the first of `a|b` that is given, or None."""
    name = named(values, choice)
    return None if name is None else values[name]


def named(values: Values, choice: str) -> str | None:
    """Which of `a|b` is given first, or None."""
    return next((name for name in choice.removesuffix("?").split("|") if values.get(name) is not None), None)


def number(value: Any) -> float | None:
    """A finite number, also one that is written as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) and not (isinstance(value, str) and "_" in value) else None


def _role(turn: Mapping[str, Any]) -> Any:
    role = turn.get("role", turn.get("from"))
    return ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else role


def _said(turn: Mapping[str, Any]) -> Any:
    return turn.get("content", turn.get("value"))


def is_flag(value: Any) -> bool:
    """Whether a value is true or false, also as text."""
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def is_turns(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def as_prompt(
    row: Fields, values: Values, read: set[str], judged: Collection[str] = (), *, given: bool = False
) -> Fields:
    """A row of any kind as a prompt: the one that its reader as a conversation or a comparison would find.

    Args:
        judged: fields with an answer that somebody judged, which need not be right.
        given: the recipe says which field the prompt is.
    """
    if "prompt" not in row:
        name, turns = "messages", row.get("messages", row.get("chosen"))
    else:
        name, turns = ("", None) if given else _whole(values, row["prompt"])
    if isinstance(turns, list) and turns:
        last = turns[-1]
        answered = isinstance(last, Mapping) and _role(last) == "assistant"
        row = row | {"prompt": turns[:-1] if answered else turns}
        read |= {name, "rejected"} if name == "chosen" else {name}
    if "reference" not in row:
        name = next((name for name in REFERENCES
                     if values.get(name) is not None and name not in row and name not in judged), "")
        if name:
            row = row | {"reference": final(name, values[name])}
            read.add(name)
    return row


def _whole(values: Values, prompt: Any) -> tuple[str, list[Any] | None]:
    """The field of whole conversations, and their turns, where these say more than the prompt beside them."""
    if is_turns(values.get("messages")) and values.get("completion") is None:
        return "messages", values["messages"]
    if _repeats(prompt, values.get("chosen"), values.get("rejected")):
        return "chosen", values["chosen"]
    return "", None


def _repeats(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Whether the prompt is a user's turn of two whole conversations."""
    whole = all(isinstance(answer, list) and len(answer) > 1 for answer in (chosen, rejected))
    return whole and isinstance(prompt, str) and prompt in [
        _said(turn) for turn in chosen if isinstance(turn, Mapping) and _role(turn) == "user"
    ]


def as_comparison(row: Fields, values: Values, read: set[str], notes: list[str]) -> Fields:
    """A comparison with the prompt once, and with the margin that two scores give."""
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if _repeats(prompt, chosen, rejected):
        row = {name: value for name, value in row.items() if name != "prompt"}  # the turns have it, and say more
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        row = row | _divided(chosen, rejected, values)
    for better, worse in SCORES:
        one, other = number(values.get(better)), number(values.get(worse))
        if one is not None and other is not None and "margin" not in row:
            row = row | {"margin": one - other}
            read |= {better, worse}
            notes.append(f"{better} less {worse} is the margin; `reward: {{margin: none}}` trains without")
    return row


def superseded(row: Fields) -> list[str]:
    """What of a conversation's row nobody reads, because another field says more."""
    if row.get("completion") is not None:
        return ["messages"] if "messages" in row else []
    messages, prompt = row.get("messages"), row.get("prompt")
    if not isinstance(messages, list) or prompt is None:
        return []
    asked = [_said(turn) for turn in messages if isinstance(turn, Mapping) and _role(turn) == "user"]
    return [] if prompt in asked or prompt == messages[:-1] else ["prompt"]


def _divided(chosen: str, rejected: str, values: Values) -> Fields:
    """Two texts that begin alike: transcripts as turns, others with the words that they share as the prompt."""
    asked = next((name for name, value in values.items() if name not in ("chosen", "rejected") and (
        is_turns(value) or (isinstance(value, str) and " " in value.strip()))), None)
    if all(re.match(r"\s*Human:", text) and "\n\nAssistant:" in text for text in (chosen, rejected)):
        return {"chosen": transcribed(chosen), "rejected": transcribed(rejected)}
    shared = chosen[: _shared(chosen, rejected)]
    # As TRL's extract_prompt: the blank before the answers belongs to them.
    end = shared.rfind(" ") if shared.rfind(" ") > 0 else 0
    if shared[:end].strip() and asked is not None:
        raise FormError("prompt", f"missing: chosen and rejected are texts, and {asked} may be what was asked: say "
                                  f"`fields: {{prompt: {asked}}}` beside the file's name, or take {asked} out")
    if not shared[:end].strip():
        raise FormError("prompt", "missing: chosen and rejected are texts that do not begin alike; expected a prompt, "
                                  "or a whole conversation in each")
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))


def transcribed(text: str) -> list[Fields]:
    """The turns of a transcript of HH-RLHF, `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    parts = re.split(r"(?:^|\n\n)[ \t]*(Human|Assistant):", "\n\n" + text.lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    turns: list[Fields] = []
    for who, text_said in zip(parts[1::2], parts[2::2], strict=True):
        turns.append({"role": roles[who], "content": text_said.strip()})
    return turns


def with_system(row: Fields, system: Any) -> Fields:
    """The row with a system turn before its first one."""
    if not isinstance(system, str):
        raise FormError("system", "must be text")
    if not system.strip():
        return row
    prompted = [name for name in ("messages", "prompt") if name in row]
    for name in prompted or ("chosen", "rejected"):
        turns = row.get(name)
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
        if not isinstance(turns, list):
            continue
        opening = turns[0] if turns and isinstance(turns[0], Mapping) else {}
        if _role(opening) == "system":
            if _said(opening) != system:
                raise FormError("system", f"differs from the system turn in {name}: expected one of them")
            continue
        row = row | {name: [{"role": "system", "content": system}, *turns]}
    return row


def final(name: str, value: Any) -> Any:
    """A reference without the way to it: what stands behind `####` (GSM8K), or in the last `\\boxed{}` (MATH)."""
    if not isinstance(value, str) or name == "reference":
        return value
    if name == "answer" and (behind := re.search(r"(?:^|\n)####[ \t]*(\S[^\n]*?)\s*$", value)):
        return behind[1]
    return boxed(value) or value


def join_input(values: Values, ours: Fields) -> None:
    """Alpaca: the input stands behind the instruction, the history before both."""
    prompt = ours["prompt"]
    more = first(values, "input|context")
    if isinstance(prompt, str) and isinstance(more, str) and more.strip():
        prompt = f"{prompt}\n\n{more}" if prompt.strip() else more
    elif more is not None and not isinstance(more, str):
        raise FormError(named(values, "input|context"), "must be text")
    history = values.get("history")
    if history:
        if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
            raise FormError("history", "must be a list of [question, answer]")
        said = [text for turn in history for text in turn]
        prompt = [*_alternating(said), {"role": "user", "content": prompt}]
    ours["prompt"] = prompt


def _alternating(texts: Sequence[Any]) -> list[Fields]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def alternate(values: Values, ours: Fields) -> None:
    """LIMA: user and assistant in turn."""
    ours["messages"] = _alternating(ours["messages"])


def unfold_exchanges(values: Values, ours: Fields) -> None:
    """Capybara: each entry a question and its answer."""
    ours["messages"] = _alternating([turn.get(name) for turn in ours["messages"] for name in ("input", "output")])


def join_parts(values: Values, ours: Fields) -> None:
    """Gemini: the parts of a turn joined, the instruction of the system before them."""
    def joined(content: Any) -> str:
        parts = content.get("parts") if isinstance(content, Mapping) else None
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts or ()]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise FormError("contents", "must have parts of text")
        return "".join(text for text in texts if text is not None)

    turns = [{"role": turn.get("role", "user"), "content": joined(turn)} for turn in ours["messages"]]
    system = first(values, "systemInstruction|system_instruction")
    ours["messages"] = [*([{"role": "system", "content": joined(system)}] if system else []), *turns]


def divide_turns(values: Values, ours: Fields) -> None:
    """KTO: a conversation as a prompt and the answer at its end."""
    messages = ours.pop("messages")
    if isinstance(messages, list) and len(messages) > 1:
        ours |= {"prompt": messages[:-1], "completion": messages[-1:]}


def gather_ratings(values: Values, ours: Fields) -> None:
    """HelpSteer: every column of numbers is an attribute."""
    ours["scores"] = {name: values[name] for name in rating_columns(values)}


def rating_columns(values: Values) -> list[str]:
    """The columns of numbers that rate something."""
    return [name for name, value in values.items() if number(value) is not None and not COUNTS.search(name)
            and name not in UNRATED]


def divide_answers(values: Values, ours: Fields) -> list[Fields]:
    """UltraFeedback: each of several answers with its ratings."""
    rows = []
    for place, answer in enumerate(values["completions"]):
        notes = answer.get("annotations")
        notes = notes if isinstance(notes, Mapping) else {}
        given = {name: number(first(note, "Rating|rating")) for name, note in notes.items()
                 if isinstance(note, Mapping)}
        scores = {name: value for name, value in given.items() if value is not None}
        overall = number(answer.get("overall_score"))
        scores |= {"overall": overall} if overall is not None and not scores else {}
        if not scores:
            raise FormError(f"completions[{place}]", "has no rating")
        rows.append({"prompt": ours["prompt"], "response": answer.get("response"), "scores": scores})
    return rows


def pair_with_best(values: Values, ours: Fields) -> list[Fields]:
    """Nectar: the best of several answers above each of the others."""
    answers = values["answers"]
    ranks = [number(answer.get("rank")) for answer in answers]
    if any(rank is None for rank in ranks):
        raise FormError("answers", "must each have a rank")
    best = min(range(len(answers)), key=lambda place: (ranks[place], place))
    prompt = ours["prompt"]
    if isinstance(prompt, str) and re.match(r"\s*Human:", prompt):
        turns = transcribed(prompt)
        prompt = turns[:-1] if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
    return [
        {"prompt": prompt, "chosen": answers[best].get("answer"), "rejected": answer.get("answer")}
        for place, answer in enumerate(answers) if ranks[place] > ranks[best]  # type: ignore[operator]
    ]


WON = {
    "a": 0, "model_a": 0, "response_a": 0, "answer_a": 0, "assistant_a": 0, "a>b": 0, "a>>b": 0, "first": 0,
    "model_1": 0, "response_1": 0, "response1": 0, "output_1": 0, "answer_1": 0, "left": 0,
    "b": 1, "model_b": 1, "response_b": 1, "answer_b": 1, "assistant_b": 1, "b>a": 1, "b>>a": 1, "second": 1,
    "model_2": 1, "response_2": 1, "response2": 1, "output_2": 1, "answer_2": 1, "right": 1,
}
"""What labels say which of two answers won, the first (0) or the second (1)."""
TIES = ("tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad", "both bad", "equal", "a=b", "same", "neither",
        "both", "draw")

PAIRS = (
    ("response_a", "response_b"), ("response_A", "response_B"), ("response_1", "response_2"),
    ("response1", "response2"), ("response_0", "response_1"), ("answer_a", "answer_b"), ("answer_1", "answer_2"),
    ("answer_0", "answer_1"), ("output_a", "output_b"), ("output_1", "output_2"), ("completion_a", "completion_b"),
    ("completion_1", "completion_2"), ("conversation_a", "conversation_b"), ("human_ref_A", "human_ref_B"),
)
ANNOTATORS = ("annotator1", "annotator2", "annotator3")
"""PandaLM's people, each with a column."""
LABELS = "winner|preference|preferred|label|choice|better|human_preference|verdict"
QUESTIONS = "prompt|question|instruction|query|problem|input"
CHOSEN = "chosen|chosen_response|response_chosen|preferred|accepted|response_j|answer_chosen|positive"
REJECTED = "rejected|rejected_response|response_rejected|dispreferred|response_k|answer_rejected|negative"


def pair_in(values: Values) -> tuple[str, str] | None:
    """The names of the two answers that a row has."""
    return next((pair for pair in PAIRS if all(values.get(name) is not None for name in pair)), None)


def order_by_winner(values: Values, ours: Fields) -> None:
    """Two answers and who won, as the chosen and the rejected one."""
    pair = pair_in(values)
    assert pair is not None
    label = first(values, LABELS)
    name = named(values, LABELS)
    said = label.strip().lower() if isinstance(label, str) else None
    place = WON.get(said) if said is not None else None
    if place is None and isinstance(label, str):
        place = next((i for i, side in enumerate(pair) if label == side), None)
    if place is None and isinstance(label, str):
        models = [values.get(side) for side in ("model_a", "model_b")]
        place = models.index(label) if label in models and models[0] != models[1] else None
    numbered = {name[-1]: place for place, name in enumerate(pair)}
    if place is None and set(numbered) == {"1", "2"}:
        place = numbered.get(str(label))
    if place is None and said in TIES:
        raise LeftOut("is a tie, and says of no answer that it is better: left out")
    if place is None:
        shown = json.dumps(label, default=str)[:40]
        raise FormError(name, f"must say who won, as model_a, model_b or tie, got {shown}; a number says not which: "
                              "put the better answer in chosen and the other in rejected")
    put_in_order(values, ours, pair, place)


def put_in_order(values: Values, ours: Fields, pair: tuple[str, str], place: int, margin: float | None = None) -> None:
    """The answers by which of them won."""
    answers = [values[name] for name in pair]
    ours |= {"chosen": answers[place], "rejected": answers[1 - place]}
    if margin is not None:
        ours["margin"] = margin


def order_by_number(pair: tuple[str, str], label: str, first_where: Callable[[float], bool | None], margin: bool = False
               ) -> Callable[[Values, Fields], None]:
    """Answers ordered by a number: whether the first won, None for a tie; its size may be the margin."""
    def turn(values: Values, ours: Fields) -> None:
        value = number(values[label])
        if value is None:
            raise FormError(label, "must be a number")
        won = first_where(value)
        if won is None:
            raise LeftOut("is a tie, and says of no answer that it is better: left out")
        put_in_order(values, ours, pair, 0 if won else 1, abs(value) if margin else None)

    return turn


def order_by_annotators(values: Values, ours: Fields) -> None:
    """PandaLM: several people said which of two answers is better, 1 or 2, or 0 for neither; most of them decide."""
    said = {name: number(value) for name, value in values.items() if name in ANNOTATORS}
    wrong = next((name for name, value in said.items() if value not in (0, 1, 2)), None)
    if wrong is not None:
        raise FormError(wrong, "must be 1 or 2 for the better response, or 0 for a tie")
    votes = [sum(value == which for value in said.values()) for which in (1, 2)]
    if 2 * max(votes) <= len(said):
        raise LeftOut("is a tie, and says of no answer that it is better: left out")
    put_in_order(values, ours, ("response1", "response2"), votes.index(max(votes)))
    ours |= {"votes_for_chosen": max(votes), "num_annotators": len(said)}


def order_by_place(values: Values, ours: Fields) -> None:
    """Auto-J: the label is the place of the better answer, 0 or 1, or 2 for a tie."""
    label = number(values["label"])
    if label not in (0, 1, 2):
        raise FormError("label", "must be 0 or 1 for the better response, or 2 for a tie")
    if label == 2:
        raise LeftOut("is a tie, and says of no answer that it is better: left out")
    put_in_order(values, ours, ("response 1", "response 2"), int(label))


def order_by_scores(pair: tuple[str, str], scores: tuple[str, str], question: Callable[[Any], Any] = lambda value: value
               ) -> Callable[[Values, Fields], None]:
    """Answers ordered by a score of each."""
    def turn(values: Values, ours: Fields) -> None:
        one, other = (number(values[name]) for name in scores)
        if one is None or other is None:
            raise FormError(scores[0], "must be a number, as the other one")
        if one == other:
            raise LeftOut("is a tie, and says of no answer that it is better: left out")
        ours["prompt"] = question(ours["prompt"])
        put_in_order(values, ours, pair, 0 if one > other else 1, abs(one - other))

    return turn


def order_by_votes(values: Values, ours: Fields) -> None:
    """The arena of 55,000: the texts of each turn in a list that stands in a string, and three columns for who won."""
    def listed(name: str) -> list[Any]:
        value = values[name]
        try:
            texts = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            texts = None
        if not is_texts(texts):
            raise FormError(name, "must be a list of texts, also in a string")
        return list(texts)

    asked, answers = listed("prompt"), [listed(name) for name in ("response_a", "response_b")]
    won = [number(int(flag) if isinstance(flag := values.get(name), bool) else flag) == 1
           for name in ("winner_model_a", "winner_model_b")]
    if won[0] == won[1]:
        raise LeftOut("is a tie, and says of no answer that it is better: left out")
    if len(asked) != 1 or any(len(turns) != 1 for turns in answers):
        raise LeftOut("has several turns in which the two models differ, so that there is no one prompt: left out")
    put_in_order({"response_a": answers[0][0], "response_b": answers[1][0]}, ours, ("response_a", "response_b"),
           0 if won[0] else 1)
    ours["prompt"] = asked[0]


def order_conversations(values: Values, ours: Fields) -> None:
    """Two whole conversations: they are a comparison where they differ in their last answer alone."""
    one, other = values["conversation_a"], values["conversation_b"]
    if not is_turns(one) or not is_turns(other):
        raise FormError("conversation_a", "must be a list of messages, as conversation_b")
    bare = [[(_role(turn), _said(turn)) for turn in turns[:-1] if isinstance(turn, Mapping)] for turns in (one, other)]
    if bare[0] != bare[1]:
        raise LeftOut("has several turns in which the two models differ, so that there is no one prompt: left out")
    ours.pop("prompt", None)
    order_by_winner(values, ours)


def unwrap_input(values: Values, ours: Fields) -> None:
    """OpenAI's fine-tuning by preferences."""
    asked = values["input"]
    if not isinstance(asked, Mapping) or not is_turns(asked.get("messages")):
        raise FormError("input.messages", "must be a list of messages")
    ours["prompt"] = asked["messages"]
    ours |= {"tools": asked["tools"]} if asked.get("tools") else {}


def order_summaries(values: Values, ours: Fields) -> None:
    """OpenAI's summaries from feedback."""
    info, texts, choice = values["info"], values["summaries"], values["choice"]
    post = first(info, "post|article") if isinstance(info, Mapping) else None
    if not is_turns(texts) or len(texts) != 2 or choice not in (0, 1) or post is None:
        raise FormError("choice", "must be 0 or 1, of two summaries of a post")
    ours |= {"prompt": post, "chosen": texts[choice].get("text"), "rejected": texts[1 - choice].get("text")}


def list_answers(values: Values, ours: Fields) -> None:
    """Axolotl, LLaMA-Factory: each of the two answers may be a turn, where a list of turns is read."""
    for name in ("chosen", "rejected"):
        if isinstance(ours.get(name), Mapping):
            ours[name] = [ours[name]]


def divide_outputs(values: Values, ours: Fields) -> None:
    """LLaMA-Factory: two outputs, the first is the better one."""
    ours["chosen"], ours["rejected"] = values["output"]


def question_text(question: Any) -> Any:
    """WebGPT: a question's whole text."""
    return question.get("full_text", question) if isinstance(question, Mapping) else question


def take_truth(values: Values, ours: Fields) -> None:
    """Verl, prime-rl, SkyRL: what is right stands in the settings of the reward."""
    settings = first(values, "reward_model|reward_spec")
    truth = settings.get("ground_truth") if isinstance(settings, Mapping) else None
    if isinstance(truth, list) and len(truth) == 1:
        (truth,) = truth
    if truth is not None:
        ours["reference"] = truth if isinstance(truth, str | int | float) else json.dumps(truth, ensure_ascii=False)


def take_tests(values: Values, ours: Fields) -> None:
    """HumanEval, MBPP: the reference is the tests."""
    tests = values.get("test_list")
    if isinstance(tests, list):
        before = [values[name] for name in ("test_setup_code",) if isinstance(values.get(name), str) and values[name]]
        ours["reference"] = "\n".join([*before, *values.get("test_imports", []), *tests])
    else:
        ours["reference"] = f"{values['test']}\n\ncheck({values['entry_point']})\n"
