"""Answers of several clients decoded together: each is what it is alone, whenever it comes."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, VOCABULARY, some_tokens, tiny, with_our_attention
from triptych.engine import continuous
from triptych.engine.continuous import PATIENCE, ContinuousBatch, StreamedRequest
from triptych.engine.generation import generate
from triptych.engine.packing import ROWS, additive, scaled_attention
from triptych.engine.sampling import Sampling
from triptych.errors import ModelError

NEVER = (VOCABULARY,)  # no token is this one, so that answers end at the limit
SAMPLINGS = (
    Sampling(14, temperature=0.0), Sampling(20, temperature=1.0, seed=4),
    Sampling(3, temperature=0.7, top_p=0.8, seed=9),
)


def some_requests(count: int) -> list[StreamedRequest]:
    return [
        StreamedRequest(prompt=some_tokens(number % 13 + 1, number), sampling=SAMPLINGS[number % 3], ends=NEVER)
        for number in range(count)
    ]


def long_request(number: int) -> StreamedRequest:
    return StreamedRequest(prompt=some_tokens(number % 13 + 1, number), sampling=Sampling(30), ends=NEVER)


def decoded(batch: ContinuousBatch, requests: list[StreamedRequest], seed: int = 0) -> list[StreamedRequest]:
    """The requests once they are over; they came at random times."""
    coming, draw = list(requests), random.Random(seed)
    while coming or batch.unfinished:
        for _ in range(draw.choice([0, 0, 1, 3])):
            if coming:
                batch.add(coming.pop(0))
        batch.step()
    return requests


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_that_of_the_whole_batch_s_engine_whatever_runs_beside_it(family: str) -> None:
    model = with_our_attention(tiny(family))
    together = decoded(ContinuousBatch(model, 64, slots=ROWS), some_requests(23))
    for request in together:
        ((alone,),) = generate(model, [request.prompt], NEVER, request.sampling)
        assert request.completion.tokens == alone.tokens
        assert request.completion.logprobs == pytest.approx(alone.logprobs, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_to_the_bit_alone_and_among_others(family: str, dtype: torch.dtype) -> None:
    model = with_our_attention(tiny(family).to(dtype))
    together = decoded(ContinuousBatch(model, 64, slots=2 * ROWS), some_requests(40))
    for request, again in zip(together[::3], some_requests(40)[::3], strict=True):
        decoded(ContinuousBatch(model, 64, slots=2 * ROWS), [again])
        assert again.completion == request.completion


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "outputs"), [(576, 192), (1536, 576), (64, 320)])
def test_a_row_of_a_product_is_the_same_to_the_bit_among_any_others(
    width: int, outputs: int, dtype: torch.dtype
) -> None:
    weight, rows = torch.randn(outputs, width).to(dtype), torch.randn(1000, width).to(dtype)
    every = torch.nn.functional.linear(rows, weight)
    for start, count in ((0, ROWS), (3, 2 * ROWS), (100, 5 * ROWS), (17, 96), (480, 520)):
        some = torch.nn.functional.linear(rows[start : start + count], weight)
        assert torch.equal(some, every[start : start + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_slot_is_the_same_to_the_bit_whatever_the_others_hold(dtype: torch.dtype) -> None:
    """Of the shape that SmolLM2-135M has: nine heads of 64, three to a key."""
    heads, shared, width, held = 3, 3, 64, 40
    query, keys, values = (torch.randn(40, heads, size, width).to(dtype) for size in (shared, 1408, 1408))
    keys[:, :, held:] = values[:, :, held:] = 0
    seen = [
        scaled_attention(
            query[:slots], keys[:slots, :, :depth].contiguous(), values[:slots, :, :depth].contiguous(),
            additive(torch.arange(depth) < held, dtype), width**-0.5, None, short=depth,
        )[:ROWS]
        for slots in (ROWS, 2 * ROWS, 40) for depth in (64, 96, 160, 512, 1408)
    ]
    assert all(torch.equal(other, seen[0]) for other in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prompt_beside_it_changes_no_bit_of_an_answer(dtype: torch.dtype) -> None:
    model = with_our_attention(tiny("llama").to(dtype))

    def requests() -> list[StreamedRequest]:
        long = StreamedRequest(prompt=some_tokens(1100, 1), sampling=Sampling(40), ends=NEVER)
        return [long_request(5), long_request(9), long]

    *together, _ = decoded(ContinuousBatch(model, 1200, slots=ROWS), requests())
    for request, again in zip(together, requests(), strict=False):
        decoded(ContinuousBatch(model, 1200, slots=ROWS), [again])
        assert again.completion == request.completion


def test_prompts_are_prefilled_together_once_they_are_many_or_have_waited() -> None:
    batch = ContinuousBatch(with_our_attention(tiny("llama")), 64, slots=4 * ROWS)
    first, late = [long_request(number) for number in range(17)], [long_request(number) for number in range(4)]
    for request in first:
        batch.add(request)
    assert batch.step() == first  # nothing runs, so all begin
    late[1].cancelled = True
    for request in late[:3]:
        batch.add(request)
    assert batch.step() == [late[0], late[2]]  # three wait, more than an eighth of 17; nobody waits for one of them
    batch.add(late[3])
    steps = [batch.step() for _ in range(PATIENCE + 1)]
    assert steps[:-1] == [[*first, late[0], late[2]]] * PATIENCE
    assert steps[-1] == late[3:]


def test_a_prompt_that_cannot_be_computed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    batch = ContinuousBatch(with_our_attention(tiny("llama")), 64, slots=ROWS)
    lost, served = long_request(1), long_request(2)
    batch.add(lost)
    monkeypatch.setattr(continuous, "prefill", fail)
    with pytest.raises(torch.OutOfMemoryError):
        batch.step()
    monkeypatch.undo()
    assert batch.running == [lost]  # who asked can be told
    lost.cancelled = True
    decoded(batch, [served])
    assert (lost.length, served.length) == (0, served.sampling.max_tokens)


def test_an_end_token_ends_an_answer_and_a_cancelled_one_makes_room() -> None:
    model = with_our_attention(tiny("llama"))
    batch = ContinuousBatch(model, 64, slots=1)
    requests = some_requests(ROWS + 2)
    for request in requests:
        batch.add(request)
    batch.step()
    assert (len(batch.running), len(batch.waiting)) == (ROWS, 2)
    requests[0].cancelled = requests[-1].cancelled = True
    decoded(batch, [])
    assert [len(request.completion.tokens) for request in requests] == [
        1, *(request.sampling.max_tokens for request in requests[1:-1]), 0
    ]
    whole = requests[3].completion.tokens
    (cut,) = decoded(batch, [StreamedRequest(prompt=requests[3].prompt, sampling=SAMPLINGS[0], ends=whole[4:5])])
    assert cut.completion.tokens == whole[: whole.index(whole[4]) + 1]
    assert cut.completion.finished
    assert not requests[3].completion.finished


def test_the_depth_that_a_long_answer_took_is_given_back() -> None:
    model = with_our_attention(tiny("llama"))
    batch = ContinuousBatch(model, 400, slots=ROWS)
    alone = [request.completion.tokens for request in decoded(ContinuousBatch(model, 400), some_requests(3))]
    long = StreamedRequest(prompt=some_tokens(200, 1), sampling=Sampling(30, temperature=0.0), ends=NEVER)
    short = some_requests(3)
    for request in (long, *short):
        batch.add(request)
    depths = []
    while batch.unfinished:
        batch.step()
        depths.append(batch.cache.slots.depth)
    assert max(depths) >= 230
    assert depths[-1] == 0
    assert [request.completion.tokens for request in short] == alone


class Even:
    """Only even tokens."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def restrict(self, logits: Tensor) -> None:
        logits[1::2] = -torch.inf

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("method", ["restrict", "take"])
def test_an_answer_whose_constraint_fails_ends_and_no_other(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_our_attention(tiny("llama"))

    def requests() -> list[StreamedRequest]:
        asked = some_tokens(5, 5)
        return [StreamedRequest(number=n, prompt=asked, sampling=SAMPLINGS[1], ends=NEVER) for n in range(2)]

    alone, beside = requests(), requests()
    decoded(ContinuousBatch(model, 64), alone)
    beside[0].constraint = Even()
    monkeypatch.setattr(Even, method, lambda *_: 1 / 0)
    decoded(ContinuousBatch(model, 64), beside)
    assert isinstance(beside[0].error, ZeroDivisionError)
    assert (beside[0].over, beside[1].error) == (True, None)
    assert beside[1].completion.tokens == alone[1].completion.tokens


def test_a_constraint_is_one_request_s_alone_and_log_probabilities_are_the_model_s() -> None:
    plain = tiny("llama")
    model = with_our_attention(plain)
    free, bound = (
        StreamedRequest(prompt=some_tokens(5, 5), sampling=SAMPLINGS[1], ends=NEVER, alternatives=top, constraint=rule)
        for top, rule in ((3, None), (0, Even()))
    )
    decoded(ContinuousBatch(model, 64), [free, bound])
    ((alone,),) = generate(model, [free.prompt], NEVER, free.sampling)
    assert free.completion.tokens == alone.tokens
    assert isinstance(bound.constraint, Even)
    assert bound.constraint.taken == bound.completion.tokens
    assert {token % 2 for token in bound.completion.tokens} == {0}
    with torch.no_grad():
        row = torch.tensor([[*free.prompt, *free.completion.tokens]])
        expected = plain(input_ids=row).logits[0, len(free.prompt) - 1 : -1].log_softmax(dim=-1)
    for place, (logprob, likeliest) in enumerate(free.likeliest):
        assert logprob == pytest.approx(float(expected[place, free.completion.tokens[place]]), abs=1e-5)
        values, tokens = expected[place].topk(3)
        assert [token for token, _ in likeliest] == tokens.tolist()
        assert [value for _, value in likeliest] == pytest.approx(values.tolist(), abs=1e-5)
    assert [likeliest for _, likeliest in bound.likeliest] == [[]] * 20


def test_a_model_that_does_not_pack_is_refused() -> None:
    with pytest.raises(ModelError, match="does not compute packed rows"):
        ContinuousBatch(tiny("llama"), 64)
