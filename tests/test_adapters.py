"""Adapters: they begin as nothing, only they learn, and what is kept is a plain model that computes the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from conftest import some_tokens, tiny, with_our_attention
from test_distributed import FINETUNING, GRPO, REWARD, adapted, context, write_data
from triptych.base.pretraining import Pretraining
from triptych.engine import attention, training
from triptych.engine.adapters import Lora, adapt, learnt_adapters, plain_copy, take_over
from triptych.engine.checkpoint import Checkpoint
from triptych.engine.curve import read_curve
from triptych.engine.device import autocast
from triptych.engine.forward import answer_logprobs, head_outputs, pack_answers
from triptych.engine.inspection import trunk_of
from triptych.engine.models import load_policy, load_reward
from triptych.engine.packing import Pack, Segment
from triptych.engine.scoring import RewardModel
from triptych.engine.training import Optimization
from triptych.errors import ModelError
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import finetune
from triptych.progress import Silent
from triptych.reward.training import train_reward

ROWS = [(some_tokens(7, 1), [some_tokens(5, 2), some_tokens(9, 3)]), (some_tokens(4, 4), [some_tokens(6, 5)])]


def model_of(family: str = "llama", **more: Any) -> Any:
    return with_our_attention(tiny(family, dtype=torch.float32, **more))


@torch.no_grad()
def logprobs(model: Any) -> Tensor:
    with autocast():
        return answer_logprobs(model, pack_answers(ROWS, "cpu"))[0]


def merged(model: Any, trunk: Any) -> Any:
    """The plain model that what it has learnt makes of its trunk."""
    plain = copy.deepcopy(trunk)
    learnt_adapters(model).add_to(plain)
    learnt_adapters(model).give_head(plain)
    return plain


def learn_something(model: Any) -> None:
    """Gives the adapters values that training could have given them."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.copy_(0.2 * torch.randn_like(weight))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_fresh_adapter_changes_nothing(family: str) -> None:
    model = model_of(family)
    before = logprobs(model)
    state = torch.random.get_rng_state()
    adapt(model, Lora(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logprobs(model), before)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_merged_and_sampled_from_is_the_adapted_model(family: str) -> None:
    model, plain = model_of(family), model_of(family)
    adapt(model, Lora(rank=4), seed=1)
    learn_something(model)
    expected = logprobs(model)
    assert float((expected - logprobs(plain)).abs().max()) > 0.1
    sampler = plain_copy(model, torch.float32)
    take_over(sampler, model)
    for other in (merged(model, plain), sampler):
        torch.testing.assert_close(logprobs(other), expected, rtol=0, atol=1e-5)
        assert list(other.state_dict()) == list(plain.state_dict())
        assert not any(type(part).__module__.startswith("peft") for part in other.modules())
        assert not hasattr(other, "peft_config")


def test_only_adapters_and_a_reward_head_are_trained_and_saved(tmp_path: Path) -> None:
    model = model_of(reward=True)
    adapt(model, Lora(rank=4, targets=("q_proj", "v_proj")), seed=1)
    named = {name for name, weight in model.named_parameters() if weight.requires_grad}
    parts = [f"model.layers.{i}.self_attn.{which}_proj" for i in (0, 1) for which in "qv"]
    assert named == {"score.weight"} | {f"{part}.lora_{which}.default.weight" for part in parts for which in "AB"}
    optimizers = training._optimizers(model, Optimization(learning_rate=0.1))
    assert sum(len(group["params"]) for group in optimizers[0].param_groups) == len(named)
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0)
    checkpoint.save(model, optimizers, {"curve": []})
    assert torch.load(checkpoint.path)["model"].keys() == named
    learn_something(model)
    changed = {name: weight.clone() for name, weight in model.named_parameters()}
    assert checkpoint.restore(model, optimizers) == {"curve": []}
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, changed[name])} \
        == named - {"score.weight"}


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_were_added_are_trained_and_no_other_row_is(tied: bool) -> None:
    """Two new tokens start alike; without their rows a model would give both the same probability for ever."""
    plain = model_of(tied=tied)
    start, end = plain.config.vocab_size - 2, plain.config.vocab_size - 1
    with torch.no_grad():
        for table in {layer.weight for layer in (plain.get_input_embeddings(), plain.get_output_embeddings())}:
            table[[start, end]] = table[:start].mean(0)
    plain.config.added_tokens = [start, end]
    model = copy.deepcopy(plain)
    adapt(model, Lora(rank=2), seed=1)
    packed = pack_answers([([3, 4, start], [[5, 6, end]])], "cpu")
    training.train(
        model, 12, lambda step: training.Step([packed], 3.0),
        lambda batch: training.Loss(-answer_logprobs(model, batch)[0].sum()),
        Optimization(learning_rate=0.05, weight_decay=0.5), checkpoint=None, progress=Silent(),
    )
    after = merged(model, plain)
    with torch.no_grad():
        both, _ = answer_logprobs(after, pack_answers([([3, 4, start], [[5, 6, end], [5, 6, start]])], "cpu"))
    assert float(both[2] - both[5]) > 0.1
    for layer, old in (
        (after.get_input_embeddings(), plain.get_input_embeddings()),
        (after.get_output_embeddings(), plain.get_output_embeddings()),
    ):
        moved = (layer.weight != old.weight).any(dim=1).nonzero()[:, 0].tolist()
        assert end in moved or layer is after.get_input_embeddings()
        assert set(moved) <= {start, end}
    assert (after.get_input_embeddings().weight is after.get_output_embeddings().weight) is tied


@pytest.mark.usefixtures("float32")
def test_every_stage_learns_with_adapters_and_leaves_these_alone(policy_folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    finetune(context(tmp_path, "instruct"), adapted(FINETUNING), policy_folder, tmp_path)
    train_reward(context(tmp_path, "reward"), adapted(REWARD), policy_folder, tmp_path)
    scorer = RewardModel(tmp_path / "reward" / "output" / "model")
    improve(context(tmp_path, "improve"), adapted(GRPO), policy_folder, tmp_path, scorer, judge=None)
    before = load_policy(policy_folder / "model")
    for stage in ("instruct", "reward"):
        losses = [row["loss"] for row in read_curve(tmp_path / stage / "output" / "curve.jsonl") if "loss" in row]
        assert losses[-1] < losses[0]
    for stage in ("instruct", "reward", "improve"):
        output = tmp_path / stage / "output"
        after: Any = load_reward(output / "model", fresh=False) if stage == "reward" else load_policy(output / "model")
        assert "peft" not in (output / "model" / "config.json").read_text()
        assert [path.name for path in (output / "model").glob("*.safetensors")] == ["adapter_model.safetensors"]
        assert trunk_of(output / "model") == (policy_folder / "model").resolve()
        changes = {
            name: weight - before.get_parameter(name) for name, weight in after.named_parameters()
            if name != "score.weight"
        }
        changes = {name: change for name, change in changes.items() if change.any()}
        assert changes.keys() == {
            name for name, weight in before.named_parameters() if ".layers." in name and weight.ndim == 2
        }
        for name, change in changes.items():
            assert torch.linalg.matrix_rank(change, atol=1e-6) <= 4, (stage, name)


@pytest.mark.usefixtures("float32")
def test_an_adapted_reward_model_scores_as_the_merged_one() -> None:
    plain = model_of(reward=True)
    model = copy.deepcopy(plain)
    adapt(model, Lora(rank=4), seed=1)
    learn_something(model)
    with torch.no_grad():
        model.score.weight.mul_(2)
        pack = Pack([Segment(some_tokens(5, 1)), Segment(some_tokens(8, 2))], "cpu")
        mine, theirs = (head_outputs(each, pack)[:, 0] for each in (model, merged(model, plain)))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_no_adapter_leaves_the_model_alone() -> None:
    model = model_of()
    adapt(model, None, seed=1)
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.config._attn_implementation == attention.NAME


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no linear layer 'qproj'; it has .*q_proj"):
        adapt(model_of(), Lora(targets=("qproj",)), seed=1)
    with pytest.raises(ValidationError, match="leave out muon or lora"):
        Optimization(learning_rate=0.1, muon_learning_rate=0.02, lora=Lora())
    with pytest.raises(ValidationError, match="a Base from scratch is trained whole"):
        Pretraining(muon_learning_rate=None, lora=Lora())
