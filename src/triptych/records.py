"""What crosses the rooms: typed rows, never bare dicts.

Each record has one JSON form, the one the field already uses (the names of TRL's dataset formats);
:func:`to_json` writes it and :mod:`triptych.data.files` reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that an assistant calls.

    Attributes:
        name: the tool's.
        arguments: the JSON text of an object.
        id: by which the tool's turn refers to the call, where there is one.
    """

    name: str
    arguments: str = "{}"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: the text; of an assistant that reasons first, see :func:`with_reasoning`.
        tool_calls: what an assistant calls, behind the text.
        name: of a tool's turn, the tool.
        tool_call_id: of a tool's turn, the call that it answers.
        learnt: of an assistant's turn, whether a model learns it; `"weight": 0` on disk where not.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    learnt: bool = True

    @property
    def shown(self) -> str:
        """The turn as a reader is shown it: its text, and a line for each tool that it calls."""
        return "\n".join([*([self.content] if self.content or not self.tool_calls else []),
                          *(f"{call.name}({call.arguments})" for call in self.tool_calls)])


Messages = tuple[Message, ...]


def user(content: str) -> Messages:
    """A prompt of one user turn."""
    return (Message("user", content),)


def with_reasoning(reasoning: str, answer: str) -> str:
    """An answer and what was thought before it as one text, in the form in which models write both.

    `reasoning_content` and `thinking` of a row become this text, so that reasoning is a part of an answer wherever
    answers go; a chat template is given the two apart again.
    """
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def split_reasoning(answer: str) -> tuple[str | None, str]:
    """The reasoning that an answer begins with, or None, and the answer behind it: :func:`with_reasoning` undone."""
    parts = re.fullmatch(r"\s*<think>\n?(.*?)\n?</think>(?:\n\n)?(.*)", answer, re.DOTALL)
    return (parts[1], parts[2]) if parts else (None, answer)


def conclusion(answer: str) -> str:
    """The answer behind its reasoning; nothing where the reasoning does not end."""
    unfinished = answer.lstrip().startswith("<think>") and "</think>" not in answer
    return "" if unfinished else split_reasoning(answer)[1]


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pretraining and perplexity.

    Attributes:
        domain: the file that it is of, by the name that the recipe gives it; None where nobody asked.
    """

    text: str
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """An instruction of a prompt that code can check: its kind, as in :mod:`triptych.instructions`, and arguments."""

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: it ends with a user's turn, or with a tool's.

    Attributes:
        messages: the turns so far.
        reference: what a right answer must agree with, as its task defines it.
        task: the kind of the prompt, by which scores are broken down.
        tools: what may be called, each the JSON text of a function's schema.
        checks: the instructions in it that code can check.
    """

    messages: Messages
    reference: str | None = None
    task: str | None = None
    tools: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @classmethod
    def of(cls, text: str) -> Prompt:
        """One user turn."""
        return cls(user(text))

    @property
    def key(self) -> str:
        """The identity by which prompts are split and compared: a digest of the turns, and of tools where there are."""
        turns: list[Any] = [
            [turn.role, turn.content, *([call.name, call.arguments] for call in turn.tool_calls)]
            for turn in self.messages
        ]
        if self.tools:
            turns.append(self.tools)
        return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the answer to learn; `{"messages": [...]}` or `{"prompt", "completion"}` on disk.

    Attributes:
        tool_calls: what the answer calls, behind its text, which may then be empty.
    """

    prompt: Prompt
    answer: str
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def messages(self) -> Messages:
        """All turns, the answer's the last."""
        return (*self.prompt.messages, Message("assistant", self.answer, self.tool_calls))

    @property
    def conclusion(self) -> str:
        """The answer behind its reasoning; nothing where the reasoning does not end."""
        return conclusion(self.answer)

    @property
    def answers(self) -> tuple[str]:
        """The one, as a question's are two."""
        return (self.answer,)

    @property
    def key(self) -> str:
        """The identity: a digest of prompt and answer."""
        return digest_of(self.prompt.key, self.answer)


def digest_of(*parts: str) -> str:
    """The digest of some texts, in this order."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def differ(one: str, other: str) -> bool:
    """Whether two answers can be compared at all: the white space around them is seen by nobody."""
    return one.strip() != other.strip()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, the first preferred.

    Attributes:
        margin: by how much, where the labeller said so (in rewards).
        source: who compared: a file's name, "exact judge", "people".
        votes_for_chosen: of `num_annotators` people, how many preferred the chosen answer.
        section, subset: what it tests, as in RewardBench; a subset is part of a section.
        chosen_first: whether the chosen answer was the one shown first, where that is known.
        annotator: who said so, as people call themselves; see :mod:`triptych.data.votes`.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    source: str | None = None
    votes_for_chosen: int | None = None
    num_annotators: int | None = None
    section: str | None = None
    subset: str | None = None
    chosen_first: bool | None = None
    annotator: str | None = None

    @property
    def question(self) -> Question:
        """What was compared, in the order in which it was shown, or in that of the texts where nobody knows it."""
        if self.chosen_first is None:
            return Question(self.prompt, *sorted((self.chosen, self.rejected)))
        both = (self.chosen, self.rejected)
        return Question(self.prompt, *(both if self.chosen_first else both[::-1]))

    @property
    def choice(self) -> str:
        """What it says of its question: "first" or "second"."""
        return "first" if self.question.first == self.chosen else "second"


@dataclass(frozen=True, slots=True)
class Rating:
    """One answer scored by attributes, as in HelpSteer."""

    prompt: Prompt
    response: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thumb:
    """One answer that somebody liked or did not: thumbs up (`label` true) or down."""

    prompt: Prompt
    completion: str
    label: bool
    annotator: str | None = None

    @property
    def question(self) -> Conversation:
        """The prompt and the answer."""
        return Conversation(self.prompt, self.completion)

    @property
    def choice(self) -> str:
        """What it says of its question: "up" or "down"."""
        return "up" if self.label else "down"


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to one prompt, in the order in which a person is shown them."""

    prompt: Prompt
    first: str
    second: str

    @property
    def answers(self) -> tuple[str, str]:
        """Both."""
        return self.first, self.second

    @property
    def key(self) -> str:
        """What it is about, in whatever order it is shown: a digest of prompt and answers."""
        return digest_of(self.prompt.key, *sorted(self.answers))

    def compared(self, first_is_better: bool, annotator: str | None = None) -> Comparison:
        """The comparison that a person's answer makes of it."""
        better, worse = (self.first, self.second) if first_is_better else (self.second, self.first)
        return Comparison(
            self.prompt, better, worse, source="people", chosen_first=first_is_better, annotator=annotator
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody said to a question: `better` is "first", "second" or, where neither is, "tie" or "both bad"."""

    question: Question
    better: str
    annotator: str | None = None

    @property
    def choice(self) -> str:
        """What it says of its question."""
        return self.better

    def share(self, answer: str) -> float:
        """What an answer has of it: 1 where it is better, 0 where the other is, else ½."""
        shares = {"first": (1.0, 0.0), "second": (0.0, 1.0)}.get(self.better, (0.5, 0.5))
        return shares[answer != self.question.first]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An answer that somebody took back; what the same person says to the question later counts."""

    question: Question | Conversation
    annotator: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer: its tokens and the sampler's own log-probabilities.

    Attributes:
        tokens: the answer's token ids, with the end token if it was reached.
        logprobs: log-probability of each token under the sampling distribution, in nats.
        finished: False where the answer was cut at the limit.
    """

    prompt: Prompt
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    answer: str
    finished: bool


WITHDRAWN = "withdrawn"
"""What stands in a line on disk where an answer would, if it is taken back."""

Prompted = TypeVar("Prompted", bound=Prompt | Conversation | Comparison | Rating | Thumb)


ANSWERS = ("answer", "chosen", "rejected", "response", "completion")
"""The fields of records that hold an answer."""


def answers_of(record: Prompt | Conversation | Comparison | Rating | Thumb) -> list[str]:
    """The answers of a record; a prompt has none."""
    return [getattr(record, name) for name in ANSWERS if hasattr(record, name)]


def without_reasoning(record: Prompted) -> Prompted:
    """The record without the reasoning that its answers, and those in its prompt, begin with."""
    changed: dict[str, Any]
    if isinstance(record, Prompt):
        changed = {"messages": tuple(
            replace(turn, content=split_reasoning(turn.content)[1]) if turn.role == "assistant" else turn
            for turn in record.messages
        )}
    else:
        changed = {name: split_reasoning(getattr(record, name))[1] for name in ANSWERS if hasattr(record, name)}
        changed["prompt"] = without_reasoning(record.prompt)
    return replace(record, **changed)


Record = Document | Prompt | Conversation | Comparison | Rating | Thumb | Question | Verdict | Withdrawal


def turns(messages: Messages) -> list[dict[str, Any]]:
    """The turns as the field writes them, as chat templates take them too; what a turn has not is left out."""
    written: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                | ({} if call.id is None else {"id": call.id})
                for call in message.tool_calls
            ]
        for name in ("name", "tool_call_id"):
            if getattr(message, name) is not None:
                turn[name] = getattr(message, name)
        if not message.learnt:
            turn["weight"] = 0
        written.append(turn)
    return written


def to_json(record: Record) -> dict[str, Any]:
    """The record in the form it has on disk; what is None is left out."""
    row: dict[str, Any]
    if isinstance(record, Document):
        return {"text": record.text} | ({} if record.domain is None else {"domain": record.domain})
    if isinstance(record, Verdict):
        signed = {} if record.annotator is None else {"annotator": record.annotator}
        return to_json(record.question) | {"better": record.better} | signed
    if isinstance(record, Withdrawal):
        asked = record.question
        said = {"label": WITHDRAWN} if isinstance(asked, Conversation) else {"better": WITHDRAWN}
        row = to_json(Thumb(asked.prompt, asked.answer, True) if isinstance(asked, Conversation) else asked)
        return row | said | {"annotator": record.annotator}
    if isinstance(record, Prompt):
        row = {"prompt": turns(record.messages)}
        prompt = record
    else:
        prompt = record.prompt
        answer = [{"role": "assistant", "content": ""}]
        row = {"prompt": turns(prompt.messages)}
        if isinstance(record, Conversation):
            row = {"messages": turns(record.messages)}
        elif isinstance(record, Comparison):
            row["chosen"] = [{**answer[0], "content": record.chosen}]
            row["rejected"] = [{**answer[0], "content": record.rejected}]
            for name in (
                "margin", "source", "votes_for_chosen", "num_annotators", "section", "subset", "chosen_first",
                "annotator",
            ):
                row[name] = getattr(record, name)
        elif isinstance(record, Thumb):
            row |= {"completion": [{**answer[0], "content": record.completion}], "label": record.label,
                    "annotator": record.annotator}
        elif isinstance(record, Question):
            row |= {"first": record.first, "second": record.second}
        else:
            row |= {"response": [{**answer[0], "content": record.response}], "scores": dict(record.scores)}
    row |= {"reference": prompt.reference, "task": prompt.task}
    if prompt.tools:
        row["tools"] = [json.loads(tool) for tool in prompt.tools]
    row["checks"] = [{"kind": check.kind, **check.arguments} for check in prompt.checks] or None
    return {name: value for name, value in row.items() if value is not None}
