"""`make gpu-check`: what this version does on a CUDA device, in one go of at most 18 minutes.

Each part has a process and a time-out of its own. Its result is written as soon as it ends, a line of JSON in
OUT/gpu-check.jsonl, also where it failed or ran out of time; what it printed is in OUT/PART.log. In the end all results
stand in OUT/gpu-check.md as a table. Nothing is downloaded: models are random, texts are drawn. Beside torch and the
package's other dependencies it needs trl and pytest, and where the package is not installed `PYTHONPATH=src`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from benchmarks.row import Setting

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 18
"""What all time-outs together may be."""
DRY_PATIENCE = 4
"""So much longer are the time-outs of a dry run, whose processor may have other work."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a part measured or found.

    Attributes:
        goal: what the value shall be at least, or with `at_most` at most.
    """

    name: str
    value: float | str
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return float(self.value) <= self.goal if self.at_most else float(self.value) >= self.goal


@dataclass(frozen=True, slots=True)
class Check:
    """What a part is given.

    Attributes:
        folder: where models, texts, logs and results lie.
        dry: whether everything is tiny and on the processor.
        say: writes a figure down at once.
    """

    folder: Path
    dry: bool
    say: Callable[[Figure], None]

    @property
    def device(self) -> str:
        """Where the work is done."""
        return "cpu" if self.dry else "cuda"

    @property
    def model(self) -> Path:
        """The random Llama."""
        return self.folder / "llama"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the check.

    Attributes:
        seconds: its time-out.
    """

    name: str
    what: str
    seconds: float
    work: Callable[[Check], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended.

    Attributes:
        ended: "done", "failed" or "out of time".
        figures: those that were written until then.
        error: the last line of what it printed, where it is not done.
    """

    part: str
    what: str
    ended: str
    seconds: float
    figures: Sequence[Figure] = field(default_factory=tuple)
    error: str = ""


def machine(check: Check) -> None:
    """Which versions run on which device; without a CUDA device the part fails, unless it is a dry run."""
    import torch

    from triptych import __version__
    from triptych.engine.device import compute_dtype, hardware

    figures = {"triptych": __version__, "python": platform.python_version(), "torch": torch.__version__}
    figures |= {name: version(name) for name in ("transformers", "trl", "peft")}
    figures |= {"device": hardware(), "compute type": str(compute_dtype()).removeprefix("torch.")}
    for name, value in figures.items():
        check.say(Figure(name, value))
    if not check.dry:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device here; --dry tries the check without one")
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        check.say(Figure("CUDA", str(torch.version.cuda)))
        check.say(Figure("driver", driver.partition("\n")[0] or "unknown"))
        check.say(Figure("device memory, GiB", gib))


def tests(check: Check) -> None:
    """The tests marked `gpu`, each against float32 on the processor."""
    import pytest

    class Tally:
        """Counts what the tests came to."""

        passed = 0
        failed = 0

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            """A test's set-up, run or tear-down."""
            if report.failed:
                self.failed += 1
                check.say(Figure(f"failed: {report.nodeid.partition('::')[2]}", report.longreprtext.splitlines()[-1]))
            elif report.when == "call" and report.passed:
                self.passed += 1
                check.say(Figure("passed", self.passed))

    tally = Tally()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the machine's own may be for another pytest
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--accelerator", check.device]
    code = pytest.main([str(ROOT / "tests" / "test_gpu.py"), *options], plugins=[tally])
    if code != 0 or not tally.passed:
        raise RuntimeError(f"{tally.failed} of the tests marked gpu failed; pytest ended with {int(code)}")


QUICKSTART: dict[str, Any] = {
    "storybook": {"documents": 12_000, "demonstrations": 2500, "feedback_prompts": 3200},
    "base": {"train": {"tokens": 1_200_000}},
    "feedback": [{"exact": {
        "prompts": 1600, "answers": 4, "noise": 0.1, "least_difference": 0.25, "max_tokens": 64,
    }}],
    "reward": {"audit": {"required": False}},
    "improve": {"rounds": 1, "steps": 12},
}
TINY: dict[str, Any] = {"improve": {"rounds": 1, "steps": 2}}


def cycle(check: Check) -> None:
    """The quickstart's cycle, one round of it in a smaller world, from a Base to a release."""
    import yaml

    origin, changes = (("tests/tiny.yaml", TINY) if check.dry else ("recipes/quickstart.yaml", QUICKSTART))
    recipe = changed(yaml.safe_load((ROOT / origin).read_text(encoding="utf-8")), changes)
    recipe.pop("goals", None)  # they are the whole recipe's
    run = run_recipe(check, recipe, [sys.executable, "-m", "triptych"], seconds)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    check.say(Figure("decision of the gate", summary["rounds"][0]["decision"]))
    check.say(Figure("gain, by the exact judge", summary["verdict"]["gain"]))


def run_recipe(
    check: Check, recipe: Mapping[str, Any], program: Sequence[str], told: Callable[[Mapping[str, Any]], Figure]
) -> Path:
    """Runs a recipe whole.

    Args:
        program: what runs Triptych.
        told: what is written down of each stage that has finished.

    Returns:
        The run's folder.
    """
    import yaml

    file = check.folder / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(recipe)), encoding="utf-8")
    folder = check.folder / "runs" / str(recipe["name"])
    process = subprocess.Popen([*program, "run", str(file), "--runs", str(folder.parent)], stdout=sys.stderr)
    ledger = folder / "ledger.jsonl"
    finished = 0
    running = True
    while running:
        running = process.poll() is None
        stages = finished_stages(ledger)
        for event in stages[finished:]:
            check.say(told(event))
        finished = len(stages)
        time.sleep(0.2 if running else 0)
    if process.returncode:
        raise RuntimeError(f"triptych run ended with {process.returncode}")
    return folder


def finished_stages(ledger: Path) -> list[dict[str, Any]]:
    """What a run has written of its stages when they finished."""
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True) if ledger.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    return [event for event in events if event["event"] == "finished"]


def seconds(event: Mapping[str, Any]) -> Figure:
    """How long a stage took."""
    return Figure(f"{event['stage']}, s", event["seconds"])


SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CARD = 23.0
"""GiB that PyTorch may take of the device: what a card of 24 has beside CUDA itself."""
EIGHT_BILLION = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0,
}
"""The shape of Llama 3.1 8B."""


def nf4(check: Check) -> None:
    """The whole cycle of a random Llama of eight billion parameters, in four bits and with adapters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from triptych.engine.device import device
    from triptych.engine.models import load_tokenizer, save
    from triptych.preflight.check import check as preflight

    tokenizer = load_tokenizer(check.model)
    config = LlamaConfig(
        max_position_embeddings=4096, tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        **(EIGHT_BILLION if not check.dry else {"vocab_size": 640} | SMALL),
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device():
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    check.say(Figure("parameters", sum(weight.numel() for weight in model.parameters())))
    folder = check.folder / "eight"
    save(model, tokenizer, folder)
    del model
    gc.collect()
    recipe = adapters_recipe(check, folder)
    most = 1.0 if check.dry else CARD * 2**30 / torch.cuda.get_device_properties(0).total_memory
    limited = (
        "import runpy, torch\n"
        f"if torch.cuda.is_available(): torch.cuda.set_per_process_memory_fraction({most})\n"
        "runpy.run_module('triptych', run_name='__main__', alter_sys=True)"
    )

    def told(event: Mapping[str, Any]) -> Figure:
        check.say(seconds(event))
        return Figure(f"{event['stage']}, most GiB", event["peak_gib"], 22, at_most=True)

    run = run_recipe(check, recipe, [sys.executable, "-c", limited], told)
    for cost in preflight(check.folder / f"{recipe['name']}.yaml").costs:
        check.say(Figure(f"{cost.stage}, GiB told by check", cost.gib))
    release = sum(file.stat().st_size for file in (run / "release").rglob("*") if file.is_file())
    base = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    check.say(Figure("release over its Base, bytes", release / base, 1.2, at_most=True))


def adapters_recipe(check: Check, base: Path) -> dict[str, Any]:
    """A recipe in which everything is an adapter over a Base in four bits; rows of words drawn by chance."""
    rows = check.folder / "data" / "instruct" / "alpaca.jsonl"
    answers = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    pairs = check.folder / "data" / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as file:
        for one, other in zip(answers[0:80:2], answers[1:80:2], strict=True):
            file.write(json.dumps(
                {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}) + "\n")
    tokens = 16 if check.dry else 256
    trained = {"lora": {"rank": 16}, "activation_checkpointing": True}
    return {
        "name": "nf4",
        "base": {"from": str(base), "quantization": "nf4"},
        "instruct": trained | {"data": [{"file": str(rows), "rows": [0, 24]}], "epochs": 1, "batch_tokens": 4096},
        "feedback": [{"file": str(pairs)}],
        "reward": trained | {"epochs": 1, "batch_pairs": 8, "audit": {"required": False, "perturbed": 8}},
        "improve": trained | {
            "method": "grpo", "prompts": [{"file": str(rows), "rows": [24, 72]}], "steps": 2, "prompts_per_step": 4,
            "group_size": 4, "max_tokens": tokens, "eval_every": 2, "eval_prompts": 8,
        },
        "decoding": {"greedy": True, "max_tokens": tokens},
        "gate": {"judge": {"kind": "rules", "rules": [{"rule": "repetition"}]}, "prompts": 10},
        "evaluate": {"best_of": 0},
        "splits": {"test": 10, "gate": 10, "validation": 8, "heldout": 0.3, "cross_fit": False},
        "release": {"version": "1.0", "license": "other", "form": "adapters"},
    }


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others put in their place."""
    return {**settings, **{
        name: changed(settings[name], value) if isinstance(value, dict) and name in settings else value
        for name, value in changes.items()
    }}


def models(check: Check) -> None:
    """A random Llama of a billion parameters in bfloat16, a reward model on its trunk, a tokenizer and texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks import work
    from triptych.base.tokenizer import train_tokenizer
    from triptych.engine.device import device
    from triptych.engine.models import save
    from triptych.records import Document

    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 6))) for _ in range(60_000)]
    texts = (" ".join(draw.choices(words, k=1000)) for _ in range(20 if check.dry else 400))
    tokenizer = train_tokenizer([Document(text) for text in texts], 512 if check.dry else 49_152, 4096)
    write_rows(check, draw, words)
    shape = (
        SMALL if check.dry else
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20, "num_attention_heads": 32,
         "num_key_value_heads": 8}
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **shape,
    )
    torch.manual_seed(0)
    with device():
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    save(model, tokenizer, check.model)
    check.say(Figure("parameters", sum(weight.numel() for weight in model.parameters())))
    del model
    work.reward_model(check.model)


def write_rows(check: Check, draw: random.Random, words: Sequence[str]) -> None:
    """Conversations of words, as long as those of Alpaca, where the rows of the benchmark look for them."""
    share = 0.1 if check.dry else 1.0  # the tiny vocabulary's words are several tokens each
    folder = check.folder / "data" / "instruct"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "alpaca.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(100 if check.dry else 3000):
            prompt, answer = (
                " ".join(draw.choices(words, k=max(2, round(share * draw.randint(*lengths)))))
                for lengths in ((10, 60), (20, 200))
            )
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def beside(
    name: str, *, size: float, runs: int, setting: Setting, goal: float, utilisation: float | None = None
) -> Callable[[Check], None]:
    """A row of the benchmark on the random Llama.

    Args:
        size: of the row's work.
        runs: timed runs of each side.
        setting: the peer's.
        goal: how many times the peer's speed is wanted.
        utilisation: the share of the device's measured rate of products that is wanted.
    """

    def measured(check: Check) -> None:
        os.environ["DATA"] = str(check.folder / "data")
        from benchmarks.__main__ import measure
        from benchmarks.rows import ROWS
        from benchmarks.table import speed

        row = replace(ROWS[name], setting=replace(setting, batch=0) if check.dry else setting)
        result = measure(row, check.model, check.device, 0.01 if check.dry else size, 1 if check.dry else runs)
        check.say(Figure(f"ours, {row.unit}/s", speed(result.ours)))
        check.say(Figure(f"peer, {row.unit}/s", speed(result.peer)))
        check.say(Figure("ours over the peer's", result.ratio, goal))
        check.say(Figure("rate of products, TFLOP/s", result.rate / 1e12))
        check.say(Figure("ours, share of that rate", result.fraction(result.ours), utilisation))
        check.say(Figure("peer, share of that rate", result.fraction(result.peer)))

    return measured


def serving(check: Check) -> None:
    """A server of the random Llama under load, beside the engine without one."""
    os.environ["DATA"] = str(check.folder / "data")
    from benchmarks.serving import measure

    clients, span, tokens = (4, 2.0, 8) if check.dry else (64, 20.0, 128)
    result = measure(check.model, clients, span, tokens, 8 if check.dry else 64)
    for name in ("requests", "errors", "asked_again_alone", "differ", "median_seconds", "slowest_seconds"):
        check.say(Figure(name.replace("_", " "), result[name]))
    check.say(Figure("tokens/s of the server", result["tokens_per_second"]))
    check.say(Figure("tokens/s of the engine", result["engine_tokens_per_second"]))
    check.say(Figure("server over engine", result["share"], 0.8))


PARTS = (
    Part("machine", "versions, device, driver", 30, machine),
    Part("tests", "tests marked gpu, against float32 on the processor", 80, tests),
    Part("models", "a random Llama of a billion parameters", 60, models),
    Part("sft", "SFT beside TRL's SFTTrainer", 90, beside(
        "sft", size=16, runs=2, setting=Setting(batch=32), goal=3.5, utilisation=0.5)),
    Part("grpo", "GRPO beside TRL's GRPOTrainer", 120, beside(
        "grpo", size=4, runs=1, setting=Setting(batch=16), goal=4)),
    Part("sampling", "sampling beside transformers' generate", 80, beside(
        "sampling", size=2, runs=1, setting=Setting(), goal=3)),
    Part("continuous", "sampling beside transformers' generate_batch", 80, beside(
        "continuous", size=8, runs=1, setting=Setting(continuous=True), goal=3)),
    Part("serving", "64 clients beside the engine without a server", 90, serving),
    Part("cycle", "the quickstart's cycle, one round in a smaller world", 150, cycle),
    Part("nf4", "the cycle of an 8B Llama in four bits, on 23 GiB of the device", 300, nf4),
)
"""In the order in which they run; the first one always does, and where it fails no other."""


def main() -> None:
    """Runs the parts one after the other; ends with 1 where one did not do its work."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part.name:11} {part.seconds:3.0f} s  {part.what}" for part in PARTS),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="by default all")
    parser.add_argument("--dry", action="store_true", help="the same with tiny sizes on the processor")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="default: runs/gpu-check")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - {part.name for part in PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PARTS)}")
    if asked.within:
        (part,) = (part for part in PARTS if part.name in asked.parts)
        work_within(part, asked.out, asked.dry)
        return
    chosen = [part for part in PARTS if not asked.parts or part.name in (*asked.parts, PARTS[0].name)]
    folder = asked.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with (folder / "gpu-check.jsonl").open("w", encoding="utf-8") as results:
        for part in chosen:
            outcomes.append(outcome_of(part, folder, asked.dry))
            write_outcome(outcomes[-1], results)
            if part == PARTS[0] and outcomes[-1].ended != "done":
                break  # without a device nothing else can be told
    shown = table(outcomes, judged=not asked.dry)
    (folder / "gpu-check.md").write_text(shown + "\n", encoding="utf-8")
    print(shown)
    if bad := [outcome.part for outcome in outcomes if outcome.ended != "done"]:
        sys.exit(f"not done: {', '.join(bad)}")


def outcome_of(part: Part, folder: Path, dry: bool) -> Outcome:
    """Runs a part in a process of its own; at its time-out the process ends, with all that it started."""
    written, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    search = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH")]))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if dry else {}  # the engine takes a CUDA device where it finds one
    command = [sys.executable, "-m", "benchmarks.gpu_check", part.name, "--within", "--out", str(folder)]
    began = time.monotonic()
    with written.open("w", encoding="utf-8") as figures, log.open("w", encoding="utf-8") as printed:
        process = subprocess.Popen(
            [*command, *(["--dry"] if dry else [])], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=figures,
            stderr=printed, start_new_session=True, env=os.environ | {"PYTHONPATH": search} | hidden,
        )
        try:
            ended = "failed" if process.wait(part.seconds * (DRY_PATIENCE if dry else 1)) else "done"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        finally:
            end_group(process)
    seconds = time.monotonic() - began
    kept = latest(Figure(**json.loads(line)) for line in whole_lines(written))
    error = "" if ended == "done" else last_line(log)
    return Outcome(part.name, part.what, ended, seconds, kept, error)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session, and all that it started."""
    with suppress(ProcessLookupError):  # where nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def whole_lines(file: Path) -> list[str]:
    """A file's lines; the last of a process that was ended may be cut."""
    return [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return said[-1] if said else "it printed nothing"


def latest(figures: Iterable[Figure]) -> tuple[Figure, ...]:
    """Each name's last figure."""
    return tuple({figure.name: figure for figure in figures}.values())


def write_outcome(outcome: Outcome, file: IO[str]) -> None:
    """A line of JSON, on the disk when this returns."""
    figures = [asdict(figure) | {"met": figure.met} for figure in outcome.figures]
    file.write(json.dumps(asdict(outcome) | {"figures": figures}) + "\n")
    file.flush()
    print(f"{outcome.part}: {outcome.ended} in {outcome.seconds:.0f} s {outcome.error}".rstrip(), file=sys.stderr)


def work_within(part: Part, folder: Path, dry: bool) -> None:
    """Does a part's work in this process; figures go to the standard output, all else to the standard error."""
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(figure: Figure) -> None:
        figures.write(json.dumps(asdict(figure)) + "\n")
        figures.flush()

    part.work(Check(folder, dry, say))


def table(outcomes: Sequence[Outcome], *, judged: bool) -> str:
    """All figures as a Markdown table.

    Args:
        judged: whether it is said which goals were reached; a dry run reaches none.
    """
    lines = ["| part | seconds | figure | value | goal |", "|---|---:|---|---:|---|"]
    for outcome in outcomes:
        ending = [] if outcome.ended == "done" else [(outcome.ended, outcome.error, "")]
        rows = [*((f.name, shown(f.value), goal(f, judged)) for f in outcome.figures), *ending] or [("", "", "")]
        for place, cells in enumerate(rows):
            first = (outcome.part, f"{outcome.seconds:.0f}") if place == 0 else ("", "")
            lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in (*first, *cells))} |")
    return "\n".join(lines)


def shown(value: float | str) -> str:
    """A number with as many digits as tell something."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def goal(figure: Figure, judged: bool) -> str:
    """A figure's goal, and whether it is reached."""
    if figure.goal is None:
        return ""
    wanted = f"{'at most' if figure.at_most else 'at least'} {figure.goal:g}"
    return f"{wanted}, {'reached' if figure.met else 'missed'}" if judged else wanted


if __name__ == "__main__":
    main()
