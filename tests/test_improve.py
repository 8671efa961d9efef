"""What an update of GRPO is computed from: each token has its answer's advantage and its own log-probabilities."""

import math
from dataclasses import replace

import pytest
import torch

from triptych.base.pretraining import Pretraining, architecture
from triptych.base.tokenizer import train_tokenizer
from triptych.data.files import write
from triptych.engine import attention
from triptych.engine.curve import read_curve
from triptych.engine.forward import answer_logprobs
from triptych.engine.generation import Sampling
from triptych.engine.rollout import Policy, divergence
from triptych.improve.grpo import Grpo, _plan, _step, improve
from triptych.pipeline.stage import Desk
from triptych.progress import Silent
from triptych.records import Document, Prompt, user


@pytest.fixture(scope="module")
def policies():
    from transformers import LlamaForCausalLM

    tokenizer = train_tokenizer([Document("the fox went to the river and the hen saw a red ball")], 300, 128)
    config = Pretraining(vocabulary=300, width=32, layers=2, heads=2, key_value_heads=1, context=128)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(architecture(config, tokenizer))
        model.set_attn_implementation(attention.NAME)
        made.append(Policy(model.eval(), tokenizer))
    return made


def written(policy):
    prompts = [Prompt(user(text)) for text in ("the fox", "a red ball and the hen")]
    return policy.write(prompts, Sampling(12, seed=3), n=3)


def test_each_token_has_its_answers_advantage_and_its_own_logprobs(policies):
    policy, reference = policies
    groups = written(policy)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    step = _step(policy, reference, groups, rewards, Grpo(group=3, micro_batch=64))
    position = {}
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
    advantages = sorted(advantage for values in position.values() for advantage, _ in values)
    assert advantages == [-1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    finished = [rollout for group in groups for rollout in group if rollout.finished]
    assert step.weight == max(1, sum(len(rollout.tokens) for rollout in finished))
    assert step.numbers["cut"] == pytest.approx(1 - len(finished) / 6)


def test_a_policy_is_at_no_distance_from_itself_and_at_some_from_another(policies):
    policy, other = policies
    groups = written(policy)
    assert divergence(policy, policy, groups) == 0
    assert divergence(policy, other, groups) > 0.1


def test_every_prompt_is_asked_before_one_is_asked_again():
    plan = _plan(10, Grpo(steps=7, prompts_per_step=3), seed=5)
    asked = [prompt for step in plan for prompt in step]
    assert [len(step) for step in plan] == [3] * 7
    assert sorted(asked[:10]) == list(range(10))
    assert sorted(asked[10:20]) == list(range(10))


def test_a_reward_or_log_probability_that_is_not_finite_skips_the_step(policies):
    policy, reference = policies
    groups = written(policy)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, float("nan"), 5.0]])
    config = Grpo(group=3, micro_batch=64)
    assert _step(policy, reference, groups, rewards, config).fault == "reward"
    assert _step(policy, reference, groups, rewards.nan_to_num(), config).fault is None
    impossible = replace(groups[1][2], logprobs=(*groups[1][2].logprobs[:-1], -math.inf))
    groups[1] = [*groups[1][:2], impossible]
    assert _step(policy, reference, groups, rewards.nan_to_num(), config).fault == "sampler's log-probability"


class Faulty:
    """A reward model whose second batch of scores has one that is no number."""

    name = identity = "faulty"

    def __init__(self):
        self.batches = 0

    def score(self, conversations):
        self.batches += 1
        scores = [float(len(each.answer)) for each in conversations]
        return [math.nan, *scores[1:]] if self.batches == 3 else scores  # the first batch is the watch's


def test_grpo_goes_on_behind_a_reward_that_is_no_number(policy_folder, tmp_path):
    for name in ("improve", "validation"):
        write(tmp_path / f"prompts_{name}.jsonl", [Prompt(user(f"a {word} cat")) for word in ("small", "red", "sat")])
    (tmp_path / "output").mkdir()
    desk = Desk(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    config = Grpo(steps=3, prompts_per_step=2, group=2, max_tokens=4, watch_every=9, learning_rate=1e-4)
    improve(desk, config, policy_folder, tmp_path, Faulty(), judge=None)
    curve = read_curve(tmp_path / "output" / "curve.jsonl")
    assert [row.get("skipped") for row in curve] == [None, 0, 1, 0]
    assert curve[2]["fault"] == "reward"
    assert len(curve[2]["rows"]) == 2
    assert set(curve[2]["rows"]) <= {1, 2, 3}
    assert math.isfinite(curve[3]["sampler_mismatch"])
