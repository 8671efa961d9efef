"""`python -m benchmarks.memory [vocabulary] [stages] [sides] [flat]`: what the work takes of memory, measured.

`vocabulary`: the peak of forward and backward over growing counts of tokens, at two sizes of vocabulary and a trunk
so small that only the logits matter, ours beside a plain cross-entropy over full logits. `stages`: the peak of
whole stages beside what `triptych check` tells of them. `sides`: the peak of a training beside TRL's for the same rows,
trained whole and with adapters. `flat`: the peak after 5 and after 100 updates of ever new rows. Every case runs in a
process of its own; the figures go to benchmarks/results/memory.json. A peak is the most that the system counted as
resident (VmHWM in proc(5): ru_maxrss of getrusage(2) is the same number, but in a child process it begins with its
parent's).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triptych.allocator import TUNABLES, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "memory.json"
MODEL = ROOT / "models" / "benchmark" / "smollm2-135m"
MIB = 2**20
SIDES = ("sft", "reward", "dpo", "grpo")
"""Rows of the benchmark whose memory is compared."""
SIZE = 0.5
"""Of their work."""

VOCABULARIES = (49_152, 262_144)
TOKENS = (2048, 4096, 8192)
SMALL: dict[str, Any] = {
    "name": "small", "wrong_rows": "skip", "seed": 1,
    "base": {"train": {"tokens": 16_384}, "text": ["text.jsonl"]},
    "instruct": {"data": ["answers.jsonl"], "batch_tokens": 4096, "muon_learning_rate": 0.01, "learning_rate": 1e-3,
               "epochs": 1},
    "feedback": [{"file": "pairs.jsonl"}],
    "reward": {"audit": {"required": False}},
    "improve": {"prompts": ["questions.jsonl"]},
    "splits": {"test": 8, "gate": 8, "validation": 8},
}
SMOLLM2: dict[str, Any] = SMALL | {
    "name": "smollm2",
    "base": {"from": str(MODEL)},
    "instruct": {"data": ["answers.jsonl"], "batch_tokens": 2048, "micro_batch": 1024, "epochs": 0.2},
    "reward": {"batch_pairs": 8, "micro_batch": 1024, "epochs": 1, "context": 128, "audit": {"required": False}},
    "gate": {"judge": {"share_of_feedback": 0.8}},
    "improve": {
        "method": "grpo", "prompts": ["questions.jsonl"], "steps": 2, "prompts_per_step": 4, "group_size": 4,
        "max_tokens": 48, "micro_batch": 1024, "eval_every": 2, "eval_prompts": 8,
    },
}
AGAIN: dict[str, Any] = SMOLLM2 | {
    "name": "again", "instruct": {**SMOLLM2["instruct"], "activation_checkpointing": True}
}
DPO: dict[str, Any] = SMOLLM2 | {
    "name": "dpo", "improve": {
        "method": "dpo", "prompts": ["questions.jsonl"], "steps": 2, "prompts_per_step": 8, "max_tokens": 48,
        "micro_batch": 1024, "eval_every": 2, "eval_prompts": 8,
    },
}


def with_adapters(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The recipe with LoRA in place of full training in every stage."""
    learners = {section: {**recipe[section], "lora": {}} for section in ("instruct", "reward", "improve")}
    return recipe | learners | {"gate": {"judge": {**recipe["gate"]["judge"], "lora": {}}}} | changes


LORA = with_adapters(SMOLLM2, name="lora")
LORA_DPO = with_adapters(DPO, name="lora-dpo")
NF4 = with_adapters(SMOLLM2, name="nf4", base={"from": str(MODEL), "quantization": "nf4"})
STAGES = ("base", "instruct", "round-1/reward", "round-1/improve")
CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (SMALL, STAGES[:2]), (SMOLLM2, STAGES), (AGAIN, STAGES[1:2]), (DPO, STAGES[3:]), (LORA, STAGES[1:]),
    (LORA_DPO, STAGES[3:]), (NF4, STAGES),
]
"""Recipes, and their stages that are run."""


def main() -> None:
    """Runs what is asked for, each case in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    names = [*(name(recipe, stage) for recipe, stages in CASES for stage in stages), *SIDES]
    parser.add_argument(
        "parts", nargs="*", help=f"vocabulary, stages, sides, flat, or one of {', '.join(names)}; by default all"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(case(**json.loads(asked.case))))
        return
    parts = set(asked.parts or ("vocabulary", "stages", "sides", "flat"))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "vocabulary" in parts:
        results["vocabulary"] = list(vocabulary())
    for recipe, stages in CASES:
        wanted = tuple(each for each in stages if parts & {"stages", name(recipe, each)})
        for row in compared(recipe, wanted) if wanted else ():
            results.setdefault("stages", {})[row.pop("name")] = row
    for side in SIDES:
        if parts & {"sides", side}:
            results.setdefault("sides", {})[side] = list(beside(side))
            keep(results)
    if "flat" in parts:
        for trained in ("sft", "grpo"):
            row = results.setdefault("flat", {})[trained] = apart(work="flat", name=trained)
            print(f"{trained:6} after 5 updates {row['early']:,} MiB, after 100 {row['late']:,}", flush=True)
    keep(results)


def keep(results: dict[str, Any]) -> None:
    """Writes the figures so far."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def vocabulary() -> Iterator[dict[str, Any]]:
    """A row for each way, vocabulary and count of tokens."""
    print(f"{'':10} {'vocabulary':>10} {'tokens':>6} {'peak, MiB':>9}")
    for way in ("ours", "full"):
        for entries in VOCABULARIES:
            for tokens in TOKENS:
                # Full logits take 18 bytes each: in the compute type, in float32, normalised, and their gradients.
                if way == "full" and 18 * entries * tokens > 0.9 * field("/proc/meminfo", "MemAvailable"):
                    print(f"{way:10} {entries:10,} {tokens:6,}   does not fit")
                    continue
                row: dict[str, Any] = {"way": way, "vocabulary": entries, "tokens": tokens}
                row["mib"] = round(apart(work="logits", **row)["mib"])
                print(f"{way:10} {entries:10,} {tokens:6,} {row['mib']:9,.0f}", flush=True)
                yield row


def name(recipe: dict[str, Any], stage: str) -> str:
    """What a stage of a recipe is called here."""
    return f"{recipe['name']}/{stage.rpartition('/')[2]}"


def compared(recipe: dict[str, Any], stages: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A row for each stage: MiB that are told of it, and that its process took."""
    with TemporaryDirectory() as folder:
        told = apart(work="check", recipe=recipe, folder=folder)
        for each in stages:
            took = apart(work="stage", recipe=recipe, folder=folder, name=each)["mib"]
            row: dict[str, Any] = {"name": name(recipe, each), "told": round(told[each]), "measured": round(took)}
            row["ratio"] = round(told[each] / took, 3)
            print(f"{row['name']:18} told {row['told']:6,} MiB, took {row['measured']:6,}: {row['ratio']}", flush=True)
            yield row


def beside(name: str) -> Iterator[dict[str, Any]]:
    """MiB of a row's two sides, trained whole and with adapters."""
    from benchmarks import work
    from benchmarks.rows import ROWS
    from benchmarks.worker import Worker

    row, model = ROWS[name], work.model()
    for lora in (False, True):
        took: dict[str, Any] = {"lora": lora}
        for side in ("ours", "peer"):
            with Worker(name, side, model, "cpu", SIZE, row.setting, lora=lora) as worker:
                worker.wait()
                for _ in range(2):
                    worker.run()
                took[side] = round(field(f"/proc/{worker.process}/status", "VmHWM") / MIB)
        took["ratio"] = round(took["ours"] / took["peer"], 2)
        kind = "LoRA" if lora else "whole"
        print(f"{name:6} {kind:5} ours {took['ours']:6,} MiB, TRL {took['peer']:6,}: {took['ratio']}", flush=True)
        yield took


def apart(**arguments: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(arguments)]
    environment = os.environ | {VARIABLE: TUNABLES}  # as the command line begins
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def case(work: str, **arguments: Any) -> dict[str, Any]:
    """What a process of its own does."""
    from triptych.engine.device import settle

    settle()
    works: dict[str, Callable[..., dict[str, Any]]] = {
        "logits": logits, "check": check, "stage": stage, "flat": flat
    }
    return works[work](**arguments)


def logits(way: str, vocabulary: int, tokens: int) -> dict[str, float]:
    """MiB of one forward and backward pass over what was held before it: model, gradients and optimizer."""
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from triptych.engine import attention
    from triptych.engine.device import autocast
    from triptych.engine.forward import answer_logprobs, hidden_states, pack_answers

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    ))
    model.set_attn_implementation(attention.NAME)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def learn(rows: int) -> None:
        drawn = torch.randint(3, vocabulary, (rows, 257), generator=torch.Generator().manual_seed(1)).tolist()
        packed = pack_answers([([], [row]) for row in drawn], model.device)
        with autocast():
            if way == "ours":
                loss = -answer_logprobs(model, packed)[0].sum()
            else:
                states = hidden_states(model, packed.pack)
                scores = model.get_output_embeddings()(states[packed.predictions.places]).float()
                loss = F.cross_entropy(scores, packed.predictions.targets, reduction="sum")
        loss.backward()

    learn(1)  # gradients, optimizer states and compiled kernels are there before the baseline is taken
    optimizer.step()
    before = forget_peak()
    learn(tokens // 256)
    return {"mib": peak() - before}


def flat(name: str) -> dict[str, float]:
    """MiB that a training had at its peak after 5 and after 100 updates."""
    from benchmarks import work
    from benchmarks.ours import artifact
    from scripts.public import find_set
    from triptych.data.files import read_conversations, write
    from triptych.engine.scoring import RewardModel
    from triptych.improve.grpo import Grpo
    from triptych.improve.improvement import improve
    from triptych.instruct.finetuning import Finetuning, finetune
    from triptych.pipeline.stage import StageContext
    from triptych.progress import Silent

    peaks: list[float] = []

    class Watched(Silent):
        def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
            if "loss" in numbers:
                peaks.append(peak())

    model = work.model()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        rows = read_conversations(find_set("alpaca"), skipped=[])[:1100]
        context = StageContext(place, place, Watched(), seed=0, checkpoint_seconds=float("inf"))
        start = artifact(place / "start", model)
        if name == "sft":
            write(place / "demonstrations.jsonl", rows)
            write(place / "demonstrations_heldout.jsonl", rows[:1])
            finetune(context, Finetuning(epochs=1, batch_tokens=1024, learning_rate=1e-5), start, place)
        else:
            write(place / "prompts_improve.jsonl", [row.prompt for row in rows])
            write(place / "prompts_validation.jsonl", [rows[0].prompt])
            method = Grpo(
                steps=101, eval_every=101, prompts_per_step=2, group_size=4, max_tokens=48, learning_rate=1e-6
            )
            improve(context, method, start, place, RewardModel(work.reward_model(model)), judge=None)
    return {"early": round(peaks[4]), "late": round(peaks[99])}


def check(recipe: dict[str, Any], folder: str) -> dict[str, float]:
    """MiB of each stage by `triptych check`."""
    from triptych.preflight.check import check

    findings = check(written(recipe, Path(folder)))
    assert not findings.problems, findings.problems
    return {cost.stage: cost.gib * 1024 for cost in findings.costs}


def stage(recipe: dict[str, Any], folder: str, name: str) -> dict[str, float]:
    """MiB of a process that runs one stage.

    What it starts from in `folder` is made where it is missing; then the process begins anew, for the making is no part
    of what is measured.
    """
    from triptych import recipe as recipes
    from triptych.base.pretrained import BaseImport, import_base
    from triptych.base.pretraining import pretrain
    from triptych.dataset.preparation import prepare_data
    from triptych.improve.improvement import improve
    from triptych.instruct.finetuning import finetune
    from triptych.pipeline.stage import StageContext
    from triptych.progress import Silent
    from triptych.reward.registry import open_reward
    from triptych.reward.training import PairwiseReward, train_reward

    place = Path(folder)
    loaded = recipes.load(written(recipe, place))

    def context(output: str) -> StageContext:
        (place / output).mkdir(exist_ok=True)
        return StageContext(place / output, place, Silent(), loaded.seed, checkpoint_seconds=1e9)

    def take_base() -> None:
        origin = loaded.base
        assert isinstance(origin, recipes.TakenBase)
        config = BaseImport(name=origin.from_.name, quantization=origin.quantization)
        import_base(context("base"), config, data, {origin.from_.name: origin.from_.path})

    data, base, reward = place / "data", place / "base", place / "round-1-reward"
    missing = [
        folder for folder, needed in (
            (data, True), (base, name != "base" and loaded.pretraining is None), (reward, name == "round-1/improve")
        ) if needed and not folder.exists()
    ]
    if data in missing:
        prepare_data(context("data"), loaded.preparation, loaded.sources)
    if base in missing:
        take_base()
    if reward in missing:
        assert isinstance(loaded.reward.model, PairwiseReward)
        train_reward(context(reward.name), loaded.reward.model, base, data)
    if missing:
        os.execv(sys.executable, sys.orig_argv)
    if name == "base":
        if loaded.pretraining is None:
            take_base()
        else:
            pretrain(context("base"), loaded.pretraining, data)
    elif name == "instruct":
        assert loaded.finetuning is not None
        finetune(context("instruct"), loaded.finetuning, base, data)
    elif name == "round-1/reward":
        assert isinstance(loaded.reward.model, PairwiseReward)
        train_reward(context(reward.name), loaded.reward.model, base, data)
    else:
        scorer = open_reward(reward, identity="benchmark")
        judge = open_reward(reward, identity="benchmark", name="judge")
        improve(context("improve"), loaded.improve.method, base, data, scorer, judge, feedback=data)
    return {"mib": peak()}


def written(recipe: dict[str, Any], folder: Path) -> Path:
    """The recipe in a file, with its data beside it: 300 conversations, and the next 60 conversations' prompts."""
    from benchmarks import work
    from scripts.public import find_set
    from triptych.data.files import read_comparisons, read_conversations, read_documents, write

    path = folder / "recipe.yaml"
    if not path.exists():
        if "from" in recipe["base"]:
            work.model()  # where MODEL is
        rows = read_conversations(find_set("alpaca"), skipped=[])[:360]
        write(folder / "answers.jsonl", rows[:300])
        write(folder / "questions.jsonl", [row.prompt for row in rows[300:]])
        write(folder / "pairs.jsonl", read_comparisons(find_set("pandalm"), skipped=[]))
        write(folder / "text.jsonl", read_documents(find_set("tinyshakespeare")))
        path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def forget_peak() -> float:
    """Sets the process's peak back to what it holds now, in MiB."""
    from triptych.engine import device

    device.forget_peak()
    return peak()


def peak() -> float:
    """The most that this process had resident, in MiB."""
    return field("/proc/self/status", "VmHWM") / MIB


def field(path: str, name: str) -> int:
    """Bytes, of a line such as "MemAvailable: 123 kB"."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
