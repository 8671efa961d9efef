"""Weights laid out beforehand give the products that they gave before, and follow a model in training."""

from __future__ import annotations

import pytest
import torch

from conftest import FAMILIES, some_tokens, tiny, with_our_attention
from triptych.engine.adapters import plain_copy, take_over
from triptych.engine.device import compute_dtype
from triptych.engine.generation import generate
from triptych.engine.prepacked import PrepackedLinear, prepack
from triptych.engine.sampling import Sampling

pytestmark = pytest.mark.skipif(compute_dtype() != torch.bfloat16, reason="this processor has no products in bfloat16")

NEVER = -1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_laid_out_writes_what_it_wrote(family: str, tied: bool) -> None:
    plain = with_our_attention(tiny(family, tied=tied, dtype=torch.bfloat16))
    laid = prepack(plain_copy(plain, torch.bfloat16))
    assert any(isinstance(layer, PrepackedLinear) for layer in laid.modules())
    prompts = [some_tokens(length, length) for length in (7, 1, 12)]
    expected, found = (generate(model, prompts, NEVER, Sampling(6, seed=1), n=2) for model in (plain, laid))
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):  # both round to bfloat16, in another order of the sums
            assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_laid_out_model_follows_the_one_in_training(tied: bool) -> None:
    learner = with_our_attention(tiny("llama", tied=tied, dtype=torch.float32))
    sampler = prepack(plain_copy(learner, torch.bfloat16))
    with torch.no_grad():
        for weight in learner.parameters():
            weight.mul_(1.5)
    take_over(sampler, learner)
    fresh = prepack(plain_copy(learner, torch.bfloat16))
    prompts = [some_tokens(9, 3)]
    found, expected = (generate(model, prompts, NEVER, Sampling(8, seed=2), n=3) for model in (sampler, fresh))
    assert found == expected


def test_a_product_is_that_of_the_plain_layer() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 32, dtype=torch.bfloat16)
    for rows in (1, 4, 64):
        x = torch.randn(rows, 48).bfloat16()
        torch.testing.assert_close(PrepackedLinear(layer)(x), layer(x))
