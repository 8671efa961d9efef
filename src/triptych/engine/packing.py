"""One row of tokens for many sequences: no padding, and a prompt computed once for all its answers.

A :class:`Pack` is a row of tokens cut into segments. A segment may have a parent, an earlier segment that it
continues: a preference pair is one prompt and two children, a GRPO group one prompt and G children. Every
layer but attention works on the row as it is. Attention gathers, for each segment, its own queries and the
keys of its chain (its ancestors' tokens, then its own) into a few padded blocks of similar length, so that
only the attention scores are padded, never the matrix products of the model.

Shapes: T tokens in the row, N segments of a block, Q and K its longest query and key lengths, H query heads,
J key-value heads, D the head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

SHORT = 1024
"""Up to this many keys, plain products are faster on a CPU than the fused kernel, whose backward pass is slow."""

COMMON = 8
"""Fewer tokens that all prompts begin with are not worth a segment of their own."""

APPLIED = 8192
"""Tokens of a pack that no gradient is wanted of."""

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


def rounded(count: int) -> int:
    """The count rounded up by at most a sixteenth, so that few different shapes occur.

    The CPU's matrix kernels are compiled for each shape that they meet, and kept: rows that all differ a little
    in length cost more in compiling, and in memory, than the padding does.
    """
    step = max(1, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


class Pack:
    """A row of tokens in segments, with what attention needs to keep them apart.

    The row ends in padding that nothing attends to, up to a length that occurs often.

    Args:
        device: that of the model which computes it.

    Attributes:
        tokens: `[T]` token ids.
        positions: `[T]` each token's position in its chain.
        starts, ends: `[S]` places of each segment's first and last token.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str) -> None:
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
        padding = rounded(count) - count
        tokens = [token for segment in segments for token in segment.tokens]
        self.tokens = torch.tensor(tokens + [0] * padding, device=device)
        self.positions = _tensor(np.concatenate([*positions, np.zeros(padding, dtype=np.int64)]), device)
        self.starts = _tensor(offsets[:-1].copy(), device)
        self.ends = _tensor(offsets[1:] - 1, device)
        self.blocks = [self._block(group, offsets, chains, positions, device) for group in _groups(lengths, chains)]
        order = torch.cat([block.queries.flatten() if block.kept is None else
                           block.queries.flatten()[block.kept] for block in self.blocks])
        self.order = torch.zeros(count + padding, dtype=torch.long, device=device)
        self.order[order] = torch.arange(len(order), device=device)
        self._chains = chains
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}
        self._block_masks: dict[int | None, BlockMask] = {}
        self._parents = [segment.parent for segment in segments]
        self._lengths = [*lengths.tolist(), padding]

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

    @staticmethod
    def _block(
        group: list[int], offsets: np.ndarray, chains: list[np.ndarray], positions: list[np.ndarray],
        device: torch.device | str,
    ) -> Block:
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
        if query.is_cuda:
            return self.attend_in_tiles(query, key, value, scaling, window, softcap, _compiled_flex_attention())
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

    def attend_in_tiles(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float | None,
        kernel: Callable[..., Tensor],
    ) -> Tensor:
        """The same over the whole row at once, for an accelerator: tiles in which nothing is seen are skipped."""

        def cap(score: Tensor, *_: Tensor) -> Tensor:
            assert softcap is not None
            return softcap * torch.tanh(score / softcap)

        out = kernel(
            query, key, value, score_mod=None if softcap is None else cap, block_mask=self._block_mask(window),
            scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)

    def _block_mask(self, window: int | None) -> BlockMask:
        """Which tiles of the row see which: a token sees what stands before it in its own chain of segments."""
        if window not in self._block_masks:
            count = len(self._parents)
            device = self.tokens.device
            chains = torch.eye(count + 1, dtype=torch.bool, device=device)  # the last is the row's padding
            for index, parent in enumerate(self._parents):
                if parent is not None:
                    chains[index] |= chains[parent]
            lengths = torch.tensor(self._lengths, device=device)
            segment = torch.repeat_interleave(torch.arange(count + 1, device=device), lengths)
            positions = self.positions

            def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                visible = chains[segment[query], segment[key]] & (key <= query)
                return visible if window is None else visible & (positions[query] - positions[key] < window)

            total = len(self.tokens)
            self._block_masks[window] = create_block_mask(seen, None, None, total, total, device)
        return self._block_masks[window]

    def _mask(self, index: int, window: int | None, shared: int, dtype: torch.dtype) -> Tensor:
        """The block's additive mask, made once for all layers."""
        name = (index, window, dtype)
        if name not in self._masks:
            seen = self.blocks[index].mask(window)
            self._masks[name] = additive(seen, dtype).repeat(1, 1, shared, 1)
        return self._masks[name]


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """Uncompiled, flex attention holds every score."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """Attention with an additive mask; `softcap` bounds the scores as c·tanh(s / c) (Gemma 2)."""
    if softcap is None and (query.is_cuda or key.shape[2] > SHORT):
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
