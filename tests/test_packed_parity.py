"""A model that computes differently packed than alone is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, JambaConfig, LlamaConfig, LlamaForCausalLM, MambaConfig

from triptych.base.pretrained import BaseImport, import_base
from triptych.engine import packing, parity
from triptych.engine.models import load_tokenizer, save
from triptych.errors import ModelError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_architecture_that_fits_is_accepted(folder: Path) -> None:
    parity.verify_packed_parity(folder)


def test_one_whose_attention_does_more_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = packing.scaled_attention
    monkeypatch.setattr(packing, "scaled_attention", lambda *inputs: plain(*inputs) * 0.5)
    with pytest.raises(ModelError, match="LlamaForCausalLM does not compute the same packed as alone"):
        parity.verify_packed_parity(folder)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.5}
STATEFUL = {
    "MambaForCausalLM": lambda **more: MambaConfig(**SMALL, state_size=4, **more),
    # Attention in the second layer, a state that runs from token to token, and so from answer to answer, in the first.
    "JambaForCausalLM": lambda **more: JambaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, num_experts=1,
        num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, **more,
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_base_that_carries_a_state_is_refused_by_its_name(name: str, policy_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(policy_folder / "model")
    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = AutoModelForCausalLM.from_config(STATEFUL[name](vocab_size=len(tokenizer), **special))
    save(model, tokenizer, tmp_path / "theirs")
    (tmp_path / "output").mkdir()
    context = StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)
    with pytest.raises(ModelError, match=name):
        import_base(context, BaseImport(name="theirs"), tmp_path, {"theirs": tmp_path / "theirs"})
