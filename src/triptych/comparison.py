"""`triptych compare`: methods of improvement on the same budget, from the same champion and reward model.

Everything up to the first round's audit is the run's own and is done once. Then each method improves the champion with
each of several seeds: the same prompts, answers and updates, so that what differs is the method. Its candidates stand
before the same gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError

from triptych.configuration import Config
from triptych.cycle import Family, Round, begin, improve_and_gate, reward_of_round
from triptych.data.files import stored_rows
from triptych.errors import RecipeError
from triptych.improve.dpo import Dpo
from triptych.intervals import Interval, mean_interval
from triptych.pipeline.artifact import Artifact, write_whole
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.runner import Runner
from triptych.recipe import Recipe


class MethodResult(Config):
    """A method's candidates, all seeds together; every interval is over the gate's prompts.

    Attributes:
        score: the judge's mean score, with its interval.
        gain: over the champion on the same prompts, with its interval.
        win_rate: against the champion, with its interval.
        kl: nats per answer from the champion.
        length: tokens per answer.
        seconds: of improvement, in the mean over seeds.
        promoted: how many of the seeds' candidates the gate promoted.
    """

    method: str
    seeds: int
    score: float
    score_interval: Interval
    gain: float
    gain_interval: Interval
    win_rate: float
    win_rate_interval: Interval
    kl: float
    length: float
    seconds: float
    promoted: int


class Comparison(Config):
    """What `compare.json` holds.

    Attributes:
        before: the judge's mean score of the champion.
        budget: the updates and the answers of each candidate.
    """

    recipe: str
    judge: str
    before: float
    budget: dict[str, int]
    methods: tuple[MethodResult, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and how it fared."""

    candidate: Artifact
    gate: Artifact


def compare(recipe: Recipe, runner: Runner, methods: Sequence[str], seeds: int) -> Comparison:
    """Improves the champion by each method with each seed, and puts the results side by side.

    The recipe's judge compares, also where people decide at the gate: there are too many candidates to ask them of.

    Args:
        methods: names; each one's own settings are those of the recipe's `compare`, or its defaults.
        seeds: how many, counted from the recipe's.
    """
    recipe = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"people": None})})
    family = Family()
    judge = begin(recipe, runner, family)
    this = Round(1)
    reward_of_round(recipe, runner, family, this, judge)
    trials: dict[str, list[Trial]] = {}
    for method in methods:
        with_method = recipe.with_method(method)
        for seed in range(recipe.seed, recipe.seed + seeds):
            part = replace(runner, seed=seed, done=[])
            tried = replace(this)
            improve_and_gate(with_method, part, family, tried, judge, f"compare-{method}")
            assert tried.candidate
            assert tried.gate
            trials.setdefault(method, []).append(Trial(tried.candidate, tried.gate))
    found = [_result(method, these, runner.ledger) for method, these in trials.items()]
    config = recipe.improve
    first = next(iter(trials.values()))[0].gate.metrics
    return Comparison(
        recipe=recipe.name, judge=judge.name, before=first["judge_before"],
        budget={"updates": config.steps, "answers": config.own.answers},
        methods=tuple(sorted(found, key=lambda one: -one.score)),
    )


def chosen(recipe: Recipe, names: str | None) -> list[str]:
    """The methods to compare, from a list with commas; by default all that need nothing special.

    Raises:
        RecipeError: one is not known.
    """
    known = recipe.methods
    wanted = [name.strip() for name in names.split(",")] if names else known
    if unknown := [name for name in wanted if name not in known]:
        raise RecipeError(f"--methods: there is no {unknown[0]!r}; there are {', '.join(known)}")
    for name in wanted:
        try:
            own = recipe.with_method(name).improve.own
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{name} cannot be compared on this recipe's budget: {reason}; name the others with "
                              "--methods") from None
        if isinstance(own, Dpo) and own.pairs == "comparisons" and not recipe.compared:
            raise RecipeError("compare: dpo's pairs are comparisons, and feedback names none")
    return list(dict.fromkeys(wanted))


def _result(method: str, trials: Sequence[Trial], ledger: Ledger) -> MethodResult:
    rows = [row for trial in trials for row in stored_rows(trial.gate.folder / "scores.jsonl")]
    keys = [row["key"] for row in rows]
    spent = ledger.seconds()
    score, score_interval = mean_interval([row["after"] for row in rows], keys)
    gain, gain_interval = mean_interval([row["after"] - row["before"] for row in rows], keys)
    rate, rate_interval = mean_interval([row["won"] for row in rows], keys)
    gates = [trial.gate.metrics for trial in trials]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return MethodResult(
        method=method, seeds=len(trials), score=score, score_interval=score_interval, gain=gain,
        gain_interval=gain_interval, win_rate=rate, win_rate_interval=rate_interval,
        kl=mean([gate["kl"] for gate in gates]), length=mean([gate["length_after"] for gate in gates]),
        seconds=mean([spent.get(trial.candidate.fingerprint, 0.0) for trial in trials]),
        promoted=sum(gate["decision"] == "promoted" for gate in gates),
    )


def write(comparison: Comparison, folder: Path) -> None:
    """Writes `compare.json` and `compare.html`, the same as a table and a plot."""
    from triptych.report.page import render_comparison

    write_whole(folder / "compare.json", comparison.model_dump_json(indent=1) + "\n")
    write_whole(folder / "compare.html", render_comparison(comparison.model_dump()))

