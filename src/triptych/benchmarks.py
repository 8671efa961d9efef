"""The field's benchmarks in a run: opened before it, and each model and reward measured on them.

Nothing is trained on a benchmark's documents, or chosen by them; a candidate can only be rejected by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.audit.benchmarks import measure_reward, read_benchmark
from triptych.errors import DataError, Fault, RecipeError
from triptych.evaluate.benchmarking import (
    CANDIDATE,
    CHAMPION,
    BenchmarkBudget,
    BenchmarkMeasured,
    measure_benchmark,
    measured_as,
)
from triptych.family import Family, Round, Start
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import UserFiles
from triptych.recipe import HarnessBenchmark, Recipe, RewardBenchmark, TrainedBase
from triptych.references import lacks_reference


@dataclass(frozen=True, slots=True)
class OpenedBenchmark:
    """What is known of a benchmark before it is run.

    Attributes:
        identity: what it asks, as a hash.
        documents: how many.
        answer: the tokens of the longest answer; 0 where none is written.
    """

    identity: str
    documents: int
    answer: int = 0

    def require_room(self, name: str, context: int) -> None:
        """Refuses answers that leave no room for a question.

        Args:
            name: the benchmark's.
            context: the tokens that the model sees at once.

        Raises:
            RecipeError: the longest answer is as long as the context.
        """
        if self.answer >= context:
            raise RecipeError(
                f"evaluate.benchmarks: {name} lets answers have {self.answer} tokens, which leave no room for a "
                f"question: the model knows {context:,} positions. A task's YAML file says how many, as "
                "generation_kwargs: max_gen_toks"
            )


def open_benchmarks(recipe: Recipe) -> dict[str, str]:
    """Opens each benchmark of the recipe; what it asks, as a hash, by its name.

    Raises:
        RecipeError, DataError, ModelError: the first that cannot be measured.
    """
    return {benchmark.name: open_benchmark(recipe, benchmark).identity for benchmark in recipe.evaluate.benchmarks}


def open_benchmark(recipe: Recipe, benchmark: HarnessBenchmark | RewardBenchmark) -> OpenedBenchmark:
    """Opens a benchmark with its data.

    Raises:
        RecipeError, DataError, ModelError: it cannot be measured, or not as the recipe asks.
    """
    if isinstance(benchmark, RewardBenchmark):
        data = read_benchmark(benchmark.source.located)
        if data is None:
            what = "holds no rows of RewardBench 2, RM-Bench or JudgeBench"
            raise DataError([Fault(benchmark.reward.name, None, None, what)])
        for item in data.items:
            if why := lacks_reference(recipe.reward.model, item.prompt):
                what = f"the reward is not measured by a benchmark, whose prompts have no references ({why})"
                raise DataError([Fault(benchmark.reward.name, None, "reference", what)])
        return OpenedBenchmark("", len(data.items))
    place = f"evaluate.benchmarks: {benchmark.name}"
    try:
        tasks = benchmark.asked.open(benchmark.asked.files)
    except RecipeError as error:
        raise RecipeError(f"evaluate.benchmarks: {error}") from error
    if len(tasks.opened) > 1:
        raise RecipeError(f"{place} is several tasks without a score of all: name each: {', '.join(tasks.opened)}")
    measures = tasks.measures(tasks.opened[0])
    if not measures:
        names = ", ".join(tasks.tasks["tasks"])
        raise RecipeError(f"{place} is a group without a score of its own: name its tasks: {names}")
    metric = benchmark.metric or next(iter(measures))
    if metric not in measures:
        raise RecipeError(f"{place} has no metric {metric}; it has {', '.join(measures)}")
    if benchmark.max_loss is not None and not measures[metric]:
        means = [name for name, is_mean in measures.items() if is_mean]
        instead = f"name another metric ({', '.join(means)})" if means else "leave max_loss out"
        raise RecipeError(f"{place}: max_loss bounds the mean over documents, and {metric} is none; {instead}")
    made = OpenedBenchmark(
        tasks.identity(benchmark.asked.limit), tasks.documents(benchmark.asked.limit), tasks.longest_answer()
    )
    if isinstance(recipe.base, TrainedBase):
        made.require_room(benchmark.name, recipe.base.train.context)
    return made


def measure_benchmarks(
    recipe: Recipe, runner: Runner, family: Family, name: str, model: Artifact[Result],
    chat_template: bool = True, bounded: bool = False,
) -> None:
    """Measures a model on the recipe's benchmarks of models, each once.

    Args:
        name: that the stages begin with.
        chat_template: whether it is asked by its chat template.
        bounded: only those that bound what a candidate may lose.
    """
    for benchmark in recipe.evaluate.of_models:
        measured = family.benchmarks.setdefault(benchmark.name, {})
        if model.digest in measured or (bounded and benchmark.budget is None):
            continue
        measured[model.digest] = runner.run(
            f"{name}/benchmarks/{benchmark.name}", measure_benchmark, benchmark.asked, model=model,
            asked=family.asked.get(benchmark.name, ""), chat_template=chat_template,
            sources=UserFiles(benchmark.asked.files),
        )


def budgets(recipe: Recipe) -> dict[str, BenchmarkBudget] | None:
    """What a candidate may lose of the recipe's benchmarks, by their names; None where of none."""
    bounds = {benchmark.name: benchmark.budget for benchmark in recipe.evaluate.of_models}
    return {name: budget for name, budget in bounds.items() if budget is not None} or None


def bounded_benchmarks(
    recipe: Recipe, family: Family, champion: Artifact[Result], candidate: Artifact[Result]
) -> Mapping[str, Artifact[BenchmarkMeasured]]:
    """The measurements of both models by which the gate bounds what the candidate may lose."""
    return {
        measured_as(name, who): family.benchmarks[name][model.digest]
        for name in budgets(recipe) or () for who, model in ((CHAMPION, champion), (CANDIDATE, candidate))
    }


def measure_rewards(recipe: Recipe, runner: Runner, start: Start, current: Round) -> None:
    """Measures a round's reward on the recipe's benchmarks of rewards."""
    assert current.reward, "a reward is made before it is measured"
    for benchmark in recipe.evaluate.of_rewards:
        source = benchmark.source
        current.benchmarks[benchmark.name] = runner.run(
            f"round-{current.number}/reward/benchmarks/{benchmark.name}", measure_reward, source.named,
            reward=current.reward.scorer, data=start.data, comparisons=current.feedback,
            sources=UserFiles({source.file.name: source.place}),
        )
