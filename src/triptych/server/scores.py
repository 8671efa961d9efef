"""Rewards in the forms that their callers have: ours, vLLM's, OpenRLHF's, and a chat with a reward, as NIM has it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from triptych.data.files import parse_comparison, parse_conversation
from triptych.data.row import Row
from triptych.data.rows import Place
from triptych.engine.scoring import Scores
from triptych.errors import DataError
from triptych.records import Comparison, Conversation, Prompt, user
from triptych.server.bodies import ChatBody, ChatTurn, PoolingBody, RemoteBody, ScoreBody
from triptych.server.served import RequestError, ServedReward

R = TypeVar("R", Conversation, Comparison)


async def score(reward: ServedReward, body: ScoreBody) -> dict[str, Any]:
    """`/v1/score`: for each answer its reward and its parts.

    Raises:
        RequestError, DataError: the body is in none of its forms.
    """
    given = [name for name in ("conversations", "comparisons", "text_2") if getattr(body, name) is not None]
    if len(given) != 1 or (body.text_1 is None) != (body.text_2 is None):
        raise RequestError("give conversations, or comparisons, or text_1 (prompts) with text_2 (answers)")
    if body.comparisons is None:
        conversations = _conversations(body)
    else:
        pairs = _read("comparisons", body.comparisons, parse_comparison)
        conversations = [
            Conversation(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)
        ]
    scores = await reward.score(conversations)
    data = [_scored(reward, scores, place, one.answer) for place, one in enumerate(conversations)]
    if body.comparisons is not None:
        data = [{"chosen": one, "rejected": other} for one, other in zip(data[0::2], data[1::2], strict=True)]
    return _listed(reward, "score", data) | {"notes": dict(scores.notes), "counts": dict(scores.counts)}


def _conversations(body: ScoreBody) -> list[Conversation]:
    if body.conversations is not None:
        return _read("conversations", body.conversations, partial(parse_conversation, may_be_empty=True))
    prompts, answers = ([text] if isinstance(text, str) else text or [] for text in (body.text_1, body.text_2))
    prompts = prompts * len(answers) if len(prompts) == 1 else prompts
    if len(prompts) != len(answers):
        raise RequestError(f"text_1 has {len(prompts)} prompts and text_2 {len(answers)} answers", field="text_1")
    return [Conversation(Prompt(user(prompt)), answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _read(field: str, rows: Sequence[Mapping[str, Any]], parse: Callable[[Row], R | None]) -> list[R]:
    """Rows as data files have them.

    Raises:
        DataError: rows are wrong, each by its place in the field.
    """
    read = [Row(Place(field, place), values) for place, values in enumerate(rows)]
    records = [parse(row) for row in read]
    if faults := [fault for row in read for fault in row.faults]:
        raise DataError(faults)
    return [record for record in records if record is not None]


def _scored(reward: ServedReward, scores: Scores, place: int, answer: str) -> dict[str, Any]:
    total = scores.totals[place]
    parts = {name: column[place] for name, column in scores.parts.items()}
    parts = {name: value for name, value in parts.items() if value is not None}
    doubts = reward.audit and reward.audit.doubts(answer, total, parts.get("spread"))
    trusted = None if doubts is None else not doubts
    return {"score": total, "parts": parts, "trusted": trusted, "doubts": doubts or []}


def _listed(reward: ServedReward, kind: str, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{kind}-{secrets.token_hex(12)}", "object": "list", "created": int(time.time()), "model": reward.name,
        "data": [{"index": place, "object": kind, **row} for place, row in enumerate(data)],
    }


async def pool(reward: ServedReward, body: PoolingBody) -> dict[str, Any]:
    """`/pooling`: the outputs of the head as they are, before they are normalised.

    Raises:
        RequestError: the reward is not one model, or there is no text.
    """
    if body.use_activation:
        raise RequestError("/pooling gives outputs as they are; /classify makes probabilities", field="use_activation")
    return _listed(reward, "pooling", [{"data": row} for row in await _outputs(reward, body)])


async def classify(reward: ServedReward, body: PoolingBody) -> dict[str, Any]:
    """`/classify`: the outputs as probabilities, as vLLM has them: σ of one output, the softmax of several.

    Raises:
        RequestError: the reward is not one model, or there is no text.
    """
    if body.use_activation is False:
        raise RequestError("/classify makes probabilities; /pooling gives outputs as they are", field="use_activation")
    rows = []
    given = await _outputs(reward, body)
    names = reward.model.model.config.id2label
    for outputs in given:
        several = torch.tensor(outputs, dtype=torch.float64, device="cpu")
        probabilities = several.softmax(0).tolist() if len(outputs) > 1 else several.sigmoid().tolist()
        best = max(range(len(outputs)), key=probabilities.__getitem__)
        rows.append({"label": names[best], "probs": probabilities, "num_classes": len(outputs)})
    return _listed(reward, "classify", rows)


async def _outputs(reward: ServedReward, body: PoolingBody) -> list[list[float]]:
    if (body.input is None) == (body.messages is None):
        raise RequestError("give input, whole texts as the chat template writes them, or messages")
    if body.messages is not None:
        return await reward.conversation_outputs([_conversation(body.messages)])
    return await reward.outputs([body.input] if isinstance(body.input, str) else body.input or [])


async def remote(reward: ServedReward, body: RemoteBody) -> dict[str, Any]:
    """OpenRLHF's `remote_rm_url`: the rewards of whole texts.

    Raises:
        RequestError: the reward is not one model.
    """
    outputs = torch.tensor(await reward.whole_outputs(body.query), device="cpu")
    scale = reward.model.scale
    rewards = scale.normalised(scale.raw(outputs)).tolist()
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


async def reward_chat(reward: ServedReward, body: ChatBody) -> dict[str, Any]:
    """A chat whose last turn is the answer to score; the reply is its reward in words, and as log-probabilities.

    Raises:
        RequestError: the conversation does not end with an answer, or an answer is asked for.
    """
    if body.stream or body.written > 1 or body.stops or body.response_format:
        raise RequestError("a reward writes nothing: leave out stream, n, best_of, stop and response_format")
    scores = await reward.score([_conversation(body.messages)])
    parts = {name: column[0] for name, column in scores.parts.items()}
    numbers = {"reward": scores.totals[0]} | {name: value for name, value in parts.items() if value is not None}
    content = ",".join(f"{name}:{value:.6g}" for name, value in numbers.items())
    tokens: list[dict[str, Any]] = [
        {"token": name, "logprob": value, "bytes": None, "top_logprobs": []} for name, value in numbers.items()
    ]
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion", "created": int(time.time()),
        "model": reward.name,
        "choices": [{
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": {"content": tokens, "refusal": None},
        }],
    }


def _conversation(turns: Sequence[ChatTurn]) -> Conversation:
    messages = tuple(turn.message for turn in turns)
    if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role != "user":
        raise RequestError("a reward scores an answer: the last turn must be the assistant's, behind the user's",
                           field="messages")
    return Conversation(Prompt(messages[:-1]), messages[-1].content)
