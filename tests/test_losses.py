"""Losses and advantages: their values by hand, their invariances, and the same numbers as TRL's and transformers'."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import pytest
import torch

from conftest import some_tokens, tiny, with_our_attention
from triptych.engine.forward import answer_logprobs, head_outputs, pack_answers
from triptych.engine.scoring import pack_scored
from triptych.improve.advantages import centred, generalised, group_normalised, leave_one_out, whitened
from triptych.improve.losses import clipped_surrogate, clipped_value, dpo, ipo, kl_penalty, rpo
from triptych.reward.losses import bradley_terry


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 2.0])
    expected = [math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor(expected))


def test_a_margin_must_be_exceeded() -> None:
    chosen, rejected = torch.tensor([1.5, 1.5]), torch.tensor([0.5, 0.5])
    found = bradley_terry(chosen, rejected, margin=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), math.log(1 + math.exp(2))]))


def test_centring_adds_the_square_of_the_sum() -> None:
    chosen, rejected = torch.tensor([3.0]), torch.tensor([1.0])
    centred = bradley_terry(chosen, rejected, centring=0.01)
    torch.testing.assert_close(centred, bradley_terry(chosen, rejected) + 0.01 * 16)


def test_a_shift_of_all_rewards_changes_nothing_without_centring() -> None:
    chosen, rejected = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(chosen + 7, rejected + 7), bradley_terry(chosen, rejected))
    swapped = bradley_terry(rejected, chosen)
    torch.testing.assert_close(swapped - bradley_terry(chosen, rejected), chosen - rejected)


def test_extreme_rewards_stay_finite() -> None:
    far = torch.tensor([1e4], requires_grad=True)
    loss = bradley_terry(-far, far)
    loss.backward()
    assert loss.item() == 2e4
    torch.testing.assert_close(far.grad, torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.6, False),  # enough: clipped at 1 + 0.3
        (1.5, -2.0, 3.0, True),  # too likely and bad: not clipped
        (0.5, 2.0, -1.0, True),  # too unlikely and good: not clipped
        (0.5, -2.0, 1.8, False),  # enough: clipped at 1 - 0.1
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, expected: float, learns: bool) -> None:
    old = torch.tensor([-1.3])
    logprobs = (old + math.log(ratio)).requires_grad_()
    loss = clipped_surrogate(logprobs, old, torch.tensor([advantage]), clip_low=0.1, clip_high=0.3)
    torch.testing.assert_close(loss, torch.tensor([expected]))
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor([-ratio * advantage if learns else 0.0]))


def test_advantages_beside_the_others_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    torch.testing.assert_close(centred(rewards), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(leave_one_out(rewards), centred(rewards) * 3 / 2)
    torch.testing.assert_close(leave_one_out(rewards + 5), leave_one_out(rewards))


def test_generalised_advantages_by_hand() -> None:
    rewards = torch.tensor([0.0, 0.0, 1.0, 2.0])  # an answer of three tokens, and one of one
    values = torch.tensor([0.5, 0.2, 0.1, 0.5])
    lengths = torch.tensor([3, 1])
    # δ = -0.3, -0.1, 0.9 and 1.5
    found = generalised(rewards, values, lengths, gamma=1.0, lam=0.5)
    torch.testing.assert_close(found, torch.tensor([-0.125, 0.35, 0.9, 1.5]))
    torch.testing.assert_close(generalised(rewards, values, lengths, 1.0, 0.0), torch.tensor([-0.3, -0.1, 0.9, 1.5]))
    to_come = torch.tensor([1.0, 1.0, 1.0, 2.0])
    torch.testing.assert_close(generalised(rewards, values, lengths, 1.0, 1.0), to_come - values)
    torch.testing.assert_close(
        generalised(rewards, 0 * values, lengths, 0.5, 1.0), torch.tensor([0.25, 0.5, 1.0, 2.0])
    )


def test_whitened_advantages_look_at_what_counts_alone() -> None:
    counted = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(whitened(torch.tensor([1.0, 3.0, 50.0]), counted), torch.tensor([-1.0, 1.0, 48.0]))


@pytest.mark.parametrize(
    ("value", "expected", "learns"),
    [(0.0, 0.5, True), (0.5, 0.32, False), (-0.5, 1.125, True), (0.1, 0.405, True)],
)
def test_the_clipped_value_loss_by_hand(value: float, expected: float, learns: bool) -> None:
    values = torch.tensor([value], requires_grad=True)  # it was 0, may move by 0.2, and should have been 1
    loss = clipped_value(values, torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([expected]))
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert bool(gradient != 0) == learns


def test_the_kl_penalty_by_hand() -> None:
    found = kl_penalty(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, 0.0, -3.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, math.e - 2, math.exp(-2) + 1]))
    assert (found >= 0).all()


def test_the_kl_penalty_is_unbiased() -> None:
    policy, reference = torch.randn(2, 40, dtype=torch.float64).log_softmax(dim=1)
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_penalty(policy, reference)).sum(), expected)


def test_group_normalised_by_hand() -> None:
    found = group_normalised(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), epsilon=1e-4)
    torch.testing.assert_close(found, torch.tensor([[-1 / 1.0001, 0.0, 1 / 1.0001], [0.0, 0.0, 0.0]]))


def test_advantages_ignore_the_level_and_scale_of_rewards() -> None:
    rewards = torch.randn(6, 8, dtype=torch.float64)
    advantages = group_normalised(rewards, epsilon=0.0)
    torch.testing.assert_close(advantages.mean(dim=1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(advantages.std(dim=1), torch.ones(6, dtype=torch.float64))
    level = torch.arange(6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(group_normalised(3 * rewards + level, epsilon=0.0), advantages)


CHOSEN, REJECTED = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, -1.0, 3.0])  # h is 0, 3 and -4


def test_dpo_by_hand() -> None:
    expected = [math.log(2), math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(2))]
    torch.testing.assert_close(dpo(CHOSEN, REJECTED, beta=0.5), torch.tensor(expected))


def test_dpo_is_bradley_terry_of_the_implicit_rewards() -> None:
    torch.testing.assert_close(dpo(CHOSEN, REJECTED, 0.3), bradley_terry(0.3 * CHOSEN, 0.3 * REJECTED))


def test_ipo_by_hand() -> None:
    torch.testing.assert_close(ipo(CHOSEN, REJECTED, beta=0.25), torch.tensor([4.0, 1.0, 36.0]))


def test_rpo_by_hand() -> None:
    # Coins at σ(0) = 1/2 and at σ(ln 3) = 3/4: their KL is 3/4 ln(3/2) + 1/4 ln(1/2).
    found = rpo(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([math.log(3) / 2]), beta=0.7, scale=2.0)
    torch.testing.assert_close(found, torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]))


def test_rpo_is_least_where_the_implicit_rewards_are_as_far_apart_as_the_rewards() -> None:
    chosen = CHOSEN.clone().requires_grad_()
    found = rpo(chosen, REJECTED, 0.5 * (CHOSEN - REJECTED), beta=0.5)
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), chosen)
    torch.testing.assert_close(gradient, torch.zeros(3), rtol=0, atol=1e-6)
    for gap in (-2.0, 0.0, 9.0):
        assert (rpo(CHOSEN, REJECTED, torch.full((3,), gap), beta=0.5) >= 0).all()


def test_rpo_of_a_certain_reward_is_dpo() -> None:
    torch.testing.assert_close(rpo(CHOSEN, REJECTED, torch.full((3,), 60.0), beta=0.5), dpo(CHOSEN, REJECTED, 0.5))


def test_losses_of_pairs_look_at_the_difference_only() -> None:
    gap = torch.tensor([1.0, -0.5, 2.0])
    torch.testing.assert_close(dpo(CHOSEN + 5, REJECTED + 5, 0.2), dpo(CHOSEN, REJECTED, 0.2))
    torch.testing.assert_close(ipo(CHOSEN + 5, REJECTED + 5, 0.2), ipo(CHOSEN, REJECTED, 0.2))
    torch.testing.assert_close(rpo(CHOSEN + 5, REJECTED + 5, gap, 0.2), rpo(CHOSEN, REJECTED, gap, 0.2))


def test_the_answers_loss_equals_transformers_own() -> None:
    plain = tiny("llama")
    rows = [(some_tokens(5, 1), some_tokens(7, 2)), (some_tokens(9, 3), some_tokens(3, 4))]
    length = max(len(prompt + answer) for prompt, answer in rows)
    tokens = torch.tensor([p + a + [0] * (length - len(p + a)) for p, a in rows])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (length - len(p + a)) for p, a in rows])
    expected = plain(tokens, attention_mask=(tokens != 0).long(), labels=labels).loss
    found, _ = answer_logprobs(with_our_attention(plain), pack_answers([(p, [a]) for p, a in rows], "cpu"))
    torch.testing.assert_close(-found.mean(), expected.float(), rtol=0, atol=1e-6)


def test_the_reward_loss_equals_trls() -> None:
    trl = pytest.importorskip("trl")
    plain = tiny("llama", reward=True, dtype=torch.float32)
    pairs = [(some_tokens(5, 1), [some_tokens(7, 2), some_tokens(2, 3)]),
             (some_tokens(9, 4), [some_tokens(3, 5), some_tokens(12, 6)])]
    margins = [0.5, 1.5]
    pack, scored = pack_scored(pairs, "cpu")
    scores = head_outputs(with_our_attention(plain), pack)[scored, 0]
    found = bradley_terry(scores[0::2], scores[1::2], torch.tensor(margins), centring=0.03).mean()

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trl_reward_trainer(trl, plain, folder, centring=0.03)
        batch = trainer.data_collator([
            {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "margin": margin}
            for (prompt, (chosen, rejected)), margin in zip(pairs, margins, strict=True)
        ])
        expected = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _trl_reward_trainer(trl: Any, model: Any, folder: str, centring: float) -> Any:
    """TRL's trainer around a model; its data set and tokenizer are not used."""
    from datasets import Dataset

    from triptych.base.tokenizer import train_tokenizer
    from triptych.records import Document

    settings = trl.RewardConfig(
        output_dir=folder, center_rewards_coefficient=centring, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False,
    )
    data = Dataset.from_list([{"chosen_ids": [5, 6], "rejected_ids": [7, 8]}])
    return trl.RewardTrainer(
        model, settings, train_dataset=data,
        processing_class=train_tokenizer([Document("a cat")], 300, 64),
    )
