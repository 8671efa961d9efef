"""Commands that compute: the cycle, once or whenever there is something new, and methods beside each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.app import INTERRUPTED, app
from triptych.cli.arguments import RUNS, Overrides, RecipeFile, RunsFolder
from triptych.cli.terminal import figure, say, show, show_error, table_of
from triptych.display import duration
from triptych.errors import RunError

if TYPE_CHECKING:
    from triptych.recipe import Recipe
    from triptych.report.summary import BenchmarkSummary, Summary, TaskSummary


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stops after this stage, as in round-1/audit.", show_default=False),
    ] = None,
    runs: RunsFolder = RUNS,
    allow_failed_audit: Annotated[
        bool, typer.Option("--allow-failed-audit", help="Goes on with a reward model that failed; the release says so.")
    ] = False,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that share the work, each on a device or a part of the cores.")
    ] = 1,
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines, each with so many ranks; the same command is given on all of them.")
    ] = 1,
    rendezvous: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="One of the machines, where they find each other.", show_default=False),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Ray starts the ranks, anywhere in the cluster that this is given in.")
    ] = False,
) -> None:
    """Runs the cycle, or goes on with it: what is done already is not done again.

    Results go to runs/NAME: summary.json, report.html and release/. Ctrl-C stops it; the same command goes on.

    Example: [bold]triptych run recipe.yaml --set improve.rounds=3 --until round-1/audit[/bold]
    """
    from triptych.recipe import load

    changes = [*(overrides or ()), *(["reward.audit.required=false"] if allow_failed_audit else ())]
    loaded = load(recipe, changes)
    if ranks == nodes == 1 and rendezvous is None and not ray:
        _carry_out(loaded, recipe, runs, until)
        return
    from triptych.execution import require_possible

    require_possible(loaded, until, ranks * nodes)
    arguments = ["run", str(recipe), "--runs", str(runs), *(["--until", until] if until else ())]
    for change in changes:
        arguments += ["--set", change]
    if not ray:
        from triptych.cluster import elastic

        raise typer.Exit(elastic.launch(arguments, ranks, nodes, rendezvous, loaded.name))
    if nodes > 1 or rendezvous is not None:
        raise RunError("--ray places the ranks by itself: --ranks says how many in all; leave out --nodes")
    from triptych.cluster.ray import launch

    launch(partial(app, arguments, standalone_mode=False), ranks)


def _carry_out(loaded: Recipe, recipe: Path, runs: Path, until: str | None = None) -> None:
    """The cycle; what it came to is shown, also where it ends early or fails."""
    from triptych.engine import distributed
    from triptych.execution import execute
    from triptych.progress import Terminal

    try:
        execute(loaded, runs / loaded.name, Terminal(), until, recipe, _show_outcome)
    except KeyboardInterrupt:
        if distributed.rank() == 0:
            say("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def watch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    at_least: Annotated[int, typer.Option(min=1, help="New lines that start a round.")] = 200,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Ends after so many rounds; by default never.", show_default=False)
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks at the file.")] = 30.0,
    runs: RunsFolder = RUNS,
) -> None:
    """Starts a round whenever people have added enough comparisons or thumbs.

    The recipe names the file that they add lines to: feedback: [{people: labels.jsonl}]. Each round takes the new ones,
    adds them to all before, refreshes the reward model and goes on from the champion. Where the reward model fails its
    audit, the round gives its comparisons back and waits for as many more. Results are those of triptych run. Ctrl-C
    stops it; the same command goes on.

    Example: [bold]triptych watch recipe.yaml --at-least 500[/bold]
    """
    from triptych.watching import Watch

    watched = Watch(
        recipe, overrides or (), runs, lambda loaded: _carry_out(loaded, recipe, runs), at_least, every, say, show_error
    )
    try:
        watched.keep(rounds)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def compare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Which; by default all that there are.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often each improves the champion.")] = 3,
    runs: RunsFolder = RUNS,
) -> None:
    """Compares methods of improvement on the same budget, from the same champion and reward model.

    Data, Base, Instruct, reward model and audit are those of `triptych run`, and are done once. Each method then asks
    as many prompts, samples as many answers and makes as many updates as `improve` says; its own settings stand in the
    recipe's `compare`. Results go to runs/NAME: compare.json and compare.html.

    Example: [bold]triptych compare recipes/quickstart.yaml --methods grpo,dpo,best_of_n[/bold]
    """
    from triptych import api

    wanted = [name.strip() for name in methods.split(",")] if methods else None
    comparison = api.compare(recipe, overrides or (), methods=wanted, seeds=seeds, runs=runs)
    table = table_of("method", "judge", "gain", "win rate", "KL", "tokens", "time", right=6)
    for row in comparison.methods:
        gain = f"{row.gain:+.3f} ({figure(row.gain_interval)})" + ("" if row.better else ", no better")
        table.add_row(
            row.method, f"{row.score:.3f}", gain, f"{row.win_rate:.1%}", f"{row.kl:.2f}", f"{row.length:.1f}",
            duration(row.seconds),
        )
    show(table)
    say(f"gain and win rate are over {comparison.rival}, the strongest that costs nothing: {comparison.before:.3f}")
    say(f"report   {runs / comparison.recipe / 'compare.html'}")


def _change(task: TaskSummary) -> str:
    """A task's score before and after, or the one that there is."""
    if (score := task.change) is None:
        kept = next((model for model in task.models if model.champion), task.models[-1])
        return f"{kept.score:.3f} by {task.scored_by} ({kept.name}) on {kept.prompts:,} prompts"
    low, high = score.interval
    gain = f"{score.gain:+.3f}, 95% interval {low:.3f} to {high:.3f}"
    return f"{score.before:.3f} → {score.after:.3f} by {task.scored_by} ({gain}) on {score.prompts:,} prompts"


def _standing(benchmark: BenchmarkSummary) -> str:
    """The released model on a benchmark, beside the first Instruct where that is another."""
    measure = benchmark.measures[0]
    kept = next((score for score in measure.scores if score.champion), measure.scores[-1])
    shown = f"{kept.value:.3f} by {measure.measure} ({kept.model})"
    if (change := kept.change) is not None:
        low, high = change.interval
        gain = f"{change.gain:+.3f}, 95% interval {low:.3f} to {high:.3f}"
        shown = f"{change.before:.3f} → {change.after:.3f} by {measure.measure} ({gain})"
    return f"{shown} on {benchmark.documents:,} documents"


def _show_outcome(summary: Summary, folder: Path) -> None:
    from triptych.report.page import headline

    outcome = headline(summary)
    tone = {"good": "green", "bad": "red"}.get(outcome.tone, "yellow")
    say()
    say((outcome.text, f"bold {tone}"))
    for task in summary.tasks:
        say((f"{task.name}: ", "bold"), _change(task))
    for benchmark in summary.benchmarks:
        say((f"{benchmark.name}: ", "bold"), _standing(benchmark))
    for measured in summary.reward_benchmarks[-1:]:
        say((f"{measured.name}: ", "bold"), f"the reward of round {measured.round} on {measured.scores.headline}")
    for missed in summary.verdict.missed if summary.verdict else ():
        say(("missed: ", "yellow"), missed)
    if summary.audits and (audit := summary.audits[-1]).worst:
        tone = "yellow" if audit.passed else "bold red"
        say((f"reward model {audit.verdict}: ", tone), audit.worst or "")
    if summary.missing:
        say(("missing: ", "yellow"), ", ".join(summary.missing))
    say(f"report   {folder / 'report.html'}")
    if summary.release:
        say(f"release  {folder / summary.release}")
        for command in ("chat", "serve"):
            say(f"{command:<9}triptych {command} {folder}")
