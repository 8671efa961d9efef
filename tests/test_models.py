"""Models are loaded and saved in one place, and folders that are not safe or not whole are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from triptych.engine import inspection, models
from triptych.engine.rollout import Policy
from triptych.errors import ModelError


def tokenizer() -> PreTrainedTokenizerFast:
    letters = ["<|pad|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", chat_template="{{ messages }}"
    )


def policy(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save(policy(), tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = policy(tied)
    models.save(model, tokenizer(), tmp_path, dtype=dtype)
    back = models.load_policy(tmp_path, dtype=dtype)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert (back.lm_head.weight is back.model.embed_tokens.weight) is tied
    for name, weights in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weights.to(dtype)), name
    assert model.dtype == torch.float32, "saving must not change the model"


def test_end_and_padding_come_from_the_tokenizer(tmp_path: Path) -> None:
    models.save(policy(), tokenizer(), tmp_path, GenerationConfig(max_new_tokens=7, eos_token_id=[1, 9]))
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["max_new_tokens"], generation["eos_token_id"]) == (7, [1, 9])
    assert generation["pad_token_id"] == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (1, 0)


def test_several_ends_of_a_parent_are_kept_and_end_its_childrens_answers(tmp_path: Path) -> None:
    parent = policy()
    parent.generation_config.eos_token_id = [9, 8]
    models.save(parent, tokenizer(), tmp_path / "parent")
    child = models.load_policy(tmp_path / "parent")
    models.save(child, tokenizer(), tmp_path / "child", GenerationConfig(do_sample=True, temperature=1.0))
    generation = json.loads((tmp_path / "child" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == ([1, 9, 8], 1.0)
    assert Policy(models.load_policy(tmp_path / "child"), tokenizer()).ends == (1, 9, 8)
    parent.generation_config.eos_token_id = 0  # before the chat template's end took its place
    assert Policy(parent, tokenizer()).ends == (1, 0)
    parent.generation_config.eos_token_id = 9  # no special token: the architecture's default
    assert Policy(parent, tokenizer()).ends == (1,)


def test_equal_models_are_equal_bytes(tmp_path: Path, folder: Path) -> None:
    used = models.load_tokenizer(folder)
    used(["a", "long text"], padding=True, truncation=True, max_length=3)
    models.save(models.load_policy(folder), used, tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_tokenizer_comes_back(folder: Path) -> None:
    back = models.load_tokenizer(folder)
    text = "déjà vu\n 你好 <|end|>"
    assert back(text)["input_ids"] == tokenizer()(text)["input_ids"]
    assert back.chat_template == "{{ messages }}"


def test_the_attention_is_the_callers(tmp_path: Path, folder: Path) -> None:
    model = models.load_policy(folder, attention="eager")
    assert model.config._attn_implementation == "eager"
    models.save(model, tokenizer(), tmp_path / "again")
    assert "eager" not in (tmp_path / "again" / "config.json").read_text(), "it is no property of the model"
    assert models.load_reward(folder, fresh=True, attention="eager").config._attn_implementation == "eager"


def test_a_fresh_head_depends_on_its_seed_alone(folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = models.load_reward(folder, fresh=True, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (models.load_reward(folder, fresh=True, seed=seed) for seed in (3, 4))
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert 0 < first.score.weight.abs().max() < 0.2
    assert first.config.id2label == {0: "reward"}
    assert first.config.problem_type == "regression"  # which no tool puts through a sigmoid
    assert first.config.pad_token_id == 0
    trunk = models.load_policy(folder).model.state_dict()
    assert all(torch.equal(first.model.state_dict()[name], weights) for name, weights in trunk.items())


def test_a_reward_model_comes_back(tmp_path: Path, folder: Path) -> None:
    model = models.load_reward(folder, fresh=True, seed=3)
    models.save(model, models.load_tokenizer(folder), tmp_path / "reward")
    back = models.load_reward(tmp_path / "reward", fresh=False)
    tokens = torch.tensor([[5, 6, 7, 1]])
    assert torch.equal(back(tokens).logits, model(tokens).logits)
    assert not (tmp_path / "reward" / "generation_config.json").exists()


def test_parameters_counts_tied_weights_once() -> None:
    tied, free = models.parameters(policy(True)), models.parameters(policy(False))
    assert free - tied == 258 * 16


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models.load_reward(folder, fresh=True)
    models.load_policy(folder)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def code_in_config(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})


def code_in_nested_config(folder: Path) -> None:
    edit(folder / "config.json", text_config={"auto_map": {"AutoConfig": "configuration.Config"}})


def code_in_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Tok", None]})


def code_in_generation(folder: Path) -> None:
    edit(folder / "generation_config.json", custom_pipelines={"x": {"impl": "pipeline.P"}})


def module_as_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="tokenization_own.Tokenizer")


def python_file(folder: Path) -> None:
    edit(folder / "config.json", loader="load.py")


def kernel_from_the_hub(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="someone/kernel")


def index_outside(folder: Path) -> None:
    edit(folder / inspection.INDEX, weight_map={"lm_head.weight": "../model.safetensors"})


def index_absolute(folder: Path) -> None:
    edit(folder / inspection.INDEX, weight_map={"lm_head.weight": str(folder / "model.safetensors")})


def index_of_a_missing_file(folder: Path) -> None:
    edit(folder / inspection.INDEX, weight_map={"lm_head.weight": "model-00001-of-00001.safetensors"})


def link_outside(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(target)
    (folder / "model.safetensors").symlink_to(target)


def truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])


def wrong_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def adapter(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="/elsewhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_config, "config.json is missing"),
        (broken_config, "config.json: is not valid JSON"),
        (only_pickles, r"safetensors only \(found pytorch_model.bin"),
        (code_in_config, "config.json: auto_map asks for code"),
        (code_in_nested_config, "config.json: auto_map asks for code"),
        (code_in_tokenizer, "tokenizer_config.json: auto_map asks for code"),
        (code_in_generation, "generation_config.json: custom_pipelines asks for code"),
        (module_as_tokenizer, "tokenizer_config.json: tokenizer_class 'tokenization_own.Tokenizer'"),
        (python_file, "config.json: loader names 'load.py'"),
        (kernel_from_the_hub, "config.json: attn_implementation 'someone/kernel'"),
        (index_outside, "outside the model folder"),
        (index_absolute, "outside the model folder"),
        (index_of_a_missing_file, "which is missing"),
        (link_outside, "link that leads outside"),
        (truncated, "model.safetensors: is damaged"),
        (wrong_header, "model.safetensors: is damaged"),
        (adapter, "adapter_config.json: this is an adapter"),
    ],
)
def test_a_bad_folder_is_refused_with_the_reason(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    inspection.inspect(folder)
    spoil(folder)
    for look in (inspection.inspect, models.load_policy, lambda path: models.load_reward(path, fresh=True)):
        with pytest.raises(ModelError, match=reason):
            look(folder)


def test_a_link_may_lead_to_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    revision = tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40)
    revision.parent.mkdir(parents=True)
    folder.rename(revision)
    link_outside(revision)
    inspection.inspect(revision)
    models.load_policy(revision)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        inspection.inspect(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values"):
        models.load_policy(folder)


def test_missing_weights_are_refused_by_name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (models.load_policy, lambda path: models.load_reward(path, fresh=True)):
        with pytest.raises(ModelError, match=r"no weights for model\.norm\.weight"):
            load(folder)


def test_a_policy_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="not a reward model"):
        models.load_reward(folder, fresh=False)


def test_a_reward_model_needs_padding_of_its_own(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="<|end|>")
    with pytest.raises(ModelError, match="padding token that is not the end token"):
        models.load_reward(folder, fresh=True)
