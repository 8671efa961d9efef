"""Sampling parameters, and the sampler proper: logits into tokens and their log-probabilities.

The noise of a token belongs to (seed, request, position): one uniform number, turned into a token through the
cumulative distribution, so that what else was in the batch does not matter and nothing is drawn for the whole
vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.engine.inspection import read_object
from triptych.engine.logprobs import rows_at_once

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (0, None), "min_p": (0, None), "typical_p": (1, None), "num_beams": (1, None),
    "repetition_penalty": (1, None), "no_repeat_ngram_size": (0, None), "use_cache": (True, False, None),
}
"""What of transformers' generation settings is not built here, by the values with which it changes nothing."""

DRAWING = ("top_k", "min_p", "typical_p")
"""Those of drawing, which mean nothing where the likeliest token is taken."""

End = int | Collection[int]
"""The token that ends an answer, or several of which each does, as transformers' `eos_token_id`."""


def ending(end: End) -> Collection[int]:
    """The tokens that end an answer."""
    return (end,) if isinstance(end, int) else end


COLDEST = 1e-5
"""A temperature below is 0: logits divided by it are no numbers any more."""

MAX_TOKENS = 256
"""Of an answer, where a model's folder does not say."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_tokens: an answer is cut there, and then marked unfinished.
        temperature: 0 takes the likeliest token.
        top_p: samples among the likeliest tokens whose probabilities add up to this.
        seed: with the request's number and the position, determines the noise.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """How a reader calls it."""
        if self.temperature == 0.0:
            return "greedy"
        nucleus = f", top_p {self.top_p:g}" if self.top_p < 1.0 else ""
        return f"temperature {self.temperature:g}{nucleus}"

    @classmethod
    def of(cls, folder: Path) -> Sampling:
        """As the `generation_config.json` of a model's folder says; what it leaves out is as transformers has it."""
        settings = generation_settings(folder)
        temperature = settings.get("temperature") or 1.0 if settings.get("do_sample") else 0.0
        return cls(settings.get("max_new_tokens") or MAX_TOKENS, temperature, settings.get("top_p") or 1.0)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a `generation_config.json` by which transformers draws from the same distribution."""
        if self.temperature == 0.0:
            return {"do_sample": False, "max_new_tokens": self.max_tokens}
        # Without a number of its own for top_k, transformers samples among the 50 likeliest.
        return {"do_sample": True, "max_new_tokens": self.max_tokens, "temperature": self.temperature,
                "top_k": 0, "top_p": self.top_p}

    @property
    def identity(self) -> list[float]:
        """What it is, for the fingerprint of what was drawn."""
        return [self.max_tokens, self.temperature, self.top_p, self.seed]


def generation_settings(folder: Path) -> dict[str, Any]:
    """What a model's folder says of how it is decoded; nothing where it does not.

    Raises:
        ModelError: it is no JSON object.
    """
    path = folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def passed_over(folder: Path) -> str | None:
    """What of the folder's settings changes answers elsewhere and is not built here, in words; None of nothing."""
    settings = generation_settings(folder)
    drawn = Sampling.of(folder).temperature > 0
    names = [name for name in NEUTRAL if name in settings and (drawn or name not in DRAWING)]
    said = [f"{name} {settings[name]}" for name in names if settings[name] not in NEUTRAL[name]]
    if not said:
        return None
    return (
        f"{folder}: {', '.join(said)} of its generation_config.json is not applied: answers are drawn by temperature "
        "and top_p alone"
    )


def own_sampling(folder: Path, temperature: float | None = None, max_tokens: int | None = None) -> Sampling:
    """As the model's folder says that it is decoded, but for what is given."""
    own = Sampling.of(folder)
    return replace(
        own, temperature=own.temperature if temperature is None else temperature,
        max_tokens=own.max_tokens if max_tokens is None else max_tokens,
    )


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities from `[N, V]` logits and `[N]` uniform numbers.

    The log-probability is that of the distribution sampled from (temperature applied, before `top_p`). A few rows
    at a time are turned into probabilities, so that they stay in the processor's cache.
    """
    size = rows_at_once(logits)
    drawn = [_draw(rows, numbers, sampling)
             for rows, numbers in zip(torch.split(logits, size), torch.split(noise, size), strict=True)]
    return torch.cat([tokens for tokens, _ in drawn]), torch.cat([logprobs for _, logprobs in drawn])


def _draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature < COLDEST:
        tokens = logits.argmax(dim=-1)
        scores = logits.float()
        return tokens, scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(dim=-1)
    scores = logits.float() if sampling.temperature == 1.0 else logits.float() / sampling.temperature
    probabilities = logprobs = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = noise.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0].log()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes the tokens outside the smallest set whose probabilities reach `top_p`."""
    ordered, places = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return probabilities.scatter(1, places, ordered.masked_fill(outside, 0.0))


def uniforms(seed: int | Sequence[int], requests: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """`[N]` numbers in [0, 1), each a hash (splitmix64) of seed (one, or one for each), request and position.

    24 bits of it: more would round up to 1 in float32, where `draw` would take a token that is impossible.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.broadcast_to(np.asarray(seed, dtype=np.uint64), len(requests)))
        state = _mix(state ^ np.asarray(requests, dtype=np.uint64))
        state = _mix(state ^ np.asarray(positions, dtype=np.uint64))
    return (state >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
