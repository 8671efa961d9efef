"""A model that computes differently packed than alone is refused by its name."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from triptych.engine import exactness, packing
from triptych.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_architecture_that_fits_is_accepted(folder):
    exactness.prove(folder)


def test_one_whose_attention_does_more_is_refused(folder, monkeypatch):
    plain = packing.scaled_attention
    monkeypatch.setattr(packing, "scaled_attention", lambda *inputs: plain(*inputs) * 0.5)
    with pytest.raises(ModelError, match="LlamaForCausalLM does not compute the same packed as alone"):
        exactness.prove(folder)
