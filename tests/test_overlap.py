"""No row that holds a part of a benchmark's prompts is learnt from; what was left out is counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triptych.data.folder import DataFolder
from triptych.data.overlap import WORDS, Benchmarks
from triptych.dataset.preparation import DataPreparation, left_out, prepare_data
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Prompt

LONG = "Write, in exactly three lines, a poem about the old lighthouse at the end of the long pier."
WORDS_OF_IT = LONG.lower().replace(",", "").replace(".", "").split()
BENCHMARKS = Benchmarks([Prompt.of(LONG), Prompt.of("Who wrote Hamlet?")])


@pytest.mark.parametrize(("text", "held"), [
    (LONG, True),
    (f"Please! {LONG.upper()} Thank you.", True),
    (" ".join(WORDS_OF_IT[:WORDS]), True),
    (" ".join(WORDS_OF_IT[-WORDS:]), True),
    (" ".join(WORDS_OF_IT[: WORDS - 1]), False),
    (" ".join(reversed(WORDS_OF_IT)), False),
    ("who wrote hamlet", True),
    ("Who wrote Hamlet, and when?", False),
    ("", False),
])
def test_thirteen_words_in_a_row_or_a_short_prompt_as_a_whole(text: str, held: bool) -> None:
    plain = Prompt.of("a question of my own")
    assert BENCHMARKS.in_record(Prompt.of(text)) == held
    assert BENCHMARKS.in_record(Conversation(plain, text)) == held
    assert BENCHMARKS.in_record(Comparison(plain, "good", text)) == held
    assert not Benchmarks([]).in_record(Prompt.of(text))


def test_rows_are_left_out_before_the_data_is_split_and_their_lines_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number} of many", "completion": f"answer {number}"} for number in range(40)]
    rows[6]["completion"], rows[30]["prompt"] = LONG, "who wrote Hamlet"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bench.jsonl").write_text("".join(
        json.dumps({"prompt": prompt}) + "\n" for prompt in (LONG, "Who wrote Hamlet?")
    ))
    config = DataPreparation.model_validate({
        "conversations": [{"file": "rows"}], "benchmarks": [{"file": "bench"}], "test": 4, "gate": 4, "validation": 8,
    })
    (tmp_path / "out").mkdir()
    context = StageContext(tmp_path / "out", tmp_path, Silent(), 1, 60.0)
    prepared = prepare_data(context, config, {"rows": tmp_path / "rows.jsonl", "bench": tmp_path / "bench.jsonl"})
    assert prepared.benchmark_rows == 2
    (line,) = [line for line in left_out(prepared) if "benchmark" in line]
    assert "rows:7" in line
    assert "rows:31" in line
    data = DataFolder(tmp_path / "out")
    learnt = [*data.demonstrations("train").read(), *data.demonstrations("heldout").read()]
    prompts = [row for split in ("test", "gate", "validation", "improve") for row in data.prompts(split).read()]
    assert not any(map(BENCHMARKS.in_record, learnt))
    assert not any(map(BENCHMARKS.in_record, prompts))
    assert len(prompts) == 38
