"""Whether a model computes the same packed as alone, found out before anything is computed with it.

Our attention takes the place of the model's own. An architecture whose attention does more than scaled products
with a causal mask (sinks, biases), or that carries a state from token to token, would be silently wrong. It keeps its
own attention, and its sequences are computed as a padded batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from triptych.engine import attention
from triptych.engine.forward import answer_logprobs, hidden_states, pack_answers
from triptych.engine.generation import generate
from triptych.engine.sampling import Sampling
from triptych.engine.trunk import Float32Products
from triptych.errors import ModelError

SHORT = 4
"""Tokens of a window."""

TOLERANCE = 1e-3
"""Largest difference of a log-probability, and of a hidden state as a share of its norm; in float32."""


@torch.no_grad()
def take_attention(model: Any) -> None:
    """Gives the model our attention, if it computes a packed prompt with two answers as it does each of them alone."""
    packed = pack_answers([_some_tokens(model)], model.device).pack
    own, count = model.config._attn_implementation, int(packed.ends[-1]) + 1
    with Float32Products(), _short_windows(model):
        alone = hidden_states(model, packed)[:count]
    model.set_attn_implementation(attention.NAME)
    try:
        with Float32Products(), _short_windows(model):
            difference = hidden_states(model, packed)[:count] - alone
        same = bool((difference.norm(dim=-1) < TOLERANCE * alone.norm(dim=-1)).all())
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):  # it cannot be called this way
        same = False
    if not same:
        model.set_attn_implementation(own)


@contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Windows of attention that are shorter than the tokens which are tried, so that it is seen whether they are kept.

    Some architectures tell them to their mask alone, which ours does not have.
    """
    holders = {id(holder): holder for holder in (model.config, model.config.get_text_config(), *model.modules())}
    places = [(holder, name, size) for holder in holders.values() for name in ("sliding_window", "attention_chunk_size")
              if type(size := getattr(holder, name, None)) is int and size]
    for holder, name, _ in places:
        setattr(holder, name, SHORT)
    try:
        yield
    finally:
        for holder, name, size in places:
            setattr(holder, name, size)


def as_in_transformers(model: Any) -> Any:
    """A model of the same weights, the same tensors, with transformers' own plain attention."""
    plain = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    plain.set_attn_implementation("eager")
    return plain


def verify_parity(model: Any, plain: Any) -> None:
    """Compares log-probabilities as they are computed here, and sampled, with those of the plain model.

    Products are in float32, whatever type the weights are held in.

    Raises:
        ModelError: they differ.
    """
    for done, difference in (("computed", logprob_difference), ("sampled", sampling_difference)):
        with Float32Products():
            largest = difference(model, plain)
        if not largest < TOLERANCE:
            raise ModelError(
                f"{type(model).__name__} is not {done} here as in transformers (log-probabilities differ by "
                f"{largest:.2g}): it does something that Triptych's engine does not know"
            )


@torch.no_grad()
def logprob_difference(model: Any, plain: Any) -> float:
    """The largest difference of a log-probability of two answers, computed here and each alone by the plain model."""
    prompt, answers = _some_tokens(model)
    mine, _ = answer_logprobs(model, pack_answers([(prompt, answers)], model.device))
    return float((mine - _alone(plain, prompt, answers)).abs().max())


@torch.no_grad()
def sampling_difference(model: Any, plain: Any) -> float:
    """The same of two answers of the model's own, by the log-probabilities with which they were sampled."""
    prompt, _ = _some_tokens(model)
    (answers,) = generate(model, [prompt], (), Sampling(4), n=2)
    sampled = torch.tensor([answer.logprobs for answer in answers], device=plain.device).flatten()
    return float((sampled - _alone(plain, prompt, [answer.tokens for answer in answers])).abs().max())


def _alone(plain: Any, prompt: list[int], answers: list[list[int]]) -> Tensor:
    """`[N]` log-probabilities of the answers' tokens, each sequence by itself."""
    logprobs = []
    for answer in answers:
        tokens = torch.tensor([[*prompt, *answer]], device=plain.device)
        scores = plain(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        logprobs.append(scores.gather(1, tokens[0, len(prompt) :, None])[:, 0])
    return torch.cat(logprobs)


def _some_tokens(model: Any) -> tuple[list[int], list[list[int]]]:
    """A prompt and two answers, random but the same every time."""
    draw = torch.Generator("cpu").manual_seed(0)
    size = min(model.get_input_embeddings().weight.shape[0], model.config.get_text_config().vocab_size)
    prompt, *answers = (torch.randint(size, (length,), generator=draw, device="cpu").tolist() for length in (12, 5, 9))
    return prompt, answers
