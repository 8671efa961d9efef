"""`triptych compare`: methods of improvement on the same budget, from the same champion and reward model.

Everything up to the first round's audit is the run's own and is done once. Then each method improves the champion with
each of several seeds: the same prompts, answers and updates, so that what differs is the method. Its candidates stand
before the same gate, each at its own best decoding, and are told against the champion in the strongest way that costs
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from triptych.benchmarks import measure_benchmarks
from triptych.configuration import reason
from triptych.cycle import begin, improve_and_gate, reward_of_round
from triptych.deployment import deployed
from triptych.engine.checkpoint import checkpoint_seconds
from triptych.engine.device import settle
from triptych.engine.scoring import compares
from triptych.errors import RecipeError
from triptych.evaluate.gate import Decided, gate_scores
from triptych.evaluate.measurement import Measurements, measure, tested_prompts
from triptych.family import Family, Round, Start
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.lock import claimed
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.progress import Progress
from triptych.recipe import Recipe, store
from triptych.report.page import render_comparison
from triptych.report.summary import Budget, MethodComparison, MethodResult, decoded_as
from triptych.statistics.intervals import seeds_interval, wins
from triptych.storage import write_whole


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and how it fared.

    Attributes:
        scores: the judge's, by the gate's prompts; on the same scale as the baselines'.
    """

    candidate: Artifact[Result]
    gate: Artifact[Decided]
    scores: Mapping[str, float]


def compare(
    recipe: Recipe, folder: Path, progress: Progress, methods: Sequence[str], seeds: int, file: Path | None = None
) -> MethodComparison:
    """Compares methods in a run's folder, or goes on with it, and writes `compare.json` and `compare.html`.

    Args:
        methods: names, as of :func:`chosen`.
        file: where the recipe stands.
    """
    settle()
    with claimed(folder):
        store(recipe, folder / "recipe.yaml", file)
        comparison = improve_by_each(
            recipe, Runner(folder, progress, recipe.seed, checkpoint_seconds()), methods, seeds
        )
        write(comparison, folder)
    return comparison


def improve_by_each(recipe: Recipe, runner: Runner, methods: Sequence[str], seeds: int) -> MethodComparison:
    """Improves the champion by each method with each seed, and puts the results side by side.

    The recipe's judge compares, also where people decide at the gate: there are too many candidates to ask them of.

    Args:
        methods: names; each one's own settings are those of the recipe's `compare`, or its defaults.
        seeds: how many, counted from the recipe's.
    """
    recipe = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"people": None})})
    family = Family()
    start = begin(recipe, runner, family)
    current = Round(1)
    reward_of_round(recipe, runner, family, start, current)
    measure_benchmarks(recipe, runner, family, "instruct", start.instruct, bounded=True)
    beside = measured_instruct(recipe, runner, family, start, current)
    free = free_baselines(beside)
    trials: dict[str, list[Trial]] = {}
    for method in methods:
        with_method = recipe.with_method(method)
        for seed in range(recipe.seed, recipe.seed + seeds):
            part = replace(runner, seed=seed, done=[])
            tried = replace(current)
            improve_and_gate(with_method, part, family, start, tried, f"compare-{method}")
            assert tried.candidate
            assert tried.gate
            trials.setdefault(method, []).append(Trial(
                tried.candidate, tried.gate,
                _scores(recipe, part, family, start, current, tried, f"compare-{method}", beside),
            ))
    for artifact in runner.done:
        artifact.prove()
    results = [_result(method, these, free, runner.ledger) for method, these in trials.items()]
    config = recipe.improve.method
    rival = strongest(free)
    return MethodComparison(
        recipe=recipe.name, judge=start.judge.name, rival=rival, before=fmean(free[rival].values()),
        budget=Budget(updates=config.steps, answers=config.answers),
        methods=tuple(sorted(results, key=lambda one: -one.score)),
    )


def measured_instruct(
    recipe: Recipe, runner: Runner, family: Family, start: Start, current: Round
) -> Artifact[Measurements]:
    """The champion on the gate's prompts, in each way that costs nothing."""
    reward = current.reward.scorer if current.reward else None
    decoding = deployed(recipe, runner, family, start, start.instruct, "decoding/instruct", reward)
    config = recipe.evaluate.measurement.model_copy(update={"prompts": recipe.gate.answering.prompts})
    return runner.run(
        "compare/instruct", measure, config, model=start.instruct, data=start.data, judge=start.judge,
        decoding=decoding, split="gate",
    )


def free_baselines(measured: Artifact[Measurements]) -> dict[str, dict[str, float]]:
    """The judge's scores in each way that costs nothing, by the prompts' keys."""
    rows = tested_prompts(measured)
    return {decoded_as(way): {row.key: row.decodings[way].judge for row in rows}
            for way in measured.result.decodings}


def _scores(
    recipe: Recipe, runner: Runner, family: Family, start: Start, current: Round, tried: Round, name: str,
    beside: Artifact[Measurements],
) -> Mapping[str, float]:
    """The judge's scores of a candidate on the gate's prompts, by their keys.

    A judge that compares has compared it with the champion there, which is another scale than that of the baselines.
    """
    assert tried.candidate
    assert tried.gate
    if not compares(start.judge):
        return {row.key: row.after for row in gate_scores(tried.gate)}
    reward = current.reward.scorer if current.reward else None
    config = recipe.evaluate.measurement.model_copy(update={"prompts": recipe.gate.answering.prompts})
    measured = runner.run(
        f"{name}/scores", measure, config, model=tried.candidate, data=start.data, judge=start.judge,
        decoding=deployed(recipe, runner, family, start, tried.candidate, f"{name}/decoding", reward), split="gate",
        only_deployed=True, beside=beside,
    )
    return {row.key: row.deployed.judge for row in tested_prompts(measured)}


def strongest(free: Mapping[str, Mapping[str, float]]) -> str:
    """The baseline with the highest mean score."""
    return max(free, key=lambda name: fmean(free[name].values()))


def chosen(recipe: Recipe, names: Sequence[str] | None) -> list[str]:
    """The methods to compare, each once; by default all that the recipe has what they learn from.

    Raises:
        RecipeError: one is not known, or cannot be compared on this recipe.
    """
    wanted = names or list(recipe.methods)
    if unknown := [name for name in wanted if name not in recipe.methods]:
        raise RecipeError(f"methods: there is no {unknown[0]!r}; there are {', '.join(recipe.methods)}")
    able = {}
    for name in wanted:
        try:
            lacking = recipe.lacks(recipe.with_method(name).improve.method)
        except ValidationError as error:
            why = reason(error.errors()[0])
            raise RecipeError(f"{name} cannot be compared on this recipe's budget: {why}; name the others in "
                              "`methods`") from None
        if lacking and names:
            raise RecipeError(f"compare: {name} {lacking}")
        able[name] = not lacking
    return [name for name in able if able[name]]


def _result(
    method: str, trials: Sequence[Trial], free: Mapping[str, Mapping[str, float]], ledger: Ledger
) -> MethodResult:
    rival = strongest(free)
    scored = [trial.scores for trial in trials]
    keys = [key for key in scored[0] if key in free[rival]]  # of every seed the same
    after = [[scores[key] for key in keys] for scores in scored]
    spent = ledger.seconds()
    gains = {
        name: seeds_interval([[new - scores[key] for key, new in zip(keys, row, strict=True)] for row in after])
        for name, scores in free.items()
    }
    score, score_interval = seeds_interval(after)
    gain, gain_interval = gains[rival]
    rate, (low, high) = seeds_interval([wins(row, [free[rival][key] for key in keys]) for row in after])
    gates = [trial.gate.result for trial in trials]

    return MethodResult(
        method=method, seeds=len(trials), decodings=tuple(gate.decoding_after for gate in gates),
        better=all(interval[0] > 0 for _, interval in gains.values()), score=score, score_interval=score_interval,
        gain=gain, gain_interval=gain_interval, win_rate=rate, win_rate_interval=(max(0.0, low), min(1.0, high)),
        at_equal_length=tuple(gate.length_controlled for gate in gates),
        kl=fmean(gate.kl for gate in gates if gate.kl is not None), length=fmean([gate.length_after for gate in gates]),
        seconds=fmean([spent.get(trial.candidate.fingerprint, 0.0) for trial in trials]),
        promoted=sum(gate.decision == "promoted" for gate in gates),
    )


def write(comparison: MethodComparison, folder: Path) -> None:
    """Writes `compare.json` and `compare.html`, the same as a table and a plot."""
    write_whole(folder / "compare.json", comparison.model_dump_json(indent=1) + "\n")
    write_whole(folder / "compare.html", render_comparison(comparison))

