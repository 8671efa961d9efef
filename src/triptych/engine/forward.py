"""A model applied to a pack: hidden states, log-probabilities of answers, rewards.

A model with our attention computes the pack as one row. Any other computes the pack's sequences, each whole, as a
padded batch (see :mod:`triptych.engine.parity`); its hidden states are put where the row has their tokens, so that
nothing behind this page knows the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych.engine import attention
from triptych.engine.attention import Layout
from triptych.engine.logprobs import greedy_logprobs, output_logits, token_logprobs
from triptych.engine.packing import Group, Pack, branched, grown

Model = Any
"""A transformers model with our attention; transformers' classes carry no usable types."""


def packs(model: Model) -> bool:
    """Whether the model computes packed rows: it has our attention."""
    return bool(model.config._attn_implementation == attention.NAME)


def hidden_states(model: Model, pack: Pack) -> Tensor:
    """`[T, E]`: the trunk's last hidden states at every place of a pack.

    The padding that makes a batch of a model which does not pack lies behind each sequence, where no token sees it.
    """
    if packs(model):
        return row_states(model, pack.tokens, pack.positions, pack)
    batch, places = pack.unpacked()
    states: Tensor = model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[places]


def row_states(model: Model, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """`[T, E]`: the trunk's last hidden states for a row of tokens `[T]`, by our attention."""
    trunk = model.base_model
    output = trunk(input_ids=tokens[None], position_ids=positions[None], use_cache=False, layout=layout)
    states: Tensor = output.last_hidden_state[0]
    return states


def head_outputs(model: Model, pack: Pack) -> Tensor:
    """`[S, K]`: the reward head's outputs at the last token of each segment, in float32."""
    return linear_outputs(model.score, hidden_states(model, pack)[pack.ends])


def linear_outputs(head: nn.Linear, states: Tensor) -> Tensor:
    """`[N, K]`: a head's outputs for `[N, E]` hidden states, in float32.

    Its product is not of the compute type: bfloat16 would make rewards that are near to each other equal.
    """
    with torch.autocast(states.device.type, enabled=False):
        outputs: Tensor = head(states.to(head.weight.dtype)).float()
    return outputs


def next_token_logits(model: Model, pack: Pack, tokens: Sequence[int]) -> Tensor:
    """`[S, C]`: what the model gives each of C tokens as the next one after each segment, in float32."""
    return logits(model, hidden_states(model, pack)[pack.ends])[:, list(tokens)]


def logits(model: Model, states: Tensor) -> Tensor:
    """`[N, V]` logits for `[N, E]` hidden states."""
    return output_logits(states, model.get_output_embeddings(), _softcap(model), _logit_scale(model))


def _softcap(model: Model) -> float | None:
    """What bounds the logits of Gemma's families."""
    config = model.config
    bound: float | None = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return bound


def _logit_scale(model: Model) -> float:
    """What multiplies the logits: Cohere's and Falcon-H1's factor; Granite's divides."""
    config = model.config
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    return float(factor / (getattr(config, "logits_scaling", None) or 1.0))


Spans = Sequence[tuple[int, int]]
"""Parts of an answer: from which of its tokens to before which."""


@dataclass(slots=True)
class Predictions:
    """The tokens of a pack that count, and where each is predicted from.

    Attributes:
        places: `[N]` the place in the row whose hidden state predicts the token.
        targets: `[N]` the token.
        rows: `[N]` which answer the token belongs to.
    """

    places: Tensor
    targets: Tensor
    rows: Tensor


@dataclass(slots=True)
class AnswerPack:
    """Answers packed behind their prompts; only the answers' tokens are predicted."""

    pack: Pack
    predictions: Predictions
    answers: int

    @property
    def lengths(self) -> Tensor:
        """`[A]` the predicted tokens of each answer."""
        return torch.bincount(self.predictions.rows, minlength=self.answers)


def pack_answers(
    groups: Sequence[Group], device: torch.device | str, learnt: Sequence[Spans | None] | None = None
) -> AnswerPack:
    """Packs `(prompt, answers)` groups, each prompt once, on the device of the model that computes them.

    An empty prompt predicts nothing of its answer's first token.

    Args:
        learnt: for each answer from where to where its tokens are predicted; None for all of them.
    """
    segments, answers = grown(groups)
    pack = Pack(segments, device)
    starts, ends = pack.starts.tolist(), pack.ends.tolist()
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    texts = [answer for _, members in groups for answer in members]
    for row, (answer, (segment, skipped)) in enumerate(zip(texts, answers, strict=True)):
        first = starts[segment] + skipped
        parent = segments[segment].parent
        before = first - 1 if skipped else None if parent is None else ends[parent]
        predictors = [before or 0, *range(first, first + len(answer) - 1)]
        for span in (learnt and learnt[row]) or ((0, len(answer)),):
            predicted = slice(max(span[0], int(before is None)), span[1])
            places += predictors[predicted]
            targets += answer[predicted]
            rows += [row] * len(answer[predicted])
    predictions = Predictions(*(torch.tensor(numbers, device=device) for numbers in (places, targets, rows)))
    return AnswerPack(pack, predictions, len(answers))


def pack_predicted(sequences: Sequence[tuple[Sequence[int], int]], device: torch.device | str) -> AnswerPack:
    """Packs sequences, each with how many of its tokens at the end are predicted; all beginnings alike are one.

    The last token of a sequence predicts nothing and is not computed, so that answers of one token to a prompt cost
    no more than the prompt.

    Args:
        sequences: in lexical order; each has a token before those that are predicted.
    """
    segments, last = branched([tokens[:-1] for tokens, _ in sequences])
    pack = Pack(segments, device)
    places: list[np.ndarray] = []
    targets: list[int] = []
    rows: list[int] = []
    for row, ((tokens, count), segment) in enumerate(zip(sequences, last, strict=True)):
        assert 0 < count < len(tokens), "a token is predicted from one before it"
        places.append(pack.chain(segment)[-count:])
        targets += tokens[-count:]
        rows += [row] * count
    numbers = (np.concatenate(places).tolist(), targets, rows)
    return AnswerPack(pack, Predictions(*(torch.tensor(column, device=device) for column in numbers)), len(sequences))


def answer_logprobs(
    model: Model, packed: AnswerPack, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`[N]` log-probabilities (and entropies) of the answers' tokens, in the order of the predictions."""
    states = hidden_states(model, packed.pack)[packed.predictions.places]
    return predicted_logprobs(
        model, states, packed.predictions.targets, temperature=temperature, with_entropy=with_entropy
    )


def greedy_answers(model: Model, packed: AnswerPack) -> tuple[Tensor, Tensor]:
    """`[N]` log-probabilities of the answers' tokens, and whether each is the likeliest there; without gradient."""
    states = hidden_states(model, packed.pack)[packed.predictions.places]
    return greedy_logprobs(
        states, model.get_output_embeddings(), packed.predictions.targets, temperature=1 / _logit_scale(model),
        softcap=_softcap(model),
    )


def by_answer(logprobs: Tensor, packed: AnswerPack) -> Tensor:
    """`[A]` log-probabilities of whole answers from those of their tokens, `[N]`."""
    return logprobs.new_zeros(packed.answers).index_add(0, packed.predictions.rows, logprobs)


def predicted_logprobs(
    model: Model, states: Tensor, targets: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`[N]` log-probabilities (and entropies) of targets from `[N, E]` hidden states."""
    return token_logprobs(
        states, model.get_output_embeddings(), targets, temperature=temperature / _logit_scale(model),
        softcap=_softcap(model), with_entropy=with_entropy,
    )
