"""What a run will meet, found out before it: every file, the model, lengths, splits, memory and time.

Nothing is trained or kept. The files are read and split just as a run does it, into a folder that is thrown
away, so that what is counted here is what the run will see.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ConfigDict

from triptych import configuration
from triptych.base import source
from triptych.base.pretrained import NO_REWARD, UNPACKED, has_reasoning
from triptych.base.text import UNLEARNT, unlearnt
from triptych.base.tokenizer import train_tokenizer
from triptych.benchmarks import OpenedBenchmark, open_benchmark
from triptych.configuration import Config, UserFile, beside, field_names
from triptych.cycle import plan
from triptych.data.files import READERS, GoodRows, good_rows
from triptych.data.folder import HELD_OUT, DataFolder
from triptych.data.lengths import LearntTurns, LengthReport, tokenized, tokenized_turns
from triptych.data.splits import prompt_of
from triptych.data.template import conventions_of, prompt_tokens
from triptych.dataset.preparation import Prepared, fewer_set_apart, left_out, prepare_data
from triptych.dataset.tasks import prepare_task
from triptych.engine import models
from triptych.engine.device import compute_dtype, device
from triptych.engine.forward import packs
from triptych.engine.inspection import inspect
from triptych.engine.parity import take_attention
from triptych.engine.trunk import in_experts
from triptych.engine.vllm import verify_place
from triptych.errors import DataError, Fault, ModelError, RecipeError, ReleaseError, TriptychError
from triptych.evaluate.answers import portions_of
from triptych.evaluate.measurement import few_shot
from triptych.people.questionnaire import Questionnaire
from triptych.people.questions import FORMS
from triptych.people.verdicts import Panel
from triptych.pipeline.stage import StageContext
from triptych.preflight import doctor
from triptych.preflight.amounts import PART, detected, prompts_needed
from triptych.preflight.costs import (
    EFFICIENCY,
    GIB,
    Cost,
    Texts,
    answer_length,
    costs,
    disk_space,
    from_scratch,
    this_machine,
)
from triptych.preflight.fitting import fit, sections_of
from triptych.preflight.memory import Architecture
from triptych.preflight.network import out_of_reach
from triptych.preflight.trial import try_rewards
from triptych.progress import Silent
from triptych.recipe import FileFeedback, HarnessBenchmark, Recipe, TrainedBase, load
from triptych.records import Comparison, Conversation, Message, Prompt, answers_of
from triptych.references import read_as, wrong_references
from triptych.release.signature import check_signing
from triptych.reward.registry import open_reward
from triptych.reward.taking import OfferedReward, offered
from triptych.reward.trust import Trust
from triptych.rewards import learnt_evidence
from triptych.statistics.significance import least, level
from triptych.storybook import tasks
from triptych.storybook.demonstrations import exemplary

FEW_PROMPTS = 100
"""Fewer than these in a test, and an interval is too wide to show a usual gain."""
TEXTS = ("conversations", "comparisons", "ratings", "thumbs", "prompts")
"""The kinds of rows whose texts are turns."""
SOME_ROWS = 64
"""Of the storybook on which rewards are tried: some of every task."""
SOME_TEXT = 5_000_000
"""Characters of text on which a stand-in for a tokenizer that is still to be trained is trained."""


@dataclass(slots=True)
class Findings:
    """All that a check found.

    Attributes:
        problems: what would stop the run, or make it worthless; nothing where it may start.
        notes: what one should know.
        lengths: in tokens, of what each stage trains on.
        costs: for each stage, in the cycle's order.
        assumption: how the times were estimated.
        positions: how many the model knows, where it says.
        tuned: the Base has a chat template of its own, by which it is asked.
        settings: as of `--set`, with which a run fits into memory that does not without them.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lengths: dict[str, LengthReport] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    assumption: str = ""
    positions: int | None = None
    tuned: bool = False
    settings: list[str] = field(default_factory=list)


def check(path: Path, overrides: Sequence[str] = (), reward: Path | None = None) -> Findings:
    """Looks at everything that the recipe names; problems of all kinds are found together.

    Args:
        path: the recipe.
        overrides: as of `--set`.
        reward: the folder of a reward model that is there already, to be looked at beside the recipe.
    """
    findings = Findings()
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            recipe = load(path, overrides)
        except RecipeError as error:
            findings.problems += str(error).splitlines()
            # What it names is looked at all the same; how that would be split and trained on, nobody knows yet.
            if inputs := inputs_alone(path, overrides):
                check_files(inputs, findings)
                check_model(inputs, folder, findings)
            return findings
        tell(doctor.diagnose_sandbox(recipe), findings)
        benchmarks = check_benchmarks(recipe, findings)
        if recipe.release.sign is not None:
            try:
                check_signing(recipe.release.sign)
            except ReleaseError as error:
                findings.problems.append(str(error))
        for settings in (recipe.improve.method, *recipe.compare):
            try:
                verify_place(settings.sampler)
            except ModelError as error:
                findings.problems.append(f"improve.sampler: {error}")
        if recipe.storybook is not None:
            asked = tasks.prompts(recipe.seed, SOME_ROWS)
            drawn = [Conversation(prompt, exemplary(prompt, recipe.seed)) for prompt in asked]
            read = check_files(recipe, findings)
            asked_of_tasks = {} if read is None else {
                task.stage: [prompt for rows in read[task.stage] for _, prompt in rows.placed]
                for task in recipe.evaluate.tasks
            }
            tell(try_rewards(recipe, drawn, memory(), asked_of_tasks), findings)
            findings.notes += [f"{stage}: {len(prompts):,} prompts" for stage, prompts in asked_of_tasks.items()]
            check_taken(recipe, None, findings)
            findings.notes.append("nothing to read: the storybook writes all of its own data and trains its own Base")
            return findings
        if lacking := out_of_reach(recipe):
            findings.problems.append(lacking)
            return findings
        # Where a file cannot be read, how the others would be split says nothing about the run.
        read = check_files(recipe, findings)
        counts = None if read is None else split_data(recipe, folder, findings)
        if counts is not None and not split_tasks(recipe, folder, findings):
            counts = None
        opened = check_model(recipe, folder, findings)
        if opened and (context := opened[1].context) is not None and not isinstance(recipe.base, TrainedBase):
            check_room(benchmarks, context, findings)
        taken = check_taken(recipe, opened[0] if opened else None, findings)
        if read is not None and counts is not None:
            if opened and not check_turns(folder, opened[0], findings):
                return findings  # how long rows are that cannot be written, nobody knows
            try:
                of_tasks = {task.stage: prompts_of(folder, task.stage) for task in recipe.evaluate.tasks}
                tell(try_rewards(recipe, answered(folder), memory(), of_tasks), findings)
                consult(recipe, folder, read, opened[0] if opened else None, reward, findings)
                try_taken(recipe, folder, taken, findings)
                if len(taken) == len(recipe.taken) and (learnt := learnt_evidence(recipe, folder)):
                    (findings.problems if recipe.reward.audit.required else findings.notes).append(learnt)
                texts = check_lengths(recipe, folder, *opened, findings) if opened else {}
            except ModelError as error:  # a chat template that refuses some of the rows
                findings.problems.append(f"base: {error}")
            else:
                if opened:
                    estimate(
                        lambda settings: settled(load(path, [*overrides, *settings]), counts), opened[1], texts, taken,
                        findings,
                    )
    return findings


def check_benchmarks(recipe: Recipe, findings: Findings) -> dict[str, OpenedBenchmark]:
    """Opens each benchmark as the run will, and counts what is asked; those that can be, by their names."""
    opened: dict[str, OpenedBenchmark] = {}
    for benchmark in recipe.evaluate.benchmarks:
        try:
            opened[benchmark.name] = open_benchmark(recipe, benchmark)
        except TriptychError as error:
            findings.problems += error.lines if isinstance(error, DataError) else [str(error)]
            continue
        documents = opened[benchmark.name].documents
        note = f"benchmark {benchmark.name}: {documents:,} documents; the time that they take is not estimated"
        if documents < FEW_PROMPTS:
            note += ". An interval over so few hides all but large differences"
        if documents < FEW_PROMPTS and isinstance(benchmark, HarnessBenchmark) and benchmark.budget:
            note += ", and a candidate that lost nothing may be rejected by max_loss"
        findings.notes.append(note)
    return opened


def check_room(benchmarks: Mapping[str, OpenedBenchmark], context: int, findings: Findings) -> None:
    """Whether what benchmarks let a model write leaves room for a question in its context."""
    for name, benchmark in benchmarks.items():
        try:
            benchmark.require_room(name, context)
        except RecipeError as error:
            findings.problems.append(str(error))


def settled(recipe: Recipe, counts: Prepared) -> Recipe:
    """The recipe with what the amount of data decides: whether comparisons are cross-fitted."""
    splits = recipe.splits.model_copy(update={"cross_fit": counts.crossfitted})
    return recipe.model_copy(update={"splits": splits})


def consult(
    recipe: Recipe, folder: Path, read: Mapping[str, Sequence[GoodRows[Any]]], tokenizer: Any | None,
    reward: Path | None, findings: Findings,
) -> None:
    """Has the doctor look at the rows that were read, and at the reward model that was named."""
    diagnoses = list(doctor.diagnose(recipe, folder, read["comparisons"], tokenizer)) if recipe.comparison_files else []
    diagnoses += doctor.look_at_ratings(read["ratings"])
    diagnoses += doctor.look_at_texts(read, tokenizer.eos_token if tokenizer is not None else None)
    if reward is not None and tokenizer is not None:
        rows = DataFolder(folder).comparisons("heldout").read_any()
        try:
            diagnoses += doctor.diagnose_reward(reward, tokenizer, rows)
        except ModelError as error:
            findings.problems.append(str(error))
    tell(diagnoses, findings)


def prompts_of(folder: Path, stage: str) -> list[Prompt]:
    """A task's prompts, as they are measured on."""
    return DataFolder(folder / stage).prompts("test").read_any()


def answered(folder: Path) -> list[Conversation]:
    """The prompts that are improved on, with answers to others: rewards are tried on them."""
    data = DataFolder(folder)
    answers = [conversation.answer for conversation in data.demonstrations("train").read_any()]
    return [Conversation(*pair) for pair in zip(data.prompts("improve").read_any(), itertools.cycle(answers))]


def tell(diagnoses: Iterable[doctor.Finding], findings: Findings) -> None:
    """Sorts what was found into problems and notes."""
    for finding in diagnoses:
        (findings.problems if finding.stops else findings.notes).append(str(finding))


class _Loose(Config):
    """A recipe of which nothing is asked."""

    model_config = ConfigDict(extra="allow", frozen=True)


def inputs_alone(path: Path, overrides: Sequence[str]) -> Recipe | None:
    """Of a recipe with faults the model and files that it names, so that they can be checked all the same."""
    try:
        values = configuration.load(path, _Loose, overrides).model_extra or {}

        def texts(section: str, name: str) -> list[Any]:
            given = values[section].get(name) if isinstance(values.get(section), dict) else None
            return [entry for entry in given if isinstance(entry, str | dict)] if isinstance(given, list) else []

        feedback = values.get("feedback")
        entries = feedback if isinstance(feedback, list) else []
        named = [{name: entry[name] for name in field_names(FileFeedback) if name in entry} for entry in entries
                 if isinstance(entry, dict) and isinstance(entry.get("file"), str)]
        base = values["base"] if isinstance(values.get("base"), dict) else {}
        kept = {name: base[name] for name in ("from", "train", "chat_template") if name in base}
        return Recipe.model_validate({
            "name": "check",
            "base": kept | {"text": texts("base", "text")},
            "instruct": {"data": texts("instruct", "data")},
            "feedback": named,
            "improve": {"prompts": texts("improve", "prompts")},
        }, context=beside(path.parent))
    except ValueError:
        return None


def check_files(recipe: Recipe, findings: Findings) -> dict[str, list[GoodRows[Any]]] | None:
    """Reads every file.

    Returns:
        The good rows of the files of each of `TEXTS`, and of each task by the name of its stage; None where a file is
        missing or has no good row.
    """
    preparation = recipe.preparation
    readable = True
    stages = [task.stage for task in recipe.evaluate.tasks]
    read: dict[str, list[GoodRows[Any]]] = {kind: [] for kind in (*TEXTS, *stages)}
    problems: list[str] = []
    for kind in (*READERS, *stages):
        for reader, place in read_as(recipe, kind):
            skipped: list[Fault] = []
            notes: list[Fault] = []
            try:
                rows = good_rows(reader, place, skipped, notes)
                if kind in read:
                    read[kind].append(rows)
            except DataError as error:
                readable = False
                problems += error.lines
            findings.notes += map(str, notes)
            if preparation.wrong_rows == "refuse":
                problems += DataError(skipped).lines
            else:
                findings.notes += [f"left out: {line}" for line in DataError(skipped).lines]
    findings.problems += [*DataError(wrong_references(recipe, read.__getitem__)).lines, *problems]
    people: list[tuple[UserFile | None, type[Questionnaire[Any]]]] = [
        (recipe.gate.people, Panel), (recipe.people, FORMS[recipe.people_give or "comparisons"]),
    ]
    for file, questionnaire in people:
        try:
            faults = () if file is None else tuple(questionnaire(Path(), file.path).faults)
        except DataError as error:
            faults = error.faults
        if preparation.wrong_rows == "refuse" or questionnaire is Panel:
            findings.problems += DataError(faults).lines
        else:
            findings.notes += [f"left out: {line}" for line in DataError(faults).lines]
    return read if readable else None


def split_data(recipe: Recipe, folder: Path, findings: Findings) -> Prepared | None:
    """Splits the good rows of all files into `folder` and judges the parts; None where there are too few."""
    context = StageContext(folder, folder, Silent(), recipe.seed, checkpoint_seconds=60.0)
    try:
        counts = prepare_data(context, recipe.preparation.model_copy(update={"wrong_rows": "skip"}), recipe.sources)
    except DataError as error:
        findings.problems += error.lines
        return None
    judge_splits(recipe, counts, findings)
    if recipe.base.train is not None and counts.text:
        text = DataFolder(folder).text
        lost = unlearnt(text("train").read_any(), text("heldout").read_any(), recipe.base.weights)
        findings.problems += [f"base.text: {name}: {UNLEARNT}" for name in lost]
    return counts


def split_tasks(recipe: Recipe, folder: Path, findings: Findings) -> bool:
    """Whether each task has prompts that the run does not use; writes them as the run will."""
    whole = True
    for task in recipe.evaluate.tasks:
        output = folder / task.stage
        output.mkdir(parents=True)
        context = StageContext(output, output, Silent(), recipe.seed, checkpoint_seconds=60.0)
        config = recipe.preparation_of(task).model_copy(update={"wrong_rows": "skip"})
        try:
            prepared = prepare_task(context, config, {task.file.name: task.place}, folder)
        except DataError as error:
            findings.problems += [f"{task.stage}: {line}" for line in error.lines]
            whole = False
            continue
        findings.notes += [f"{task.stage}: {line}" for line in prepared.left_out]
        if prepared.prompts < FEW_PROMPTS:
            findings.notes.append(
                f"{task.stage}: only {prepared.prompts} prompts: an interval over so few hides all but large gains"
            )
    return whole


def judge_splits(recipe: Recipe, counts: Prepared, findings: Findings) -> None:
    """What the counts of the preparation mean for the run."""
    findings.notes += [*left_out(counts), *fewer_set_apart(counts, recipe.splits)]
    needed = least(level(recipe.gate.decision.error, failures=0))
    prompts = sum(getattr(counts, f"prompts_{name}") for name in ("test", "gate", "validation", "improve"))
    for name in ("test", "gate") if recipe.improve.rounds else ("test",):
        count, set_apart = getattr(counts, f"prompts_{name}"), getattr(recipe.splits, name)
        if count < needed:
            findings.problems.append(
                f"too few {name} prompts: {count}, where not even winning all of {needed - 1} proves anything; "
                f"give at least {PART * needed} different prompts, better {PART * FEW_PROMPTS:,} (there are "
                f"{prompts:,}, of which at most a fifth is for {name}, and splits.{name} is {set_apart:,})"
            )
        elif count < FEW_PROMPTS:
            shown = f" ({detected(count, recipe)})" if name == "gate" else ""
            findings.notes.append(
                f"only {count} {name} prompts: an interval over so few hides all but large gains{shown}; "
                f"give {PART * FEW_PROMPTS:,} prompts or more (there are {prompts:,})"
            )
    portion = recipe.gate.answering.prompts
    rounds = portions_of(counts.prompts_gate, portion)
    if recipe.improve.rounds > rounds:
        findings.notes.append(
            f"{counts.prompts_gate} gate prompts at {portion} a round (gate.prompts) are enough for "
            f"{'one round' if rounds == 1 else f'{rounds} rounds'}; after that they decide again, which is then said. "
            f"{prompts_needed(recipe, prompts)}"
        )
    if counts.prompts_improve == 0:
        findings.problems.append("no prompt is left to improve on once those for measuring are set apart: give more")
    if (recipe.growing or recipe.asking) and counts.feedback_prompts_removed:
        (findings.notes if counts.prompts_feedback else findings.problems).append(
            f"{counts.feedback_prompts_removed:,} of {counts.prompts_improve:,} prompts to improve on are not "
            "asked for feedback, for the gate's judge has comparisons of them; give improve.prompts of their own, or "
            f"lower {recipe.apart_name}.share_of_feedback"
        )
    if recipe.base.train is not None and counts.text == 0:
        findings.problems.append("base.text: no document is left to train on once one is held out: give more text")


def check_model(recipe: Recipe, folder: Path, findings: Findings) -> tuple[Any, Architecture] | None:
    """Opens model and tokenizer as the run will; a Base from scratch is measured by its configuration."""
    if isinstance(recipe.base, TrainedBase):
        documents, read = [], 0
        for document in DataFolder(folder).text("train").read_any():
            documents.append(document)
            read += len(document.text)
            if read > SOME_TEXT:
                break
        if not documents:
            return None
        config = recipe.base.train
        return train_tokenizer(documents, config.vocabulary, config.context), from_scratch(config)
    try:
        template = recipe.base.chat_template
        kept = partial(
            source.prepare, chat_template=str(template.path) if template else None, arguments=recipe.base.template,
            tokens=recipe.base.tokens, reasoning=has_reasoning(DataFolder(folder)),
        )
        opened = open_model(str(recipe.base.from_.path), kept, findings)
        findings.tuned = findings.tuned and template is None
        check_reward(recipe, opened[2], findings)
        return opened[:2]
    except TriptychError as error:
        findings.problems.append(f"base.from: {error}")
        return None


def open_model(
    name: str, prepare: Callable[[Any], list[str]], findings: Findings
) -> tuple[Any, Architecture, Any]:
    """The tokenizer as a run will have it, the model's measures and its configuration.

    The weights are loaded, which proves them whole and finite, unless training them would not fit anyway.
    """
    kind, path = source.find(name)
    model: Any = None
    stored = 4  # what is taken apart is written in float32
    if kind == "gguf":
        model, tokenizer, changes = models.load_gguf(path)
        findings.notes += [f"base: {change}" for change in changes]
    elif adapted := source.adapted_model(path):
        model, tokenizer = adapted.load()
    else:
        tensors = inspect(path)
        stored = getattr(torch, source.kept_dtype(tensors)).itemsize
        tokenizer = models.load_tokenizer(path)
        parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
        if 4 * parameters < memory():
            model = models.load_policy(path)
    known, findings.tuned = len(tokenizer), tokenizer.chat_template is not None
    findings.notes += [f"base: {change}" for change in prepare(tokenizer)]
    grows = len(tokenizer) > known
    if model is None:
        config = models.load_config(path)
        experts = sum(math.prod(tensor.shape) for name, tensor in tensors.items() if ".experts." in name)
        return tokenizer, Architecture.of(
            config.get_text_config(), parameters, grows=grows, stored=stored, experts=experts
        ), config
    with models.quiet():
        take_attention(model)
    if not packs(model):
        findings.notes.append(
            f"base: {UNPACKED.format(type(model).__name__)}; costs are estimated as for layers of attention; layers "
            "that carry a state may take several times as much"
        )
    config, parameters = model.config, models.parameters(model)
    architecture = Architecture.of(
        config.get_text_config(), parameters, grows=grows, packed=packs(model), stored=stored,
        experts=in_experts(model),
    )
    return tokenizer, architecture, config


def check_turns(folder: Path, tokenizer: Any, findings: Findings) -> bool:
    """Whether the chat template writes all of every row; what it does not, with how many rows have it."""
    known = conventions_of(tokenizer)
    counts: Counter[str] = Counter()
    lacking: Counter[tuple[str, str, str]] = Counter()
    for path in sorted(folder.rglob("*.jsonl")):
        kind = path.stem.split("_")[0]
        if kind in ("text", "examples"):
            continue
        for record in DataFolder(path.parent).named(path.stem).read_any():
            prompt = prompt_of(record)
            written = [record.messages] if isinstance(record, Prompt | Conversation) else [
                (*prompt.messages, Message("assistant", answer)) for answer in answers_of(record)
            ]
            counts[kind] += 1
            refused = {name: why for messages in written for name, why in known.lacks(messages, prompt.tools).items()}
            lacking.update((kind, part, why) for part, why in refused.items())
    for (kind, part, why), count in sorted(lacking.items()):
        findings.problems.append(
            f"{kind}: {count:,} of {counts[kind]:,} rows have {part}, which the chat template does not write: {why}; "
            "set base.chat_template, or take it out of the rows"
        )
    return not lacking


def check_reward(recipe: Recipe, config: Any, findings: Findings) -> None:
    """Whether the Base can have a reward head, where a reward model is trained on it."""
    if recipe.trains_reward and (fault := models.reward_fault(config)):
        findings.problems.append(f"base.from: {fault}; {NO_REWARD}")


def check_taken(recipe: Recipe, tokenizer: Any | None, findings: Findings) -> dict[str, OfferedReward]:
    """Looks over the rewards that were made elsewhere, and says which of them a release will be without.

    Args:
        tokenizer: the Base's, as a run will have it.
    """
    offers = {}
    for place, config in recipe.taken.items():
        field = "gate.judge" if place == "judge" else place
        try:
            offers[place] = offer = offered(config, is_part="/" in place)
        except TriptychError as error:
            findings.problems.append(f"{field}: {error}")
            continue
        if tokenizer is None or not offer.models:
            continue
        differs = offer.reads_otherwise(tokenizer)
        if differs and offer.described.content is not None:
            findings.problems.append(f"{field}: {differs} of a model of it is not the Base's, and a family shares one")
        elif differs:
            findings.notes.append(f"{field}: {differs} is not the Base's; it scores like any, and is not released")
    return offers


def try_taken(recipe: Recipe, folder: Path, offers: Mapping[str, OfferedReward], findings: Findings) -> None:
    """Has rewards that were made elsewhere score some answers, where they are in this machine's folders and fit."""
    for place, offer in offers.items():
        if offer.models and (offer.hub or offer.described.content or 4 * offer.parameters > memory()):
            continue
        try:
            if offer.models:
                rows = DataFolder(folder).comparisons("heldout").read_any()
                tell(doctor.diagnose_reward(offer.models[0], None, rows), findings)
            else:
                config = recipe.taken[place]
                named = {Path(name).name: path for name, path in config.files.items()}
                open_reward(offer.folder, models=named, trust=Trust.in_recipe([config])).score(answered(folder)[:1])
        except TriptychError as error:
            findings.problems.append(f"{'gate.judge' if place == 'judge' else place}: {error}")


AUDITED = {f"comparisons_{trained}": f"comparisons_{audited}" for trained, audited in HELD_OUT.items()}
"""For the comparisons that train a reward model those that it is audited on."""


def check_lengths(
    recipe: Recipe, folder: Path, tokenizer: Any, model: Architecture, findings: Findings,
    tasks: Mapping[str, Path] | None = None, most: int | None = None,
) -> dict[str, Texts]:
    """The tokens of every split, and what becomes of rows that are too long.

    Args:
        tasks: the folder of each task's prompts, by its stage; by default they lie within the data's.
        most: rows of a split that are measured; the others are taken to be like them.
    """
    texts: dict[str, Texts] = {}
    places = tasks or {task.stage: folder / task.stage for task in recipe.evaluate.tasks}
    findings.positions = model.context
    data, deployed = DataFolder(folder), recipe.decoding.max_tokens
    prompts = {
        "prompts_improve": (data.prompts("improve"), recipe.improve.method.max_tokens),
        "prompts_validation": (data.prompts("validation"), deployed),
        "prompts_gate": (data.prompts("gate"), deployed),
        "prompts_test": (data.prompts("test"), deployed),
        **{stage: (DataFolder(place).prompts("test"), deployed) for stage, place in places.items()},
    }
    trained = [("demonstrations", "instruct", recipe.finetuning)] if recipe.finetuning else []
    if recipe.comparison_files:
        if recipe.learner is not None:
            trained += [("comparisons_train", "reward", recipe.learner)]  # type: ignore[list-item]
        if recipe.gate.apart is not None:
            trained += [("comparisons_judge", recipe.apart_name, recipe.gate.apart.model)]  # type: ignore[list-item]
    for name, section, config in trained:
        rows = DataFolder(folder).named(name).read_any()
        part = len(rows[:most]) / max(1, len(rows))
        turns = recipe.finetuning.learn if recipe.finetuning else "all"
        lengths, sizes, answers = measured(rows[:most], tokenizer, turns)
        findings.lengths[name] = report = length_report(lengths, config.context)
        fits = [place for place, length in enumerate(lengths) if length <= config.context]
        if report.over and name == "demonstrations":  # the doctor says it of comparisons
            what = "will be left out" if config.overlong == "drop" else "will have their answers cut"
            findings.notes.append(
                f"{name}: {report.over:,} of {report.count:,} rows are longer than {section}.context, "
                f"{config.context} tokens, and {what} (the longest has {report.longest:,})"
            )
        if report.count and not fits and config.overlong == "drop":
            findings.problems.append(f"{name}: every row is longer than {section}.context, {config.context} tokens")
        longest = min(report.longest, config.context)
        if model.context is not None and longest > model.context:
            findings.problems.append(
                f"{name}: rows have up to {longest:,} tokens, and the model knows {model.context:,} positions; "
                f"set {section}.context to {model.context} at most"
            )
        texts[name] = Texts.of([sizes[place] for place in fits], [lengths[place] for place in fits], part)
        if name == "demonstrations":
            learnt = [answers[place] for place in fits]
            texts["answers"] = Texts.of(learnt, learnt)
        elif rows:
            audited = DataFolder(folder).named(AUDITED[name]).read_any() or rows  # cross-fitted: all of them
            lengths, sizes, _ = measured(audited[:most], tokenizer)  # no limit holds for what is only scored
            texts[AUDITED[name]] = Texts.of(sizes, lengths, len(lengths) / len(audited))
    if recipe.thumb_files:
        thumbs = DataFolder(folder).thumbs.read_any()
        lengths, sizes, _ = measured([thumb.question for thumb in thumbs[:most]], tokenizer)
        texts["thumbs"] = Texts.of(sizes, lengths, len(lengths) / max(1, len(thumbs)))
    for name, (file, answer) in prompts.items():
        asked = file.read_any()
        lengths, *_ = measured(asked[:most], tokenizer)
        limit = (model.context or max(lengths, default=0) + answer) - answer
        findings.lengths[name] = report = length_report(lengths, limit)
        texts[name] = Texts.of(lengths, lengths, len(lengths) / max(1, len(asked)))
        if report.over:
            (findings.problems if report.over == report.count else findings.notes).append(
                f"{name}: {report.over:,} of {report.count:,} prompts will be left out, for they leave no room for an "
                f"answer of {answer} tokens: the model knows {model.context:,} positions"
            )
    tested = data.prompts("test").read_any()[: recipe.evaluate.measurement.prompts]
    of_tasks = {stage: DataFolder(place).prompts("test").read_any() for stage, place in places.items()}
    for name, asked in {"prompts_test": tested, **of_tasks}.items() if recipe.finetuning else ():
        texts[f"{name}, few-shot"] = texts[name] if findings.tuned else check_few_shot(
            recipe, folder, name, asked[:most], len(asked[:most]) / max(1, len(asked)), tokenizer, model, findings
        )
    return texts


def check_few_shot(
    recipe: Recipe, folder: Path, name: str, prompts: Sequence[Prompt], part: float, tokenizer: Any,
    model: Architecture, findings: Findings,
) -> Texts:
    """Prompts, this part of all, as the Base gets them, behind examples; those that leave no room for all examples."""
    config = recipe.evaluate.measurement
    shown = DataFolder(folder).examples.read_any()
    answer = recipe.decoding.max_tokens
    wanted = [len(few_shot(tokenizer, shown, config)(prompt)) for prompt in prompts]
    room = (model.context or max(wanted, default=0) + answer) - answer
    render = few_shot(tokenizer, shown, config, room)
    lengths = [len(render(prompt)) for prompt in prompts]
    findings.lengths[f"{name}, few-shot"] = report = length_report(wanted, room)
    without = sum(length > room for length in lengths)
    if report.over:
        lost = f"; {without:,} have no room even without examples, and are left out" if without else ""
        (findings.problems if without == report.count else findings.notes).append(
            f"{name.replace('prompts_test', 'test')}/base: {report.over:,} of {report.count:,} prompts leave no room "
            f"for {config.shots} examples and an answer of {answer} tokens (the longest has {report.longest:,}, and "
            f"the model knows {model.context:,} positions): they get fewer examples{lost}. Lower evaluate.shots or "
            "decoding.max_tokens"
        )
    fitting = [length for length in lengths if length <= room]
    return Texts.of(fitting, fitting, part)


def measured(
    records: Sequence[Prompt | Conversation | Comparison], tokenizer: Any, learn: LearntTurns = "last"
) -> tuple[list[int], list[int], list[int]]:
    """For each record its length, as it counts against a context, and the tokens that are computed for it; for each
    conversation besides the tokens of its last answer.

    A prompt that several comparisons have, and an answer to it, are computed for the first of them.

    Args:
        learn: which turns of a conversation are learnt.
    """
    lengths, sizes, answers = [], [], []
    computed: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for record in records:
        if isinstance(record, Prompt):
            lengths.append(len(prompt_tokens(tokenizer, record)))
            sizes.append(lengths[-1])
            continue
        if isinstance(record, Comparison):
            pair = tokenized(record, tokenizer, scored=True)
            lengths.append(pair.length)
            known = computed.setdefault(tuple(pair.prompt), set())
            new = {tuple(pair.chosen), tuple(pair.rejected)} - known
            sizes.append((0 if known else len(pair.prompt)) + sum(map(len, new)))
            known |= new
            continue
        rows = tokenized_turns(record, tokenizer, learn)
        lengths.append(max(row.length for row in rows))
        sizes.append(sum(row.length for row in rows))
        begins, ends = rows[-1].spans[-1]
        answers.append(ends - begins)
    return lengths, sizes, answers


def length_report(lengths: Sequence[int], limit: int) -> LengthReport:
    """The lengths against their limit."""
    over = sum(length > limit for length in lengths)
    return LengthReport(len(lengths), median(lengths) if lengths else 0, max(lengths, default=0), over, limit)


def estimate(
    opened: Callable[[Sequence[str]], Recipe], model: Architecture, texts: Mapping[str, Texts],
    offers: Mapping[str, OfferedReward], findings: Findings,
) -> None:
    """Roughly what each stage takes; memory that is not there is a problem, told with what would fit.

    Args:
        opened: the recipe with settings of `--set` beside its own.
    """
    machine = this_machine()
    taken = {place: offer.parameters for place, offer in offers.items()}

    def costs_of(recipe: Recipe) -> list[Cost]:
        return costs(plan(recipe), recipe, model, texts, machine, taken)

    recipe = opened([])
    findings.costs = costs_of(recipe)
    precision = str(compute_dtype()).removeprefix("torch.")
    length = answer_length(texts, recipe.decoding.max_tokens)
    findings.assumption = (
        f"{model.parameters / 1e6:,.1f}M parameters; this machine multiplies matrices at {machine.rate / 1e9:,.0f} "
        f"GFLOP/s in {precision}, of which wide models reach {EFFICIENCY:.0%} (assumed), and reads weights at "
        f"{machine.bandwidth / 1e9:,.0f} GB/s; answers of {length:,} tokens, "
        + ("as those that are learnt" if "answers" in texts else "the most that they may have")
    )
    most, there = max(cost.gib for cost in findings.costs), memory() / GIB
    if most > there:
        stage = max(findings.costs, key=lambda cost: cost.gib).stage
        settings = fit(opened, costs_of, there, sections_of(recipe))
        findings.settings = settings or []
        findings.problems.append(
            f"{stage} needs about {most:.1f} GiB of memory and {_memory_of()} has {there:.1f}: "
            + (f"set {' and '.join(settings)}, which --fit writes into the recipe" if settings else
               "no settings make it fit; take a smaller model, or lower context and max_tokens")
        )
    disk = (disk_space(recipe, model) + sum(2 * 4 * count for count in taken.values())) / GIB
    free = shutil.disk_usage(Path.cwd()).free / GIB
    if disk > free:
        findings.notes.append(f"the run writes about {disk:.1f} GiB, and the disk of this folder has {free:.1f} free")


def memory() -> int:
    """Bytes that this process may use: of the CUDA device, or of the machine, or its container's where that is less."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info(device())[1])
    limits = list(_limits())
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _memory_of() -> str:
    return torch.cuda.get_device_name() if device().type == "cuda" else "this machine"


def _limits() -> Iterator[int]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            yield int(text)
