"""Sampling with continuous batching over a slot cache.

A slot holds one sequence's keys and values. A sequence that ends gives its slot to the next one at once; a
prompt sampled n times is computed once and copied into n slots. The noise of a sample belongs to (seed,
request, position): one uniform number, turned into a token through the cumulative distribution, so that what
else was in the batch does not matter and nothing is drawn for the whole vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triptych.engine.attention import Layout
from triptych.engine.forward import Model, hidden_states
from triptych.engine.logprobs import output_logits
from triptych.engine.packing import Pack, Segment, rounded, scaled_attention

PREFILL = 8192
"""Prompt tokens computed together."""

CACHE = 2 << 30
"""Bytes that the keys and values of all slots may take."""


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


@dataclass(slots=True)
class Sample:
    """A sampled answer: tokens (with the end token if it was reached) and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


class SlotCache:
    """Keys and values of `slots` sequences, `[slots, J, depth, D]` for each layer.

    The depth grows with the longest sequence, so that the products read what is there and no more.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.depth = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.active = torch.empty(0, dtype=torch.long)
        self.positions = torch.empty(0, dtype=torch.long)
        self._masks: dict[int | None, Tensor] = {}

    def fill(self, slots: Tensor, start: int, end: int, recorded: PrefillRecorder) -> None:
        """Copies the keys and values of one prompt, at `start:end` of the prefilled row, into slots."""
        self._reach(end - start)
        for layer, (key, value) in recorded.layers.items():
            for cache, content in ((self.keys, key), (self.values, value)):
                if layer not in cache:
                    cache[layer] = content.new_zeros(self.slots, content.shape[1], self.depth, content.shape[3])
                cache[layer][int(slots[0]) : int(slots[-1]) + 1, :, : end - start] = content[0, :, start:end]

    def advance(self, count: int, positions: Tensor) -> None:
        """The next tokens, one for each of the first `count` slots, stand at `positions`."""
        self.active = torch.arange(count)
        self.positions = positions
        self._reach(int(positions.max()) + 1)
        self._masks.clear()

    def _reach(self, depth: int) -> None:
        """Makes room for sequences of this length, in steps, so that room is seldom made."""
        if depth <= self.depth:
            return
        grown = -(-depth // 32) * 32
        for cache in (self.keys, self.values):
            for layer, content in cache.items():
                cache[layer] = content.new_zeros(*content.shape[:2], grown, content.shape[3])
                cache[layer][:, :, : self.depth] = content
        self.depth = grown

    def keep(self, slots: Tensor) -> None:
        """Moves these slots to the front."""
        for cache in (self.keys, self.values):
            for content in cache.values():
                content[: len(slots)] = content[slots]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Writes the new tokens' keys and values and attends to each slot's whole sequence."""
        heads, n, width = query.shape[1:]
        kv_heads = key.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        keys[self.active, :, self.positions] = key[0].transpose(0, 1).to(keys.dtype)
        values[self.active, :, self.positions] = value[0].transpose(0, 1).to(values.dtype)
        rows = query[0].transpose(0, 1).reshape(n, kv_heads, heads // kv_heads, width)
        out = scaled_attention(
            rows, keys[:n], values[:n], self._mask(window, rows.dtype), scaling, softcap
        )
        return out.reshape(1, n, heads, width)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        if window not in self._masks:
            places = torch.arange(self.depth)
            seen = places <= self.positions[:, None]
            if window is not None:
                seen &= places > self.positions[:, None] - window
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


class PrefillRecorder:
    """A pack that remembers every layer's keys and values."""

    def __init__(self, pack: Layout) -> None:
        self.pack = pack
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Attention within the pack; keys and values are kept."""
        self.layers[layer] = (key, value)
        return self.pack.attend(layer, query, key, value, scaling, window, softcap)


@dataclass(slots=True)
class _Sequence:
    """A request under way."""

    request: int
    prompt_length: int
    sample: Sample
    next_token: int = 0


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    end: int,
    sampling: Sampling,
    *,
    n: int = 1,
    slots: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> list[list[Sample]]:
    """Samples n answers to each prompt.

    Args:
        model: a causal language model with our attention.
        prompts: token ids, none empty.
        end: the token that ends an answer.
        slots: sequences decoded together; by default as many as `CACHE` bytes hold, 256 at the most.
        watch: told the answers done and the tokens sampled, after each step.

    Returns:
        For each prompt its n samples, in order.
    """
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt has tokens"
    samples = [[Sample() for _ in range(n)] for _ in prompts]
    waiting = deque(range(len(prompts)))
    if slots is None:
        longest = max((len(prompt) for prompt in prompts), default=0) + sampling.max_tokens
        slots = max(1, min(256, CACHE // (longest * _bytes_per_token(model))))
    # Slots are taken by whole groups, so that a prompt is computed once for all its answers.
    slots = max(n, slots // n * n)
    cache = SlotCache(min(slots, len(prompts) * n))
    running: list[_Sequence] = []
    done = sampled = 0

    while waiting or running:
        free = cache.slots - len(running)
        if waiting and free >= n and (not running or free >= max(n, cache.slots // 8)):
            admitted = _admit(waiting, prompts, free // n)
            running += _prefill(model, cache, prompts, admitted, samples, n, len(running), end, sampling)
        else:
            _decode(model, cache, running, end, sampling)
        sampled += len(running)
        going = [i for i, sequence in enumerate(running) if not _ended(sequence, sampling)]
        if len(going) < len(running):
            done += len(running) - len(going)
            if going:
                cache.keep(torch.tensor(going))
            running = [running[i] for i in going]
        if watch:
            watch(done, sampled)
    return samples


def _bytes_per_token(model: Model) -> int:
    """What a token's keys and values take over all layers."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def _admit(waiting: deque[int], prompts: Sequence[Sequence[int]], groups: int) -> list[int]:
    """Takes prompts from the queue: as many as there are slots for, and at most `PREFILL` tokens."""
    admitted = [waiting.popleft()]
    tokens = len(prompts[admitted[0]])
    while waiting and len(admitted) < groups and tokens + len(prompts[waiting[0]]) <= PREFILL:
        tokens += len(prompts[waiting[0]])
        admitted.append(waiting.popleft())
    return admitted


def _prefill(
    model: Model, cache: SlotCache, prompts: Sequence[Sequence[int]], admitted: list[int],
    samples: list[list[Sample]], n: int, first_slot: int, end: int, sampling: Sampling,
) -> list[_Sequence]:
    """Computes the admitted prompts in one row and samples each answer's first token."""
    pack = Pack([Segment(prompts[i]) for i in admitted])
    recorder = PrefillRecorder(pack)
    states = hidden_states(model, pack.tokens, pack.positions, recorder)
    started: list[_Sequence] = []
    for place, i in enumerate(admitted):
        taken = torch.arange(n) + first_slot + place * n
        cache.fill(taken, int(pack.starts[place]), int(pack.ends[place]) + 1, recorder)
        started += [_Sequence(i * n + k, len(prompts[i]), samples[i][k]) for k in range(n)]
    logits = _logits(model, states[pack.ends]).repeat_interleave(n, dim=0)
    _extend(logits, started, end, sampling)
    return started


def _decode(model: Model, cache: SlotCache, running: list[_Sequence], end: int, sampling: Sampling) -> None:
    """One more token for every running sequence; free slots behind them fill the rows up to a usual number."""
    padding = min(rounded(len(running)), cache.slots) - len(running)
    tokens = torch.tensor([sequence.next_token for sequence in running] + [0] * padding)
    positions = torch.tensor([s.prompt_length + len(s.sample.tokens) - 1 for s in running] + [0] * padding)
    cache.advance(len(tokens), positions)
    states = hidden_states(model, tokens, positions, cache)
    _extend(_logits(model, states)[: len(running)], running, end, sampling)


def _ended(sequence: _Sequence, sampling: Sampling) -> bool:
    return sequence.sample.finished or len(sequence.sample.tokens) >= sampling.max_tokens


def _logits(model: Model, states: Tensor) -> Tensor:
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return output_logits(states, model.get_output_embeddings(), softcap)


def _extend(logits: Tensor, sequences: list[_Sequence], end: int, sampling: Sampling) -> None:
    """Draws each sequence's next token and appends it with its log-probability."""
    positions = [len(sequence.sample.tokens) for sequence in sequences]
    noise = uniforms(sampling.seed, [sequence.request for sequence in sequences], positions)
    tokens, logprobs = draw(logits, torch.from_numpy(noise), sampling)
    for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
        sequence.next_token = token
        sequence.sample.tokens.append(token)
        sequence.sample.logprobs.append(logprob)
        sequence.sample.finished = token == end


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities from `[N, V]` logits and `[N]` uniform numbers.

    The log-probability is that of the distribution sampled from (temperature applied, before `top_p`).
    """
    if sampling.temperature == 0.0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
    logits = logits / sampling.temperature
    probabilities = torch.softmax(logits, dim=-1)
    logprobs = probabilities
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


def uniforms(seed: int, requests: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """`[N]` numbers in [0, 1), each a hash (splitmix64) of seed, request and position.

    24 bits of it: more would round up to 1 in float32, where `draw` would take a token that is impossible.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.full(len(requests), seed, dtype=np.uint64))
        state = _mix(state ^ np.asarray(requests, dtype=np.uint64))
        state = _mix(state ^ np.asarray(positions, dtype=np.uint64))
    return (state >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
