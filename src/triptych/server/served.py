"""What is served: models that write, each with its slots, and a reward that scores."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from triptych.audit.record import AuditRecord
from triptych.data.files import faults_of, json_line
from triptych.engine.continuous import ContinuousBatch, StreamedRequest
from triptych.engine.grammar import Grammars
from triptych.engine.rollout import Policy
from triptych.engine.sampling import COLDEST, Sampling, own_sampling
from triptych.engine.scoring import RewardModel, Scorer, Scores, scored
from triptych.errors import ModelError
from triptych.evaluate.preamble import rendered_behind
from triptych.records import Conversation, Messages, Prompt, Thumb
from triptych.server.bodies import DecodingBody
from triptych.storage import append_line

Result = TypeVar("Result")


class RequestError(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: of HTTP.
        code: what OpenAI calls it.
        field: of the body.
    """

    def __init__(self, message: str, status: int = 400, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field


@dataclass
class ServedModel:
    """A model that writes.

    Attributes:
        name: by which it is asked for.
        title: as the page calls it.
        own: how it is decoded where a request does not say.
        preamble: the turns behind which it answers best, as its release says.
        talks: it was tuned to answer; one that was not goes on with text.
    """

    name: str
    title: str
    policy: Policy
    batch: ContinuousBatch
    own: Sampling
    preamble: Messages = ()
    talks: bool = True

    def chat_tokens(self, messages: Messages, max_tokens: int | None = None) -> list[int]:
        """The prompt's tokens by the chat template, behind the turns of a release's prompt where these leave room.

        Args:
            max_tokens: of the answer; by default the model's own.
        """
        render = rendered_behind(self.preamble, self.policy, max_tokens or self.own.max_tokens, self.batch.context)
        return render(Prompt(messages))

    def text_tokens(self, text: str) -> list[int]:
        """A text's tokens, as the tokenizer begins every text."""
        tokens: list[int] = self.policy.tokenizer(text)["input_ids"]
        return tokens

    def requests(self, tokens: Sequence[int], body: DecodingBody) -> list[StreamedRequest]:
        """As many as a request's body wants answers of.

        Raises:
            RequestError: prompt and answer do not fit the context, or the answer's schema is none.
        """
        if not tokens:
            raise RequestError("the prompt is empty", field="prompt")
        vocabulary = self.batch.model.config.get_text_config().vocab_size
        if not all(0 <= token < vocabulary for token in tokens):
            raise RequestError(f"the prompt has a token outside of the model's {vocabulary}", field="prompt")
        room, wanted = self.batch.context - len(tokens), body.max_tokens
        if room < (wanted or 1):
            answer = f"{wanted} tokens for an answer" if wanted else "an answer"
            raise RequestError(
                f"the prompt has {len(tokens)} tokens and leaves no room for {answer} in the context of "
                f"{self.batch.context}", code="context_length_exceeded", field="messages",
            )
        sampling = Sampling(
            min(room, wanted or self.own.max_tokens),
            self.own.temperature if body.temperature is None else body.temperature,
            self.own.top_p if body.top_p is None else body.top_p,
            secrets.randbits(31) if body.seed is None else body.seed,
        )
        if sampling.temperature < COLDEST and body.written > 1:
            raise RequestError(
                "greedy answers are all the same: give a temperature above 0 with n or best_of", field="temperature"
            )
        schema = body.response_format.schema_ if body.response_format else None
        try:
            grammar = None if schema is None else self._grammars.json(schema)
        except ModelError as error:
            raise RequestError(str(error), field="response_format") from None
        return [
            StreamedRequest(
                number=number, prompt=tokens, sampling=sampling, ends=self.policy.ends,
                alternatives=body.alternatives, constraint=grammar and grammar.copy(),
            )
            for number in range(body.written)
        ]

    @cached_property
    def _grammars(self) -> Grammars:
        vocabulary = self.batch.model.config.get_text_config().vocab_size
        return Grammars(self.policy.tokenizer, vocabulary, self.policy.ends)


class ServedReward:
    """A reward that scores, a request after the other in a thread of its own.

    Attributes:
        name: by which it is asked for.
        audit: what is known of its worth, where it lies beside it.
        waiting: requests that are not answered yet, of which there may be `most`.
    """

    most = 256

    def __init__(self, scorer: Scorer, name: str = "reward", audit: AuditRecord | None = None) -> None:
        self.scorer = scorer
        self.name = name
        self.audit = audit
        self.waiting = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")

    async def score(self, conversations: Sequence[Conversation]) -> Scores:
        """The scores of answers, with their parts.

        Raises:
            TriptychError: the reward needs what a prompt has not, or could not be computed.
        """
        return await self._compute(lambda: scored(self.scorer, conversations))

    async def outputs(self, texts: Sequence[str]) -> list[list[float]]:
        """The outputs of the model's head at the end of each whole text, as the model's folder gives them elsewhere.

        Raises:
            RequestError: the reward is more, or less, than one model.
        """
        return _rows(await self._compute(lambda: self._outputs(texts)))

    async def whole_outputs(self, texts: Sequence[str]) -> list[list[float]]:
        """The same of texts that may be padded or cut, each ended as a conversation is, as OpenRLHF's own server does.

        Raises:
            RequestError: the reward is more, or less, than one model.
        """
        return _rows(await self._compute(lambda: self._outputs([self._ended(text) for text in texts])))

    async def conversation_outputs(self, conversations: Sequence[Conversation]) -> list[list[float]]:
        """The same at the end of each conversation, as the chat template writes it.

        Raises:
            RequestError: the reward is more, or less, than one model.
        """
        return _rows(await self._compute(lambda: self.model.outputs(conversations)))

    def _ended(self, text: str) -> str:
        tokenizer = self.model.tokenizer
        end, pad = tokenizer.eos_token or "", tokenizer.pad_token or ""
        marks = tuple(filter(None, (pad, end, end and end + "\n")))
        while marks and text.endswith(marks):
            text = text.removesuffix(next(mark for mark in marks if text.endswith(mark)))
        return text + end

    def _outputs(self, texts: Sequence[str]) -> Tensor:
        model = self.model
        begin = model.tokenizer.bos_token
        rows = [
            model.tokenizer(text, add_special_tokens=not (begin and text.startswith(begin)))["input_ids"]
            for text in texts
        ]
        if not rows or not all(rows):
            raise RequestError("a text is empty" if rows else "there is no text", field="input")
        positions, longest = getattr(model.model.config, "max_position_embeddings", None), max(map(len, rows))
        if positions is not None and longest > positions:
            raise RequestError(
                f"a text has {longest} tokens, and the reward model knows {positions} positions",
                code="context_length_exceeded", field="input",
            )
        return model.token_outputs(rows)

    @property
    def model(self) -> RewardModel:
        """The one model that it is.

        Raises:
            RequestError: it is more, or less.
        """
        if not isinstance(self.scorer, RewardModel):
            raise RequestError(f"a {self.scorer.name} scores conversations and not texts: ask /v1/score")
        return self.scorer

    def close(self) -> None:
        """Computes nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, work: Callable[[], Result]) -> Result:
        """What the work gives; what nobody waits for any more is not begun.

        Raises:
            RequestError: too many requests wait.
        """
        if self.waiting >= self.most:
            raise RequestError("too many requests wait to be scored; ask again in a moment", 429, "rate_limit_exceeded")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self.waiting -= 1


@dataclass
class ServedFamily:
    """All that a server serves.

    Attributes:
        name: of the release.
        models: that write, by name; the first answers where a request names none.
        reward: that scores, where there is one.
        thumbs: the file into which the page's thumbs go.
    """

    name: str
    models: dict[str, ServedModel]
    reward: ServedReward | None = None
    thumbs: Path | None = None

    def model(self, name: str | None) -> ServedModel:
        """The model of that name.

        Raises:
            RequestError: there is none.
        """
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestError(
                f"there is no model {name!r} that writes; there is {', '.join(self.models) or 'none'}", 404,
                "model_not_found", "model",
            )
        return self.models[name]

    def scoring(self, name: str | None) -> ServedReward:
        """The reward, by its name or none.

        Raises:
            RequestError: there is none.
        """
        if self.reward is None or name not in (None, self.reward.name):
            there = "no reward is served here" if self.reward is None else f"the reward here is {self.reward.name!r}"
            raise RequestError(there, 404, "model_not_found", "model")
        return self.reward

    def is_reward(self, name: str | None) -> bool:
        """Whether the name is the reward's."""
        return self.reward is not None and name == self.reward.name

    def add_thumb(self, thumb: Thumb) -> str | None:
        """Adds what somebody thinks of an answer to the file, whole or not at all.

        Returns:
            What of an unfinished last line was set aside.

        Raises:
            RequestError: there is no file, or no line can hold it.
            OSError: it cannot be written.
        """
        if self.thumbs is None:
            raise RequestError("no file was named for thumbs: start the server with --thumbs FILE", 404)
        if faults := faults_of(thumb):
            raise RequestError("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        return append_line(self.thumbs, json_line(thumb))


def _rows(outputs: Tensor) -> list[list[float]]:
    rows: list[list[float]] = outputs.tolist()
    return rows


def finite(value: float) -> float | None:
    """A number that JSON has; a log-probability of minus infinity has none."""
    return value if math.isfinite(value) else None


def open_model(
    folder: Path, name: str, title: str, *, context: int, slots: int | None = None, preamble: Messages = (),
    talks: bool = True,
) -> ServedModel:
    """A model's folder, opened to be served.

    Args:
        context: tokens of a prompt and its answer; a model that knows fewer positions has those.
        slots: answers decoded together; by default as many as the cache has room for.

    Raises:
        ModelError: it cannot be used, or does not decode in slots.
    """
    policy = Policy.open(folder)
    within = min(context, policy.context or context)
    return ServedModel(name, title, policy, policy.batch(within, slots), own_sampling(folder), preamble, talks)
