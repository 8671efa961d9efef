"""Adapters on disk: what is opened is what was trained, peft opens the same, and what is merged is a plain folder."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from conftest import with_our_attention
from test_adapters import learn_something, logprobs
from triptych.engine import attention
from triptych.engine.adapter_folder import model_digests, read_adapters
from triptych.engine.adapters import Lora, adapt
from triptych.engine.device import compute_dtype
from triptych.engine.forward import head_outputs
from triptych.engine.identity import is_model, model_digest
from triptych.engine.inspection import ADAPTER, inspect, trunk_of
from triptych.engine.merging import merge
from triptych.engine.models import load_policy, load_reward, load_tokenizer, save
from triptych.engine.packing import Pack, Segment
from triptych.errors import ModelError, RewardError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.reward.taken import TakenReward
from triptych.reward.taking import offered

ROWS = [[5, 6, 7, 8, 9], [11, 12, 13]]
PLAIN_PEFT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

trunk, policy, reward, rows = *sys.argv[1:4], json.loads(sys.argv[4])
writes = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trunk, dtype=torch.float32), policy).eval()
head = AutoModelForSequenceClassification.from_pretrained(trunk, num_labels=1, dtype=torch.float32)
scores = PeftModel.from_pretrained(head, reward).eval()
assert not any("triptych" in name for name in sys.modules)
with torch.no_grad():
    given = [
        [writes(torch.tensor([row])).logits[0, -1].tolist() for row in rows],
        [scores(torch.tensor([row])).logits[0].tolist() for row in rows],
    ]
print(json.dumps(given))
"""


@pytest.fixture
def trunk(policy_folder: Path, tmp_path: Path) -> Path:
    """A plain folder whose last two tokens were added."""
    folder = tmp_path / "family" / "base"
    shutil.copytree(policy_folder / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    added = [config["vocab_size"] - 2, config["vocab_size"] - 1]
    (folder / "config.json").write_text(json.dumps(config | {"added_tokens": added}))
    return folder


def trained(model: Any, trunk: Path, folder: Path, lora: Lora, start: Path | None = None) -> Any:
    """The model with adapters that have learnt something, and rows of added tokens; saved."""
    adapt(model, lora, seed=1, folder=start)
    learn_something(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.added_tokens] += 0.5
    save(model, load_tokenizer(trunk), folder, trunk="base")
    return model


def policy(trunk: Path, name: str = "instruct", lora: Lora | None = None, start: Path | None = None) -> Any:
    model = load_policy(start or trunk, attention=attention.NAME, merged=False)
    return trained(model, trunk, trunk.parent / name, lora or Lora(rank=4), start)


def reward(trunk: Path, name: str = "reward", start: Path | None = None) -> Any:
    model = load_reward(start or trunk, fresh=True, seed=3, attention=attention.NAME, merged=False)
    return trained(model, trunk, trunk.parent / name, Lora(rank=2), start)


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    return head_outputs(model, Pack([Segment(row) for row in ROWS], "cpu"))[:, 0]


@pytest.mark.usefixtures("float32")
def test_what_is_opened_is_what_was_trained(trunk: Path) -> None:
    written, scored = policy(trunk), reward(trunk)
    family = trunk.parent
    assert {path.name for path in (family / "instruct").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert trunk_of(family / "instruct") == trunk.resolve()
    assert trunk_of(trunk) == trunk
    opened = load_policy(family / "instruct", attention=attention.NAME)
    torch.testing.assert_close(logprobs(opened), logprobs(written), rtol=0, atol=1e-5)
    assert opened.get_input_embeddings().weight is opened.get_output_embeddings().weight
    assert float((logprobs(load_policy(trunk, attention=attention.NAME)) - logprobs(written)).abs().max()) > 0.1
    judge = load_reward(family / "reward", fresh=False, attention=attention.NAME)
    torch.testing.assert_close(scores(judge), scores(scored), rtol=0, atol=1e-5)
    assert inspect(family / "reward").keys() == inspect(trunk).keys() | {"score.weight"}
    family.rename(family.with_name("moved"))
    again = load_policy(family.with_name("moved") / "instruct", attention=attention.NAME)
    assert torch.equal(logprobs(again), logprobs(opened))


def test_what_is_only_read_computes_beside_one_trunk(trunk: Path) -> None:
    """Also two adapters with the same names of weights; and what is trained beside them."""
    policy(trunk)
    policy(trunk, "other", Lora(rank=3))
    reward(trunk)
    family = trunk.parent
    read = [load_policy(family / name, attention=attention.NAME, frozen=True) for name in ("instruct", "other")]
    read.append(load_reward(family / "reward", fresh=False, attention=attention.NAME, frozen=True))
    trained = load_policy(family / "instruct", attention=attention.NAME, merged=False)
    adapt(trained, Lora(rank=4), seed=1, folder=family / "instruct")
    up = [model.model.layers[0].mlp.up_proj for model in (*read, trained)]
    assert len({id(layer.base_layer.weight) for layer in up}) == 1
    assert len({layer.lora_A["default"].weight.data_ptr() for layer in up}) == 4
    assert len({model.get_input_embeddings().weight.data_ptr() for model in (*read, trained)}) == 4
    assert torch.equal(logprobs(read[0]), logprobs(trained))
    for name, model in zip(("instruct", "other"), read, strict=False):
        whole = load_policy(family / name, attention=attention.NAME)
        apart = float((logprobs(model) - logprobs(whole)).abs().max())
        assert apart < (1e-5 if compute_dtype() == torch.float32 else 0.1)
    again = load_policy(family / "instruct", attention=attention.NAME, frozen=True)
    assert {id(weight) for weight in again.parameters()} == {id(weight) for weight in read[0].parameters()}


@pytest.mark.usefixtures("float32")
def test_peft_opens_the_same(trunk: Path) -> None:
    """In a process that has no Triptych."""
    policy(trunk)
    reward(trunk)
    family = trunk.parent
    given = subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, *map(str, (trunk, family / "instruct", family / "reward")),
         json.dumps(ROWS)],
        capture_output=True, text=True, check=True,
    )
    logits, scored = json.loads(given.stdout)
    model = load_policy(family / "instruct")
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits[0, -1] for row in ROWS]
    torch.testing.assert_close(torch.tensor(logits), torch.stack(expected), rtol=0, atol=1e-5)
    judge = load_reward(family / "reward", fresh=False, attention=attention.NAME)
    torch.testing.assert_close(torch.tensor(scored)[:, 0], scores(judge), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_the_folder_that_is_saved_of_the_plain_model(trunk: Path, dtype: torch.dtype) -> None:
    """To the byte, and of a trunk in several files too."""
    policy(trunk)
    reward(trunk)
    for name, opened in (
        ("instruct", load_policy(trunk.parent / "instruct")),
        ("reward", load_reward(trunk.parent / "reward", fresh=False)),
    ):
        folder, plain, target = (trunk.parent / f"{name}{suffix}" for suffix in ("", "-plain", "-merged"))
        save(opened, load_tokenizer(folder), plain, dtype=dtype)
        merge(folder, target, dtype)
        assert {path.name for path in target.iterdir()} == {path.name for path in plain.iterdir()}
        for path in plain.glob("*.safetensors"):
            assert (target / path.name).read_bytes() == path.read_bytes()
        ours, theirs = (json.loads((place / "config.json").read_text()) for place in (target, plain))
        assert ours == theirs
        opener: Any = load_policy if name == "instruct" else load_reward
        opener(target, **({} if name == "instruct" else {"fresh": False}))
    whole = load_file(trunk / "model.safetensors")
    names = sorted(whole)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in files.items():
        save_file({name: whole[name] for name in part}, trunk / file, metadata={"format": "pt"})
    (trunk / "model.safetensors").unlink()
    (trunk / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": 0}, "weight_map": {name: file for file, part in files.items() for name in part}}
    ))
    merge(trunk.parent / "instruct", trunk.parent / "parts", dtype)
    merged = {name: tensor for file in files for name, tensor in load_file(trunk.parent / "parts" / file).items()}
    expected = load_file(trunk.parent / "instruct-plain" / "model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert inspect(trunk.parent / "parts").keys() == merged.keys()


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("lora", [Lora(rank=4), Lora(rank=7, alpha=5), Lora(rank=2, targets=("q_proj",))])
def test_who_goes_on_from_adapters_begins_as_the_model_that_they_make(trunk: Path, lora: Lora) -> None:
    before = policy(trunk)
    folder = trunk.parent / "instruct"
    model = load_policy(folder, attention=attention.NAME, merged=False)
    adapt(model, lora, seed=9, folder=folder)
    torch.testing.assert_close(logprobs(model), logprobs(before), rtol=0, atol=1e-5)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.r["default"] == max(lora.rank, 4)
    assert layer.scaling["default"] == lora.alpha / lora.rank
    assert torch.equal(layer.lora_A["default"].weight[:4], before.model.layers[0].mlp.up_proj.lora_A["default"].weight)
    fresh = load_reward(folder, fresh=True, seed=3, attention=attention.NAME, merged=False)
    adapt(fresh, lora, seed=9, folder=folder)
    whole = load_reward(folder, fresh=True, seed=3, attention=attention.NAME)
    torch.testing.assert_close(scores(fresh), scores(whole), rtol=0, atol=1e-5)


def test_what_is_no_such_folder_is_refused(trunk: Path, policy_folder: Path) -> None:
    policy(trunk)
    folder = trunk.parent / "instruct"

    def refused(message: str, **settings: Any) -> None:
        old = (folder / ADAPTER).read_text()
        (folder / ADAPTER).write_text(json.dumps(json.loads(old) | settings))
        with pytest.raises(ModelError, match=message):
            load_policy(folder)
        (folder / ADAPTER).write_text(old)

    refused(r"its trunk, 'owner/model', is no model's folder", base_model_name_or_path="owner/model")
    refused(r"its trunk, .*instruct, has adapters itself", base_model_name_or_path="instruct")
    refused(r"use_dora is True, which is only merged", use_dora=True)
    refused(r"peft_type is 'IA3'", peft_type="IA3")
    refused(r"its products are not of rank 3, r in adapter_config.json", r=3)
    refused(r"trainable_token_indices must number the rows", trainable_token_indices=None)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "up_proj.lora_B" in name)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, weights)
    refused(r"do not fit its trunk|are for a matrix of")
    save_file(tensors | {"base_model.model.other": torch.zeros(1)}, weights)
    refused(r"holds base_model.model.other, which is neither a low-rank product nor a reward's head")
    shutil.copyfile(trunk / "model.safetensors", folder / "model.safetensors")
    refused("this is an adapter; name it as base.from")
    with pytest.raises(ModelError, match="has no adapters to merge"):
        merge(trunk, trunk.parent / "merged")


def test_a_reward_that_is_taken_may_not_be_adapters(trunk: Path) -> None:
    reward(trunk)
    config = TypeAdapter(TakenReward).validate_python({"from": str(trunk.parent / "reward")})
    with pytest.raises(RewardError, match=r"is adapters over a model .*triptych merge .*reward FOLDER"):
        offered(config)


def test_a_model_of_adapters_is_told_from_the_same_adapters_over_another_trunk(trunk: Path) -> None:
    policy(trunk)
    folder = trunk.parent / "instruct"
    before = model_digests(folder)
    whole = load_file(trunk / "model.safetensors")
    assert before.keys() > {"config.json", "adapter_config.json: model.safetensors"}
    save_file({name: tensor + 1 for name, tensor in whole.items()}, trunk / "model.safetensors")
    after = model_digests(folder)
    assert {name for name in before if before[name] != after[name]} == {"adapter_config.json: model.safetensors"}


def test_a_models_digest_is_of_what_is_read_and_of_its_trunk(trunk: Path) -> None:
    policy(trunk)
    folder = trunk.parent / "instruct"
    before = model_digest(folder)
    (folder / "README.md").write_text("a card")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.safetensors").write_bytes(b"moments")
    assert model_digest(folder) == before
    whole = load_file(trunk / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in whole.items()}, trunk / "model.safetensors")
    assert model_digest(folder) != before
    assert is_model(folder)
    assert is_model(trunk)


def test_an_artifact_names_its_trunk_by_its_place_in_the_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    inside, outside = run / "artifacts" / "base-1" / "model", tmp_path / "model"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
    at_work = StageContext(run / "work", run / "work", Silent(), 1, 60.0, run)
    assert at_work.name(inside) == "artifacts/base-1/model"
    assert at_work.name(outside) == str(outside.resolve())
    alone = StageContext(run / "work", run / "work", Silent(), 1, 60.0)
    assert alone.name(inside) == str(inside.resolve())


def test_an_adapted_model_does_not_write_to_what_it_was_loaded_from(trunk: Path) -> None:
    """Its trunk may be another model's too."""
    policy(trunk)
    model = with_our_attention(load_policy(trunk))
    held = copy.copy(dict(model.named_parameters()))
    values = {name: weight.detach().clone() for name, weight in held.items()}
    adapters = read_adapters(trunk.parent / "instruct")
    assert adapters is not None
    adapters.add_to(model)
    assert all(torch.equal(weight, values[name]) for name, weight in held.items())
    kept = {name for name, weight in model.named_parameters() if weight is held[name]}
    assert kept == values.keys() - adapters.names
