"""A reward model's training sees a prompt and each answer once, and the same loss as one pair at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from triptych.data.lengths import TokenizedComparison
from triptych.engine import attention
from triptych.engine.forward import head_outputs
from triptych.reward.losses import bradley_terry
from triptych.reward.training import _grouped, _packed


def row(
    prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], margin: float | None = None
) -> TokenizedComparison:
    return TokenizedComparison(tuple(prompt), tuple(chosen), tuple(rejected), margin)


ROWS = [
    row([1, 2, 3], [4, 5], [6]),
    row([7, 8], [9, 10, 11], [12, 13]),
    row([1, 2, 3], [6], [14, 15, 16]),
    row([1, 2, 3], [4, 5], [14, 15, 16], margin=0.5),
]


def test_a_prompts_comparisons_are_one_group_with_each_answer_once() -> None:
    groups = _grouped(ROWS, range(1, len(ROWS) + 1))
    assert [len(group.rows) for group in groups] == [3, 1]
    assert groups[0].answers == [(4, 5), (6,), (14, 15, 16)]
    assert groups[0].tokens == 3 + 2 + 1 + 3


def test_the_grouped_loss_is_that_of_each_pair_alone() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1, pad_token_id=0, attn_implementation=attention.NAME,
    )
    model = LlamaForSequenceClassification(config).eval()
    pairs = _packed(_grouped(ROWS, range(1, len(ROWS) + 1)), "cpu")
    scores = head_outputs(model, pairs.pack)[:, 0]
    grouped = bradley_terry(scores[pairs.chosen], scores[pairs.rejected], pairs.margin)
    model.set_attn_implementation("sdpa")
    alone = []
    for each in (ROWS[0], ROWS[2], ROWS[3], ROWS[1]):
        chosen, rejected = (
            model(input_ids=torch.tensor([[*each.prompt, *answer]])).logits[0]
            for answer in (each.chosen, each.rejected)
        )
        alone.append(bradley_terry(chosen, rejected, torch.tensor([each.margin or 0.0]))[0])
    torch.testing.assert_close(grouped, torch.stack(alone), atol=1e-5, rtol=1e-5)
