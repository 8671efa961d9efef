"""Direct preference optimisation on PandaLM pairs, the reference included: ours beside TRL's DPOTrainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.row import Case, Row, Run, Setting
from benchmarks.updates import MANY

PAIRS_OF_AN_UPDATE = 24  # those of the reward model's row
BETA = 0.1


def ours(case: Case) -> Iterator[Run]:
    """DPO by `triptych.improve.improvement.improve` on given comparisons."""
    from benchmarks import work
    from benchmarks.ours import artifact, lora, stepped
    from triptych.data.files import write
    from triptych.engine.models import load_tokenizer
    from triptych.engine.scoring import RewardModel
    from triptych.improve.dpo import Dpo
    from triptych.improve.improvement import improve

    records, rows = work.comparisons(load_tokenizer(case.model), case.count(PAIRS_OF_AN_UPDATE))
    prompts = {record.prompt.key: record.prompt for record in records}
    write(case.scratch / "comparisons_train.jsonl", records)
    for name in ("improve", "validation"):  # what the stage watches at its beginning, before the clock starts
        write(case.scratch / f"prompts_{name}.jsonl", [records[0].prompt])
    champion = artifact(case.scratch / "champion", case.model)
    reward = RewardModel(work.reward_model(case.model))
    config = Dpo(
        pairs="comparisons", steps=MANY, prompts_per_step=len(prompts), kl_coefficient=BETA, max_tokens=8,
        context=work.CONTEXT, learning_rate=1e-5, lora=lora(case),
    )
    for update in stepped(
        lambda context: improve(context, config, champion, case.scratch, reward, judge=None, feedback=case.scratch),
        case.scratch,
    ):
        yield _run(case, rows, update.seconds, update.first_loss)


def peer(case: Case) -> Iterator[Run]:
    """TRL's DPOTrainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from benchmarks import work
    from benchmarks.peer import adapters, arguments, load, stepped
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    records, rows = work.comparisons(tokenizer, case.count(PAIRS_OF_AN_UPDATE))
    # As text that the template has been applied to, so that both sides see the same tokens.
    dataset = Dataset.from_list([{
        "prompt": tokenizer.decode(row.prompt), "chosen": record.chosen, "rejected": record.rejected,
    } for record, row in zip(records, rows, strict=True)])
    trainer = DPOTrainer(
        load(AutoModelForCausalLM, case.model, case.setting),
        args=arguments(DPOConfig, case, len(rows), beta=BETA, max_length=None),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapters(case),
    )
    for update in stepped(trainer):
        yield _run(case, rows, update.seconds, update.first_loss)


def _run(case: Case, rows: list[Any], seconds: float, loss: float) -> Run:
    """The policy's forward and backward pass and the reference's forward pass."""
    from benchmarks.flops import Size
    from benchmarks.reward import needed

    tokens = needed(rows)
    answers = sum(len(answer) for _, answer in {(r.prompt, a) for r in rows for a in (r.chosen, r.rejected)})
    size = Size.read(case.model)
    flops = size.training(tokens, answers) + size.forward(tokens, answers)
    return Run(seconds, len(rows), tokens, flops, (loss,))


ROWS = (
    Row(
        "dpo", "DPO, PandaLM, reference included", "pairs", 6, ours, peer, tolerance=0.02, sets=("pandalm",),
        setting=Setting(batch=1),
        sweep={
            "batch": (1, 4),
            "precision": ("bfloat16", "autocast"),
        },
    ),
)
