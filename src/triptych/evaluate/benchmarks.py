"""A model on the field's benchmarks, as the tasks of lm-evaluation-harness ask and score them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import version
from io import StringIO
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from pydantic import Field
from yaml import YAMLError

from triptych.data.rows import opened
from triptych.display import one_line
from triptych.engine.rollout import Policy
from triptych.errors import DataError, Fault, RecipeError
from triptych.pipeline.result import Result
from triptych.progress import Progress
from triptych.statistics.intervals import Interval, mean_interval, statistic_interval
from triptych.storage import sha256_once

MISSING = "benchmarks need the library lm-evaluation-harness: pip install 'triptych[harness]'"

RESAMPLES = 1000
"""Of the bootstrap of what is no mean, such as a perplexity."""

SAID = 400
"""So many characters of an error of the harness's are shown."""

WIDTH = 1.959964
"""Standard errors on either side of a 95% interval, by the normal approximation."""

TRIED = 100
"""So many documents of a task, and one answer to each, are tried when it is opened."""

ANSWER = "An answer."

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
"""The settings of a task that name parts of its dataset."""

SAME = 1e-9
"""Two means that are one differ by no more."""

TaskData = Path | Mapping[str, Path]
"""A file with the documents of a task that are measured, or files by the names of its splits."""

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
        return f"{self.task}/{self.measure}"

    @property
    def measure(self) -> str:
        """As "exact_match/strict-match"."""
        return _named(self.metric, self.filter)


class HarnessTasks:
    """Tasks of lm-evaluation-harness, opened with their data.

    Attributes:
        tasks: the harness's own, as it loads them.
        opened: the names of the tasks and groups of tasks that were asked for.
    """

    def __init__(self, names: Sequence[str], data: Mapping[str, TaskData] | None = None) -> None:
        """Opens tasks by their names in the harness, or by the paths of YAML files.

        Args:
            data: of a task, by its name or path, files that hold its documents in place of its dataset.

        Raises:
            RecipeError: the library is not installed, there is no such task, a YAML file is none, or a task cannot be
                run here: it runs what the model writes as code, or asks about pictures.
            DataError: a task's data cannot be had, or cannot be asked.
            ModelError: a task asks for a way of decoding that is not known here.
        """
        try:
            from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
            from lm_eval.tasks import TaskManager as _  # noqa: F401
        except ImportError as error:
            raise RecipeError(MISSING) from error
        manager = _manager(not all(map(is_task_file, names)))
        random.seed(DEFAULT_RANDOM_SEED)  # some tasks are shuffled when they are loaded, as the harness does it
        np.random.seed(DEFAULT_OTHER_SEED)
        with _quietly():
            tops = [_opened(manager, name, (data or {}).get(name)) for name in dict.fromkeys(names)]
        try:
            self.tasks: Mapping[str, Any] = manager.load([task for tasks in tops for task in tasks])
        except ValueError as error:  # one task in two of the names
            raise RecipeError(_line(error)) from error
        self.opened = [getattr(top, "task_name", None) or top.name for tops_of in tops for top in tops_of]
        for name, task in self.tasks["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise RecipeError(f"task {name} runs what the model writes as code, which is not done here")
            if getattr(task, "MULTIMODAL", False):
                raise RecipeError(f"task {name} asks about pictures or sound; models of text are measured here")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            with _quietly():
                _try(name, task)

    def documents(self, limit: int | None = None) -> int:
        """How many documents are asked.

        Args:
            limit: of each task, the first ones.
        """
        counts = (len(task.eval_docs) for task in self.tasks["tasks"].values())
        return sum(count if limit is None else min(limit, count) for count in counts)

    def longest_answer(self) -> int:
        """The most tokens that a task lets a model write; 0 where none is written."""
        return max((_answer_tokens(task) for task in self.tasks["tasks"].values()), default=0)

    def measures(self, name: str) -> dict[str, bool]:
        """What a task or a group is measured by, as "acc" or "exact_match/strict-match", the first one first.

        Each with whether it is a mean over the documents, so that each of them has a value.
        """
        from lm_eval.api.metrics import mean

        if (task := self.tasks["tasks"].get(name)) is not None:
            means = {metric: aggregate is mean for metric, aggregate in task.aggregation().items()}
            return {_named(metric, chosen): is_mean for chosen in _filters(task) for metric, is_mean in means.items()}
        group = self.tasks["groups"][name]
        leaves = group.get_all_tasks()
        return {
            _named(config.metric, chosen):
                config.weight_by_size and all(leaf.aggregation().get(config.metric) is mean for leaf in leaves)
            for config in group.aggregate_metric_list or ()
            for chosen in config.filter_list or sorted({chosen for leaf in leaves for chosen in _filters(leaf)})
        }

    def identity(self, limit: int | None = None) -> str:
        """What is asked and how it is scored, as one hash: settings, functions, documents, the harness's version.

        Where files lie, and what a dataset is called, does not count.
        """
        content = hashlib.sha256(version("lm_eval").encode())
        for name, task in sorted(self.tasks["tasks"].items()):
            settings = dataclasses.asdict(task.config)
            for left_out in ("dataset_path", "dataset_name", "dataset_kwargs"):
                settings.pop(left_out)
            settings["metadata"] = {**(settings["metadata"] or {}), "config_source": None}
            shown = task.fewshot_docs() if settings["num_fewshot"] else ()
            for part in chain([name, _source(type(task)), settings], islice(task.eval_docs, limit), shown):
                content.update(json.dumps(part, sort_keys=True, default=_source).encode() + b"\n")
        for name, group in sorted(self.tasks.get("groups", {}).items()):
            content.update(json.dumps([name, group.aggregate_metric_list], default=dataclasses.asdict).encode())
        return content.hexdigest()

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
        scores = [score for name in results["results"] for score in self._scores(name, results)]
        return [self._pooled(score, scores) for score in scores]

    def _pooled(self, score: HarnessScore, scores: Sequence[HarnessScore]) -> HarnessScore:
        """A group's score with the values of its tasks' documents, where it is their mean."""
        if score.task in self.tasks["tasks"]:
            return score
        leaves = {task.task_name for task in self.tasks["groups"][score.task].get_all_tasks()}
        parts = [
            part for part in scores
            if part.task in leaves and (part.metric, part.filter) == (score.metric, score.filter)
        ]
        values = [value for part in parts for value in part.values]
        mean = sum(values) / max(1, len(values))
        whole = all(part.values for part in parts) and abs(mean - score.value) < SAME
        return score.model_copy(update={"values": tuple(values)}) if whole else score

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


@cache
def _manager(defaults: bool) -> Any:
    """Who finds tasks; the harness has more than ten thousand files of them to look through.

    Args:
        defaults: the harness's own too, not files alone.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the harness and its libraries print of their own work."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        disable_progress_bars()
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bars()


def is_task_file(name: str) -> bool:
    """Whether a task is named by its YAML file, and not as the harness knows it."""
    return name.endswith((".yaml", ".yml"))


def _settings(file: str | Path | None, functions: bool = True) -> dict[str, Any]:
    """What a YAML file of a task or a group says, with the files that it includes.

    Args:
        functions: import those that it names.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    settings: dict[str, Any] = load_yaml(Path(file), resolve_func=functions) if file else {}
    return settings


def _opened(manager: Any, name: str, data: TaskData | None) -> list[Any]:
    """A task, a group's one object, or the tasks of a tag."""
    from datasets.exceptions import DatasetsError

    if is_task_file(name) and not Path(name).is_file():
        raise RecipeError(f"{one_line(name)}: there is no such file")
    if not is_task_file(name) and name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        meant = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
        raise RecipeError(f"lm-evaluation-harness has no task {one_line(name)}{meant}")
    try:
        if is_task_file(name) and "group" in _settings(name, functions=False):
            raise RecipeError(f"{one_line(name)}: is a group's file: name the files of its tasks")
        tasks = manager.load([name if data is None else _with_data(manager, name, data)])
    except (OSError, DatasetsError) as error:
        if data is not None:
            raise DataError([Fault(one_line(name), None, "data", f"cannot be read: {_line(error)}")]) from error
        dataset = _dataset(manager, name)
        message = f"its dataset {dataset} cannot be had: {_line(error)}; {OWN_DATA}"
        raise DataError([Fault(one_line(name), None, None, message)]) from error
    except ImportError as error:
        raise RecipeError(f"{one_line(name)}: {_line(error)}") from error
    except (YAMLError, TemplateError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        if isinstance(error, RecipeError | DataError):
            raise
        raise RecipeError(f"{one_line(name)}: is no task of lm-evaluation-harness: {_line(error)}") from error
    return list(tasks["groups"].values()) or list(tasks["tasks"].values())


def _with_data(manager: Any, name: str, data: TaskData) -> dict[str, Any]:
    """A task's settings with files in the place of its dataset."""
    settings = _settings(name if is_task_file(name) else manager.task_index[name].yaml_path)
    measured = settings.get("test_split") or settings.get("validation_split")
    if not isinstance(settings.get("task"), str) or measured is None:
        raise RecipeError(f"{one_line(name)}: files of data are for one task with a YAML file")
    files = {measured: data} if isinstance(data, Path) else data
    if measured not in files:
        raise RecipeError(f"{one_line(name)}: the documents that are measured are its split {measured}: name it")
    shown = settings.get("fewshot_config") or {}
    examples = shown.get("split") or settings.get("fewshot_split") or settings.get("training_split") or measured
    if settings.get("num_fewshot") and "samples" not in shown and examples not in files:
        what = f"takes {settings['num_fewshot']} worked examples from its split {examples}"
        raise RecipeError(f"{one_line(name)}: {what}: name a file for each: {{{measured}: FILE, {examples}: FILE}}")
    for file in files.values():
        opened(file).close()  # says what is wrong with it
    kinds = {"parquet" if file.suffix == ".parquet" else "csv" if file.suffix == ".csv" else "json"
             for file in files.values()}
    if len(kinds) > 1:
        raise RecipeError(f"{one_line(name)}: files of data are of one format: all JSON Lines, CSV or Parquet")
    absent = {key: None for key in SPLITS if settings.get(key) not in files}
    return settings | absent | {
        "dataset_path": kinds.pop(), "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in files.items()}},
    }


def _try(name: str, task: Any) -> None:
    """Asks the first documents without a model, and scores an answer to each, so that faults are known early."""
    settings = task.config
    _answer_tokens(task)
    for number, document in enumerate(islice(task.eval_docs, TRIED), 1):
        place = f"document {number} cannot be"
        try:
            task.doc_to_text(document)
            if settings.output_type == "multiple_choice":
                task.doc_to_choice(document)
        except Exception as error:  # whatever a template or a function of the task's raises
            raise DataError([Fault(name, None, None, f"{place} asked: {_line(error)}")]) from error
        if settings.output_type == "generate_until" and (lacking := _lacks(task, document)):
            raise DataError([Fault(name, None, None, f"{place} scored: {lacking}")])


def _lacks(task: Any, document: Any) -> str | None:
    """What is missing here to score an answer, as a resource of nltk's; None where nothing is known to be."""
    try:
        task.process_results(document, [ANSWER])
    except Exception as error:  # a task may want more of an answer than this
        return _line(error) if type(error) is LookupError else None
    return None


def _answer_tokens(task: Any) -> int:
    """The most tokens that a task lets a model write; 0 where none is written."""
    from triptych.engine.harness import drawn_by

    settings = task.config
    if settings.output_type != "generate_until":
        return 0
    return drawn_by(settings.generation_kwargs or {})[0].max_tokens


def _filters(task: Any) -> list[str]:
    """The names of what a task makes of answers before it scores them."""
    return [made.name for made in getattr(task, "_filters", ())] or ["none"]


def _named(metric: str, chosen: str | None) -> str:
    return metric if chosen in (None, "none") else f"{metric}/{chosen}"


def _source(thing: Any) -> str:
    """What stands for a function or a class in a task's identity: its name and its file, one of the harness's but for
    the name; of anything else its kind.
    """
    module = inspect.getmodule(thing) if callable(thing) else None
    name = f"{getattr(module, '__name__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"
    if module is None or module.__name__.startswith("lm_eval.") or not getattr(module, "__file__", None):
        return name.rpartition("/")[2]
    return f"{name.rpartition('/')[2]} {sha256_once(Path(str(module.__file__)))}"


def _dataset(manager: Any, name: str) -> str:
    """What a task's file calls its dataset, as far as it says."""
    settings = _settings(name, functions=False) if is_task_file(name) else manager.task_index[name].cfg
    dataset = (settings or {}).get("dataset_path")
    return one_line(str(dataset)) if dataset else "on the Hub"


def _documents(name: str, results: Mapping[str, Any]) -> int:
    """How many documents of a task, or of all tasks of a group, were asked."""
    if name in results["n-samples"]:
        return int(results["n-samples"][name]["effective"])
    return sum(_documents(part, results) for part in results["group_subtasks"].get(name, ()))


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    words = (word for word in str(error).split() if word.strip("*"))  # nltk frames what it says
    return one_line(" ".join(words)[:SAID] or type(error).__name__)
