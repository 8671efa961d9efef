"""Four bits a number: a Base is rounded once, and from there on no number depends on how it is held."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from conftest import some_tokens, tiny
from test_check import write_recipe
from test_distributed import FINETUNING, GRPO, REWARD, adapted, context, write_data
from test_trunk import logprobs, policy, rewards, size
from triptych.base.pretrained import BaseImport, import_base
from triptych.cycle import plan
from triptych.engine import attention, nf4
from triptych.engine.adapters import Lora, adapt, plain_copy, take_over
from triptych.engine.device import autocast, compute_dtype
from triptych.engine.inspection import ADAPTER_WEIGHTS
from triptych.engine.models import cast, load_policy, load_reward, load_tokenizer, save
from triptych.engine.nf4 import BLOCK, SHARES, Nf4Tensor, holds_nf4, pack, round_to_nf4
from triptych.engine.rollout import Policy, sampler_mismatch
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.engine.trunk import linear_layers, quantize
from triptych.errors import RecipeError
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import finetune
from triptych.preflight import memory
from triptych.preflight.costs import Machine, Texts, costs
from triptych.preflight.memory import Architecture
from triptych.recipe import load
from triptych.records import Message, Prompt
from triptych.reward.training import train_reward

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Base that was taken with `quantization: nf4`."""
    place = tmp_path_factory.mktemp("nf4")
    save(tiny("llama", tied=False, dtype=torch.float32), load_tokenizer(policy_folder / "model"), place / "theirs")
    config = BaseImport(name="theirs", quantization="nf4")
    stage = context(place, "base")
    record = import_base(stage, config, place, {"theirs": place / "theirs"})
    assert record.source_dtype == "bfloat16"
    assert any("matrices rounded to NF4" in change for change in record.changes)
    return stage.output / "model"


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has what is loaded from now on not held in four bits."""
    return lambda: monkeypatch.setattr("triptych.engine.trunk.pack", lambda matrix: None)


@pytest.mark.parametrize("shape", [(64, 128), (5, 26), (1, 64)])
def test_rounding_is_to_sixteen_shares_of_a_blocks_largest_number_and_a_second_one_changes_nothing(
    shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rounded = round_to_nf4(matrix)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(round_to_nf4(rounded), rounded)
    for block, original in zip(rounded.flatten().split(BLOCK), matrix.flatten().split(BLOCK), strict=True):
        assert block.unique().numel() <= SHARES
        largest = float(original.abs().max())
        assert float(block.abs().max()) == pytest.approx(largest, rel=2**-8)
        # The widest gap between two shares is that between -1 and -0.696; the rest is bfloat16's.
        assert float((block.float() - original).abs().max()) <= largest * (0.304 / 2 + 2**-7)


def test_a_rounded_model_holds_its_matrices_in_bfloat16() -> None:
    model = tiny("llama", tied=False, dtype=torch.float32)
    layers = [layer for _, layer in linear_layers(model)]
    assert quantize(model) == len(layers)
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_what_is_not_the_same_in_four_bits_is_not_held_so() -> None:
    matrix = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert pack(matrix) is None
    rounded = round_to_nf4(matrix)
    held = pack(rounded)
    assert held is not None
    assert torch.equal(held.unpacked(), rounded)
    assert held.held == rounded.numel() // 2 + 2 * rounded.numel() // BLOCK
    rounded[-1, -1] *= 1.01  # all blocks but the last are numbers of NF4
    assert pack(rounded) is None


def test_any_operation_reads_the_matrix_and_none_writes_to_it() -> None:
    rounded = round_to_nf4(torch.randn(8, 128, generator=torch.Generator().manual_seed(1)))
    held = torch.nn.Parameter(pack(rounded), requires_grad=False)  # type: ignore[arg-type]
    assert isinstance(held, Nf4Tensor)
    assert isinstance(held.detach(), Nf4Tensor)
    for read in (held + 0, held.float().bfloat16(), held.to(torch.bfloat16, copy=True), held.clone(), held.t().t()):
        assert type(read) is torch.Tensor
        assert torch.equal(read, rounded)
    writes: list[Callable[[], object]] = [
        lambda: held.copy_(rounded), lambda: held.mul_(2), lambda: held.data.zero_(),
        lambda: torch.mul(rounded, 2, out=held),
    ]
    for write in writes:
        with pytest.raises(RuntimeError, match="only read"):
            write()


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradient_are_those_of_the_matrix_and_no_number_of_it_is_kept(bias: bool) -> None:
    rounded = round_to_nf4(torch.randn(24, 128, generator=torch.Generator().manual_seed(1)))
    held, added = pack(rounded), torch.randn(24) if bias else None
    assert held is not None
    rows = torch.randn(3, 5, 128, requires_grad=True)
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    gradients: list[torch.Tensor] = []
    for weight in (held, rounded.to(rows.dtype)):
        with autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            product = F.linear(rows, weight, added)
        assert (rounded.shape in kept or rounded.t().shape in kept) == (weight is not held)
        gradients += torch.autograd.grad(product.float().square().sum(), rows)
    assert torch.equal(*gradients)


def test_models_over_a_rounded_base_compute_the_same_to_the_bit_and_hold_a_third(folder: Path, whole: Any) -> None:
    small, reward = policy(folder, frozen=True), load_reward(folder, fresh=True, attention=attention.NAME)
    adapt(reward, Lora(rank=2), 0, folder)
    assert holds_nf4(small)
    ours, scores = logprobs(small), rewards(reward)
    layers = {id(weight): weight for weight in small.parameters() if isinstance(weight, Nf4Tensor)}
    assert len(layers) == 7 * small.config.num_hidden_layers
    assert layers.keys() <= {id(weight) for weight in reward.parameters()}
    held = sum(weight.held for weight in layers.values())
    assert held / sum(weight.numel() for weight in layers.values()) == pytest.approx(0.53125)
    whole()
    large = load_policy(folder, attention=attention.NAME)
    other = load_reward(folder, fresh=True, attention=attention.NAME)
    adapt(other, Lora(rank=2), 0)
    assert not holds_nf4(large)
    assert not holds_nf4(other)
    assert torch.equal(logprobs(large), ours)
    assert torch.equal(rewards(other), scores)


def test_adapters_learn_the_same_over_four_bits(folder: Path, whole: Any) -> None:
    from triptych.engine.forward import answer_logprobs, pack_answers

    learnt = []
    for packed in (True, False):
        if not packed:
            whole()
        model = policy(folder, merged=False)
        adapt(model, Lora(rank=2), 0, folder if packed else None)
        assert holds_nf4(model) == packed
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
        for _ in range(2):
            with autocast():
                rows = [(some_tokens(7, 1), [some_tokens(5, 2), some_tokens(9, 3)])]
                loss = -answer_logprobs(model, pack_answers(rows, "cpu"))[0].sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        merged = plain_copy(model, torch.float32)
        take_over(merged, model)
        learnt.append(merged)
    for one, other in zip(*(model.parameters() for model in learnt), strict=True):
        assert type(one) is torch.nn.Parameter
        assert torch.equal(one, other)


def test_answers_are_written_from_the_trunk_itself(folder: Path) -> None:
    model = policy(folder, merged=False)
    adapt(model, Lora(rank=2), 0, folder)
    author = Policy(model, load_tokenizer(folder))
    prompts = [Prompt((Message("user", text),)) for text in ("Where is the dog?", "Who?")]
    groups = author.write(prompts, Sampling(12, temperature=1.0, seed=1), n=3)
    assert author._sampler.model is model  # type: ignore[attr-defined]
    assert sampler_mismatch(author, groups) < (0.02 if compute_dtype() == torch.bfloat16 else 1e-4)


def test_others_who_read_the_folder_in_four_bits_get_the_same_numbers(folder: Path) -> None:
    from bitsandbytes.nn import Params4bit

    plain: Any = load_policy(folder, dtype=torch.bfloat16)
    weight = plain.model.layers[0].mlp.up_proj.weight
    theirs = Params4bit(weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    theirs = theirs._quantize("cpu") if hasattr(theirs, "_quantize") else theirs.to("cpu")
    from bitsandbytes.functional import dequantize_4bit

    assert torch.equal(dequantize_4bit(theirs.data, theirs.quant_state), weight)


def test_frozen_models_of_the_folder_hold_less_than_in_bfloat16(folder: Path, whole: Any) -> None:
    packed = policy(folder, frozen=True)
    ours = sum(weight.held if isinstance(weight, Nf4Tensor) else weight.nbytes for weight in packed.parameters())
    del packed
    whole()
    assert ours < size(policy(folder, frozen=True))


def test_a_machine_without_the_library_holds_it_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    gc.collect()
    monkeypatch.setattr(nf4, "find_spec", lambda name: None)
    assert pack(round_to_nf4(torch.ones(2, 64))) is None


def test_a_second_model_of_a_trunk_takes_its_matrices_before_they_are_moved(folder: Path) -> None:
    first = policy(folder, frozen=True)
    second = load_reward(folder, fresh=True, attention=attention.NAME, merged=False)  # as it is before it is adapted
    mine = {id(weight) for weight in first.parameters() if isinstance(weight, Nf4Tensor)}
    assert mine
    assert mine <= {id(weight) for weight in second.parameters()}


def test_adapters_over_a_base_in_half_precision_are_trained_in_float32(
    policy_folder: Path, folder: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(policy_folder / "model", plain)
    cast(plain, torch.bfloat16)
    for way, base in (("plain", plain), ("nf4", folder)):
        weights = load_file(learnt(base, tmp_path / "runs" / way)[0] / ADAPTER_WEIGHTS)
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert all(bool((weight != weight.bfloat16()).any()) for weight in weights.values())


def learnt(folder: Path, place: Path) -> list[Path]:
    """What Instruct and Reward learn in `place`, as adapters over the Base: their folders."""
    shutil.copytree(folder, place / "model")
    write_data(place)
    finetune(context(place, "instruct"), adapted(FINETUNING), place, place)
    train_reward(context(place, "reward"), adapted(REWARD), place, place)
    return [place / stage / "output" / "model" for stage in ("instruct", "reward")]


def test_instruct_and_reward_are_the_same_bytes_and_a_round_runs(folder: Path, tmp_path: Path, whole: Any) -> None:
    packed = learnt(folder, tmp_path / "packed")
    scorer = RewardModel(tmp_path / "packed" / "reward" / "output" / "model")
    assert holds_nf4(scorer.model)
    place = tmp_path / "packed"
    improve(context(place, "improve"), adapted(GRPO), place, place, scorer, judge=None)
    whole()
    for one, other in zip(packed, learnt(folder, tmp_path / "whole"), strict=True):
        assert (one / ADAPTER_WEIGHTS).read_bytes() == (other / ADAPTER_WEIGHTS).read_bytes()


def test_a_cycle_of_eight_billion_parameters_is_counted_within_22_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory, "itemsize", lambda: 2)
    llama = Architecture(8_030_261_248, 128_256, 4096, 14_336, 32, 32, 4096, 1024, 131_072, stored=2, tables=2)
    lora = [
        f"{section}.{setting}" for section in ("instruct", "reward", "improve", "gate.judge")
        for setting in ("lora={rank: 16}", "activation_checkpointing=true")
    ]
    recipe = load(write_recipe(tmp_path), [
        *lora, "base.quantization=nf4", "improve.max_tokens=1024", "decoding.max_tokens=1024", "release.form=adapters"
    ])
    splits = ("demonstrations", "comparisons_train", "comparisons_judge", "prompts_test, few-shot",
              *(f"prompts_{split}" for split in ("improve", "validation", "gate", "test")))
    texts = {split: Texts.of([512] * 300, [512] * 300) for split in splits}
    counted = costs(plan(recipe), recipe, llama, texts, Machine(1e12, 1e10))
    assert {"base", "instruct", "round-1/reward", "round-1/improve"} <= {row.stage for row in counted}
    assert max(cost.gib for cost in counted) < 22


@pytest.mark.parametrize(("settings", "message"), [
    (["base.from=null", "base.train={}"], "base.quantization: unknown field"),
    ([], "quantization needs the library bitsandbytes: pip install 'triptych"),
])
def test_a_recipe_that_cannot_have_four_bits_is_refused(
    settings: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=message):
        load(write_recipe(tmp_path), [*settings, "base.quantization=nf4"])
