"""`python -m benchmarks.harness`: lm-evaluation-harness's questions answered by our engine and by its own `hf` model.

Both have SmolLM2-135M-Instruct in the same type on the same cores, and the same requests: four choices behind each
question, made of Alpaca's answers, with worked examples before every question; and answers to prompts of IFEval, to the
likeliest token. What is timed is what the harness calls, tokenising included, and loading is not. Each side runs in a
process of its own, in turns. The `hf` model has the batch size at which it is fastest, of those that are tried.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

CHOICES = 4
WORDS = 30
"""Of a choice, at the most."""
EXAMPLES = 5

Answers = dict[str, Any]


def main() -> None:
    """Parses the command line; runs all sides in turns, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50, help="of four choices each; 0 for none")
    parser.add_argument("--prompts", type=int, default=32, help="of IFEval, which are answered; 0 for none")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--runs", type=int, default=3, help="of each side, whose median is told")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of the hf model")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # ours, or the hf model's batch size: in a process of its own
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(answered(asked)))
        return
    from triptych.engine.device import compute_dtype, hardware

    sides = ["ours", *map(str, asked.batch_sizes)]
    runs: dict[str, list[Answers]] = {side: [] for side in sides}
    for number in range(asked.runs):
        for side in sides if number % 2 == 0 else sides[::-1]:
            command = [sys.executable, "-m", "benchmarks.harness", *sys.argv[1:], "--side", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[side].append(json.loads(output.splitlines()[-1]))
            print(f"run {number + 1}, {named(side)}: {runs[side][-1]['seconds']}", file=sys.stderr, flush=True)
    print(f"{hardware()}, {compute_dtype()}, {asked.runs} runs")
    for what in runs["ours"][0]["seconds"]:
        print(compared(what, runs, sides))


def named(side: str) -> str:
    return side if side == "ours" else f"hf in batches of {side}"


def compared(what: str, runs: dict[str, list[Answers]], sides: list[str]) -> str:
    """Both medians of one kind of request, their ratio, and how far the answers are apart."""
    medians = {side: statistics.median(run["seconds"][what] for run in runs[side]) for side in sides}
    best = min(sides[1:], key=medians.__getitem__)
    mine, theirs = runs["ours"][0][what], runs[best][0][what]
    if what == "written":
        apart = f"{sum(one == other for one, other in zip(mine, theirs, strict=True))} of {len(mine)} answers are equal"
    else:
        furthest = max(abs(one[0] - other[0]) for one, other in zip(mine, theirs, strict=True))
        greedy = sum(one[1] == other[1] for one, other in zip(mine, theirs, strict=True))
        apart = (f"log-probabilities at most {furthest:.2g} apart, {greedy} of {len(mine)} greedy flags and "
                 f"{sum(chosen(mine)[i] == one for i, one in enumerate(chosen(theirs)))} of {len(mine) // CHOICES} "
                 "chosen answers equal")
    times = ", ".join(f"{named(side)} {medians[side]:.1f} s" for side in sides)
    return f"{what}: {times}; {medians[best] / medians['ours']:.2f} times as fast as the fastest hf; {apart}"


def chosen(answers: list[tuple[float, bool]]) -> list[int]:
    """The likeliest choice of each question."""
    values = [value for value, _ in answers]
    groups = [values[i : i + CHOICES] for i in range(0, len(values), CHOICES)]
    return [group.index(max(group)) for group in groups]


def answered(asked: argparse.Namespace) -> Answers:
    """What one side answers, and in how many seconds."""
    from benchmarks import work
    from triptych.engine.device import compute_dtype

    folder = work.model()
    model: Any
    if asked.side == "ours":
        from triptych.engine.device import settle
        from triptych.engine.harness import HarnessModel
        from triptych.engine.rollout import Policy

        settle()
        model = HarnessModel(Policy.open(folder))
    else:
        import torch
        from lm_eval.models.huggingface import HFLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = HFLM(pretrained=str(folder), dtype=compute_dtype(), device=device, batch_size=int(asked.side))
    answers: Answers = {"seconds": {}}
    for what, method, requests in questions(model, asked):
        method(requests[:CHOICES], disable_tqdm=True)  # warms it up
        began = time.perf_counter()
        answers[what] = method(requests, disable_tqdm=True)
        answers["seconds"][what] = time.perf_counter() - began
    return answers


def questions(model: Any, asked: argparse.Namespace) -> list[tuple[str, Any, list[Any]]]:
    """What is asked: by its name, the model's method, and the requests."""
    from lm_eval.api.instance import Instance

    kinds: list[tuple[str, Any, list[Any]]] = []
    if asked.questions:
        pairs = choices(model.tokenizer, asked.questions)
        requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]
        kinds.append(("choices", model.loglikelihood, requests))
    if asked.prompts:
        from benchmarks.ifeval import read
        from scripts.public import find_set

        prompts = [row["prompt"] for row in read(find_set("ifeval"))[: asked.prompts]]
        texts = [model.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
        settings = {"until": [], "max_gen_toks": asked.max_tokens, "do_sample": False, "temperature": 0.0}
        requests = [Instance("generate_until", {}, (text, dict(settings)), place) for place, text in enumerate(texts)]
        kinds.append(("written", model.generate_until, requests))
    return kinds


def choices(tokenizer: Any, count: int) -> list[tuple[str, str]]:
    """Context and continuation of each choice: a question's own answer and three of the next questions'."""
    from benchmarks import work

    rows = work.conversations(tokenizer, count + EXAMPLES)[0]
    asked = [f"Question: {row.prompt.messages[-1].content}\nAnswer:" for row in rows]
    answers = [" " + " ".join(row.answer.split()[:WORDS]) for row in rows]
    before = "".join(f"{question}{answer}\n\n" for question, answer in zip(asked[-EXAMPLES:], answers[-EXAMPLES:],
                                                                           strict=True))
    return [
        (before + question, answers[(place + step) % len(rows)])
        for place, question in enumerate(asked[:count]) for step in range(CHOICES)
    ]


if __name__ == "__main__":
    main()
