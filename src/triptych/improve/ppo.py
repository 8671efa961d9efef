"""Proximal policy optimisation: each token's advantage over what a value head expected of the answer.

Schulman et al. (2017), *Proximal Policy Optimization Algorithms*, with generalised advantages (Schulman et al. 2016)
as in Ouyang et al. (2022): the reward of an answer comes at its last token, and every token pays for its distance from
the reference. The value head is a linear layer on the policy's last hidden states, zero at first; it is trained with
the policy and not kept. The clips act where a sampling is used for several updates (`updates_per_rollout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from triptych.engine.curve import Row
from triptych.engine.forward import Model, hidden_states, linear_outputs, predicted_logprobs
from triptych.engine.rollout import Policy, infer, pack_rollouts
from triptych.engine.training import Loss, Step
from triptych.improve.advantages import generalised, whitened
from triptych.improve.loop import Answers, Loop
from triptych.improve.losses import clipped_value
from triptych.improve.on_policy import OnPolicy, OnPolicyMethod, Tokens, dealt, measured, prepared, surrogate, tokens_of
from triptych.storage import Folder

VALUE_HEAD = "value_head"
VALUE_RATE = 1e-3


class Ppo(OnPolicy):
    """Improvement by PPO.

    Attributes:
        gamma: γ, by which a later reward counts for less.
        gae_lambda: λ of the generalised advantages.
        value_weight: of the value head's loss beside the policy's.
        value_learning_rate: of the value head, by default 1e-3 or the policy's, whichever is higher. The head begins at
            zero: at a policy's rate it would expect nothing for a whole round, and λ < 1 would then give the first
            tokens of an answer hardly any of its reward.
        value_clip: how far a value may move in an update before its loss stops counting.
    """

    method: Literal["ppo"] = "ppo"
    kl_placement: Literal["loss", "reward"] = "reward"
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    value_weight: float = Field(default=0.1, gt=0)
    value_learning_rate: float | None = Field(default=None, gt=0)
    value_clip: float = Field(default=0.2, gt=0)

    @model_validator(mode="after")
    def _own_sampler(self) -> Self:
        if self.sampler != "slots" or self.lora is not None:
            raise ValueError("ppo trains a value head with the policy, which works without vllm and without lora")
        return self


    def rate_of(self, name: str) -> float:
        """See `Optimization`."""
        if not name.startswith(VALUE_HEAD):
            return super().rate_of(name)
        return self.value_learning_rate or max(VALUE_RATE, self.learning_rate)


@dataclass(slots=True, kw_only=True)
class ValuedTokens(Tokens):
    """Tokens with the values that were expected at each, and what came: `[N]` each."""

    values: Tensor
    returns: Tensor


class PpoMethod(OnPolicyMethod[Ppo, ValuedTokens]):
    """PPO over the loop, the policy with a value head while it is trained."""

    settings = Ppo

    def __init__(self, loop: Loop, config: Ppo, feedback: Folder | None = None) -> None:
        super().__init__(loop, config, feedback)
        attach(loop.model)

    def step(self, scored: Answers) -> Step[ValuedTokens]:
        """An update's batches."""
        loop = self.loop
        return step(loop.model, loop.reference, scored, self.config, loop.checkpoints.curve)

    def loss(self, batch: ValuedTokens) -> Loss:
        """The policy's loss and the value head's."""
        return loss(self.loop.model, batch, self.config)

    def detach(self) -> None:
        """Takes the value head away."""
        detach(self.loop.model)


def attach(model: Model) -> None:
    """Gives the model a value head that expects nothing."""
    model.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
    nn.init.zeros_(model.value_head.weight)
    nn.init.zeros_(model.value_head.bias)


def detach(model: Model) -> None:
    """Takes the value head away."""
    del model.value_head


def values(model: Model, states: Tensor) -> Tensor:
    """`[N]` what the value head expects at `[N, E]` hidden states, in float32."""
    return linear_outputs(model.value_head, states)[:, 0]


def step(
    model: Model, reference: Policy, scored: Answers, config: Ppo, curve: Sequence[Row] = ()
) -> Step[ValuedTokens]:
    """An update's batches: what was expected of each token, and what came."""
    measurements = measured(reference, scored, config, curve)
    groups, rewards = measurements.scored.groups, config.learnt(measurements.scored)
    in_reward = measurements.beta if config.kl_placement == "reward" else 0.0
    batches: list[ValuedTokens] = []
    parts = dealt(measurements, config)
    packs = [pack_rollouts([groups[i] for i in members], model.device) for members in parts]
    expected = infer(
        model, lambda packed: values(model, hidden_states(model, packed.pack)[packed.predictions.places]), packs
    )
    for members, packed, value in zip(parts, packs, expected, strict=True):
        common = tokens_of(measurements, members, packed, config, advantages=value)
        lengths = torch.tensor([len(rollout.tokens) for i in members for rollout in groups[i]], device=value.device)
        received = -in_reward * (common.sampler - common.reference)
        received[lengths.cumsum(0) - 1] += rewards[members].flatten()
        advantages = generalised(received, value, lengths, config.gamma, config.gae_lambda)
        batches.append(ValuedTokens(
            packed, advantages, common.reference, common.sampler, common.counted, common.kl,
            values=value, returns=advantages + value,
        ))
    sizes = [len(batch.counted) for batch in batches]
    together = whitened(torch.cat([b.advantages for b in batches]), torch.cat([b.counted for b in batches]))
    for batch, advantages in zip(batches, torch.split(together, sizes), strict=True):
        batch.advantages = advantages
    made = prepared(measurements, batches)
    counted = torch.cat([batch.counted for batch in batches]) > 0
    returns = torch.cat([batch.returns for batch in batches])[counted]
    made.numbers["explained_variance"] = explained_variance(
        returns, torch.cat([batch.values for batch in batches])[counted]
    )
    return made  # type: ignore[return-value]


def explained_variance(returns: Tensor, expected: Tensor) -> float:
    """1 − Var(R − V) / Var(R): 0 of a value head that says the same of every token."""
    return float(1 - (returns - expected).var(correction=0) / returns.var(correction=0).clamp(min=1e-12))


def loss(model: Model, tokens: ValuedTokens, config: Ppo) -> Loss:
    """The surrogate and the penalty, and the squared error of the value head, over the tokens that count."""
    packed = tokens.packed
    states = hidden_states(model, packed.pack)[packed.predictions.places]
    logprobs, entropy = predicted_logprobs(model, states, packed.predictions.targets, with_entropy=True)
    assert entropy is not None
    policy_loss = surrogate(logprobs, entropy, tokens, config)
    error = clipped_value(values(model, states), tokens.values, tokens.returns, config.value_clip)
    error = (error * tokens.counted).sum()
    return Loss(policy_loss.total + config.value_weight * error, policy_loss.numbers | {"value_error": error})
