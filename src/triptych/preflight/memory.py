"""What the work takes of memory, in bytes, told from a model's measures before anything is made.

Counted is what PyTorch keeps for a Llama-like block: a residual stream in float32, products in the compute
type, attention as in `packing.py`. The peaks are sums: what the forward pass kept is freed to the allocator
and not to the system, in pieces that gradients and optimizer states seldom fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from triptych.engine.adapters import Lora
from triptych.engine.cache import CACHE_BYTES, MAX_SLOTS, SHARED_KEYS
from triptych.engine.device import compute_dtype, device
from triptych.engine.logprobs import BLOCK, CACHED
from triptych.engine.nf4 import BLOCK as NF4_BLOCK
from triptych.engine.packing import APPLIED, SHORT
from triptych.engine.training import Optimization

BASELINE = 680 << 20
"""Python, torch and transformers with some data (500 MiB, 60 of them bitsandbytes where it is installed), and what a
training's first dozens of shapes add: kernels that are kept for each, and pieces of freed memory that nothing fits
into. It was measured, not counted."""
ADAMW_BLOCK = 256
"""Numbers that share a scale in the moments of AdamW in 8 bits."""
PADDING = 1.12
"""What rounded lengths and padded blocks add to attention's queries, keys and scores, roughly."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What of a model decides memory and time.

    Attributes:
        parameters: all numbers, tied ones once.
        width: of the residual stream, E.
        inner: of the feed-forward layers, F.
        query_width: query heads times their width.
        key_value_width: key-value heads times their width.
        context: the longest sequence that it knows; None where it does not say.
        trained_tables: embedding tables that are trained beside adapters, for rows of added tokens: 2 where input and
            output have one each, 0 where no token was added.
        packed: whether it computes packed rows; sequences are padded to the longest of a batch where it does not.
        stored: bytes of a number in its folder.
        tables: embedding tables: 2 where input and output have one each.
        quantized: whether what is only read holds its layers' matrices in NF4.
        experts: numbers in a mixture's experts, which are held in float32.
        chosen: the share of its experts that a token is computed by.
    """

    parameters: int
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    query_width: int
    key_value_width: int
    context: int | None
    trained_tables: int = 0
    packed: bool = True
    stored: int = 4
    tables: int = 1
    quantized: bool = False
    experts: int = 0
    chosen: float = 1.0

    @classmethod
    def of(
        cls, config: Any, parameters: int, grows: bool = False, packed: bool = True, stored: int = 4,
        experts: int = 0,
    ) -> Architecture:
        """Read from a transformers configuration.

        Args:
            grows: whether tokens will be added to its vocabulary; it says itself which were.
            packed, stored, experts: as the attributes.
        """
        width = int(config.hidden_size)
        heads = int(getattr(config, "num_attention_heads", 0) or 1)
        key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_width = int(getattr(config, "head_dim", None) or width // heads)
        tables = 1 if config.tie_word_embeddings else 2
        return cls(
            parameters, int(config.vocab_size), width, int(getattr(config, "intermediate_size", None) or 4 * width),
            int(config.num_hidden_layers), heads, heads * head_width, key_value_heads * head_width,
            getattr(config, "max_position_embeddings", None),
            tables if grows or getattr(config, "added_tokens", None) else 0,
            packed, stored, tables, experts=experts, chosen=_chosen(config),
        )

    @property
    def active(self) -> int:
        """The parameters that a token is computed by."""
        return self.parameters - round(self.experts * (1 - self.chosen))


def _chosen(config: Any) -> float:
    """The share of a mixture's experts that a token is given to."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    there = next((int(count) for name in names if (count := getattr(config, name, None))), 0)
    taken = int(getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_top_k", None) or there)
    return min(1.0, taken / there) if there else 1.0


def files(model: Architecture) -> int:
    """The model as it is stored."""
    return model.stored * model.parameters


def weights(model: Architecture) -> int:
    """The float32 masters."""
    return 4 * model.parameters


def frozen(model: Architecture) -> int:
    """A model that is only read: its matrices in the compute type, the input's embeddings and experts in float32.

    One that does not pack is all in float32. In NF4 the layers' matrices take half a byte a number and a scale for each
    block; one is whole while it multiplies.
    """
    embedding = model.vocabulary * model.width
    if not model.packed:
        return 4 * model.parameters
    if not model.quantized:
        return 4 * (embedding + model.experts) + itemsize() * (model.parameters - embedding - model.experts)
    tables = (4 + itemsize() * (model.tables - 1)) * embedding + 4 * model.experts
    matrices = model.parameters - model.tables * embedding - model.experts
    return tables + matrices // 2 + 2 * matrices // NF4_BLOCK + itemsize() * model.width * model.inner


def loading(model: Architecture) -> int:
    """A model that is to be frozen: it is held a matrix at a time, on a CPU beside its files, which are mapped."""
    if device().type == "cpu":
        return frozen(model) + files(model)
    return max(frozen(model), arriving(model))


def taking(model: Architecture, source: int, *, rounded: bool) -> int:
    """A model of `source` bytes as it is taken; on a CPU its files are mapped beside what is `rounded` to NF4."""
    return source + (2 * model.parameters if rounded and device().type == "cpu" else 0)


def arriving(model: Architecture) -> int:
    """A model that is to be frozen, as it comes to a device: as it is stored, its embeddings in float32."""
    return files(model) + (4 - model.stored) * model.vocabulary * model.width


def copies(model: Architecture) -> int:
    """The weights in the compute type, which autocast makes for a pass."""
    return 2 * model.parameters if itemsize() == 2 else 0


def sampler(model: Architecture, adapted: bool = False) -> int:
    """A sampler's own weights, in the compute type.

    It has none where the model's are what it needs: held in NF4, or in float32 and without adapters.
    """
    size = itemsize() if model.packed else 4
    return 0 if model.quantized or (size == 4 and not adapted) else size * model.parameters


def optimizer_state(model: Architecture, optimization: Optimization) -> int:
    """AdamW's two moments of each number; of the hidden layers' matrices Muon keeps one, and AdamW in 8 bits two bytes
    and two scales for each block.
    """
    hidden = max(0, model.parameters - model.tables * model.vocabulary * model.width)
    if optimization.in_eight_bits:
        return 2 * hidden + 8 * hidden // ADAMW_BLOCK + 8 * (model.parameters - hidden)
    return (4 if optimization.muon_learning_rate else 8) * hidden + 8 * (model.parameters - hidden)


def layer_activations(model: Architecture, keys: float, lora: Lora | None = None) -> float:
    """What a layer keeps of a token for the backward pass.

    In float32, for each of the two norms its input and the normalised input. In the compute type: the inputs of
    the projections (autocast casts them once for each of q, k, v, gate and up, in float32 they are shared), the
    attention's output, four rows of the feed-forward layer (gate, its activation, up, their product), and of
    attention the padded queries, keys, values and probabilities; over `SHORT` keys the kernel keeps none of these.
    With adapters the norms are not trained, and keep their input alone; each of seven adapters keeps what lies between
    its two matrices.
    """
    size = itemsize()
    norms, between = (16 * model.width, 0) if lora is None else (8 * model.width, 7 * size * lora.rank)
    inputs = (5 if size == 2 else 2) * size * model.width
    attention = model.query_width + 2 * model.key_value_width + (model.heads * keys if keys <= SHORT else 0)
    return norms + between + inputs + size * (model.query_width + 4 * model.inner + PADDING * attention)


def activations(
    model: Architecture, tokens: int, keys: float, recompute: bool = False, lora: Lora | None = None
) -> int:
    """What a forward pass of so many tokens keeps, each token seeing so many keys.

    With `recompute` only every layer's input is kept, and one layer at a time is computed again.
    """
    layer = layer_activations(model, keys, lora)
    layers = 4 * model.width * model.layers + layer if recompute else layer * model.layers
    return round(tokens * (layers + (8 if lora is None else 4) * model.width))  # the last norm


def head(model: Architecture, tokens: int, *, backward: bool = True) -> int:
    """A block of logits and the parts of it that are worked on; backward the output embedding's gradient too.

    It does not grow with tokens times vocabulary: that is bounded by `BLOCK`.
    """
    logits = tokens * model.vocabulary
    embedding = model.vocabulary * model.width
    block = itemsize() * min(BLOCK, logits) + 12 * min(CACHED if device().type == "cpu" else BLOCK, logits)
    return block + 8 * tokens * model.width + ((4 + itemsize()) * embedding if backward else 0)


def training(
    model: Architecture, optimization: Optimization, tokens: int, keys: float, *, predicts: bool = True
) -> int:
    """Weights, gradients, optimizer and a micro-batch: all that an update holds.

    Args:
        tokens: of a micro-batch.
        keys: that a token sees, in the mean.
        predicts: tokens; False for a reward model, which has no logits.
    """
    kept = activations(model, tokens, keys, optimization.activation_checkpointing, optimization.lora)
    if optimization.lora is not None:
        beside = 4 * adapters(model, optimization.lora)  # they, their gradients and two moments
        # Rows of added tokens are trained in their table: it has a gradient and AdamW's two moments as a whole.
        tables = model.trained_tables if predicts else min(1, model.trained_tables)
        beside += 12 * tables * model.vocabulary * model.width
        outputs = head(model, tokens, backward=bool(tables)) if predicts else 0
        return max(loading(model), frozen(model) + kept + beside + outputs)
    updated = 2 * weights(model) + copies(model) + optimizer_state(model, optimization)
    return updated + kept + (head(model, tokens) if predicts else 0)


def adapters(model: Architecture, lora: Lora) -> int:
    """Low-rank adapters of all of the layers' matrices, in float32."""
    return 4 * lora.rank * model.layers * _ends(model)


def _ends(model: Architecture) -> int:
    """Rows and columns of a layer's matrices."""
    attention = 2 * model.width + 2 * model.query_width + 2 * (model.width + model.key_value_width)
    return attention + 3 * (model.width + model.inner)


def applied(model: Architecture, tokens: int = APPLIED, *, predicts: bool = True) -> int:
    """A pass of a frozen model: a few rows of one layer, a block of logits."""
    rows = tokens * (16 * model.width + 3 * itemsize() * model.inner)
    return rows + (head(model, tokens, backward=False) if predicts else 0)


def sampling(model: Architecture, sequences: int, prompt: int, answer: int, members: int = 1) -> int:
    """Keys, values and logits of the sequences that are decoded together.

    Args:
        sequences: that are asked for.
        prompt, answer: the longest, in tokens.
        members: answers to each prompt, whose keys they share.
    """
    shared = _shares(model, prompt, members)
    held = answer + 2 * prompt / members if shared else prompt + answer  # with places for prompts that wait
    together = slots(model, sequences, prompt, answer, members)
    return round(together * (held * _keys(model) + itemsize() * model.vocabulary))


def slots(model: Architecture, sequences: int, prompt: int, answer: int, members: int = 1) -> int:
    """How many sequences are decoded together, of what :func:`sampling` is asked for."""
    limit = answer + prompt // members if _shares(model, prompt, members) else prompt + answer
    return max(1, min(MAX_SLOTS, sequences, CACHE_BYTES // (limit * _keys(model))))


def _shares(model: Architecture, prompt: int, members: int) -> bool:
    return model.packed and prompt * (members - 1) >= SHARED_KEYS * members


def _keys(model: Architecture) -> int:
    """Bytes of a token's keys and values."""
    return 2 * model.layers * model.key_value_width * itemsize()


def itemsize() -> int:
    """Bytes of a number in the compute type."""
    return 2 if compute_dtype() == torch.bfloat16 else 4
