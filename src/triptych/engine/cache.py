"""The key-value cache: a slot for each running request, and the prefill that fills it.

A slot is one row of a tensor `[slots, J, depth, D]` for each layer, and holds the keys and values of one request;
there are no pages. A prompt that is sampled n times is prefilled once. Its keys are copied into n slots or, where that
saves enough, held once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.engine.attention import Layout
from triptych.engine.forward import Model
from triptych.engine.packing import SHORT, additive, scaled_attention, weighed_attention
from triptych.engine.request import Request

CACHE_BYTES = 2 << 30
"""What the keys and values of all slots may take."""

MAX_SLOTS = 256
"""Requests decoded together, at the most."""

SHARED_KEYS = 96
"""Keys that sharing a prompt must save for each answer; fewer are not worth attending in two parts."""

DEPTH_STEP = 32
"""By so many tokens a cache grows: every step reads all of it."""

CUDA_DEPTH_STEP = 256
"""The same on a CUDA device, whose steps are recorded anew for each depth."""


def bytes_per_token(model: Model) -> int:
    """What a token's keys and values take over all layers."""
    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    heads = getattr(config, "num_key_value_heads", None) or queries
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def slots_within(model: Model, tokens: int) -> int:
    """How many requests of so many tokens `CACHE_BYTES` hold, `MAX_SLOTS` at the most."""
    return max(1, min(MAX_SLOTS, CACHE_BYTES // (tokens * bytes_per_token(model))))


def allocate(
    model: Model, prompts: Sequence[Sequence[int]], n: int, max_tokens: int, slots: int | None = None
) -> SlotCache:
    """A cache for n answers of at most `max_tokens` to each prompt.

    Args:
        slots: how many; by default as many as `CACHE_BYTES` hold, `MAX_SLOTS` at the most.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    on_cuda = model.device.type == "cuda"
    shared = longest * (n - 1) >= SHARED_KEYS * n and not on_cuda
    if slots is None:
        held = max_tokens + longest // n if shared else longest + max_tokens
        held += CUDA_DEPTH_STEP // 2 if on_cuda else 0  # what is held is rounded up
        slots = slots_within(model, held)
    # Slots are taken by whole groups, so that a prompt is computed once for all its answers.
    slots = max(n, slots // n * n)
    return SlotCache(min(slots, len(prompts) * n), n, model.device, longest, max_tokens, shared=shared)


class KeyValues:
    """Keys and values of some sequences, `[rows, J, depth, D]` for each layer.

    The depth grows with the longest sequence, so that the products read what is there and no more. The memory for the
    longest that may come is set aside at once, and touched when it is needed: a store that was fetched anew whenever it
    grows would leave smaller ones behind, into which nothing fits.

    Args:
        longest: how many tokens a row may come to hold.
        step: by so many tokens the depth grows.
    """

    def __init__(self, rows: int, longest: int, step: int) -> None:
        self.rows = rows
        self.step = step
        self.longest = -(-longest // step) * step
        self.depth = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}

    def grow(self, depth: int) -> None:
        """Makes room for sequences of this length, in steps, so that it is seldom done."""
        if depth <= self.depth:
            return
        self.depth = -(-depth // self.step) * self.step
        for layer in self._memory:
            self._lay_out(layer)

    def fit(self, depth: int) -> None:
        """Gives depth back where sequences of this length need less than half of it: each step reads all of it."""
        depth = -(-depth // self.step) * self.step
        if 2 * depth <= self.depth:
            self.depth = depth
            for layer in self._memory:
                self._lay_out(layer)

    def take(self, layer: int, like: Tensor) -> None:
        """Sets memory aside for a layer's keys and values, which are as `[_, J, _, D]` ones, if it has none."""
        if layer not in self._memory:
            size = self.rows * like.shape[1] * self.longest * like.shape[3]
            self._memory[layer] = like.new_empty(size), like.new_empty(size)
            nothing = like.new_empty(self.rows, like.shape[1], 0, like.shape[3])
            self.keys[layer] = self.values[layer] = nothing
            self._lay_out(layer)

    def _lay_out(self, layer: int) -> None:
        """Rows are whole pieces of memory, of which the products take a batch as it lies: they move with the depth."""
        for shown, memory in zip((self.keys, self.values), self._memory[layer], strict=True):
            content = shown[layer][:, :, : self.depth].clone()
            rows, heads, old, width = content.shape
            grown = memory[: rows * heads * self.depth * width].view(rows, heads, self.depth, width)
            grown[:, :, :old] = content
            grown[:, :, old:] = 0  # nothing attends to what is not there, but it must be finite
            shown[layer] = grown

    def write(self, first: int, last: int, start: int, end: int, recorded: PrefillRecorder) -> None:
        """Copies the keys and values of one prompt, at `start:end` of the prefilled row, into rows."""
        self.grow(end - start)
        for layer, (key, value) in recorded.layers.items():
            self.take(layer, key)
            for shown, content in ((self.keys, key), (self.values, value)):
                shown[layer][first:last, :, : end - start] = content[0, :, start:end]

    def move(self, origins: Sequence[int], targets: Sequence[int]) -> None:
        """Copies rows over others, whose requests have ended."""
        for cache in (self.keys, self.values):
            for content in cache.values():
                for origin, target in zip(origins, targets, strict=True):
                    content[target] = content[origin]


class SlotCache:
    """A slot for each running request, and each prompt that several answers share held once.

    A request's keys are its prompt's, in `prompts`, and its own, in `slots`. Where prompts are not shared, their
    keys lie in the slots too, and `prompts` is empty.

    Args:
        longest: tokens of a prompt.
        max_tokens: of an answer.
        apart: on a CPU, whether what is computed of a slot is the same to the bit whatever the others hold. The fused
            kernel, which is faster where caches are deep, computes a row otherwise among others.

    Attributes:
        members: answers to each prompt.
        shared: whether a prompt's keys are held once for all of them.
    """

    def __init__(
        self, slots: int, members: int, device: torch.device, longest: int, max_tokens: int, *, shared: bool,
        apart: bool = False,
    ) -> None:
        self.members = members
        self.device = device
        self.shared = shared
        self.apart = apart
        step = CUDA_DEPTH_STEP if device.type == "cuda" else DEPTH_STEP
        self.slots = KeyValues(slots, max_tokens + (0 if shared else longest), step)
        # Of a prompt with one answer left only a slot is used; places for twice the prompts let others begin.
        self.prompts = KeyValues(2 * slots // members if shared else 0, longest, step)
        self.free_rows = list(range(self.prompts.rows))
        self._masks: dict[tuple[str, int | None], Tensor] = {}

    def add_prompt(self, slot: int, start: int, end: int, recorded: PrefillRecorder) -> int:
        """Takes in a prompt, at `start:end` of the prefilled row, for the slots from `slot` on; the row of its keys."""
        if not self.shared:
            self.slots.write(slot, slot + self.members, start, end, recorded)
            return slot
        row = self.free_rows.pop(0)
        self.prompts.write(row, row + 1, start, end, recorded)
        for layer, content in self.prompts.keys.items():
            self.slots.take(layer, content)
        return row

    def room(self, running: int) -> int:
        """How many more prompts, each with all its answers, fit beside so many running requests."""
        groups = (self.slots.rows - running) // self.members
        return min(groups, len(self.free_rows)) if self.shared else groups

    def release(self, rows: set[int]) -> None:
        """Frees the rows of prompts whose answers have all ended."""
        if self.shared:
            self.free_rows = sorted({*self.free_rows, *rows})

    def advance(self, running: Sequence[Request], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Makes room for the next token of the first `count` slots; those behind the running ones are padding.

        Returns:
            The tokens, how many tokens stand before each in its slot and how many in its prompt's row, `[count]`
            each, to be given to :meth:`begin`.
        """
        padding = [0] * (count - len(running))
        in_slot = [(0 if self.shared else r.prompt_length) + r.length - 1 for r in running]
        if self.shared:  # each request's place among the rows of its prompt, and back
            places = [r.prompt_row * self.members + r.number % self.members for r in running]
            self.places = torch.tensor(places, dtype=torch.long, device=self.device)
            self.returns = torch.tensor(places + padding, dtype=torch.long, device=self.device)
            self.occupied = max((r.prompt_row for r in running), default=0) + 1
        self.slots.grow(max(in_slot) + 1)
        in_prompt = [r.prompt_length if self.shared else 0 for r in running]
        tokens, slots, prompts = (
            torch.tensor(numbers + padding, device=self.device)
            for numbers in ([r.next_token for r in running], in_slot, in_prompt)
        )
        return tokens, slots, prompts

    def begin(self, in_slot: Tensor, in_prompt: Tensor) -> Tensor:
        """A step begins; the positions of its tokens, `[count]`."""
        self.in_slot, self.in_prompt = in_slot, in_prompt
        self.active = torch.arange(len(in_slot), device=self.device)
        self._masks.clear()
        return in_slot + in_prompt

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Writes the new tokens' keys and values and attends to each request's prompt and its own tokens."""
        heads, n, width = query.shape[1:]
        kv_heads = key.shape[1]
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        # Indices side by side: with others between them an accelerator copies the whole cache to write a few rows.
        places = (self.active[:, None], torch.arange(kv_heads, device=self.device)[None], self.in_slot[:, None])
        keys[places] = key[0].transpose(0, 1).to(keys.dtype)
        values[places] = value[0].transpose(0, 1).to(values.dtype)
        # The query heads that share a key-value head are rows of one product.
        rows = query[0].transpose(0, 1).reshape(n, kv_heads, heads // kv_heads, width)
        if not self.shared:
            mask = self._slot_mask(window, rows.dtype)
            short = keys.shape[2] if self.apart else SHORT
            out = scaled_attention(rows, keys[:n], values[:n], mask, scaling, softcap, short)
            return out.reshape(1, n, heads, width)
        out, weight = weighed_attention(
            rows, keys[:n], values[:n], self._slot_mask(window, rows.dtype), scaling, softcap
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

    def _slot_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[n, 1, 1, depth]`."""
        if ("slot", window) not in self._masks:
            places = torch.arange(self.slots.depth, device=self.device)
            seen = places <= self.in_slot[:, None]
            if window is not None:
                seen &= places > self.in_slot[:, None] - window
            self._masks["slot", window] = additive(seen, dtype)[:, None, None]
        return self._masks["slot", window]

    def _prompt_mask(self, window: int | None, shared: int, dtype: torch.dtype) -> Tensor:
        """`[groups, 1, members * S, depth]`."""
        if ("prompt", window) not in self._masks:
            running = len(self.places)
            lengths = torch.zeros(self.occupied * self.members, dtype=torch.long, device=self.device)
            positions = lengths.clone()
            lengths[self.places] = self.in_prompt[:running]
            positions[self.places] = (self.in_prompt + self.in_slot)[:running]
            places = torch.arange(self.prompts.depth, device=self.device)
            seen = places < lengths[:, None]
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
