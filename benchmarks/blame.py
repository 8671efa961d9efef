"""Is the right part blamed? Cycles of the storybook in which one part is made bad, seed after seed, and clean ones.

    python -m benchmarks.blame --seeds 10      → benchmarks/results/blame.json

A cycle has one round. A planted fault is known: a Base that saw a tenth of the text, instructions without their first
half, a reward of labels of which 49% are flipped, an optimiser that hardly moves or runs away, a gate of four prompts.
What is counted is whether the round is not promoted and that part is blamed, and whether nothing is blamed in a clean
cycle. The cycles of a seed share what the fault does not touch. Given again, the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Set
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.table import RESULTS, dump
from triptych import run
from triptych.evaluate.diagnosis import CALLED
from triptych.progress import Silent
from triptych.records import Prompt, user
from triptych.storybook.tasks import prompts

FAULTS: dict[str, tuple[list[str], list[str]]] = {
    "clean": ([], []),
    "optimiser": (["improve.learning_rate=1e-7"], ["improve.learning_rate=1e-2", "improve.kl_coefficient=0"]),
    "reward": (["feedback.0.exact.noise=0.49", "reward.audit.required=false"],) * 2,
    "gate": (["gate.prompts=4"],) * 2,
    "instructions": ([], []),
    "base": (["base.train.tokens=150000"],) * 2,
}
"""What a fault changes in the recipe, by odd and by even seeds."""
TAUGHT = 12 + 150 + 3000
"""Prompts of examples and demonstrations, which are the last; whatever is vague, Instruct is taught by clear ones."""


def halved(prompt: Prompt) -> Prompt:
    """The second half of its words alone: what is wanted is not said, and stays known to the judge."""
    words = prompt.messages[-1].content.split()
    return replace(prompt, messages=user(" ".join(words[len(words) // 2 :])))


def vague(seed: int, count: int, exclude: Set[str] = frozenset()) -> list[Prompt]:
    """The world's prompts, of which those that nothing is taught by are halved."""
    drawn: dict[str, Prompt] = {}
    for prompt in map(halved, prompts(seed + 1000, 3 * count, exclude)):
        drawn.setdefault(prompt.key, prompt)
    return list(drawn.values())[: count - TAUGHT] + prompts(seed, count, exclude)[-TAUGHT:]


def cycle(recipe: Path, runs: Path, fault: str, seed: int) -> dict[str, Any]:
    """One cycle, and what was blamed in it."""
    began = time.monotonic()
    changes = [f"seed={seed}", *FAULTS[fault][1 - seed % 2]]
    unclear = fault == "instructions"  # the one that is no setting of the recipe
    with patch("triptych.storybook.world.prompts", vague) if unclear else nullcontext():
        shared = runs / ("vague" if unclear else "clear") / str(seed)
        summary = run(recipe, changes, runs=shared, progress=Silent())
    assert summary is not None
    last = summary.rounds[-1]
    blamed = last.diagnosis and next((part for part, name in CALLED.items() if name == last.diagnosis.blamed), None)
    return {
        "fault": fault, "seed": seed, "decision": last.decision, "win_rate": last.win_rate, "blamed": blamed,
        "because": last.diagnosis and last.diagnosis.because, "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    """Runs the cycles that are not done yet, and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of each fault")
    parser.add_argument("--first", type=int, default=11, help="the first of them")
    parser.add_argument("--runs", type=Path, default=Path("runs/blame"))
    given = parser.parse_args()
    recipe, results = Path(__file__).with_name("blame.yaml"), RESULTS / "blame.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    done = {(row["fault"], row["seed"]) for row in rows}
    for seed in range(given.first, given.first + given.seeds):
        for fault in FAULTS:
            if (fault, seed) not in done:
                rows.append(cycle(recipe, given.runs, fault, seed))
                dump("blame", rows)
                print(json.dumps(rows[-1]), flush=True)
    for fault in FAULTS:
        counts = Counter(
            row["blamed"] or ("promoted" if row["decision"] == "promoted" else "nothing")
            for row in rows if row["fault"] == fault
        )
        print(f"{fault:12} {', '.join(f'{name} {count}' for name, count in counts.most_common())}")


if __name__ == "__main__":
    main()
