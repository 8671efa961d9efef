"""Judges: the verdict is read from probabilities or text, in both orders; endpoints fail, wait and are remembered."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from triptych.engine.endpoint import Endpoint
from triptych.errors import RewardError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Message, Prompt, ToolCall, user
from triptych.reward.endpoint import EndpointJudge, replies_in
from triptych.reward.judge import TEMPLATES, JudgeReward, LanguageJudge, LocalJudge, keep_judge
from triptych.reward.registry import open_reward
from triptych.reward.trust import Trust

KEY = "sk-very-secret"


class Server:
    """A local endpoint that replies what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Callable[[dict[str, Any]], tuple[int, dict[str, Any], dict[str, str]]] = lambda body: (200, {}, {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.headers.append(dict(self.headers))
                status, content, headers = outer.reply(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def text(content: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}]}


def likely(**probabilities: float) -> dict[str, Any]:
    """A completion whose first token has these probabilities."""
    tops: list[dict[str, Any]] = [{"token": f" {name.strip('_')}", "logprob": math.log(p)}
                                  for name, p in probabilities.items()]
    best = max(tops, key=lambda top: top["logprob"])
    return {"choices": [{"message": {"content": best["token"]},
                         "logprobs": {"content": [{**best, "top_logprobs": tops}]}}]}


def said(answer: str, asked: str = "What is it?", reference: str | None = None) -> Conversation:
    return Conversation(Prompt(user(asked), reference), answer)


def judge_at(server: Server, cache: Path | None = None, ask: str = "score", **more: Any) -> LanguageJudge:
    endpoint = Endpoint(url=server.url, model="m", **more)
    config = JudgeReward.model_validate({"endpoint": endpoint.model_dump(), "ask": ask})
    return LanguageJudge(config, EndpointJudge(endpoint, cache), (TEMPLATES / f"{ask}.jinja").read_text())


def test_a_reply_is_read_from_token_probabilities_and_else_from_its_text() -> None:
    # 0.6 on 4 and 0.2 on 2 of what are digits: 3/4 and 1/4 of the rest.
    found = replies_in(likely(_4=0.6, _2=0.2, the=0.2), ["1", "2", "3", "4", "5"])
    assert found == pytest.approx({"1": 0, "2": 0.25, "3": 0, "4": 0.75, "5": 0})
    assert replies_in(text("Score: 4 of 5"), ["4", "5"]) == {"4": 1.0, "5": 0.0}
    assert replies_in(text("14"), ["4"]) is None
    assert replies_in(text("On a scale of 1 to 5, I give it a 4"), ["1", "4", "5"]) == {"1": 0.0, "4": 1.0, "5": 0.0}
    for reply in ("B, clearly", "B is better than A", "I prefer B to A", "**B**\n\nA is long.", "Answer B", "B"):
        assert replies_in(text(reply), ["A", "B"]) == {"A": 0.0, "B": 1.0}
    assert replies_in(text("4/5"), ["4", "5"]) == {"4": 1.0, "5": 0.0}
    for reply in ("A close call, but B is better", "Both."):
        assert replies_in(text(reply), ["A", "B"]) is None
    strange: list[dict[str, Any]] = [
        {}, {"choices": []}, text(""), {"choices": [{"message": None}]}, {"choices": "no"}
    ]
    for broken in strange:
        assert replies_in(broken, ["A", "B"]) is None


def test_a_judge_sees_which_tools_were_called(server: Server) -> None:
    server.reply = lambda body: (200, likely(_4=1.0), {})
    call = Message("assistant", "", (ToolCall("weather", '{"city": "Rome"}'),))
    turns = (*user("How warm is it?"), call, Message("tool", "21 C"))
    judge_at(server).score([Conversation(Prompt(turns), "It is warm.")])
    asked = server.asked[0]["messages"][0]["content"]
    assert re.search(r'assistant: weather\(\{"city": "Rome"\}\)\s+tool: 21 C', asked), asked


def test_a_score_is_the_expected_digit_from_0_to_1(server: Server) -> None:
    server.reply = lambda body: (200, likely(_4=0.75, _2=0.25), {})
    # 0.75 · 4 + 0.25 · 2 = 3.5 of 1 to 5.
    assert judge_at(server).score([said("a")]) == pytest.approx([0.625])
    assert "What is it?" in server.asked[0]["messages"][0]["content"]


def test_both_orders_are_asked_and_verdicts_that_follow_the_place_are_counted(server: Server) -> None:
    server.reply = lambda body: (200, likely(A=0.75, B=0.25), {})  # always for the first
    judge = judge_at(server, ask="compare")
    assert judge.compare([said("x").prompt], ["x"], ["y"]) == pytest.approx([0.5])
    assert (judge.asked, judge.inconsistent, judge.unreadable, len(server.asked)) == (1, 1, 0, 2)

    def honest(body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        content = body["messages"][0]["content"]
        good_first = content.index("good") < content.index("bad")
        return 200, likely(A=0.875 if good_first else 0.25, B=0.125 if good_first else 0.75), {}

    server.reply = honest
    judge = judge_at(server, ask="compare")
    assert judge.score([said("good"), said("bad"), said("alone", "Else?")]) == pytest.approx([0.8125, 0.1875, 0.5])
    assert judge.inconsistent == 0
    found = judge.details([said("good"), said("bad")])
    assert found.counts == {"asked": 1, "unreadable": 0, "inconsistent": 0}
    assert found.numbers([None, None])["reward/asked"] == 1


def test_the_reference_is_one_to_be_compared_with_and_is_not_shown_as_right(server: Server) -> None:
    server.reply = lambda body: (200, text("A"), {})
    judge = judge_at(server, ask="compare")
    assert judge.score([said("mine", reference="theirs")]) == [0.5]
    assert "right_answer" not in server.asked[0]["messages"][0]["content"]
    assert judge.inconsistent == 1


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(server: Server) -> None:
    replies = iter([(429, {}, {"Retry-After": "0"}), (503, {}, {"Retry-After": "0"}), (200, text("5"), {})])
    server.reply = lambda body: next(replies)
    assert judge_at(server).score([said("a")]) == [1.0]
    assert len(server.asked) == 3
    server.reply = lambda body: (401, {"error": "who?"}, {})
    with pytest.raises(RewardError, match="401"):
        judge_at(server).score([said("b")])
    assert len(server.asked) == 4
    server.reply = lambda body: (500, {}, {"Retry-After": "0"})
    with pytest.raises(RewardError, match="3 attempts"):
        judge_at(server, retries=2).score([said("c")])


def test_a_server_without_log_probabilities_is_asked_for_text(server: Server) -> None:
    refused: tuple[int, Any, dict[str, str]] = (400, {"error": "logprobs: unknown"}, {})
    server.reply = lambda body: refused if "logprobs" in body else (200, text("3"), {})
    judge = judge_at(server, parallel=1)
    assert judge.score([said("a"), said("b")]) == [0.5, 0.5]
    assert [("logprobs" in body) for body in server.asked] == [True, False, False]


def test_replies_are_kept_on_disk_and_unreadable_ones_are_not(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: (200, text("2"), {})
    rows = [said("a"), said("b")]
    first = judge_at(server, tmp_path).score(rows)
    assert judge_at(server, tmp_path).score(rows) == first == [0.25, 0.25]
    assert len(server.asked) == 2
    server.reply = lambda body: (200, text("hm"), {})
    judge = judge_at(server, tmp_path)
    assert judge.score([said("c")]) == [0.5]
    assert judge.unreadable == 1
    judge_at(server, tmp_path).score([said("c")])
    assert len(server.asked) == 4


def test_requests_keep_the_pace(server: Server) -> None:
    server.reply = lambda body: (200, text("2"), {})
    began = time.monotonic()
    judge_at(server, requests_per_minute=1200).score([said(str(i)) for i in range(6)])  # one every 50 ms
    assert time.monotonic() - began >= 0.25


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.reply = lambda body: (200, text("2"), {})
    config = JudgeReward.model_validate({"endpoint": {"url": server.url, "model": "m", "key_env": "MY_KEY"}})
    (tmp_path / "out").mkdir()
    keep_judge(StageContext(tmp_path / "out", tmp_path, Silent(), 1, 60.0), config)
    scorer = open_reward(tmp_path / "out", cache=tmp_path / "cache", trust=Trust.in_recipe([config]))
    scorer.score([said("a")])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"reward.json", "template.jinja", "judge.jsonl"}
    assert not any(KEY in path.read_text() for path in written)
    server.reply = lambda body: (401, {"error": f"wrong key {KEY}"}, {})
    with pytest.raises(RewardError) as error:
        scorer.score([said("b")])
    assert KEY not in str(error.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(RewardError, match="MY_KEY is not set"):
        scorer.score([said("c")])


def test_a_redirect_does_not_take_the_key_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.reply = lambda body: (302, {}, {"Location": f"{server.url}/elsewhere"})
    with pytest.raises(RewardError, match="302"):
        judge_at(server, key_env="MY_KEY").score([said("a")])
    assert len(server.asked) == 1


def test_a_local_model_gives_the_softmax_over_the_choices_next_tokens(policy_folder: Path) -> None:
    folder = policy_folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    questions = ["a cat", "a small dog sat"]
    found = LocalJudge(folder).choose(questions, ["1", "2", "3"])
    for question, replies in zip(questions, found, strict=True):
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        logits = model(torch.tensor([tokens])).logits[0, -1]
        firsts = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in ("1", "2", "3")]
        assert replies is not None
        assert list(replies.values()) == pytest.approx(torch.softmax(logits[firsts], -1).tolist(), abs=0.01)


def test_the_policy_judges_itself_where_it_is_given(policy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    keep_judge(StageContext(tmp_path / "out", tmp_path, Silent(), 1, 60.0), JudgeReward(highest=3))
    with pytest.raises(RewardError, match="policy"):
        open_reward(tmp_path / "out")
    scorer = open_reward(tmp_path / "out", models={"policy": policy_folder / "model"})
    assert all(0 <= score <= 1 for score in scorer.score([said("a cat"), said("a dog")]))
