"""Sampling: transformers' tokens where there is no chance, the right distribution where there is."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from conftest import FAMILIES, VOCABULARY, some_tokens, tiny, with_our_attention
from triptych.engine import cache, scheduler
from triptych.engine.cache import KeyValues, PrefillRecorder
from triptych.engine.forward import answer_logprobs, pack_answers
from triptych.engine.generation import generate
from triptych.engine.packing import Pack, Segment
from triptych.engine.request import Completion
from triptych.engine.sampling import Sampling, draw, uniforms
from triptych.engine.training import shuffled

NEVER = VOCABULARY  # no token is this one, so that answers end at the limit
PROMPTS = [some_tokens(length, length) for length in (7, 1, 23, 4, 11, 2, 16)]


@pytest.fixture(params=[0, 10**9], ids=["shared", "copied"])
def prompts_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's keys are held once for its answers, or in each answer's slot."""
    monkeypatch.setattr(cache, "SHARED_KEYS", request.param)


def tokens(samples: list[list[Completion]]) -> list[list[list[int]]]:
    return [[sample.tokens for sample in group] for group in samples]


def greedy_by_transformers(model: object, prompt: list[int], count: int) -> list[int]:
    row = torch.tensor([prompt])
    ends = model.generate(  # type: ignore[attr-defined]
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count, min_new_tokens=count,
        eos_token_id=None,
    )
    answer: list[int] = ends[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_token_for_token(family: str) -> None:
    plain = tiny(family)
    found = generate(with_our_attention(plain), PROMPTS, NEVER, Sampling(20, temperature=0.0), slots=3)
    assert tokens(found) == [[greedy_by_transformers(plain, prompt, 20)] for prompt in PROMPTS]
    assert not any(sample.finished for (sample,) in found)


@pytest.mark.usefixtures("prompts_kept")
def test_an_answer_ends_at_the_end_token_and_includes_it() -> None:
    model = with_our_attention(tiny("llama"))
    whole = tokens(generate(model, PROMPTS, NEVER, Sampling(20, seed=1), n=2, slots=4))
    end = whole[2][1][6]
    for group, cut_group in zip(whole, generate(model, PROMPTS, end, Sampling(20, seed=1), n=2, slots=4), strict=True):
        for answer, cut in zip(group, cut_group, strict=True):
            assert cut.finished == (end in answer)
            assert cut.tokens == (answer[: answer.index(end) + 1] if cut.finished else answer)
            assert len(cut.logprobs) == len(cut.tokens)


@pytest.mark.usefixtures("prompts_kept")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_equal_a_forward_pass(family: str, temperature: float) -> None:
    model = with_our_attention(tiny(family))
    groups = generate(model, PROMPTS, NEVER, Sampling(15, temperature=temperature), n=3)
    packed = pack_answers([(prompt, group) for prompt, group in zip(PROMPTS, tokens(groups), strict=True)], "cpu")
    expected, _ = answer_logprobs(model, packed, temperature=temperature)
    found = torch.tensor([value for group in groups for sample in group for value in sample.logprobs])
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=5e-6)


@pytest.mark.usefixtures("prompts_kept")
def test_a_request_gets_the_same_tokens_whatever_else_is_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_our_attention(tiny("mistral"))
    end, sampling = 5, Sampling(20, temperature=1.5, seed=3)
    expected = tokens(generate(model, PROMPTS, end, sampling, n=2))
    for slots in (1, 2, 5, 8, 100):
        assert tokens(generate(model, PROMPTS, end, sampling, n=2, slots=slots)) == expected
    assert tokens(generate(model, PROMPTS[:1], end, sampling, n=2)) == expected[:1]
    # A request's number is its place: others around it may be anything.
    others = [some_tokens(length, 90 + length) for length in (30, 2, 5, 5, 1, 9, 3)]
    for place, prompt in enumerate(PROMPTS):
        mixed = [*others[:place], prompt, *others[place + 1 :]]
        assert tokens(generate(model, mixed, end, sampling, n=2, slots=6))[place] == expected[place]
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 1)
    assert tokens(generate(model, PROMPTS, end, sampling, n=2)) == expected


def test_the_order_in_which_requests_are_taken_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_our_attention(tiny("llama"))
    end, sampling = 5, Sampling(20, temperature=1.5, seed=3)
    expected = tokens(generate(model, PROMPTS, end, sampling, n=2))
    for seed in range(4):
        # The numbers of the requests, and so their noise, stay; the queue is shuffled.
        monkeypatch.setattr(scheduler, "deque", lambda queue, seed=seed: deque(shuffled(len(queue), 0, seed)))
        for slots in (2, 6, 100):
            assert tokens(generate(model, PROMPTS, end, sampling, n=2, slots=slots)) == expected


def test_samples_of_one_prompt_differ_and_so_do_seeds() -> None:
    model = with_our_attention(tiny("llama"))
    (group,) = tokens(generate(model, PROMPTS[:1], NEVER, Sampling(12, seed=1), n=6))
    assert len({tuple(answer) for answer in group}) == 6
    (other,) = tokens(generate(model, PROMPTS[:1], NEVER, Sampling(12, seed=2), n=6))
    assert not {tuple(answer) for answer in group} & {tuple(answer) for answer in other}


def test_the_watcher_sees_every_answer_and_token() -> None:
    seen: list[tuple[int, int]] = []
    samples = generate(
        with_our_attention(tiny("llama")), PROMPTS, 5, Sampling(9, temperature=2.0), n=2, slots=4,
        watch=lambda done, sampled: seen.append((done, sampled)),
    )
    assert seen[-1] == (2 * len(PROMPTS), sum(len(sample.tokens) for group in samples for sample in group))
    assert seen == sorted(seen)


def test_no_prompts_give_no_samples() -> None:
    assert generate(with_our_attention(tiny("llama")), [], NEVER, Sampling(4)) == []


def drawn(logits: torch.Tensor, sampling: Sampling, count: int = 40_000) -> torch.Tensor:
    """How often each token is drawn, as a share."""
    noise = torch.from_numpy(uniforms(sampling.seed, list(range(count)), [0] * count))
    found, logprobs = draw(logits.expand(count, -1), noise, sampling)
    expected = torch.log_softmax(logits / sampling.temperature, dim=-1)[found]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    return torch.bincount(found, minlength=len(logits)) / count


LOGITS = torch.tensor([1.0, -1.0, 2.5, 0.0, 0.5, -3.0, 2.0, -20.0])
CHI_SQUARE_6 = 22.46
"""A chi-square with 6 degrees of freedom exceeds this once in a thousand; -20 has a bin of its own no more."""


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 11])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float, seed: int) -> None:
    shares = drawn(LOGITS, Sampling(1, temperature=temperature, seed=seed))
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    frequent = LOGITS > -20
    assert 40_000 * ((shares - expected)[frequent] ** 2 / expected[frequent]).sum() < CHI_SQUARE_6
    assert shares[-1] < 1e-3


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    expected = torch.softmax(LOGITS, dim=-1)
    likely = [2, 6, 0]  # 0.48 + 0.29 + 0.11
    assert float(expected[likely[:2]].sum()) < 0.85 < float(expected[likely].sum())
    shares = drawn(LOGITS, Sampling(1, top_p=0.85))
    assert set(shares.nonzero().flatten().tolist()) == set(likely)
    torch.testing.assert_close(shares[likely], expected[likely] / expected[likely].sum(), rtol=0, atol=0.01)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(4)) * 20
    noise = torch.tensor([0.1, 0.5, 0.999])
    cold, greedy = (draw(logits, noise, Sampling(1, temperature=value)) for value in (temperature, 0.0))
    assert cold[0].tolist() == greedy[0].tolist()
    assert torch.equal(cold[1], greedy[1])


def test_a_tiny_top_p_is_greedy() -> None:
    assert drawn(LOGITS, Sampling(1, top_p=1e-6), count=500)[2] == 1.0


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_even_the_largest_noise_draws_a_token_that_is_possible(top_p: float) -> None:
    largest = torch.full((200,), 1 - 2.0**-24, dtype=torch.float64)
    logits = 4 * torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -200.0
    found, logprobs = draw(logits, largest, Sampling(1, top_p=top_p))
    assert 4999 not in found.tolist()
    assert torch.isfinite(logprobs).all()


def test_no_noise_becomes_one_in_float32() -> None:
    noise = uniforms(0, range(1_000_000), [0] * 1_000_000)
    assert (noise == noise.astype(np.float32)).all()
    assert (noise * 2**24 == np.floor(noise * 2**24)).all()  # so the largest is 1 - 2^-24


def test_noise_is_uniform_and_belongs_to_seed_request_and_position() -> None:
    requests, positions = np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300)
    noise = uniforms(5, requests.tolist(), positions.tolist())
    assert noise.min() >= 0
    assert noise.max() < 1
    counts, _ = np.histogram(noise, bins=20, range=(0, 1))
    assert ((counts - 4500) ** 2 / 4500).sum() < 43.8  # chi-square, 19 degrees of freedom, once in a thousand
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    assert uniforms(5, [3], [4]) == noise[3 * 300 + 4]
    assert uniforms(6, [3], [4]) != uniforms(5, [3], [4]) != uniforms(5, [4], [3])


def test_each_of_several_end_tokens_ends_an_answer_as_in_transformers() -> None:
    plain = tiny("llama")
    greedy = Sampling(20, temperature=0.0)
    model = with_our_attention(plain)
    free = generate(model, PROMPTS, NEVER, greedy)
    ends = [free[0][0].tokens[4], free[1][0].tokens[7]]  # the likeliest answers meet one or the other
    found = generate(model, PROMPTS, ends, greedy)
    assert len({sample.tokens[-1] for (sample,) in found if sample.finished}) == 2
    for prompt, (sample,) in zip(PROMPTS, found, strict=True):
        row = torch.tensor([prompt])
        expected = plain.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=20, do_sample=False, eos_token_id=ends,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert sample.tokens == expected
        assert sample.finished == (expected[-1] in ends)


def test_a_store_of_keys_grows_within_the_memory_that_was_set_aside() -> None:
    store = KeyValues(3, longest=70, step=32)
    layer = torch.randn(1, 2, 40, 4)
    recorded = PrefillRecorder(Pack([Segment(range(40))], "cpu"))
    recorded.layers[0] = layer, 2 * layer
    store.write(0, 2, 0, 5, recorded)
    place = store.keys[0].data_ptr()
    for depth in (20, 33, 70):
        store.grow(depth)
        assert store.keys[0].shape == (3, 2, store.depth, 4)
        assert store.depth == -(-depth // 32) * 32
        assert store.keys[0].is_contiguous()  # of which the products take a batch as it lies
        assert store.keys[0].data_ptr() == place
        for held, content in ((store.keys[0], layer), (store.values[0], 2 * layer)):
            for row in (0, 1):
                assert torch.equal(held[row, :, :5], content[0, :, :5])
                assert not held[row, :, 32:].any()
    assert store.longest == 96
