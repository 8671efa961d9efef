"""A family over HTTP, asked by OpenAI's client: the same numbers as without a server, and refusals with a reason."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer

from test_page import CHROMIUM, person, running
from triptych.audit.record import Coverage, audit_beside
from triptych.audit.stage import Audit, Evidence, examine
from triptych.data.files import read_thumbs
from triptych.data.template import prompt_tokens
from triptych.engine.endpoint import Endpoint
from triptych.engine.models import load_policy, load_reward, load_tokenizer, save
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.errors import RewardError, UnavailableError
from triptych.records import Comparison, Conversation, Message, Prompt, Thumb, user
from triptych.reward.endpoint import EndpointJudge
from triptych.reward.ensemble import Ensemble
from triptych.reward.judge import LocalJudge
from triptych.server import application
from triptych.server.answers import ChatReply, StreamedChoice
from triptych.server.application import by_key, from_here
from triptych.server.bodies import ChatBody
from triptych.server.served import RequestError, ServedFamily, ServedModel, ServedReward, open_model
from triptych.server.text import TextStream
from triptych.server.worker import Worker

ROOT = Path(__file__).resolve().parents[1]
QUESTION: Any = [{"role": "user", "content": "a small cat"}]
CONTEXT = 96


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "reward"
    save(load_reward(policy_folder / "model", fresh=True, seed=3), load_tokenizer(policy_folder / "model"), folder)
    return folder


@contextmanager
def served(family: ServedFamily, **settings: Any) -> Iterator[str]:
    """The address of a server."""
    with running(application.serve(family, **settings)) as place:
        yield place


@pytest.fixture(scope="module")
def thumbs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl"


@pytest.fixture(scope="module")
def address(policy_folder: Path, reward_folder: Path, thumbs: Path) -> Iterator[str]:
    model, preamble = policy_folder / "model", (Message("system", "a red mat"),)
    models = {
        "instruct": open_model(model, "instruct", "Instruct", context=CONTEXT, slots=8),
        "behind": open_model(model, "behind", "Behind a prompt", context=CONTEXT, slots=8, preamble=preamble),
        "base": open_model(model, "base", "Base", context=CONTEXT, slots=8, talks=False),
    }
    with served(ServedFamily("cats", models, ServedReward(RewardModel(reward_folder)), thumbs)) as place:
        yield place


@pytest.fixture
def alone(policy_folder: Path) -> ServedFamily:
    """A family of one model, for a server of its own."""
    model = open_model(policy_folder / "model", "instruct", "Instruct", context=CONTEXT, slots=8)
    return ServedFamily("cats", {"instruct": model})


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return Policy.open(policy_folder / "model")


def post(address: str, body: Any, **headers: str) -> Any:
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def text_of(pieces: Iterable[Any]) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in pieces)


def test_models_and_reward_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["instruct", "behind", "base", "reward"]
    assert client.models.retrieve("base").owned_by == "cats"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_the_policy_s_own(client: openai.OpenAI, policy: Policy, temperature: float) -> None:
    sampling = Sampling(20, temperature=temperature, seed=7)
    for model, messages in {
        "instruct": user("a small cat"), "behind": (Message("system", "a red mat"), *user("a small cat")),
    }.items():
        ((rollout,),) = policy.write([Prompt(messages)], sampling)
        reply = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=20, temperature=temperature, seed=7
        )
        assert reply.choices[0].message.content == rollout.answer
        assert reply.choices[0].finish_reason == ("stop" if rollout.finished else "length")
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == len(rollout.prompt_tokens)
        assert reply.usage.completion_tokens == len(rollout.tokens)


def test_a_stream_s_pieces_are_the_whole_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "instruct", "messages": QUESTION, "max_tokens": 30, "temperature": 1.2, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    texts, tokens, finished, usage = ["", ""], [[], []], {}, None  # type: ignore[var-annotated]
    asked |= {"logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
            if choice.finish_reason:
                finished[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert tokens == [choice.logprobs.content for choice in whole.choices]
    assert all(len(token.top_logprobs) == 2 for token in tokens[0])
    assert finished == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_a_stop_sequence_ends_an_answer_before_it(client: openai.OpenAI) -> None:
    asked: Any = {"model": "instruct", "messages": QUESTION, "max_tokens": 40, "temperature": 1.0, "seed": 11}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = text[6:9]
    cut = client.chat.completions.create(**asked, stop=["not there", stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
    assert text_of(client.chat.completions.create(**asked, stop=stop, stream=True)) == cut.message.content


def test_what_stands_behind_a_stop_sequence_is_not_counted(client: openai.OpenAI) -> None:
    asked: Any = {"model": "instruct", "messages": QUESTION, "max_tokens": 40, "temperature": 1.0, "seed": 11}
    whole = client.chat.completions.create(**asked, logprobs=True).choices[0]
    text = whole.message.content or ""
    stop = text[6:9]
    cut = client.chat.completions.create(**asked, logprobs=True, stop=stop)
    said = "".join(token.token for token in cut.choices[0].logprobs.content)
    assert stop in said
    assert stop not in "".join(token.token for token in cut.choices[0].logprobs.content[:-1])
    assert cut.usage.completion_tokens == len(cut.choices[0].logprobs.content)
    several = client.chat.completions.create(**asked, n=4, stop=stop, logprobs=True)
    assert several.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in several.choices)


def test_a_reply_is_taken_back_as_a_turn(client: openai.OpenAI) -> None:
    asked: Any = {"model": "instruct", "max_tokens": 3, "temperature": 0}
    first = client.chat.completions.create(**asked, messages=QUESTION).choices[0].message
    said: Any
    turns: Any = [{"role": "user", "content": "a"}]
    for said in (first, first.model_dump(), {"role": "assistant", "content": "a red", "tool_calls": None}):
        assert client.chat.completions.create(**asked, messages=[*QUESTION, said, *turns]).choices
    called: Any = {"role": "assistant", "content": "a red", "tool_calls": [{"id": "1"}]}
    with pytest.raises(openai.BadRequestError, match="tool_calls"):
        client.chat.completions.create(**asked, messages=[*QUESTION, called, *turns])


def test_the_best_of_several_is_the_reward_s(client: openai.OpenAI, reward_folder: Path) -> None:
    asked: Any = {"model": "instruct", "messages": QUESTION, "max_tokens": 12, "temperature": 1.0, "seed": 2}
    written = [choice.message.content or "" for choice in client.chat.completions.create(**asked, n=6).choices]
    rewards = RewardModel(reward_folder).score([Conversation(Prompt.of("a small cat"), answer) for answer in written])
    best = client.chat.completions.create(**asked, n=2, extra_body={"best_of": 6}).choices
    ranked = sorted(zip(rewards, written, strict=True), reverse=True)[:2]
    assert [choice.message.content for choice in best] == [answer for _, answer in ranked]
    told = [choice.model_extra["reward"] for choice in best if choice.model_extra]
    assert told == pytest.approx([reward for reward, _ in ranked], abs=1e-5)


def test_text_is_gone_on_with(client: openai.OpenAI, policy: Policy) -> None:
    ids = policy.tokenizer("a red")["input_ids"]
    replies = [
        client.completions.create(model="base", prompt=prompt, max_tokens=9, temperature=0, logprobs=1)
        for prompt in ("a red", ids, [ids])
    ]
    assert len({reply.choices[0].text for reply in replies}) == 1
    logprobs = replies[0].choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == replies[0].choices[0].text
    assert [max(likely.values()) for likely in logprobs.top_logprobs or []] == logprobs.token_logprobs


def test_json_by_a_schema_is_json_by_the_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"cat": {"enum": ["small", "red"]}, "n": {"enum": [1, 22]}},
        "required": ["cat", "n"], "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "cat", "schema": schema, "strict": True}}
    for seed in range(4):
        reply = client.chat.completions.create(
            model="instruct", messages=QUESTION, max_tokens=70, temperature=1.0, seed=seed, response_format=wanted
        )
        choice = reply.choices[0]
        assert choice.finish_reason == "stop"
        written = json.loads(choice.message.content or "")
        assert written["cat"] in ("small", "red")
        assert written["n"] in (1, 22)
        assert len(written) == 2


@pytest.mark.parametrize(("wrong", "why"), [
    ({"model": "dog"}, "no model 'dog'"), ({"max_tokens": 90}, "no room for 90 tokens"),
    ({"messages": [{"role": "user", "content": "a small cat " * 40}]}, "no room for an answer"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is not built"), ({"tools": [{"type": "function"}]}, "tools is not"),
    ({"temperatur": 1}, "temperatur: Extra inputs"), ({"n": 2, "temperature": 0}, "all the same"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "last turn must be the user's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "cat"}}}}, "type: cat"),
    ({"best_of": 3, "n": 4}, "at least n"), ({"best_of": 3, "stream": True}, "cannot be streamed"),
    ({"model": "base"}, "/v1/completions"), ({"stop": [""]}, "stop must not be empty"),
])
def test_what_cannot_be_answered_is_refused_in_words(client: openai.OpenAI, wrong: dict[str, Any], why: str) -> None:
    body = {"model": "instruct", "messages": QUESTION, "max_tokens": 4, "temperature": 1.0, **wrong}
    body["max_tokens"] = None if "no room for an answer" in why else body["max_tokens"]
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=why):
        client.post("/chat/completions", body=body, cast_to=object)


def test_what_changes_nothing_is_passed_over(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="instruct", messages=QUESTION, max_completion_tokens=3, temperature=0, frequency_penalty=0,
        presence_penalty=0.0, user="somebody", logit_bias={}, metadata={"a": "b"},
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 3


def test_a_reward_scores_in_every_form(address: str, client: openai.OpenAI, reward_folder: Path) -> None:
    model = RewardModel(reward_folder)
    pairs = [("a small cat", "sat"), ("a small cat", "saw a dog"), ("a dog", "a mat")]
    conversations = [Conversation(Prompt.of(prompt), answer) for prompt, answer in pairs]
    expected, raw = model.score(conversations), model.raw(conversations)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in pairs
    ]
    texts = [model.tokenizer.apply_chat_template(messages, tokenize=False) for messages in turns]
    replies = [
        post(address + "/v1/score", {"conversations": rows}),
        post(address + "/v1/score", {"text_1": [prompt for prompt, _ in pairs], "text_2": [text for _, text in pairs]}),
    ]
    for reply in replies:
        assert [row["score"] for row in reply["data"]] == pytest.approx(expected, abs=1e-5)
    comparison = {"prompt": "a small cat", "chosen": "sat", "rejected": "saw a dog"}
    (pair,) = post(address + "/score", {"comparisons": [comparison]})["data"]
    assert [pair["chosen"]["score"], pair["rejected"]["score"]] == pytest.approx(expected[:2], abs=1e-5)
    pooled = post(address + "/pooling", {"input": texts})
    assert [row["data"][0] for row in pooled["data"]] == pytest.approx(raw, abs=1e-5)
    alone = post(address + "/pooling", {"messages": turns[2]})
    assert alone["data"][0]["data"] == pytest.approx([raw[2]], abs=1e-5)
    classified = post(address + "/classify", {"input": texts[0]})
    assert classified["data"][0]["probs"] == pytest.approx([torch.tensor(raw[0]).sigmoid().item()], abs=1e-5)
    asked = [prompt for prompt, _ in pairs]
    remote = post(address + "/get_reward", {"query": texts, "prompts": asked, "labels": [1, 2, 3]})
    assert remote["rewards"] == pytest.approx(expected, abs=1e-5)
    said: Any = turns[1]
    chat = client.chat.completions.create(model="reward", messages=said)
    named, _, number = str(chat.choices[0].message.content).partition(":")
    assert (named, number) == ("reward", f"{float(number):.6g}")
    assert float(number) == pytest.approx(expected[1], abs=1e-5)
    assert chat.choices[0].logprobs is not None
    (token,) = chat.choices[0].logprobs.content or []
    assert token.token == "reward"
    assert token.logprob == pytest.approx(expected[1], abs=1e-5)


def test_a_text_of_another_trainer_is_scored_as_it_would_end(address: str, reward_folder: Path) -> None:
    """Cut, padded or ended: OpenRLHF's own server makes the same of them."""
    model = RewardModel(reward_folder)
    row = Conversation(Prompt.of("a small cat"), "saw a dog")
    turns = [{"role": turn.role, "content": turn.content} for turn in row.messages]
    text = str(model.tokenizer.apply_chat_template(turns, tokenize=False)).rstrip("\n")
    end, pad = model.tokenizer.eos_token, model.tokenizer.pad_token
    assert text.endswith(end)
    forms = [text, text + "\n", text.removesuffix(end), text + end, text + pad * 3]
    assert post(address + "/get_reward", {"query": forms})["rewards"] == pytest.approx(model.score([row]) * 5, abs=1e-5)
    lined = [Conversation(row.prompt, row.answer + "\n")]  # an answer's own line end is a part of it
    broken = text.removesuffix(end) + "\n"
    assert post(address + "/get_reward", {"query": [broken, broken + end]})["rewards"] == pytest.approx(
        model.score(lined) * 2, abs=1e-5
    )
    whole = post(address + "/pooling", {"messages": turns})["data"][0]["data"]
    assert post(address + "/pooling", {"input": text})["data"][0]["data"] == pytest.approx(whole, abs=1e-5)
    many = post(address + "/v1/score", {"text_1": ["a small cat"], "text_2": ["saw a dog", "sat"]})["data"]
    assert many[0]["score"] == pytest.approx(model.score([row])[0], abs=1e-5)


def test_tokens_are_told_with_the_blank_that_stands_before_them(
    policy_folder: Path, alone: ServedFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders of Llama-2's kind leave out the blank that a text begins with."""
    plain = AutoTokenizer.from_pretrained(policy_folder / "model")
    tokens = plain(" a small cat", add_special_tokens=False)["input_ids"]
    body = ChatBody.model_validate({"messages": QUESTION, "logprobs": True})
    reply = ChatReply(alone, Worker([]), alone.models["instruct"], body, [])
    written = SimpleNamespace(tokens=tokens)
    request: Any = SimpleNamespace(completion=written, likeliest=[(0.0, [])] * len(tokens), alternatives=0)
    decode = type(plain).decode
    monkeypatch.setattr(type(plain), "decode", lambda self, ids: decode(self, ids).removeprefix(" "))
    shown = reply.shaped(StreamedChoice(0, request, tokens=len(tokens)), streamed=False)
    assert "".join(entry["token"] for entry in shown["logprobs"]["content"]) == " a small cat"


def test_what_is_null_is_as_it_is_by_default(address: str) -> None:
    body = {"messages": QUESTION, "max_tokens": 4, "temperature": 1.0}
    plain = post(address + "/v1/chat/completions", body | {"seed": 2**63 - 5})
    nulls = body | {"n": None, "stream": None, "stop": None, "logprobs": None, "seed": -5}
    assert post(address + "/v1/chat/completions", nulls)["choices"] == plain["choices"]


def test_no_conversation_is_put_into_another_order(address: str, policy: Policy) -> None:
    turns = [("user", "a cat"), ("assistant", "sat"), ("system", "a mat"), ("user", "a dog")]
    messages = tuple(Message(role, text) for role, text in turns)  # type: ignore[arg-type]
    ((rollout,),) = policy.write([Prompt(messages)], Sampling(4, temperature=0))
    asked = [{"role": role, "content": text} for role, text in turns]
    reply = post(address + "/v1/chat/completions", {"messages": asked, "max_tokens": 4, "temperature": 0})
    assert reply["usage"]["prompt_tokens"] == len(rollout.prompt_tokens)
    assert reply["choices"][0]["message"]["content"] == rollout.answer


def test_more_than_can_wait_is_refused_before_anything_is_made_of_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServedModel, "requests", lambda *_: pytest.fail("a request was made"))
    for prompt in ([[1]] * 900, ["a"] * 900):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(address + "/v1/completions", {"prompt": prompt, "n": 128})
        assert "115200 answers at once are more than 8 slots" in json.loads(refused.value.read())["error"]["message"]


@pytest.mark.parametrize("body", [
    {"prompt": "\ud800"}, {"messages": [{"role": "user", "content": "\udfff"}]}, {"query": ["a", "\ud800"]},
    {"messages": QUESTION, "answer": "\ud83d", "label": True},
])
def test_half_a_character_is_refused(address: str, body: Any) -> None:
    where = "/get_reward" if "query" in body else "/thumb" if "label" in body else "/v1/completions" \
        if "prompt" in body else "/v1/chat/completions"
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address + where, body)
    assert refused.value.code == 400
    assert "half of a surrogate pair" in json.loads(refused.value.read())["error"]["message"]


def test_a_server_that_ends_leaves_no_thread_behind(alone: ServedFamily) -> None:
    class Slow:
        name, identity = "slow", ""

        def score(self, conversations: Any) -> list[float]:
            return [0.0] * len(conversations)

    before = set(threading.enumerate())
    with served(replace(alone, reward=ServedReward(Slow()))) as place:
        post(place + "/v1/score", {"text_1": "a", "text_2": "b"})
        post(place + "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2})
    until = time.monotonic() + 10
    while (left := [one.name for one in set(threading.enumerate()) - before if "decoding" in one.name
                    or "scoring" in one.name]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def test_scores_that_nobody_waits_for_are_not_computed() -> None:
    began, go = threading.Event(), threading.Event()
    scored: list[str] = []

    class Slow:
        name, identity = "slow", ""

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            began.set()
            go.wait(10)
            scored.extend(row.answer for row in conversations)
            return [0.0] * len(conversations)

    async def several() -> None:
        reward = ServedReward(Slow())
        reward.most = 2
        rows = [[Conversation(Prompt.of("a"), name)] for name in ("first", "second", "third")]
        first, second = (asyncio.create_task(reward.score(row)) for row in rows[:2])
        await asyncio.to_thread(began.wait, 10)
        with pytest.raises(RequestError, match="too many requests wait to be scored"):
            await reward.score(rows[2])
        second.cancel()
        await asyncio.sleep(0)
        go.set()
        await first
        reward.close()

    asyncio.run(several())
    assert scored == ["first"]


@pytest.mark.parametrize(("where", "body", "why"), [
    ("/v1/score", {"conversations": [{"prompt": "a"}]}, "conversations:0: completion: missing"),
    ("/v1/score", {"conversations": [{"prompt": "a", "completion": "b"}], "text_1": "a", "text_2": "b"}, "give conv"),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "2 prompts and text_2 1 answers"),
    ("/pooling", {}, "give input"), ("/pooling", {"input": [""]}, "a text is empty"),
    ("/pooling", {"messages": QUESTION}, "must be the assistant's"),
    ("/v1/score", {"model": "instruct"}, "the reward here is 'reward'"),
    ("/pooling", {"input": []}, "there is no text"), ("/get_reward", {"query": []}, "there is no text"),
    ("/classify", {"input": "a red cat " * 400}, "the reward model knows"),
    ("/v1/chat/completions", {"model": "reward", "messages": QUESTION, "stream": True}, "a reward writes nothing"),
    ("/v1/nowhere", {}, "Not Found"),
])
def test_what_cannot_be_scored_is_refused_in_words(address: str, where: str, body: Any, why: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address + where, body)
    assert refused.value.code in (400, 404)
    assert why in json.loads(refused.value.read())["error"]["message"]


def test_a_reward_that_is_no_model_scores_no_texts(policy_folder: Path) -> None:
    class Rule:
        name, identity = "length rule", ""

        def score(self, conversations: Any) -> list[float]:
            if any(conversation.answer == "x" for conversation in conversations):
                raise RewardError("it cannot be scored")
            return [float(len(conversation.answer)) for conversation in conversations]

    with served(ServedFamily("rules", {}, ServedReward(Rule()))) as place:
        assert post(place + "/v1/score", {"text_1": "a", "text_2": ["bc"]})["data"][0]["score"] == 2.0
        for where, body in (("/get_reward", {"query": ["a"]}), ("/v1/score", {"text_1": "a", "text_2": "x"})):
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(place + where, body)
            assert refused.value.code == 400
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(place + "/v1/chat/completions", {"messages": QUESTION})
        assert refused.value.code == 404


@dataclass
class Counts:
    """A member of an ensemble: an answer's length, and so much for each x."""

    each: float

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [len(row.answer) + self.each * row.answer.count("x") for row in conversations]


CATS = [Comparison(Prompt.of(f"{number}?"), "cats", "x") for number in range(40)]


def test_where_the_audit_saw_no_such_answer_a_score_is_not_trusted() -> None:
    ensemble = Ensemble([Counts(0.0), Counts(2.0)], penalty=0.0)  # type: ignore[list-item]
    record = examine(ensemble, Evidence(CATS), Audit(perturbed=0)).model_copy(update={"verdict": "passed"})
    assert record.coverage == Coverage(answers=80, length=(1, 4), score=(2.0, 4.0), spread=1.0)
    doubts = {
        "dog": [], "cats": [], "x": [], "a": ["score"], "": ["score", "length"], "a rat": ["score", "length"],
        "xx": ["spread"], "xxxxx": ["score", "length", "spread"],
    }
    body = {"text_1": "Who?", "text_2": list(doubts)}
    with served(ServedFamily("cats", {}, ServedReward(ensemble, audit=record))) as place:
        data = post(f"{place}/v1/score", body)["data"]
        assert [row["doubts"] for row in data] == list(doubts.values())
        assert [row["trusted"] for row in data] == [not why for why in doubts.values()]
        comparison = {"prompt": "Who?", "chosen": "dog", "rejected": "a rat"}
        (pair,) = post(f"{place}/v1/score", {"comparisons": [comparison]})["data"]
        assert [pair[answer]["trusted"] for answer in ("chosen", "rejected")] == [True, False]
    failed = record.model_copy(update={"verdict": "failed"})
    for audit, trusted, why in ((None, None, []), (failed, False, ["audit"])):
        with served(ServedFamily("cats", {}, ServedReward(ensemble, audit=audit))) as place:
            row = post(f"{place}/v1/score", body)["data"][0]
        assert (row["trusted"], row["doubts"]) == (trusted, why)


def in_the_docs(address: str) -> Callable[..., list[float]]:
    """The reward function that docs/serve.md has for TRL, asking the server at this address."""
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "def reward(" in block)
    assert code.count("http://127.0.0.1:8000/v1/score") == 1
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000", address), names)
    reward: Callable[..., list[float]] = names["reward"]
    return reward


def assert_trl_logs_the_rewards_of(scorer: RewardModel, address: str, policy: Path, prompts: list[Any]) -> None:
    """TRL's GRPO makes two steps with the function of the docs, and logs what the scorer gives the same answers."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    function, scored = in_the_docs(address), []

    @functools.wraps(function)
    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        scored.append([
            Conversation(Prompt.of(_text(prompt)), _text(answer))
            for prompt, answer in zip(prompts, completions, strict=True)
        ])
        return function(prompts=prompts, completions=completions, **columns)

    settings = trl.GRPOConfig(
        output_dir="unwritten", per_device_train_batch_size=4, num_generations=2, max_completion_length=6, max_steps=2,
        logging_steps=1, seed=1, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        str(policy), reward, settings, train_dataset=datasets.Dataset.from_list([{"prompt": each} for each in prompts])
    )
    trainer.train()
    logged = [row["rewards/reward/mean"] for row in trainer.state.log_history if "rewards/reward/mean" in row]
    expected = [scorer.score(answers) for answers in scored]
    assert [len(rewards) for rewards in expected] == [4, 4]
    assert len({reward for rewards in expected for reward in rewards}) > 4
    assert logged == pytest.approx([sum(rewards) / 4 for rewards in expected], abs=1e-5)


def _text(said: Any) -> str:
    """Of text, and of a conversation of one turn."""
    return str(said if isinstance(said, str) else said[0]["content"])


@pytest.mark.parametrize("chat", [True, False])
def test_trl_trains_against_the_server_as_the_docs_say(
    address: str, policy_folder: Path, reward_folder: Path, *, chat: bool
) -> None:
    texts = ["a small cat", "a red mat and a dog", "on", "saw"]
    prompts = [[{"role": "user", "content": text}] for text in texts] if chat else texts
    assert_trl_logs_the_rewards_of(RewardModel(reward_folder), address, policy_folder / "model", prompts)


@pytest.mark.slow
def test_trl_trains_a_released_instruct_against_its_served_reward(tiny_run: Path) -> None:
    command = [sys.executable, "-m", "triptych", "serve", str(tiny_run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            place = next(line.partition("/;")[0] for line in server.stdout if line.startswith("http"))
            prompts = [[{"role": "user", "content": f"Tell a story about {who}."}] for who in ("a fox", "a cat", "Ann")]
            release = tiny_run / "release"
            assert_trl_logs_the_rewards_of(RewardModel(release / "reward"), place, release / "instruct", prompts)
            row = {"messages": [*prompts[0], {"role": "assistant", "content": "fox " * 500}]}
            (scored,) = post(f"{place}/v1/score", {"conversations": [row]})["data"]
            audit = audit_beside(release / "reward")
            assert audit is not None
            assert scored["doubts"] == audit.doubts("fox " * 500, scored["score"])
            assert {"audit", "length"} <= set(scored["doubts"])  # the tiny reward fails its audit
        finally:
            server.send_signal(signal.SIGINT)


def test_a_judge_at_the_server_replies_as_the_same_model_here(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose likeliest next tokens are the choices, as of one that follows the question."""
    monkeypatch.setattr("triptych.reward.endpoint.REPLY", 1)  # the model would go on with more of them
    choices = ["1", "2", "3"]
    questions = ["Is a small cat better?", "a red mat", "Was it a dog that sat?"]
    tokenizer = load_tokenizer(policy_folder / "model")
    model = load_policy(policy_folder / "model")
    tokens = torch.tensor([prompt_tokens(tokenizer, Prompt.of(question)) for question in questions[:1]])
    towards = model.model(tokens).last_hidden_state[0, -1].detach()
    model.config.tie_word_embeddings = False
    weights = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for rank, choice in enumerate(choices):
            (token,) = tokenizer(choice, add_special_tokens=False)["input_ids"]
            weights[token] += (1 + rank / 20) * towards
    save(model, tokenizer, tmp_path / "judge")
    family = ServedFamily("judges", {"judge": open_model(tmp_path / "judge", "judge", "Judge", context=CONTEXT)})
    with served(family) as place:
        there = EndpointJudge(Endpoint(url=f"{place}/v1", model="judge")).choose(questions, choices)
    for said, expected in zip(there, LocalJudge(tmp_path / "judge").choose(questions, choices), strict=True):
        assert said == pytest.approx(expected, abs=0.01)
        assert said is not None
        assert 0.5 < said["3"] < 0.9


def test_many_clients_get_what_each_would_get_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> str | None:
        reply = client.chat.completions.create(
            model="instruct", messages=[{"role": "user", "content": "a small cat " * (number % 5 + 1)}],
            max_tokens=5 + number % 17, temperature=number % 3 / 2, seed=number,
        )
        return reply.choices[0].message.content

    alone = [ask(number) for number in range(40)]
    with ThreadPoolExecutor(max_workers=20) as pool:
        assert list(pool.map(ask, range(40))) == alone


def test_overload_is_told_and_loses_nothing(alone: ServedFamily) -> None:
    with served(alone, queue=2) as place:
        client = openai.OpenAI(base_url=place + "/v1", api_key="none", max_retries=0)

        def ask(number: int) -> list[str | None] | None:
            try:
                reply = client.chat.completions.create(
                    model="instruct", messages=QUESTION, max_tokens=60, temperature=1.0, seed=number, n=5
                )
            except openai.RateLimitError as error:
                waits.append(error.response.headers["Retry-After"])
                return None
            return [choice.message.content for choice in reply.choices]

        waits: list[str] = []

        with ThreadPoolExecutor(max_workers=12) as pool:
            answered = list(pool.map(ask, range(12)))
        assert set(waits) == {"1"}
        assert answered.count(None) == len(waits)
        taken = {number: answers for number, answers in enumerate(answered) if answers is not None}
        assert taken == {number: ask(number) for number in taken}


def test_whoever_leaves_is_not_computed_for_and_a_server_that_ends_lets_answers_end(alone: ServedFamily) -> None:
    batch = alone.models["instruct"].batch
    asked: Any = {"model": "instruct", "messages": QUESTION, "stream": True, "max_tokens": 70, "temperature": 2.0}
    with served(alone) as place:
        client = openai.OpenAI(base_url=place + "/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(**asked, seed=4)
        next(iter(stream))
        stream.close()
        until = time.monotonic() + 10
        while batch.unfinished and time.monotonic() < until:
            time.sleep(0.02)
        assert not batch.unfinished
        whole = text_of(client.chat.completions.create(**asked, seed=5))
        pieces = iter(client.chat.completions.create(**asked, seed=5))
        first = next(pieces)
        read = ThreadPoolExecutor(max_workers=1).submit(list, pieces)
    drained = [first, *read.result()]
    assert text_of(drained) == whole
    assert drained[-1].choices[0].finish_reason in ("stop", "length")


def test_a_failure_in_computing_is_told_and_the_next_request_is_served(
    alone: ServedFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"messages": QUESTION, "max_tokens": 5}
    with served(alone) as place:
        with monkeypatch.context() as broken:
            broken.setattr(alone.models["instruct"].batch, "step", lambda: 1 / 0)
            with pytest.raises(urllib.error.HTTPError) as failed:
                post(place + "/v1/chat/completions", body)
        assert failed.value.code == 500
        assert post(place + "/v1/chat/completions", body)["usage"]


def test_where_the_rewards_own_address_does_not_reply_whoever_asks_may_ask_again(policy_folder: Path) -> None:
    class Silent:
        name = identity = "silent"

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            raise UnavailableError("http://there: gave up after 3 attempts")

    model = open_model(policy_folder / "model", "instruct", "Instruct", context=96, slots=16)
    with served(ServedFamily("silent", {"instruct": model}, ServedReward(Silent()))) as place:
        chat = {"messages": QUESTION, "max_tokens": 2, "temperature": 1.0, "best_of": 2}
        for where, body in (("/v1/score", {"text_1": "a", "text_2": "b"}), ("/v1/chat/completions", chat)):
            with pytest.raises(urllib.error.HTTPError) as failed:
                post(place + where, body)
            assert failed.value.code == 502
            assert "gave up" in json.loads(failed.value.read())["error"]["message"]


def test_thumbs_become_rows_to_learn_from(address: str, thumbs: Path) -> None:
    thumb = {"messages": QUESTION, "answer": "sat", "label": False}
    assert post(address + "/thumb", thumb) == {"added": True, "set_aside": None}
    assert read_thumbs(thumbs) == [Thumb(Prompt.of("a small cat"), "sat", label=False)]
    with thumbs.open("a") as file:
        file.write('{"prompt": "a sm')
    assert post(address + "/thumb", thumb) == {"added": True, "set_aside": '{"prompt": "a sm'}
    assert len(read_thumbs(thumbs)) == 2


def test_a_key_is_asked_for(alone: ServedFamily) -> None:
    with served(alone, key="secret") as place:
        for key in ("secret", "wrong"):
            client = openai.OpenAI(base_url=place + "/v1", api_key=key, max_retries=0)
            if key == "secret":
                assert len(list(client.models.list())) == 1
            else:
                with pytest.raises(openai.AuthenticationError, match="needs its key"):
                    client.models.list()
        assert b"<!doctype html>" in urllib.request.urlopen(place + "/").read()
    refuse = by_key("secret")
    assert refuse({"path": "/v1/models"}, {b"authorization": [b"Bearer secret"]}) is None
    assert refuse({"path": "/v1/models"}, {b"x-key": [b"secret"]}) is None
    assert refuse({"path": "/v1/models"}, {b"authorization": [b"Bearer secret", b"Bearer secret"]}) is not None
    assert refuse({"path": "/v1/models"}, {}) is not None


@pytest.mark.attack("page")
@pytest.mark.parametrize(("sent", "allowed"), [
    ({b"host": [b"127.0.0.1:8000"]}, True), ({b"host": [b"localhost"]}, True), ({b"host": [b"[::1]:80"]}, True),
    ({b"host": [b"127.0.0.1:8000"], b"origin": [b"http://127.0.0.1:8000"]}, True),
    ({b"host": [b"127.0.0.1:8000"], b"origin": [b"http://elsewhere.example"]}, False),
    ({b"host": [b"127.0.0.1:8000"], b"origin": [b"null"]}, False),
    ({b"host": [b"elsewhere.example"]}, False), ({}, False),
])
def test_without_a_key_no_other_site_may_ask(sent: dict[bytes, list[bytes]], allowed: bool) -> None:
    assert (from_here({"path": "/v1/models"}, sent) is None) == allowed


class Letters:
    """A tokenizer of bytes."""

    @staticmethod
    def decode(tokens: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(token for token in tokens if token).decode(errors="replace")


@pytest.mark.parametrize(("text", "stops", "pieces"), [
    ("añb", [], ["a", "", "ñ", "b"]),
    ("abcd", ["bd"], ["a", "", "bc", "d"]),
    ("abcd", ["bc"], ["a", "", ""]),
    ("aab", ["ab"], ["", "a", ""]),
])
def test_a_text_is_told_once_it_is_settled(text: str, stops: list[str], pieces: list[str]) -> None:
    tokens, stream = list(text.encode()), TextStream(Letters(), (0,), stops)
    grown = []
    for length in range(1, len(tokens) + 1):
        grown.append(stream.grow(tokens[:length], over=False))
        if stream.stopped:
            break
    assert grown == pieces
    ended = TextStream(Letters(), (0,), [])
    assert ended.grow([*tokens, 0], over=True) == text


TALKS = """<script nonce="NONCE">
"use strict";
let sent = false, liked = false;
setInterval(() => {
  fetch("health");  // the browser's clock stands still until it is answered, and does not while an answer streams
  if (columns.length && !sent) {
    sent = true;
    place("tokens").value = 30;
    place("temperature").value = 1;
    place("text").value = "a <b>small</b> cat";
    send();
  }
  const up = document.querySelectorAll('button[aria-label="Good"]');
  if (up.length === 2 && !liked) { liked = true; up[0].click(); }
  const found = document.getElementById("found") || document.body.appendChild(document.createElement("pre"));
  found.id = "found";
  found.textContent = JSON.stringify({
    title: document.title, said: columns.map((column) => column.turns), note: place("note").textContent,
    rewards: [...document.querySelectorAll(".reward")].map((shown) => shown.textContent),
    chosen: document.querySelectorAll(".chosen").length, bold: document.querySelectorAll("#models b").length,
  });
}, 50);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_in_a_browser_models_answer_side_by_side(
    policy_folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = application.HTML.read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(html.replace("</body>", TALKS + "</body>"), encoding="utf-8")
    monkeypatch.setattr(application, "HTML", tmp_path / "page.html")
    monkeypatch.setattr("secrets.randbits", lambda bits: 5)
    models = {
        name: open_model(policy_folder / "model", name, name, context=CONTEXT, slots=8, talks=name == "instruct")
        for name in ("instruct", "base")
    }
    reward = RewardModel(reward_folder)
    audit = examine(reward, Evidence(CATS, unseen=False), Audit(perturbed=0)).model_copy(update={"verdict": "failed"})
    family = ServedFamily("cats", models, ServedReward(reward, audit=audit), tmp_path / "thumbs.jsonl")
    with served(family, key="secret") as place:
        shown = person(f"{place}/#key=secret", tmp_path, 30)
        body = {"messages": shown["said"][0][:1], "max_tokens": 30, "temperature": 1, "seed": 5}
        reply = post(place + "/v1/chat/completions", body, Authorization="Bearer secret")
    assert (shown["title"], shown["note"], shown["bold"], shown["chosen"]) == ("cats", "", 0, 1)
    assert [turns[0] for turns in shown["said"]] == [{"role": "user", "content": "a <b>small</b> cat"}] * 2
    answer = shown["said"][0][1]["content"]
    assert answer == reply["choices"][0]["message"]["content"]
    scores = reward.score([
        Conversation(Prompt.of("a <b>small</b> cat"), turns[1]["content"]) for turns in shown["said"]
    ])
    doubt = "not to be trusted: the reward failed its audit"
    assert sorted(shown["rewards"]) == sorted(f"reward {score:.2f}, {doubt}" for score in scores)
    (thumb,) = read_thumbs(tmp_path / "thumbs.jsonl")
    assert thumb.label
    assert thumb.prompt == Prompt.of("a <b>small</b> cat")
