"""A model that computes differently packed than alone is computed padded, and then the same as alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import logprobs_alone, some_tokens
from test_distributed import FINETUNING, GRPO, REWARD, adapted, context, write_data
from test_families import tiny
from triptych.base.pretrained import BaseImport, import_base
from triptych.engine import attention, packing
from triptych.engine.adapters import Lora, adapt, plain_copy, take_over
from triptych.engine.curve import read_curve
from triptych.engine.forward import answer_logprobs, head_outputs, pack_answers, packs
from triptych.engine.generation import generate
from triptych.engine.models import load_policy, load_reward, load_tokenizer, quiet, save
from triptych.engine.packing import Pack, Segment
from triptych.engine.parity import take_attention, verify_parity
from triptych.engine.sampler import SlotSampler
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.errors import ModelError
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import finetune
from triptych.preflight.check import Findings, open_model
from triptych.preflight.costs import Texts
from triptych.progress import Silent
from triptych.reward.training import train_reward

OPENING = some_tokens(9, 1)
GROUPS = [
    (OPENING + some_tokens(7, 2), [some_tokens(5, 3), some_tokens(11, 4), some_tokens(1, 5)]),
    (OPENING + some_tokens(30, 6), [some_tokens(4, 7)]),
    (OPENING, [some_tokens(6, 8), some_tokens(3, 9)]),
]
"""Behind what all prompts begin with, prompts with several answers and with one."""
PADDED = ["falcon_h1", "gpt_oss", "jamba", "lfm2", "mamba", "minimax", "qwen3_next"]
"""States, convolutions, sinks."""
NEVER = 64


def padded(family: str, **more: Any) -> tuple[Any, Any]:
    """The plain model, and a copy as it is loaded for training."""
    plain = tiny(family, **more)
    ours = copy.deepcopy(plain)
    with quiet():
        take_attention(ours)
    assert not packs(ours)
    assert ours.config._attn_implementation == plain.config._attn_implementation
    return plain, ours


@pytest.mark.parametrize(("family", "more"), [
    ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2}), ("phimoe", {}),
])
def test_a_window_that_only_a_mask_knows_is_seen(family: str, more: dict[str, Any]) -> None:
    _, ours = padded(family, sliding_window=64, **more)
    assert ours.config.sliding_window == 64


def test_a_window_that_attention_is_told_is_packed() -> None:
    for family in ("mistral", "gemma3_text", "qwen2"):
        ours = tiny(family, sliding_window=64, **({"use_sliding_window": True} if family == "qwen2" else {}))
        take_attention(ours)
        assert packs(ours)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_architecture_that_fits_is_packed(folder: Path) -> None:
    model = load_policy(folder, attention=attention.NAME)
    assert packs(model)
    verify_parity(model, load_policy(folder))


def test_one_whose_attention_does_more_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = packing.scaled_attention
    monkeypatch.setattr(packing, "scaled_attention", lambda *inputs: plain(*inputs) * 0.5)
    model = load_policy(folder, attention=attention.NAME)
    assert not packs(model)
    verify_parity(model, load_policy(folder))


def test_one_whose_logits_are_not_known_is_refused(folder: Path) -> None:
    plain, scaled = load_policy(folder), load_policy(folder, attention=attention.NAME)
    scaled.config.logit_scale = 1.01
    with pytest.raises(ModelError, match="LlamaForCausalLM is not computed here as in transformers"):
        verify_parity(scaled, plain)


@pytest.mark.parametrize("family", PADDED)
def test_padded_log_probabilities_and_gradients_are_those_of_each_sequence_alone(family: str) -> None:
    plain, ours = padded(family)
    found, _ = answer_logprobs(ours.train(), pack_answers(GROUPS, "cpu"))
    expected = torch.cat([logprobs_alone(plain, prompt, answer) for prompt, answers in GROUPS for answer in answers])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    weights = torch.linspace(-1, 1, len(found))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("family", ["jamba", "qwen3_next"])
def test_a_padded_reward_is_read_at_the_end_of_each_sequence(family: str) -> None:
    _, ours = padded(family)
    ours.score = torch.nn.Linear(32, 1)
    pack = Pack([Segment(OPENING), Segment(some_tokens(5, 2), 0), Segment(some_tokens(12, 3), 0)], "cpu")
    with torch.no_grad():
        expected = [
            ours.score(ours.base_model(torch.tensor([tokens])).last_hidden_state[0, -1])
            for tokens in (OPENING, OPENING + some_tokens(5, 2), OPENING + some_tokens(12, 3))
        ]
        torch.testing.assert_close(head_outputs(ours, pack), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", PADDED)
def test_greedy_answers_of_a_padded_model_are_those_of_transformers(family: str) -> None:
    plain, ours = padded(family)
    prompts = [some_tokens(length, place) for place, length in enumerate((7, 1, 23, 7, 7))]
    for prompt, (answer,) in zip(
        prompts, generate(ours, prompts, NEVER, Sampling(12, temperature=0.0), slots=2), strict=True
    ):
        row = torch.tensor([prompt])
        whole = plain.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=12, min_new_tokens=12,
            eos_token_id=None,
        )
        assert answer.tokens == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["lfm2", "gpt_oss"])
def test_answers_of_a_padded_model_do_not_depend_on_what_is_sampled_beside(family: str) -> None:
    _, ours = padded(family)
    prompts = [some_tokens(length, place) for place, length in enumerate((7, 3, 7, 7))]
    told: list[tuple[int, int]] = []
    free = generate(ours, prompts, NEVER, Sampling(8, seed=4), n=3, watch=lambda *numbers: told.append(numbers))
    assert told[-1] == (12, 12 * 8)
    assert free[0] != free[2], "each request has noise of its own"
    end = free[2][1].tokens[3]
    groups = generate(ours, prompts, end, Sampling(8, seed=4), n=3, slots=3)
    for group, whole in zip(groups, free, strict=True):
        for answer, longer in zip(group, whole, strict=True):
            cut = longer.tokens.index(end) + 1 if end in longer.tokens else 8
            assert (answer.tokens, answer.finished) == (longer.tokens[:cut], end in longer.tokens)
    (alone,) = generate(ours, prompts[2:3], end, Sampling(8, seed=4), n=3, numbers=[2])
    assert [answer.tokens for answer in alone] == [answer.tokens for answer in groups[2]]
    for prompt, group in zip(prompts, groups, strict=True):
        again, _ = answer_logprobs(ours, pack_answers([(prompt, [answer.tokens for answer in group])], "cpu"))
        sampled = torch.tensor([number for answer in group for number in answer.logprobs])
        torch.testing.assert_close(again.detach(), sampled, rtol=0, atol=1e-5)


def test_a_padded_model_is_sampled_from_as_it_is_trained() -> None:
    """Not from a copy in the compute type, in which some layers cannot be computed at all."""
    _, ours = padded("mamba")
    sampler = SlotSampler()
    sampler.sync_weights(ours)
    assert sampler.model is ours
    assert plain_copy(ours, torch.float32).config._attn_implementation == ours.config._attn_implementation


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("family", ["falcon_h1", "jamba", "mamba", "qwen2_moe", "qwen3_next"])
def test_adapters_are_on_layers_that_use_them_and_are_merged_whole(family: str) -> None:
    """A state-space layer reads matrices past their adapters, and peft takes a shared expert for all experts."""
    model = tiny(family)
    adapt(model, Lora(rank=4), seed=1)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.05 * torch.randn(weight.shape, generator=noise))
    plain = plain_copy(model, torch.float32)
    take_over(plain, model)
    tokens = torch.tensor([some_tokens(20, 1)])
    with torch.no_grad():
        assert float((model(tokens).logits - tiny(family)(tokens).logits).abs().max()) > 0.1
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=0, atol=1e-4)
    model(tokens).logits.square().sum().backward()
    adapters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert adapters
    for name, weight in adapters.items():
        assert ".lora_" in name
        assert weight.grad is not None, f"{name} is not used"
        assert weight.grad.any(), f"{name} is not used"


@pytest.mark.parametrize("family", ["granite", "granitemoe", "cohere", "cohere2"])
def test_scaled_logits_are_computed_and_sampled(family: str) -> None:
    plain = tiny(family)
    ours = copy.deepcopy(plain)
    take_attention(ours)
    assert packs(ours)
    found, _ = answer_logprobs(ours, pack_answers(GROUPS, "cpu"), temperature=0.7)
    expected = []
    for prompt, answers in GROUPS:
        for answer in answers:
            tokens = torch.tensor([prompt + answer])
            scores = (plain(tokens).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            expected.append(scores.gather(1, tokens[0, len(prompt) :, None])[:, 0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)
    verify_parity(ours, plain)
    with pytest.raises(ModelError, match="not computed here as in transformers"):
        verify_parity(ours, tiny(family, **{"logits_scaling" if "granite" in family else "logit_scale": 5.0}))


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def theirs(family: str, policy_folder: Path, folder: Path) -> Path:
    """A Base of the family in `folder/theirs`, with a tokenizer."""
    tokenizer = load_tokenizer(policy_folder / "model")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    save(tiny(family, vocab_size=len(tokenizer), **special), tokenizer, folder / "theirs")
    return folder / "theirs"


@pytest.mark.parametrize("family", ["gpt_oss", "lfm2", "mamba"])
def test_a_base_that_is_computed_padded_is_taken_with_a_word(family: str, policy_folder: Path, tmp_path: Path) -> None:
    progress = Listening()
    base = theirs(family, policy_folder, tmp_path)
    import_base(context(tmp_path, "base", progress), BaseImport(name="theirs"), tmp_path, {"theirs": base})
    assert any("cannot compute packed rows" in line for line in progress.said)


def test_check_says_what_is_computed_padded_and_counts_it(policy_folder: Path, tmp_path: Path) -> None:
    findings = Findings()
    _, padding, _ = open_model(str(theirs("lfm2", policy_folder, tmp_path)), lambda _: [], findings)
    assert "Lfm2ForCausalLM cannot compute packed rows" in "".join(findings.notes)
    _, packing, _ = open_model(str(policy_folder / "model"), lambda _: [], findings)
    assert len(findings.notes) == 1
    rows = Texts.of([30, 50], [20, 40])  # prompts of 10 tokens, with two answers of 10 and 20, and of 10 and 30
    assert (rows.padded(packing, sequences=2), rows.padded(padding, sequences=2)) == (1, 2 * 2 * 40 / 80)


def test_a_base_that_is_sampled_otherwise_is_refused_by_its_name(policy_folder: Path, tmp_path: Path) -> None:
    """RecurrentGemma keeps its state in its layers, and not in the cache that it is given."""
    base = theirs("recurrent_gemma", policy_folder, tmp_path)
    with pytest.raises(ModelError, match="theirs: RecurrentGemmaForCausalLM is not sampled here as in transformers"):
        import_base(context(tmp_path, "base"), BaseImport(name="theirs"), tmp_path, {"theirs": base})


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("family", ["jamba", pytest.param("qwen3_next", marks=pytest.mark.slow)])
@pytest.mark.parametrize("adapters", [False, True])
def test_every_stage_trains_a_padded_model(family: str, adapters: bool, policy_folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    theirs(family, policy_folder, tmp_path).rename(tmp_path / "model")
    before = load_policy(tmp_path / "model", attention=attention.NAME)
    assert not packs(before)
    sft, reward, grpo = (FINETUNING, REWARD, GRPO) if not adapters else map(adapted, (FINETUNING, REWARD, GRPO))
    finetune(context(tmp_path, "instruct"), sft, tmp_path, tmp_path)
    train_reward(context(tmp_path, "reward"), reward, tmp_path, tmp_path)
    scorer = RewardModel(tmp_path / "reward" / "output" / "model")
    improve(context(tmp_path, "improve"), grpo, tmp_path, tmp_path, scorer, judge=None)
    assert not packs(scorer.model)
    for stage in ("instruct", "reward"):
        losses = [row["loss"] for row in read_curve(tmp_path / stage / "output" / "curve.jsonl") if "loss" in row]
        assert losses[-1] < losses[0]
    for stage in ("instruct", "reward", "improve"):
        output = tmp_path / stage / "output" / "model"
        after: Any = load_reward(output, fresh=False) if stage == "reward" else load_policy(output)
        assert any(
            bool((weight != before.get_parameter(name)).any())
            for name, weight in after.named_parameters() if name != "score.weight"
        )
    steps = [row for row in read_curve(tmp_path / "improve" / "output" / "curve.jsonl") if "loss" in row]
    assert len(steps) == GRPO.steps
    assert all(row["sampler_mismatch"] < 1e-5 for row in steps), "what is sampled is what is trained"
