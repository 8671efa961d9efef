"""Sampling with continuous batching over a slot cache.

A slot holds one sequence's keys and values. A sequence that ends gives its slot to the next one at once; a
prompt sampled n times is computed once and copied into n slots. The noise of a sample belongs to (seed,
request, position): one uniform number, turned into a token through the cumulative distribution, so that what
else was in the batch does not matter and nothing is drawn for the whole vocabulary.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.engine.attention import Layout
from triptych.engine.capture import Recorded
from triptych.engine.forward import Model, hidden_states
from triptych.engine.logprobs import output_logits, rows_at_once
from triptych.engine.packing import Pack, Segment, additive, rounded, scaled_attention, weighed_attention

PREFILL = 8192
"""Prompt tokens computed together."""

SHARED = 96
"""Keys that sharing a prompt must save for each answer; fewer are not worth attending in two parts."""

DEEPER = {"cpu": 32, "cuda": 256}
"""By so many tokens a cache grows: every step reads all of it, but a device's are recorded anew for each depth."""

CACHE = 2 << 30
"""Bytes that the keys and values of all slots may take."""

End = int | Collection[int]
"""The token that ends an answer, or several of which each does, as transformers' `eos_token_id`."""


def ending(end: End) -> Collection[int]:
    """The tokens that end an answer."""
    return (end,) if isinstance(end, int) else end


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
        path = folder / "generation_config.json"
        told = json.loads(path.read_bytes()) if path.is_file() else {}
        temperature = told.get("temperature") or 1.0 if told.get("do_sample") else 0.0
        return cls(told.get("max_new_tokens") or MAX_TOKENS, temperature, told.get("top_p") or 1.0)

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


@dataclass(slots=True)
class Sample:
    """A sampled answer: tokens (with the end token if it was reached) and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


class Store:
    """Keys and values of some sequences, `[rows, J, depth, D]` for each layer.

    The depth grows with the longest sequence, so that the products read what is there and no more.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.depth = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def reach(self, depth: int) -> None:
        """Makes room for sequences of this length, in steps, so that room is seldom made."""
        if depth <= self.depth:
            return
        step = DEEPER[torch.get_default_device().type]
        grown = -(-depth // step) * step
        for cache in (self.keys, self.values):
            for layer, content in cache.items():
                larger = content.new_empty(*content.shape[:2], grown, content.shape[3])
                larger[:, :, : self.depth] = content
                larger[:, :, self.depth :] = 0  # nothing attends to what is not there, but it must be finite
                cache[layer] = larger
        self.depth = grown

    def put(self, first: int, last: int, start: int, end: int, recorded: PrefillRecorder) -> None:
        """Copies the keys and values of one prompt, at `start:end` of the prefilled row, into rows."""
        self.reach(end - start)
        for layer, (key, value) in recorded.layers.items():
            for cache, content in ((self.keys, key), (self.values, value)):
                if layer not in cache:
                    cache[layer] = content.new_zeros(self.rows, content.shape[1], self.depth, content.shape[3])
                cache[layer][first:last, :, : end - start] = content[0, :, start:end]

    def like(self, other: Store) -> None:
        """Takes over the layers of another store, empty."""
        for layer, content in other.keys.items():
            shape = (self.rows, content.shape[1], self.depth, content.shape[3])
            self.keys.setdefault(layer, content.new_zeros(shape))
            self.values.setdefault(layer, content.new_zeros(shape))

    def move(self, origins: Sequence[int], places: Sequence[int]) -> None:
        """Copies rows into the places of others that have ended."""
        for cache in (self.keys, self.values):
            for content in cache.values():
                for origin, place in zip(origins, places, strict=True):
                    content[place] = content[origin]


class SlotCache:
    """A slot for each running sequence, and each prompt that several answers share held once.

    A sequence's keys are its prompt's, in `prompts`, and its own, in `slots`. Where prompts are not shared, their
    keys lie in the slots too, and `prompts` is empty.

    Attributes:
        members: answers to each prompt.
        shared: whether a prompt's keys are held once for all of them.
    """

    def __init__(self, slots: int, members: int, *, shared: bool) -> None:
        self.members = members
        self.shared = shared
        self.slots = Store(slots)
        # Of a prompt with one answer left only a slot is used; places for twice the prompts let others begin.
        self.prompts = Store(2 * slots // members if shared else 0)
        self.vacant = list(range(self.prompts.rows))
        self._masks: dict[tuple[str, int | None], Tensor] = {}

    def fill(self, slot: int, start: int, end: int, recorded: PrefillRecorder) -> int:
        """Takes in a prompt, at `start:end` of the prefilled row; the place of its keys."""
        if not self.shared:
            self.slots.put(slot, slot + self.members, start, end, recorded)
            return slot
        place = self.vacant.pop(0)
        self.prompts.put(place, place + 1, start, end, recorded)
        self.slots.like(self.prompts)
        return place

    def advance(self, running: Sequence[_Sequence], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Makes room for the next token of the first `count` slots; those behind the running ones are padding.

        Returns:
            The tokens, how many of each one's own tokens and how many of its prompt's shared ones stand before it,
            `[count]` each, to be given to :meth:`begin`.
        """
        padding = [0] * (count - len(running))
        own = [(0 if self.shared else s.prompt_length) + len(s.sample.tokens) - 1 for s in running]
        if self.shared:  # each sequence's place among the rows of its prompt, and back
            self.places = torch.tensor([s.place * self.members + s.request % self.members for s in running])
            self.returns = torch.cat([self.places, torch.tensor(padding, dtype=torch.long)])
            self.occupied = max((s.place for s in running), default=0) + 1
        self.slots.reach(max(own) + 1)
        given = [s.prompt_length if self.shared else 0 for s in running]
        tokens = [s.next_token for s in running]
        return torch.tensor(tokens + padding), torch.tensor(own + padding), torch.tensor(given + padding)

    def begin(self, own: Tensor, given: Tensor) -> Tensor:
        """A step begins; the positions of its tokens, `[count]`."""
        self.own, self.given = own, given
        self.active = torch.arange(len(own))
        self._masks.clear()
        return own + given

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Writes the new tokens' keys and values and attends to each sequence's prompt and its own tokens."""
        heads, n, width = query.shape[1:]
        kv_heads = key.shape[1]
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        # Indices side by side: with others between them an accelerator copies the whole cache to write a few rows.
        places = (self.active[:, None], torch.arange(kv_heads)[None], self.own[:, None])
        keys[places] = key[0].transpose(0, 1).to(keys.dtype)
        values[places] = value[0].transpose(0, 1).to(values.dtype)
        # The query heads that share a key-value head are rows of one product.
        rows = query[0].transpose(0, 1).reshape(n, kv_heads, heads // kv_heads, width)
        if not self.shared:
            out = scaled_attention(rows, keys[:n], values[:n], self._own_mask(window, rows.dtype), scaling, softcap)
            return out.reshape(1, n, heads, width)
        out, weight = weighed_attention(
            rows, keys[:n], values[:n], self._own_mask(window, rows.dtype), scaling, softcap
        )
        of_prompt, prompt_weight = self._attend_prompts(layer, rows, scaling, window, softcap)
        # Two softmaxes over parts of the keys make one over all of them, each by its share of the whole.
        share = torch.sigmoid(prompt_weight - weight).to(out.dtype)[..., None]
        return torch.lerp(out, of_prompt, share).reshape(1, n, heads, width)

    def _attend_prompts(
        self, layer: int, rows: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """Attention of `[n, J, S, D]` queries to their prompts; the queries of a prompt are rows of one product."""
        kv_heads, shared, width = rows.shape[1:]
        groups, members = self.occupied, self.members
        grouped = rows.new_zeros(groups * members, kv_heads, shared, width)
        grouped[self.places] = rows[: len(self.places)]
        grouped = grouped.view(groups, members, kv_heads, shared, width).transpose(1, 2)
        keys, values = self.prompts.keys[layer][:groups], self.prompts.values[layer][:groups]
        out, weight = weighed_attention(
            grouped.reshape(groups, kv_heads, members * shared, width), keys, values,
            self._prompt_mask(window, shared, rows.dtype), scaling, softcap,
        )
        out = out.view(groups, kv_heads, members, shared, width).transpose(1, 2)
        weight = weight.view(groups, kv_heads, members, shared).transpose(1, 2)
        return (out.reshape(-1, kv_heads, shared, width)[self.returns],
                weight.reshape(-1, kv_heads, shared)[self.returns])

    def _own_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[n, 1, 1, depth]`."""
        if ("own", window) not in self._masks:
            places = torch.arange(self.slots.depth)
            seen = places <= self.own[:, None]
            if window is not None:
                seen &= places > self.own[:, None] - window
            self._masks["own", window] = additive(seen, dtype)[:, None, None]
        return self._masks["own", window]

    def _prompt_mask(self, window: int | None, shared: int, dtype: torch.dtype) -> Tensor:
        """`[groups, 1, members * S, depth]`."""
        if ("prompt", window) not in self._masks:
            running = len(self.places)
            given = torch.zeros(self.occupied * self.members, dtype=torch.long)
            positions = given.clone()
            given[self.places] = self.given[:running]
            positions[self.places] = (self.given + self.own)[:running]
            places = torch.arange(self.prompts.depth)
            seen = places < given[:, None]
            if window is not None:
                seen &= places > positions[:, None] - window
            mask = additive(seen, dtype).view(self.occupied, self.members, 1, -1)
            self._masks["prompt", window] = mask.expand(-1, -1, shared, -1).flatten(1, 2)[:, None]
        return self._masks["prompt", window]


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
    place: int
    sample: Sample
    next_token: int = 0


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    end: End,
    sampling: Sampling,
    *,
    n: int = 1,
    numbers: Sequence[int] | None = None,
    slots: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> list[list[Sample]]:
    """Samples n answers to each prompt.

    Args:
        model: a causal language model with our attention.
        prompts: token ids, none empty.
        end: the token that ends an answer, or several of which each does.
        numbers: of the prompts, to which the noise belongs; by default their places. A part of a batch that is told
            its numbers in the whole is answered as it is there.
        slots: sequences decoded together; by default as many as `CACHE` bytes hold, 256 at the most.
        watch: told the answers done and the tokens sampled, after each step.

    Returns:
        For each prompt its n samples, in order.
    """
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt has tokens"
    numbers = range(len(prompts)) if numbers is None else numbers
    ends = ending(end)
    samples = [[Sample() for _ in range(n)] for _ in prompts]
    waiting = deque(range(len(prompts)))
    longest = max((len(prompt) for prompt in prompts), default=0)
    on_device = torch.get_default_device().type == "cuda"
    shared = longest * (n - 1) >= SHARED * n and not on_device
    if slots is None:
        held = sampling.max_tokens + longest // n if shared else longest + sampling.max_tokens
        held += DEEPER["cuda"] // 2 if on_device else 0  # what is held is rounded up
        slots = max(1, min(256, CACHE // (held * _bytes_per_token(model))))
    # Slots are taken by whole groups, so that a prompt is computed once for all its answers.
    slots = max(n, slots // n * n)
    slots = min(slots, len(prompts) * n)
    cache = SlotCache(slots, n, shared=shared)
    running: list[_Sequence] = []
    done = sampled = 0

    def step(tokens: Tensor, own: Tensor, given: Tensor) -> Tensor:
        return _logits(model, hidden_states(model, tokens, cache.begin(own, given), cache))

    # Rotary embeddings of the kind "dynamic" look at the positions on the host, which cannot be recorded.
    recordable = on_device and not any(getattr(part, "rope_type", "") == "dynamic" for part in model.modules())
    recorded: dict[int, Recorded] = {}

    def computed(*state: Tensor) -> Tensor:
        if not recordable:
            return step(*state)
        if cache.slots.depth not in recorded:
            recorded.clear()  # a deeper cache lies elsewhere
            recorded[cache.slots.depth] = Recorded(step)
        return recorded[cache.slots.depth](*state)

    while waiting or running:
        free = slots - len(running)
        groups = min(free // n, len(cache.vacant)) if cache.shared else free // n
        if waiting and groups and (not running or free >= max(n, slots // 8)):
            admitted = _admit(waiting, prompts, groups)
            running += _prefill(
                model, cache, prompts, admitted, samples, n, numbers, len(running), ends, sampling
            )
        else:
            _decode(computed, cache, running, ends, sampling)
        sampled += len(running)
        before = len(running)
        running = _going(cache, running, sampling)
        done += before - len(running)
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
    samples: list[list[Sample]], n: int, numbers: Sequence[int], first_slot: int, ends: Collection[int],
    sampling: Sampling,
) -> list[_Sequence]:
    """Computes the admitted prompts in one row and samples each answer's first token."""
    pack = Pack([Segment(prompts[i]) for i in admitted])
    recorder = PrefillRecorder(pack)
    states = hidden_states(model, pack.tokens, pack.positions, recorder)
    started: list[_Sequence] = []
    for place, i in enumerate(admitted):
        kept = cache.fill(first_slot + place * n, int(pack.starts[place]), int(pack.ends[place]) + 1, recorder)
        started += [_Sequence(numbers[i] * n + k, len(prompts[i]), kept, samples[i][k]) for k in range(n)]
    logits = _logits(model, states[pack.ends]).repeat_interleave(n, dim=0)
    _extend(logits, started, ends, sampling)
    return started


def _decode(
    step: Callable[..., Tensor], cache: SlotCache, running: list[_Sequence], ends: Collection[int], sampling: Sampling
) -> None:
    """One more token for every running sequence; free slots behind them fill the rows up to a usual number."""
    usual = {"cpu": rounded, "cuda": _power_of_two}[torch.get_default_device().type](len(running))
    state = cache.advance(running, min(usual, cache.slots.rows))
    _extend(step(*state)[: len(running)], running, ends, sampling)


def _power_of_two(count: int) -> int:
    """The next one; a device's steps are recorded for each number of rows."""
    return 1 << (count - 1).bit_length()


def _going(cache: SlotCache, running: list[_Sequence], sampling: Sampling) -> list[_Sequence]:
    """The sequences that go on, in the first slots: the last ones move into the slots of those that ended."""
    going = [i for i, sequence in enumerate(running) if not _ended(sequence, sampling)]
    moved = [i for i in going if i >= len(going)]
    places = sorted(set(range(len(going))) - set(going))
    if cache.shared:
        kept = {running[i].place for i in going}
        cache.vacant = sorted({*cache.vacant, *(sequence.place for sequence in running)} - kept)
    cache.slots.move(moved, places)
    for origin, place in zip(moved, places, strict=True):
        running[place] = running[origin]
    return running[: len(going)]


def _ended(sequence: _Sequence, sampling: Sampling) -> bool:
    return sequence.sample.finished or len(sequence.sample.tokens) >= sampling.max_tokens


def _logits(model: Model, states: Tensor) -> Tensor:
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return output_logits(states, model.get_output_embeddings(), softcap)


def _extend(logits: Tensor, sequences: list[_Sequence], ends: Collection[int], sampling: Sampling) -> None:
    """Draws each sequence's next token and appends it with its log-probability."""
    positions = [len(sequence.sample.tokens) for sequence in sequences]
    noise = uniforms(sampling.seed, [sequence.request for sequence in sequences], positions)
    tokens, logprobs = draw(logits, torch.from_numpy(noise).to(logits.device), sampling)
    for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
        sequence.next_token = token
        sequence.sample.tokens.append(token)
        sequence.sample.logprobs.append(logprob)
        sequence.sample.finished = token in ends


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities from `[N, V]` logits and `[N]` uniform numbers.

    The log-probability is that of the distribution sampled from (temperature applied, before `top_p`). A few rows
    at a time are turned into probabilities, so that they stay in the processor's cache.
    """
    size = rows_at_once(logits.shape[1])
    drawn = [_draw(rows, numbers, sampling)
             for rows, numbers in zip(torch.split(logits, size), torch.split(noise, size), strict=True)]
    return torch.cat([tokens for tokens, _ in drawn]), torch.cat([logprobs for _, logprobs in drawn])


def _draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0.0:
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
