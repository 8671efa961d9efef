"""A model applied to a pack: hidden states, log-probabilities of answers, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triptych.engine.attention import Layout
from triptych.engine.logprobs import output_logits, token_logprobs
from triptych.engine.packing import Pack, Segment

Model = Any
"""A transformers model with our attention; transformers' classes carry no usable types."""


def hidden_states(model: Model, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """`[T, E]`: the trunk's last hidden states for a row of tokens `[T]`."""
    trunk = model.base_model
    output = trunk(input_ids=tokens[None], position_ids=positions[None], use_cache=False, layout=layout)
    states: Tensor = output.last_hidden_state[0]
    return states


def head_outputs(model: Model, pack: Pack) -> Tensor:
    """`[S, K]`: the reward head's outputs at the last token of each segment, in float32."""
    states = hidden_states(model, pack.tokens, pack.positions, pack)
    head: nn.Linear = model.score
    outputs: Tensor = head(states[pack.ends]).float()
    return outputs


def rewards(model: Model, pack: Pack) -> Tensor:
    """`[S]`: the score of each segment by a reward head of one output, in float32."""
    return head_outputs(model, pack)[:, 0]


def next_token_logits(model: Model, pack: Pack, tokens: Sequence[int]) -> Tensor:
    """`[S, C]`: what the model gives each of C tokens as the next one after each segment, in float32."""
    states = hidden_states(model, pack.tokens, pack.positions, pack)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return output_logits(states[pack.ends], model.get_output_embeddings(), softcap)[:, list(tokens)]


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


def pack_answers(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> AnswerPack:
    """Packs `(prompt, answers)` groups, each prompt once.

    A single answer is one segment with its prompt; several answers are children of the prompt's segment. An
    empty prompt predicts nothing of its answer's first token.
    """
    segments: list[Segment] = []
    places: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    offset = row = 0
    for prompt, answers in groups:
        if len(answers) == 1:
            answer = answers[0]
            segments.append(Segment([*prompt, *answer]))
            first = max(len(prompt), 1)
            last = len(prompt) + len(answer)
            places.extend(range(offset + first - 1, offset + last - 1))
            targets.extend([*prompt, *answer][first:])
            rows.extend([row] * (last - first))
            offset += last
            row += 1
            continue
        assert len(prompt) > 0, "answers can only share a prompt that has tokens"
        parent = len(segments)
        segments.append(Segment(prompt))
        offset += len(prompt)
        prompt_end = offset - 1
        for answer in answers:
            segments.append(Segment(answer, parent))
            places.extend([prompt_end, *range(offset, offset + len(answer) - 1)])
            targets.extend(answer)
            rows.extend([row] * len(answer))
            offset += len(answer)
            row += 1
    predictions = Predictions(torch.tensor(places), torch.tensor(targets), torch.tensor(rows))
    return AnswerPack(Pack(segments), predictions, row)


def answer_logprobs(
    model: Model, packed: AnswerPack, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`[N]` log-probabilities (and entropies) of the answers' tokens, in the order of the predictions."""
    states = hidden_states(model, packed.pack.tokens, packed.pack.positions, packed.pack)
    return token_logprobs(
        states[packed.predictions.places], model.get_output_embeddings(), packed.predictions.targets,
        temperature=temperature, softcap=getattr(model.config, "final_logit_softcapping", None),
        with_entropy=with_entropy,
    )
