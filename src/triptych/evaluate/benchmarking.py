"""A model of a run on a benchmark of the field, as a stage; and two models on the same documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from triptych.configuration import Config, UserFile
from triptych.engine.rollout import Policy
from triptych.errors import RecipeError
from triptych.evaluate.benchmarks import HarnessScore, HarnessTasks, TaskData, is_task_file
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.statistics.intervals import mean_interval
from triptych.statistics.scores import BenchmarkChange, PairedScore
from triptych.storage import Folder, read_rows

SCORES, TASKS = "scores.jsonl", "tasks.jsonl"
"""The measures of what a recipe names, and those of each task of a group."""

CHAMPION, CANDIDATE = "champion", "candidate"


class BenchmarkTask(Config):
    """A task or a group of tasks of lm-evaluation-harness, and what of it is asked.

    Attributes:
        task: its name in the harness, or a task's YAML file.
        data: a file with the documents that are measured, or files by the names of the task's splits; by default the
            task's own dataset.
        limit: so many documents of each task, the first ones; all by default.
    """

    task: UserFile
    data: UserFile | dict[str, UserFile] | None = None
    limit: int | None = Field(default=None, ge=1)

    @field_validator("task")
    @classmethod
    def _named(cls, task: UserFile) -> UserFile:
        return task if is_task_file(task.name) else UserFile(task.name, Path(task.name))

    @property
    def is_file(self) -> bool:
        """Whether the task is a YAML file, and not the harness's."""
        return is_task_file(self.task.name)

    @property
    def files(self) -> dict[str, str | Path]:
        """Where the files lie that it names, by the names that the recipe gives them."""
        data = self.data.values() if isinstance(self.data, dict) else filter(None, [self.data])
        named = [*([self.task] if self.is_file else []), *data]
        return {file.name: file.path for file in named}

    def open(self, files: Mapping[str, str | Path]) -> HarnessTasks:
        """The task with its data.

        Args:
            files: where those that it names lie, by their names.

        Raises:
            RecipeError, DataError, ModelError: as `HarnessTasks`.
        """
        name = str(files.get(self.task.name, self.task.name))
        data: TaskData | None = None
        if isinstance(self.data, dict):
            data = {split: Path(files[file.name]) for split, file in self.data.items()}
        elif self.data is not None:
            data = Path(files[self.data.name])
        return HarnessTasks([name], {} if data is None else {name: data})


class BenchmarkBudget(Config):
    """What a candidate may lose of a benchmark's measure."""

    metric: str | None
    max_loss: float


class BenchmarkMeasured(Result):
    """A model's scores on a benchmark.

    Attributes:
        scores: each measure of the task or the group. In `scores.jsonl` they have the values of the documents; those
            of a group's tasks stand in `tasks.jsonl`.
        chat_template: whether the model was asked by it, and not in plain text.
    """

    scores: tuple[HarnessScore, ...]
    chat_template: bool

    @property
    def headline(self) -> str:
        """The first measure."""
        return f"{self.scores[0].name} {self.scores[0].value:.3f}"


def measure_benchmark(
    context: StageContext, config: BenchmarkTask, model: Folder, asked: str, chat_template: bool,
    sources: Mapping[str, str | Path],
) -> BenchmarkMeasured:
    """Asks a model the documents of a benchmark, as the harness asks and scores them.

    Args:
        asked: :meth:`HarnessTasks.identity` of the benchmark.
        chat_template: whether the model is asked by its chat template, or in plain text.
        sources: the files that the settings name.

    Raises:
        RecipeError, DataError, ModelError: as `HarnessTasks`.
    """
    tasks = config.open(sources)
    policy = Policy.open(model / "model")
    scores = tasks.measure(
        policy, limit=config.limit, chat_template=chat_template, seed=context.seed, progress=context.progress
    )
    own = [score for score in scores if score.task in tasks.opened]
    for name, rows in ((SCORES, own), (TASKS, [score for score in scores if score not in own])):
        with open(context.output / name, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row.model_dump() | {"values": row.values}) + "\n" for row in rows)
    return BenchmarkMeasured(scores=tuple(own), chat_template=chat_template)


def benchmark_scores(folder: Folder) -> list[HarnessScore]:
    """A benchmark's measures with each document's values, from the folder of its measurement; the first one first."""
    return [HarnessScore.model_validate(row) for row in read_rows(folder / SCORES)]


def change(
    before: HarnessScore, after: HarnessScore, max_loss: float | None = None
) -> BenchmarkChange | None:
    """What became of a measure from one model to another, paired by document; None where documents have no values."""
    if not before.values or len(before.values) != len(after.values):
        return None
    paired = PairedScore.of(before.values, after.values)
    differences = [new - old for new, old in zip(after.values, before.values, strict=True)]
    return BenchmarkChange(
        **dict(paired), measure=before.name, higher_is_better=before.higher_is_better is not False, max_loss=max_loss,
        bounds=mean_interval([*differences, 1.0, -1.0])[1] if paired.share else None,
    )


def changed(
    budgets: Mapping[str, BenchmarkBudget], measured: Mapping[str, Folder]
) -> dict[str, BenchmarkChange]:
    """What became of each benchmark that has a budget, from the champion to the candidate.

    Args:
        budgets: by the benchmarks' names.
        measured: each benchmark of each model, by :func:`measured_as`.

    Raises:
        RecipeError: the benchmark's documents have no values, or there is no such measure.
    """
    changes = {}
    for name, budget in budgets.items():
        sides = [benchmark_scores(measured[measured_as(name, who)]) for who in (CHAMPION, CANDIDATE)]
        before, after = (chosen(scores, budget.metric) for scores in sides)
        made = change(before, after, budget.max_loss)
        if made is None:
            raise RecipeError(f"evaluate.benchmarks: {name}: {before.name} is no mean over documents, and max_loss "
                              "bounds means: name another metric, or leave max_loss out")
        changes[name] = made
    return changes


def measured_as(name: str, model: str) -> str:
    """What the measurement of a model on a benchmark is called where the gate is given it."""
    return f"{name} of the {model}"


def chosen(scores: Sequence[HarnessScore], metric: str | None) -> HarnessScore:
    """The measure that a recipe means: of this name, as "acc" or "exact_match/strict-match"; the first by default.

    Raises:
        RecipeError: there is none of this name.
    """
    named = {score.measure: score for score in scores}
    if metric is None:
        return scores[0]
    if metric not in named:
        raise RecipeError(f"evaluate.benchmarks: {scores[0].task} is measured by {', '.join(named)}, not {metric}")
    return named[metric]
