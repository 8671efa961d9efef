"""A Bradley-Terry reward model on PandaLM pairs: ours beside TRL's RewardTrainer, from the same fresh head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.row import Case, Row, Run, Setting
from benchmarks.updates import MANY

PAIRS_OF_AN_UPDATE = 24
CENTRING = 0.01


def ours(case: Case) -> Iterator[Run]:
    """`triptych.reward.training.train_reward`."""
    from benchmarks import work
    from benchmarks.ours import artifact, lora, stepped
    from triptych.data.files import write
    from triptych.engine.models import load_tokenizer
    from triptych.reward.training import PairwiseReward, train_reward

    records, rows = work.comparisons(load_tokenizer(case.model), case.count(PAIRS_OF_AN_UPDATE))
    write(case.scratch / "comparisons_train.jsonl", records)
    start = artifact(case.scratch / "start", work.reward_model(case.model))
    config = PairwiseReward(
        refresh_epochs=MANY, batch_pairs=len(rows), context=work.CONTEXT, center_rewards_coefficient=CENTRING,
        learning_rate=1e-5, lora=lora(case),
    )
    for update in stepped(lambda context: train_reward(context, config, start, case.scratch), case.scratch):
        yield _run(case, rows, update.seconds, update.first_loss)


def peer(case: Case) -> Iterator[Run]:
    """TRL's RewardTrainer."""
    from benchmarks import work
    from benchmarks.peer import stepped
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    start = work.reward_model(case.model)
    _, rows = work.comparisons(tokenizer, case.count(PAIRS_OF_AN_UPDATE))
    for update in stepped(trainer(case, start, rows, tokenizer)):
        yield _run(case, rows, update.seconds, update.first_loss)


def trainer(case: Case, model: Path, rows: list[Any], tokenizer: Any) -> Any:
    """A RewardTrainer on pairs that are tokens already."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from benchmarks.peer import adapters, arguments, load

    dataset = Dataset.from_list([
        {"chosen_ids": [*row.prompt, *row.chosen], "rejected_ids": [*row.prompt, *row.rejected]} for row in rows
    ])
    return RewardTrainer(
        load(AutoModelForSequenceClassification, model, case.setting, num_labels=1),
        args=arguments(RewardConfig, case, len(rows), max_length=None, center_rewards_coefficient=CENTRING),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapters(case),
    )


def needed(rows: list[Any]) -> int:
    """Tokens of the pairs that must be computed, each prompt and each distinct answer once."""
    from benchmarks import flops

    groups: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for row in rows:
        groups.setdefault(row.prompt, {}).update(dict.fromkeys((row.chosen, row.rejected)))
    return flops.needed([(prompt, list(answers)) for prompt, answers in groups.items()])


def _run(case: Case, rows: list[Any], seconds: float, loss: float) -> Run:
    from benchmarks.flops import Size

    tokens = needed(rows)
    return Run(seconds, len(rows), tokens, Size.read(case.model).training(tokens), (loss,))


ROWS = (
    Row(
        "reward", "reward model, PandaLM", "pairs", 3, ours, peer, tolerance=0.02, sets=("pandalm",),
        setting=Setting(batch=4),
        sweep={
            "batch": (1, 4, 0),
            "precision": ("bfloat16", "autocast"),
        },
    ),
)
