"""What an update is computed from, by GRPO and by DPO; a round of each is resumed to the same bits."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from conftest import logprobs_alone, some_tokens, tiny, with_our_attention
from triptych.base.pretraining import Pretraining, architecture
from triptych.base.tokenizer import train_tokenizer
from triptych.cycle import plan
from triptych.data.files import write
from triptych.data.lengths import TokenizedComparison
from triptych.data.pairs import PairGroup, grouped
from triptych.engine import attention, device, training
from triptych.engine.curve import read_curve
from triptych.engine.forward import answer_logprobs, pack_answers
from triptych.engine.models import load_tokenizer, save
from triptych.engine.rollout import Policy, divergence
from triptych.engine.sampler import SlotSampler
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.errors import RecipeError
from triptych.improve import best_of_n, dpo, grpo, gspo, kto, losses, ppo, rloo
from triptych.improve.best_of_n import Best, BestOfN, best
from triptych.improve.checkpoints import UNLIMITED, Limits
from triptych.improve.dpo import Dpo, best_and_worst
from triptych.improve.grpo import Grpo
from triptych.improve.gspo import Gspo
from triptych.improve.improvement import Improved, improve
from triptych.improve.kto import Kto, Liked
from triptych.improve.loop import Answers, Improvement, Loop, passes
from triptych.improve.on_policy import Tokens, downsampled, measured, most_varied, paid, steered, surrogate
from triptych.improve.ppo import Ppo
from triptych.improve.rloo import Rloo
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import Recipe, load
from triptych.records import Comparison, Conversation, Document, Prompt, Rollout, Thumb, user


@pytest.fixture(scope="module")
def policies() -> list[Policy]:
    tokenizer = train_tokenizer([Document("the fox went to the river and the hen saw a red ball")], 300, 128)
    config = Pretraining(vocabulary=300, width=32, layers=2, heads=2, key_value_heads=1, context=128)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(architecture(config, tokenizer))
        model.set_attn_implementation(attention.NAME)
        made.append(Policy(model.eval(), tokenizer))
    return made


def written(policy: Policy) -> list[list[Rollout]]:
    prompts = [Prompt(user(text)) for text in ("the fox", "a red ball and the hen")]
    return policy.write(prompts, Sampling(12, seed=3), n=3)


def test_each_token_has_its_answers_advantage_and_its_own_logprobs(policies: list[Policy]) -> None:
    policy, reference = policies
    groups = [[replace(each, finished=True) for each in group] for group in written(policy)]
    groups[1][0] = replace(groups[1][0], finished=False)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    step = grpo.step(reference, Answers(groups, rewards), Grpo(group_size=3, micro_batch=64))
    position: dict[tuple[int, int], set[tuple[float, float]]] = {}
    for batch in step.batches:
        with torch.no_grad():
            ours, _ = answer_logprobs(policy.model, batch.packed)
            theirs, _ = answer_logprobs(reference.model, batch.packed)
        # The sampler may compute in bfloat16; a misplaced token would be off by more than a nat.
        torch.testing.assert_close(batch.sampler, ours, atol=0.1, rtol=0.1)
        torch.testing.assert_close(batch.reference, theirs, atol=0.1, rtol=0.1)
        for row, advantage, counted in zip(
            batch.packed.predictions.rows.tolist(), batch.advantages.tolist(), batch.counted.tolist(), strict=True
        ):
            position.setdefault((id(batch), row), set()).add((round(advantage, 3), counted))
    assert all(len(values) == 1 for values in position.values())
    assert {counted for values in position.values() for _, counted in values} == {1.0}
    advantages = sorted(advantage for values in position.values() for advantage, _ in values)
    assert advantages == [-1.154, -1.0, 0.0, 0.577, 0.577, 1.0]  # 4.5, 5 and 5
    finished = [rollout for group in groups for rollout in group if rollout.finished]
    assert step.weight == sum(len(rollout.tokens) for group in groups for rollout in group)
    assert step.numbers["cut"] == pytest.approx(1 - len(finished) / 6)
    masked = grpo.step(reference, Answers(groups, rewards), Grpo(group_size=3, micro_batch=64, cut_price=None))
    assert masked.weight == sum(len(rollout.tokens) for rollout in finished)


def test_a_cut_answer_pays_off_its_own_reward_where_code_checks_it(policies: list[Policy]) -> None:
    groups = written(policies[0])
    rewards = torch.arange(6.0).view(2, 3)
    answers = Answers(groups, rewards)
    own = Grpo(group_size=3, cut_reward="own", cut_price=0.25).learnt(answers)
    assert not answers.finished.all()
    torch.testing.assert_close(own, rewards - 0.25 * (~answers.finished))
    assert not torch.equal(own, Grpo(group_size=3, cut_price=0.25).learnt(answers))


def test_the_most_varied_rewards_are_those_of_the_best_subset() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        rewards = torch.rand(7, generator=generator).double()
        best = max(combinations(range(7), 4), key=lambda subset: float(rewards[list(subset)].var(correction=0)))
        assert tuple(most_varied(rewards, 4)) == best  # of all 35, not only of those that the theorem looks at
    assert most_varied(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5]), 2) in ([0, 1], [0, 3], [1, 2], [2, 3])


def test_a_step_learns_from_the_answers_that_vary_most(policies: list[Policy]) -> None:
    policy, reference = policies
    prompts = [Prompt(user(text)) for text in ("the fox", "a red ball and the hen")]
    groups = policy.write(prompts, Sampling(12, seed=3), n=4)
    rewards = torch.tensor([[0.1, 0.9, 0.4, 0.5], [0.3, 0.3, 0.3, 0.3]])
    config = Grpo(group_size=4, downsample=2, cut_reward="own", cut_price=0.0)
    kept = downsampled(Answers(groups, rewards, lines=[7, 8]), config)
    assert kept.groups == [groups[0][:2]]  # the other prompt's answers teach nothing
    assert kept.lines == [7]
    torch.testing.assert_close(kept.rewards, rewards[:1, :2])
    assert kept.numbers["reward"] == pytest.approx(float(rewards.mean()))  # the curve shows all that was written
    step = grpo.step(reference, kept, config)
    assert step.weight == sum(len(rollout.tokens) for rollout in groups[0][:2])
    torch.testing.assert_close(
        torch.cat([batch.reference for batch in step.batches]), torch.cat(reference.logprobs([groups[0][:2]]))
    )
    alike = Answers(groups, torch.zeros(2, 4))
    assert [len(group) for group in downsampled(alike, config).groups] == [2, 2]
    everything = Answers(groups, rewards)
    assert downsampled(everything, Grpo(group_size=4)) is everything
    with pytest.raises(ValidationError, match="downsample is 4 and group_size 4: give it a value below"):
        Grpo(group_size=4, downsample=4)


def test_a_policy_is_at_no_distance_from_itself_and_at_some_from_another(policies: list[Policy]) -> None:
    policy, other = policies
    groups = written(policy)
    assert divergence(policy, policy, groups) == 0
    assert divergence(policy, other, groups) > 0.1


def test_every_prompt_is_asked_before_one_is_asked_again() -> None:
    plan = passes(10, Improvement(steps=7, prompts_per_step=3), seed=5)
    asked = [prompt for step in plan for prompt in step]
    assert [len(step) for step in plan] == [3] * 7
    assert sorted(asked[:10]) == list(range(10))
    assert sorted(asked[10:20]) == list(range(10))


def test_every_prompt_is_asked_also_where_each_sampling_is_used_again() -> None:
    plan = passes(12, Improvement(steps=8, prompts_per_step=3, updates_per_rollout=2), seed=5)
    assert sorted(prompt for sampling in plan for prompt in sampling) == list(range(12))


def answer(tokens: list[int], finished: bool = True) -> Rollout:
    return Rollout(Prompt(user("p")), (1, 2), tuple(tokens), (-1.0,) * len(tokens), "", finished)


def test_pairs_are_best_against_worst_of_what_was_finished_and_differs() -> None:
    groups = [
        [answer([3]), answer([4, 5]), answer([6]), answer([7], finished=False)],
        [answer([3]), answer([4]), answer([5]), answer([6])],
        [answer([3]), answer([4], finished=False), answer([5], finished=False), answer([6], finished=False)],
        [answer([3]), answer([3]), answer([3]), answer([3])],
        [answer([3], finished=False)] * 4,
    ]
    rewards = torch.tensor([
        [0.5, -1.0, 0.0, 9.0],
        [2.0, 2.0, 2.0, 2.0],
        [2.0, 3.0, 4.0, 5.0],
        [2.0, 2.0, 2.5, 2.0],
        [2.0, 3.0, 4.0, 5.0],
    ])
    scored = Answers(groups, rewards)
    assert best_and_worst(scored) == [PairGroup((1, 2), [(3,), (4, 5)], [(0, 1)], [1.5])]
    # With a price an answer that was cut is a second, worse one; what finished alone has it for its only one.
    assert best_and_worst(scored, cut_price=0.5) == [
        PairGroup((1, 2), [(3,), (4, 5), (7,)], [(0, 1), (0, 2)], [1.5, 2.0]),
        PairGroup((1, 2), [(3,), (4,)], [(0, 1)], [0.5]),
    ]


def test_the_best_is_finished_and_has_the_highest_reward() -> None:
    groups = [
        [answer([3]), answer([4, 5]), answer([6], finished=False)],
        [answer([3], finished=False)] * 3,
    ]
    scored = Answers(groups, torch.tensor([[0.5, 1.0, 9.0], [1.0, 2.0, 3.0]]))
    assert best(scored) == [Best((1, 2), (4, 5))]
    assert best_of_n.step(scored, BestOfN(group_size=3)).weight == 2
    assert best_of_n.bound(1) == 0
    assert best_of_n.bound(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize(("kl", "factor"), [(2.0, 1.0), (2.2, 1.01), (9.0, 1.02), (0.0, 0.98)])
def test_the_price_of_distance_is_steered_to_a_target(kl: float, factor: float) -> None:
    config = Grpo(kl_coefficient=0.5, kl_target=2.0)
    assert steered(config, []) == 0.5
    assert steered(config, [{"beta": 0.5, "kl": kl}]) == pytest.approx(0.5 * factor)
    assert steered(config, [{"beta": 0.5, "kl": kl}, {"beta": 0.7, "kl": math.nan}]) == pytest.approx(0.5 * factor)
    assert steered(Grpo(kl_coefficient=0.5), [{"beta": 0.5, "kl": kl}]) == 0.5
    with pytest.raises(ValueError, match="0 stays 0"):
        Grpo(kl_coefficient=0, kl_target=2.0)


def test_distance_is_paid_once_in_the_loss_or_in_the_reward(policies: list[Policy]) -> None:
    policy, reference = policies
    groups, rewards = written(policy), torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    for kind in ("loss", "reward"):
        config = Grpo(group_size=3, kl_coefficient=0.5, kl_placement=kind)
        found = measured(reference, Answers(groups, rewards), config, [])
        price = paid(found, config)
        expected = 0.5 * (found.distances - found.distances.mean(dim=1, keepdim=True))
        torch.testing.assert_close(price, expected if kind == "reward" else torch.zeros_like(rewards))
        assert {batch.kl for batch in grpo.step(reference, Answers(groups, rewards), config).batches} \
            == {0.5 if kind == "loss" else 0.0}
    alone = float(sum(groups[1][2].logprobs) - reference.logprobs(groups)[5].sum())
    assert float(found.distances[1, 2]) == pytest.approx(alone, rel=1e-5)


def test_a_prompt_whose_answers_are_alike_is_asked_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    class Alike:
        """All answers of a call are alike, up to the third call."""

        name = identity = "alike"
        calls = 0

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            self.calls += 1
            return [float(place) if self.calls > 2 else 1.0 for place in range(len(conversations))]

    context = StageContext(tmp_path, tmp_path, Silent(), seed=3, checkpoint_seconds=60)

    def collected(resample: int) -> Answers:
        config = Grpo(**SMALL, resample_uniform_groups=resample, cut_price=None)
        loop = Loop(context, config, inputs["champion"], inputs["data"], Alike(), None, 1)
        return loop.collect(loop.policy, 0)

    never, once, often = collected(0), collected(1), collected(5)
    assert (never.numbers["alike"], once.numbers["alike"], often.numbers["alike"]) == (1, 1, 0)
    asked = [[rollout.tokens for group in found.groups for rollout in group] for found in (never, once, often)]
    assert asked[0] != asked[1] != asked[2]
    # The curve shows what the policy wrote, not what was chosen of it.
    assert often.numbers["length"] == never.numbers["length"]
    assert (often.numbers["reward"], float(often.rewards.mean())) == (1, 4)


def test_no_copy_of_the_policy_is_held_once_it_has_been_measured(inputs: dict[str, Any], tmp_path: Path) -> None:
    context = StageContext(tmp_path, tmp_path, Silent(), seed=3, checkpoint_seconds=60)
    loop = Loop(context, Grpo(**SMALL), inputs["champion"], inputs["data"], None, None, 1)
    sampler = SlotSampler()
    loop.policy = Policy(loop.policy.model, loop.policy.tokenizer, lambda: sampler)
    first = loop.measured(dict)
    assert sampler.model is None
    assert loop.measured(dict) == first  # it is handed over again when it is needed


def test_a_round_ends_at_the_first_policy_that_the_gate_would_turn_away(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    class Later:
        """A judge who likes each policy better than those before."""

        name = identity = "later"
        calls = 0.0

        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            self.calls += 1
            return [self.calls] * len(conversations)

    def ran(name: str, limits: Limits, steps: int = 6) -> tuple[Improved, list[dict[str, Any]], bytes]:
        output = tmp_path / name / "output"
        output.mkdir(parents=True)
        config = Dpo(pairs="comparisons", **SMALL | {"steps": steps, "eval_every": 1, "learning_rate": 1e-2})
        context = StageContext(output, tmp_path / name, Silent(), seed=3, checkpoint_seconds=60)
        metrics = improve(context, config, **inputs, judge=Later(), feedback=inputs["data"], limits=limits)
        return metrics, read_curve(output / "curve.jsonl"), (output / "model" / "model.safetensors").read_bytes()

    free, curve, _ = ran("free", UNLIMITED)
    assert (free.steps, free.kept, free.alarms) == (6, 6, ())
    distances = [row["validation_kl"] for row in curve]
    farther = next(step for step in range(2, 7) if distances[step] > max(distances[:step]))
    limit = (distances[farther] + max(distances[:farther])) / 2

    stopped, short, weights = ran("stopped", Limits(kl=limit))
    assert short == curve[: farther + 1]
    assert (stopped.steps, stopped.kept) == (farther, farther - 1)
    assert stopped.alarms[0].startswith(f"stopped at step {farther} of 6: ")
    _, _, before = ran("before", UNLIMITED, steps=farther - 1)
    assert weights == before


def test_a_value_head_learns_at_a_rate_of_its_own(policies: list[Policy]) -> None:
    model = policies[0].model
    ppo.attach(model)
    config = Ppo(learning_rate=1e-6, value_learning_rate=1e-2)
    groups = [group for optimizer in training._optimizers(model, config) for group in optimizer.param_groups]
    peaks = {name: group["peak"] for group in groups
             for name, weight in model.named_parameters() if any(weight is member for member in group["params"])}
    assert {name for name, peak in peaks.items() if peak == 1e-2} == {"value_head.weight", "value_head.bias"}
    assert set(peaks.values()) == {1e-6, 1e-2}
    ppo.detach(model)
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert ppo.explained_variance(returns, torch.zeros(3)) == pytest.approx(0)
    assert ppo.explained_variance(returns, returns + 1) == pytest.approx(1)


def test_a_value_head_is_trained_and_not_kept(inputs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=3, checkpoint_seconds=60)
    config = Ppo(**SMALL | {"steps": 12, "max_tokens": 24, "learning_rate": 1e-2}, value_weight=1.0)
    improve(context, config, **inputs, judge=None)
    curve = read_curve(tmp_path / "output" / "curve.jsonl")[1:]
    assert curve[-1]["value_error"] < 0.7 * curve[0]["value_error"]
    kept = load_file(tmp_path / "output" / "model" / "model.safetensors")
    assert not any("value" in name for name in kept)


def row(prompt: int, chosen: int, rejected: int, margin: float | None = None) -> TokenizedComparison:
    """Random tokens: the same number stands for the same ones, about as many as it says."""
    first, second, third = (tuple(some_tokens(2 + number % 7, number)) for number in (prompt, chosen, rejected))
    return TokenizedComparison(first, second, third, margin)


ROWS = [row(1, 13, 14), row(2, 15, 19), row(1, 14, 16), row(1, 13, 16), row(4, 23, 24)]


def test_a_prompts_comparisons_are_one_group_with_each_answer_once() -> None:
    groups = grouped(ROWS, range(1, 6))
    assert [len(group.answers) for group in groups] == [3, 2, 2]
    assert [group.pairs for group in groups] == [[(0, 1), (1, 2), (0, 2)], [(0, 1)], [(0, 1)]]
    assert [group.lines for group in groups] == [[1, 3, 4], [2], [5]]
    assert groups[0].tokens == sum(len(part) for part in (ROWS[0].prompt, ROWS[0].chosen, ROWS[0].rejected,
                                                          ROWS[2].rejected))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, so that numbers can be compared closely."""
    monkeypatch.setattr(device, "compute_dtype", lambda: torch.float32)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("micro_batch", "batches"), [(30, 2), (4096, 1)])
def test_dpos_loss_and_gradient_are_those_of_each_pair_alone(micro_batch: int, batches: int) -> None:
    plain, reference = tiny("llama", dtype=torch.float32), tiny("llama", dtype=torch.float32)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(0.9)
    expected = torch.zeros(())
    for each in ROWS:
        ratios = []
        for tokens in (each.chosen, each.rejected):
            prompt, answer_tokens = list(each.prompt), list(tokens)
            near = logprobs_alone(plain, prompt, answer_tokens).sum()
            ratios.append(near - logprobs_alone(reference, prompt, answer_tokens).sum().detach())
        expected = expected - torch.nn.functional.logsigmoid(0.3 * (ratios[0] - ratios[1])) / len(ROWS)
    expected.backward()

    model, config = with_our_attention(tiny("llama", dtype=torch.float32)), Dpo(kl_coefficient=0.3)
    step = dpo.step(with_our_attention(reference), grouped(ROWS, range(1, 6)), micro_batch)
    assert step.weight == len(ROWS)
    assert len(step.batches) == batches
    losses = [dpo.loss(model, batch, config).total for batch in step.batches]
    found = torch.stack(losses).sum() / step.weight
    found.backward()
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact")
def test_where_policy_and_reference_are_one_each_loss_has_its_value_at_zero() -> None:
    model = with_our_attention(tiny("llama", dtype=torch.float32))
    groups = [PairGroup((5, 6), [(7, 8), (9,)], [(0, 1)], [0.0]), PairGroup((6,), [(3,), (4, 4)], [(1, 0)], [0.0])]
    (batch,) = dpo.step(model, groups, 4096).batches
    values = {name: float(dpo.loss(model, batch, Dpo(loss=name, kl_coefficient=0.5)).total.detach()) / 2
              for name in ("dpo", "ipo", "rpo")}
    assert values == pytest.approx({"dpo": 0.6931472, "ipo": 1.0, "rpo": 0.0})


@pytest.mark.usefixtures("exact")
def test_the_chosen_answers_likelihood_is_a_mean_over_its_tokens() -> None:
    model = with_our_attention(tiny("llama", dtype=torch.float32))
    (batch,) = dpo.step(model, [PairGroup((5, 6), [(7, 8, 3), (9,)], [(0, 1)], [None])], 4096).batches
    assert batch.gap is None
    more = dpo.loss(model, batch, Dpo(nll=0.5)).total - dpo.loss(model, batch, Dpo()).total
    expected = -0.5 * logprobs_alone(tiny("llama", dtype=torch.float32), [5, 6], [7, 8, 3]).mean()
    torch.testing.assert_close(more, expected.float(), rtol=1e-5, atol=1e-6)


class Killed(Exception):  # noqa: N818 (it is no error)
    """What stands for the kill."""


WORDS = ["a small cat", "a red mat", "a dog", "the mat", "a cat saw", "a red dog", "on a mat", "saw a cat", "sat"]


@pytest.fixture(scope="module")
def inputs(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A champion, a reward model, prompts and comparisons."""
    tokenizer = load_tokenizer(policy_folder / "model")
    folder = tmp_path_factory.mktemp("improve")
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(policy_folder / "model", num_labels=1)
    reward = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(reward.score.weight)
    save(reward, tokenizer, folder / "reward" / "model")
    prompts = [Prompt(user(text)) for text in WORDS]
    data = folder / "data"
    data.mkdir()
    write(data / "prompts_improve.jsonl", prompts)
    write(data / "prompts_validation.jsonl", prompts[:8])
    rows = [Comparison(prompt, "a cat", "a red dog") for prompt in prompts]
    write(data / "thumbs.jsonl", [Thumb(prompt, "a cat" if up else "a red dog", up)
                                  for prompt in prompts for up in (True, False)])
    write(data / "comparisons_train.jsonl", [*rows, Comparison(prompts[0], "a mat", "a cat")])
    return {"champion": policy_folder, "data": data, "reward": RewardModel(folder / "reward" / "model")}


SMALL: dict[str, Any] = {
    "steps": 4, "prompts_per_step": 3, "group_size": 3, "max_tokens": 12, "eval_every": 2, "eval_prompts": 8,
    "learning_rate": 1e-3,
}
METHODS = {
    "grpo": (grpo, Grpo(**SMALL)),
    "dr_grpo": (grpo, Grpo(advantage="dr", clip_higher=0.3, kl_placement="reward", kl_target=0.01, **SMALL)),
    "cispo": (grpo, Grpo(objective="cispo", clip_higher=1.0, **SMALL)),
    "gspo": (gspo, Gspo(**SMALL)),
    "rloo": (rloo, Rloo(kl_target=0.01, **SMALL)),
    "ppo": (ppo, Ppo(**SMALL)),
    "best_of_n": (best_of_n, BestOfN(**SMALL | {"max_tokens": 120})),
    "sampled": (dpo, Dpo(**SMALL | {"group_size": 6, "max_tokens": 120})),  # so that some random answers do end
    "kto": (kto, Kto(**SMALL)),
    "comparisons": (dpo, Dpo(pairs="comparisons", loss="rpo", **SMALL)),
}


JUDGED = ("grpo", "ppo")
"""Those whose rounds a judge watches, so that the second of four steps is kept."""


class Turning:
    """A judge who likes the policy of the second step best, told by how often it was asked.

    Args:
        skip: how many of the watched steps lie in an earlier attempt.
    """

    name = identity = "turning"

    def __init__(self, skip: int = 0) -> None:
        self.scores = [0.5, *[0.9, 0.2][skip:]]

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [self.scores.pop(0)] * len(conversations)


def context_in(folder: Path) -> StageContext:
    """A context with an empty output, whose checkpoints are written behind every step."""
    shutil.rmtree(folder / "output", ignore_errors=True)
    (folder / "output").mkdir(parents=True)
    return StageContext(folder / "output", folder, Silent(), seed=3, checkpoint_seconds=0)


@dataclass(frozen=True)
class Whole:
    """A round that nothing ended early."""

    metrics: Improved
    output: Path

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The measurement before the first step, and every step."""
        return read_curve(self.output / "curve.jsonl")


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A method's round, made once."""

    @cache
    def made(name: str) -> Whole:
        context = context_in(tmp_path_factory.mktemp(name))
        _, config = METHODS[name]
        judge = Turning() if name in JUDGED else None
        return Whole(improve(context, config, **inputs, judge=judge, **more(name, inputs)), context.output)

    return made


def more(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a method learns from beside the prompts."""
    return {"feedback": inputs["data"]} if name == "comparisons" else {}


@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_measured_and_resumed_to_the_same_bits(
    name: str, whole: Callable[[str], Whole], inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name]
    judged = name in JUDGED
    metrics, output = whole(name).metrics, whole(name).output
    step, made = method.step, 0

    def killed(*given: Any) -> Any:
        nonlocal made
        made += 1
        if made == 3:
            raise Killed
        return step(*given)

    monkeypatch.setattr(method, "step", killed)
    with pytest.raises(Killed):
        improve(context_in(tmp_path), config, **inputs, judge=Turning() if judged else None, **more(name, inputs))
    monkeypatch.setattr(method, "step", step)
    # A run that goes on measures the reference again, and the first of the two steps that are watched no more.
    judge = Turning(skip=1) if judged else None
    assert improve(context_in(tmp_path), config, **inputs, judge=judge, **more(name, inputs)) == metrics
    assert metrics.watched_by == ("judge" if judged else "reward")

    for file in ("curve.jsonl", "model/model.safetensors", "validation.jsonl"):
        assert (output / file).read_bytes() == (tmp_path / "output" / file).read_bytes()
    scores = {row["step"]: row for row in read_curve(output / "validation.jsonl")}
    assert {("judge" in row, "reward" in row) for row in scores.values()} == {(judged, True)}
    start, *curve = whole(name).curve
    for row in (start, *(row for row in curve if "validation_reward" in row)):
        kept = scores[row["step"]]["reward"]
        assert sum(kept) / len(kept) == pytest.approx(row["validation_reward"], abs=1e-6)
    rewards = {row["step"]: row["validation_reward"] for row in curve if "validation_reward" in row}
    assert metrics.kept == (2 if judged or rewards[2] > rewards[4] else 4)
    watched = {"validation_reward", "validation_kl", "validation_length"}
    assert [watched <= row.keys() for row in (start, *curve)] == [True, False, True, False, True]
    assert start["validation_kl"] == 0
    assert curve[-1]["validation_kl"] != 0
    assert metrics.method == config.model_dump()["method"]


def test_pairs_of_sampled_answers_are_one_or_two_of_a_prompt(whole: Callable[[str], Whole]) -> None:
    metrics = whole("sampled").metrics
    assert metrics.answers == 4 * 3 * 6
    pairs, prompts = metrics.numbers["pairs"], 4 * 3 - metrics.numbers["left_out"]
    assert pairs > 0
    assert 0 < prompts <= pairs <= 2 * prompts


def test_every_comparison_is_a_pair(whole: Callable[[str], Whole]) -> None:
    # The first prompt has two, and comes once or twice in 12.
    assert whole("comparisons").metrics.numbers["pairs"] in (13, 14)


STEERED = [name for name, (_, config) in METHODS.items() if "kl_target" in config.model_fields_set]


@pytest.mark.parametrize("name", STEERED)
def test_a_kl_coefficient_is_steered_from_the_first_steps_distance_on(
    name: str, whole: Callable[[str], Whole]
) -> None:
    assert len({row["beta"] for row in whole(name).curve[1:]}) > 1


@pytest.mark.parametrize("name", ["sampled", "comparisons"])
def test_at_the_first_step_policy_and_reference_are_one(name: str, whole: Callable[[str], Whole]) -> None:
    first = next(row for row in whole(name).curve[1:] if row["step"] == 1)
    assert first["pairs"] > 0
    assert first["chosen"] == first["rejected"] == 0


@pytest.fixture(scope="module")
def gpt2_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with that family's dropout of a tenth everywhere."""
    tokenizer = load_tokenizer(policy_folder / "model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=256, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, summary_first_dropout=0.1,
    )
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    folder = tmp_path_factory.mktemp("gpt2")
    save(GPT2LMHeadModel(config), tokenizer, folder / "model")
    return folder


@pytest.mark.usefixtures("exact")
def test_a_policy_in_training_is_at_no_distance_from_itself_whatever_its_dropout(gpt2_folder: Path) -> None:
    policy, reference = (Policy.open(gpt2_folder / "model") for _ in range(2))
    groups = policy.write([Prompt(user(text)) for text in WORDS], Sampling(12, seed=3), n=2)
    policy.model.train()
    assert divergence(policy, reference, groups) == 0
    plain = GPT2LMHeadModel.from_pretrained(gpt2_folder / "model", attn_implementation=attention.NAME)
    assert abs(divergence(Policy(plain.train(), policy.tokenizer), reference, groups)) > 1e-3


def test_a_round_of_a_model_with_dropout_is_resumed_to_the_same_bits(
    gpt2_folder: Path, inputs: dict[str, Any], tmp_path: Path
) -> None:
    def ran(place: str, progress: Silent) -> bytes:
        (tmp_path / place / "output").mkdir(parents=True, exist_ok=True)
        context = StageContext(tmp_path / place / "output", tmp_path / place, progress, seed=3, checkpoint_seconds=0)
        improve(context, Grpo(**SMALL), **inputs | {"champion": gpt2_folder}, judge=None)
        return (tmp_path / place / "output" / "model" / "model.safetensors").read_bytes()

    with pytest.raises(Killed):
        ran("killed", Deadly())
    torch.manual_seed(11)  # a process that goes on has another random state
    assert ran("killed", Silent()) == ran("whole", Silent())


class Deadly(Silent):
    """Ends a round behind an update."""

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        if done == 3:
            raise Killed


@pytest.mark.parametrize("name", ["grpo", "cispo", "gspo", "ppo", "best_of_n", "sampled"])
def test_a_sampling_is_used_again_and_a_kill_between_its_updates_changes_nothing(
    name: str, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = METHODS[name]
    config = config.model_copy(update={"updates_per_rollout": 2, "steps": 5})
    calls = []
    collect = Loop.collect

    def counted(loop: Loop, author: Policy, step: int) -> Answers:
        calls.append(step)
        return collect(loop, author, step)

    monkeypatch.setattr(Loop, "collect", counted)

    def ran(place: str, progress: Silent) -> Improved:
        shutil.rmtree(tmp_path / place / "output", ignore_errors=True)
        (tmp_path / place / "output").mkdir(parents=True)
        context = StageContext(tmp_path / place / "output", tmp_path / place, progress, seed=3, checkpoint_seconds=0)
        return improve(context, config, **inputs, judge=None)

    metrics = ran("whole", Silent())
    assert calls == [0, 2, 4]
    assert metrics.answers == config.answers == 3 * 3 * config.group_size
    with pytest.raises(Killed):
        ran("killed", Deadly())
    assert ran("killed", Silent()) == metrics
    assert calls == [0, 2, 4, 0, 2, 2, 4]
    whole, again = tmp_path / "whole" / "output", tmp_path / "killed" / "output"
    for file in ("curve.jsonl", "model/model.safetensors"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()


def test_the_clips_act_on_a_sampling_that_is_used_again() -> None:
    sampler = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    logprobs = (sampler + torch.tensor([1.5, 1.5, 0.5, 1.0]).log()).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    unread: Any = None
    tokens = Tokens(unread, advantages, reference=logprobs.detach(), sampler=sampler, counted=torch.ones(4), kl=0.0)
    found = surrogate(logprobs, torch.zeros(4), tokens, Grpo(updates_per_rollout=2, ratio_clip=0.2, clip_higher=0.3))
    # min(ρA, clip(ρ)A): a good token that is likelier already is cut at 1.3, a bad one that is rarer already at 0.8.
    assert float(found.total.detach()) == pytest.approx(-(1.3 - 1.5 - 0.8 + 1.0), rel=1e-6)
    found.total.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 1.5, 0.0, -1.0]))
    assert float(found.numbers["clipped"]) == 3
    once = surrogate(logprobs, torch.zeros(4), tokens, Grpo(importance_cap=None))
    assert float(once.total.detach()) == pytest.approx(0.0, abs=1e-6)  # the ratio is 1: the policy is its own old one
    assert "clipped" not in once.numbers


def test_cispo_clips_the_weight_of_a_token_and_never_its_gradient() -> None:
    sampler = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    logprobs = (sampler + torch.tensor([1.5, 1.5, 0.5, 1.0]).log()).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    unread: Any = None
    tokens = Tokens(unread, advantages, reference=logprobs.detach(), sampler=sampler, counted=torch.ones(4), kl=0.0)
    config = Grpo(objective="cispo", updates_per_rollout=2, ratio_clip=0.2, clip_higher=0.3)
    found = surrogate(logprobs, torch.zeros(4), tokens, config)
    now = [math.log(ratio) - 1 for ratio in (1.5, 1.5, 0.5, 1.0)]
    expected = -1.3 * now[0] + 1.3 * now[1] + 0.5 * now[2] - now[3]
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-6)
    found.total.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.3, 1.3, 0.5, -1.0]))
    assert float(found.numbers["clipped"]) == 2


def test_ktos_loss_is_that_of_the_paper() -> None:
    ratios = torch.tensor([1.0, 1.0, -2.0]).requires_grad_()
    found = losses.kto(ratios, torch.tensor([True, False, False]), 0.5, beta=2.0, desirable=3.0, undesirable=0.5)
    sigmoid = [1 / (1 + math.exp(-gain)) for gain in (2 * 0.5, -2 * 0.5, 2 * 2.5)]
    expected = [3 * (1 - sigmoid[0]), 0.5 * (1 - sigmoid[1]), 0.5 * (1 - sigmoid[2])]
    torch.testing.assert_close(found.detach(), torch.tensor(expected))
    found.sum().backward()
    slopes = [s * (1 - s) for s in sigmoid]
    torch.testing.assert_close(ratios.grad, torch.tensor([-6 * slopes[0], slopes[1], slopes[2]]))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("micro_batch", [16, 4096])
def test_ktos_reference_point_is_the_mean_ratio_of_prompts_with_others_answers(micro_batch: int) -> None:
    plain = [tiny("llama", dtype=torch.float32) for _ in range(2)]
    with torch.no_grad():
        for weight in plain[1].parameters():
            weight.mul_(0.5)
    policy, reference = (with_our_attention(model) for model in plain)
    prompts, answers = [some_tokens(3, n) for n in (1, 2, 2)], [some_tokens(4, n) for n in (4, 5, 6)]
    rows = [Liked(tuple(p), tuple(a), True) for p, a in zip(prompts, answers, strict=True)]

    def mean(order: Sequence[int]) -> float:
        """Of each prompt with the answer of the row before it, but for the same prompt twice."""
        nats = []
        for before, here in zip([order[-1], *order[:-1]], order, strict=True):
            if prompts[before] != prompts[here]:
                near, far = (logprobs_alone(model, prompts[here], answers[before]).sum()
                             for model in plain)
                nats.append(float(near - far))
        assert len(nats) == 2
        return sum(nats) / 2

    found = kto.distance(policy, reference, rows, micro_batch)
    assert found == pytest.approx(max(0.0, mean([0, 1, 2])), rel=1e-4)
    other = kto.distance(reference, policy, rows, micro_batch)
    assert other == pytest.approx(max(0.0, -mean([0, 1, 2])), rel=1e-4)
    assert (found > 0) != (other > 0)
    assert kto.distance(policy, policy, rows, micro_batch) == 0
    assert kto.distance(policy, reference, rows[1:], micro_batch) == 0  # one prompt alone


def test_gspo_clips_an_answer_by_its_own_ratio() -> None:
    packed = pack_answers([((1, 2), [(3, 4), (5,)]), ((1,), [(6, 7, 8)])], "cpu")
    ratios = torch.tensor([1.5, 0.6, 1.2, 2.0, 1.0, 1.0])  # of answers of 2, 1 and 3 tokens
    sampler = torch.full((6,), -1.0)
    logprobs = (sampler + ratios.log()).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    tokens = Tokens(packed, advantages, reference=logprobs.detach(), sampler=sampler, counted=torch.ones(6), kl=0.0)
    config = Gspo(updates_per_rollout=2, ratio_clip=0.1, clip_higher=0.2)
    found = surrogate(logprobs, torch.zeros(6), tokens, config, by_answer=True)
    # √0.9 is within; 1.2, of a bad answer, has its gradient; ∛2 is cut at 1.2.
    assert float(found.total.detach()) == pytest.approx(-math.sqrt(0.9) + 1.2 - 1.2, rel=1e-5)
    found.total.backward()
    half = math.sqrt(0.9) / 2
    torch.testing.assert_close(logprobs.grad, torch.tensor([-half, -half, 1.2, 0.0, 0.0, 0.0]))
    assert float(found.numbers["clipped"]) == 3  # the tokens of the last answer; the second lies on the edge


def test_dpo_learns_what_it_is_shown(inputs: dict[str, Any], tmp_path: Path) -> None:
    config = Dpo(pairs="comparisons", **SMALL | {"steps": 30, "learning_rate": 1e-2, "eval_every": 30})
    (tmp_path / "output").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=3, checkpoint_seconds=60)
    improve(context, config, **inputs, judge=None, feedback=inputs["data"])
    curve = read_curve(tmp_path / "output" / "curve.jsonl")[1:]
    assert curve[-1]["loss"] < 0.2 < 0.69 < curve[0]["loss"] + 0.01
    assert curve[-1]["accuracy"] == 1


def recipe(folder: Path, section: str, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: tiny\nstorybook: {{}}\nbase: {{train: {{}}}}\nfeedback: [{{exact: {{}}}}]\ngate: {{judge: exact}}\n"
        f"improve: {section}\n", encoding="utf-8",
    )
    return load(path, overrides)


def test_a_recipe_chooses_its_method_and_grpo_without_a_choice(tmp_path: Path) -> None:
    assert isinstance(recipe(tmp_path, "{kl_coefficient: 0.1}").improve.method, Grpo)
    assert isinstance(recipe(tmp_path, "{method: dpo, loss: ipo}").improve.method, Dpo)
    chosen = recipe(tmp_path, "{rounds: 2, steps: 7}", "improve.method=dpo", "improve.kl_coefficient=0.3").improve
    assert isinstance(chosen.method, Dpo)
    assert (chosen.rounds, chosen.method.steps, chosen.method.kl_coefficient) == (2, 7, 0.3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{method: sft}", "recipe.yaml:6: improve: method must be one of grpo, gspo, rloo, ppo, dpo, kto, "
         "best_of_n, got 'sft'"),
        ("{kl_coefficient: -1}", "recipe.yaml:6: improve.kl_coefficient: must be a number at least 0, got -1"),
        ("{nll: 0.2}", "recipe.yaml:6: improve.nll: unknown field; it does not go with the other fields here"),
        ("{method: dpo, ratio_clip: 1}", "recipe.yaml:6: improve.ratio_clip: unknown field; "),
        ("{method: dpo, los: ipo}", "recipe.yaml:6: improve.los: unknown field; did you mean loss?"),
        ("{method: dpo, kl_coefficient: 0}", "recipe.yaml:6: improve.kl_coefficient: must be a number greater than 0, "
         "got 0"),
    ],
)
def test_a_wrong_field_is_named_in_its_methods_terms(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, section)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_only_dpo_on_comparisons_depends_on_them(tmp_path: Path) -> None:
    texts = ("{}", "{method: dpo}", "{method: dpo, pairs: comparisons}")
    stages = [stage for text in texts for stage in plan(recipe(tmp_path, text)) if stage.work is improve]
    assert [type(stage.config) for stage in stages] == [Grpo, Dpo, Dpo]
    assert [set(stage.parents) for stage in stages] == [
        {"champion", "data", "reward"}, {"champion", "data", "reward"}, {"champion", "data", "reward", "feedback"},
    ]


def test_a_reward_or_log_probability_that_is_not_finite_skips_the_step(policies: list[Policy]) -> None:
    policy, reference = policies
    groups = written(policy)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, float("nan"), 5.0]])
    config = Grpo(group_size=3, micro_batch=64)
    assert grpo.step(reference, Answers(groups, rewards), config).fault == "reward"
    assert grpo.step(reference, Answers(groups, rewards.nan_to_num()), config).fault is None
    impossible = replace(groups[1][2], logprobs=(*groups[1][2].logprobs[:-1], -math.inf))
    groups[1] = [*groups[1][:2], impossible]
    step = grpo.step(reference, Answers(groups, rewards.nan_to_num()), config)
    assert step.fault == "sampler's log-probability"


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_not_left_out_with_the_answers_that_vary_least(strange: float) -> None:
    groups = [[answer([3 + place]) for place in range(4)] for _ in range(2)]
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, strange, 5.0, 6.0]])
    assert downsampled(Answers(groups, rewards), Grpo(group_size=4, downsample=2)).fault == "reward"


def test_the_validation_reward_of_a_cut_answer_is_what_is_learnt_from(policies: list[Policy]) -> None:
    groups = [[answer([3])], [answer([4], finished=False)], [answer([5])]]
    given = Answers([[group[0] for group in groups]], torch.tensor([[1.0, 9.0, 2.0]]))
    assert Grpo(cut_price=0.5).learnt(given).tolist() == [[1.0, 0.5, 2.0]]
    assert Grpo(cut_price=0.5, cut_reward="own").learnt(given).tolist() == [[1.0, 8.5, 2.0]]


class Faulty:
    """A reward model whose second batch of scores has one that is no number."""

    name = identity = "faulty"

    def __init__(self) -> None:
        self.batches = 0

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        self.batches += 1
        scores = [float(len(each.answer)) for each in conversations]
        return [math.nan, *scores[1:]] if self.batches == 3 else scores  # the first batch is the watch's


@pytest.mark.parametrize("kind", [Grpo, Dpo])
def test_a_round_goes_on_behind_a_reward_that_is_no_number(kind: Any, policy_folder: Path, tmp_path: Path) -> None:
    for name in ("improve", "validation"):
        write(tmp_path / f"prompts_{name}.jsonl", [Prompt(user(f"a {word} cat")) for word in ("small", "red", "sat")])
    (tmp_path / "output").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    config = kind(
        resample_uniform_groups=0, steps=3, prompts_per_step=2, group_size=2, max_tokens=4, eval_every=9,
        learning_rate=1e-4,
    )
    improve(context, config, policy_folder, tmp_path, Faulty(), judge=None)
    curve = read_curve(tmp_path / "output" / "curve.jsonl")
    assert [row.get("skipped") for row in curve] == [None, 0, 1, 0]
    assert curve[2]["fault"] == "reward"
    assert len(curve[2]["rows"]) == 2
    assert set(curve[2]["rows"]) <= {1, 2, 3}
    assert ("sampler_mismatch" in curve[3]) == (kind is Grpo)
    assert all(math.isfinite(value) for value in curve[3].values())
