"""`python -m benchmarks.ifeval MODEL ...`: models on IFEval, scored by lm-evaluation-harness's own code.

The first model is what the others are compared with, on the same prompts (Zhou et al. 2023, *Instruction-Following
Evaluation for Large Language Models*). The harness wants nltk's model of sentences (`python -m nltk.downloader
punkt_tab`). Without it sentences are cut by a regular expression, for all models alike, and words by nltk within them;
the first line says which.

Each answer is scored as the harness scores it ("strict"): an answer's accuracy is 1 where every instruction of its
prompt is followed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scripts.public import find_set
from triptych.data.rows import rows_of
from triptych.data.source import Source
from triptych.engine.device import settle
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import DataError, Fault
from triptych.instructions.text import sentences
from triptych.records import Message, Prompt
from triptych.statistics.intervals import mean_interval

FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")

def main() -> None:
    """Parses the command line, prints a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ifeval", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="Hugging Face folders")
    parser.add_argument("--prompts", help="a file or dataset with rows as google/IFEval has them; by default these")
    parser.add_argument("--first", type=int, help="only so many of the prompts")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", help="a system prompt")
    parser.add_argument("--answers", type=Path, help="a folder for every model's answers")
    asked = parser.parse_args()
    settle()
    try:
        rows = read(Source(file=asked.prompts) if asked.prompts else find_set("ifeval"))[:asked.first]
    except DataError as error:
        sys.exit(str(error))
    print(f"sentences are cut by {'nltk' if has_punkt() else 'a regular expression'}", flush=True)
    sampling = Sampling(asked.max_tokens, asked.temperature, seed=asked.seed)
    before: list[list[bool]] | None = None
    for folder in asked.models:
        start = time.monotonic()
        answers, cut = written(folder, rows, sampling, asked.system)
        followed = [scored(row, answer) for row, answer in zip(rows, answers, strict=True)]
        print(f"{folder}: {told(followed, before)}; {cut:.0%} cut at {asked.max_tokens} tokens, "
              f"{time.monotonic() - start:.0f} s", flush=True)
        before = before or followed
        if asked.answers:
            asked.answers.mkdir(exist_ok=True, parents=True)
            lines = [json.dumps({"prompt": row["prompt"], "answer": answer, "followed": each}, ensure_ascii=False)
                     for row, answer, each in zip(rows, answers, followed, strict=True)]
            name = "-".join(folder.resolve().parts[-3:])
            (asked.answers / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(source: Source) -> list[dict[str, Any]]:
    """IFEval's rows; the arguments that a dataset of one type for all rows must leave empty are no arguments.

    Raises:
        DataError: the source cannot be had, or a row is none of IFEval's.
    """
    rows: list[dict[str, Any]] = []
    for row in rows_of(source):
        if isinstance(row, Fault):
            raise DataError([row])
        if lacking := [name for name in FIELDS if name not in row.fields]:
            what = f"missing: expected {', '.join(FIELDS)}"
            raise DataError([Fault(row.place.file, row.place.line, lacking[0], what)])
        kwargs = [{name: value for name, value in each.items() if value is not None} for each in row.fields["kwargs"]]
        rows.append({**row.fields, "kwargs": kwargs})
    return rows


def written(
    folder: Path, rows: Sequence[dict[str, Any]], sampling: Sampling, system: str | None
) -> tuple[list[str], float]:
    """A model's answers, and the share that was cut."""
    before = (Message("system", system),) if system else ()
    prompts = [Prompt((*before, Message("user", row["prompt"]))) for row in rows]
    rollouts = [group[0] for group in Policy.open(folder).write(prompts, sampling)]
    return [rollout.answer for rollout in rollouts], float(np.mean([not rollout.finished for rollout in rollouts]))


def scored(row: dict[str, Any], answer: str) -> list[bool]:
    """Which of a prompt's instructions an answer follows, as the harness says."""
    harness = load_harness()
    inputs = harness.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
    return [bool(one) for one in harness.test_instruction_following_strict(inputs, answer).follow_instruction_list]


@cache
def load_harness() -> Any:
    """lm-evaluation-harness's module for IFEval; it cuts sentences as we do where nltk's model of them is missing."""
    import nltk

    if not has_punkt():
        nltk.download = lambda *_, **__: True  # it asks for the model of sentences when it is imported
        counting: Any = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
        words = nltk.tokenize.NLTKWordTokenizer()
        counting.count_sentences = lambda text: len(sentences(text))
        nltk.word_tokenize = lambda text: [word for part in sentences(text) for word in words.tokenize(part)]
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


def has_punkt() -> bool:
    """Whether nltk's model of sentences is on this machine."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def told(followed: list[list[bool]], before: list[list[bool]] | None) -> str:
    """Accuracy of prompts and of instructions, and how far the former lies above another model's."""
    prompts = np.array([all(each) for each in followed], dtype=float)
    instructions = np.array([one for each in followed for one in each], dtype=float)
    line = f"prompts {prompts.mean():.3f}, instructions {instructions.mean():.3f}"
    if before is None:
        return line
    gain, (low, high) = mean_interval((prompts - np.array([all(each) for each in before], dtype=float)).tolist())
    return f"{line}, prompts {gain:+.3f} ({low:+.3f} to {high:+.3f}, paired, 95%)"


if __name__ == "__main__":
    main()
