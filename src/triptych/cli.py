"""The command line: parsing and printing only.

What computes is imported inside the commands, so that `--help` and `status` answer at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from triptych import __version__
from triptych.errors import AuditError, ModelError, RecipeError, ReleaseError, RewardError, RunError, TriptychError
from triptych.pipeline.artifact import write_whole

if TYPE_CHECKING:
    from triptych.check import Findings
    from triptych.recipe import Recipe
    from triptych.report.summary import Summary

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT."""
RUNS = Path("runs")

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)


class Commands(TyperGroup):
    """The commands; what a user can mend is printed as one block, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except TriptychError as error:
            fail(str(error))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                fail("the disk is full; free some space and give the same command again")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                fail(f"{error.filename}: {error.strerror}")
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    """Prints what is wrong and ends with exit code 1."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:  # what is wrong on all ranks is said by the first, and torchrun ends the others meanwhile
        time.sleep(3)
        message = f"rank {rank}: {message}"
    show_error(message)
    raise typer.Exit(1)


def show_error(message: str) -> None:
    """One block on stderr; the lines after the first are indented below it."""
    err.print(Text("error: ", "bold red") + Text(message.replace("\n", "\n       ")), soft_wrap=True)


def say(text: str = "") -> None:
    """A plain line, never broken: paths must be copied whole."""
    out.print(text, markup=False, soft_wrap=True)


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", show_default=False,
        help="Sets a field of the recipe, as in reward.learning_rate=1e-5; may be given several times.",
    ),
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or its name in runs/.", show_default=False)
]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def triptych(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version.")
    ] = False,
) -> None:
    """Develops a family of three language models, Base, Instruct and Reward, from one recipe.

    Start with [bold]triptych init my-model[/bold], put your own files into it, then
    [bold]triptych check my-model/recipe.yaml[/bold] and [bold]triptych run my-model/recipe.yaml[/bold].
    """


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
) -> None:
    """Writes a commented recipe and small example files to begin with.

    Example: [bold]triptych init my-model[/bold]
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder; nothing was written. Name a new one")
    for name, source in _starter(resources.files("triptych") / "starter"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
        say(f"wrote {path}")
    say(f"\nNext: triptych check {folder / 'recipe.yaml'}")


def _starter(folder: Traversable, inside: Path = Path()) -> Iterator[tuple[Path, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _starter(entry, inside / entry.name)
        elif not entry.name.endswith((".py", ".pyc")):
            yield inside / entry.name, entry


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="REWARD", help="A reward model that is there already: is it made for this model and data?",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Reads and checks everything a run needs, and estimates its memory and time.

    Every file is read, the model and its tokenizer are opened, lengths are counted. Exit code 1 with every
    problem listed, 0 where the run may start. A model on the Hugging Face Hub is downloaded.

    Example: [bold]triptych check recipe.yaml --set instruct.context=1024[/bold]
    """
    from triptych.check import check as look
    from triptych.engine.device import settle

    settle()
    findings = look(recipe, overrides or (), _model(reward, "reward")[0] if reward else None)
    _show_findings(findings)
    if findings.problems:
        count = len(findings.problems)
        fail(f"{count} problem{'s' if count > 1 else ''}:\n" + "\n".join(findings.problems))
    say(f"{recipe} is fine: triptych run {recipe}")


def _show_findings(findings: Findings) -> None:
    if findings.lengths:
        table = _table("tokens in a row of", "rows", "median", "longest", "limit", "over", right=5)
        for name, report in findings.lengths.items():
            numbers = (report.count, round(report.median), report.longest, report.limit, report.over)
            table.add_row(name, *(f"{number:,}" for number in numbers))
        out.print(table)
    if findings.costs:
        table = _table("stage", "tokens", "time, about", "memory, about", right=3)
        for cost in findings.costs:
            table.add_row(cost.stage, f"{cost.tokens:,}", _duration(cost.seconds), f"{cost.gib:.2f} GiB")
        total = sum(cost.seconds for cost in findings.costs)
        most = max(cost.gib for cost in findings.costs)
        table.add_section()
        table.add_row("all", "", _duration(total), f"{most:.2f} GiB at most")
        out.print(table)
        say(f"Estimated from {findings.assumption}.")
    for note in findings.notes:
        say(f"note: {note}")


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stops after this stage, as in round-1/audit.", show_default=False),
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = RUNS,
    allow_failed_audit: Annotated[
        bool, typer.Option("--allow-failed-audit", help="Goes on with a reward model that failed; the release says so.")
    ] = False,
) -> None:
    """Runs the cycle, or goes on with it: what is done already is not done again.

    Results go to runs/NAME: summary.json, report.html and release/. Ctrl-C stops it; the same command goes on.
    On several cores' groups or devices: torchrun --nproc-per-node 2 -m triptych run RECIPE.

    Example: [bold]triptych run recipe.yaml --set improve.rounds=3 --until round-1/audit[/bold]
    """
    from triptych.check import stage_names
    from triptych.recipe import load

    allowed = ["reward.audit.required=false"] if allow_failed_audit else []
    loaded = load(recipe, [*(overrides or ()), *allowed])
    names = stage_names(loaded)
    if until is not None and until not in names:
        raise RecipeError(f"--until {until}: this recipe has no such stage; it has {', '.join(names)}")
    _carry_out(loaded, recipe, runs, until)


def _carry_out(loaded: Recipe, recipe: Path, runs: Path, until: str | None = None) -> None:
    """The cycle, and what it leaves for people, also where it ends early."""
    from triptych import outcome
    from triptych.cycle import Family, cycle
    from triptych.engine import ranks
    from triptych.engine.device import settle
    from triptych.pipeline.runner import Runner, Until, claimed
    from triptych.progress import Silent, Terminal

    seconds = _checkpoint_seconds()
    ranks.start()
    settle()
    folder = runs / loaded.name
    first = ranks.rank() == 0
    failure: AuditError | None = None
    stopped = False
    with claimed(folder) if first else nullcontext():
        if first:
            _store(loaded, recipe, folder / "recipe.yaml")
        ranks.barrier()
        runner = Runner(folder, Terminal() if first else Silent(), loaded.seed, seconds, until)
        family = Family()
        try:
            cycle(loaded, runner, family)
        except Until:
            pass
        except AuditError as error:
            failure = error
        except KeyboardInterrupt:
            stopped = True
            runner.progress.say("stopping")  # below the line that is rewritten in place
        if first and family.base is not None:
            with ranks.alone():
                _show_outcome(outcome.write(loaded, family, folder, runner.ledger), folder)
        if not stopped:
            ranks.stop()
    if failure is not None:
        raise failure
    if stopped:
        if first:
            say("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED)


@app.command()
def watch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    at_least: Annotated[int, typer.Option(min=1, help="New comparisons that start a round.")] = 200,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Ends after so many rounds; by default never.", show_default=False)
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks at the file.")] = 30.0,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = RUNS,
) -> None:
    """Starts a round whenever people have added enough comparisons.

    The recipe names the file that they add lines to: feedback: [{people: labels.jsonl}]. Each round takes the new ones,
    adds them to all before, refreshes the reward model and goes on from the champion. Results are those of triptych
    run. Ctrl-C stops it; the same command goes on.

    Example: [bold]triptych watch recipe.yaml --at-least 500[/bold]
    """
    from triptych.cycle import arrivals
    from triptych.recipe import load

    first = load(recipe, overrides or ())
    if first.people is None:
        raise RecipeError("watch needs a file that people add comparisons to: feedback: [{people: labels.jsonl}]")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("watch waits in one process; for a round on several ranks give triptych run under torchrun")
    waiting = arrivals(first, runs / first.name)

    def until(round: int) -> None:
        _carry_out(load(recipe, [*(overrides or ()), f"improve.rounds={round}"]), recipe, runs)

    try:
        until(waiting.rounds)  # the last one may not have come to its end; without any, what people are asked
        while rounds is None or waiting.rounds < rounds:
            shown = -1
            while (count := waiting.waiting) < at_least:
                if count != shown:
                    say(f"round {waiting.rounds + 1}: {count} of {at_least} new comparisons in {waiting.file}")
                shown = count
                time.sleep(every)
            until(waiting.rounds + 1)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = RUNS,
) -> None:
    """Asks you which of two answers is better, and adds what you say to the recipe's file of comparisons.

    The questions are what the run's champion wrote; those that the reward model is least sure of come first. Several
    people may answer at the same time. The recipe names the file: feedback: [{people: labels.jsonl}].

    Example: [bold]triptych label recipe.yaml[/bold]
    """
    from triptych.cycle import arrivals
    from triptych.feedback.questions import FILE, open_questions, record
    from triptych.recipe import load

    loaded = load(recipe, overrides or ())
    if loaded.people is None:
        raise RecipeError("label needs a file that it may add to: feedback: [{people: labels.jsonl}]")
    labels, questions = arrivals(loaded, runs / loaded.name).file, runs / loaded.name / FILE
    if not questions.exists():
        raise RunError(f"{questions} is not there yet: triptych watch {recipe} has the model write its answers")
    done = 0
    for question in open_questions(questions, labels):
        out.print()
        for turn in question.prompt.messages:
            out.print(Text(f"{turn.role}: {turn.content}", style="dim"))
        for number, answer in enumerate((question.first, question.second), start=1):
            out.print(Text.assemble((f"{number}  ", "bold"), answer.strip()))
        said = ""
        while said not in ("1", "2", "s", "q"):
            said = typer.prompt("1, 2, s to skip, q to stop").strip().lower()
        if said == "q":
            break
        if said != "s":
            record(question.answered(first_is_better=said == "1"), labels)
            done += 1
    else:
        say("there is no open question left")
    say(f"{done} comparison{'' if done == 1 else 's'} added to {labels}")


@app.command()
def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Which; by default all that there are.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often each improves the champion.")] = 3,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = RUNS,
) -> None:
    """Compares methods of improvement on the same budget, from the same champion and reward model.

    Data, Base, Instruct, reward model and audit are those of `triptych run`, and are done once. Each method then asks
    as many prompts, samples as many answers and makes as many updates as `improve` says; its own settings stand in the
    recipe's `compare`. Results go to runs/NAME: compare.json and compare.html.

    Example: [bold]triptych compare recipes/quickstart.yaml --methods grpo,dpo,best_of_n[/bold]
    """
    from triptych import comparison
    from triptych.engine.device import settle
    from triptych.pipeline.runner import Runner, claimed
    from triptych.progress import Terminal
    from triptych.recipe import load

    loaded = load(recipe, overrides or ())
    wanted = comparison.chosen(loaded, methods)
    settle()
    folder = runs / loaded.name
    with claimed(folder):
        _store(loaded, recipe, folder / "recipe.yaml")
        found = comparison.compare(
            loaded, Runner(folder, Terminal(), loaded.seed, _checkpoint_seconds()), wanted, seeds
        )
        comparison.write(found, folder)
    table = _table("method", "judge", "gain", "win rate", "KL", "tokens", "time", right=6)
    for row in found.methods:
        table.add_row(
            row.method, f"{row.score:.3f}", f"{row.gain:+.3f} ({_number(row.gain_interval)})", f"{row.win_rate:.1%}",
            f"{row.kl:.2f}", f"{row.length:.1f}", _duration(row.seconds),
        )
    out.print(table)
    say(f"report   {folder / 'compare.html'}")


def _checkpoint_seconds() -> float:
    text = os.environ.get("TRIPTYCH_CHECKPOINT_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise RunError(f"TRIPTYCH_CHECKPOINT_SECONDS must be a number of seconds, got {text!r}") from None


def _store(recipe: Recipe, path: Path, destination: Path) -> None:
    """Keeps the resolved recipe beside its results."""
    import yaml

    content = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
    write_whole(destination, f"# {path} with every default; file names are relative to {path.parent}\n{content}")


def _show_outcome(summary: Summary, folder: Path) -> None:
    from triptych.report.page import headline

    found = headline(summary)
    tone = {"good": "green", "bad": "red"}.get(found.tone, "yellow")
    out.print(Text("\n" + found.text, f"bold {tone}"), soft_wrap=True)
    for missed in summary.verdict.missed if summary.verdict else ():
        out.print(Text("missed: ", "yellow") + Text(missed), soft_wrap=True)
    say(f"report   {folder / 'report.html'}")
    if summary.release:
        say(f"release  {folder / summary.release}")


@app.command()
def status(name: RunFolder) -> None:
    """Shows how far a run is: each stage, its state, time and result.

    Example: [bold]triptych status quickstart[/bold]
    """
    from triptych.pipeline.ledger import Ledger

    folder = _run(name)
    ledger = Ledger(folder / "ledger.jsonl")
    owner = _owner(folder)
    spent = ledger.seconds()
    last = {event["stage"]: event for event in ledger.events()}
    if not last:
        say(f"{folder}: nothing was run yet")
    table = _table("stage", "state", "time", "result", "fingerprint")
    for stage, event in last.items():
        mark = event["fingerprint"]
        seconds = spent.get(mark, 0.0)
        state, tone = {
            "finished": ("done", "green"), "reused": ("reused", "green"), "stopped": ("stopped", "yellow"),
            "failed": ("failed", "red"),
        }.get(event["event"], ("under way", "blue"))
        if state == "under way":
            seconds += max(0.0, time.time() - event["time"])
            if owner is None:
                state, tone, seconds = "interrupted", "yellow", spent.get(mark, 0.0)
        result = _result(folder / "artifacts" / f"{stage.replace('/', '-')}-{mark[:12]}" / "manifest.json")
        table.add_row(stage, Text(state, tone), _duration(seconds), result, mark[:12])
    if last:
        out.print(table)
    say("no process is at work on it" if owner is None else f"process {owner} is at work on it")
    if (folder / "report.html").exists():
        say(f"report   {folder / 'report.html'}")
    if (folder / "release").exists():
        say(f"release  {folder / 'release'}")


def _owner(folder: Path) -> str | None:
    """The process that holds the run, by the lock that `triptych run` keeps."""
    try:
        with open(folder / "lock", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return lock.read().strip() or "unknown"
    except OSError:
        pass
    return None


def _result(manifest: Path) -> str:
    """The one number that a reader of a stage's row looks for."""
    try:
        metrics = json.loads(manifest.read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError):
        return ""
    if "decision" in metrics:
        return f"{metrics['decision']}, win rate {metrics['win_rate']:.1%}"
    if "accuracy" in metrics:
        return f"accuracy {metrics['accuracy']:.1%}, {'passed' if metrics['passed'] else 'not passed'}"
    if "score" in metrics:
        return f"score {metrics['score']:.3f}"
    if metrics.get("bits_per_byte") is not None:
        return f"{metrics['bits_per_byte']:.3f} bits per byte"
    return ""


@app.command()
def report(
    name: RunFolder, open_: Annotated[bool, typer.Option("--open", help="Opens it in the browser.")] = False
) -> None:
    """Writes report.html again from a run's summary and samples, and prints its path.

    Example: [bold]triptych report quickstart --open[/bold]
    """
    from pydantic import TypeAdapter, ValidationError

    from triptych.report.page import render
    from triptych.report.summary import Sample, Summary

    folder = _run(name)
    try:
        summary = Summary.model_validate_json((folder / "summary.json").read_bytes())
        samples = TypeAdapter(list[Sample]).validate_json((folder / "samples.json").read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} is not there: it is written when the run has a Base or more") from None
    except ValidationError as error:
        raise RunError(f"{folder}: summary.json or samples.json is damaged; run the recipe again: {error}") from None
    write_whole(folder / "report.html", render(summary, samples))
    say(str(folder / "report.html"))
    if open_:
        webbrowser.open((folder / "report.html").resolve().as_uri())


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False),
    ],
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest word.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Gives the same answers again.", show_default=False)
    ] = None,
) -> None:
    """Talks with a model; of a release the Reward model scores each answer.

    /reset begins anew, /quit or Ctrl-D leaves. Reads lines from a pipe as well, one for each turn.

    Example: [bold]triptych chat runs/quickstart/release --temperature 0.3[/bold]
    """
    folder, release = _model(model, "instruct")

    from triptych.engine.device import settle
    from triptych.engine.generation import Sampling
    from triptych.engine.rollout import Policy
    from triptych.records import Conversation, Message, Prompt
    from triptych.reward.kinds import open_reward

    settle()
    policy = Policy.open(folder)
    scorer = None
    if release:
        try:
            scorer = open_reward(release / "reward", models={"policy": folder})
        except RewardError as error:
            say(f"(answers are not scored: {error})")
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    seed = random.randrange(2**31) if seed is None else seed
    turns: list[Message] = []
    for number, line in enumerate(_lines()):
        if line == "/quit":
            break
        if line == "/reset":
            turns = []
            say("(a new conversation)")
            continue
        turns.append(Message("user", line))
        forgotten = 0
        while context and len(turns) > 1 and len(policy.render(Prompt(tuple(turns)))) + max_tokens > context:
            turns, forgotten = turns[2:], forgotten + 2
        if forgotten:
            say(f"(the first {forgotten} turns no longer fit the model's {context} tokens and are forgotten)")
        prompt = Prompt(tuple(turns))
        sampling = Sampling(max_tokens, temperature, seed=seed + number)
        ((rollout,),) = policy.write([prompt], sampling)
        turns.append(Message("assistant", rollout.answer))
        say(_printable(rollout.answer) + ("" if rollout.finished else " …"))
        if scorer:
            score = scorer.score([Conversation(prompt, rollout.answer)])[0]
            out.print(f"[dim]reward {score:.2f}[/]")


def _lines() -> Iterator[str]:
    """What the user types, or what comes from a pipe; empty lines are passed over."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (gives input() its history and editing)
    while True:
        try:
            line = input("› " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _printable(text: str) -> str:
    """Without control characters, by which a model's answer could steer the terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or letter.isprintable())


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's folder, a release, or a run.", show_default=False),
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="Rows of {prompt}: the model answers each.", show_default=False)
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="A reward model's folder: it scores the answers.", show_default=False)
    ] = None,
    comparisons: Annotated[
        Path | None,
        typer.Option(help="Rows of {prompt, chosen, rejected}: how often a reward model agrees.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Plain text: how well the model predicts it.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 96,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers; 0 takes the likeliest word.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the answers.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Writes the numbers as JSON.", show_default=False)] = None,
) -> None:
    """Measures a model: its answers, its reading of plain text, or a reward model's agreement with people.

    Of a release, --comparisons measures the Reward model and the others the Instruct model.

    Example: [bold]triptych evaluate runs/quickstart/release/instruct --prompts questions.jsonl
    --reward runs/quickstart/release/reward[/bold]
    """
    if prompts is None and comparisons is None and text is None:
        raise RecipeError("nothing to measure: give --prompts, --comparisons or --text")
    if reward is not None and prompts is None:
        raise RecipeError("--reward scores answers to prompts: give --prompts as well")
    from triptych.engine.device import settle

    settle()
    numbers: dict[str, Any] = {}
    if comparisons is not None:
        numbers |= _agreement(_model(model, "reward")[0], comparisons)
    if prompts is not None or text is not None:
        folder = _model(model, "instruct")[0]
        if prompts is not None:
            numbers |= _answers(folder, prompts, reward, max_tokens, temperature, seed)
        if text is not None:
            numbers |= _prediction(folder, text)
    table = _table("measured", "value", right=1)
    for name, value in numbers.items():
        table.add_row(name.replace("_", " "), _number(value))
    out.print(table)
    if output is not None:
        write_whole(output, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        say(str(output))


def _answers(
    folder: Path, prompts: Path, reward: Path | None, max_tokens: int, temperature: float, seed: int
) -> dict[str, Any]:
    from triptych.data.files import read_prompts
    from triptych.engine.generation import Sampling
    from triptych.engine.rollout import Policy
    from triptych.engine.scoring import RewardModel
    from triptych.intervals import mean_interval
    from triptych.progress import Terminal
    from triptych.records import Conversation

    asked = read_prompts(prompts)
    scorer = RewardModel(_model(str(reward), "reward")[0]) if reward is not None else None
    written = Policy.open(folder).write(asked, Sampling(max_tokens, temperature, seed=seed), progress=Terminal())
    answers = [group[0] for group in written]
    numbers: dict[str, Any] = {
        "prompts": len(asked),
        "mean_length": sum(len(answer.tokens) for answer in answers) / len(answers),
        "cut": sum(not answer.finished for answer in answers) / len(answers),
        "distinct": len({answer.answer for answer in answers}) / len(answers),
    }
    if scorer:
        scores = scorer.score([Conversation(answer.prompt, answer.answer) for answer in answers])
        numbers["reward"], numbers["reward_interval"] = mean_interval(scores)
    return numbers


@app.command()
def audit(
    reward: Annotated[
        str,
        typer.Argument(metavar="REWARD", help="A reward model's folder, a release, or a run.", show_default=False),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Rows of {prompt, chosen, rejected}, RewardBench's too; may be given several times.",
            show_default=False,
        ),
    ],
    training: Annotated[
        list[Path] | None,
        typer.Option(
            help="The comparisons it was trained on: a bag of words learns from them, and their prompts are left out.",
            show_default=False,
        ),
    ] = None,
    predecessor: Annotated[
        str | None, typer.Option(help="The reward model that it was refreshed from.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where audit.json and audit.html are written.")
    ] = Path("audit"),
) -> None:
    """Measures what a reward model is worth on comparisons that it has not seen; exit code 1 where it fails.

    Accuracy beside trivial rules and people, calibration, length, answers changed on purpose, and whether it gives
    the same scores however it is computed.

    Example: [bold]triptych audit runs/quickstart/release --data preferences.jsonl --data rewardbench.jsonl[/bold]
    """
    from triptych.data.files import read_comparisons
    from triptych.data.splits import decontaminate
    from triptych.engine.device import settle
    from triptych.report.page import render_audit
    from triptych.report.summary import Audit as Audited
    from triptych.reward.audit.stage import Audit, Evidence, examine
    from triptych.reward.kinds import open_reward

    folder = _model(reward, "reward")[0]
    rows = [row for path in data for row in read_comparisons(path)]
    trained = [row for path in training or () for row in read_comparisons(path)]
    rows, shared = decontaminate(rows, trained)
    if shared:
        say(f"note: {shared:,} comparisons have a prompt of the training comparisons and are left out")
    if not rows:
        raise AuditError("no comparison is left: every prompt of --data is one of --training")
    settle()
    before = open_reward(_model(predecessor, "reward")[0]) if predecessor else None
    record = examine(open_reward(folder), Evidence(rows, trained), Audit(), before)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "audit.json", record.model_dump_json(indent=1) + "\n")
    shown = Audited(round=0, trained_on=len(trained) or None, ceiling=None, **record.model_dump())
    write_whole(output / "audit.html", render_audit(shown, reward, __version__))
    table = _table("ordered as labelled", "accuracy", "95% interval", right=2)
    parts = {"all": (record.accuracy, record.interval)}
    parts |= {name: (group.score, group.interval) for name, group in record.by_group.items()}
    for name, (accuracy, (low, high)) in parts.items():
        table.add_row(name, f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}")
    for name, accuracy in record.baselines.items():
        low, high = record.leads[name].interval
        table.add_row(name, f"{accuracy:.1%}", f"lead {100 * low:+.1f} to {100 * high:+.1f} points")
    out.print(table)
    for warning in record.warnings:
        say(f"note: {warning}")
    say(str(output / "audit.html"))
    if not record.passed:
        raise AuditError(f"{reward} failed its audit: " + "; ".join(record.reasons))


def _agreement(folder: Path, comparisons: Path) -> dict[str, Any]:
    from triptych.data.files import read_comparisons
    from triptych.engine.scoring import RewardModel
    from triptych.reward.audit.stage import Evidence, measured, scored

    rows = read_comparisons(comparisons)
    found = measured(Evidence(rows), *scored(RewardModel(folder), rows))
    names = ("comparisons", "accuracy", "interval", "calibration_error", "length_correlation")
    numbers = {name: getattr(found, name) for name in names}
    return numbers | {f"accuracy_of_{name.replace(' ', '_')}": share for name, share in found.baselines.items()}


def _prediction(folder: Path, text: Path) -> dict[str, Any]:
    from triptych.data.files import read_documents
    from triptych.engine.perplexity import bits_per_byte
    from triptych.engine.rollout import Policy

    policy = Policy.open(folder)
    context = min(getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or 1024, 1024)
    return {"bits_per_byte": bits_per_byte(policy.model, policy.tokenizer, read_documents(text), context)}


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="RELEASE", help="A release's folder, or a run.", show_default=False)],
) -> None:
    """Says whether a release still holds what its manifest lists: no file changed, missing or added.

    Example: [bold]triptych verify runs/quickstart/release[/bold]
    """
    from triptych.release.verification import verify as problems_of

    folder = Path(name)
    if not (folder / "manifest.json").exists():
        folder = next((run / "release" for run in (folder, RUNS / name) if (run / "release").is_dir()), folder)
    problems = problems_of(folder)
    if problems:
        raise ReleaseError(f"{folder} is not what was released:\n" + "\n".join(problems))
    say(f"OK: {folder} holds what its manifest lists")


def _run(name: str) -> Path:
    """The folder of a run, given by its path or its name."""
    for folder in (Path(name), RUNS / name):
        if (folder / "ledger.jsonl").exists() or (folder / "summary.json").exists():
            return folder
    there = sorted(path.parent.name for path in RUNS.glob("*/ledger.jsonl"))
    known = f"; {RUNS}/ has {', '.join(there)}" if there else ""
    raise RunError(f"{name}: neither a run's folder nor a name in {RUNS}/{known}")


def _model(name: str, role: str) -> tuple[Path, Path | None]:
    """The model's folder that a path stands for, and the release it is part of where that was named."""
    for place in (Path(name), RUNS / name):
        for release in (place, place / "release"):
            if (release / "manifest.json").exists() and (release / role / "config.json").exists():
                return release / role, release
        for folder in (place, place / "model"):
            if (folder / "config.json").exists():
                scores = "SequenceClassification" in (folder / "config.json").read_text(encoding="utf-8")
                if scores != (role == "reward"):
                    does, wanted = ("scores", "writes") if scores else ("writes", "scores")
                    raise ModelError(f"{folder}: this model {does} answers; one that {wanted} them is needed here")
                return folder, None
    raise ModelError(f"{name}: neither a model's folder, nor a release, nor a run with a release")


def _table(*columns: str, right: int = 0) -> Table:
    """A table without rules; the numbers after its first column stand to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if 1 <= place <= right else "left", overflow="fold")
    return table


def _number(value: float | Sequence[float]) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else " to ".join(map(_number, value))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def main() -> None:
    """The entry point of the console command."""
    app()
