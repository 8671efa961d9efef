"""One row of tokens for many sequences: no padding, and a prompt computed once for all its answers.

A :class:`Pack` is a row of tokens cut into segments. A segment may have a parent, an earlier segment that it
continues: a preference pair is one prompt and two children, a GRPO group one prompt and G children. Every
layer but attention works on the row as it is. Attention gathers, for each segment, its own queries and the
keys of its chain (its ancestors' tokens, then its own) into a few padded blocks of similar length, so that
only the attention scores are padded, never the matrix products of the model. On a CUDA device the fused kernel for
sequences of any lengths takes them one behind the other, without padding.

Shapes: T tokens in the row, N segments of a block, Q and K its longest query and key lengths, H query heads,
J key-value heads, D the head's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 1024
"""Up to this many keys, plain products are faster on a CPU than the fused kernel, whose backward pass is slow."""

COMMON = 8
"""Fewer tokens that all prompts begin with are not worth a segment of their own."""

APPLIED = 8192
"""Tokens of a pack that no gradient is wanted of."""

ROWS = 8
"""A CPU's products of a multiple of so many rows compute a row by the same operations, whatever their number is; with
fewer rows some add in another order."""

WASTE = 1.3
"""A block may hold at most this many times the query-key products that its segments need."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that continue the segment `parent` (its place in the same pack), or start anew."""

    tokens: Sequence[int]
    parent: int | None = None


@dataclass(slots=True)
class Block:
    """Segments of similar length, whose attention is computed together.

    Attributes:
        queries: `[N, Q]` places in the row; padding names the first place and is dropped by `kept`.
        keys: `[N, K]` places in the row.
        query_positions, key_positions: `[N, Q]`, `[N, K]` positions in the chain; -1 for padded keys.
        kept: `[N * Q]` which queries are real, or None where all are.
    """

    queries: Tensor
    keys: Tensor
    query_positions: Tensor
    key_positions: Tensor
    kept: Tensor | None

    def mask(self, window: int | None) -> Tensor:
        """`[N, 1, Q, K]`: which key each query sees."""
        q, k = self.query_positions[:, :, None], self.key_positions[:, None, :]
        seen = (k <= q) & (k >= 0)
        if window is not None:
            seen &= q - k < window
        return seen[:, None]


@dataclass(slots=True)
class Sequences:
    """The segments of a row, and its padding, one behind the other: each one's queries, and the keys of its chain.

    Attributes:
        keys: `[K]` places in the row, or None where every segment has its own keys alone.
        query_ends, key_ends: `[S + 1]`, int32: zero, then how many queries and keys there are up to each segment.
        longest_query, longest_key: of a segment.
    """

    keys: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


class VarlenAttention(Protocol):
    """Attention of `[T, H, D]` queries to `[K, J, D]` keys and values, each sequence's last query to its last key."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None
    ) -> Tensor:
        """`[T, H, D]`."""


Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and the answers to it, as tokens."""


def grown(groups: Sequence[Group]) -> tuple[list[Segment], list[tuple[int, int]]]:
    """The segments of groups: what all prompts begin with once, each prompt once, and its answers.

    Chat templates open every prompt with the same words, and often these are a good part of it. A single answer is one
    segment with its prompt.

    Returns:
        The segments, and for each answer in order its segment and how many of its tokens are the prompt's.
    """
    segments: list[Segment] = []
    places: list[tuple[int, int]] = []
    common = _common([prompt for prompt, _ in groups]) if len(groups) > 1 else []
    root = 0 if common else None
    if common:
        segments.append(Segment(common))
    for prompt, answers in groups:
        rest, parent = prompt[len(common) :], root
        if len(answers) > 1 and len(rest) > 0:
            segments.append(Segment(rest, parent))
            rest, parent = [], len(segments) - 1
        for answer in answers:
            places.append((len(segments), len(rest)))
            segments.append(Segment([*rest, *answer], parent))
    return segments, places


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, where it is at least `COMMON` tokens."""
    beginning: list[int] = []
    for token, *others in zip(*prompts, strict=False):
        if any(other != token for other in others):
            break
        beginning.append(token)
    return beginning if len(beginning) >= COMMON else []


def branched(rows: Sequence[Sequence[int]]) -> tuple[list[Segment], list[int]]:
    """The segments of sequences in lexical order: what some begin with alike once, however they branch behind it.

    Fewer than `COMMON` tokens that are alike are each sequence's own, but for sequences that are the same.

    Args:
        rows: token ids, none empty, sorted.

    Returns:
        The segments, and for each sequence its last one, whose chain is the sequence.
    """
    segments: list[Segment] = []
    last = [0] * len(rows)

    def grow(members: Sequence[int], start: int, parent: int | None) -> None:
        """Puts what comes from `start` on of members, which are alike up to there, behind a segment."""
        for beginning, alike in groupby(members, key=lambda row: tuple(rows[row][start : start + COMMON])):
            branch = list(alike)
            if not beginning:  # they end with the parent
                assert parent is not None, "a sequence has tokens"
                for row in branch:
                    last[row] = parent
                continue
            first, end = rows[branch[0]], rows[branch[-1]]
            shared = start + len(beginning)
            while shared < min(len(first), len(end)) and first[shared] == end[shared]:
                shared += 1
            segments.append(Segment(first[start:shared], parent))
            grow(branch, shared, len(segments) - 1)

    grow(range(len(rows)), 0, None)
    return segments, last


def rounded(count: int) -> int:
    """The count rounded up by at most a sixteenth, so that few different shapes occur.

    The CPU's matrix kernels are compiled for each shape that they meet, and kept: rows that all differ a little
    in length cost more in compiling, and in memory, than the padding does.
    """
    step = max(1, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def whole(count: int) -> int:
    """The count rounded up to a multiple of `ROWS`."""
    return -(-count // ROWS) * ROWS


class Pack:
    """A row of tokens in segments, with what attention needs to keep them apart.

    The row ends in padding that nothing attends to, up to a length that occurs often.

    Args:
        device: that of the model which computes it.
        apart: on a CPU, whether what is computed of a segment and its chain is the same to the bit whatever else is in
            the pack, which costs a little.

    Attributes:
        tokens: `[T]` token ids.
        positions: `[T]` each token's position in its chain.
        starts, ends: `[S]` places of each segment's first and last token.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str, *, apart: bool = False) -> None:
        lengths = np.array([len(segment.tokens) for segment in segments])
        assert len(segments) > 0, "a pack needs segments"
        assert lengths.min() > 0, "a segment needs tokens"
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        chains: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        for index, segment in enumerate(segments):
            own = np.arange(offsets[index], offsets[index + 1])
            assert segment.parent is None or segment.parent < index, "a parent comes before its children"
            chain = own if segment.parent is None else np.concatenate([chains[segment.parent], own])
            chains.append(chain)
            positions.append(np.arange(len(chain) - len(own), len(chain)))
        count = int(offsets[-1])
        padding = (whole(rounded(count)) if apart else rounded(count)) - count
        tokens = [token for segment in segments for token in segment.tokens]
        self.tokens = torch.tensor(tokens + [0] * padding, device=device)
        self.positions = _tensor(np.concatenate([*positions, np.zeros(padding, dtype=np.int64)]), device)
        self.starts = _tensor(offsets[:-1].copy(), device)
        self.ends = _tensor(offsets[1:] - 1, device)
        self._chains = chains
        self._depths = positions
        self._offsets = offsets
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}
        self._parents = [segment.parent for segment in segments]
        self._apart = apart

    def chain(self, segment: int) -> np.ndarray:
        """The places in the row of a segment's ancestors' tokens, then of its own."""
        return self._chains[segment]

    @cached_property
    def blocks(self) -> list[Block]:
        """The segments by similar length, or each by itself."""
        if self._apart:
            return [self._block([segment]) for segment in range(len(self._chains))]
        lengths = np.diff(self._offsets)
        return [self._block(group) for group in _groups(lengths, self._chains)]

    @cached_property
    def order(self) -> Tensor:
        """`[T]`: where the blocks' queries, one behind the other, have each place of the row."""
        order = torch.cat([block.queries.flatten() if block.kept is None else
                           block.queries.flatten()[block.kept] for block in self.blocks])
        places = torch.zeros_like(self.tokens)
        places[order] = torch.arange(len(order), device=places.device)
        return places

    @cached_property
    def sequences(self) -> Sequences:
        """The segments one behind the other; the padding is the last, where there is any."""
        count, device = int(self._offsets[-1]), self.tokens.device
        padding = np.arange(count, len(self.tokens))
        chains = [*self._chains, *([padding] if len(padding) else [])]
        queries = [*np.diff(self._offsets).tolist(), *([len(padding)] if len(padding) else [])]
        keys = [len(chain) for chain in chains]
        query_ends, key_ends = (
            _tensor(np.cumsum([0, *lengths], dtype=np.int32), device) for lengths in (queries, keys)
        )
        places = None if keys == queries else _tensor(np.concatenate(chains), device)
        return Sequences(places, query_ends, key_ends, max(queries), max(keys))

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """The pack's sequences as a batch, for a model that cannot compute them in a row.

        Each segment that none continues is a sequence, with all that it continues: what answers share is with each.

        Returns:
            `[N, L]` tokens, padded behind each sequence, and `[T]` where the flat batch has each place of the row; a
            place that several sequences have is the first one's, and the row's padding is any.
        """
        continued = set(self._parents)
        sequences = [chain for index, chain in enumerate(self._chains) if index not in continued]
        longest = rounded(max(map(len, sequences)))
        batch = np.zeros((len(sequences), longest), dtype=np.int64)
        places = np.zeros(len(self.tokens), dtype=np.int64)
        for row, sequence in reversed(list(enumerate(sequences))):
            batch[row, : len(sequence)] = sequence
            places[sequence] = row * longest + np.arange(len(sequence))
        return self.tokens[_tensor(batch, self.tokens.device)], _tensor(places, self.tokens.device)

    def _block(self, group: list[int]) -> Block:
        offsets, chains, positions, device = self._offsets, self._chains, self._depths, self.tokens.device
        n = rounded(len(group))
        longest_query = rounded(max(len(positions[i]) for i in group))
        longest_key = rounded(max(len(chains[i]) for i in group))
        queries = np.zeros((n, longest_query), dtype=np.int64)
        keys = np.zeros((n, longest_key), dtype=np.int64)
        query_positions = np.zeros((n, longest_query), dtype=np.int64)
        key_positions = np.full((n, longest_key), -1, dtype=np.int64)
        key_positions[:, 0] = 0  # every query sees one key at least, the padding's too
        kept = np.zeros((n, longest_query), dtype=bool)
        for row, i in enumerate(group):
            count, depth = len(positions[i]), len(chains[i])
            queries[row, :count] = np.arange(offsets[i], offsets[i] + count)
            keys[row, :depth] = chains[i]
            query_positions[row, :count] = positions[i]
            key_positions[row, :depth] = np.arange(depth)
            kept[row, :count] = True
        return Block(
            _tensor(queries, device),
            _tensor(keys, device),
            _tensor(query_positions, device),
            _tensor(key_positions, device),
            None if kept.all() else _tensor(kept.ravel(), device),
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float, window: int | None, softcap: float | None,
    ) -> Tensor:
        """Causal attention within each chain.

        Args:
            query: `[1, H, T, D]`.
            key, value: `[1, J, T, D]`, J dividing H.

        Returns:
            `[1, T, H, D]`.
        """
        if query.is_cuda and softcap is None and flash_takes(query):
            return self.attend_in_sequences(query, key, value, scaling, window, flash_attention)
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[2]
        shared = heads // kv_heads
        outputs = []
        for index, block in enumerate(self.blocks):
            n, q = block.queries.shape
            k = block.keys.shape[1]
            # The query heads that share a key-value head become extra rows of one product.
            rows = query.index_select(0, block.queries.flatten()).view(n, q, kv_heads, shared, width)
            rows = rows.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, shared * q, width)
            columns = key.index_select(0, block.keys.flatten()).view(n, k, kv_heads, width).transpose(1, 2)
            values = value.index_select(0, block.keys.flatten()).view(n, k, kv_heads, width).transpose(1, 2)
            mask = self._mask(index, window, shared, rows.dtype)
            out = scaled_attention(rows, columns, values, mask, scaling, softcap)
            out = out.view(n, kv_heads, shared, q, width).permute(0, 3, 1, 2, 4).reshape(n * q, heads, width)
            outputs.append(out if block.kept is None else out[block.kept])
        return torch.cat(outputs)[self.order][None]

    def attend_in_sequences(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, kernel: VarlenAttention
    ) -> Tensor:
        """The same without a soft cap, by a kernel that takes sequences of any lengths."""
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        if self.sequences.keys is not None:
            key, value = key.index_select(0, self.sequences.keys), value.index_select(0, self.sequences.keys)
        return kernel(query, key, value, self.sequences, scaling, window)[None]

    def _mask(self, index: int, window: int | None, shared: int, dtype: torch.dtype) -> Tensor:
        """The block's additive mask, made once for all layers."""
        name = (index, window, dtype)
        if name not in self._masks:
            seen = self.blocks[index].mask(window)
            self._masks[name] = additive(seen, dtype).repeat(1, 1, shared, 1)
        return self._masks[name]


def flash_takes(query: Tensor) -> bool:
    """Whether the fused kernel computes queries of this type and width."""
    width = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None
) -> Tensor:
    """FlashAttention-2 (Dao 2023) over sequences of any lengths, see :class:`VarlenAttention`.

    Torch's public function for it, `varlen_attn`, takes other arguments in each release.
    """
    causal = window is None
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, sequences.query_ends, sequences.key_ends, sequences.longest_query, sequences.longest_key,
        0.0, causal, False, scale=scaling,
        window_size_left=None if window is None else window - 1, window_size_right=None if causal else 0,
    )[0]
    return out


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None, short: int = SHORT
) -> Tensor:
    """Attention with an additive mask; `softcap` bounds the scores as c·tanh(s / c) (Gemma 2).

    Args:
        short: up to so many keys plain products are taken on a CPU.
    """
    if softcap is None and (query.is_cuda or key.shape[2] > short):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return torch.softmax(_scores(query, key, mask, scaling, softcap), dim=-1) @ value


def weighed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention, and the log of the sum of the exponentials of its scores, by which parts are put together."""
    scores = _scores(query, key, mask, scaling, softcap)
    highest = scores.amax(dim=-1, keepdim=True)
    exponentials = (scores - highest).exp_()
    total = exponentials.sum(dim=-1, keepdim=True, dtype=torch.float32)
    return (exponentials @ value) / total.to(value.dtype), (highest + total.log())[..., 0]


def _scores(query: Tensor, key: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    scores = (query * scaling) @ key.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores + mask


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added to scores: zero where a key is seen; finite elsewhere, for rows that see none."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min / 2)


def _groups(lengths: np.ndarray, chains: list[np.ndarray]) -> Iterator[list[int]]:
    """Segments sorted by length and cut where a block would waste more than `WASTE` allows."""
    depths = np.array([len(chain) for chain in chains])
    group: list[int] = []
    needed = 0
    longest = [0, 0]
    for i in np.lexsort((lengths, depths)):
        grown = [max(longest[0], int(lengths[i])), max(longest[1], int(depths[i]))]
        needed_now = needed + int(lengths[i]) * int(depths[i])
        if group and grown[0] * grown[1] * (len(group) + 1) > WASTE * needed_now + 4096:
            yield group
            group, needed_now, grown = [], int(lengths[i] * depths[i]), [int(lengths[i]), int(depths[i])]
        group.append(int(i))
        needed, longest = needed_now, grown
    yield group


def fill(sizes: Iterable[int], budget: int) -> list[list[int]]:
    """Items in their order, cut into batches of at most `budget` tokens (one item may exceed it alone)."""
    batches: list[list[int]] = []
    used = budget + 1
    for index, size in enumerate(sizes):
        if used + size > budget:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += size
    return batches
