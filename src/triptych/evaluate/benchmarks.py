"""A model on the field's benchmarks, as the tasks of lm-evaluation-harness ask and score them."""

from __future__ import annotations

import difflib
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.exceptions import DatasetsError
from pydantic import Field
from yaml import YAMLError

from triptych.display import one_line
from triptych.engine.rollout import Policy
from triptych.errors import DataError, Fault, RecipeError
from triptych.pipeline.result import Result
from triptych.progress import Progress
from triptych.statistics.intervals import Interval, mean_interval, statistic_interval

MISSING = "benchmarks need the library lm-evaluation-harness: pip install 'triptych[harness]'"

RESAMPLES = 1000
"""Of the bootstrap of what is no mean, such as a perplexity."""

SAID = 400
"""So many characters of an error of the harness's are shown."""

WIDTH = 1.959964
"""Standard errors on either side of a 95% interval, by the normal approximation."""

OWN_DATA = (
    "a task of your own is a YAML file with `dataset_path: json` and `dataset_kwargs: {data_files: {test: FILE.jsonl}}`"
)


class HarnessScore(Result):
    """One measure of a task or of a group of tasks.

    Attributes:
        metric: as the harness calls it.
        filter: what was made of the answers first, where a task does so in several ways.
        stderr: the harness's own; None where it has none.
        interval: 95%, by the bootstrap over the task's documents; by the standard error of what is no mean and has one.
        documents: how many were asked.
        higher_is_better: None where the task does not say.
        values: of a mean, each document's, in the task's order.
    """

    task: str
    metric: str
    filter: str | None = None
    value: float
    stderr: float | None = None
    interval: Interval | None = None
    documents: int
    higher_is_better: bool | None = None
    values: tuple[float, ...] = Field(default=(), exclude=True)

    @property
    def name(self) -> str:
        """As "gsm8k/exact_match/strict-match"."""
        return "/".join(part for part in (self.task, self.metric, self.filter) if part)


class HarnessTasks:
    """Tasks of lm-evaluation-harness, opened with their data.

    Attributes:
        tasks: the harness's own, as it loads them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Opens tasks by their names in the harness, or by the paths of YAML files.

        Raises:
            RecipeError: the library is not installed, there is no such task, a YAML file is none, or a task cannot be
                run here: it runs what the model writes as code, or asks about pictures.
            DataError: a task's data cannot be had.
        """
        try:
            from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise RecipeError(MISSING) from error
        files = [name for name in names if _is_file(name)]
        manager = TaskManager(include_defaults=len(files) < len(names))
        random.seed(DEFAULT_RANDOM_SEED)  # some tasks are shuffled when they are loaded, as the harness does it
        np.random.seed(DEFAULT_OTHER_SEED)
        with _quietly():
            opened = [_opened(manager, name) for name in dict.fromkeys(names)]
        try:
            self.tasks: Mapping[str, Any] = manager.load([task for tasks in opened for task in tasks])
        except ValueError as error:  # one task in two of the names
            raise RecipeError(f"tasks: {_line(error)}") from error
        for name, task in self.tasks["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise RecipeError(f"task {name} runs what the model writes as code, which is not done here")
            if getattr(task, "MULTIMODAL", False):
                raise RecipeError(f"task {name} asks about pictures or sound; models of text are measured here")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)

    def measure(
        self, policy: Policy, *, limit: int | None = None, chat_template: bool | None = None, seed: int = 0,
        progress: Progress | None = None,
    ) -> list[HarnessScore]:
        """A model's scores, by our engine; all else is done by the harness.

        Args:
            limit: so many documents of each task, the first ones.
            chat_template: whether the model is asked by its chat template; by default where it has one.
            seed: of what is sampled.

        Raises:
            DataError: what a task needs beside its data cannot be had.
            ModelError: a task asks for what the model or our engine cannot do.
        """
        from lm_eval.evaluator import evaluate

        from triptych.engine.harness import HarnessModel

        chat = policy.tokenizer.chat_template is not None if chat_template is None else chat_template
        model = HarnessModel(policy, seed, progress)
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap would fork this process
        try:
            with _quietly():
                results = evaluate(
                    model, self.tasks, limit=limit, bootstrap_iters=RESAMPLES, apply_chat_template=chat,
                    fewshot_as_multiturn=True,
                )
        except LookupError as error:  # as of nltk, where a resource of it is missing
            names = ", ".join(self.tasks["tasks"])
            raise DataError([Fault(names, None, None, f"cannot be asked or scored: {_line(error)}")]) from error
        return [score for name in results["results"] for score in self._scores(name, results)]

    def _scores(self, name: str, results: Mapping[str, Any]) -> Iterator[HarnessScore]:
        """The measures of a task, or of a group, in the harness's results."""
        from lm_eval.api.metrics import mean

        measured, better = results["results"][name], results["higher_is_better"].get(name) or {}
        task = self.tasks["tasks"].get(name)
        for key, value in measured.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = measured.get(f"{metric}_stderr,{chosen}")
            stderr = float(stderr) if isinstance(stderr, int | float) else None
            values: tuple[float, ...] = ()
            interval = None if stderr is None else (value - WIDTH * stderr, value + WIDTH * stderr)
            if task is not None:
                rows = [row for row in results["samples"][name] if row["filter"] == chosen and metric in row]
                scores = [row[metric] for row in sorted(rows, key=itemgetter("doc_id"))]
                aggregate = task.aggregation().get(metric, mean)
                if aggregate is mean:
                    values = tuple(map(float, scores))
                    interval = mean_interval(values)[1]
                elif interval is None:
                    interval = statistic_interval(scores, aggregate, RESAMPLES)
            yield HarnessScore(
                task=name, metric=metric, filter=None if chosen == "none" else chosen, value=float(value),
                stderr=stderr, interval=interval, documents=_documents(name, results),
                higher_is_better=better.get(metric), values=values,
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the harness and its libraries print of their own work."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        disable_progress_bars()
        with redirect_stdout(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bars()


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _opened(manager: Any, name: str) -> list[Any]:
    """A task, a group's one object, or the tasks of a tag."""
    if _is_file(name) and not Path(name).is_file():
        raise RecipeError(f"tasks: {one_line(name)}: there is no such file")
    if not _is_file(name) and name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        meant = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
        raise RecipeError(f"tasks: lm-evaluation-harness has no task {one_line(name)}{meant}")
    try:
        tasks = manager.load([name])
    except (OSError, DatasetsError) as error:
        dataset = _dataset(manager, name)
        message = f"its dataset {dataset} cannot be had: {_line(error)}; {OWN_DATA}"
        raise DataError([Fault(one_line(name), None, None, message)]) from error
    except ImportError as error:
        raise RecipeError(f"tasks: {one_line(name)}: {_line(error)}") from error
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise RecipeError(f"tasks: {one_line(name)}: is no task of lm-evaluation-harness: {_line(error)}") from error
    return list(tasks["groups"].values()) or list(tasks["tasks"].values())


def _dataset(manager: Any, name: str) -> str:
    """What a task's file calls its dataset, as far as it says."""
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = load_yaml(Path(name), resolve_func=False) if _is_file(name) else manager.task_index[name].cfg
    dataset = (settings or {}).get("dataset_path")
    return one_line(str(dataset)) if dataset else "on the Hub"


def _documents(name: str, results: Mapping[str, Any]) -> int:
    """How many documents of a task, or of all tasks of a group, were asked."""
    if name in results["n-samples"]:
        return int(results["n-samples"][name]["effective"])
    return sum(_documents(part, results) for part in results["group_subtasks"].get(name, ()))


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return one_line(" ".join(str(error).split())[:SAID] or type(error).__name__)
