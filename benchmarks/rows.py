"""The rows of the table, in its order."""

from __future__ import annotations

from benchmarks import dpo, end_to_end, grpo, pretraining, reward, sampling, sft
from benchmarks.row import Row

ROWS: dict[str, Row] = {
    row.name: row for module in (sft, reward, dpo, grpo, sampling, pretraining, end_to_end) for row in module.ROWS
}
