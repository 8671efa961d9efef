"""What a run leaves for people: the summary, the samples, the report, and the release of the family."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from triptych import __version__
from triptych.base.record import BaseRecord
from triptych.data.folder import DataFolder
from triptych.data.source import dataset_name
from triptych.engine.curve import read_curve, thinned
from triptych.engine.device import peak_memory
from triptych.engine.sampling import Sampling
from triptych.errors import RunError
from triptych.evaluate.benchmarking import BenchmarkMeasured, benchmark_scores, change, chosen
from triptych.evaluate.benchmarks import HarnessScore
from triptych.evaluate.diagnosis import Diagnosed
from triptych.evaluate.gate import Decided
from triptych.evaluate.lengths import controlled
from triptych.evaluate.measurement import Measurements, ScoredAnswer, TestedPrompt, tested_prompts
from triptych.evaluate.preamble import FOUND
from triptych.evaluate.prompting import WITH_PROMPT, PromptFound
from triptych.family import BASE, FEW_SHOT, AuditedScorer, Family, ModelTest, Round, TaskTest
from triptych.feedback.labelling import Labelled
from triptych.improve.improvement import Improved
from triptych.improve.registry import METHODS
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.ledger import Ledger
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.recipe import Goals, HarnessBenchmark, Recipe
from triptych.records import Messages
from triptych.release.family import Shown, assemble
from triptych.release.lineage import DataFile, Lineage, Parent, Role
from triptych.report import summary as report
from triptych.report.page import render
from triptych.reward.description import DESCRIPTION
from triptych.reward.taking import RewardTaken
from triptych.reward.training import RewardTrained
from triptych.statistics.intervals import Interval, mean_interval, wins
from triptych.statistics.scores import PairedScore, paired_by_name
from triptych.statistics.significance import chance
from triptych.storage import read_object, replace_folder, write_whole

SAMPLES = 12
SAMPLES_OF_TASK = 3
BRIEF = 400
"""So many letters at most has a prompt that a card shows."""
OPENING = 8
"""So many words of a text has the Base's card."""
POINTS = 200
PLAIN = Sampling(1).name
FEW = 30
"""Prompts below which a percentile interval is too narrow (docs/decisions/0005)."""
"""Temperature 1, at which every model is measured."""
Tests = Mapping[str, Sequence[TestedPrompt]]
"""Of each model that was tested, the prompts with its answers."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended before its end.

    Attributes:
        reason: why, as a sentence.
        failed: whether it meant to go on.
        missing: the stages that it did not come to.
    """

    reason: str
    failed: bool
    missing: Sequence[str]


def write(recipe: Recipe, family: Family, runner: Runner, ending: Ending | None = None) -> report.Summary:
    """Writes `summary.json`, `samples.json`, `report.html` and, of a whole cycle, `release/`.

    Where the cycle failed behind its last gate, what it made is released all the same, with the scores that there are;
    but a release of the same models is left as it is, for it may tell more.

    Raises:
        RunError: an artifact is not what was written.
    """
    folder, artifacts = runner.folder, made(runner)
    prove(artifacts)
    answers, tasks = _answers(family.tests), {task.name: _answers(task.tests) for task in family.measured_tasks}
    gates = [round.gate for round in family.rounds if round.gate]
    measured = len(family.tests) == recipe.improve.rounds + (2 if recipe.finetuning else 1)
    decided = bool(gates) and len(gates) == recipe.improve.rounds
    whole = family.reward is not None or (decided and not recipe.rewarded)
    released = whole and (measured or (decided and ending is not None and ending.failed))
    place = "release" if released else None
    summary = summarise(recipe, family, artifacts, runner.ledger, answers, tasks, release=place)
    if ending:
        summary = summary.model_copy(update={"ended": ending.reason, "missing": list(ending.missing)})
    if released and (measured or not _is_released(family, folder / "release")):
        release(recipe, family, artifacts, summary, folder / "release")
    samples = sample(answers)
    for task, tested in tasks.items():
        samples += sample(tested, SAMPLES_OF_TASK, task)
    write_whole(folder / "summary.json", summary.model_dump_json(indent=1) + "\n")
    write_whole(folder / "samples.json", json.dumps([s.model_dump() for s in samples], ensure_ascii=False, indent=1))
    write_whole(folder / "report.html", render(summary, samples))
    return summary


def made(runner: Runner) -> list[Artifact[Result]]:
    """What the run has made, in order, each once."""
    return list({artifact.name: artifact for artifact in runner.done}.values())


def prove(artifacts: Sequence[Artifact[Result]]) -> None:
    """Sees that every artifact is what was written, before it is told of or leaves the machine.

    Raises:
        RunError: one is not.
    """
    for artifact in artifacts:
        artifact.prove()


def summarise(
    recipe: Recipe, family: Family, artifacts: Sequence[Artifact[Result]], ledger: Ledger, answers: Tests,
    tasks: Mapping[str, Tests], release: str | None,
) -> report.Summary:
    """The summary of what was made so far; a Base is the least."""
    assert family.base is not None, "a run without a Base has nothing to summarise"
    seconds = ledger.seconds()
    stages = [
        report.StageRow(
            name=artifact.name, kind=artifact.manifest["kind"].split(".")[0],
            seconds=seconds.get(artifact.fingerprint, 0.0), fingerprint=artifact.fingerprint,
            digest=artifact.digest, parents=[parent["stage"] for parent in artifact.manifest["parents"].values()],
        )
        for artifact in artifacts
    ]
    audits = [
        _audit(recipe, round.number, round.reward)
        for place, round in enumerate(family.rounds)
        if round.reward and round.reward.audit and (place == 0 or round.reward is not family.rounds[place - 1].reward)
    ]
    models = [_model(test, family, answers) for test in family.tests]
    peak = max(ledger.peak(), peak_memory())
    return report.Summary(
        name=recipe.name, version=__version__, judge=family.judge.name if family.judge else "none",
        judged_by_reward=recipe.judged_by_reward,
        verdict=verdict(recipe, family, answers, audits), base=_base(family.base.result), models=models, audits=audits,
        reward_order=reward_order(family, answers),
        judge_audit=_audit(recipe, 0, family.judging) if family.judging and family.judging.audit else None,
        preferences_audit=(
            _audit(recipe, 0, family.preferences) if family.preferences and family.preferences.audit else None
        ),
        rounds=[
            _round(round, round.gate.result, round.candidate)
            for round in family.rounds if round.gate and round.candidate
        ],
        prompts=[_prompt(name, search.result) for name, search in family.prompts.items()],
        tasks=[_task(task, tasks[task.name], family) for task in family.measured_tasks],
        benchmarks=[
            _benchmark(benchmark, family, family.benchmarks[benchmark.name])
            for benchmark in recipe.evaluate.of_models if family.benchmarks.get(benchmark.name)
        ],
        reward_benchmarks=list(_reward_benchmarks(family)),
        stages=stages, losses={artifact.name: _losses(artifact) for artifact in artifacts
                               if (artifact.folder / "curve.jsonl").exists()},
        units={artifact.name: _unit(artifact.result) for artifact in artifacts
               if (artifact.folder / "curve.jsonl").exists()},
        seconds=sum(stage.seconds for stage in stages), peak_memory_gib=peak, release=release,
    )


def _prompt(model: str, search: PromptFound) -> report.PromptSearch:
    return report.PromptSearch(
        model=model, prompt=search.headline, tried=len(search.tried), chooser=search.chooser, gain=search.gain,
        gain_interval=search.gain_interval, sampled=search.sampled, rewrites=search.rewrites,
        accepted=search.accepted, reflected=search.reflected,
    )


def verdict(
    recipe: Recipe, family: Family, answers: Tests, audits: Sequence[report.AuditSummary]
) -> report.FinalVerdict | None:
    """The champion as it is deployed beside what costs nothing, on the same test prompts; the goals that it missed."""
    name = _champion_name(family)
    if "instruct" not in answers or name not in answers:
        return None
    tested = _tested(family)
    rivals = {name: called for name, called in report.RIVALS.items() if name in answers}
    after, before, *_ = rows_of = _on_the_same_prompts(answers, name, *rivals)
    scores = [row.deployed.judge for row in after]
    ways: dict[str, list[ScoredAnswer]] = {}
    baselines: dict[str, report.Baseline] = {}
    for model, rows in zip(rivals, rows_of[1:], strict=True):
        for way, measured in tested[model].decodings.items():
            called = report.decoded_as(way, rivals[model])
            ways[called] = [row.decodings[way] for row in rows]
            gain, interval = _gain(scores, [row.judge for row in ways[called]])
            baselines[called] = report.Baseline(
                name=called, free=measured.drawn == 1, drawn=measured.drawn, score=measured.score,
                interval=measured.interval, gain=gain, gain_interval=interval,
            )
    free = {called: baseline for called, baseline in baselines.items() if baseline.free}
    rival = max(free.values(), key=lambda baseline: baseline.score)
    theirs = ways[rival.name]
    won = wins(scores, [row.judge for row in theirs])
    kept = name == "instruct"
    rate, rate_interval = (None, None) if kept else mean_interval(won)
    lengths = [[row.tokens for row in rows] for rows in ([row.deployed for row in after], theirs)]
    equal, equal_interval = (None, None) if kept else controlled(won, *lengths) or (None, None)
    plain, plain_interval = _gain(*([row.decodings[PLAIN].judge for row in rows] for rows in (after, before)))
    final = report.FinalVerdict(
        better=all(
            baseline.gain_interval[0] > 0 and surely(wins(scores, [row.judge for row in ways[called]]))
            for called, baseline in free.items()
        ), rival=rival.name,
        gain=rival.gain, gain_interval=rival.gain_interval, win_rate=rate, win_rate_interval=rate_interval,
        equal_length=equal, equal_length_interval=equal_interval,
        gain_at_temperature_1=plain, gain_at_temperature_1_interval=plain_interval,
        baselines=sorted(baselines.values(), key=lambda baseline: (not baseline.free, -baseline.score)),
        parts=paired_by_name(*([row.deployed.parts for row in rows] for rows in (before, after))),
        instructions=paired_by_name(*([row.deployed.instructions for row in rows] for rows in (before, after))),
        missed=[],
    )
    return final.model_copy(update={"missed": list(missed(recipe.goals, final, audits))})


def surely(won: Sequence[float]) -> bool:
    """Whether an exact test says "more often than not" of so few prompts that an interval by resampling is too narrow.

    Of more than these it is True: the interval decides.
    """
    return len(won) >= FEW or chance(won) <= 0.025


def _gain(after: Sequence[float], before: Sequence[float]) -> tuple[float, Interval]:
    return mean_interval([new - old for new, old in zip(after, before, strict=True)])


def missed(goals: Goals, final: report.FinalVerdict, audits: Sequence[report.AuditSummary]) -> Iterator[str]:
    """Each goal that was not reached, as a sentence with what was reached instead."""

    def shown(interval: Interval) -> str:
        return f"95% interval {interval[0]:.3f} to {interval[1]:.3f}"

    if goals.gain is not None and final.gain < goals.gain:
        yield (f"the champion's gain over {final.rival} is {final.gain:.3f} ({shown(final.gain_interval)}), and the "
               f"goal was {goals.gain:g}")
    elif goals.gain is not None and not final.better:
        over = final.decisive
        yield (f"the champion's gain over {over.name} is {over.gain:.3f} ({shown(over.gain_interval)}), which is not "
               "surely above zero, and the goal was that over each baseline that costs nothing")
    plain, interval = final.gain_at_temperature_1, final.gain_at_temperature_1_interval
    if goals.gain_at_temperature_1 is not None and (plain < goals.gain_at_temperature_1 or interval[0] <= 0):
        yield (f"the champion's gain over Instruct at temperature 1 is {plain:.3f} ({shown(interval)}), and the goal "
               f"was {goals.gain_at_temperature_1:g} with an interval above zero")
    if goals.equal_length is not None:
        rate, bounds = final.equal_length, final.equal_length_interval
        if rate is None or bounds is None:
            yield f"the win rate at equal length cannot be told, and the goal was {goals.equal_length:.0%}"
        elif rate < goals.equal_length or bounds[0] <= 0.5:
            yield (f"the win rate at equal length is {rate:.1%} (95% interval {bounds[0]:.1%} to {bounds[1]:.1%}), and "
                   f"the goal was {goals.equal_length:.0%} with an interval above one half")
    if not audits:
        return
    last = audits[-1]
    if goals.share_of_ceiling is not None and last.accuracy < (goal := goals.share_of_ceiling * (last.ceiling or 1.0)):
        yield f"the reward model's accuracy is {last.accuracy:.1%}, and the goal was {goal:.1%}"
    if goals.over_trivial is not None and last.baselines:
        rule, best = max(last.baselines.items(), key=lambda item: item[1])
        if round(last.accuracy - best, 9) < goals.over_trivial:  # 0.8 - 0.7 is no exact tenth
            yield (f"the reward model's accuracy is {100 * (last.accuracy - best):.1f} points over {rule!r}, the best "
                   f"trivial rule, and the goal was {100 * goals.over_trivial:g}")


def reward_order(family: Family, answers: Tests) -> report.RewardOrder | None:
    """Whether the released reward orders Base, Instruct and the champions as the judge does.

    It does not where of two models the judge surely prefers one and the reward surely the other, each by the interval
    of the difference on the same prompts: means that differ by chance say nothing.
    """
    champions = [f"round {round.number}" for round in family.rounds if round.promoted]
    tested = _tested(family)
    names = [name for name in (BASE, FEW_SHOT, "instruct", *champions) if name in tested]
    rewards = {name: reward for name in names if (reward := tested[name].reward) is not None}
    if len(names) < 2 or len(rewards) < len(names):
        return None
    by_judge = sorted(names, key=lambda name: tested[name].score)
    by_reward = sorted(names, key=lambda name: rewards[name])
    return report.RewardOrder(
        by_judge=by_judge, by_reward=by_reward,
        agree=not any(_contradicted(*_on_the_same_prompts(answers, *pair)) for pair in combinations(names, 2)),
    )


def _contradicted(one: Sequence[TestedPrompt], other: Sequence[TestedPrompt]) -> bool:
    """Whether judge and reward surely prefer another of two models."""
    _, judged = _gain([row.deployed.judge for row in other], [row.deployed.judge for row in one])
    _, rewarded = _gain([row.deployed.reward or 0.0 for row in other], [row.deployed.reward or 0.0 for row in one])
    return (judged[0] > 0 and rewarded[1] < 0) or (judged[1] < 0 and rewarded[0] > 0)


def sample(answers: Tests, most: int = SAMPLES, task: str | None = None) -> list[report.Sample]:
    """The first prompts with every model's answer.

    Args:
        task: whose they are; by default each prompt's own.
    """
    if not answers:
        return []
    first = next(iter(answers.values()))
    return [
        report.Sample(
            prompt="\n\n".join(text if role == "user" else f"[{role}] {text}" for role, text in row.prompt),
            task=task or row.task,
            answers=[
                report.SampleAnswer(model=name, text=other.deployed.answer, judge=other.deployed.judge,
                                    reward=other.deployed.reward)
                for name, rows in answers.items()
                for other in rows if other.key == row.key
            ],
        )
        for row in first[:most]
    ]


def release(
    recipe: Recipe, family: Family, artifacts: Sequence[Artifact[Result]], summary: report.Summary, folder: Path
) -> None:
    """Assembles the family beside its place and exchanges the two; the old one stays until the new one is whole."""
    base, instruct, champion, reward = family.base, family.instruct, family.champion, family.reward
    assert base
    assert instruct
    assert champion
    assert family.data
    dtype = getattr(torch, base.result.source_dtype)
    partial = folder.with_name("release.partial")
    shutil.rmtree(partial, ignore_errors=True)
    feedback = next((round.feedback for round in reversed(family.rounds) if round.feedback), None)
    trained_by = next((round for round in reversed(family.rounds) if round.promoted), None)
    origin = origin_of(base.result)
    learnt_text = base.result.trained_further or not origin
    lineage: dict[Role, Lineage] = {
        "base": Lineage(base.fingerprint, origin, _data(family.data, "text") if learnt_text else ()),
        "instruct": Lineage(
            champion.fingerprint,
            (Parent("base", base.digest), *(
                _reward_parents(trained_by) if trained_by and recipe.improve.method.needs_reward else ()
            )),
            _data(family.data, "demonstrations") + _learnt_in(recipe, family, trained_by),
        ),
    }
    models: dict[Role, Path] = {"base": base.folder / "model", "instruct": champion.folder / "model"}
    if reward:
        lineage["reward"] = Lineage(
            reward.fingerprint, _parents(reward), _learnt_by_reward(recipe, family.data, feedback),
        )
        models["reward"] = reward.folder if (reward.folder / DESCRIPTION).exists() else reward.folder / "model"
    assemble(
        partial, name=recipe.name, version=recipe.release.version, license=recipe.release.license,
        models=models, lineage=lineage, summary=summary, recipe=_recipe_digest(recipe),
        shown=_shown(family.data, feedback), language=recipe.release.language,
        datasets=sorted({
            dataset[0] for name in recipe.trained_on(text=learnt_text) if (dataset := dataset_name(name))
        }),
        decoding=family.decoding_of(champion, recipe.decoding), dtype=dtype, form=recipe.release.form,
        signing=recipe.release.sign, prompt=_better_prompt(family), tuned=base.result.tuned,
    )
    prove(artifacts)  # what was copied is what was written
    replace_folder(partial, folder)


def origin_of(base: BaseRecord) -> tuple[Parent, ...]:
    """What a Base was taken from, with the Hub's commit or a digest of its files; nothing of one trained here."""
    taken = base.source_digest
    return (Parent(base.source, taken, hub=base.source_kind == "hub"),) if taken else ()


def _better_prompt(family: Family) -> Path | None:
    """The file of the prompt that the released Instruct answers better than the prompt alone, on the test prompts."""
    search = family.prompts.get("instruct")
    rows = next((tested_prompts(test.artifact) for test in family.tests if test.round == 0), [])
    if search is None or family.champion_round or not rows or WITH_PROMPT not in rows[0].decodings:
        return None
    _, (low, _) = _gain([row.decodings[WITH_PROMPT].judge for row in rows], [row.deployed.judge for row in rows])
    return search / FOUND if low > 0 else None


def _is_released(family: Family, folder: Path) -> bool:
    """Whether the release in the folder is of this family's models."""
    made = {"base": family.base, "instruct": family.champion, "reward": family.reward}
    fingerprints = {role: artifact.fingerprint for role, artifact in made.items() if artifact}
    try:
        models = read_object(folder / "manifest.json")["models"]
        return {role: model["fingerprint"] for role, model in models.items()} == fingerprints
    except (RunError, TypeError, AttributeError):
        return False


def _learnt_in(recipe: Recipe, family: Family, round: Round | None) -> tuple[DataFile, ...]:
    """What a round's candidate itself was trained on: comparisons, thumbs, or prompts that it answered."""
    method = recipe.improve.method
    if round is None:
        return ()
    if method.needs_thumbs and (thumbs := round.thumbs or family.data):
        return _data(thumbs, "thumbs")
    if method.needs_comparisons and round.feedback:
        return _data(round.feedback, "comparisons_train")
    return _data(family.data, "prompts_improve") if family.data else ()


def _learnt_by_reward(
    recipe: Recipe, data: Artifact[Result], feedback: Artifact[Result] | None
) -> tuple[DataFile, ...]:
    """The comparisons and ratings that the released reward, or a part of it, was trained on."""
    needs = {material for part in recipe.reward.model.within for material in part.needs}
    compared = _data(feedback, "comparisons_train") if feedback and recipe.learner else ()
    return compared + (_data(data, "ratings_train") if "ratings" in needs else ())


def _reward_parents(round: Round) -> tuple[Parent, ...]:
    """The reward model that a round's candidate was improved against, if there is one."""
    return (Parent(f"reward, round {round.number}", round.reward.artifact.digest),) if round.reward else ()


def _parents(reward: Artifact[Result]) -> tuple[Parent, ...]:
    """What the released reward is, is made of, or started from: the champion of its round, an earlier reward model."""
    if isinstance(taken := reward.result, RewardTaken):
        return (Parent(taken.source, taken.digest, hub=taken.hub),)
    parents = reward.manifest["parents"]
    names = ["start"] if "start" in parents else sorted(parents)
    return tuple(Parent(parents[name]["stage"], parents[name]["digest"]) for name in names)


def _on_the_same_prompts(answers: Tests, *names: str) -> list[list[TestedPrompt]]:
    """The named models' rows; a prompt that one of them had no room for is left out of all."""
    models = [answers[name] for name in names]
    shared = set.intersection(*({row.key for row in rows} for rows in models))
    return [[row for row in rows if row.key in shared] for rows in models]


def _champion_name(family: Family) -> str:
    return f"round {number}" if (number := family.champion_round) else "instruct"


def _answers(tests: Sequence[ModelTest]) -> Tests:
    return {test.name: tested_prompts(test.artifact) for test in tests}


def _tested(family: Family) -> dict[str, Measurements]:
    return {test.name: test.artifact.result for test in family.tests}


def _base(record: BaseRecord) -> report.Base:
    return report.Base(
        source=record.source, parameters=record.parameters, vocabulary=record.vocabulary,
        bits_per_byte=record.bits_per_byte, tokens_seen=record.tokens_seen, domains=record.domains,
        revision=record.revision,
    )


def _model(test: ModelTest, family: Family, answers: Tests) -> report.ModelScore:
    measured = test.artifact.result
    return report.ModelScore(
        name=test.name, round=test.round, champion=test.name == _champion_name(family), decoding=measured.decoding,
        score=measured.score, interval=measured.interval, prompts=measured.prompts, decodings=measured.decodings,
        reward=measured.reward, kl=measured.kl, mean_length=measured.mean_length, by_task=measured.by_task,
        fewer_examples=measured.fewer_examples,
        beside_instruct=_tally(*_on_the_same_prompts(answers, test.name, "instruct"))
        if test.round and "instruct" in answers else None,
    )


def _tally(after: Sequence[TestedPrompt], before: Sequence[TestedPrompt]) -> report.Tally:
    won = wins(*([row.deployed.judge for row in rows] for rows in (after, before)))
    return report.Tally(better=won.count(1.0), worse=won.count(0.0), as_good=won.count(0.5))


def _task(task: TaskTest, answers: Tests, family: Family) -> report.TaskSummary:
    models = [_model(test, family, answers) for test in task.tests]
    alone = report.TaskSummary(name=task.name, scored_by=task.tests[0].artifact.result.judge, models=models)
    name = _champion_name(family)
    if name == "instruct":
        return alone
    shared = _on_the_same_prompts(answers, "instruct", name)
    before, after = ([row.deployed for row in rows] for rows in shared)
    if not before:
        return alone
    parts = paired_by_name(*([row.parts for row in rows] for rows in (before, after)))
    return alone.model_copy(update={
        "change": PairedScore.of([row.judge for row in before], [row.judge for row in after]),
        "parts": {part.removeprefix("judge/"): score for part, score in parts.items()},
        "instructions": paired_by_name(*([row.instructions for row in rows] for rows in (before, after))),
    })


def _benchmark(
    benchmark: HarnessBenchmark, family: Family, measured: Mapping[str, Artifact[BenchmarkMeasured]]
) -> report.BenchmarkSummary:
    models = {BASE: family.base, "instruct": family.instruct}
    models |= {f"round {round.number}": round.candidate for round in family.rounds}
    if family.base and family.instruct and family.base.digest == family.instruct.digest:
        del models[BASE]
    done = {name: measured[model.digest] for name, model in models.items() if model and model.digest in measured}
    scores = {name: benchmark_scores(artifact) for name, artifact in done.items()}
    first = next(iter(scores.values()))
    counts = chosen(first, benchmark.metric)

    def of_model(name: str, place: int) -> report.BenchmarkScore:
        score, before = scores[name][place], scores.get("instruct")
        compared = name not in (BASE, "instruct") and before is not None
        return report.BenchmarkScore(
            model=name, plain=not done[name].result.chat_template, champion=name == _champion_name(family),
            value=score.value, interval=score.interval,
            change=change(before[place], score) if compared and before else None,
        )

    def by_measure(place: int, score: HarnessScore) -> report.BenchmarkMeasure:
        return report.BenchmarkMeasure(
            measure=score.name, higher_is_better=score.higher_is_better is not False,
            scores=[of_model(name, place) for name in scores],
        )

    order = sorted(enumerate(first), key=lambda placed: placed[1].name != counts.name)
    return report.BenchmarkSummary(
        name=benchmark.name, documents=counts.documents, max_loss=benchmark.max_loss,
        measures=[by_measure(place, score) for place, score in order],
    )


def _reward_benchmarks(family: Family) -> Iterator[report.RewardBenchmarkSummary]:
    for place, round in enumerate(family.rounds):
        if place == 0 or round.reward is not family.rounds[place - 1].reward:
            for name, artifact in round.benchmarks.items():
                yield report.RewardBenchmarkSummary(name=name, round=round.number, scores=artifact.result)


def _audit(recipe: Recipe, number: int, reward: AuditedScorer) -> report.AuditSummary:
    """Of a reward that was audited; the number of its round, 0 for the gate's judge."""
    assert reward.audit
    made, evidence = reward.artifact.result, reward.evidence.result if reward.evidence else None
    return report.AuditSummary.of(
        reward.audit.result, round=number, trained_on=made.comparisons if isinstance(made, RewardTrained) else None,
        ceiling=evidence.ceiling if isinstance(evidence, Labelled) else None, required=recipe.reward.audit.required,
    )


def _round(made: Round, gate: Decided, candidate: Artifact[Improved]) -> report.RoundSummary:
    scores = {row["step"]: row for row in read_curve(candidate / "validation.jsonl")}

    def interval(step: float, scorer: str) -> Interval | None:
        values = scores.get(step, {}).get(scorer)
        return mean_interval(values)[1] if values else None

    curve = [
        report.Point(
            step=int(row["step"]), kl=row["validation_kl"], reward=row.get("validation_reward"),
            loss=row.get("validation_loss"), margin=row.get("validation_margin"),
            judge=row.get("validation_judge"), length=row["validation_length"], entropy=row.get("entropy"),
            reward_interval=interval(row["step"], "reward"), judge_interval=interval(row["step"], "judge"),
        )
        for row in read_curve(candidate / "curve.jsonl") if "validation_kl" in row
    ]
    improved = candidate.result
    turning = improved.overoptimisation
    assert gate.kl is not None, "only of files that others wrote there is no model to measure it by"
    return report.RoundSummary(
        round=made.number, curve=curve, method=improved.method, kept=improved.kept, watched_by=improved.watched_by,
        validation_prompts=next((len(values) for row in scores.values() for values in row.values()
                                 if isinstance(values, list)), None), alarms=list(improved.alarms),
        overoptimisation=report.OveroptimisationSummary(
            alpha=turning.alpha, beta=turning.beta, peak=turning.peak, interval=turning.interval,
            residual=turning.residual,
        ) if turning else None,
        reward_before=gate.reward_before if made.reward else None,
        reward_after=gate.reward_after if made.reward else None,
        judge_before=gate.judge_before, judge_after=gate.judge_after,
        win_rate=gate.win_rate, interval=gate.interval, level=gate.level, p_value=gate.p_value,
        prompts=gate.prompts, prompts_again=gate.prompts_again,
        decoding_before=gate.decoding_before, decoding_after=gate.decoding_after, kl=gate.kl,
        length_before=gate.length_before, length_after=gate.length_after,
        cut_before=gate.cut_before, cut_after=gate.cut_after,
        length_controlled=gate.length_controlled, length_controlled_interval=gate.length_controlled_interval,
        bits_before=gate.bits_before, bits_after=gate.bits_after, tasks=gate.tasks,
        decided_by=gate.decided_by, judge_win_rate=gate.judge_win_rate, judge_interval=gate.judge_interval,
        agreement=gate.agreement, agreement_prompts=gate.agreement_prompts, people=gate.people, parts=gate.parts,
        instructions=gate.instructions, preferences=gate.preferences, benchmarks=gate.benchmarks,
        decision=gate.decision, reason=gate.reason,
        diagnosis=_diagnosis(made.diagnosis.result) if made.diagnosis else None,
    )


def _diagnosis(diagnosed: Diagnosed) -> report.DiagnosisSummary:
    return report.DiagnosisSummary(
        blamed=diagnosed.headline, because=diagnosed.because, answers=diagnosed.answers, passed=diagnosed.passed,
        passed_taught=diagnosed.passed_taught, ranked=diagnosed.ranked, reward=diagnosed.reward, judge=diagnosed.judge,
    )


def _unit(trained: Result) -> str:
    """What the losses of a training are means over."""
    if isinstance(trained, Improved):
        return next(method.unit for method in METHODS if method.name() == trained.method)
    if isinstance(trained, RewardTrained):
        return "rows" if trained.ratings else "pairs"
    return "tokens"


def _losses(artifact: Artifact[Result]) -> list[report.LossPoint]:
    rows = [row for row in read_curve(artifact.folder / "curve.jsonl") if math.isfinite(row.get("loss", math.nan))]
    return [report.LossPoint(step=int(row["step"]), loss=row["loss"], seen=int(row["seen"]))
            for row in thinned(rows, POINTS)]


def _data(artifact: Artifact[Result], *names: str) -> tuple[DataFile, ...]:
    """The artifact's files of these names; the user's own files stand for what was split from them."""
    files = artifact.manifest["files"]
    return tuple(
        DataFile(path.name, files[path.name]["sha256"], _count(path))
        for path in (DataFolder(artifact.folder).named(name).path for name in names) if path.name in files
    )


def _shown(data: Artifact[Result], feedback: Artifact[Result] | None) -> Shown:
    """A few things that no model has seen; by what comes of them a user sees that a model was loaded rightly.

    Where every comparison was trained on, as under cross-fitting, some of these are shown.
    """
    files = DataFolder(data.folder)
    brief = [
        prompt for prompt in files.prompts("test").read_any()
        if not prompt.tools and _letters(prompt.messages) <= BRIEF
    ]
    texts = files.text("heldout").read_any()[:1]
    compared = DataFolder(feedback.folder) if feedback else None
    heldout = compared.comparisons("heldout").read_any() if compared else []
    rows = heldout or (compared.comparisons("train").read_any() if compared else [])
    first = sorted(rows[:SAMPLES], key=lambda row: _letters(row.prompt.messages) > BRIEF)[:4]
    return Shown(" ".join(texts[0].text.split()[:OPENING]) if texts else None, brief[:2], first, bool(heldout))


def _letters(messages: Messages) -> int:
    return sum(len(message.content) for message in messages)


def _recipe_digest(recipe: Recipe) -> str:
    # Where a key lies, and who watches, changes nothing.
    content = recipe.model_dump(mode="json", exclude={"release": {"sign"}, "tracker": True})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _count(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)
