"""How long records are in tokens, and what becomes of those that exceed the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, overload

from triptych.data.template import answer_tokens, closing_tokens, scored_tokens
from triptych.records import Comparison, Conversation, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["drop", "truncate"]
LearntTurns = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class TokenizedConversation:
    """A prompt's tokens and its answer's, end token included unless the answer was cut.

    Attributes:
        answer: with several learnt turns, all that follows the first prompt.
        learnt: from where to where in `answer` tokens are learnt; None for all of it.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    learnt: tuple[tuple[int, int], ...] | None = None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """From where to where in `answer` tokens are learnt."""
        return ((0, len(self.answer)),) if self.learnt is None else self.learnt

    @property
    def length(self) -> int:
        """Tokens of the whole."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class TokenizedComparison:
    """A prompt's tokens and those of its two answers, to the end token or, of a reward's, to the rendering's end."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


T = TypeVar("T", TokenizedConversation, TokenizedComparison)


@dataclass(frozen=True, slots=True)
class Fitted(Generic[T]):
    """Rows that fit the context, and what it took.

    Attributes:
        rows: what was kept, in the records' order.
        dropped: how many records were left out.
        truncated: how many of `rows` had an answer cut.
        limit: the context's length in tokens.
        lines: which record each row is, counted from 1.
    """

    rows: tuple[T, ...]
    dropped: int
    truncated: int
    limit: int
    lines: tuple[int, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        count = len(self.rows) + self.dropped
        return (
            f"{count} rows: {len(self.rows)} kept, {self.truncated} of them truncated to {self.limit} "
            f"tokens, {self.dropped} dropped as longer"
        )


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths in tokens over records, prompt and (longer) answer together."""

    count: int
    median: float
    longest: int
    over: int
    limit: int

    def __str__(self) -> str:
        return (
            f"{self.count} rows, median {self.median:g} tokens, longest {self.longest}, "
            f"{self.over} over the limit of {self.limit}"
        )


@overload
def tokenized(
    record: Conversation, tokenizer: PreTrainedTokenizerBase, *, scored: bool = False
) -> TokenizedConversation: ...
@overload
def tokenized(
    record: Comparison, tokenizer: PreTrainedTokenizerBase, *, scored: bool = False
) -> TokenizedComparison: ...
def tokenized(
    record: Conversation | Comparison, tokenizer: PreTrainedTokenizerBase, *, scored: bool = False
) -> TokenizedConversation | TokenizedComparison:
    """The record's tokens, whole: as a policy writes them or, with `scored`, as a reward model reads them."""
    given: list[str | Message] = [record.messages[-1]] if isinstance(record, Conversation) else []
    if isinstance(record, Comparison):
        given = [record.chosen, record.rejected]
    prompt, answers = (scored_tokens if scored else answer_tokens)(tokenizer, record.prompt, given)
    if isinstance(record, Conversation):
        return TokenizedConversation(tuple(prompt), tuple(answers[0]))
    return TokenizedComparison(tuple(prompt), tuple(answers[0]), tuple(answers[1]), record.margin)


@overload
def fit(
    records: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, limit: int, overlong: Overlong, *,
    scored: bool = False,
) -> Fitted[TokenizedConversation]: ...
@overload
def fit(
    records: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase, limit: int, overlong: Overlong, *,
    scored: bool = False,
) -> Fitted[TokenizedComparison]: ...
def fit(
    records: Sequence[Conversation] | Sequence[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    overlong: Overlong,
    *,
    scored: bool = False,
) -> Fitted[TokenizedConversation] | Fitted[TokenizedComparison]:
    """Tokenises records and drops or truncates those longer than the context, counting both.

    Truncating cuts the end of the answer. A policy's cut answer has no end token: a model must not learn
    to stop there. What a reward model reads ends as the template ends every conversation. A record is dropped in any
    case where its prompt leaves no room for an answer, or where cutting makes the two answers of a comparison the same.

    Args:
        records: conversations or comparisons, of one kind.
        tokenizer: with a chat template.
        limit: the most tokens that a prompt and one answer may have together.
        overlong: what to do with longer ones.
        scored: for a reward model, and not for a policy.
    """
    closing = tuple(closing_tokens(tokenizer)) if scored else ()
    conversations: list[TokenizedConversation] = []
    comparisons: list[TokenizedComparison] = []
    lines: list[int] = []
    truncated = 0
    for place in range(len(records)):
        record = records[place]
        if isinstance(record, Conversation):
            conversation = tokenized(record, tokenizer, scored=scored)
            if conversation.length > limit:
                room = limit - len(conversation.prompt) - len(closing)
                if overlong == "drop" or room <= 0:
                    continue
                conversation = TokenizedConversation(conversation.prompt, _cut(conversation.answer, room, closing))
                truncated += 1
            conversations.append(conversation)
            lines.append(place + 1)
        else:
            pair = tokenized(record, tokenizer, scored=scored)
            if pair.length > limit:
                room = limit - len(pair.prompt) - len(closing)
                chosen, rejected = _cut(pair.chosen, room, closing), _cut(pair.rejected, room, closing)
                if overlong == "drop" or room <= 0 or chosen == rejected:
                    continue
                pair = TokenizedComparison(pair.prompt, chosen, rejected, pair.margin)
                truncated += 1
            comparisons.append(pair)
            lines.append(place + 1)
    dropped = len(records) - len(conversations) - len(comparisons)
    if comparisons:
        return Fitted(tuple(comparisons), dropped, truncated, limit, tuple(lines))
    return Fitted(tuple(conversations), dropped, truncated, limit, tuple(lines))


def tokenized_turns(
    record: Conversation, tokenizer: PreTrainedTokenizerBase, learn: LearntTurns
) -> list[TokenizedConversation]:
    """A conversation as it is learnt, each turn of the assistant behind the prompt that it is an answer to.

    Where a template writes a turn in the same way when others follow it, turns are learnt in one row. Where it does
    not, as one that leaves out earlier reasoning, each is learnt in a row of its own, as the model will see it.
    """
    turns = record.messages
    rows: list[TokenizedConversation] = []
    for place, turn in enumerate(turns):
        last = place == len(turns) - 1
        if turn.role != "assistant" or not (last or (turn.learnt and learn == "all")):
            continue
        asked = Prompt(turns[:place], tools=record.prompt.tools)
        prompt, (answer,) = answer_tokens(tokenizer, asked, [turn])
        before = [*rows[-1].prompt, *rows[-1].answer] if rows else []
        if rows and prompt[: len(before)] == before:
            whole = (*rows[-1].answer, *prompt[len(before) :], *answer)
            span = (len(whole) - len(answer), len(whole))
            rows[-1] = TokenizedConversation(rows[-1].prompt, whole, (*rows[-1].spans, span))
        else:
            rows.append(TokenizedConversation(tuple(prompt), tuple(answer)))
    return rows


def fit_turns(
    records: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, limit: int, overlong: Overlong,
    learn: LearntTurns,
) -> Fitted[TokenizedConversation]:
    """Tokenises conversations to be learnt and drops or cuts rows longer than the context; see :func:`fit`.

    A conversation counts as dropped where none of its turns is learnt, and as truncated where one of its rows is cut.
    """
    rows: list[TokenizedConversation] = []
    lines: list[int] = []
    cut: set[int] = set()
    for line, record in enumerate(records, start=1):
        for row in tokenized_turns(record, tokenizer, learn):
            if row.length > limit:
                room = limit - len(row.prompt)
                spans = [(start, min(end, room)) for start, end in row.spans if start < room]
                if overlong == "drop" or not spans:
                    continue
                answer = row.answer[: spans[-1][1]]
                row = TokenizedConversation(row.prompt, answer, tuple(spans) if len(spans) > 1 else None)
                cut.add(line)
            rows.append(row)
            lines.append(line)
    return Fitted(tuple(rows), len(records) - len(set(lines)), len(cut), limit, tuple(lines))


def _cut(answer: tuple[int, ...], room: int, closing: tuple[int, ...]) -> tuple[int, ...]:
    """The answer in at most `room` tokens and the closing ones."""
    return answer if len(answer) <= room + len(closing) else (*answer[: max(room, 0)], *closing)
