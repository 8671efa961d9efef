"""How close a reward model comes to the best that its labels allow, and whether the audit sees what is wrong with them.

    triptych run recipes/quickstart.yaml --until round-1/feedback
    python benchmarks/reward_labels.py noise runs/quickstart      → docs/results/reward-labels.svg
    python benchmarks/reward_labels.py length runs/quickstart

The answers are those that the run's Instruct model wrote, in the comparisons of its first round; the labels are made
anew from the exact judge's scores. With a share of labels flipped no model can agree with held-out ones more often
than one less that share. Held-out prompts are never trained on; half of them choose the number of epochs, the other
half are measured on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from triptych.audit.agreement import outcomes
from triptych.audit.record import AuditRecord
from triptych.audit.stage import Audit, Evidence, examine, scored
from triptych.data.files import read_comparisons, write
from triptych.data.splits import fraction, split
from triptych.engine.device import settle
from triptych.engine.scoring import RewardModel
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation
from triptych.reward.training import PairwiseReward, train_reward
from triptych.statistics.intervals import mean_interval
from triptych.storybook.judge import ExactJudge

SEED = 1234
NOISES = (0.0, 0.1, 0.25)
SIZES = (200, 1000, 5000)
EPOCHS = (2, 4)
BIAS = 0.6
"""The share of labels that a planted bias gives to the longer answer, whatever it says."""
WITHIN = 0.03
"""The goal: so near to the ceiling."""

Rows = list[Comparison]


def relabelled(rows: Sequence[Comparison], noise: float = 0.0, bias: float = 0.0) -> Rows:
    """The better answer by the exact judge chosen, at the rate `bias` the longer one, flipped at the rate `noise`."""
    judge = ExactJudge()
    answers = [Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]
    scores = judge.score(answers)
    found = []
    for place, row in enumerate(rows):
        first = scores[2 * place] > scores[2 * place + 1]
        key = f"{place} {row.prompt.key}"
        if fraction("benchmark: bias", key, SEED) < bias and len(row.chosen) != len(row.rejected):
            first = len(row.chosen) > len(row.rejected)
        if fraction("benchmark: flip", key, SEED) < noise:
            first = not first
        found.append(row if first else replace(row, chosen=row.rejected, rejected=row.chosen))
    return found


class Bench:
    """The comparisons of a run's first round, and what is trained and measured on them."""

    def __init__(self, run: Path, scratch: Path) -> None:
        (feedback,) = run.glob("artifacts/round-1-feedback-*")
        (self.start,) = run.glob("artifacts/instruct-*")
        self.scratch = scratch
        self.training = read_comparisons(feedback / "comparisons_train.jsonl")
        heldout = read_comparisons(feedback / "comparisons_heldout.jsonl")
        halves = split("benchmark: halves", heldout, {"validation": 0.5, "test": 0.5}, SEED)
        self.validation, self.test = halves["validation"], halves["test"]

    def trained(self, name: str, rows: Rows, epochs: int) -> RewardModel:
        """A reward model with the quickstart's settings."""
        folder = self.scratch / name
        (folder / "output").mkdir(parents=True)
        write(folder / "comparisons_train.jsonl", rows)
        config = PairwiseReward(
            learning_rate=7e-4, muon_learning_rate=0.005, batch_pairs=min(48, len(rows) // 10), epochs=epochs
        )
        train_reward(StageContext(folder / "output", folder, Silent(), SEED, 600.0), config, self.start, folder)
        return RewardModel(folder / "output" / "model")


def accuracy(model: RewardModel, rows: Rows) -> tuple[float, tuple[float, float]]:
    """How often the chosen answer gets the higher score, with its interval over prompts."""
    return mean_interval(outcomes(*scored(model, rows)), [row.prompt.key for row in rows])


def noise(bench: Bench) -> list[dict[str, object]]:
    """Every rate of noise with every number of comparisons."""
    found: list[dict[str, object]] = []
    for rate in NOISES:
        training, validation, test = (
            relabelled(rows, rate) for rows in (bench.training, bench.validation, bench.test)
        )
        for size in SIZES:
            tried = []
            for epochs in EPOCHS:
                model = bench.trained(f"{rate}-{size}-{epochs}", training[:size], epochs)
                tried.append((accuracy(model, validation)[0], -epochs, model))
            _, fewer, best = max(tried, key=lambda one: one[:2])
            measured, interval = accuracy(best, test)
            record = examine(best, Evidence(test, training[:size]), Audit(perturbed=0))
            assert record.calibration_error is not None
            found.append({
                "noise": rate, "comparisons": size, "epochs": -fewer, "accuracy": round(measured, 3),
                "interval": [round(end, 3) for end in interval], "ceiling": 1 - rate,
                "within": bool(1 - rate - measured <= WITHIN),
                "against the truth": round(accuracy(best, relabelled(bench.test))[0], 3),
                "calibration error": round(record.calibration_error, 3),
                "bag of words": round(record.baselines["bag of words"], 3),
            })
            print(json.dumps(found[-1]), flush=True)
    return found


def length(bench: Bench) -> dict[str, object]:
    """A model whose labels favour length, and one whose labels do not: what the audit says of each.

    The biased one is audited on true labels, and on held-out ones with the same bias, which is what its user has.
    """
    said: dict[str, object] = {}
    for name, bias, audited in (("honest", 0.0, 0.0), ("biased", BIAS, 0.0), ("biased, as its labels are", BIAS, BIAS)):
        training = relabelled(bench.training, bias=bias)
        model = bench.trained(name, training, 2)
        record = examine(model, Evidence(relabelled(bench.test, bias=audited), training), Audit(perturbed=100))
        said[name] = _length(record)
        print(name, json.dumps(said[name]), flush=True)
    return said


def _length(record: AuditRecord) -> dict[str, object]:
    assert record.length is not None
    return {
        "accuracy": round(record.accuracy, 3), "length correlation": round(record.length_correlation, 3),
        "when longer": record.when_longer, "when shorter": record.when_shorter, "gap": record.length.gap,
        "gap interval": record.length.gap_interval, "coefficient": record.length.coefficient,
        "verdict": record.verdict, "reasons": record.reasons, "warnings": record.warnings,
    }


def plot(rows: list[dict[str, object]]) -> str:
    """Accuracy over the number of comparisons, a line for each rate of noise, with its ceiling dashed."""
    width, height, left, bottom = 560, 300, 60, 40
    low, high = 0.5, 1.0

    def at(size: float, value: float) -> tuple[float, float]:
        place = SIZES.index(int(size)) / (len(SIZES) - 1)
        return left + 20 + place * (width - left - 120), (height - bottom) * (1 - (value - low) / (high - low)) + 10

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20}" font-family="sans-serif" '
             'font-size="12"><rect width="100%" height="100%" fill="white"/>']
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        y = at(SIZES[0], tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - 90}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
                     f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{tick:.0%}</text>')
    for size in SIZES:
        x, y = at(size, low)
        parts.append(f'<text x="{x:.0f}" y="{y + 20:.0f}" text-anchor="middle">{size:,}</text>')
    parts.append(f'<text x="{(left + width - 90) / 2:.0f}" y="{height + 12}" text-anchor="middle">comparisons</text>')
    for rate, colour in zip(NOISES, ("#1b6ca8", "#c7702e", "#4a8c3f"), strict=True):
        members = [row for row in rows if row["noise"] == rate]
        points = [at(row["comparisons"], row["accuracy"]) for row in members]  # type: ignore[arg-type]
        ceiling = at(SIZES[0], 1 - rate)[1]
        parts.append(f'<line x1="{left}" x2="{width - 90}" y1="{ceiling:.0f}" y2="{ceiling:.0f}" stroke="{colour}" '
                     'stroke-dasharray="4 4"/>')
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for row, (x, y) in zip(members, points, strict=True):
            ends = [at(SIZES[0], end)[1] for end in row["interval"]]  # type: ignore[attr-defined]
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{ends[0]:.0f}" y2="{ends[1]:.0f}" stroke="{colour}"/>'
                         f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3.5" fill="{colour}"/>')
        parts.append(f'<text x="{width - 84}" y="{ceiling + 4:.0f}" fill="{colour}">noise {rate:g}</text>')
    return "\n".join([*parts, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("noise", "length"))
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    settle()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(given.run, Path(name))
        if given.kind == "length":
            length(bench)
            return
        place = Path(__file__).parents[1] / "docs" / "results" / "reward-labels.svg"
        place.write_text(plot(noise(bench)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
