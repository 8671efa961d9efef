"""How well the trained kinds of reward do on the storybook, where the truth is known.

    triptych run recipes/quickstart.yaml --until round-1/feedback
    python benchmarks/reward_kinds.py regression runs/quickstart --epochs 2
    python benchmarks/reward_kinds.py ensemble runs/quickstart

Answers are those that the run's Instruct model wrote, comparisons those of its first round, with one label in ten
flipped. Ratings are the exact judge's, one attribute in five left out. Half of the held-out prompts set the scale,
the other half are measured on. Everything else starts from the same Instruct model with the quickstart's settings.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.files import read_comparisons, write
from triptych.data.splits import split
from triptych.engine.device import settle
from triptych.engine.scoring import RewardModel, Scorer, scored
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Rating
from triptych.reward.ensemble import Ensemble, EnsembleReward, join
from triptych.reward.registry import open_reward
from triptych.reward.regression import RegressionReward, train_regression
from triptych.reward.training import train_reward
from triptych.storybook.judge import ExactJudge
from triptych.storybook.text import documents

SEED = 1234
MISSING = 0.2
"""The share of attributes that a rater left out."""
TRAINING: dict[str, Any] = {"learning_rate": 7e-4, "muon_learning_rate": 0.005, "batch_pairs": 48}
"""Those of recipes/quickstart.yaml."""

Groups = list[list[Conversation]]
"""The answers to each prompt."""


def world(run: Path, folder: Path) -> dict[str, Groups]:
    """Comparisons and ratings by share, written into `folder`; the answers themselves are returned."""
    (feedback,) = run.glob("artifacts/round-1-feedback-*")
    heldout = read_comparisons(feedback / "comparisons_heldout.jsonl")
    shares = {
        "train": read_comparisons(feedback / "comparisons_train.jsonl"),
        **split("benchmark: kinds", heldout, {"heldout": 0.5, "test": 0.5}, SEED),
    }
    judge, draw = ExactJudge(), random.Random(SEED)
    answers = {}
    for share, rows in shares.items():
        groups = answers[share] = grouped(rows)
        ratings = []
        for row in (row for group in groups for row in group):
            given = {name: value for name, value in judge.explain(row.prompt, row.answer).items()
                     if draw.random() >= MISSING}
            if given:
                ratings.append(Rating(row.prompt, row.answer, given))
        write(folder / f"ratings_{share}.jsonl", ratings)
        write(folder / f"comparisons_{share}.jsonl", rows)
        print(f"{share}: {len(groups)} prompts, {len(ratings)} ratings, {len(rows)} comparisons", flush=True)
    return answers


def grouped(rows: list[Comparison]) -> Groups:
    """The distinct answers of comparisons, by prompt."""
    found: dict[str, dict[str, Conversation]] = {}
    for row in rows:
        for answer in (row.chosen, row.rejected):
            found.setdefault(row.prompt.key, {})[answer] = Conversation(row.prompt, answer)
    return [list(group.values()) for group in found.values()]


def context(folder: Path) -> StageContext:
    (folder / "output").mkdir(parents=True)
    return StageContext(folder / "output", folder, Silent(), SEED, 600.0)


def regression(start: Path, folder: Path, shares: dict[str, Groups], epochs: int) -> dict[str, object]:
    """Pearson correlation of each attribute with the exact one, and of the reward with the exact score."""
    place = context(folder / "regression")
    metrics = train_regression(place, RegressionReward(**TRAINING, epochs=epochs), start, folder, folder)
    rows = [row for group in shares["test"] for row in group]
    judge = ExactJudge()
    exact = [judge.explain(row.prompt, row.answer) for row in rows]
    found = scored(open_reward(place.output), rows)
    columns = {name: [value for value in values if value is not None] for name, values in found.parts.items()}

    def correlation(mine: list[float], theirs: list[float]) -> float:
        return round(float(np.corrcoef(mine, theirs)[0, 1]), 3)

    numbers: dict[str, object] = {
        name: correlation(columns[name], [parts[name] for parts in exact]) for name in exact[0]
    }
    numbers["score"] = correlation(found.totals, judge.score(rows))
    for task in ("story", "question", "translation"):
        members = [i for i, row in enumerate(rows) if row.prompt.task == task]
        numbers[f"correctness, {task}"] = correlation(
            [columns["correctness"][i] for i in members], [exact[i]["correctness"] for i in members]
        )
    right = [a > b for a, b in decided(shares["test"], found.totals)]
    return numbers | {"answers": len(rows), "orders pairs rightly": round(sum(right) / len(right), 3),
                      "weights": {name: round(value, 3) for name, value in metrics.weights.items()}}


def decided(groups: Groups, totals: list[float]) -> list[tuple[float, float]]:
    """The scores of the truly better and the truly worse one of every two answers that differ."""
    judge, scores = ExactJudge(), iter(totals)
    found = []
    for group in groups:
        rated = [(exact, next(scores)) for exact in judge.score(group)]
        for one, two in combinations(rated, 2):
            if abs(one[0] - two[0]) >= 0.25:
                found.append((one[1], two[1]) if one[0] > two[0] else (two[1], one[1]))
    return found


def strange(rows: list[Conversation]) -> dict[str, list[Conversation]]:
    """Answers of kinds that were never trained on; the kinds were fixed before anything was measured."""
    draw = random.Random(SEED)
    texts = documents(SEED, len(rows))

    def shuffled(text: str) -> str:
        words = text.split()
        draw.shuffle(words)
        return " ".join(words)

    changes: dict[str, Callable[[Conversation, int], str]] = {
        "words shuffled": lambda row, i: shuffled(row.answer),
        "capitals": lambda row, i: row.answer.upper(),
        "letters reversed": lambda row, i: row.answer[::-1],
        "random letters": lambda row, i: "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in row.answer),
        "answer repeated 4 times": lambda row, i: " ".join([row.answer] * 4),
        "text of the corpus": lambda row, i: texts[i].text[:200],
        "digits": lambda row, i: re.sub(r"[a-z]", lambda _: str(draw.randrange(10)), row.answer),
    }
    return {
        name: [Conversation(row.prompt, change(row, i)) for i, row in enumerate(rows)]
        for name, change in changes.items()
    }


def auroc(negatives: list[float], positives: list[float]) -> float:
    """How often a positive is above a negative; ties a half."""
    a, b = np.array(negatives)[None], np.array(positives)[:, None]
    return round(float((b > a).mean() + 0.5 * (b == a).mean()), 3)


def ensemble(start: Path, folder: Path, shares: dict[str, Groups], epochs: int, count: int) -> dict[str, object]:
    """AUROC of the spread between usual answers to test prompts and each kind of strange ones."""
    config = EnsembleReward(**TRAINING, epochs=epochs, members=count)
    members = {}
    for index in range(config.members):
        place = context(folder / f"member-{index}")
        train_reward(place, config.member, start, folder, member=index)
        members[f"member_{index}"] = place.output
    place = context(folder / "ensemble")
    join(place, config, **members)
    scorer = open_reward(place.output)
    assert isinstance(scorer, Ensemble)
    rows = [group[0] for group in shares["test"]]
    usual = scorer.spread(rows)
    kinds = strange(rows)
    spreads = {name: scorer.spread(answers) for name, answers in kinds.items()}
    numbers: dict[str, object] = {name: auroc(usual, values) for name, values in spreads.items()}
    numbers["all kinds together"] = auroc(usual, [value for values in spreads.values() for value in values])
    numbers["mean spread, usual"] = round(float(np.mean(usual)), 3)
    both = [row for group in shares["test"] for row in group]
    models: dict[str, Scorer] = {"one member": RewardModel(place.output / "models/0"), "the ensemble": scorer}
    for name, model in models.items():
        right = [a > b for a, b in decided(shares["test"], model.score(both))]
        numbers[f"{name} orders pairs rightly"] = round(sum(right) / len(right), 3)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("regression", "ensemble"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--members", type=int, default=3, help="of the ensemble")
    given = parser.parse_args()
    settle()
    (start,) = given.run.glob("artifacts/instruct-*")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = world(given.run, folder)
        began = time.monotonic()
        if given.kind == "regression":
            numbers = regression(start, folder, shares, given.epochs)
        else:
            numbers = ensemble(start, folder, shares, given.epochs, given.members)
        print(json.dumps(numbers | {"seconds": round(time.monotonic() - began)}, indent=1))


if __name__ == "__main__":
    main()
