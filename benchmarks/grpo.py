"""A GRPO step, all included (sampling, scores, reference, update): ours beside TRL's GRPOTrainer.

Groups of 8 answers of at most 256 tokens, a KL term, the same reward model. The answers are drawn, so the sides
sample different ones; the speed counts completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.row import Case, Row, Run, Setting
from benchmarks.updates import MANY

PROMPTS = 4
GROUP = 8
MAX_TOKENS = 256
KL = 0.04


def ours(case: Case) -> Iterator[Run]:
    """GRPO by `triptych.improve.improvement.improve`."""
    from benchmarks import work
    from benchmarks.ours import artifact, lora, stepped
    from triptych.data.files import write
    from triptych.engine.models import load_tokenizer
    from triptych.engine.scoring import RewardModel
    from triptych.improve.grpo import Grpo
    from triptych.improve.improvement import improve

    prompts = work.prompts(load_tokenizer(case.model), case.count(PROMPTS))
    write(case.scratch / "prompts_improve.jsonl", prompts)
    write(case.scratch / "prompts_validation.jsonl", prompts[:1])
    champion = artifact(case.scratch / "champion", case.model)
    reward = RewardModel(work.reward_model(case.model))
    config = Grpo(
        steps=MANY, eval_every=MANY, prompts_per_step=len(prompts), group_size=GROUP, kl_coefficient=KL,
        max_tokens=MAX_TOKENS, learning_rate=1e-6, lora=lora(case),
    )
    with _heard() as calls:
        for update in stepped(
            lambda context: improve(context, config, champion, case.scratch, reward, judge=None), case.scratch
        ):
            prompt_tokens = sum(len(group[0].prompt_tokens) for group in calls[-1])
            sampled = sum(len(answer.tokens) for group in calls[-1] for answer in group)
            yield _run(case, update.seconds, prompt_tokens, sampled)


@contextmanager
def _heard() -> Iterator[list[list[list[Any]]]]:
    """What the policy writes meanwhile, call by call."""
    from triptych.engine.rollout import Policy

    calls: list[list[list[Any]]] = []
    write = Policy.write

    def writing(*args: Any, **kwargs: Any) -> list[list[Any]]:
        calls.append(write(*args, **kwargs))
        return calls[-1]

    setattr(Policy, "write", writing)  # noqa: B010 (a method is no plain attribute to the type checker)
    try:
        yield calls
    finally:
        setattr(Policy, "write", write)  # noqa: B010


def peer(case: Case) -> Iterator[Run]:
    """TRL's GRPOTrainer."""
    from benchmarks import work
    from benchmarks.peer import stepped
    from triptych.data.template import prompt_tokens
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    reward = work.reward_model(case.model)
    prompts = work.prompts(tokenizer, case.count(PROMPTS))
    asked = sum(len(prompt_tokens(tokenizer, prompt)) for prompt in prompts)
    for update in stepped(trainer(case, case.model, reward, prompts, tokenizer)):
        yield _run(case, update.seconds, asked, update.numbers["completions/mean_length"] * len(prompts) * GROUP)


def trainer(case: Case, model: Path, reward: Path, prompts: list[Any], tokenizer: Any) -> Any:
    """A GRPOTrainer with a reward model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.peer import adapters, arguments, load
    from triptych.records import to_json

    answers = len(prompts) * GROUP
    return GRPOTrainer(
        load(AutoModelForCausalLM, model, case.setting),
        reward_funcs=load(AutoModelForSequenceClassification, reward, case.setting),
        reward_processing_classes=tokenizer,
        args=arguments(
            GRPOConfig, case, answers, num_generations=GROUP, generation_batch_size=answers,
            max_completion_length=MAX_TOKENS, beta=KL, temperature=1.0, mask_truncated_completions=True,
            use_transformers_continuous_batching=case.setting.continuous, learning_rate=1e-6,
        ),
        train_dataset=Dataset.from_list([to_json(prompt) for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=adapters(case),
    )


def _run(case: Case, seconds: float, prompt_tokens: float, sampled: float) -> Run:
    """Sampling, reward and reference are a forward pass each, the update is a forward and a backward pass."""
    from benchmarks.flops import Size

    size, tokens = Size.read(case.model), prompt_tokens + sampled
    flops = 2 * size.forward(tokens, sampled) + size.forward(tokens) + size.training(tokens, sampled)
    return Run(seconds, sampled, tokens, flops)


ROWS = (
    Row(
        "grpo", f"GRPO, groups of {GROUP}, KL, all included", "completion tokens", 4, ours, peer,
        sets=("alpaca",),
        setting=Setting(batch=4),
        sweep={
            "batch": (4, 0),
        },
    ),
)
