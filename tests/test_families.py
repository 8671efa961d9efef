"""Which families of models can be trained here: tiny models of their real classes, and the page that lists them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from triptych.engine.forward import packs
from triptych.engine.models import quiet, reward_fault
from triptych.engine.parity import logprob_difference, sampling_difference, take_attention

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OWN: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 2.0}, "granitemoe": {"logits_scaling": 2.0},
    "falcon_h1": {
        "lm_head_multiplier": 0.5, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
}
"""What makes a family what it is and is no default."""
FAMILIES = (
    "apertus", "arcee", "bloom", "cohere", "cohere2", "ernie4_5", "exaone4", "falcon_h1", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "helium",
    "hunyuan_v1_dense", "jamba", "lfm2", "llama", "mamba", "mamba2", "minimax", "ministral", "mistral", "mixtral",
    "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "qwen3_next", "recurrent_gemma", "seed_oss", "smollm3", "stablelm", "starcoder2",
)


def tiny(family: str, **more: Any) -> Any:
    """A random model of the family, none of its weights zero or one."""
    own = {"head_dim": 8} if hasattr(CONFIG_MAPPING[family](), "head_dim") else {}
    with quiet():
        config = CONFIG_MAPPING[family](**{**SHAPE, **EXPERTS, **own, **OWN.get(family, {}), **more})
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def row(family: str) -> str:
    """The family's line of the page."""
    plain = tiny(family)
    ours = copy.deepcopy(plain)
    with quiet():
        take_attention(ours)
        difference = max(logprob_difference(ours, plain), sampling_difference(ours, plain))
    computed = "no" if not difference < 1e-5 else "packed" if packs(ours) else "padded"
    reward = "no" if reward_fault(plain.config) else "yes"
    return f"| {family} | `{type(plain).__name__}` | {computed} | {reward if computed != 'no' else ''} |"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_a_family_can_do(family: str) -> None:
    assert row(family) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_lists_the_families_that_are_tried() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0][2:] for line in lines if line.startswith("| ")] == ["family", *FAMILIES]
