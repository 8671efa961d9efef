"""From a policy to an improved one: SFT, reward model, GRPO on the same rows, each side in fresh processes.

Wall time with everything that it takes: imports, loading, training, saving. Ours runs the stages one after the
other in one process, as `triptych run` does; the peer's way is a script for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import grpo, reward, sft
from benchmarks.row import Case, Row, Run

CONVERSATIONS, PAIRS, PROMPTS = 12, 8, 2


def ours(case: Case) -> Iterator[Run]:
    """`finetune`, `train_reward` and `improve` in a row."""
    return _processes(case, ["ours"])


def peer(case: Case) -> Iterator[Run]:
    """Three scripts with TRL's trainers."""
    return _processes(case, ["sft", "reward", "grpo"])


def _processes(case: Case, parts: list[str]) -> Iterator[Run]:
    yield Run(0.0, 0, 0, 0)  # fresh processes have nothing to warm up
    while True:
        with TemporaryDirectory(dir=case.scratch) as scratch:
            began = time.perf_counter()
            for part in parts:
                asked = {"part": part, "model": str(case.model), "device": case.device, "size": case.size,
                         "scratch": scratch}
                subprocess.run([sys.executable, "-m", "benchmarks.end_to_end", json.dumps(asked)], check=True)
            yield Run(time.perf_counter() - began, 1, 0, 0)


def run_ours(case: Case) -> None:
    """The three stages, each with its artifact."""
    from benchmarks import work
    from benchmarks.ours import artifact
    from triptych.data.files import write
    from triptych.engine.device import settle
    from triptych.engine.models import load_tokenizer
    from triptych.engine.scoring import RewardModel
    from triptych.improve.grpo import Grpo
    from triptych.improve.improvement import improve
    from triptych.instruct.finetuning import Finetuning, finetune
    from triptych.pipeline.stage import StageContext
    from triptych.progress import Silent
    from triptych.reward.training import PairwiseReward, train_reward

    settle()
    tokenizer = load_tokenizer(case.model)
    data = case.scratch
    conversations, pairs = (
        work.conversations(tokenizer, case.count(CONVERSATIONS))[0], work.comparisons(tokenizer, case.count(PAIRS))[0]
    )
    prompts = work.prompts(tokenizer, case.count(PROMPTS))
    for name, records in (
        ("demonstrations", conversations), ("demonstrations_heldout", conversations[:1]), ("comparisons_train", pairs),
        ("prompts_improve", prompts), ("prompts_validation", prompts[:1]),
    ):
        write(data / f"{name}.jsonl", records)

    def context(name: str) -> StageContext:
        (case.scratch / name).mkdir()
        return StageContext(case.scratch / name, case.scratch / "work", Silent(), seed=0, checkpoint_seconds=300.0)

    base = artifact(case.scratch / "base", case.model)
    instruct, scorer = case.scratch / "instruct", case.scratch / "scorer"
    finetune(context("instruct"), Finetuning(epochs=1, batch_tokens=1 << 30, learning_rate=1e-5), base, data)
    train_reward(context("scorer"), PairwiseReward(epochs=1, batch_pairs=len(pairs)), instruct, data)
    config = Grpo(
        steps=1, prompts_per_step=len(prompts), group_size=grpo.GROUP, kl_coefficient=grpo.KL,
        max_tokens=grpo.MAX_TOKENS,
    )
    improve(context("improved"), config, instruct, data, RewardModel(scorer / "model"), judge=None)


def run_script(case: Case, part: str) -> None:
    """What one script of the peer does."""
    from benchmarks import work
    from triptych.engine.models import load_tokenizer

    tokenizer = load_tokenizer(case.model)
    instruct, scorer = case.scratch / "instruct", case.scratch / "scorer"
    # Each script is set as in the row of its own.
    settings = {"sft": sft.ROWS[0].setting, "reward": reward.ROWS[0].setting, "grpo": grpo.ROWS[0].setting}
    case = replace(case, setting=settings[part])
    if part == "sft":
        rows = work.conversations(tokenizer, case.count(CONVERSATIONS))[1]
        trainer, folder = sft.trainer(case, case.model, rows, tokenizer), instruct
    elif part == "reward":
        pairs = work.comparisons(tokenizer, case.count(PAIRS))[1]
        trainer, folder = reward.trainer(case, instruct, pairs, tokenizer), scorer
    else:
        prompts = work.prompts(tokenizer, case.count(PROMPTS))
        trainer, folder = grpo.trainer(case, instruct, scorer, prompts, tokenizer), case.scratch / "improved"
    trainer.args.max_steps = 1
    trainer.train()
    trainer.save_model(str(folder))


def main() -> None:
    """One process of a side."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    asked = json.loads(sys.argv[1])
    part = asked["part"]
    case = Case(Path(asked["model"]), asked["device"], asked["size"], Path(asked["scratch"]))
    run_ours(case) if part == "ours" else run_script(case, part)


ROWS = (
    Row("end-to-end", "SFT, reward model and GRPO, all included", "cycles", 3, ours, peer, sets=("alpaca", "pandalm")),
)

if __name__ == "__main__":
    main()
