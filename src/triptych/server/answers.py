"""Answers to requests: written together, streamed as they come, put into OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

from triptych.engine.continuous import StreamedRequest
from triptych.errors import TriptychError, UnavailableError
from triptych.records import Conversation, Prompt
from triptych.server.bodies import ChatBody, CompletionBody, DecodingBody
from triptych.server.served import RequestError, ServedFamily, ServedModel, finite
from triptych.server.text import UNKNOWN, TextStream
from triptych.server.worker import Worker

LETTER = "a"


@dataclass(slots=True)
class StreamedChoice:
    """An answer of a reply.

    Attributes:
        index: of the choice.
        text: all of it so far.
        new: what of it is new.
        tokens: how many there are.
        begun: how many were there when the last piece was told.
        finish: why it ended: "stop" or "length"; None while it goes on.
        reward: where the best were chosen by it.
    """

    index: int
    request: StreamedRequest
    text: str = ""
    new: str = ""
    tokens: int = 0
    begun: int = 0
    finish: str | None = None
    reward: float | None = None


@dataclass
class PendingReply(ABC):
    """A request of some kind, and its answers.

    Attributes:
        prefix: of its identity.
        whole, chunk: what the interface calls a reply, and a piece of one.
        opening: what the first piece of each answer holds, where there is such a piece.
        requests: for each of the body's prompts its own ones.
        prompt: whose conversation is scored where the best answers are wanted; None of plain text.
    """

    prefix: ClassVar[str]
    whole: ClassVar[str]
    chunk: ClassVar[str]
    opening: ClassVar[dict[str, str] | None] = None

    family: ServedFamily
    worker: Worker
    model: ServedModel
    body: DecodingBody
    requests: list[list[StreamedRequest]]
    prompt: Prompt | None = None
    lengths: dict[int, int] = field(default_factory=dict)
    """Tokens of each answer so far, up to the one that met a stop sequence."""
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: secrets.token_hex(12))

    def check(self, queue: int) -> None:
        """Says beforehand what would be known only when the answers are there.

        Args:
            queue: so many answers may wait for a slot.

        Raises:
            RequestError: too many requests wait, or nothing here says which answer is best.
        """
        require_room(self.model, self.worker, self.body, queue)
        if self.body.written > self.body.n and (self.prompt is None or self.family.reward is None):
            why = "plain text has no reward" if self.family.reward else "there is no reward here"
            raise RequestError(f"best_of chooses by the reward, and {why}", field="best_of")

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written; a prompt that has several answers is read once."""
        read = sum(len(group[0].prompt) for group in self.requests)
        written = sum(self.lengths.values())
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def choices(self) -> list[StreamedChoice]:
        """The answers, whole; the best n of each prompt where more were written."""
        indexed = list(enumerate(request for group in self.requests for request in group))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._whole(place, request)) for place, request in indexed]
        written = [task.result() for task in tasks]
        return written if self.body.written == self.body.n else await self._best(written)

    async def _whole(self, index: int, request: StreamedRequest) -> StreamedChoice:
        async with aclosing(self.pieces(index, request)) as pieces:
            async for choice in pieces:
                last = choice
        return last

    async def _best(self, choices: Sequence[StreamedChoice]) -> list[StreamedChoice]:
        assert self.prompt is not None
        assert self.family.reward is not None
        try:
            scores = await self.family.reward.score([Conversation(self.prompt, choice.text) for choice in choices])
        except UnavailableError:
            raise
        except TriptychError as error:  # a rule that needs a reference
            raise RequestError(f"best_of: the answers cannot be scored: {error}", field="best_of") from None
        for choice, reward in zip(choices, scores.totals, strict=True):
            choice.reward = reward
        ranked = sorted(choices, key=lambda choice: -(choice.reward or 0.0))[: self.body.n]
        for place, choice in enumerate(ranked):
            choice.index = place
        return ranked

    async def pieces(self, index: int, request: StreamedRequest) -> AsyncGenerator[StreamedChoice]:
        """An answer as it grows; what is yielded is one choice, which is told on."""
        choice = StreamedChoice(index, request)
        stream = TextStream(self.model.policy.tokenizer, request.ends, self.body.stops)
        async with aclosing(self.worker.answer(self.model.batch, request)) as lengths:
            async for length in lengths:
                tokens = request.completion.tokens[:length]
                ended = tokens[-1:] and tokens[-1] in request.ends
                over = bool(ended) or length >= request.sampling.max_tokens
                choice.begun, choice.new = choice.tokens, ""
                # One token after the other where any may be the last: news of several may come at once.
                first = min(choice.tokens + 1, length) if self.body.stops else length
                for count in range(first, length + 1):
                    choice.new += stream.grow(tokens[:count], over and count == length)
                    choice.tokens = count
                    if stream.stopped:
                        break
                choice.text, self.lengths[index] = stream.text, choice.tokens
                if stream.stopped or over:
                    choice.finish = "stop" if stream.stopped or ended else "length"
                yield choice
                if choice.finish:
                    return

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: a chunk for each piece of each answer, and "[DONE]"."""
        news: asyncio.Queue[str | None] = asyncio.Queue()
        requests = [request for group in self.requests for request in group]

        async def follow(index: int, request: StreamedRequest) -> None:
            if self.opening is not None:
                await news.put(self._chunk([{"index": index, "delta": self.opening, "finish_reason": None}]))
            async with aclosing(self.pieces(index, request)) as pieces:
                async for choice in pieces:
                    if choice.new or choice.finish or request.alternatives is not None:
                        await news.put(self._chunk([self.shaped(choice, streamed=True)]))

        async def follow_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index, request in enumerate(requests):
                        group.create_task(follow(index, request))
                if self.body.stream_options and self.body.stream_options.include_usage:
                    await news.put(self._chunk([], usage=self.usage))
            except* Exception as failures:
                await news.put(_event({"error": {"message": str(failures.exceptions[0]), "type": "server_error"}}))
            finally:
                await news.put(None)

        following = asyncio.create_task(follow_all())
        try:
            while (event := await news.get()) is not None:
                yield event
            yield "data: [DONE]\n\n"
        finally:
            following.cancel()

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return _event(self.head(self.chunk) | {"choices": choices} | more)

    def head(self, kind: str) -> dict[str, Any]:
        """What replies of a kind begin with."""
        return {"id": f"{self.prefix}-{self.name}", "object": kind, "created": self.created, "model": self.model.name}

    def shaped(self, choice: StreamedChoice, *, streamed: bool) -> dict[str, Any]:
        """An answer in the form of the interface, whole or the piece of it that is new."""
        logs = choice.request.alternatives is not None
        reward = {} if choice.reward is None else {"reward": choice.reward}
        return {
            "index": choice.index, "finish_reason": choice.finish, **self._content(choice, streamed),
            "logprobs": self._logprobs(choice, choice.begun if streamed else 0) if logs else None, **reward,
        }

    @abstractmethod
    def _content(self, choice: StreamedChoice, streamed: bool) -> dict[str, Any]:
        """The text, under its name."""

    @abstractmethod
    def _logprobs(self, choice: StreamedChoice, first: int) -> dict[str, Any]:
        """Of the tokens from one on."""

    def _word(self, token: int) -> str:
        # Behind a letter: some decoders leave out the blank that a text's first token begins with.
        letter = self._letter
        word: str = self.model.policy.tokenizer.decode([*letter, token])
        return word.removeprefix(LETTER) if letter else word

    @cached_property
    def _letter(self) -> list[int]:
        """A letter's tokens; none where it does not come back as it was."""
        tokenizer = self.model.policy.tokenizer
        tokens: list[int] = tokenizer(LETTER, add_special_tokens=False)["input_ids"]
        return tokens if tokenizer.decode(tokens) == LETTER else []


class ChatReply(PendingReply):
    """Of `/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening = {"role": "assistant", "content": ""}  # noqa: RUF012 (nobody writes to it)

    def _content(self, choice: StreamedChoice, streamed: bool) -> dict[str, Any]:
        if streamed:
            return {"delta": {"content": choice.new} if choice.new else {}}
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def _logprobs(self, choice: StreamedChoice, first: int) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            word = self._word(token)
            known = None if UNKNOWN in word else list(word.encode())  # a part of a character is not these bytes
            return {"token": word, "logprob": finite(logprob), "bytes": known}

        tokens = choice.request.completion.tokens[first : choice.tokens]
        likeliest = choice.request.likeliest[first : choice.tokens]
        return {"content": [
            entry(token, logprob) | {"top_logprobs": [entry(*likely) for likely in alternatives]}
            for token, (logprob, alternatives) in zip(tokens, likeliest, strict=True)
        ], "refusal": None}


class TextReply(PendingReply):
    """Of `/v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def _content(self, choice: StreamedChoice, streamed: bool) -> dict[str, Any]:
        return {"text": choice.new if streamed else choice.text}

    def _logprobs(self, choice: StreamedChoice, first: int) -> dict[str, Any]:
        words = [self._word(token) for token in choice.request.completion.tokens[: choice.tokens]]
        ends = list(accumulate(map(len, words), initial=0))
        likeliest = choice.request.likeliest[first : choice.tokens]
        return {
            "tokens": words[first:],
            "token_logprobs": [finite(logprob) for logprob, _ in likeliest],
            "top_logprobs": [{self._word(token): finite(value) for token, value in likely} for _, likely in likeliest],
            "text_offset": ends[first:-1],
        }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def require_room(model: ServedModel, worker: Worker, body: DecodingBody, queue: int) -> None:
    """Refuses a request whose answers cannot wait, before anything is made of it.

    Args:
        queue: so many answers may wait for a slot.

    Raises:
        RequestError: there are too many.
    """
    slots, wanted = model.batch.cache.slots.rows, body.prompted * body.written
    if wanted > queue + slots:
        raise RequestError(f"{wanted} answers at once are more than {slots} slots and a queue of {queue} take")
    if worker.waiting + wanted - (slots - len(model.batch.running)) > queue:
        raise RequestError("too many requests wait; ask again in a moment", 429, "rate_limit_exceeded")


def chat(family: ServedFamily, worker: Worker, body: ChatBody) -> ChatReply:
    """The answers that a chat's body asks for.

    Raises:
        RequestError: it cannot be answered.
        ModelError: the chat template refuses the conversation.
    """
    model = family.model(body.model)
    if not model.talks:
        raise RequestError(f"{model.name} was not tuned to answer: ask it at /v1/completions", field="model")
    if body.max_tokens is None:
        body.max_tokens = body.max_completion_tokens
    messages = tuple(turn.message for turn in body.messages)
    if messages[-1].role != "user":
        raise RequestError("the last turn must be the user's", field="messages")
    requests = model.requests(model.chat_tokens(messages, body.max_tokens), body)
    return ChatReply(family, worker, model, body, [requests], Prompt(messages))


def complete(family: ServedFamily, worker: Worker, body: CompletionBody) -> TextReply:
    """The answers that a completion's body asks for.

    Raises:
        RequestError: it cannot be answered.
    """
    model = family.model(body.model)
    prompts = [prompt if isinstance(prompt, list) else model.text_tokens(prompt) for prompt in body.prompts]
    if not prompts:
        raise RequestError("there is no prompt", field="prompt")
    return TextReply(family, worker, model, body, [model.requests(tokens, body) for tokens in prompts])
