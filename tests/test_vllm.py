"""vLLM as a sampler: what it is asked and told, by a stand-in for its engine; its own answers need a CUDA device."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import tiny
from triptych.engine.sampling import Sampling
from triptych.engine.vllm import VllmSampler, pooled
from triptych.errors import ModelError

END = 2


@dataclass
class Engine:
    """Answers each prompt with its own tokens reversed, and keeps what it was given."""

    settings: dict[str, Any]
    asked: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    forgotten: int = 0

    def apply_model(self, function: Any) -> None:
        function(SimpleNamespace(load_weights=self.weights.update))

    def reset_prefix_cache(self) -> None:
        self.forgotten += 1

    def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> list[Any]:
        self.asked += [vars(each) for each in parameters]
        return [
            SimpleNamespace(outputs=[self._answer(prompt["prompt_token_ids"]) for _ in range(each.n)])
            for prompt, each in zip(prompts, parameters, strict=True)
        ]

    @staticmethod
    def _answer(prompt: list[int]) -> Any:
        tokens = prompt[::-1]
        return SimpleNamespace(token_ids=tokens, logprobs=[{t: SimpleNamespace(logprob=-float(t))} for t in tokens])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    made: list[Engine] = []
    module = ModuleType("vllm")

    def start(**settings: Any) -> Engine:
        made.append(Engine(settings))
        return made[-1]

    module.LLM = start  # type: ignore[attr-defined]
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return made


def test_answers_come_back_with_their_own_logprobs(engines: list[Engine], tmp_path: Path) -> None:
    sampler = VllmSampler(tmp_path)
    told: list[tuple[int, int]] = []
    groups = sampler.generate(
        [[END, 5], [7, 8, 9]], END, Sampling(16, temperature=0.5, seed=3), n=2, numbers=[4, 6],
        watch=lambda *numbers: told.append(numbers),
    )
    assert [[sample.tokens for sample in group] for group in groups] == [[[5, END]] * 2, [[9, 8, 7]] * 2]
    assert [group[0].finished for group in groups] == [True, False]
    assert groups[1][0].logprobs == [-9.0, -8.0, -7.0]
    assert told == [(4, 10)]
    (other,) = sampler.generate([[7, 8, 9]], (END, 7), Sampling(16), n=1, numbers=[0], watch=lambda *_: None)
    assert other[0].finished
    assert engines[0].asked.pop()["stop_token_ids"] == [END, 7]
    asked = engines[0].asked
    assert {(each["n"], each["max_tokens"], each["temperature"], *each["stop_token_ids"]) for each in asked} \
        == {(2, 16, 0.5, END)}
    # The noise belongs to the request: another part of the batch that is told the same number draws the same.
    assert len({each["seed"] for each in asked}) == 2
    sampler.generate([[7, 8, 9]], END, Sampling(16, seed=3), n=2, numbers=[6], watch=lambda *_: None)
    assert asked[2]["seed"] == asked[1]["seed"]
    # Log-probabilities are those of the distribution that was sampled from.
    assert engines[0].settings["logprobs_mode"] == "processed_logprobs"


def test_it_follows_the_model_in_training(engines: list[Engine], tmp_path: Path) -> None:
    learner = tiny("llama", dtype=torch.float32)
    sampler = VllmSampler(tmp_path)
    sampler.load_weights(learner)
    given = engines[0].weights
    assert given.keys() == dict(learner.named_parameters()).keys()
    assert all(torch.equal(given[name], weight) for name, weight in learner.named_parameters())
    assert engines[0].forgotten == 1


def test_rewards_are_pooled_from_the_tokens_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[dict[str, Any]] = []

    class Pooling:
        def __init__(self, **settings: Any) -> None:
            started.append(settings)

        def classify(self, prompts: Any, use_tqdm: bool) -> list[Any]:
            return [
                SimpleNamespace(outputs=SimpleNamespace(probs=[float(sum(each["prompt_token_ids"]))]))
                for each in prompts
            ]

    module = ModuleType("vllm")
    module.LLM = Pooling  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    assert pooled(tmp_path, [[1, 2], [3]]) == [[3.0], [3.0]]
    assert (started[0]["runner"], started[0]["convert"], started[0]["dtype"]) == ("pooling", "classify", "float32")


def test_it_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="pip install vllm"):
        VllmSampler(tmp_path)
