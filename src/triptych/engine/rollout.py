"""A policy that writes answers: prompts in, answers with the sampler's log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from triptych.data.template import prompt_tokens
from triptych.engine import attention, distributed
from triptych.engine.continuous import ContinuousBatch
from triptych.engine.device import autocast
from triptych.engine.forward import AnswerPack, Model, answer_logprobs, pack_answers
from triptych.engine.models import end_tokens, load_policy, load_tokenizer
from triptych.engine.packing import APPLIED
from triptych.engine.sampler import Sampler, SlotSampler
from triptych.engine.sampling import End, Sampling
from triptych.errors import ModelError
from triptych.progress import Progress
from triptych.records import Prompt, Rollout

Render = Callable[[Prompt], list[int]]

Item = TypeVar("Item")
Result = TypeVar("Result")

NAMED = 10
"""So many prompts that are left out are named."""


class Policy:
    """A causal language model and its tokenizer, as an author of answers.

    Attributes:
        model: the model whose weights count; sampling runs on a copy of them in the compute type.
    """

    def __init__(self, model: Model, tokenizer: Any, sampler: Callable[[], Sampler] = SlotSampler) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._made_by = sampler

    @cached_property
    def _sampler(self) -> Sampler:
        """Made when it is first needed: a reference that never writes need not hold a second copy."""
        sampler = self._made_by()
        sampler.sync_weights(self.model)
        return sampler

    @property
    def in_sync(self) -> bool:
        """Whether the sampler holds the weights that the model has now."""
        return self._sampler.in_sync(self.model)

    def sync_weights(self) -> None:
        """Hands the model's weights to the sampler: due after an update, before the next answer is written."""
        self._sampler.sync_weights(self.model)

    def release(self) -> None:
        """Lets go of the sampler's copy of the weights until they are handed over again."""
        self._sampler.release()

    def close(self) -> None:
        """Ends what the sampler started, if there is one."""
        if "_sampler" in vars(self):
            self._sampler.close()

    @classmethod
    def open(cls, folder: Path) -> Policy:
        """The model in a Hugging Face folder; it is not trained, and of several ranks each holds a slice of it."""
        model = distributed.fully_shard_frozen(load_policy(folder, attention=attention.NAME, frozen=True))
        return cls(model, load_tokenizer(folder))

    def write(
        self, prompts: Sequence[Prompt], sampling: Sampling, *,
        n: int = 1, render: Render | None = None, end: End | None = None, progress: Progress | None = None,
    ) -> list[list[Rollout]]:
        """Samples n answers to each prompt; each rank a share of them, which all of them then have.

        Args:
            render: how a prompt becomes tokens; by default the chat template.
            end: the token that ends an answer; by default the chat template's and any other that the model names.

        Raises:
            RuntimeError: the weights were updated since they were last handed to the sampler, or the sampler was given
                another policy's.
        """
        if not self.in_sync:
            raise RuntimeError("the sampler's weights are not the model's: call sync_weights() after an update")
        render = render or self.render
        tokens = [render(prompt) for prompt in prompts]
        mine = distributed.shard(range(len(prompts)))
        total = len(mine) * n

        def watch(done: int, sampled: int) -> None:
            if progress:
                progress.step(done, total, "tokens", sampled)

        was_training = self.model.training
        self.model.eval()
        end = self.ends if end is None else end
        written = distributed.all_gather(self._sampler.generate(
            [tokens[i] for i in mine], end, sampling, n=n, numbers=mine, watch=watch
        ))
        self.model.train(was_training)
        return [
            [self._rollout(prompt, row, sample.tokens, sample.logprobs, sample.finished) for sample in samples]
            for prompt, row, samples in zip(prompts, tokens, written, strict=True)
        ]

    def batch(self, context: int, slots: int | None = None) -> ContinuousBatch:
        """Slots in which answers of several clients are decoded together, with the weights as they are now.

        Raises:
            ModelError: the model does not decode in slots, or another engine samples from it.
        """
        if not isinstance(self._sampler, SlotSampler):
            raise ModelError("answers are decoded together by our own engine; this policy samples with another")
        return ContinuousBatch(self._sampler.model, context, slots)

    def fitting(
        self, prompts: Sequence[Prompt], max_tokens: int, progress: Progress, render: Render | None = None,
        places: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """The prompts that leave room for an answer in the model's context; the others are counted and said.

        Args:
            places: where each prompt stands, by which those that are left out are named.

        Raises:
            ModelError: none does.
        """
        context = self.context
        if context is None:
            return list(prompts)
        render = render or self.render
        fits = [len(render(prompt)) + max_tokens <= context for prompt in prompts]
        kept = [prompt for prompt, whole in zip(prompts, fits, strict=True) if whole]
        if len(kept) < len(prompts):
            over = [place for place, whole in zip(places or (), fits, strict=bool(places)) if not whole]
            named = f" ({', '.join(over[:NAMED])}{', ...' if over[NAMED:] else ''})" if over else ""
            progress.say(
                f"{len(prompts) - len(kept)} of {len(prompts)} prompts left out: with {max_tokens} tokens for an "
                f"answer they exceed the model's context of {context}{named}"
            )
        if not kept:
            raise ModelError(f"no prompt fits the model's context of {context} tokens; lower max_tokens ({max_tokens})")
        return kept

    def render(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens by the chat template."""
        return prompt_tokens(self.tokenizer, prompt)

    @property
    def context(self) -> int | None:
        """How many tokens the model knows positions for; None where it does not say."""
        context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return context

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer: the chat template's, and the others where `generation_config` has a list."""
        return end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)

    def _rollout(
        self, prompt: Prompt, row: list[int], tokens: list[int], logprobs: list[float], finished: bool
    ) -> Rollout:
        text = self.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
        return Rollout(prompt, tuple(row), tuple(tokens), tuple(logprobs), text, finished)

    def logprobs(self, groups: Sequence[Sequence[Rollout]], budget: int = APPLIED) -> list[Tensor]:
        """For each answer in order, the log-probabilities of its tokens, without gradient."""
        sizes = [len(g[0].prompt_tokens) + sum(len(r.tokens) for r in g) for g in groups]
        batches = distributed.micro_batches(sizes, budget)

        def values(batch: Sequence[int]) -> list[Tensor]:
            packed = pack_rollouts([groups[i] for i in batch], self.model.device)
            return list(torch.split(answer_logprobs(self.model, packed)[0], packed.lengths.tolist()))

        return [answer for batch in infer(self.model, values, batches) for answer in batch]


def infer(model: Model, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function of the model gives for each item, without gradient; each rank computes a share of them."""
    computed = []
    for item, _ in distributed.shard_evenly(items):
        with torch.no_grad(), autocast():
            computed.append(distributed.forward(model, function, item))
    return distributed.all_gather(computed, model.device)[: len(items)]


def pack_rollouts(groups: Sequence[Sequence[Rollout]], device: torch.device | str) -> AnswerPack:
    """Packs groups of answers, each group's prompt once."""
    return pack_answers([(group[0].prompt_tokens, [rollout.tokens for rollout in group]) for group in groups], device)


def sampler_mismatch(policy: Policy, groups: Sequence[Sequence[Rollout]]) -> float:
    """The mean over the tokens of |log p in sampling − log p by our forward pass|, in nats, at temperature 1."""
    sampled = [value for group in groups for rollout in group for value in rollout.logprobs]
    ours = torch.cat(policy.logprobs(groups))
    return float((ours - torch.tensor(sampled, device=ours.device)).abs().mean())


def divergence(policy: Policy, reference: Policy, groups: Sequence[Sequence[Rollout]]) -> float:
    """KL(policy ‖ reference) in nats per answer, estimated on the policy's own answers.

    The mean over answers of Σ_t log p(token) − log p_ref(token), which is unbiased for answers sampled from
    the policy at temperature 1.
    """
    pairs = zip(policy.logprobs(groups), reference.logprobs(groups), strict=True)
    differences = [float((mine - theirs).sum()) for mine, theirs in pairs]
    return sum(differences) / len(differences)
