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

from pydantic import Field, ValidationError

from triptych.configuration import Config
from triptych.cycle import begin, deployed, improve_and_gate, reward_of_round
from triptych.errors import RecipeError
from triptych.evaluate.gate import Decided
from triptych.evaluate.measurement import measure
from triptych.family import Family, Round, Start
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.recipe import Recipe
from triptych.report.summary import instruct_as
from triptych.statistics.intervals import Interval, seeds_interval, wins
from triptych.storage import read_rows, write_whole


class MethodResult(Config):
    """A method's candidates, each as it is decoded best, all seeds together.

    Every interval is over the gate's prompts and, where there are several, over seeds.

    Attributes:
        decodings: of the seeds' candidates, in order.
        score: the judge's mean score, with its interval.
        better: whether it beats the champion in every way that costs nothing, each interval excluding zero.
        gain: over the strongest of them on the same prompts, with its interval.
        win_rate: against that one, with its interval.
        at_equal_length: each seed's win rate against the champion at equal length; None where lengths hardly overlap.
        kl: nats per answer from the champion.
        length: tokens per answer.
        seconds: of improvement, in the mean over seeds.
        promoted: how many of the seeds' candidates the gate promoted.
    """

    method: str
    seeds: int
    decodings: tuple[str, ...]
    better: bool
    score: float
    score_interval: Interval
    gain: float
    gain_interval: Interval
    win_rate: float
    win_rate_interval: Interval
    at_equal_length: tuple[float | None, ...]
    kl: float
    length: float
    seconds: float
    promoted: int


class MethodComparison(Config):
    """What `compare.json` holds.

    Attributes:
        rival: the strongest way of decoding the champion, on the gate's prompts.
        before: the judge's mean score of it.
        budget: the updates and the answers of each candidate.
    """

    recipe: str
    judge: str
    rival: str
    before: float
    budget: dict[str, int]
    methods: tuple[MethodResult, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and how it fared."""

    candidate: Artifact[Result]
    gate: Artifact[Decided]


def compare(recipe: Recipe, runner: Runner, methods: Sequence[str], seeds: int) -> MethodComparison:
    """Improves the champion by each method with each seed, and puts the results side by side.

    The recipe's judge compares, also where people decide at the gate: there are too many candidates to ask them of.

    Args:
        methods: names; each one's own settings are those of the recipe's `compare`, or its defaults.
        seeds: how many, counted from the recipe's.
    """
    recipe = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"people": None})})
    family = Family()
    start = begin(recipe, runner, family)
    this = Round(1)
    reward_of_round(recipe, runner, family, start, this)
    free = free_baselines(recipe, runner, family, start, this)
    trials: dict[str, list[Trial]] = {}
    for method in methods:
        with_method = recipe.with_method(method)
        for seed in range(recipe.seed, recipe.seed + seeds):
            part = replace(runner, seed=seed, done=[])
            tried = replace(this)
            improve_and_gate(with_method, part, family, start, tried, f"compare-{method}")
            assert tried.candidate
            assert tried.gate
            trials.setdefault(method, []).append(Trial(tried.candidate, tried.gate))
    for artifact in runner.done:
        artifact.prove()
    found = [_result(method, these, free, runner.ledger) for method, these in trials.items()]
    config = recipe.improve.method
    rival = strongest(free)
    return MethodComparison(
        recipe=recipe.name, judge=start.judge.name, rival=rival, before=fmean(free[rival].values()),
        budget={"updates": config.steps, "answers": config.answers},
        methods=tuple(sorted(found, key=lambda one: -one.score)),
    )


def free_baselines(
    recipe: Recipe, runner: Runner, family: Family, start: Start, this: Round
) -> dict[str, dict[str, float]]:
    """The judge's scores of the champion on the gate's prompts, by their keys, in each way that costs nothing."""
    decoding = deployed(recipe, runner, family, start, start.instruct, "decoding/instruct", this)
    config = recipe.evaluate.model_copy(update={"prompts": recipe.gate.answering.prompts})
    measured = runner.run(
        "compare/instruct", measure, config, model=start.instruct, data=start.data, judge=start.judge,
        decoding=decoding, split="gate",
    )
    rows = read_rows(measured.folder / "answers.jsonl")
    return {instruct_as(way): {row["key"]: row["decodings"][way]["judge"] for row in rows}
            for way in measured.result.decodings}


def strongest(free: Mapping[str, Mapping[str, float]]) -> str:
    """The baseline with the highest mean score."""
    return max(free, key=lambda name: fmean(free[name].values()))


def chosen(recipe: Recipe, names: str | None) -> list[str]:
    """The methods to compare, from a list with commas; by default all that need nothing special.

    Raises:
        RecipeError: one is not known.
    """
    wanted = [name.strip() for name in names.split(",")] if names else list(recipe.methods)
    if unknown := [name for name in wanted if name not in recipe.methods]:
        raise RecipeError(f"--methods: there is no {unknown[0]!r}; there are {', '.join(recipe.methods)}")
    able = {}
    for name in wanted:
        try:
            lacking = recipe.lacks(recipe.with_method(name).improve.method)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{name} cannot be compared on this recipe's budget: {reason}; name the others with "
                              "--methods") from None
        if lacking and names:
            raise RecipeError(f"compare: {name} learns from {lacking}, and feedback names none")
        able[name] = not lacking
    return [name for name in able if able[name]]


def _result(
    method: str, trials: Sequence[Trial], free: Mapping[str, Mapping[str, float]], ledger: Ledger
) -> MethodResult:
    rival = strongest(free)
    scored = [{row["key"]: row["after"] for row in read_rows(trial.gate.folder / "scores.jsonl")} for trial in trials]
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
    from triptych.report.page import render_comparison

    write_whole(folder / "compare.json", comparison.model_dump_json(indent=1) + "\n")
    write_whole(folder / "compare.html", render_comparison(comparison.model_dump()))

