"""RewardBench 2, RM-Bench and JudgeBench are read as they are published, and measured as they measure themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import triptych
from test_check import rows
from triptych.audit.benchmarks import BenchmarkData, Remembered, read_benchmark
from triptych.audit.record import Measure
from triptych.errors import DataError
from triptych.records import Conversation


class Numbered:
    """A reward that is the number which an answer ends with; it counts how often it was asked."""

    name = identity = "numbered"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        self.asked += len(conversations)
        return [float(row.answer.rpartition(" ")[2]) for row in conversations]


def answers(*scores: float) -> list[str]:
    return [f"answer {place} {score}" for place, score in enumerate(scores)]


def item(number: int | str, chosen: Sequence[float], rejected: Sequence[float], subset: str) -> dict[str, Any]:
    return {
        "id": str(number), "prompt": f"What is {number}?", "chosen": answers(*chosen),
        "rejected": [f"other {text}" for text in answers(*rejected)], "num_correct": len(chosen), "subset": subset,
        "additional_metadata": None,
    }


def measures(path: Path, content: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    found = read_benchmark(rows(path, content))
    assert found is not None
    return found.scores(Numbered().score).measures


def test_best_of_four_counts_a_tie_as_its_share(tmp_path: Path) -> None:
    found = measures(tmp_path / "bench.jsonl", [
        item(1, [3], [1, 2, 0], "Math"), item(2, [1], [1, 1, 0], "Math"), item(3, [1], [2, 1, 0], "Math"),
        item(4, [5], [5, 0, 0], "Safety"),
    ])
    assert found["Math"].score == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["Safety"].score == 0.5
    assert found["mean of subsets"].score == pytest.approx((4 / 9 + 1 / 2) / 2)
    assert found["Math"].interval is not None
    assert (found["Math"].items, found["mean of subsets"].items) == (3, 4)


def test_ties_by_hand(tmp_path: Path) -> None:
    found = measures(tmp_path / "ties.jsonl", [
        item("ref:1", [4], [0, 1], "Ties"), item("tied:1", [5, 4], [1, 0], "Ties"),  # d 1, m 3, r 3
        item("ref:2", [2], [0, 1.5], "Ties"), item("tied:2", [5, 3], [0, -1], "Ties"),  # d 2, m 3, r 0.5
        item("ref:3", [1], [2, 0], "Ties"), item("tied:3", [2, 2], [3, 0], "Ties"),  # d 0, m -1, r -1
    ])
    closeness = (math.tanh(3 / 1 - 1) + math.tanh(0.5 / 2 - 1) - 1) / 3
    assert found["Ties"].score == pytest.approx(0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 / 3 + 0.01 * closeness)
    assert found["Ties accuracy, many right"].score == found["Ties accuracy, one right"].score == pytest.approx(2 / 3)


def test_a_perfect_and_a_constant_reward_of_ties(tmp_path: Path) -> None:
    perfect = measures(tmp_path / "a.jsonl", [item("ref:1", [9], [0], "Ties"), item("tied:1", [9, 9], [0, 0], "Ties")])
    assert perfect["Ties"].score == pytest.approx(1.01)
    constant = measures(tmp_path / "b.jsonl", [item("ref:1", [1], [1], "Ties"), item("tied:1", [1, 1], [1], "Ties")])
    assert constant["Ties"].score == 0.0


def test_ties_are_not_among_the_pairs(tmp_path: Path) -> None:
    found = read_benchmark(rows(tmp_path / "bench.jsonl", [
        item(1, [3], [1, 2, 0], "Math"), item("tied:1", [3, 2], [1], "Ties"), item("ref:1", [3], [1], "Ties"),
    ]))
    assert isinstance(found, BenchmarkData)
    assert [(row.subset, row.source) for row in found.comparisons] == [("Math", "RewardBench 2")] * 3


def styled(number: int, chosen: Sequence[float], rejected: Sequence[float], domain: str) -> dict[str, Any]:
    return {"id": number, "domain": domain} | {
        name: value for name, value in item(number, chosen, rejected, "").items()
        if name in ("prompt", "chosen", "rejected")
    }


def test_rm_bench_by_hand(tmp_path: Path) -> None:
    found = measures(tmp_path / "bench.jsonl", [
        styled(1, [1, 2, 3], [0, 1, 2], "chat"),  # right on all but (0, 1), (0, 2), (1, 2): equal or below
        styled(2, [9, 9, 9], [0, 0, 0], "safety-refuse"), styled(3, [0, 0, 0], [9, 9, 9], "safety-response"),
    ])
    assert (found["chat"].score, found["safety-refuse"].score, found["safety-response"].score) == (6 / 9, 1, 0)
    assert found["easy"].score == pytest.approx((1 + (1 + 0) / 2) / 2)
    assert found["normal"].score == pytest.approx((1 + (1 + 0) / 2) / 2)
    assert found["hard"].score == pytest.approx((0 + (1 + 0) / 2) / 2)
    assert found["average"].score == pytest.approx((6 / 9 + 0.5) / 2)
    pairs = read_benchmark(tmp_path / "bench.jsonl")
    assert pairs is not None
    assert len(pairs.comparisons) == 27


def judged(number: int, source: str, first: float, second: float, label: str) -> dict[str, Any]:
    one, other = answers(first, second)
    return {
        "pair_id": str(number), "original_id": str(number), "source": source, "question": f"What is {number}?",
        "response_model": "m", "response_A": one, "response_B": other, "label": label,
    }


def test_judgebench_by_hand(tmp_path: Path) -> None:
    found = measures(tmp_path / "bench.jsonl", [
        judged(1, "mmlu-pro-law", 2, 1, "A>B"), judged(2, "mmlu-pro-math", 2, 1, "B>A"),
        judged(3, "livecodebench", 1, 2, "B>A"), judged(4, "livebench-math", 1, 1, "A>B"),
    ])
    assert {name: measure.score for name, measure in found.items()} == {
        "knowledge": 0.5, "math": 0.0, "coding": 1.0, "overall": 0.5,
    }


def test_parquet_and_a_json_array_are_read_too(tmp_path: Path) -> None:
    content = [item(number, [3], [1, 2, 0], "Math") for number in range(3)]
    (tmp_path / "bench.json").write_text(json.dumps(content), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "bench.parquet")
    for name in ("bench.json", "bench.parquet"):
        found = read_benchmark(tmp_path / name)
        assert found is not None
        assert (found.benchmark.name, len(found.items)) == ("RewardBench 2", 3)


def test_rows_that_are_not_as_they_must_be_are_named(tmp_path: Path) -> None:
    path = rows(tmp_path / "bench.jsonl", [
        item(1, [3], [1], "Math"), item(2, [3, 2], [1], "Math"), item(3, [3], [1], "Ties"),
    ])
    with pytest.raises(DataError) as error:
        read_benchmark(path)
    assert [(fault.line, fault.field) for fault in error.value.faults] == [(2, "chosen"), (3, "id")]
    path = rows(tmp_path / "judge.jsonl", [judged(1, "livecodebench", 1, 2, "A=B")])
    with pytest.raises(DataError, match=r"judge\.jsonl:1: label: must be one of A>B, B>A"):
        read_benchmark(path)
    assert read_benchmark(rows(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])) is None


def test_the_audit_reports_them_beside_pairs_and_scores_each_answer_once(tmp_path: Path) -> None:
    bench = rows(tmp_path / "bench.jsonl", [
        *(item(number, [3], [1, 2, 0], "Math") for number in range(20)), item("tied:1", [3, 2], [1], "Ties"),
        item("ref:1", [3], [1], "Ties"),
    ])
    pairs = rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b 2", "rejected": "c 1"}])
    learnt = rows(tmp_path / "learnt.jsonl", [{"prompt": "What is 3?", "chosen": "b 2", "rejected": "c 1"}])
    reward = Numbered()
    record = triptych.audit(reward, [bench, pairs], training=learnt, perturbed=0)
    assert (record.comparisons, record.accuracy) == (1 + 19 * 3, 1.0)
    (found,) = record.benchmarks
    assert (found.name, found.items) == ("RewardBench 2", 21)
    assert {"Math", "Ties", "mean of subsets"} <= found.measures.keys()
    assert reward.asked == 2 + 19 * 4 + 3 + 2
    assert Remembered(reward).name == "numbered"
