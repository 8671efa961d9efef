"""The same loss and the same first update as TRL's trainers, from the same weights on the same tokens.

Everything is computed in float32. The loss is that of the step, the update is that of AdamW after the gradient was
clipped. TRL is only a yardstick here; nothing of Triptych uses it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from test_template import BREAK_BEHIND
from triptych.data.files import write
from triptych.data.lengths import tokenized
from triptych.data.pairs import grouped
from triptych.data.template import CHATML
from triptych.engine import attention, device
from triptych.engine.curve import Curve, read_curve
from triptych.engine.models import load_policy, load_reward, load_tokenizer, save
from triptych.engine.rollout import Policy
from triptych.engine.training import Step, train
from triptych.improve import dpo, grpo, gspo, kto, on_policy, rloo
from triptych.improve.loop import Answers
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Prompt, Rollout, user
from triptych.reward.training import PairwiseReward, train_reward

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

LOSS = 1e-5
"""Largest difference of the losses, relative."""
WEIGHTS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
"""Largest difference of the weights after the update, a hundredth of what each of them moved by: AdamW divides a small
gradient by its own size, and how it was rounded differs from processor to processor."""
RATE, DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)
OURS: dict[str, Any] = {
    "learning_rate": RATE, "weight_decay": DECAY, "betas": BETAS, "max_grad_norm": 1.0, "warmup": 0.0,
    "decay": "constant",
}
THEIRS: dict[str, Any] = {
    "learning_rate": RATE, "weight_decay": DECAY, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0, "warmup_steps": 0, "lr_scheduler_type": "constant", "optim": "adamw_torch",
    "max_steps": 1, "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none",
    "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
}
QUESTIONS = ["a small cat", "a red mat and a dog", "on"]
PAIRS = [
    Comparison(Prompt(user(QUESTIONS[0])), "a red dog sat", "a cat"),
    Comparison(Prompt(user(QUESTIONS[1])), "saw", "a mat on a small red cat"),
    Comparison(Prompt(user(QUESTIONS[0])), "a cat", "no"),
    Comparison(Prompt(user(QUESTIONS[2])), "the mat", "the dog and the cat"),
]


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compute_dtype", lambda: torch.float32)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    (tmp_path / "output").mkdir()
    return StageContext(tmp_path / "output", tmp_path, Silent(), seed=1, checkpoint_seconds=60)


@pytest.fixture(scope="module")
def start(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small Llama with larger weights, so that its answers' probabilities differ."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(policy_folder / "model", initializer_range=0.2))
    save(model, load_tokenizer(policy_folder / "model"), folder / "model")
    return folder


def plain(folder: Path, kind: Any = LlamaForCausalLM) -> Any:
    return kind.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")


def messages(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    """A conversation in the form of TRL's data."""
    return [*map(asdict, prompt.messages), {"role": "assistant", "content": answer}]


def updated(trainer: Any) -> float:
    """One update by TRL; its loss."""
    return float(trainer.train().training_loss)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], before: Any) -> None:
    """The same weights, and not because nothing moved."""
    for name, weight in before.named_parameters():
        torch.testing.assert_close(found[name].detach(), expected[name].detach(), **WEIGHTS)
        assert (found[name] - weight).abs().max() > 0.5 * RATE, name


def our_update(model: Any, step: Step[Any], loss: Any, config: Any) -> Curve:
    return train(model, 1, lambda _: step, loss, config, checkpoint=None, progress=Silent())


@pytest.mark.parametrize("labelled", ["by our tokens", "by the template's marks"])
def test_supervised_fine_tuning_equals_trls_sft(
    start: Path, context: StageContext, tmp_path: Path, labelled: str
) -> None:
    """TRL with labels on the answers only and `loss_type="nll"`, its mean over all answer tokens of the batch."""
    rows = [Conversation(pair.prompt, pair.chosen) for pair in PAIRS]
    write(tmp_path / "demonstrations.jsonl", rows)
    write(tmp_path / "demonstrations_heldout.jsonl", rows[:1])
    finetune(context, Finetuning(epochs=1, micro_batch=64, **OURS), start, tmp_path)

    tokens = [tokenized(row, load_tokenizer(start / "model")) for row in rows]
    marked = labelled == "by the template's marks"
    data = datasets.Dataset.from_list([{"messages": messages(row.prompt, row.answer)} for row in rows] if marked else [
        {"input_ids": [*row.prompt, *row.answer], "labels": [-100] * len(row.prompt) + list(row.answer)}
        for row in tokens
    ])
    settings = trl.SFTConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=4, loss_type="nll", assistant_only_loss=marked, **THEIRS
    )
    trainer = trl.SFTTrainer(
        plain(start), settings, train_dataset=data, processing_class=load_tokenizer(start / "model")
    )
    assert read_curve(context.output / "curve.jsonl")[0]["loss"] == pytest.approx(updated(trainer), rel=LOSS)
    found = load_policy(context.output / "model")
    assert_same(dict(found.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


@pytest.mark.parametrize("written", [CHATML, BREAK_BEHIND], ids=["ours", "taken"])
def test_a_reward_models_training_equals_trls(
    start: Path, context: StageContext, tmp_path: Path, written: str
) -> None:
    """TRL renders the conversations itself, and reads a reward where its rendering ends."""
    tokenizer = load_tokenizer(start / "model")
    tokenizer.chat_template = written
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(LlamaConfig.from_pretrained(start / "model", num_labels=1))
    torch.nn.init.normal_(model.score.weight)
    save(model, tokenizer, tmp_path / "reward" / "model")
    write(tmp_path / "comparisons_train.jsonl", PAIRS)
    config = PairwiseReward(refresh_epochs=1, batch_pairs=8, micro_batch=64, center_rewards_coefficient=0.02, **OURS)
    train_reward(context, config, tmp_path / "reward", tmp_path)

    data = datasets.Dataset.from_list([
        {"chosen": messages(pair.prompt, pair.chosen), "rejected": messages(pair.prompt, pair.rejected)}
        for pair in PAIRS
    ])
    settings = trl.RewardConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=4, center_rewards_coefficient=0.02, **THEIRS
    )
    kind = LlamaForSequenceClassification
    trainer = trl.RewardTrainer(
        plain(tmp_path / "reward", kind), settings, train_dataset=data, processing_class=tokenizer
    )
    assert read_curve(context.output / "curve.jsonl")[0]["loss"] == pytest.approx(updated(trainer), rel=LOSS)
    found = load_reward(context.output / "model", fresh=False)
    before = plain(tmp_path / "reward", kind)
    assert_same(dict(found.named_parameters()), dict(trainer.model.named_parameters()), before)


def moved(folder: Path) -> Any:
    """Another model than the one in the folder, near it: a reference."""
    model = plain(folder)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=draw))
    return model


def with_our_attention(model: Any) -> Any:
    mine = copy.deepcopy(model)
    mine.set_attn_implementation(attention.NAME)
    return mine


def test_dpo_equals_trls(start: Path, tmp_path: Path) -> None:
    """TRL with `loss_type="sigmoid"`, no label smoothing, and `beta` at our `kl`."""
    tokenizer = load_tokenizer(start / "model")
    tokens = [tokenized(pair, tokenizer) for pair in PAIRS]
    reference, config = moved(start), dpo.Dpo(kl_coefficient=0.3, **OURS)
    model = load_policy(start / "model", attention=attention.NAME)
    step = dpo.step(with_our_attention(reference), grouped(tokens, range(1, 5)), micro_batch=64)
    assert len(step.batches) > 1
    curve = our_update(model, step, lambda pairs: dpo.loss(model, pairs, config), config)

    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    settings = trl.DPOConfig(
        str(tmp_path), per_device_train_batch_size=4, loss_type="sigmoid", beta=0.3, **THEIRS
    )
    trainer = trl.DPOTrainer(
        plain(start), reference, settings, train_dataset=datasets.Dataset.from_list([text]), processing_class=tokenizer
    )
    trainer.train_dataset = datasets.Dataset.from_list([
        {"prompt_ids": list(row.prompt), "chosen_ids": list(row.chosen), "rejected_ids": list(row.rejected)}
        for row in tokens
    ])
    assert curve[0]["loss"] == pytest.approx(updated(trainer), rel=LOSS)
    assert_same(dict(model.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


def test_kto_equals_trls(start: Path, tmp_path: Path) -> None:
    """TRL with `loss_type="kto"`, `beta` at our `kl_coefficient`, and the weights of the same names."""
    tokenizer = load_tokenizer(start / "model")
    tokens = [tokenized(Conversation(pair.prompt, pair.chosen), tokenizer) for pair in PAIRS]
    rows = [kto.Liked(row.prompt, row.answer, place != 1) for place, row in enumerate(tokens)]
    reference = moved(start)
    config = kto.Kto(kl_coefficient=0.3, desirable_weight=0.8, undesirable_weight=1.5, **OURS)
    model = load_policy(start / "model", attention=attention.NAME)
    step = kto.step(model, with_our_attention(reference), rows, micro_batch=64)
    assert len(step.batches) > 1
    assert step.numbers["distance"] > 0
    curve = our_update(model, step, lambda batch: kto.loss(model, batch, config), config)

    settings = trl.KTOConfig(
        str(tmp_path), per_device_train_batch_size=4, loss_type="kto", beta=0.3, desirable_weight=0.8,
        undesirable_weight=1.5, **THEIRS,
    )
    text = {"prompt": "a", "completion": "b", "label": True}
    trainer = trl.KTOTrainer(
        plain(start), reference, settings, train_dataset=datasets.Dataset.from_list([text] * 4),
        processing_class=tokenizer,
    )
    trainer.train_dataset = datasets.Dataset.from_list([
        {"prompt_ids": list(row.prompt), "completion_ids": list(row.answer), "label": row.liked,
         "KL_completion_ids": list(rows[place - 1].answer)} for place, row in enumerate(rows)
    ])
    assert curve[0]["loss"] == pytest.approx(updated(trainer), rel=LOSS)
    assert_same(dict(model.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


@pytest.mark.parametrize("estimator", ["k3_ratio", "k3"])
def test_grpo_equals_trls(start: Path, tmp_path: Path, estimator: Literal["k3_ratio", "k3"]) -> None:
    """TRL with the options below, handed our completions and our rewards.

    `loss_type="dapo"` is the mean over all tokens that count, `scale_rewards="group"` our advantage,
    `mask_truncated_completions` leaves answers out that were cut, `beta` is our `kl`, `epsilon` our `ratio_clip`, and
    `use_bias_correction_kl`, TRL's default, weighs the penalty by the ratio; without it the gradient is that of Shao et
    al. (2024).
    """
    tokenizer = load_tokenizer(start / "model")
    groups, rewards = some_answers(tokenizer), torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]])
    reference = moved(start)
    config = grpo.Grpo(group_size=3, kl_coefficient=0.2, ratio_clip=0.2, importance_cap=None, cut_price=None,
    kl_estimator=estimator,
                       micro_batch=64, **OURS)
    model = load_policy(start / "model", attention=attention.NAME)
    step = grpo.step(Policy(with_our_attention(reference), tokenizer), Answers(groups, rewards), config)
    assert len(step.batches) > 1
    curve = our_update(model, step, lambda batch: on_policy.loss(model, batch, config), config)

    settings = trl.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=6, num_generations=3, max_completion_length=32, loss_type="dapo",
        scale_rewards="group", mask_truncated_completions=True, beta=0.2,
        use_bias_correction_kl=estimator == "k3_ratio", epsilon=0.2, num_iterations=1,
        temperature=1.0, shuffle_dataset=False, **THEIRS,
    )
    trainer = trl.GRPOTrainer(
        plain(start), lambda reward, **_: reward, settings, rollout_func=handed(groups, rewards),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in QUESTIONS[:2]]),
    )
    trainer.ref_model.load_state_dict(reference.state_dict())
    assert curve[0]["loss"] == pytest.approx(updated(trainer), rel=LOSS)
    assert_same(dict(model.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


@pytest.mark.parametrize("name", ["grpo", "cispo", "gspo"])
def test_a_second_update_on_the_same_answers_equals_trls(start: Path, tmp_path: Path, name: str) -> None:
    """TRL with `num_iterations=2`, so that ratios are not 1 and the clips act.

    CISPO is `loss_type="cispo"`, whose `epsilon_high` is our 1 + `clip_higher`. GSPO is
    `importance_sampling_level="sequence"` with `loss_type="grpo"`, the mean over answers.
    """
    tokenizer = load_tokenizer(start / "model")
    model, reference = load_policy(start / "model", attention=attention.NAME), moved(start)
    rewards = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]])
    groups = [[replace(each, finished=True) for each in group] for group in some_answers(tokenizer)]
    written = iter(Policy(model, tokenizer).logprobs(groups))
    groups = [[replace(each, logprobs=tuple(next(written).tolist())) for each in group] for group in groups]
    cases: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
        "grpo": (grpo, {}, {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.2}),
        "cispo": (grpo, {"objective": "cispo"}, {"loss_type": "cispo", "epsilon": 0.1, "epsilon_high": 1.2}),
        "gspo": (gspo, {}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1,
                            "epsilon_high": 0.2}),
    }
    kind, options, theirs = cases[name]
    config: Any = (gspo.Gspo if kind is gspo else grpo.Grpo)(
        group_size=3, kl_coefficient=0.2, kl_estimator="k3", updates_per_rollout=2, ratio_clip=0.1, clip_higher=0.2,
        importance_cap=None, micro_batch=64, **options, **OURS,
    )
    step = kind.step(Policy(with_our_attention(reference), tokenizer), Answers(groups, rewards), config)
    of_batch = gspo.loss if kind is gspo else on_policy.loss
    curve = train(model, 2, lambda _: step, lambda batch: of_batch(model, batch, config), config, checkpoint=None,
                  progress=Silent())
    assert (curve[0]["clipped"], 0 < curve[1]["clipped"] < 0.9) == (0, True)

    settings = trl.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=6, num_generations=3, max_completion_length=32,
        scale_rewards="group", mask_truncated_completions=False, beta=0.2, use_bias_correction_kl=False,
        num_iterations=2, temperature=1.0, shuffle_dataset=False, **theirs, **THEIRS | {"max_steps": 2},
    )
    trainer = trl.GRPOTrainer(
        plain(start), lambda reward, **_: reward, settings, rollout_func=handed(groups, rewards),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in QUESTIONS[:2]]),
    )
    trainer.ref_model.load_state_dict(reference.state_dict())
    assert (curve[0]["loss"] + curve[1]["loss"]) / 2 == pytest.approx(updated(trainer), rel=LOSS)
    assert_same(dict(model.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


def test_rloos_update_equals_trls(start: Path, tmp_path: Path) -> None:
    """TRL with `beta` at our `kl`; it counts an answer's ratio once, where ours counts each token's: at the first
    update both are 1, and only the gradient is the same."""
    tokenizer = load_tokenizer(start / "model")
    model, reference = load_policy(start / "model", attention=attention.NAME), moved(start)
    rewards = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]])
    groups = [[replace(each, finished=True) for each in group] for group in some_answers(tokenizer)]
    written = iter(Policy(model, tokenizer).logprobs(groups))
    groups = [[replace(each, logprobs=tuple(next(written).tolist())) for each in group] for group in groups]
    config = rloo.Rloo(group_size=3, kl_coefficient=0.2, micro_batch=64, **OURS)
    step = rloo.step(Policy(with_our_attention(reference), tokenizer), Answers(groups, rewards), config)
    our_update(model, step, lambda batch: on_policy.loss(model, batch, config), config)

    settings = trl.RLOOConfig(
        str(tmp_path), per_device_train_batch_size=6, num_generations=3, max_completion_length=32, beta=0.2,
        mask_truncated_completions=False, normalize_advantages=False, epsilon=0.2, num_iterations=1, temperature=1.0,
        shuffle_dataset=False, use_transformers_continuous_batching=True, **THEIRS,
    )
    answers = [each for group in groups for each in group]

    def generate_batch(prompts: list[list[int]], **_: object) -> dict[int, Any]:
        assert prompts == [list(each.prompt_tokens) for each in answers]
        return {place: SimpleNamespace(generated_tokens=list(each.tokens)) for place, each in enumerate(answers)}

    policy = plain(start)
    policy.generate_batch = generate_batch  # the only place at which its trainer takes answers
    trainer = trl.RLOOTrainer(
        policy, lambda **_: rewards.flatten().tolist(), settings, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([
            {"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS[:2]
        ]),
    )
    trainer.ref_model.load_state_dict(reference.state_dict())
    updated(trainer)
    assert_same(dict(model.named_parameters()), dict(trainer.model.named_parameters()), plain(start))


def handed(groups: list[list[Rollout]], rewards: torch.Tensor) -> Callable[..., dict[str, Any]]:
    """What TRL is given in the place of its own sampling."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        answers = [group[k] for text, group in zip(QUESTIONS, groups, strict=False) for k in range(3)]
        assert prompts == [text for text in QUESTIONS[:2] for _ in range(3)]
        return {
            "prompt_ids": [list(each.prompt_tokens) for each in answers],
            "completion_ids": [list(each.tokens) for each in answers],
            "logprobs": [list(each.logprobs) for each in answers],
            "reward": rewards.flatten().tolist(),
        }

    return rollout


def some_answers(tokenizer: Any) -> list[list[Rollout]]:
    """Three answers to each of two prompts; one of them was cut."""
    answers = [["a red dog", "the mat on the mat", "no"], ["saw a cat", "a", "a small cat and a dog"]]
    groups = []
    for question, texts in zip(QUESTIONS, answers, strict=False):
        group = []
        for text in texts:
            row = tokenized(Conversation(Prompt(user(question)), text), tokenizer)
            cut = text == "the mat on the mat"
            tokens = row.answer[:-1] if cut else row.answer
            group.append(Rollout(Prompt(user(question)), row.prompt, tokens, (0.0,) * len(tokens), text, not cut))
        groups.append(group)
    return groups
