"""What is estimated from a step's answers, against what it must come to: exact sums, hands and simulations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import logprobs_alone
from triptych.engine import attention
from triptych.engine.generation import generate
from triptych.engine.models import load_policy
from triptych.engine.perplexity import bits_per_byte, windows
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.training import Step, train
from triptych.improve import grpo, on_policy, ppo, rloo
from triptych.improve.advantages import priced
from triptych.improve.best_of_n import bound
from triptych.improve.grpo import Grpo
from triptych.improve.loop import Answers
from triptych.improve.losses import kl_penalty
from triptych.improve.on_policy import OnPolicy, Tokens
from triptych.improve.ppo import Ppo
from triptych.improve.rloo import Rloo
from triptych.progress import Silent
from triptych.records import Document, Prompt, Rollout, user

pytestmark = pytest.mark.usefixtures("float32")
END = 2


def ending_at_times(limit: int) -> Any:
    """A random policy of eight tokens, which therefore ends at each with a probability of about an eighth."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2 * limit, eos_token_id=END, pad_token_id=0, bos_token_id=1,
    ))
    model.set_attn_implementation(attention.NAME)
    return model.eval()


def shares_cut(config: OnPolicy, step: Callable[..., Step[Tokens]]) -> list[float]:
    """The share of answers cut in each step of training at a reward that is an answer's length."""
    model = ending_at_times(config.max_tokens)
    reference = Policy(copy.deepcopy(model), None)
    if isinstance(config, Ppo):
        ppo.attach(model)
    shares = []

    def prepare(number: int) -> Step[Tokens]:
        prompts = [(1, 3 + i) for i in range(4)]
        written = generate(model, prompts, END, Sampling(config.max_tokens, seed=number), n=config.group_size)
        groups = [[Rollout(Prompt(user("")), prompt, tuple(each.tokens), tuple(each.logprobs), "", each.finished)
                   for each in samples] for prompt, samples in zip(prompts, written, strict=True)]
        lengths = torch.tensor([[float(len(each.tokens)) for each in group] for group in groups])
        answers = Answers(groups, lengths / config.max_tokens)
        shares.append(answers.numbers["cut"])
        return step(model, reference, answers, config) if isinstance(config, Ppo) else step(reference, answers, config)

    def loss(batch: Any) -> Any:
        return ppo.loss(model, batch, config) if isinstance(config, Ppo) else on_policy.loss(model, batch, config)

    train(model, config.steps, prepare, loss, config, checkpoint=None, progress=Silent())
    return shares


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SHORT: dict[str, Any] = {"steps": 24, "max_tokens": 4, "learning_rate": 1e-2, "warmup": 0.0}


@pytest.mark.parametrize(
    ("step", "config", "without"),
    [(grpo.step, Grpo(**SHORT), 0.9), (grpo.step, Grpo(advantage="dr", **SHORT), 0.9), (rloo.step, Rloo(**SHORT), 0.9),
     (ppo.step, Ppo(**SHORT), 0.5)],
    ids=["grpo", "dr_grpo", "rloo", "ppo"],
)
def test_a_reward_that_likes_length_does_not_teach_a_policy_never_to_end(
    step: Callable[..., Step[Tokens]], config: OnPolicy, without: float
) -> None:
    """About half of the answers are cut at first; the mean of four steps of 32 answers is within 0.09 of its own."""
    left_out = shares_cut(config.model_copy(update={"cut_price": None}), step)
    assert left_out[0] < 0.5
    assert mean(left_out[-4:]) > without  # what is left out of the loss costs nothing
    assert mean(shares_cut(config, step)[-4:]) < 0.25


def test_a_cut_answer_gets_less_than_its_groups_lowest() -> None:
    rewards = torch.tensor([[3.0, 1.0, 9.0], [4.0, 5.0, 6.0], [2.0, 8.0, 0.0]])
    finished = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    expected = torch.tensor([[3.0, 1.0, 0.5], [0.5, 0.5, 0.5], [7.5, 8.0, 7.5]])
    torch.testing.assert_close(priced(rewards, finished, 0.5), expected)
    torch.testing.assert_close(priced(rewards, torch.ones_like(finished), 0.5), rewards)
    none = priced(rewards, torch.zeros_like(finished), 0.5)
    assert (none == none[0, 0]).all()
    assert torch.isfinite(none).all()


def penalty_gradient(
    scores: torch.Tensor, reference: torch.Tensor, sampler: torch.Tensor, config: OnPolicy
) -> torch.Tensor:
    """The penalty's gradient in the policy's scores, summed exactly over the tokens that the sampler may draw."""
    policy = scores.clone().requires_grad_()
    logprobs = policy.log_softmax(dim=0)
    tokens = Tokens(None, torch.zeros_like(scores), reference, sampler, sampler.exp(), kl=1.0)  # type: ignore[arg-type]
    on_policy.surrogate(logprobs, torch.zeros_like(scores), tokens, config).total.backward()
    assert policy.grad is not None
    return policy.grad


@pytest.mark.parametrize(
    "config",
    [
        Grpo(), Grpo(updates_per_rollout=2), Grpo(importance_cap=1e9),
        Ppo(updates_per_rollout=4, kl_placement="loss"),
    ],
)
def test_the_penaltys_expected_gradient_is_that_of_the_distance(config: OnPolicy) -> None:
    """Twelve tokens, in float64. With `reuse` the tokens come from an older policy, with a correction from one that
    differs, else from the policy itself."""
    torch.manual_seed(4)
    scores, others, older = torch.randn(3, 12, dtype=torch.float64)
    reference, sampler = others.log_softmax(dim=0), scores.log_softmax(dim=0)
    if config.updates_per_rollout > 1 or config.importance_cap == 1e9:
        sampler = (scores + 0.3 * older).log_softmax(dim=0)

    def exact(direction: str) -> torch.Tensor:
        policy = scores.clone().requires_grad_()
        logprobs = policy.log_softmax(dim=0)
        there, back = (logprobs.exp() * (logprobs - reference)).sum(), (reference.exp() * (reference - logprobs)).sum()
        (there if direction == "there" else back).backward()
        assert policy.grad is not None
        gradient: torch.Tensor = policy.grad
        return gradient

    found = penalty_gradient(scores, reference, sampler, config)
    torch.testing.assert_close(found, exact("there"), rtol=0, atol=1e-9)
    plain = penalty_gradient(scores, reference, sampler, config.model_copy(update={"kl_estimator": "k3"}))
    assert (plain - exact("there")).abs().max() > 0.05
    if config == Grpo():  # without the ratio it is the gradient of the distance the other way round
        torch.testing.assert_close(plain, exact("back"), rtol=0, atol=1e-9)


def test_the_penaltys_gradient_is_that_of_half_the_squared_log_ratio() -> None:
    """k3 with the ratio and k2 (Schulman 2020) agree for every token, and not only in their mean."""
    old, reference = torch.randn(2, 30, dtype=torch.float64)
    logprobs = (old + 0.2 * torch.randn(30, dtype=torch.float64)).requires_grad_()
    (found,) = torch.autograd.grad(kl_penalty(logprobs, reference, old).sum(), logprobs)
    k2 = torch.exp(logprobs - old).detach() * (logprobs - reference) ** 2 / 2
    torch.testing.assert_close(found, torch.autograd.grad(k2.sum(), logprobs)[0])


def test_the_penalty_in_the_reward_has_the_gradient_of_whole_answers_distance() -> None:
    """Answers of two tokens out of three each, all nine: Σ_t in the loss leaves out what the first token does to the
    second's distance; the answer's distance as a price does not."""
    torch.manual_seed(5)
    shapes = ((3,), (3, 3))
    policy = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    reference = [torch.randn(shape, dtype=torch.float64).log_softmax(-1) for shape in shapes]
    first, second = (scores.log_softmax(-1) for scores in policy)
    answers = first[:, None] + second
    distances = answers - (reference[0][:, None] + reference[1])
    exact = torch.autograd.grad((answers.exp() * distances).sum(), policy, retain_graph=True)
    drawn = answers.exp().detach()
    priced_answers = torch.autograd.grad((drawn * distances.detach() * answers).sum(), policy, retain_graph=True)
    each = kl_penalty(first, reference[0], first.detach())[:, None] + kl_penalty(second, reference[1], second.detach())
    by_token = torch.autograd.grad((drawn * each).sum(), policy)
    torch.testing.assert_close(priced_answers, exact)
    torch.testing.assert_close(by_token[1], exact[1])  # nothing comes behind the last token
    assert (by_token[0] - exact[0]).abs().max() > 0.01


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_bound_of_best_of_n_holds_for_what_is_learnt(n: int) -> None:
    """Summed exactly: 40 prompts with nine answers each, whose rewards tie here and there and of which the last were
    cut. Of the distribution of the best, ties broken by chance, those that ended are learnt."""
    torch.manual_seed(n)
    distance = weight = 0.0
    for _ in range(40):
        chances = torch.randn(9, dtype=torch.float64).mul(2).softmax(dim=0)
        finished = torch.arange(9) < torch.randint(1, 10, ())
        rewards = torch.where(finished, torch.randint(0, 5, (9,)), -1)
        levels = rewards[:, None] >= rewards[None]
        up_to = (levels * chances).sum(dim=1)  # the chance of this reward or a lower one
        same = ((rewards[:, None] == rewards[None]) * chances).sum(dim=1)
        best = chances / same * (up_to**n - (up_to - same).clamp(min=0) ** n)
        torch.testing.assert_close(best.sum(), torch.ones((), dtype=torch.float64))
        kept = best[finished].sum()
        learnt = best[finished] / kept
        distance += float(kept * (learnt * (learnt / chances[finished]).log()).sum())
        weight += float(kept)
    left_out = 1 - weight / 40
    assert 0.01 < left_out < 0.6
    assert distance / weight <= bound(n, left_out)
    assert distance / weight > 0.3 * bound(n, left_out)
    # An answer in many, of which half are cut: here the plain bound is exceeded, and this one is nearly met.
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.where(quantiles > 0.5, n * quantiles ** (n - 1) / (1 - 0.5**n), 0.0)
    alone = float(torch.special.xlogy(density, density).mean())
    assert alone > bound(n) + 0.005
    assert alone == pytest.approx(bound(n, 0.5**n), abs=1e-4)


def test_bits_per_byte_of_documents_longer_than_the_context_equal_a_computation_by_hand(policy_folder: Path) -> None:
    policy, plain = Policy.open(policy_folder / "model"), load_policy(policy_folder / "model")
    first, context = policy.tokenizer.bos_token_id, 8
    texts = ["a small cat", "a small cat sat on a red mät and saw a dog, and the dog saw a red cat", "a"]
    nats, predicted = 0.0, []
    for text in texts:
        tokens = [first, *policy.tokenizer(text, add_special_tokens=False)["input_ids"]]
        for place in range(1, len(tokens)):
            # The first window ends before place 8, each further one 4 places behind the last.
            end = context if place < context else context + 4 * ((place - context) // 4 + 1)
            seen = tokens[max(0, end - context) : place]
            nats -= float(logprobs_alone(plain, seen, [tokens[place]]))
            predicted.append(len(seen))
    assert max(predicted) == context - 1
    assert len(predicted) > 30
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    found = bits_per_byte(policy.model, policy.tokenizer, [Document(text) for text in texts], context)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("length", "context"), [(1, 8), (2, 8), (8, 8), (9, 8), (40, 8), (41, 7), (5, 2)])
def test_each_token_of_a_document_is_predicted_once_and_from_half_a_context(length: int, context: int) -> None:
    tokens = list(range(length))
    rows = [(list(given), list(answers[0])) for given, answers in windows(tokens, context)]
    assert [token for _, predicted in rows for token in predicted] == tokens[1:]
    for given, predicted in rows:
        assert given == tokens[predicted[0] - len(given) : predicted[0]]
        assert len(given) + len(predicted) <= context
        assert len(given) >= min(predicted[0], context - context // 2)


class Known:
    """A reference whose log-probabilities are given."""

    def __init__(self, *answers: Sequence[float]) -> None:
        self.answers = [torch.tensor(answer) for answer in answers]

    def logprobs(self, groups: Sequence[Sequence[Rollout]], budget: int) -> list[torch.Tensor]:
        return self.answers


@pytest.mark.parametrize("finished", [True, False])
def test_ppo_by_hand(finished: bool) -> None:
    """Two answers of 3 and 1 tokens, 0.5 expected everywhere, β = 0.1, γ = 1, λ = 0.5, rewards 2 and −1.

    A token pays 0.1 for each nat that it is likelier than at the reference, and the reward comes with the last one:
    −0.05, 0, 0.05 + 2 and −0.1 − 1. The errors δ are −0.05, 0, 1.55 and −1.6, and nothing is expected behind an end.
    An answer that was cut gets half less than the lowest that was not, 2 − 0.5, as its reward.
    """
    model = ending_at_times(8)
    ppo.attach(model)
    torch.nn.init.constant_(model.value_head.bias, 0.5)
    prompt = Prompt(user(""))
    group = [
        Rollout(prompt, (1, 3), (4, 5, END), (-1.0, -2.0, -1.0), "", True),
        Rollout(prompt, (1, 3), (END if finished else 4,), (-1.0,), "", finished),
    ]
    answers = Answers([group], torch.tensor([[2.0, -1.0]]))
    reference: Any = Known([-1.5, -2.0, -0.5], [-2.0])
    (batch,) = ppo.step(model, reference, answers, Ppo(group_size=2, kl_coefficient=0.1, gae_lambda=0.5)).batches
    last = -1.1 if finished else 1.5 - 0.1
    advantages = torch.tensor([-0.05 + 0.5 * 0.775, 0.5 * 1.55, 1.55, last - 0.5])
    torch.testing.assert_close(batch.packed.predictions.targets, torch.tensor([4, 5, END, group[1].tokens[0]]))
    torch.testing.assert_close(batch.values, torch.full((4,), 0.5))
    torch.testing.assert_close(batch.returns, torch.tensor([0.8375, 1.275, 2.05, last]))
    white = (advantages - advantages.mean()) / advantages.std(correction=0)
    torch.testing.assert_close(batch.advantages, white)
    assert batch.kl == 0  # it is paid once
    assert batch.counted.tolist() == [1, 1, 1, 1]
    if finished:
        by_hand = torch.tensor([0.061890, 0.438611, 1.105946, -1.606447])
        torch.testing.assert_close(batch.advantages, by_hand, rtol=0, atol=2e-6)
