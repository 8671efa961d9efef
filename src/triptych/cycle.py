"""The process itself: stages, their edges, the rounds.

Each stage reads the artifacts of others and leaves one of its own; stages never import each other, and meet only here
and in the rooms of what is made of several: what a round learns from, its reward with its audit, how a model is
decoded. What is done already is found by its fingerprint and not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.base.continuing import continue_pretraining
from triptych.base.pretrained import BaseImport, import_base, require_reward_head
from triptych.base.pretraining import pretrain
from triptych.base.record import BaseRecord
from triptych.benchmarks import bounded_benchmarks, budgets, measure_benchmarks, measure_rewards, open_benchmarks
from triptych.collection import collect_comparisons, collect_thumbs
from triptych.dataset.preparation import prepare_data
from triptych.dataset.tasks import prepare_task
from triptych.deployment import deployed, watcher
from triptych.engine.scoring import Scorer
from triptych.evaluate.answers import QUESTIONS, answer
from triptych.evaluate.diagnosis import diagnose
from triptych.evaluate.gate import decide
from triptych.evaluate.measurement import Measurements, measure
from triptych.evaluate.prompting import PromptFound, search_prompt
from triptych.family import BASE, Family, ModelTest, Round, Start, TaskTest
from triptych.improve.checkpoints import Limits
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import finetune
from triptych.people.attendance import Attendance
from triptych.people.questions import ask
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.call import StageCall
from triptych.pipeline.plan import Planner
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import UserFiles
from triptych.recipe import Recipe, Task, TrainedBase
from triptych.references import require_references
from triptych.release.signature import check_signing
from triptych.reward.judge import JudgeReward
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import scorer_of
from triptych.reward.remote import RemoteReward
from triptych.reward.taken import TakenReward
from triptych.reward.taking import take_rewards
from triptych.rewards import evidence_of, make_audited, require, require_taken, require_unseen
from triptych.storybook.judge import ExactJudge
from triptych.storybook.world import write_world


def plan(recipe: Recipe) -> list[StageCall[Any]]:
    """Every stage of the recipe's cycle, in order, where each candidate is promoted; nothing is computed or read."""
    planner = Planner(seed=recipe.seed)
    cycle(recipe, planner, Family())
    return planner.plan


def cycle(recipe: Recipe, runner: Runner, family: Family) -> None:
    """Runs the whole cycle; `family` holds what was made, also where the run stops on the way.

    Raises:
        AuditError: a reward model failed its audit, and the recipe requires it to pass.
        WaitingError: people decide at a gate, and have not answered all of its questions.
        ReleaseError: the release could not be signed as the recipe asks.
    """
    start = begin(recipe, runner, family)
    measure_benchmarks(recipe, runner, family, "instruct", start.instruct)
    for number in range(1, max(1, recipe.improve.rounds) + 1):
        ask_people(recipe, runner, family, start, number)
        family.rounds.append(current := Round(number))
        reward_of_round(recipe, runner, family, start, current)
        if recipe.improve.rounds:  # else the first round ends with its reward
            improve_and_gate(recipe, runner, family, start, current)
            find_blame(recipe, runner, family, start, current)
        if current.promoted:
            family.champion = current.candidate
    ask_people(recipe, runner, family, start, len(family.rounds) + 1)
    measure_all(recipe, runner, family, start)
    for task, test in zip(recipe.evaluate.tasks, family.tasks, strict=True):
        measure_task(recipe, runner, family, start, task, test)


def begin(recipe: Recipe, runner: Runner, family: Family) -> Start:
    """Data, Base and Instruct, which is the first champion; and the judge."""
    if (signing := recipe.release.sign) is not None:
        runner.outside(lambda: check_signing(signing), planned=None)
    runner.outside(lambda: require_taken(recipe), planned=None)
    runner.outside(lambda: require_references(recipe), planned=None)
    family.asked = runner.outside(lambda: open_benchmarks(recipe), planned={})
    family.data = data = prepare(recipe, runner)
    runner.outside(lambda: require_unseen(recipe, data, runner.progress), planned=None)
    family.tasks = [prompts_of(recipe, runner, task, data) for task in recipe.evaluate.tasks]
    family.base = base = make_base(recipe, runner, data)
    if recipe.trains_reward and not isinstance(recipe.base, TrainedBase):
        taken_from = recipe.base.from_.name
        runner.outside(lambda: require_reward_head(base.folder, taken_from), planned=None)
    if recipe.finetuning:  # else the two are one; what a benchmark asks of a model that it cannot is known here
        measure_benchmarks(recipe, runner, family, "base", base, chat_template=base.result.tuned)
    taken = take_rewards(runner, recipe.taken, base)
    family.instruct = instruct = make_instruct(recipe, runner, data, base)
    family.champion = instruct
    family.judge = judge = independent_judge(recipe, runner, family, data, base, instruct, taken)
    preferences = guard(recipe, runner, family, data, base, instruct)
    return Start(data, base, instruct, judge, preferences, taken)


def prepare(recipe: Recipe, runner: Runner) -> Artifact[Result]:
    """The world that is written, or the user's files."""
    if recipe.storybook is not None:
        return runner.run("data", write_world, recipe.storybook)
    return runner.run("data", prepare_data, recipe.preparation, UserFiles(recipe.sources))


def prompts_of(recipe: Recipe, runner: Runner, task: Task, data: Artifact[Result]) -> TaskTest:
    """A task's prompts, read before anything is trained."""
    files = UserFiles({task.file.name: task.place})
    return TaskTest(task.name, runner.run(task.stage, prepare_task, recipe.preparation_of(task), files, data=data))


def make_base(recipe: Recipe, runner: Runner, data: Artifact[Result]) -> Artifact[BaseRecord]:
    """A Base trained from scratch, or taken from others, and then perhaps trained further."""
    origin = recipe.base
    weighed = {} if origin.weights is None else {"weights": origin.weights}
    if isinstance(origin, TrainedBase):
        return runner.run("base", pretrain, origin.train, data=data, **weighed)
    sources = UserFiles({origin.from_.name: origin.from_.path})
    template = origin.chat_template
    if template and template.path.suffix == ".jinja":
        sources[template.name] = template.path
    config = BaseImport(
        name=origin.from_.name, chat_template=template.name if template else None, template=origin.template,
        tokens=origin.tokens, quantization=origin.quantization,
        measured=origin.train is None,
    )
    if origin.train is None:
        return runner.run("base", import_base, config, data=data, sources=sources)
    taken = runner.run("base/taken", import_base, config, data=data, sources=sources)
    return runner.run(
        "base", continue_pretraining, origin.train, base=taken, origin=taken.result, data=data, **weighed
    )


def make_instruct(
    recipe: Recipe, runner: Runner, data: Artifact[Result], base: Artifact[Result]
) -> Artifact[Result]:
    """The Base fine-tuned on instructions, or the Base itself."""
    if recipe.finetuning is None:
        return base
    return runner.run("instruct", finetune, recipe.finetuning, base=base, data=data)


def independent_judge(
    recipe: Recipe, runner: Runner, family: Family, data: Artifact[Result], base: Artifact[Result],
    instruct: Artifact[Result], taken: Mapping[str, Artifact[Result]],
) -> Scorer:
    """The exact judge, rules, a language model, or a second reward model.

    That is trained on comparisons that the first never sees, or was made elsewhere.
    """
    config = recipe.gate.judging
    if config is None:
        return ExactJudge()
    materials = Materials(base, instruct, data, data, share="judge") if config.needs else Materials(taken=taken)
    reader, evidence = f"the gate's {config.kind}", materials.comparisons
    if config.needs:
        reader = "second reward model"
    elif isinstance(config, TakenReward | RemoteReward):
        reader = config.from_.name if isinstance(config, TakenReward) else config.endpoint.model
        evidence = data if recipe.comparison_files else None
    family.judging = judging = make_audited(
        recipe, runner, "judge", config, materials, evidence, audit_name="judge/audit", reader=reader,
    )
    require(judging.audit, recipe.reward.audit, runner.progress)
    return judging.scorer


def guard(
    recipe: Recipe, runner: Runner, family: Family, data: Artifact[Result], base: Artifact[Result],
    instruct: Artifact[Result],
) -> Scorer | None:
    """A reward model on comparisons that the first never sees, which the candidate may not lose by; None for none."""
    if (second := recipe.gate.preferences) is None:
        return None
    materials = Materials(base, instruct, data, data, share="judge")
    family.preferences = made = make_audited(
        recipe, runner, "preferences", second.model, materials, materials.comparisons, audit_name="preferences/audit",
        reader="reward model trained apart",
    )
    require(made.audit, recipe.reward.audit, runner.progress)
    return made.scorer


def ask_people(recipe: Recipe, runner: Runner, family: Family, start: Start, number: int) -> None:
    """Has the champion write what people may compare for a round; the run's questions.jsonl is the newest."""
    if recipe.asking is None:
        return
    asked = runner.run(
        f"round-{number}/questions", ask, recipe.asking, data=start.data, author=family.champion or start.instruct,
        round=number, reward=family.scorer,
    )
    runner.outside(lambda: Attendance(runner.folder, runner.progress).ask(asked), planned=None)


def reward_of_round(recipe: Recipe, runner: Runner, family: Family, start: Start, current: Round) -> None:
    """What a round learns from, its reward, and the audit that this must pass; no reward where the recipe has none.

    Where nothing is new that the reward comes from, it is that of the round before.
    """
    config, champion, name = recipe.reward.model, family.champion or start.instruct, f"round-{current.number}"
    earlier = family.rounds[-2] if current.number > 1 else None
    current.feedback = collect_comparisons(recipe, runner, current.number, champion, start, earlier)
    current.thumbs = collect_thumbs(recipe, runner, current, start, earlier)
    if not recipe.rewarded:
        return
    before = earlier.reward if earlier else None
    if earlier and current.feedback is earlier.feedback and not config.asks_policy:
        current.reward = before
    else:
        parts = before.parts if before else None
        materials = Materials(
            start.base, champion, start.data, current.feedback, before=parts, taken=start.taken
        )
        current.reward = make_audited(
            recipe, runner, f"{name}/reward", config, materials,
            evidence_of(recipe, runner, start.data, current.feedback), audit_name=f"{name}/audit", predecessor=before,
        )
    require(current.reward.audit if current.reward else None, recipe.reward.audit, runner.progress)
    if earlier and current.reward is before:
        current.benchmarks = earlier.benchmarks
    else:
        measure_rewards(recipe, runner, start, current)


def improve_and_gate(
    recipe: Recipe, runner: Runner, family: Family, start: Start, current: Round, name: str | None = None
) -> None:
    """The champion improved against the round's reward, the two's answers, and what the gate says of them.

    Args:
        name: that the stages begin with; by default the round's.

    Raises:
        WaitingError: people decide, and have not answered every question.
    """
    compared, name = name is not None, name or f"round-{current.number}"
    champion, data, config = family.champion or start.instruct, start.data, recipe.improve.method
    reward = current.reward.scorer if current.reward else None
    champion_decoding = deployed(recipe, runner, family, start, champion, "decoding/instruct", reward)
    watching, bounds = watcher(recipe, start.judge, reward), recipe.gate.decision
    current.candidate = candidate = runner.run(
        f"{name}/improve", improve, config, champion=champion, data=data, reward=reward,
        judge=None if watching is reward else watching, round=current.number,
        limits=Limits(bounds.max_kl, bounds.min_length_ratio, bounds.max_length_ratio),
        feedback=current.thumbs if config.needs_thumbs else current.feedback if config.needs_comparisons else None,
    )
    candidate_decoding = deployed(recipe, runner, family, start, candidate, f"{name}/decoding", reward)
    current.answers = answers = runner.run(
        f"{name}/answers", answer, recipe.gate.answering, candidate=candidate, champion=champion, data=data,
        candidate_decoding=candidate_decoding, champion_decoding=champion_decoding, round=current.number,
    )
    measure_benchmarks(recipe, runner, family, name, candidate, bounded=compared)
    verdicts = None
    if (people := recipe.gate.people) is not None:
        panel = Attendance(runner.folder, runner.progress)
        verdicts = UserFiles({people.name: runner.outside(
            lambda: panel.verdicts(people.path, f"{name}/gate", answers / QUESTIONS, recipe.gate.annotation),
            planned=people.path,
        )})
    current.gate = gate = runner.run(
        f"{name}/gate", decide, recipe.gate.decision, answers=answers, measured=answers.result, reward=reward,
        judge=start.judge, failures=family.failures(current), preferences=start.preferences, sources=verdicts,
        budgets=budgets(recipe), **bounded_benchmarks(recipe, family, champion, candidate),
    )
    if gate.result.people:
        runner.progress.say(gate.result.people.sentence)
    if not compared and current.number == 1 and runner.outside(runner.ledger.compared, planned=False):
        runner.progress.say(
            "note: methods were compared on these prompts of the gate before. Where one was chosen by that, the gate's "
            "chance of error is larger than it says; the test prompts chose nothing"
        )
    runner.progress.say(f"{gate.result.decision}: {gate.result.reason}")


def find_blame(recipe: Recipe, runner: Runner, family: Family, start: Start, current: Round) -> None:
    """What a round failed by that was not promoted, where the recipe asks and there is a reward."""
    if current.promoted or current.gate is None or current.reward is None or recipe.diagnosis is None:
        return
    current.diagnosis = runner.run(
        f"round-{current.number}/diagnosis", diagnose, recipe.diagnosis, champion=family.champion or start.instruct,
        data=start.data, gate=current.gate, decided=current.gate.result, reward=current.reward.scorer,
        judge=start.judge, decoding=recipe.decoding.at(1.0), absolute=not compares(recipe),
    )


def measure_all(recipe: Recipe, runner: Runner, family: Family, start: Start) -> None:
    """Every model on the test prompts: the Base, Instruct, each round's candidate."""
    config, data, judge = recipe.evaluate.measurement, start.data, start.judge
    reward = family.scorer
    if not recipe.improve.rounds:
        deployed(recipe, runner, family, start, start.instruct, "decoding/instruct", reward)
    rival: Artifact[Measurements] | None = None

    def measure_base() -> ModelTest:  # it is likeliest to end in time where it is greedy
        base = runner.run(
            "test/base", measure, config, model=start.base, data=data, judge=judge, decoding=recipe.decoding.at(0.0),
            reward=reward, style=start.style,
            prompting=prompt_of(recipe, runner, family, start, BASE) if start.style == "chat" else None, beside=rival,
        )
        return ModelTest(start.base_name, None, base)

    if recipe.finetuning and not compares(recipe):  # else the two are one, or it is compared with Instruct
        family.tests.append(measure_base())
    for name, number, model in tuned(family, start):
        measured = runner.run(
            f"test/{name.replace(' ', '-')}", measure, config, model=model, data=data, judge=judge,
            decoding=family.decoding_of(model, recipe.decoding), reference=start.instruct, reward=reward,
            best_of=config.best_of if number == 0 else 0,
            prompting=prompt_of(recipe, runner, family, start, name) if number == 0 else None, beside=rival,
        )
        family.tests.append(ModelTest(name, number, measured))
        if number == 0 and compares(recipe):
            rival = measured
            if recipe.finetuning:
                family.tests.insert(0, measure_base())


def compares(recipe: Recipe) -> bool:
    """Whether who decides says only which of two answers is better."""
    return isinstance(recipe.gate.judge, JudgeReward) and recipe.gate.judge.ask == "compare"


def prompt_of(
    recipe: Recipe, runner: Runner, family: Family, start: Start, name: str
) -> Artifact[PromptFound] | None:
    """The prompt that the Base or Instruct answers best, where one is searched for; a rival that costs nothing."""
    if recipe.prompting is None:
        return None
    model: Artifact[Result] = start.base if name == BASE else start.instruct
    chooser = watcher(recipe, start.judge, family.scorer)
    assert chooser, "a recipe where nobody may choose searches for no prompt"
    decoding = recipe.decoding.at(0.0) if name == BASE else family.decoding_of(model, recipe.decoding)
    family.prompts[name] = runner.run(
        f"prompting/{name}", search_prompt, recipe.prompting, model=model, data=start.data, decoding=decoding,
        chooser=chooser,
        sources=UserFiles(recipe.reflecting_model),
    )
    return family.prompts[name]


def measure_task(recipe: Recipe, runner: Runner, family: Family, start: Start, task: Task, test: TaskTest) -> None:
    """Every model on a task's prompts, as it is deployed, scored by the task's own rules."""
    # How many test prompts there are, and how many answers to them, changes nothing here.
    config = recipe.evaluate.measurement.model_copy(update={"prompts": None, "best_of": 0})
    reward = make_reward(runner, f"{task.stage}/rules", task.score, Materials())[""]
    rules = scorer_of(runner, task.score, reward, None, ", ".join(rule.name or rule.rule for rule in task.score.rules))
    if recipe.finetuning:
        base = runner.run(
            f"{task.stage}/base", measure, config, model=start.base, data=test.prompts, judge=rules,
            decoding=recipe.decoding.at(0.0), style=start.style, only_deployed=True,
        )
        test.tests.append(ModelTest(start.base_name, None, base))
    for name, number, model in tuned(family, start):
        measured = runner.run(
            f"{task.stage}/{name.replace(' ', '-')}", measure, config, model=model, data=test.prompts, judge=rules,
            decoding=family.decoding_of(model, recipe.decoding), only_deployed=True,
        )
        test.tests.append(ModelTest(name, number, measured))


def tuned(family: Family, start: Start) -> list[tuple[str, int, Artifact[Result]]]:
    """Instruct and each round's candidate, with names and rounds."""
    candidates = [(round.number, round.candidate) for round in family.rounds if round.candidate]
    return [("instruct", 0, start.instruct), *((f"round {number}", number, model) for number, model in candidates)]
