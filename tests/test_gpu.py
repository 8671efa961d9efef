"""What a CUDA device computes beside float32 on the processor; every test marked `gpu` stands here.

`python -m benchmarks.gpu_check` runs them. With `--accelerator cpu` the tests themselves are tried where there is none.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from conftest import FAMILIES, VOCABULARY, some_tokens, tiny, with_our_attention
from test_continuous import decoded, some_requests
from triptych.engine import cuda_graph, distributed
from triptych.engine.continuous import ContinuousBatch
from triptych.engine.device import autocast
from triptych.engine.forward import Model, answer_logprobs, pack_answers
from triptych.engine.generation import generate
from triptych.engine.logprobs import token_logprobs
from triptych.engine.nf4 import holds_nf4, pack, round_to_nf4
from triptych.engine.packing import Pack, Segment
from triptych.engine.request import Completion
from triptych.engine.sampler import SlotSampler
from triptych.engine.sampling import Sampling
from triptych.engine.trunk import quantize, share_frozen

pytestmark = pytest.mark.gpu

GROUPS = [
    (some_tokens(11, 1), [some_tokens(6, 2), some_tokens(1, 3), some_tokens(19, 4)]),
    (some_tokens(1, 5), [some_tokens(8, 6)]),
    (some_tokens(140, 7), [some_tokens(30, 8), some_tokens(40, 9)]),  # more than a tile
]
PROMPTS = [some_tokens(length, length) for length in (7, 1, 23, 4, 11, 2, 16)]
NEVER = VOCABULARY  # no token is this one, so that answers end at the limit
WAYS = {"greedy": Sampling(40, temperature=0.0), "drawn": Sampling(40, temperature=0.9, seed=5)}


def policy(device: torch.device | str, family: str = "llama") -> Model:
    """The same float32 model on any device."""
    return with_our_attention(tiny(family, dtype=torch.float32)).to(device)


def logprobs(model: Model, groups: Sequence[tuple[list[int], list[list[int]]]] = GROUPS) -> Tensor:
    return answer_logprobs(model, pack_answers(groups, model.device))[0]


def gradients_agree(mine: Model, theirs: Model, tolerance: float) -> None:
    """Each gradient within a share of its largest number."""
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        error = distributed.full_tensor(one.grad).cpu() - other.grad
        assert float(error.abs().max()) <= tolerance * float(other.grad.abs().max()), name


def tokens(samples: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[sample.tokens for sample in group] for group in samples]


def told(samples: Sequence[Sequence[Completion]]) -> Tensor:
    """The log-probabilities that the sampler gave, in one row."""
    return torch.tensor([value for group in samples for sample in group for value in sample.logprobs])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_answers_have_the_same_logprobs_and_gradients(family: str, accelerator: torch.device) -> None:
    mine, theirs = policy(accelerator, family), policy("cpu", family)
    found, expected = logprobs(mine), logprobs(theirs)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)
    gradients_agree(mine, theirs, 5e-3)


def test_packed_answers_under_autocast_are_near(accelerator: torch.device) -> None:
    with autocast():
        found = logprobs(policy(accelerator))
    expected = logprobs(policy("cpu"))
    assert found.dtype == torch.float32
    assert float((found.cpu() - expected).detach().abs().mean()) < 0.03


def gradient(part: Tensor) -> Tensor:
    assert part.grad is not None
    return part.grad.float().cpu()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("alone", [True, False])
def test_attention_in_half_precision_is_near(window: int | None, alone: bool, accelerator: torch.device) -> None:
    lengths = [(90, None), (4, 0), (1, 0), (31, None), (5, 3), (3, 1), (200, None)]
    segments = [Segment(some_tokens(length, 1), None if alone else parent) for length, parent in lengths]
    draw = torch.Generator().manual_seed(0)
    total, real = len(Pack(segments, "cpu").tokens), sum(length for length, _ in lengths)
    assert total > real
    parts = [torch.randn(1, heads, total, 64, generator=draw).bfloat16() for heads in (4, 2, 2)]
    wanted = torch.randn(1, total, 4, 64, generator=draw)
    wanted[:, real:] = 0  # the padding is no one's business
    results = []
    for place, dtype in ((accelerator, torch.bfloat16), (torch.device("cpu"), torch.float32)):
        query, key, value = inputs = [part.detach().to(place, dtype).requires_grad_() for part in parts]
        out = Pack(segments, place).attend(0, query, key, value, 0.125, window, None)
        (out.float() * wanted.to(place)).sum().backward()
        results.append([out.detach()[:, :real].float().cpu(), *(gradient(part) for part in inputs)])
    for found, expected in zip(*results, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logprobs_entropies_and_gradients_over_several_blocks(softcap: float | None, accelerator: torch.device) -> None:
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(700, 32), nn.Linear(32, 50_000, bias=False), torch.randint(50_000, (700,))
    found = []
    for place in (accelerator, torch.device("cpu")):
        states, output = hidden.to(place).requires_grad_(), copy.deepcopy(head).to(place)
        values, entropies = token_logprobs(
            states, output, targets.to(place), temperature=0.7, softcap=softcap, with_entropy=True
        )
        values.sum().backward()
        assert entropies is not None
        assert states.grad is not None
        assert output.weight.grad is not None
        found.append([each.detach().cpu() for each in (values, entropies, states.grad, output.weight.grad)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_sampler_writes_the_same_tokens(family: str, sampling: Sampling, accelerator: torch.device) -> None:
    found, expected = (
        generate(policy(place, family), PROMPTS, NEVER, sampling, n=3, slots=8) for place in (accelerator, "cpu")
    )
    assert tokens(found) == tokens(expected)
    torch.testing.assert_close(told(found), told(expected), rtol=0, atol=1e-3)


def test_a_sampler_in_the_compute_type_follows_an_update(accelerator: torch.device) -> None:
    model = policy(accelerator)
    sampler = SlotSampler()
    sampler.sync_weights(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert not sampler.in_sync(model)
    sampler.sync_weights(model)
    samples = sampler.generate(
        PROMPTS, NEVER, WAYS["drawn"], n=2, numbers=range(len(PROMPTS)), watch=lambda done, sampled: None
    )
    groups = list(zip(PROMPTS, tokens(samples), strict=True))
    away = {}
    for name, reference in {"before": policy("cpu"), "after": model.cpu()}.items():
        packed = pack_answers(groups, "cpu")
        expected, _ = answer_logprobs(reference, packed, temperature=0.9)
        away[name] = float((told(samples) - expected.detach()).abs().mean())
    assert away["after"] < 0.1 < away["before"]


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_a_recorded_decoding_step_computes_what_an_unrecorded_one_does(
    sampling: Sampling, accelerator: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = []
    record = torch.cuda.graph

    def counted(graph: torch.cuda.CUDAGraph, **settings: Any) -> torch.cuda.graph:
        recordings.append(graph)
        return record(graph, **settings)

    monkeypatch.setattr(torch.cuda, "graph", counted)
    model = policy(accelerator)
    replayed = generate(model, PROMPTS, NEVER, sampling, n=2, slots=6)
    assert bool(recordings) == (accelerator.type == "cuda")
    recordings.clear()
    monkeypatch.setattr(cuda_graph, "FEW", 10**9)
    computed = generate(model, PROMPTS, NEVER, sampling, n=2, slots=6)
    assert not recordings
    assert tokens(replayed) == tokens(computed)
    torch.testing.assert_close(told(replayed), told(computed), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_several_clients_get_the_same_tokens(family: str, accelerator: torch.device) -> None:
    found, expected = (
        decoded(ContinuousBatch(policy(place, family), 400, slots=16), some_requests(60))
        for place in (accelerator, "cpu")
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.completion.tokens == theirs.completion.tokens
        assert mine.completion.logprobs == pytest.approx(theirs.completion.logprobs, abs=1e-3)


def test_steps_are_recorded_while_another_thread_works_on_the_device(accelerator: torch.device) -> None:
    expected = decoded(ContinuousBatch(policy(accelerator), 400, slots=16), some_requests(40))
    batch = ContinuousBatch(policy(accelerator), 400, slots=16)
    over = threading.Event()
    failures: list[RuntimeError] = []
    rounds: list[float] = []

    def work() -> None:
        try:
            while not over.is_set():
                size = 64 + len(rounds) % 200
                rounds.append(float(torch.ones(size, size, device=accelerator).square().sum()))
                if len(rounds) % 20 == 0 and accelerator.type == "cuda":
                    torch.cuda.empty_cache()  # so that memory is fetched from the device again
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = decoded(batch, some_requests(40))
    finally:
        over.set()
        thread.join()
    assert not failures
    assert rounds
    assert [one.completion.tokens for one in found] == [one.completion.tokens for one in expected]


def test_a_matrix_in_four_bits_has_the_same_numbers_on_either_device(accelerator: torch.device) -> None:
    pytest.importorskip("bitsandbytes")
    matrix = torch.randn(96, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    rounded = {place: round_to_nf4(matrix.to(place)).cpu() for place in (accelerator, "cpu")}
    for one in rounded.values():
        for place in rounded:
            held = pack(one.to(place))
            assert held is not None
            assert torch.equal(held.unpacked().cpu(), one)
    away = (rounded[accelerator] != rounded["cpu"]).double().mean()  # in the middle between two shares
    assert float(away) < 0.01


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_a_model_in_four_bits_computes_as_the_same_numbers_in_bfloat16(
    sampling: Sampling, accelerator: torch.device
) -> None:
    pytest.importorskip("bitsandbytes")
    whole = policy("cpu").bfloat16()
    assert quantize(whole) > 0
    whole = whole.to(accelerator).requires_grad_(False)
    packed = share_frozen(copy.deepcopy(whole), None)
    assert holds_nf4(packed)
    with autocast():
        torch.testing.assert_close(logprobs(packed).cpu(), logprobs(whole).cpu(), rtol=0, atol=1e-5)
        found, expected = (generate(model, PROMPTS, NEVER, sampling, n=2, slots=6) for model in (packed, whole))
    assert tokens(found) == tokens(expected)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A group of one rank, over NCCL where there is CUDA."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_model_that_fsdp_shards_has_the_same_logprobs_gradients_and_weights(accelerator: torch.device) -> None:
    mine, theirs = policy(accelerator), policy("cpu")
    with distributed.fully_shard_within(mine):
        assert {type(weight).__name__ for weight in mine.parameters()} == {"DTensor"}
        found = distributed.forward(mine, lambda groups: logprobs(mine, groups), GROUPS)
        found.sum().backward()
        expected = logprobs(theirs)
        expected.sum().backward()
        torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=0, atol=1e-3)
        gradients_agree(mine, theirs, 5e-3)
        with torch.no_grad():
            for weight in mine.parameters():
                weight.add_(weight.grad, alpha=-0.1)
    for weight, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.detach().cpu(), other.detach() - 0.1 * other.grad, rtol=0, atol=1e-3)
