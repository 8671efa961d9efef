"""A reward behind an address that scores: `triptych serve`, vLLM, or any server that replies as one of them does.

What the last part of its address is says in which form it is asked. Several answers go into a request where the form
has room for them. What stands behind an address may have learnt from anybody's comparisons, so that it is held to be a
reward that learnt (see :func:`triptych.engine.scoring.learns`), and nobody here knows on what.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import model_validator

from triptych.engine.endpoint import Endpoint, EndpointClient, is_address
from triptych.engine.scoring import ShardMap, unsharded
from triptych.errors import EndpointError, RewardError, UnavailableError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation, to_json, turns
from triptych.reward.kind import Opening, RewardConfig
from triptych.reward.making import Making
from triptych.reward.replies import ReplyCache

if TYPE_CHECKING:
    import httpx2

BYTES = 1 << 20
"""Of the answers in one request, where there is more than one; `triptych serve` reads four times as many."""


class ScoringForm(Protocol):
    """How a server is asked for scores.

    Attributes:
        most: answers in one request.
    """

    most: ClassVar[int]

    def row(self, conversation: Conversation) -> dict[str, Any]:
        """What is sent of an answer.

        Raises:
            RewardError: the form cannot say it.
        """

    def body(self, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A request."""

    def score(self, replied: Mapping[str, Any]) -> object:
        """What stands for an answer's score in its entry of the reply's `data`."""


class RowForm:
    """Triptych's `/v1/score`: rows as data files have them, with what rules need; the normalised score."""

    most: ClassVar[int] = 32

    def row(self, conversation: Conversation) -> dict[str, Any]:
        """See `ScoringForm`."""
        return to_json(conversation)

    def body(self, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `ScoringForm`."""
        return {"model": model, "conversations": list(rows)}

    def score(self, replied: Mapping[str, Any]) -> object:
        """See `ScoringForm`."""
        return replied.get("score")


class PoolingForm:
    """vLLM's `/pooling`: one conversation, which the server's chat template writes; the head's one output as it is."""

    most: ClassVar[int] = 1

    def row(self, conversation: Conversation) -> dict[str, Any]:
        """See `ScoringForm`."""
        if conversation.prompt.tools:
            raise RewardError("a prompt has tools, which /pooling cannot be told; ask /v1/score, or leave them out")
        return {"messages": turns(conversation.messages)}

    def body(self, model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `ScoringForm`; without its `task` a newer vLLM scores every token, and many models with a sigmoid."""
        return {"model": model, "task": "classify", "use_activation": False, **rows[0]}

    def score(self, replied: Mapping[str, Any]) -> object:
        """See `ScoringForm`; of outputs for each token those of the last, where a conversation is scored."""
        outputs = replied.get("data")
        if isinstance(outputs, list) and outputs and isinstance(outputs[-1], list):
            outputs = outputs[-1]
        return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else None


FORMS: Mapping[str, ScoringForm] = {"score": RowForm(), "pooling": PoolingForm()}
"""By the last part of an address."""


def scores_at(url: str | Path) -> bool:
    """Whether an address, with `#MODEL` or without, is one at which answers are scored."""
    return is_address(url) and str(url).partition("#")[0].rstrip("/").rpartition("/")[2] in FORMS


class RemoteReward(RewardConfig):
    """A reward behind an address; nothing is trained.

    Attributes:
        endpoint: where it is asked; an address that ends with `/v1` is asked at its `/score`.
    """

    kind: Literal["remote"] = "remote"
    endpoint: Endpoint

    @model_validator(mode="after")
    def _has_a_form(self) -> RemoteReward:
        if not scores_at(self.address):
            ends = ", ".join(f"/{name}" for name in FORMS)
            raise ValueError(f"{self.endpoint.url}: by its end nobody knows how to ask there: it must be one of "
                             f"/v1, {ends}")
        return self

    @property
    def address(self) -> str:
        """Where scores are asked for."""
        url = self.endpoint.url
        return f"{url}/score" if url.rpartition("/")[2] == "v1" else url

    @property
    def place(self) -> tuple[str, str]:
        """The server and its model, in whatever form they are asked."""
        return self.address.rpartition("/")[0].removesuffix("/v1"), self.endpoint.model

    def make(self, making: Making) -> Artifact[Result]:
        """A stage that keeps what it is."""
        return making.runner.run(making.name, keep_remote, self)

    def open(self, opening: Opening) -> RemoteScorer:
        """What is there as a scorer."""
        asked = self.model_copy(update={"endpoint": opening.as_asked(self.endpoint)})
        return RemoteScorer(asked, opening.cache, opening.shard_map, identity=opening.identity)


@dataclass(frozen=True, slots=True)
class _Asked:
    """An answer that is not scored yet.

    Attributes:
        name: a digest of what is asked.
    """

    name: str
    row: dict[str, Any]


class RemoteScorer:
    """The scores that a server gives; they are kept on disk, and nothing is asked twice.

    Args:
        cache: the folder in which the scores are kept, in `scores.jsonl`.
        shard_map: how answers are shared out.

    Attributes:
        learns, learnt_elsewhere: what is behind an address may have, and nobody here knows on what.
    """

    learns = True
    learnt_elsewhere = True

    def __init__(
        self, config: RemoteReward, cache: Path | None = None, shard_map: ShardMap = unsharded, *,
        name: str = "remote reward", identity: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self.identity = identity
        self._form = FORMS[config.address.rpartition("/")[2]]
        self._client = EndpointClient(config.endpoint)
        self._shard_map = shard_map
        self._cache: ReplyCache[float] = ReplyCache(cache, "scores.jsonl", _is_score)

    @property
    def requests(self) -> int:
        """How many went out."""
        return self._client.requests

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """As the server gives them.

        A request takes `retries` + 1 times `seconds` + `PATIENCE` at most, and its turn at `requests_per_minute`.

        Raises:
            RewardError: the address cannot be used, kept failing, or replied what are no scores of these answers.
        """
        return self._shard_map(self._scores, conversations)

    def _scores(self, conversations: Sequence[Conversation]) -> list[float]:
        asked = [self._asked(conversation) for conversation in conversations]
        unknown = {one.name: one for one in asked if one.name not in self._cache}
        if unknown:
            try:
                self._client.ask_all(self._ask, self._batches(unknown.values()))
            except EndpointError as error:
                raise UnavailableError(str(error)) from None
        return [score for one in asked if (score := self._cache[one.name]) is not None]

    def _asked(self, conversation: Conversation) -> _Asked:
        row = self._form.row(conversation)
        asked = json.dumps([self.config.address, self.config.endpoint.model, row])
        return _Asked(hashlib.sha256(asked.encode()).hexdigest(), row)

    def _batches(self, asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
        """As many in a request as the form takes and `BYTES` hold, one at least."""
        batch: list[_Asked] = []
        size = 0
        for one in asked:
            length = len(json.dumps(one.row))
            if batch and (len(batch) == self._form.most or size + length > BYTES):
                yield batch
                batch, size = [], 0
            batch.append(one)
            size += length
        yield batch

    async def _ask(self, client: httpx2.AsyncClient, batch: Sequence[_Asked]) -> None:
        body = self._form.body(self.config.endpoint.model, [one.row for one in batch])
        reply = await self._client.post(client, self.config.address, body)
        scores = self._read(reply, len(batch))
        for one, score in zip(batch, scores, strict=True):
            self._cache.keep(one.name, score)

    def _read(self, reply: Mapping[str, Any], count: int) -> list[float]:
        """The scores in a reply, in the order in which the answers were sent, by each entry's `index`.

        Raises:
            RewardError: they are not one finite number for each answer.
        """
        data = reply.get("data")
        rows = data if isinstance(data, list) and all(isinstance(row, dict) for row in data) else None
        if rows is None or len(rows) != count:
            got = "no list of scores" if rows is None else f"{len(rows):,} scores"
            raise RewardError(f"{self.config.address}: replied {got} where {count} answers were sent")
        places = {row.get("index"): row for row in rows if type(row.get("index")) is int}
        if places.keys() != set(range(count)):
            raise RewardError(f"{self.config.address}: replied scores whose `index` does not say which answers they "
                              f"are of: each of 0 to {count - 1} must stand there once")
        scores = [self._form.score(places[place]) for place in range(count)]
        if not all(map(_is_score, scores)):
            raise RewardError(f"{self.config.address}: replied a score that is not one finite number")
        return [float(score) for score in scores]  # type: ignore[arg-type]


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class RemoteKept(Result):
    """Nothing is measured of a reward that is kept."""


def keep_remote(context: StageContext, config: RemoteReward) -> RemoteKept:
    """Leaves `reward.json`."""
    path = context.output / "reward.json"
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return RemoteKept()
