"""A pack is nothing but its sequences: the same numbers and gradients as each sequence computed alone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, logprobs_alone, some_tokens, tiny, with_our_attention
from triptych.engine import packing
from triptych.engine.forward import answer_logprobs, head_outputs, hidden_states, pack_answers
from triptych.engine.packing import Pack, Segment, Sequences, fill
from triptych.engine.scoring import pack_scored

GROUPS = [
    (some_tokens(9, 0), [some_tokens(4, 1), some_tokens(1, 2), some_tokens(11, 3)]),
    (some_tokens(1, 4), [some_tokens(13, 5), some_tokens(2, 6)]),
    (some_tokens(6, 7), [some_tokens(8, 8)]),
    (some_tokens(150, 9), [some_tokens(3, 10), some_tokens(60, 11)]),
]
"""Prompts with several answers and with one, long and short, most longer than the sliding windows."""

OPENING = some_tokens(10, 99)
ALIKE = [(OPENING + prompt, answers) for prompt, answers in GROUPS] + [
    (OPENING, [some_tokens(5, 20)]), (OPENING, [some_tokens(4, 21), some_tokens(7, 22)]),
]
"""The same behind what all prompts begin with, and prompts that are nothing but that."""


def states(model: object, pack: Pack) -> Tensor:
    return hidden_states(model, pack)


def assert_equal_gradients(mine: torch.nn.Module, theirs: torch.nn.Module, tolerance: float) -> None:
    expected = dict(theirs.named_parameters())
    for name, weight in mine.named_parameters():
        assert weight.grad is not None, name
        wanted = expected[name].grad
        assert wanted is not None, name
        scale = float(wanted.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("groups", [GROUPS, ALIKE], ids=["different", "opened alike"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_answers_equal_each_answer_alone(
    family: str, tied: bool, groups: list[tuple[list[int], list[list[int]]]]
) -> None:
    plain = tiny(family, tied=tied)
    ours = with_our_attention(plain)
    packed = pack_answers(groups, "cpu")
    assert len(packed.pack.blocks) > 1

    found, _ = answer_logprobs(ours, packed)
    expected = torch.cat([logprobs_alone(plain, prompt, answer) for prompt, answers in groups for answer in answers])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)  # the logits are float32

    weight = torch.randn(len(expected), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_equal_gradients(ours, plain, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_agree_to_the_last_digits_of_float64(family: str) -> None:
    plain = tiny(family)
    ours = with_our_attention(plain)
    a, b, c, d = (some_tokens(count, count) for count in (7, 12, 3, 20))
    # A tree: b and c continue a, d continues b.
    pack = Pack([Segment(a), Segment(b, 0), Segment(c, 0), Segment(d, 1)], "cpu")
    found = states(ours, pack)

    def alone(*parts: list[int]) -> Tensor:
        tokens = torch.tensor([[token for part in parts for token in part]])
        states: Tensor = plain.base_model(tokens, use_cache=False).last_hidden_state[0]
        return states

    expected = torch.cat([alone(a), alone(a, b)[len(a) :], alone(a, c)[len(a) :], alone(a, b, d)[len(a + b) :]])
    # Soft caps are compared with an attention that takes its softmax in float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 if family == "gemma2" else 1e-11)

    direction = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    # transformers' norms go through float32 on their way back.
    assert_equal_gradients(ours.base_model, plain.base_model, 1e-5 if family == "gemma2" else 1e-6)


def test_float32_is_as_close_as_float32_can_be() -> None:
    plain = tiny("llama", dtype=torch.float32)
    found, _ = answer_logprobs(with_our_attention(plain), pack_answers(GROUPS, "cpu"))
    expected = torch.cat([logprobs_alone(plain, prompt, answer) for prompt, answers in GROUPS for answer in answers])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_fused_kernel_for_long_keys_gives_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = with_our_attention(tiny(family))
    pack = pack_answers(GROUPS, "cpu").pack
    plain_products = states(ours, pack)
    monkeypatch.setattr(packing, "SHORT", 0)
    torch.testing.assert_close(states(ours, pack), plain_products, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_equal_transformers_on_a_padded_batch(family: str) -> None:
    # In float64, eager attention gives padding no numbers at all.
    plain = tiny(family, reward=True, dtype=torch.float32 if family == "gemma2" else torch.float64)
    ours = with_our_attention(plain)
    pack, scored = pack_scored(GROUPS, "cpu")
    rows = [prompt + answer for prompt, answers in GROUPS for answer in answers]
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    found = head_outputs(ours, pack)[scored, 0]
    expected = plain(tokens, attention_mask=(tokens != 0).long(), use_cache=False).logits[:, 0]
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-5)

    sign = torch.tensor([1.0, -1.0] * len(rows))[: len(rows)]
    (found * sign).sum().backward()
    (expected * sign).sum().backward()
    assert_equal_gradients(ours, plain, 1e-4 if family == "gemma2" else 1e-5)


def test_what_all_prompts_begin_with_is_computed_once() -> None:
    pack = pack_answers(ALIKE, "cpu").pack
    counted = len(OPENING) + sum(
        len(prompt) - len(OPENING) + sum(map(len, answers)) for prompt, answers in ALIKE
    )
    assert int(pack.ends[-1]) + 1 == counted
    assert pack.tokens[: len(OPENING)].tolist() == OPENING
    one_of_its_own = pack_answers([*ALIKE, (some_tokens(3, 5), [some_tokens(2, 6)])], "cpu").pack
    assert int(one_of_its_own.ends[-1]) + 1 == counted + 5 + len(OPENING) * (len(ALIKE) - 1)


def test_the_order_of_the_groups_does_not_matter() -> None:
    ours = with_our_attention(tiny("mistral"))
    found, _ = answer_logprobs(ours, pack_answers(GROUPS, "cpu"))
    backwards = pack_answers(GROUPS[::-1], "cpu")
    other, _ = answer_logprobs(ours, backwards)
    counts = [sum(len(answer) for answer in answers) for _, answers in GROUPS]
    reordered = torch.cat(torch.split(other, counts[::-1])[::-1])
    torch.testing.assert_close(found, reordered, rtol=0, atol=1e-6)


def test_sharing_a_prompt_equals_repeating_it() -> None:
    ours = with_our_attention(tiny("qwen3"))
    shared, _ = answer_logprobs(ours, pack_answers(GROUPS, "cpu"))
    repeated, _ = answer_logprobs(
        ours, pack_answers([(prompt, [answer]) for prompt, answers in GROUPS for answer in answers], "cpu")
    )
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-6)


def test_without_a_prompt_the_first_token_is_not_predicted() -> None:
    packed = pack_answers([([], [[5, 6, 7]]), ([], [[8, 9]])], "cpu")
    assert packed.predictions.targets.tolist() == [6, 7, 9]
    assert packed.predictions.places.tolist() == [0, 1, 3]
    assert packed.predictions.rows.tolist() == [0, 0, 1]


def test_predictions_name_place_target_and_row() -> None:
    packed = pack_answers([([5, 6], [[7, 8], [9]]), ([4], [[3]])], "cpu")
    # The row: 5 6 | 7 8 | 9 | 4 3
    assert packed.pack.tokens.tolist() == [5, 6, 7, 8, 9, 4, 3]
    assert packed.pack.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert packed.predictions.targets.tolist() == [7, 8, 9, 3]
    assert packed.predictions.places.tolist() == [1, 2, 1, 5]
    assert packed.predictions.rows.tolist() == [0, 0, 1, 2]
    assert packed.answers == 3


def test_every_query_is_computed_once_and_blocks_waste_little() -> None:
    draw = random.Random(0)
    pack = Pack([Segment(some_tokens(draw.choice([3, 30, 300]), i)) for i in range(40)], "cpu")
    places = torch.cat([
        block.queries.flatten() if block.kept is None else block.queries.flatten()[block.kept]
        for block in pack.blocks
    ])
    assert sorted(places.tolist()) == list(range(int(pack.ends[-1]) + 1))
    needed = sum(int(length) ** 2 for length in pack.ends - pack.starts + 1)
    spent = sum(block.queries.numel() * block.keys.shape[1] for block in pack.blocks)
    # Rounding each of the three sides of a block up by at most a sixteenth comes on top.
    assert spent <= (packing.WASTE * needed + 4096 * len(pack.blocks)) * (17 / 16) ** 3


def test_few_shapes_occur_and_padding_is_small() -> None:
    sizes = [packing.rounded(count) for count in range(1, 5000)]
    assert all(count <= size <= count * 17 / 16 + 1 for count, size in enumerate(sizes, start=1))
    assert len(set(sizes[2047:4096])) <= 17


def test_fill_keeps_the_order_and_the_budget() -> None:
    assert fill([3, 3, 3, 9, 1], 6) == [[0, 1], [2], [3], [4]]
    assert fill([], 10) == []
    draw = random.Random(1)
    for budget in (1, 17, 100):
        sizes = [draw.randint(1, 40) for _ in range(200)]
        batches = fill(sizes, budget)
        assert [i for batch in batches for i in batch] == list(range(len(sizes)))
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            used = sum(sizes[i] for i in batch)
            assert used <= budget or len(batch) == 1
            assert following is None or used + sizes[following[0]] > budget  # no batch is cut too early


def attention_of_each(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None
) -> Tensor:
    """What the fused kernel of a CUDA device computes, sequence by sequence."""
    outputs = []
    ends = zip(pairwise(sequences.query_ends.tolist()), pairwise(sequences.key_ends.tolist()), strict=True)
    for (first, last), (start, end) in ends:
        assert last - first <= sequences.longest_query
        assert end - start <= sequences.longest_key
        q, k, v = query[first:last], *(
            part[start:end].repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value)
        )
        away = torch.arange(last - first)[:, None] + (end - start) - (last - first) - torch.arange(end - start)[None]
        seen = (away >= 0) & (away < (window or 10**9))
        scores = (torch.einsum("qhd,khd->hqk", q, k) * scaling).masked_fill(~seen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("alone", [True, False])
def test_attention_in_sequences_equals_attention_in_blocks(window: int | None, alone: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = [(9, None), (4, 0), (11, 0), (31, None), (5, 3), (3, 1)]
    pack = Pack([
        Segment(some_tokens(length, place), None if alone else parent) for place, (length, parent) in enumerate(lengths)
    ], "cpu")
    total = len(pack.tokens)
    query, key, value = (torch.randn(1, heads, total, 16, generator=draw) for heads in (4, 2, 2))
    blocks = pack.attend(0, query, key, value, 0.25, window, None)
    assert (pack.sequences.keys is None) == alone
    found = pack.attend_in_sequences(query, key, value, 0.25, window, attention_of_each)
    assert found.shape == blocks.shape
    real = sum(length for length, _ in lengths)
    assert total > real  # the padding is no one's business
    torch.testing.assert_close(found[:, :real], blocks[:, :real], rtol=0, atol=2e-6)
