"""Log-probabilities without the whole `[tokens, vocabulary]`: those of a full log-softmax, and its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from triptych.engine import logprobs
from triptych.engine.logprobs import token_logprobs
from triptych.engine.packing import rounded

POSITIONS, WIDTH, VOCABULARY = 23, 8, 50


def problem(bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(3)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    return torch.randn(POSITIONS, WIDTH, requires_grad=True), head, torch.randint(VOCABULARY, (POSITIONS,))


def in_full(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    everything = torch.log_softmax(logits / temperature, dim=-1)
    return everything.gather(1, targets[:, None])[:, 0], -(everything.exp() * everything).sum(-1)


@pytest.mark.parametrize(("block", "cached"), [(1 << 24, 1 << 21), (9 * VOCABULARY, 4 * VOCABULARY), (1, 1)])
@pytest.mark.parametrize(
    ("temperature", "softcap", "bias"), list(itertools.product([1.0, 0.6], [None, 1.5], [False, True]))
)
def test_they_equal_a_full_log_softmax(
    monkeypatch: pytest.MonkeyPatch, block: int, cached: int, temperature: float, softcap: float | None, bias: bool
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)
    monkeypatch.setattr(logprobs, "CACHED", cached)
    hidden, head, targets = problem(bias)
    found, entropies = token_logprobs(
        hidden, head, targets, temperature=temperature, softcap=softcap, with_entropy=True
    )
    expected, expected_entropies = in_full(hidden, head, targets, temperature, softcap)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(entropies, expected_entropies.detach(), rtol=0, atol=2e-6)

    weight = torch.linspace(-1, 1, POSITIONS)
    learnt = [hidden, *head.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), learnt),
        torch.autograd.grad((expected * weight).sum(), learnt),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_blocks_equal_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = problem()
    whole, _ = token_logprobs(hidden, head, targets)
    monkeypatch.setattr(logprobs, "BLOCK", 7 * VOCABULARY)
    pieces, nothing = token_logprobs(hidden, head, targets)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    assert nothing is None


def test_known_values() -> None:
    head = nn.Linear(1, 4, bias=False)
    nn.init.zeros_(head.weight)
    found, entropies = token_logprobs(torch.ones(2, 1), head, torch.tensor([0, 3]), with_entropy=True)
    quarter = torch.log(torch.tensor(4.0))
    torch.testing.assert_close(found, -quarter.expand(2))
    torch.testing.assert_close(entropies, quarter.expand(2))


def test_no_tensor_of_all_logits_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 4 * VOCABULARY)
    hidden, head, targets = problem()
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal largest
        if tensor.data_ptr() != head.weight.data_ptr():
            largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found, _ = token_logprobs(hidden, head, targets)
    found.sum().backward()
    assert largest == rounded(POSITIONS) * WIDTH
