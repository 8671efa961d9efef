"""Triptych from Python: the whole cycle by `run`, and every stage alone on plain folders and files.

::

    import triptych

    made = triptych.train_reward("models/SmolLM2-135M-Instruct", "preferences.jsonl", "reward", epochs=1)
    reward = triptych.open_reward(made.model)
    record = triptych.audit(reward, made.heldout, training=made.learnt)
    better = triptych.improve("models/SmolLM2-135M-Instruct", reward, "questions.jsonl", "better", method="grpo")

A setting of a stage is a keyword by its name in the recipe (docs/recipe.md). What was killed goes on where it was when
the same call is made again; a finished folder is never written over.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from triptych import __version__, comparison
from triptych.audit.benchmarks import BenchmarkData, Remembered, read_benchmark
from triptych.audit.record import AUDIT, Agreement, AuditRecord
from triptych.audit.stage import Audit, Evidence, agree, examine
from triptych.configuration import Config, complaints, identity_of
from triptych.data import files
from triptych.data.folder import DataFolder
from triptych.data.rows import Place as Position
from triptych.data.source import is_data_file
from triptych.data.splits import decontaminate, prompt_of
from triptych.dataset.preparation import divided, of_different_turns
from triptych.dataset.synthesis import Synthesis
from triptych.dataset.synthesis import synthesise as write_synthetic
from triptych.display import one_line
from triptych.engine.adapter_folder import model_digests
from triptych.engine.checkpoint import checkpoint_seconds
from triptych.engine.device import settle
from triptych.engine.hub import downloaded
from triptych.engine.inspection import ADAPTER
from triptych.engine.merging import merge as merge_model
from triptych.engine.perplexity import bits_per_byte
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling, own_sampling, passed_over
from triptych.engine.scoring import Scorer, applies, compares, unscorable
from triptych.errors import AuditError, DataError, Fault, ModelError, RecipeError, RunError
from triptych.evaluate.answers import QUESTIONS, Answered, Answering, answer, answered, take
from triptych.evaluate.benchmarks import HarnessScore, HarnessTasks
from triptych.evaluate.gate import Decided, Gate, decide, gate_scores
from triptych.evaluate.survey import AnswerSurvey, survey
from triptych.execution import execute
from triptych.improve.improvement import Improved
from triptych.improve.improvement import improve as improve_policy
from triptych.improve.registry import METHODS
from triptych.instruct.finetuning import Finetuned, Finetuning, finetune
from triptych.people.verdicts import Panel
from triptych.pipeline.fingerprint import code_version, fingerprint
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.progress import Progress, Terminal
from triptych.recipe import Recipe, load
from triptych.records import Comparison, Prompt, Record, Thumb
from triptych.release.gguf import export as export_gguf
from triptych.release.publication import Gating, Published
from triptych.release.publication import push as push_release
from triptych.release.verification import OWN
from triptych.report.page import render_audit, render_gate
from triptych.report.summary import AuditSummary, MethodComparison, Sample, SampleAnswer, Summary
from triptych.reward.training import PairwiseReward, RewardTrained
from triptych.reward.training import train_reward as train_pairwise
from triptych.reward.trust import Trust
from triptych.reward_names import Ask, open_named
from triptych.storage import PARTIAL, entries, make_folder, read_object, replace_folder, write_whole

Place = str | Path
"""A file or a folder."""

ANSWERED, DECISION, VERDICTS = "answered.json", "gate.json", "verdicts.jsonl"
"""In a gate's folder: what made the answers, as long as nothing is decided; the decision; what people said."""

WINDOW = 1024
"""The most tokens that a model sees at once of plain text."""

R = TypeVar("R", bound=Record)
C = TypeVar("C", bound=Config)
R_co = TypeVar("R_co", bound=Result, covariant=True)


@dataclass(frozen=True)
class Trained(Generic[R_co]):
    """What a training left.

    Attributes:
        folder: the output; the loss of each step stands in its `curve.jsonl`.
        result: what was counted and measured.
    """

    folder: Path
    result: R_co

    @property
    def model(self) -> Path:
        """A Hugging Face folder: a plain one, or with `lora` adapters over the model that was given (see `merge`)."""
        return self.folder / "model"

    @property
    def learnt(self) -> Path:
        """The rows that it was trained on."""
        return self.folder / "learnt.jsonl"

    @property
    def heldout(self) -> Path:
        """The rows that it has not seen: no prompt of theirs is one of `learnt`."""
        return self.folder / "heldout.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; None of what it was not asked.

    Attributes:
        bits_per_byte: of plain text, by the model.
        benchmarks: each measure of each task of lm-evaluation-harness.
    """

    answers: AnswerSurvey | None = None
    agreement: Agreement | None = None
    bits_per_byte: float | None = None
    benchmarks: Sequence[HarnessScore] = ()


def run(
    recipe: Place | Recipe, overrides: Sequence[str] = (), *, runs: Place = "runs", until: str | None = None,
    progress: Progress | None = None,
) -> Summary | None:
    """Runs the whole cycle of a recipe, or goes on with it; what is done already is not done again.

    Args:
        recipe: a YAML file, or what it holds.
        overrides: `a.b=c` each, of a file.
        runs: the folder in which the run's folder lies, or is made, by the recipe's name.
        until: the stage after which it ends, as "round-1/audit".

    Returns:
        The numbers of `summary.json` (docs/summary.md); None where the run ended before it had a Base.

    Raises:
        RecipeError: every problem of the recipe.
        TriptychError: any that a stage raises; what was done is kept, and the report says how the run ended.
    """
    loaded, file = _loaded(recipe, overrides)
    return execute(loaded, Path(runs) / loaded.name, progress or Terminal(), until, file)


def compare(
    recipe: Place | Recipe, overrides: Sequence[str] = (), *, methods: Sequence[str] | None = None, seeds: int = 3,
    runs: Place = "runs", progress: Progress | None = None,
) -> MethodComparison:
    """Compares methods of improvement on the same budget, from the same champion and reward model.

    Args:
        recipe, overrides, runs: as of `run`, with which all up to the first round's audit is shared.
        methods: names; by default all that this recipe has what they learn from.
        seeds: how often each improves the champion.

    Returns:
        What `compare.json` holds, which is in the run's folder with `compare.html`.

    Raises:
        RecipeError: a problem of the recipe, or a method that cannot be compared on it.
        TriptychError: any that a stage raises.
    """
    loaded, file = _loaded(recipe, overrides)
    return comparison.compare(
        loaded, Path(runs) / loaded.name, progress or Terminal(), comparison.chosen(loaded, methods), seeds, file
    )


def _loaded(recipe: Place | Recipe, overrides: Sequence[str]) -> tuple[Recipe, Path | None]:
    """The recipe, and where it stands."""
    return (recipe, None) if isinstance(recipe, Recipe) else (load(Path(recipe), overrides), Path(recipe))


def train_sft(
    model: Place, data: Place | Sequence[Place], output: Place, *, heldout: float = 0.04, seed: int = 0,
    progress: Progress | None = None, **settings: Any,
) -> Trained[Finetuned]:
    """Fine-tunes a model on conversations; only their answers count in the loss.

    Args:
        model: a Hugging Face folder, or what `train_sft` or `improve` left.
        data: files of {"messages"} or {"prompt", "completion"}.
        output: the folder that is made.
        heldout: share of the prompts on which the loss is measured.
        settings: fields of :class:`triptych.instruct.finetuning.Finetuning`, such as `epochs`.

    Raises:
        DataError: wrong rows, all of them named.
        ModelError: the model cannot be used.
        RecipeError: a setting is unknown or wrong.
        RunError: `output` exists.
    """
    config = _config(Finetuning, settings)
    rows = _rows(data, files.read_conversations, progress)
    (parts,) = divided("conversations of train_sft", (rows,), {"heldout": heldout, "train": 1 - heldout}, seed)
    content = {"demonstrations": parts["train"], "demonstrations_heldout": parts["heldout"]}
    with _Work(output, "sft", config, seed, progress, {"model": model}, content) as work:
        result = finetune(work.context, config, work.start(model), work.data)
        work.keep(learnt=parts["train"], heldout=parts["heldout"])
    return Trained(work.output, result)


def train_reward(
    model: Place, comparisons: Place | Sequence[Place], output: Place, *, heldout: float = 0.15, seed: int = 0,
    progress: Progress | None = None, **settings: Any,
) -> Trained[RewardTrained]:
    """Trains a Bradley-Terry reward model on comparisons; `audit` it before it trains anything.

    Args:
        model: a Hugging Face folder of a policy, or of a reward model, which is then trained on.
        comparisons: files of {"prompt", "chosen", "rejected"}.
        output: the folder that is made.
        heldout: share of the prompts that are kept for the audit, in `heldout` of the result.
        settings: fields of :class:`triptych.reward.training.PairwiseReward`, such as `epochs`.

    Raises:
        DataError, ModelError, RecipeError, RunError: as `train_sft`.
    """
    config = _config(PairwiseReward, settings)
    rows = _rows(comparisons, files.read_comparisons, progress)
    (parts,) = divided("comparisons of train_reward", (rows,), {"train": 1 - heldout, "heldout": heldout}, seed)
    content = {f"comparisons_{name}": part for name, part in parts.items()}
    with _Work(output, "reward", config, seed, progress, {"model": model}, content) as work:
        result = train_pairwise(work.context, config, work.start(model), work.data)
        work.keep(learnt=parts["train"], heldout=parts["heldout"])
    return Trained(work.output, result)


def improve(
    model: Place, reward: Place | Scorer | None, prompts: Place | Sequence[Place], output: Place, *,
    method: str = "grpo", judge: Scorer | None = None, comparisons: Place | Sequence[Place] = (),
    thumbs: Place | Sequence[Place] = (), heldout: float = 0.1, seed: int = 0, progress: Progress | None = None,
    **settings: Any,
) -> Trained[Improved]:
    """Improves a model against a reward, near what it was; or on comparisons or thumbs alone, without a reward.

    Args:
        model: a Hugging Face folder, or what `train_sft` or `improve` left.
        reward: what is learnt from, a scorer or what `open_reward` takes; a language model scores each answer.
        prompts: files of {"prompt"}; none where feedback is all that is learnt from, whose own prompts are then taken.
        output: the folder that is made.
        method: "grpo", "rloo", "ppo", "dpo", "best_of_n", or any other in docs/improve.md.
        judge: watches on the held-out prompts and chooses which of the policies on the way is kept; by default the
            reward does, and without a reward the loss on the feedback that is held out.
        comparisons: files of {"prompt", "chosen", "rejected"}, for a method that learns from them.
        thumbs: files of {"prompt", "completion", "label"}, for a method that learns from them.
        heldout: share of the prompts on which the policy is watched; without a reward of the feedback too.
        settings: fields of the method, such as `steps`, `group_size`, `kl_coefficient`.

    Raises:
        DataError, ModelError, RecipeError, RunError: as `train_sft`.
        RewardError: the reward cannot be computed.
    """
    kinds = {kind.name(): kind.settings for kind in METHODS}
    if method not in kinds:
        raise RecipeError(f"there is no method {method!r}; there are {', '.join(kinds)}")
    if reward is None and comparisons and "pairs" in kinds[method].model_fields:
        settings = {"pairs": "comparisons", **settings}  # others would be scored
    config = _config(kinds[method], settings)
    if reward is None and config.needs_reward:
        raise RecipeError(
            f"{method} with these settings learns from scores: give a reward; without one dpo learns from comparisons, "
            "and kto from thumbs"
        )
    if config.needs_comparisons and not comparisons:
        raise RecipeError(f"{method} with these settings learns from comparisons: give some")
    if config.needs_thumbs and not thumbs:
        raise RecipeError(f"{method} learns from thumbs: give some")
    scorer = None if reward is None else _scorer(reward)
    compared = _rows(comparisons, files.read_comparisons, progress) if comparisons else []
    liked = _rows(thumbs, files.read_thumbs, progress) if thumbs else []
    places: list[Position] = []
    rows = _rows(prompts, files.read_prompts, progress, places) if prompts else _prompts_of(compared, liked)
    if not rows:
        raise RecipeError(f"{method} writes answers: give prompts")
    _require_scorable([known for known in (scorer, judge) if known], rows, places)
    feedback = (compared, liked) if scorer is None else ((), ())
    parts, pairs, thumbed = divided("prompts", (rows, *feedback), {"validation": heldout, "improve": 1 - heldout}, seed)
    content: dict[str, Sequence[Any]] = {f"prompts_{name}": part for name, part in parts.items()}
    if scorer is None:
        content |= {"comparisons_train": pairs["improve"], "comparisons_heldout": pairs["validation"],
                    "thumbs": thumbed["improve"], "thumbs_heldout": thumbed["validation"]}
    else:
        content |= {name: decontaminate(rows, parts["validation"])[0]
                    for name, rows in (("comparisons_train", compared), ("thumbs", liked))}
    content = {name: part for name, part in content.items() if part or name.startswith("prompts")}
    identities = [scorer.identity if scorer else None, judge.identity if judge else None]
    with _Work(output, "improve", config, seed, progress, {"model": model}, content, identities) as work:
        result = improve_policy(
            work.context, config, work.start(model), work.data, scorer, judge, feedback=work.data
        )
        work.keep(learnt=parts["improve"], heldout=parts["validation"])
    return Trained(work.output, result)


def _prompts_of(compared: Sequence[Comparison], liked: Sequence[Thumb]) -> list[Prompt]:
    """The prompts of feedback, each once."""
    asked = [row.prompt for row in compared] + [row.prompt for row in liked]
    return list({prompt.key: prompt for prompt in asked}.values())


def audit(
    reward: Place | Scorer, comparisons: Place | Sequence[Place], *, training: Place | Sequence[Place] = (),
    predecessor: Place | Scorer | None = None, output: Place | None = None, name: str | None = None,
    progress: Progress | None = None, **settings: Any,
) -> AuditRecord:
    """Measures what a reward is worth on comparisons that it has not seen, and says whether it may train a policy.

    Args:
        reward: a scorer, or what `open_reward` takes; a language model compares both answers.
        comparisons: files of {"prompt", "chosen", "rejected"}; RewardBench, RewardBench 2, RM-Bench, JudgeBench too.
        training: those that it was trained on: a bag of words learns from them, and comparisons with a prompt of
            theirs are left out. Without them the record warns that it may have learnt what it is measured on.
        predecessor: the reward that it was refreshed from.
        output: a folder for `audit.json` and `audit.html`; by default nothing is written.
        name: of the reward on that page; by default its folder's, or the scorer's.
        settings: fields of :class:`triptych.audit.stage.Audit`.

    Returns:
        A record whose `passed` is the verdict, with `reasons` and `warnings`.

    Raises:
        AuditError: no comparison is left.
        DataError, RecipeError, RewardError: as `improve`.
    """
    config = _config(Audit, settings)
    scorer = _scorer(reward, "compare")
    before = None if predecessor is None else _scorer(predecessor, "compare")
    learnt: list[Comparison] = _rows(training, files.read_comparisons, progress)
    benchmarks: list[BenchmarkData] = []
    compared: list[Comparison] = []
    for place in _places(comparisons):
        if (benchmark := read_benchmark(place)) is None:
            compared += _rows(place, files.read_comparisons, progress)
        else:
            benchmarks.append(benchmark)
            compared += benchmark.comparisons
    rows, shared = decontaminate(_scored_by(scorer, compared, progress), learnt)
    if shared:
        (progress or Terminal()).say(
            f"note: {len(shared):,} comparisons have a prompt of the training comparisons and are left out"
        )
    if not rows:
        raise AuditError("no comparison is left: every prompt is one of the training comparisons")
    settle()
    # What an answer gets from one who compares depends on those beside it: that is not to be remembered.
    remembered = Remembered(scorer) if benchmarks and not compares(scorer) else scorer
    record = examine(remembered, Evidence(rows, learnt, unseen=bool(learnt)), config, before, released=scorer)
    kept = [benchmark.without(learnt) for benchmark in benchmarks]
    for benchmark in kept:
        if not benchmark.items:
            (progress or Terminal()).say(f"note: no item of {benchmark.benchmark.name} is left: each prompt was learnt")
    record.benchmarks = [benchmark.scores(remembered.score) for benchmark in kept if benchmark.items]
    if output is not None:
        make_folder(Path(output))
        write_whole(Path(output) / AUDIT, record.model_dump_json(indent=1) + "\n")
        shown = AuditSummary.of(record, round=0, trained_on=len(learnt) or None)
        title = name or (str(reward) if isinstance(reward, str | Path) else reward.name)
        write_whole(Path(output) / "audit.html", render_audit(shown, title, __version__))
    return record


def evaluate(
    model: Place | None = None, reward: Place | Scorer | None = None, *, prompts: Place | Sequence[Place] = (),
    comparisons: Place | Sequence[Place] = (), text: Place | Sequence[Place] = (), tasks: Sequence[str] = (),
    limit: int | None = None, chat_template: bool | None = None, sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures a model on prompts, plain text or benchmarks, or a reward on comparisons.

    Args:
        model: a Hugging Face folder, or what `train_sft` or `improve` left.
        reward: a scorer, or what `open_reward` takes; it scores the answers.
        prompts: files of {"prompt"}: the model answers each.
        comparisons: files of {"prompt", "chosen", "rejected"}: how often the reward orders them as labelled.
        text: files of plain text: how well the model predicts it.
        tasks: benchmarks, by their names in lm-evaluation-harness or by the paths of tasks' YAML files.
        limit: so many documents of each task.
        chat_template: whether tasks are asked by the model's chat template; by default where it has one.
        sampling: how the model answers prompts; by default as its `generation_config.json` says. A task says itself
            how it is answered; where it samples, the seed counts.

    Raises:
        DataError, ModelError, RewardError: as `improve`.
        RecipeError: there is nothing to measure, or nobody to be measured on it.
    """
    if not (prompts or comparisons or text or tasks):
        raise RecipeError("nothing to measure: give prompts, comparisons, text or tasks")
    if comparisons and reward is None:
        raise RecipeError("comparisons are ordered by a reward: give one")
    if (prompts or text or tasks) and model is None:
        raise RecipeError("prompts and tasks are answered, and text is read, by a model: give one")
    opened = HarnessTasks(tasks) if tasks else None
    positions: list[Position] = []
    asked = _prompts(prompts, progress, positions)
    compared = _rows(comparisons, files.read_comparisons, progress)
    documents = _rows(text, files.read_documents, progress)
    scorer = None if reward is None else _scorer(reward)
    _require_scorable([scorer] if scorer else [], asked, positions)
    if scorer and compares(scorer) and any(prompt.reference is None for prompt in asked):
        raise RecipeError(
            f"{scorer.name} only compares answers, and prompts without a `reference` have one answer each here: give "
            "references, or have two models compared by triptych gate"
        )
    settle()
    agreement = agree(scorer, _scored_by(scorer, compared, progress)) if scorer and compared else None
    if model is None:
        return Evaluation(agreement=agreement)
    folder = _model(model)
    policy = Policy.open(folder)
    answers = survey(
        policy, asked, sampling or Sampling.of(folder), scorer, progress or Terminal(), list(map(str, positions))
    ) if asked else None
    context = min(policy.context or WINDOW, WINDOW)
    bits = bits_per_byte(policy.model, policy.tokenizer, documents, context) if documents else None
    benchmarks = opened.measure(
        policy, limit=limit, chat_template=chat_template, seed=sampling.seed if sampling else 0,
        progress=progress or Terminal(),
    ) if opened else ()
    return Evaluation(answers, agreement, bits, benchmarks)


def gate(
    champion: Place, candidate: Place, prompts: Place | Sequence[Place] = (), *, judge: Place | Scorer | None = None,
    people: bool = False, temperature: float | None = None, max_tokens: int | None = None,
    reward: Scorer | None = None, output: Place | None = None, seed: int = 0, progress: Progress | None = None,
    **settings: Any,
) -> Decided:
    """Has two models answer prompts and a judge, or people, decide whether the candidate is better, by an exact test.

    Args:
        champion, candidate: Hugging Face folders, or what `train_sft` or `improve` left; or two files of answers,
            {"prompt", "completion"} or {"messages"}, that any tool wrote to the same prompts.
        prompts: files of {"prompt"} on which nothing was trained; none where answers are given.
        judge: a scorer that had no part in the training, or what `open_reward` takes; a language model compares both
            answers, in both orders.
        people: they decide by their verdicts in the output's `verdicts.jsonl`, on the questions in its
            `questions.jsonl`; a judge's win rate then stands beside theirs.
        temperature, max_tokens: how both answer; by default each as its `generation_config.json` says.
        reward: another scorer whose mean scores stand beside the judge's.
        output: the folder that is made, with `answers.jsonl`, `scores.jsonl`, `gate.json` and `gate.html`; by default
            nothing is kept. The same call goes on with the answers in it, until `gate.json` is there.
        settings: fields of :class:`triptych.evaluate.gate.Gate`, such as `error` or `max_kl`.

    Returns:
        A record with `decision` ("promoted", "rejected" or "too few prompts to tell"), `reason`, `win_rate`,
        `interval`, `p_value`, `kl`, and what else the gate measured.

    Raises:
        DataError, ModelError, RecipeError, RewardError, RunError: as `improve`.
        WaitingError: people have not answered every question.
    """
    config = _config(Gate, settings)
    if judge is None and not people:
        raise RecipeError("nobody decides: give a judge, or let people")
    if people and output is None:
        raise RecipeError("people find their questions in the output: give one")
    scorer = None if judge is None else _scorer(judge, "compare")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gate" if output is None else Path(output)
        measured = _answered(
            champion, candidate, prompts, config, folder, temperature, max_tokens, seed, progress,
            [known for known in (scorer, reward) if known],
        )
        verdicts = None
        if people:
            panel = Panel(folder / QUESTIONS, folder / VERDICTS)
            panel.require("the gate", panel.questions, f"triptych label {folder}")
            verdicts = {VERDICTS: panel.take(Path(temporary) / VERDICTS)}
        context = StageContext(folder, folder, progress or Terminal(), seed, checkpoint_seconds())
        decided = decide(context, config, folder, measured, reward, scorer, sources=verdicts)
        page = render_gate(decided, _side_by_side(folder), str(champion), str(candidate), __version__)
        write_whole(folder / "gate.html", page)
        write_whole(folder / DECISION, decided.model_dump_json(indent=1) + "\n")  # the last: now it is decided
        (folder / ANSWERED).unlink()
        return decided


def _answered(
    champion: Place, candidate: Place, prompts: Place | Sequence[Place], config: Gate, folder: Path,
    temperature: float | None, max_tokens: int | None, seed: int, progress: Progress | None,
    scorers: Sequence[Scorer],
) -> Answered:
    """A folder with both models' answers, made now or by the same call before; what was measured of them.

    Args:
        scorers: who will score them, so that none may be to a prompt that one of these says nothing of.
    """
    written = _are_answers(champion, candidate, prompts, config)
    if written and (temperature, max_tokens) != (None, None):
        raise RecipeError("temperature and max_tokens are of models that answer; these answers are written already")
    places = {"champion": champion, "candidate": candidate}
    positions: list[Position] = []
    rows: dict[str, Sequence[Any]] = (
        {f"demonstrations_{name}": _rows(place, files.read_conversations, progress, positions)
         for name, place in places.items()}
        if written else {"prompts_gate": _prompts(prompts, progress, positions)}
    )
    asked_for = [prompt_of(row) for row in next(iter(rows.values()))]  # the champion's prompts are those of a pair
    _require_scorable(scorers, asked_for, positions)
    asked = Answering(prompts=max(2, *map(len, rows.values())))
    kept = folder / ANSWERED
    work = _Work(
        folder, "answers", asked, seed, progress, {} if written else places, rows, [temperature, max_tokens],
        goes_on=kept.exists() and not (folder / DECISION).exists(),
    )
    if folder.exists():
        record = read_object(kept)
        if record["made_by"] != work.mark:
            raise RunError(
                f"{folder} has answers of other models, to other prompts or by other settings; give another output, or "
                "delete it"
            )
        return Answered.model_validate(record["measured"])
    with work:
        if written:
            before, after = rows.values()
            measured = take(work.context, before, after, (str(champion), str(candidate)))
        else:
            old, new = (work.start(model) for model in (champion, candidate))
            for note in filter(None, (passed_over(model / "model") for model in (old, new))):
                work.context.progress.say(note)
            deployed = [own_sampling(model / "model", temperature, max_tokens) for model in (old, new)]
            limits = [decoding.max_tokens for decoding in deployed]
            if limits[0] != limits[1]:  # else one would be longer only because it may be
                work.context.progress.say(
                    f"note: the models' own limits are {limits[0]:,} and {limits[1]:,} tokens an answer; both have "
                    f"{max(limits):,} here"
                )
            deployed = [replace(decoding, max_tokens=max(limits)) for decoding in deployed]
            measured = answer(work.context, asked, new, old, work.data, deployed[1], deployed[0])
        made = {"made_by": work.mark, "measured": measured.model_dump(mode="json")}
        write_whole(work.context.output / ANSWERED, json.dumps(made, indent=1) + "\n")
    return measured


def _side_by_side(folder: Path, count: int = 12) -> list[Sample]:
    """The first answers of a gate, with the judge's scores."""
    rows = zip(answered(folder), gate_scores(folder), strict=True)
    return [
        Sample(
            prompt=pair.prompt.messages[-1].content, task=pair.prompt.task,
            answers=[SampleAnswer(model=name, text=text, judge=judge, reward=None) for name, text, judge in (
                ("champion", pair.before, scores.before), ("candidate", pair.after, scores.after),
            )],
        )
        for pair, scores in islice(rows, count)
    ]


def _are_answers(champion: Place, candidate: Place, prompts: Place | Sequence[Place], config: Gate) -> bool:
    """Whether the two are files of answers, and not models.

    Raises:
        RecipeError: a model beside a file, prompts beside answers, or a budget for a distance that nobody can measure.
    """
    written = [is_data_file(place) for place in (champion, candidate)]
    if not any(written):
        return False
    if not all(written):
        raise RecipeError("champion and candidate are two models or two files of answers, not one of each")
    if prompts:
        raise RecipeError("prompts are asked of models; answers have their own: leave the prompts out")
    if config.max_kl is not None:
        raise RecipeError("max_kl needs the models: from answers alone no distance is known")
    return True


def open_reward(
    name: Place, *, ask: Ask = "score", key_env: str | None = None, models: Mapping[str, Path] | None = None,
    cache: Path | None = None, trust: Trust | None = None,
) -> Scorer:
    """A reward of any kind; its `score` gives a number to each of some `Conversation`s.

    Args:
        name: the folder of a sequence classifier, of what `train_reward` left, or a release's `reward`; a `.yaml` file
            with the settings of rules, a judge or a mixture of these, as a recipe has them under `reward`; a language
            model's folder; `owner/model` on the Hub; or `URL#MODEL`, an OpenAI-compatible address and a model there.
        ask: a language model that is named alone is asked to "score" each answer, or to "compare" each two.
        key_env: the environment variable whose value an address is sent as the key.
        models: the folders of the models that a judge in a reward's folder asks, by the name that its settings give
            them.
        cache: the folder in which the replies of such a judge's endpoint are kept.
        trust: what of that which the folder names may be asked, sent and run; nothing by default.

    Raises:
        RecipeError: the settings are wrong, each with its line.
        ModelError, RewardError: there is no such reward, or it may not or cannot be used.
    """
    return open_named(name, ask=ask, key_env=key_env, models=models, cache=cache, trust=trust)


def synthesise(
    model: Place, output: Place, *, seeds: Place | Sequence[Place] = (), reward: Place | Scorer | None = None,
    seed: int = 0, progress: Progress | None = None, **settings: Any,
) -> Counter[str]:
    """Has a tuned model write instructions and answers to them, to learn from; see :mod:`triptych.dataset.synthesis`.

    Args:
        model: a Hugging Face folder with a chat template, or what `train_sft` or `improve` left.
        output: the file that is written, rows of {"messages", "task"}; the task says by which way.
        seeds: files of {"prompt"}: tasks that Self-Instruct shows, and that nothing may nearly repeat.
        reward: chooses among several answers; a scorer, or what `open_reward` takes.
        settings: fields of :class:`triptych.dataset.synthesis.Synthesis`, such as `count`.

    Returns:
        How many instructions were left out, by why.

    Raises:
        DataError, ModelError, RecipeError, RewardError: as `improve`.
        RunError: `output` exists, or not one conversation was to be had.
    """
    config = _config(Synthesis, settings)
    if Path(output).exists():
        raise RunError(f"{output} is there already; nothing was written. Name a new file")
    progress = progress or Terminal()
    tasks = _rows(seeds, files.read_prompts, progress)
    scorer = None if reward is None else _scorer(reward)
    settle()
    policy = Policy.open(_model(model))
    made, left_out = write_synthetic(policy, config, tasks, scorer, seed, progress)
    if not made:
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.most_common())
        raise RunError(f"not one conversation was to be had from {model}: {reasons}")
    make_folder(Path(output).parent)
    files.write(output, made)
    return left_out


def merge(source: Place, output: Place) -> Path:
    """Makes plain folders of models that are adapters over a trunk; their numbers are as the trunk's were stored.

    At most one file of weights is held at once.

    Args:
        source: what a stage with `lora` left, or any folder that holds such models, as a release: all of it is written
            then, but for its cards and its manifest, which tell of adapters.
        output: the folder that is made.

    Raises:
        ModelError: there is no such folder, no adapters, or their trunk is not there.
        RunError: `output` exists.
    """
    folder, target = Path(source).expanduser(), Path(output)
    if target.exists():
        raise RunError(f"{target} exists; give another output")
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder")
    folder = folder / "model" if (folder / "model" / ADAPTER).is_file() else folder
    adapted = [path.parent for path in entries(folder) if path.name == ADAPTER]
    if not adapted:
        raise ModelError(f"{folder}: no model here is adapters, so there is nothing to merge")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    for path in entries(folder):
        kept = path.is_file() and path.name != "README.md" and path.parent not in adapted
        if kept and not (path.parent == folder and path.name in OWN):
            make_folder((partial / path.relative_to(folder)).parent)
            shutil.copyfile(path, partial / path.relative_to(folder))
    for model in adapted:
        merge_model(model, partial / model.relative_to(folder))
    replace_folder(partial, target)
    return target


def export(model: Place, output: Place, *, type: str = "f16", progress: Progress | None = None) -> Path:
    """Writes a model as one GGUF file, which llama.cpp runs, and beside it `NAME.Modelfile`, for Ollama.

    Args:
        model: a Hugging Face folder, or what `train_sft` or `improve` left.
        output: the file that is made; it ends in `.gguf`.
        type: what the matrices are rounded to, one of :data:`triptych.release.gguf.TYPES`.

    Raises:
        ModelError: the model cannot be used, gives scores, or would be computed in another way by llama.cpp.
        RecipeError: there is no such type, or the file has another ending.
        RunError: a file of that name exists.
    """
    export_gguf(_model(model), Path(output), type, progress or Terminal())
    return Path(output)


def push(
    release: Place, name: str, *, public: bool | None = None, gated: Gating | None = None,
    progress: Progress | None = None,
) -> Published:
    """Puts a release on the Hugging Face Hub: a repository for each of the three models, and a collection of them.

    The release is verified first. The same call again sends what the Hub does not have yet.

    Args:
        name: `owner/name`; the repositories are `owner/name-Base`, `-Instruct` and `-Reward`.
        public: whether all can see them; by default new ones are private, and others stay as they are.
        gated: who wants the models asks for access, which all get ("auto") or the owner grants ("manual"); by default
            it stays as it is.

    Raises:
        ReleaseError: there is no token, the folder is not what was released, or the Hub did not take it.
    """
    return push_release(Path(release).expanduser(), name, progress or Terminal(), public=public, gated=gated)


class _Work:
    """A stage alone: a folder to work in beside the output, which gets its name when everything is in it.

    Another call, with other settings, data or models, has another folder, and so never goes on from this one's
    checkpoints.
    """

    def __init__(
        self, output: Place, stage: str, config: Config, seed: int, progress: Progress | None,
        models: Mapping[str, Place], content: Mapping[str, Sequence[Any]], values: Sequence[object] = (),
        goes_on: bool = False,
    ) -> None:
        self.output = Path(output)
        if self.output.exists() and not goes_on:
            raise RunError(f"{self.output} exists; give another output, or delete it to compute it again")
        weights = {
            f"{name}/{file}": digest
            for name, place in models.items() for file, digest in model_digests(_model(place)).items()
        }
        rows = {name: [files.json_line(row) for row in rows] for name, rows in content.items()}
        asked = [stage, seed, identity_of(config), rows, values]
        self.mark = fingerprint(asked, weights, code_version(__name__))
        self.folder = self.output.with_name(f".{self.output.name}-{self.mark[:12]}")
        self.data = self.folder / "data"
        self.context = StageContext(
            self.folder / "output", self.folder, progress or Terminal(), seed, checkpoint_seconds()
        )
        self.content = content

    def __enter__(self) -> _Work:
        settle()
        for folder in (self.context.output, self.data, self.folder / "start"):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
        for name, rows in self.content.items():
            DataFolder(self.data).named(name).write(rows)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            replace_folder(self.context.output, self.output)
            shutil.rmtree(self.folder)

    def start(self, place: Place) -> Path:
        """A folder with the model in `model`, as stages have it."""
        model = _model(place)
        if model.name == "model":
            return model.parent
        link = self.folder / "start" / str(len(os.listdir(self.folder / "start"))) / "model"
        link.parent.mkdir()
        link.symlink_to(model.resolve(), target_is_directory=True)
        return link.parent

    def keep(self, **parts: Sequence[Any]) -> None:
        """Writes rows into the output, for whoever wants to know what was learnt from."""
        for name, rows in parts.items():
            files.write(self.context.output / f"{name}.jsonl", rows)


def _model(place: Place) -> Path:
    """The model's folder: this one, `model` in it, or the one that the Hub gives."""
    folder = Path(place).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.exists() and (taken := downloaded(str(place))) is not None:
        return taken
    raise ModelError(f"{folder}: no model's folder, for it has no config.json, and no name on the Hub (owner/model)")


def _scorer(reward: Place | Scorer, ask: Ask = "score") -> Scorer:
    return open_reward(reward, ask=ask) if isinstance(reward, str | Path) else reward


def _require_scorable(scorers: Sequence[Scorer], prompts: Sequence[Prompt], places: Sequence[Position]) -> None:
    """Refuses prompts whose answers a scorer could not score, before anything answers them.

    Args:
        places: where the prompts stand; none where they are those of feedback.

    Raises:
        DataError: each of them, with its file and line.
    """
    faults = []
    for number, prompt in enumerate(prompts):
        fault = next((why for scorer in scorers if (why := unscorable(scorer, prompt)) is not None), None)
        if fault is not None:
            file, line = places[number] if places else (f"prompt {one_line(prompt.messages[-1].content)[:60]!r}", None)
            faults.append(Fault(file, line, None, fault))
    if faults:
        raise DataError(faults)


def _scored_by(scorer: Scorer, rows: Sequence[Comparison], progress: Progress | None) -> list[Comparison]:
    """The comparisons of whose answers the scorer says something; how many there are besides is said.

    Raises:
        AuditError: there are none.
    """
    kept = [row for row in rows if applies(scorer, row.prompt)]
    silent = len(rows) - len(kept)
    if silent and not kept:
        raise AuditError(
            f"nothing of this reward applies to any of the {len(rows):,} comparisons: rule instructions needs prompts "
            "with `checks`, and a rule or part with `tasks` one of these"
        )
    if silent:
        (progress or Terminal()).say(
            f"note: {silent:,} comparisons are left out, for nothing of this reward applies to them"
        )
    return kept


def _rows(
    places: Place | Sequence[Place], read: Callable[..., list[R]], progress: Progress | None = None,
    positions: list[Position] | None = None,
) -> list[R]:
    """The rows of all files; what of them nobody reads is said."""
    return files.read_saying(read, _places(places), (progress or Terminal()).say, places=positions)


def _prompts(
    places: Place | Sequence[Place], progress: Progress | None, positions: list[Position]
) -> list[Prompt]:
    """The prompts of all files, each once: the same answer again proves nothing more. How many are left out is said.

    Args:
        positions: gets where each stands.
    """
    stood: list[Position] = []
    rows = _rows(places, files.read_prompts, progress, stood)
    first, repeated = of_different_turns(rows)
    kept = {id(prompt) for prompt in first}
    positions += [place for prompt, place in zip(rows, stood, strict=True) if id(prompt) in kept]
    if repeated:
        (progress or Terminal()).say(f"note: {len(repeated):,} prompts stand in the files already and are left out")
    return first


def _places(places: Place | Sequence[Place]) -> Sequence[Place]:
    return [places] if isinstance(places, str | Path) else places


def _config(kind: type[C], settings: Mapping[str, Any]) -> C:
    """The settings of a stage.

    Raises:
        RecipeError: with every unknown name and every wrong value.
    """
    known = list(kind.model_fields)
    lines = []
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            lines.append(f"{name}: unknown setting" + (f", did you mean {near[0]}?" if near else
                                                       f"; there are {', '.join(known)}"))
    if not lines:
        try:
            return kind.model_validate(dict(settings))
        except ValidationError as error:
            lines = [
                ": ".join(part for part in (".".join(map(str, place)), message) if part)
                for place, message in complaints(error, kind).items()
            ]
    raise RecipeError("\n".join(lines))
