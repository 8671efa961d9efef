"""A reward model on people's preferences: what each choice of its design is worth.

    python -m benchmarks.reward_people try                  every variant, measured on the validation comparisons
    python -m benchmarks.reward_people test usual           the chosen one, measured once on the test comparisons

PandaLM's and HH's comparisons are put together and split by prompt: 65% train, 15% choose,
20% test. Each variant changes one thing of the usual settings and starts from SmolLM2-135M-Instruct, or from a short
fine-tuning of it. What was measured lies in benchmarks/results/reward-people.json, and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.table import RESULTS, dump
from scripts.public import find_set
from triptych.audit.agreement import outcomes
from triptych.audit.stage import Audit, Evidence, examine, scored
from triptych.data.files import read_comparisons, write
from triptych.data.splits import split
from triptych.engine.device import settle
from triptych.engine.models import load_tokenizer
from triptych.engine.scoring import RewardModel
from triptych.errors import Fault
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation
from triptych.reward.ensemble import Ensemble
from triptych.reward.training import PairwiseReward, train_reward
from triptych.statistics.intervals import mean_interval

SEED = 2026
SETS = ("pandalm", "hh_harmless")
SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}
USUAL: dict[str, Any] = {
    "epochs": 1, "learning_rate": 1e-4, "batch_pairs": 16, "context": 192, "micro_batch": 2048, "margin": "none",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "3e-5": {"learning_rate": 3e-5},
    "2e-4": {"learning_rate": 2e-4},
    "second seed": {},
    "third seed": {},
    "margin from votes": {"margin": "votes"},
    "after fine-tuning": {},
    "two epochs": {"epochs": 2},
    "context 384": {"context": 384},
}
SEEDS = {"second seed": 1, "third seed": 2}
ENSEMBLE = ("usual", "second seed", "third seed")
FINETUNED_ON = 256


class Bench:
    """The comparisons, and where models are trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        skipped: list[Fault] = []
        rows = [replace(row, source=name) for name in SETS for row in read_comparisons(find_set(name), skipped)]
        print(f"{len(rows)} comparisons, {len(skipped)} rows left out as wrong", flush=True)
        self.parts = split("benchmark: people", rows, SHARES, SEED)
        self.start = folder / "start"
        self.start.mkdir(exist_ok=True)
        if not (self.start / "model").exists():
            (self.start / "model").symlink_to(work.model())

    def context(self, name: str) -> StageContext:
        """A place for a training."""
        (self.folder / name / "output").mkdir(parents=True, exist_ok=True)
        return StageContext(self.folder / name / "output", self.folder / name, Silent(), SEED, 600.0)

    def finetuned(self) -> Path:
        """SmolLM2 after a short fine-tuning on Alpaca rows."""
        context = self.context("finetuned")
        records, _ = work.conversations(load_tokenizer(work.model()), FINETUNED_ON)
        write(context.scratch / "demonstrations.jsonl", records)
        write(context.scratch / "demonstrations_heldout.jsonl", records[:1])
        finetune(context, Finetuning(epochs=1, learning_rate=1e-5, micro_batch=2048), self.start, context.scratch)
        return context.output

    def trained(self, name: str) -> RewardModel:
        """The variant's reward model, trained unless it lies there."""
        context = self.context(name.replace(" ", "-"))
        if not (context.output / "model").exists():
            start = self.finetuned() if name == "after fine-tuning" else self.start
            write(context.scratch / "comparisons_train.jsonl", self.parts["train"])
            config = PairwiseReward(**USUAL | VARIANTS[name])
            train_reward(context, config, start, context.scratch, member=SEEDS.get(name, 0))
        return RewardModel(context.output / "model")


def accuracies(model: Any, rows: list[Comparison]) -> dict[str, Any]:
    """Accuracy with its interval, of all comparisons and of each file's."""
    right = outcomes(*scored(model, rows))
    found: dict[str, Any] = {}
    for name in ("all", *sorted({str(row.source) for row in rows})):
        these = [(r, row.prompt.key) for r, row in zip(right, rows, strict=True) if name in ("all", str(row.source))]
        mean, interval = mean_interval([r for r, _ in these], [key for _, key in these])
        found[name] = {"accuracy": mean, "interval": interval, "comparisons": len(these)}
    return found


def trying(bench: Bench, names: list[str]) -> None:
    """Each variant on the validation comparisons."""
    path = RESULTS / "reward-people.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name in known:
            continue
        began = time.monotonic()
        model = bench.trained(name)
        seconds = time.monotonic() - began
        known[name] = {"settings": USUAL | VARIANTS[name], "seconds": round(seconds),
                       "validation": accuracies(model, bench.parts["validation"])}
        dump("reward-people", known)
        print(name, json.dumps(known[name]["validation"]), f"{seconds:.0f} s", flush=True)
    if set(ENSEMBLE) <= known.keys() and "ensemble of 3" not in known:
        ensemble = Ensemble([bench.trained(name) for name in ENSEMBLE], penalty=0.0)
        known["ensemble of 3"] = {"validation": accuracies(ensemble, bench.parts["validation"])}
        dump("reward-people", known)


class Remembered:
    """A reward model's raw scores of the answers of some comparisons, computed once."""

    name = identity = "remembered"

    def __init__(self, model: RewardModel, rows: list[Comparison]) -> None:
        answers = [Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]
        self.scores = dict(zip(answers, model.raw(answers), strict=True))

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The scores of answers that were scored before."""
        return [self.scores[each] for each in conversations]


def tested(bench: Bench, name: str) -> None:
    """The chosen variant on the test comparisons, with the whole audit."""
    model, rows = bench.trained(name), bench.parts["test"]
    known = Remembered(model, rows)
    found: dict[str, Any] = {"variant": name, "test": accuracies(known, rows)}
    for source in sorted({str(row.source) for row in rows}):
        these = [row for row in rows if str(row.source) == source]
        leads = examine(known, Evidence(these), Audit(perturbed=0)).leads
        found[source] = {rule: lead.model_dump(mode="json") for rule, lead in leads.items()}
    print(json.dumps(found, indent=1), flush=True)
    record = examine(model, Evidence(rows, bench.parts["train"]), Audit(perturbed=60))
    dump("reward-people-test", found | {"audit": record.model_dump(mode="json")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("try", "test"))
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "reward-people")
    given = parser.parse_args()
    settle()
    given.folder.mkdir(exist_ok=True)
    bench = Bench(given.folder)
    if given.what == "try":
        trying(bench, given.variants or list(VARIANTS))
    else:
        tested(bench, *given.variants)


if __name__ == "__main__":
    main()
