"""What nothing trains is held once: the same numbers to the bit, the same tensors in every model of a folder."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import some_tokens, tiny
from test_packed_parity import theirs
from triptych.audit.consistency import PlainModel
from triptych.data.template import padded
from triptych.engine import attention, trunk
from triptych.engine.adapters import Lora, adapt
from triptych.engine.device import autocast, compute_dtype
from triptych.engine.forward import answer_logprobs, head_outputs, pack_answers
from triptych.engine.models import cast, load_policy, load_reward, load_tokenizer, save
from triptych.engine.scoring import RewardModel
from triptych.records import Conversation, Prompt

ROWS = [(some_tokens(7, 1), [some_tokens(5, 2), some_tokens(9, 3)]), (some_tokens(4, 4), [some_tokens(6, 5)])]


@pytest.fixture
def folder(request: pytest.FixtureRequest, policy_folder: Path, tmp_path: Path) -> Path:
    """A model of a family, tied or not, whose weights are none that bfloat16 holds."""
    family, tied, reward = request.param
    model = tiny(family, tied=tied, reward=reward, dtype=torch.float32)
    save(model, load_tokenizer(policy_folder / "model"), tmp_path / "model")
    return tmp_path / "model"


def policy(folder: Path, **more: Any) -> Any:
    return load_policy(folder, attention=attention.NAME, **more)


@torch.no_grad()
def logprobs(model: Any) -> Tensor:
    with autocast():
        return answer_logprobs(model, pack_answers(ROWS, "cpu"))[0]


@torch.no_grad()
def rewards(model: Any) -> Tensor:
    with autocast():
        return head_outputs(model, pack_answers(ROWS, "cpu").pack)


def storages(model: Any) -> set[int]:
    return {weight.untyped_storage().data_ptr() for weight in model.parameters()}


def size(model: Any) -> int:
    held = {weight.data_ptr(): weight.numel() * weight.element_size() for weight in model.parameters()}
    return sum(held.values())


@pytest.mark.parametrize(
    "folder", [(family, tied, False) for family in ("llama", "qwen3", "gemma2") for tied in (True, False)],
    indirect=True, ids=str,
)
def test_a_frozen_policy_gives_the_same_logprobs_to_the_bit_and_holds_less(folder: Path) -> None:
    whole, frozen = policy(folder), policy(folder, frozen=True)
    assert torch.equal(logprobs(frozen), logprobs(whole))
    assert (size(frozen) < size(whole)) == (compute_dtype() != torch.float32)
    embeddings = frozen.get_input_embeddings().weight
    tied = frozen.config.tie_word_embeddings
    assert embeddings.dtype == torch.float32
    assert (frozen.get_output_embeddings().weight is embeddings) == tied
    assert not any(weight.requires_grad for weight in frozen.parameters())


@pytest.mark.parametrize("folder", [("llama", True, True), ("qwen3", False, True)], indirect=True, ids=str)
def test_a_frozen_reward_gives_the_same_rewards_to_the_bit(folder: Path) -> None:
    whole, frozen = (load_reward(folder, fresh=False, attention=attention.NAME, frozen=part) for part in (False, True))
    assert torch.equal(rewards(frozen), rewards(whole))


@pytest.mark.parametrize("folder", [("llama", True, False)], indirect=True, ids=str)
def test_models_of_one_folder_are_one_trunk(folder: Path) -> None:
    reference, judge = policy(folder, frozen=True), policy(folder, frozen=True)
    assert storages(reference) == storages(judge)
    adapted = policy(folder)
    adapt(adapted, Lora(rank=2), 0, folder)
    reward = load_reward(folder, fresh=True, attention=attention.NAME)
    adapt(reward, Lora(rank=2), 0, folder)
    for model in (adapted, reward):
        own = {id(weight) for weight in model.parameters() if weight.requires_grad}
        assert storages(reference) <= storages(model)
        assert {id(weight) for weight in model.parameters()} - own == {id(weight) for weight in reference.parameters()}
    assert torch.equal(logprobs(adapted), logprobs(reference))


@pytest.mark.parametrize("folder", [("llama", True, False)], indirect=True, ids=str)
def test_adapters_learn_beside_a_reference_that_stays_as_it_is(folder: Path) -> None:
    reference, model = policy(folder, frozen=True), policy(folder)
    before = logprobs(reference)
    adapt(model, Lora(rank=2), 0, folder)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(2):
        with autocast():
            loss = -answer_logprobs(model, pack_answers(ROWS, "cpu"))[0].sum()
        loss.backward()
        optimizer.step()
    assert torch.equal(logprobs(reference), before)
    assert not torch.equal(logprobs(model), before)


def rewrite(folder: Path, held: Any) -> None:
    model = load_policy(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    save(model, load_tokenizer(folder), folder)


def write_to(folder: Path, held: Any) -> None:
    with torch.no_grad():
        for weight in held.parameters():
            weight.mul_(2)


@pytest.mark.parametrize("folder", [("llama", True, False)], indirect=True, ids=str)
@pytest.mark.parametrize("change", [rewrite, write_to])
def test_what_was_changed_is_not_shared(change: Callable[[Path, Any], None], folder: Path) -> None:
    held = policy(folder, frozen=True)
    change(folder, held)
    anew = policy(folder, frozen=True)
    assert storages(anew).isdisjoint(storages(held))
    assert torch.equal(logprobs(anew), logprobs(policy(folder)))


@pytest.mark.parametrize("folder", [("llama", True, False)], indirect=True, ids=str)
def test_what_no_model_holds_is_let_go(folder: Path) -> None:
    gc.collect()
    before = len(trunk._held)
    held = policy(folder, frozen=True)
    assert len(trunk._held) == before + len(list(held.parameters()))
    del held
    gc.collect()
    assert len(trunk._held) == before


@pytest.mark.parametrize("folder", [("llama", True, False), ("gemma2", False, False)], indirect=True, ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_is_never_whole_in_float32(folder: Path, stored: torch.dtype) -> None:
    cast(folder, stored)
    below, frozen, whole = policy(folder, merged=False), policy(folder, frozen=True), policy(folder)
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert [model.get_parameter(matrix).dtype for model in (below, frozen, whole)] == [
        stored, compute_dtype(), torch.float32
    ]
    for model in (below, frozen):
        assert model.get_input_embeddings().weight.dtype == torch.float32
        assert model.get_parameter("model.norm.weight").dtype == torch.float32
        assert model.config._attn_implementation == attention.NAME  # compared in float32, not in what is stored
    assert torch.equal(logprobs(frozen), logprobs(whole))
    adapt(below, Lora(rank=2), 0, folder)
    assert torch.equal(logprobs(below), logprobs(whole))


@pytest.mark.parametrize("family", ["gpt_oss", "lfm2", "mamba"])
def test_a_model_that_does_not_pack_is_whole_in_float32(family: str, policy_folder: Path, tmp_path: Path) -> None:
    folder = theirs(family, policy_folder, tmp_path)
    cast(folder, torch.bfloat16)
    for model in (policy(folder, merged=False), policy(folder, frozen=True)):
        assert model.config._attn_implementation != attention.NAME
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_reward_in_bfloat16_is_scored_in_float32_without_a_copy_in_float32(
    family: str, policy_folder: Path, tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(policy_folder / "model"), tiny(family, reward=True, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    save(model, tokenizer, tmp_path, dtype=torch.bfloat16)
    rows = [Conversation(Prompt.of(text), "A dog.") for text in ("Who?", "What is red?")]
    precise, plain = RewardModel(tmp_path, precise=True), load_reward(tmp_path, fresh=False)
    batch = padded(tokenizer, rows, "right")
    with torch.no_grad():
        theirs = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
    assert precise.raw(rows) == pytest.approx(theirs, abs=1e-5)
    assert PlainModel(precise).score(rows) == pytest.approx(theirs, abs=1e-5)
    assert size(precise.model) < size(plain) or compute_dtype() == torch.float32
