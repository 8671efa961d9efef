"""What is told of memory is what PyTorch keeps, and computing again changes no gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

import test_families
from conftest import FAMILIES, some_tokens, tiny, with_our_attention
from test_check import write_recipe
from triptych.engine import attention, nf4, sampler, trunk
from triptych.engine.adapters import Lora, adapt
from triptych.engine.device import autocast, compute_dtype
from triptych.engine.forward import answer_logprobs, hidden_states, pack_answers
from triptych.engine.models import parameters
from triptych.engine.packing import Pack, Segment
from triptych.engine.training import Loss, Optimization, Step, train
from triptych.engine.trunk import in_experts, quantize, share_frozen, widen
from triptych.errors import ModelError
from triptych.preflight import memory
from triptych.preflight.costs import disk_space
from triptych.preflight.memory import Architecture
from triptych.progress import Silent
from triptych.recipe import load

GROUPS = [
    (some_tokens(9, 1), [some_tokens(5, 2), some_tokens(3, 3)]), ([], [some_tokens(12, 4)]),
    (some_tokens(4, 5), [some_tokens(6, 6)]),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_computing_again_gives_the_same_gradients(family: str) -> None:
    gradients: list[dict[str, Any]] = []
    for recompute in (False, True):
        model = with_our_attention(tiny(family))
        kept: list[int] = []

        def loss(batch: Any, model: Any = model, kept: list[int] = kept) -> Loss:
            def keep(tensor: torch.Tensor) -> torch.Tensor:
                kept.append(tensor.nbytes)
                return tensor

            with torch.autocast("cpu", enabled=False), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                return Loss(-answer_logprobs(model, batch)[0].sum())

        found: dict[str, Any] = {}

        def note(found: dict[str, Any] = found, model: Any = model) -> None:
            found.update({name: weight.grad.clone() for name, weight in model.named_parameters()})

        batches = [pack_answers(GROUPS, "cpu"), pack_answers(GROUPS[:1], "cpu")]
        hook = register_optimizer_step_pre_hook(lambda *_, note=note: note())
        optimization = Optimization(learning_rate=1e-3, max_grad_norm=1e9, activation_checkpointing=recompute)
        step = Step(batches, 7.0)
        train(model, 1, partial(lambda step, _: step, step), loss, optimization, checkpoint=None, progress=Silent())
        hook.remove()
        gradients.append(found | {"kept": sum(kept)})
    plain, again = gradients
    assert again.pop("kept") < plain.pop("kept") / 2
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["whole", "adapters"])
@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_layers_keep_what_is_counted(
    native: torch.dtype, lora: Lora | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that autograd saves for 8 rows of 64 tokens in layers of a usual shape; within 2%."""
    monkeypatch.setattr(memory, "compute_dtype", lambda: native)
    monkeypatch.setattr(trunk, "compute_dtype", lambda: native)
    config = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation(attention.NAME)
    adapt(model, lora, seed=0)
    learnt = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in learnt:
            kept[place] = tensor
        return tensor

    pack = Pack([Segment(some_tokens(64, seed)) for seed in range(8)], "cpu")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=native == torch.bfloat16):
        hidden_states(model, pack)
    counted = Architecture.of(config, parameters(model))
    assert len(pack.tokens) == 512
    monkeypatch.setattr(memory, "PADDING", 1.0)  # rows of one usual length have none
    expected = memory.activations(counted, 512, 64, lora=lora)
    if lora is None and native == torch.bfloat16:  # the embedding is not cast, for nothing is predicted
        expected += memory.copies(counted) - 2 * 64 * 96
    elif lora is not None and native == torch.bfloat16:  # the adapters are cast
        expected += memory.adapters(counted, lora) // 2
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measured == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_the_optimizers_state_is_counted(tied: bool) -> None:
    from triptych.engine.training import _optimizers

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )
    kinds: list[dict[str, Any]] = [{}, {"muon_learning_rate": 0.01}]
    for kind in [*kinds, *([{"optimizer": "adamw_8bit"}] if nf4.available() else [])]:
        model: Any = LlamaForCausalLM(config)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimization = Optimization.model_validate({"learning_rate": 1e-3, **kind})
        held = 0
        for optimizer in _optimizers(model, optimization):
            optimizer.step()
            states = [value for state in optimizer.state.values() for value in state.values()]
            # By its place in memory: all matrices in 8 bits have one table of what a byte stands for.
            tensors = {value.data_ptr(): value for value in states if torch.is_tensor(value) and value.ndim}
            held += sum(value.nbytes for value in tensors.values() if value.numel() != 256)
        counted = memory.optimizer_state(Architecture.of(config, parameters(model)), optimization)
        assert held == pytest.approx(counted, rel=0.02)  # norms are AdamW's under Muon too


@pytest.mark.parametrize("tied", [True, False])
def test_tables_with_added_tokens_are_counted_beside_adapters(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )
    before = Architecture.of(config, parameters(LlamaForCausalLM(config)))
    config.added_tokens = [510, 511]
    model: Any = LlamaForCausalLM(config)
    after = Architecture.of(config, parameters(model))
    assert (before.trained_tables, after.trained_tables) == (0, 1 if tied else 2)
    assert Architecture.of(LlamaConfig(tie_word_embeddings=tied), 10**6, grows=True).trained_tables == 1 + (not tied)
    optimization = Optimization(learning_rate=1e-3, lora=Lora(rank=2))
    adapt(model, optimization.lora, seed=0)
    from triptych.engine.training import _optimizers

    tables = [weight for weight in model.parameters() if weight.requires_grad and weight.shape[0] == 512]
    for table in tables:
        table.grad = torch.ones_like(table)
    held = sum(table.nbytes for table in tables)  # the gradients
    for optimizer in _optimizers(model, optimization):
        optimizer.step()
        states = [value for table in tables for value in optimizer.state.get(table, {}).values()]
        held += sum(value.nbytes for value in states if value.ndim)
    with_them, without = (memory.training(known, optimization, 64, 8.0) for known in (after, before))
    logits = memory.head(after, 64) - memory.head(after, 64, backward=False)
    assert with_them - without == held + logits
    of_reward = (memory.training(known, optimization, 64, 8.0, predicts=False) for known in (after, before))
    assert next(of_reward) - next(of_reward) == held / len(tables)  # a reward model has no table behind it


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["whole", "adapters"])
def test_a_sampler_of_a_model_with_adapters_holds_weights_of_its_own(
    lora: Lora | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, sampler, trunk):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)
    model = with_our_attention(tiny("llama", dtype=torch.float32))
    adapt(model, lora, seed=0)
    copy = sampler.SlotSampler()
    copy.sync_weights(model)
    held = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    own = sum(weight.nbytes for weight in copy.model.parameters() if weight.data_ptr() not in held)
    counted = Architecture.of(model.config, parameters(model))
    assert own == memory.sampler(counted, adapted=lora is not None)
    assert own == (0 if lora is None else 4 * parameters(model))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_counted_as_they_are_held(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trunk, memory):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.bfloat16)
    model = with_our_attention(test_families.tiny(family).bfloat16())
    experts = in_experts(model)
    counted = Architecture.of(model.config, parameters(model), stored=2, experts=experts)
    assert counted.experts > counted.parameters / 4
    assert counted.active == counted.parameters - experts + experts * model.config.num_experts_per_tok \
        / getattr(model.config, "num_experts", model.config.num_local_experts)
    widen(model)
    share_frozen(model, None)
    assert sum(weight.nbytes for weight in model.parameters()) == pytest.approx(memory.frozen(counted), rel=0.02)
    assert memory.frozen(replace(counted, packed=False)) == 4 * counted.parameters


def test_experts_are_not_rounded_to_four_bits_without_a_word() -> None:
    model = test_families.tiny("mixtral")
    with pytest.raises(ModelError, match="of its numbers in experts, which are not held in NF4 here"):
        quantize(model)


def test_a_base_in_four_bits_is_counted_as_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a file that is stored in float32 stays mapped beside its matrices in bfloat16."""
    monkeypatch.setattr(memory, "device", lambda: torch.device("cpu"))
    model = Architecture(10**8, 1000, 512, 1536, 24, 8, 512, 128, 8192, stored=2, quantized=True)
    assert memory.taking(model, source=4 * 10**8, rounded=True) == 6 * 10**8
    assert memory.taking(model, source=4 * 10**8, rounded=False) == 4 * 10**8
    monkeypatch.setattr(memory, "device", lambda: torch.device("cuda"))
    assert memory.taking(model, source=4 * 10**8, rounded=True) == 4 * 10**8


def test_computing_again_takes_less_and_logits_do_not_grow() -> None:
    model = Architecture(10**8, 262_144, 512, 1536, 24, 8, 512, 128, 8192)
    plain, again = (memory.activations(model, 4096, 256, recompute) for recompute in (False, True))
    assert again < plain / 6
    rows = 65_536 - 8192  # of hidden states, and nothing of the vocabulary
    assert memory.head(model, 65_536) - memory.head(model, 8192) == 8 * rows * model.width
    with autocast():
        assert memory.copies(model) in ((2 * 10**8,) if compute_dtype() == torch.bfloat16 else (0,))


@pytest.mark.slow
def test_a_small_stage_takes_what_was_told() -> None:
    from benchmarks.memory import SMALL, compared
    from scripts.public import SHARED

    if not SHARED.exists():
        pytest.skip(f"needs {SHARED}")
    for row in compared(SMALL, ("base", "instruct")):
        assert row["ratio"] == pytest.approx(1.0, abs=0.2), row


def test_a_run_of_adapters_writes_one_model_and_little_beside_it(tmp_path: Path) -> None:
    model = Architecture(8_030_261_248, 128_256, 4096, 14_336, 32, 32, 4096, 1024, 131_072)
    whole = load(write_recipe(tmp_path))
    lora = [f"{section}.lora={{rank: 16}}" for section in ("instruct", "reward", "improve", "gate.judge")]
    merged = load(write_recipe(tmp_path), lora)
    adapters = load(write_recipe(tmp_path), [*lora, "release.form=adapters"])
    weights = memory.weights(model)
    small = memory.adapters(model, Lora(rank=16))
    assert disk_space(whole, model) == (1 + 4 + 3 + 3) * weights
    assert disk_space(merged, model) == (1 + 3) * weights + (4 + 3) * small
    assert disk_space(adapters, model) == 2 * weights + (4 + 3 + 2) * small
    numbers = sum(rows + columns for rows, columns in [  # q, k, v, o, gate, up, down
        (4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14_336, 4096), (14_336, 4096), (4096, 14_336),
    ])
    assert small == 4 * 16 * 32 * numbers
