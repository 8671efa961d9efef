"""Weights are handed to the sampler by one call after an update; a sampler whose weights are stale does not write."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Muon, Optimizer

from triptych.engine import attention, nf4
from triptych.engine.adapters import Lora, adapt
from triptych.engine.checkpoint import Checkpoint
from triptych.engine.forward import Model
from triptych.engine.models import load_policy, load_tokenizer
from triptych.engine.rollout import Policy
from triptych.engine.sampler import Sampler, SlotSampler
from triptych.engine.sampling import Sampling
from triptych.engine.training import Loss, Optimization, Step, train
from triptych.progress import Silent
from triptych.records import Prompt, user

PROMPTS = [Prompt(user(text)) for text in ("a small cat", "a red dog")]
SAMPLING = Sampling(6, seed=3)
RATE = 0.05


def written(policy: Policy) -> list[list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    return [[(each.tokens, each.logprobs) for each in group] for group in policy.write(PROMPTS, SAMPLING, n=2)]


def in_training(folder: Path) -> Policy:
    return Policy(load_policy(folder, attention=attention.NAME), load_tokenizer(folder))


def trained(model: Model) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def stepped(make: Callable[[Any], Optimizer]) -> Callable[[Model], None]:
    """One step of an optimizer over the matrices of the layers."""

    def update(model: Model) -> None:
        weights = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        make(weights).step()

    return update


def in_place(model: Model) -> None:
    with torch.no_grad():
        trained(model)[-2].mul_(-1.0)


def loaded(model: Model) -> None:
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()})


def replaced(model: Model) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach() * -1.0)


def looped(**settings: Any) -> Callable[[Model], None]:
    """A step of the train loop as the stages run it."""

    def update(model: Model) -> None:
        def loss(batch: int) -> Loss:
            return Loss(sum((weight.sum() for weight in trained(model)), torch.zeros(())))

        config = Optimization(learning_rate=RATE, warmup=0, **settings)
        train(model, 1, lambda number: Step([0], 1.0), loss, config, checkpoint=None, progress=Silent())

    return update


UPDATES = {
    "AdamW, fused": stepped(lambda weights: AdamW(weights, lr=RATE, fused=True)),
    "AdamW": stepped(lambda weights: AdamW(weights, lr=RATE, fused=False)),
    "Muon": stepped(lambda weights: Muon(weights, lr=RATE)),
    "SGD": stepped(lambda weights: SGD(weights, lr=RATE)),
    "SGD, fused": stepped(lambda weights: SGD(weights, lr=RATE, fused=True)),
    "the train loop": looped(),
    "the train loop with Muon": looped(muon_learning_rate=RATE),
    **({"the train loop in 8 bits": looped(optimizer="adamw_8bit")} if nf4.available() else {}),
    "in place": in_place,
    "a state that is loaded": loaded,
    "another tensor": replaced,
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_a_sampler_that_missed_an_update_does_not_write(update: Callable[[Model], None], policy_folder: Path) -> None:
    policy = in_training(policy_folder / "model")
    before = written(policy)
    assert written(policy) == before
    update(policy.model)
    with pytest.raises(RuntimeError, match="sync_weights"):
        policy.write(PROMPTS, SAMPLING)
    policy.sync_weights()
    after = written(policy)
    assert after != before
    assert after == written(Policy(policy.model, policy.tokenizer))


def test_an_update_of_adapters_is_one(policy_folder: Path) -> None:
    policy = in_training(policy_folder / "model")
    adapt(policy.model, Lora(rank=2), seed=0)
    before = written(policy)
    looped()(policy.model)
    with pytest.raises(RuntimeError, match="sync_weights"):
        policy.write(PROMPTS, SAMPLING)
    policy.sync_weights()
    after = written(policy)
    assert after != before
    assert after == written(Policy(policy.model, policy.tokenizer))


def test_a_training_that_is_resumed_is_an_update(policy_folder: Path, tmp_path: Path) -> None:
    policy, other = (in_training(policy_folder / "model") for _ in range(2))
    checkpoint = Checkpoint(tmp_path / "state", seconds=0)
    looped()(other.model)
    checkpoint.save(other.model, [], {})
    written(policy)
    checkpoint.restore(policy.model, [])
    assert not policy.in_sync
    policy.sync_weights()
    assert written(policy) == written(other)


class Counting(SlotSampler):
    """Counts how often it was given weights."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def load_weights(self, model: Model) -> None:
        self.loads += 1
        super().load_weights(model)


def test_weights_are_copied_at_the_first_answer_and_not_again(policy_folder: Path) -> None:
    samplers: list[Counting] = []

    def make() -> Sampler:
        samplers.append(Counting())
        return samplers[-1]

    opened = in_training(policy_folder / "model")
    policy = Policy(opened.model, opened.tokenizer, make)
    assert not samplers  # a reference that never writes has no copy
    for _ in range(3):
        written(policy)
        policy.logprobs(policy.write(PROMPTS, SAMPLING))
    assert [sampler.loads for sampler in samplers] == [1]


def test_a_sampler_that_two_policies_share_writes_for_the_one_whose_weights_it_has(policy_folder: Path) -> None:
    opened = [in_training(policy_folder / "model") for _ in range(2)]
    in_place(opened[0].model)
    shared = cache(SlotSampler)
    policy, reference = (Policy(each.model, each.tokenizer, shared) for each in opened)
    first = written(policy)
    second = written(reference)
    assert first != second
    with pytest.raises(RuntimeError, match="sync_weights"):
        written(policy)
    policy.sync_weights()
    assert written(policy) == first
    with pytest.raises(RuntimeError, match="sync_weights"):
        written(reference)
