"""Tiny random models of several families, and a folder of one with its tokenizer."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from triptych.base.tokenizer import train_tokenizer
from triptych.engine import attention, device
from triptych.engine.models import save
from triptych.records import Document

LONGEST = (
    "test_cycle", "test_check", "test_distributed", "test_reward_cycle", "test_golden", "test_release", "test_improve",
    "test_taken", "test_inbox", "test_doctor", "test_fitting", "test_panel", "test_prompting", "test_comparison",
    "test_crossfitting", "test_adoption", "test_tasks", "test_trial", "test_generation", "test_splits", "test_code",
)
"""Files of many seconds: a long one at the end would leave the other workers without work."""
TINY = Path(__file__).parent / "tiny.yaml"
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
VOCABULARY = 61
WINDOW = 5
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**SHAPE, **more),
    "qwen3": lambda **more: Qwen3Config(**SHAPE, **more),
    "mistral": lambda **more: MistralConfig(**SHAPE, sliding_window=WINDOW, **more),
    "gemma2": lambda **more: Gemma2Config(
        **SHAPE, **MIXED, attn_logit_softcapping=3.0, final_logit_softcapping=4.0, query_pre_attn_scalar=8, **more
    ),
    "gemma3": lambda **more: Gemma3TextConfig(
        **SHAPE, **MIXED, final_logit_softcapping=4.0, query_pre_attn_scalar=8, **more
    ),
}
"""Every family has grouped queries; the sliding windows are shorter than the tests' sequences."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the tests marked `gpu` compute."""
    parser.addoption("--accelerator", default="cuda", help="of the tests marked gpu; cpu tries the tests themselves")


def pytest_configure() -> None:
    """A core for each of xdist's workers: threads of several processes on the same cores wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and CORES:
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {sorted(CORES)[int(worker.removeprefix("gw")) % len(CORES)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, each with its tests together and in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def accelerator(pytestconfig: pytest.Config) -> torch.device:
    """The device of the tests marked `gpu`."""
    chosen = torch.device(pytestconfig.getoption("--accelerator"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("the tests marked gpu need a CUDA device, and torch finds none here")
    return chosen


def by_plan(names: Iterable[str]) -> list[str]:
    """The stages of a plan, in which every candidate is promoted: without what says why one was not."""
    return [name for name in names if not name.endswith("/diagnosis")]


@contextmanager
def every_core() -> Iterator[None]:
    """Programs that are started meanwhile have all cores."""
    mine = os.sched_getaffinity(0) if CORES else set()
    if CORES:
        os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        if CORES:
            os.sched_setaffinity(0, mine)


def tiny(family: str, *, tied: bool = True, reward: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """A random model with transformers' own attention, the same one every time."""
    # Only `eager` knows soft caps, but it takes the softmax in float32 whatever the model is.
    plain = "eager" if family == "gemma2" else "sdpa"
    torch.manual_seed(7)
    config = FAMILIES[family](tie_word_embeddings=tied, **({"num_labels": 1} if reward else {}))
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation=plain, dtype=dtype).eval()
    with torch.no_grad():  # norms start at one (Gemma's at zero) and biases at zero, which would hide mistakes
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def with_our_attention(model: Any) -> Any:
    """A copy with a config of its own: a changed attention would otherwise show in both models."""
    mine = copy.deepcopy(model)
    mine.set_attn_implementation(attention.NAME)
    return mine


def some_tokens(count: int, seed: int) -> list[int]:
    """Random tokens, none of them special."""
    drawn: list[int] = torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


def logprobs_alone(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """`[A]` log-probabilities of an answer's tokens by plain transformers, this one sequence alone."""
    tokens = torch.tensor([prompt + answer])
    logits = model(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double(), dim=-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's folder with a random policy and its tokenizer in `model`."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = train_tokenizer([Document("a small cat sat on a red mat and saw a dog")] * 3, 300, 256)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))
    save(model, tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the tiny recipe, made once for all workers in a process of its own."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tiny-run"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not (folder / "done").exists():
            command = [sys.executable, "-m", "triptych", "run", str(TINY), "--runs", str(folder)]
            subprocess.run(command, check=True)
            (folder / "done").touch()
    return folder / "tiny"


def with_stages(run: Path, done: Path, *names: str) -> Path:
    """A folder for a run, in which these stages of another one are done: of the same recipe they are taken over."""
    for name in names:
        (folder,) = (done / "artifacts").glob(f"{name.replace('/', '-')}-*")
        shutil.copytree(folder, run / "artifacts" / folder.name)
    return run


@pytest.fixture(scope="module")
def float32() -> Iterator[None]:
    """Products in float32 on every processor, so that only the order of sums differs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cpu_flags", str)
        device.compute_dtype.cache_clear()
        yield
    device.compute_dtype.cache_clear()


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is flushed and renamed, in order, by name."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        seen.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(one: Path, other: Path) -> None:
        seen.append(f"rename {Path(one).name} {Path(other).name}")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return seen
