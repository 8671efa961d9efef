"""What crosses the rooms: typed rows, never bare dicts.

Each record has one JSON form, the one the field already uses (the names of TRL's dataset formats);
:func:`to_json` writes it and :mod:`triptych.data.files` reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Messages = tuple[Message, ...]


def user(content: str) -> Messages:
    """A prompt of one user turn."""
    return (Message("user", content),)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pretraining and perplexity."""

    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: it ends with a user turn.

    Attributes:
        messages: the turns so far.
        reference: what a right answer must agree with, as its task defines it.
        task: the kind of the prompt, by which scores are broken down.
    """

    messages: Messages
    reference: str | None = None
    task: str | None = None

    @classmethod
    def of(cls, text: str) -> Prompt:
        """One user turn."""
        return cls(user(text))

    @property
    def key(self) -> str:
        """The identity by which prompts are split and compared: a digest of the turns."""
        turns = json.dumps([[turn.role, turn.content] for turn in self.messages], ensure_ascii=False)
        return hashlib.sha256(turns.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and the answer to learn; `{"messages": [...]}` or `{"prompt", "completion"}` on disk."""

    prompt: Prompt
    answer: str


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

    @property
    def conversation(self) -> Conversation:
        """The prompt and the answer."""
        return Conversation(self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to one prompt, in the order in which a person is shown them."""

    prompt: Prompt
    first: str
    second: str

    @property
    def key(self) -> str:
        """What it is about, in whatever order it is shown: a digest of prompt and answers."""
        whole = json.dumps([self.prompt.key, *sorted((self.first, self.second))], ensure_ascii=False)
        return hashlib.sha256(whole.encode()).hexdigest()

    def compared(self, first_is_better: bool) -> Comparison:
        """The comparison that a person's answer makes of it."""
        better, worse = (self.first, self.second) if first_is_better else (self.second, self.first)
        return Comparison(self.prompt, better, worse, source="people", chosen_first=first_is_better)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody said to a question: `better` is "first", "second" or, where neither is, "tie"."""

    question: Question
    better: str

    def share(self, answer: str) -> float:
        """What an answer has of it: 1 where it is better, 0 where the other is, else ½."""
        shares = {"first": (1.0, 0.0), "second": (0.0, 1.0)}.get(self.better, (0.5, 0.5))
        return shares[answer != self.question.first]


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


Record = Document | Prompt | Conversation | Comparison | Rating | Thumb | Question | Verdict


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


def to_json(record: Record) -> dict[str, Any]:
    """The record in the form it has on disk; what is None is left out."""
    if isinstance(record, Document):
        return {"text": record.text}
    if isinstance(record, Verdict):
        return to_json(record.question) | {"better": record.better}
    if isinstance(record, Prompt):
        row: dict[str, Any] = {"prompt": _turns(record.messages)}
        prompt = record
    else:
        prompt = record.prompt
        answer = [{"role": "assistant", "content": ""}]
        row = {"prompt": _turns(prompt.messages)}
        if isinstance(record, Conversation):
            row = {"messages": [*row["prompt"], {**answer[0], "content": record.answer}]}
        elif isinstance(record, Comparison):
            row["chosen"] = [{**answer[0], "content": record.chosen}]
            row["rejected"] = [{**answer[0], "content": record.rejected}]
            for name in (
                "margin", "source", "votes_for_chosen", "num_annotators", "section", "subset", "chosen_first"
            ):
                row[name] = getattr(record, name)
        elif isinstance(record, Thumb):
            row |= {"completion": [{**answer[0], "content": record.completion}], "label": record.label}
        elif isinstance(record, Question):
            row |= {"first": record.first, "second": record.second}
        else:
            row |= {"response": [{**answer[0], "content": record.response}], "scores": dict(record.scores)}
    row |= {"reference": prompt.reference, "task": prompt.task}
    return {name: value for name, value in row.items() if value is not None}
