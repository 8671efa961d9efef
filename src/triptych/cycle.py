"""The process itself: stages, their edges, the rounds.

Each stage reads the artifacts of others and leaves one of its own; stages never import each other, and meet
only here. What is done already is found by its fingerprint and not done again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.audit.record import AuditRecord
from triptych.audit.stage import audit
from triptych.base.pretrained import BaseImport, import_base
from triptych.base.pretraining import pretrain
from triptych.base.record import BaseRecord
from triptych.data.separation import exposed
from triptych.dataset.preparation import prepare_data
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.errors import AuditError
from triptych.evaluate.answers import QUESTIONS, answer
from triptych.evaluate.decoding import choose
from triptych.evaluate.gate import decide
from triptych.evaluate.measurement import measure
from triptych.family import Family, ModelTest, Round, Start
from triptych.feedback.labelling import label
from triptych.feedback.rated import RatingWeights, imply
from triptych.improve.checkpoints import Limits
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import finetune
from triptych.people.attendance import Attendance
from triptych.people.inbox import PeopleLabelling, add_comparisons, add_thumbs
from triptych.people.questions import Form, ask
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.call import StageCall
from triptych.pipeline.plan import Planner
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import UserFiles
from triptych.progress import Progress
from triptych.recipe import Recipe, RequiredAudit
from triptych.references import require_references
from triptych.release.signature import check_signing
from triptych.reward.crossfitting import cross_fit
from triptych.reward.judge import JudgeReward
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import scorer_of
from triptych.reward.rules import RulesReward
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
    for number in range(1, recipe.improve.rounds + 1):
        ask_people(recipe, runner, family, start, number)
        family.rounds.append(this := Round(number))
        reward_of_round(recipe, runner, family, start, this)
        improve_and_gate(recipe, runner, family, start, this)
        if this.promoted:
            family.champion = this.candidate
    ask_people(recipe, runner, family, start, recipe.improve.rounds + 1)
    measure_all(recipe, runner, family, start)


def begin(recipe: Recipe, runner: Runner, family: Family) -> Start:
    """Data, Base and Instruct, which is the first champion; and the judge."""
    if (signing := recipe.release.sign) is not None:
        runner.outside(lambda: check_signing(signing), planned=None)
    runner.outside(lambda: require_references(recipe), planned=None)
    family.data = data = prepare(recipe, runner)
    family.base = base = make_base(recipe, runner, data)
    family.instruct = instruct = runner.run("instruct", finetune, recipe.instruct.finetuning, base=base, data=data)
    family.champion = instruct
    family.judge = judge = independent_judge(recipe, runner, family, data, base, instruct)
    return Start(data, base, instruct, judge)


def prepare(recipe: Recipe, runner: Runner) -> Artifact[Result]:
    """The world that is written, or the user's files."""
    if recipe.storybook is not None:
        return runner.run("data", write_world, recipe.storybook)
    return runner.run("data", prepare_data, recipe.preparation, UserFiles(recipe.sources))


def make_base(recipe: Recipe, runner: Runner, data: Artifact[Result]) -> Artifact[BaseRecord]:
    """A Base trained from scratch, or taken from others."""
    if recipe.base.train is not None:
        return runner.run("base", pretrain, recipe.base.train, data=data)
    assert recipe.base.from_ is not None
    taken, template = recipe.base.from_, recipe.base.chat_template
    sources = UserFiles({taken.name: taken.path})
    if template and template.path.suffix == ".jinja":
        sources[template.name] = template.path
    config = BaseImport(name=taken.name, chat_template=template.name if template else None)
    return runner.run("base", import_base, config, data=data, sources=sources)


def independent_judge(
    recipe: Recipe, runner: Runner, family: Family, data: Artifact[Result], base: Artifact[Result],
    instruct: Artifact[Result],
) -> Scorer:
    """The exact judge, rules, a language model, or a second reward model on comparisons the first never sees."""
    chosen = recipe.gate.judge
    if isinstance(chosen, str):
        return ExactJudge()
    if isinstance(chosen, RulesReward | JudgeReward):
        family.judge_model = made = make_reward(runner, "judge", chosen, Materials())[""]
        return scorer_of(runner, chosen, made, None, f"the gate's {chosen.kind}")
    config = chosen.model
    exposes = runner.outside(lambda: exposed(data, data, "judge"), planned=False)
    materials = Materials(base, instruct, data, data, share="judge", exposed=exposes)
    family.judge_model = model = make_reward(runner, "judge", config, materials)[""]
    judge = scorer_of(runner, config, model, None, "second reward model")
    folds = cross_fit(runner, "judge", config, materials, recipe.splits.cross_fit)
    family.judge_audit = audited = runner.run(
        "judge/audit", audit, recipe.reward.audit.checks, comparisons=data, reward=judge,
        share="judge_heldout", **folds.scorers,
    )
    require(audited, recipe.reward.audit, runner.progress)
    return judge


def ask_people(recipe: Recipe, runner: Runner, family: Family, start: Start, number: int) -> None:
    """Has the champion write what people may compare for a round; the run's questions.jsonl is the newest."""
    if recipe.asking is None:
        return
    asked = runner.run(
        f"round-{number}/questions", ask, recipe.asking, data=start.data, author=family.champion or start.instruct,
        round=number, reward=family.rounds[-1].scorer if family.rounds else None,
    )
    runner.outside(lambda: Attendance(runner.folder, runner.progress).ask(asked), planned=None)


def reward_of_round(recipe: Recipe, runner: Runner, family: Family, start: Start, this: Round) -> None:
    """A round's comparisons, its reward, and the audit that this must pass.

    Where nothing is new that they come from, they are those of the round before.
    """
    config, champion = recipe.reward.model, family.champion or start.instruct
    earlier = family.rounds[-2] if this.number > 1 else None
    this.feedback = collect(recipe, runner, this.number, champion, start, earlier)
    this.thumbs = collect_thumbs(recipe, runner, this, start, earlier)
    if earlier and this.feedback is earlier.feedback and not config.asks_policy:
        this.reward, this.rewards, this.scorer = earlier.reward, earlier.rewards, earlier.scorer
        this.evidence, this.audit, this.folds = earlier.evidence, earlier.audit, earlier.folds
    else:
        compared = this.feedback
        exposes = compared is not None and runner.outside(lambda: exposed(start.data, compared, "train"), planned=False)
        before = earlier.rewards if earlier else None
        materials = Materials(start.base, champion, start.data, compared, exposed=exposes, before=before)
        this.rewards = make_reward(runner, f"round-{this.number}/reward", config, materials)
        this.reward = this.rewards[""]
        this.scorer = scorer_of(runner, config, this.reward, champion)
        this.evidence = this.feedback
        if config.implying and not recipe.compared:
            rated = runner.run("round-1/rated", imply, RatingWeights(weights=dict(config.implying)), data=start.data)
            this.evidence = rated if rated.result.heldout else None
        this.folds = cross_fit(
            runner, f"round-{this.number}/reward", config, materials, recipe.splits.cross_fit,
            earlier=earlier.folds if earlier else None,
        )
        if this.evidence:
            this.audit = runner.run(
                f"round-{this.number}/audit", audit, recipe.reward.audit.checks, comparisons=this.evidence,
                reward=this.scorer, share="heldout", predecessor=earlier.scorer if earlier else None,
                **this.folds.scorers,
            )
    if this.audit:
        require(this.audit, recipe.reward.audit, runner.progress)


def collect(
    recipe: Recipe, runner: Runner, number: int, champion: Artifact[Result], start: Start, earlier: Round | None
) -> Artifact[Result] | None:
    """The comparisons of a round: those from files, and new ones of what the champion writes; None without any."""
    before = earlier.feedback if earlier else start.data if recipe.comparison_files else None
    thumbs = earlier.thumbs if earlier else None
    if recipe.people_give == "comparisons":
        given = take_from_people(recipe, runner, "comparisons", number, required=before is None)
        return before if given is None else runner.run(
            f"round-{number}/feedback", add_comparisons, labelling_of_people(recipe), data=start.data, sources=given,
            earlier=before, thumbs=thumbs,
        )
    if (labelling := recipe.labelling) is None:
        return before
    judge = start.judge
    if (by := recipe.labeller) is not None:
        made = make_reward(runner, f"round-{number}/labeller", by, Materials(champion=champion))[""]
        judge = scorer_of(runner, by, made, champion, "a language model")
    return runner.run(
        f"round-{number}/feedback", label, labelling, data=start.data, author=champion, judge=judge, round=number,
        earlier=before, thumbs=thumbs, cross_fit=recipe.splits.cross_fit is True,
    )


def collect_thumbs(
    recipe: Recipe, runner: Runner, this: Round, start: Start, earlier: Round | None
) -> Artifact[Result] | None:
    """The thumbs up to a round, those from files and people's own; None where people gave none."""
    before = earlier.thumbs if earlier else None
    if recipe.people_give != "thumbs":
        return before
    required = before is None and not recipe.thumb_files
    given = take_from_people(recipe, runner, "thumbs", this.number, required)
    return before if given is None else runner.run(
        f"round-{this.number}/thumbs", add_thumbs, labelling_of_people(recipe), data=start.data, sources=given,
        earlier=before or (start.data if recipe.thumb_files else None), comparisons=this.feedback,
    )


def take_from_people(recipe: Recipe, runner: Runner, form: Form, number: int, required: bool) -> UserFiles | None:
    """What people added for a round; None where it is nothing.

    Raises:
        RunError: it is nothing, and there is no other feedback of that form.
    """
    file = recipe.people
    assert file is not None
    planned: Path | None = file.path
    people = Attendance(runner.folder, runner.progress)
    taken = runner.outside(lambda: people.feedback(form, file.path, number, recipe.wrong_rows, required), planned)
    return None if taken is None else UserFiles({file.name: taken})


def labelling_of_people(recipe: Recipe) -> PeopleLabelling:
    """What becomes of what people say."""
    splits = recipe.splits
    return PeopleLabelling(heldout=splits.heldout, cross_fit=splits.cross_fit, wrong_rows=recipe.wrong_rows)


def improve_and_gate(
    recipe: Recipe, runner: Runner, family: Family, start: Start, this: Round, name: str | None = None
) -> None:
    """The champion improved against the round's reward, the two's answers, and what the gate says of them.

    Args:
        name: that the stages begin with; by default the round's.

    Raises:
        WaitingError: people decide, and have not answered every question.
    """
    name = name or f"round-{this.number}"
    champion, data, reward, config = family.champion or start.instruct, start.data, this.scorer, recipe.improve.method
    assert reward, "a round's reward comes before its candidate"
    champion_decoding = deployed(recipe, runner, family, start, champion, "decoding/instruct", this)
    watching, bounds = watcher(recipe, start.judge, reward), recipe.gate.decision
    this.candidate = candidate = runner.run(
        f"{name}/improve", improve, config, champion=champion, data=data, reward=reward,
        judge=None if watching is reward else watching, round=this.number,
        limits=Limits(bounds.max_kl, bounds.min_length_ratio, bounds.max_length_ratio),
        feedback=this.thumbs if config.needs_thumbs else this.feedback if config.needs_comparisons else None,
    )
    candidate_decoding = deployed(recipe, runner, family, start, candidate, f"{name}/decoding", this)
    this.answers = answers = runner.run(
        f"{name}/answers", answer, recipe.gate.answering, candidate=candidate, champion=champion, data=data,
        candidate_decoding=candidate_decoding, champion_decoding=champion_decoding, round=this.number,
    )
    verdicts = None
    if (people := recipe.gate.people) is not None:
        panel = Attendance(runner.folder, runner.progress)
        verdicts = UserFiles({people.name: runner.outside(
            lambda: panel.verdicts(people.path, f"{name}/gate", answers / QUESTIONS), planned=people.path
        )})
    this.gate = gate = runner.run(
        f"{name}/gate", decide, recipe.gate.decision, answers=answers, measured=answers.result, reward=reward,
        judge=start.judge, failures=family.failures(this), sources=verdicts,
    )
    runner.progress.say(f"{gate.result.decision}: {gate.result.reason}")


def watcher(recipe: Recipe, judge: Scorer, reward: Scorer | None) -> Scorer:
    """Who may watch and choose before the gate, where whoever decides may have chosen nothing.

    The exact judge and rules hold on any prompts, and the validation prompts are not the gate's. A learned judge and a
    language model err in ways that a choice by them would find, so the round's reward watches in their place; unless
    people decide, beside whom the judge is another one.
    """
    sound = recipe.gate.judge == "exact" or isinstance(recipe.gate.judge, RulesReward)
    return judge if sound or recipe.gate.people is not None or reward is None else reward


def deployed(
    recipe: Recipe, runner: Runner, family: Family, start: Start, model: Artifact[Result], name: str,
    this: Round | None = None,
) -> Sampling:
    """How a model is decoded; where the recipe does not fix it, it is chosen once for each model.

    Args:
        name: of the stage that chooses.
        this: the round whose reward may have to choose.
    """
    if recipe.decoding.temperature == "best" and model.digest not in family.decodings:
        family.decodings[model.digest] = runner.run(
            name, choose, recipe.decoding, model=model, data=start.data,
            chooser=watcher(recipe, start.judge, this.scorer if this else None),
        )
    return decoding_of(recipe, family, model)


def decoding_of(recipe: Recipe, family: Family, model: Artifact[Result]) -> Sampling:
    """How a model is decoded: as the recipe says, or at the temperature that was chosen for it."""
    config = recipe.decoding
    return config.at(
        family.decodings[model.digest].result.temperature if config.temperature == "best" else config.temperature
    )


def measure_all(recipe: Recipe, runner: Runner, family: Family, start: Start) -> None:
    """Every model on the test prompts: the Base with worked examples, Instruct, each round's candidate."""
    config, data, judge = recipe.evaluate, start.data, start.judge
    reward = family.rounds[-1].scorer if family.rounds else None
    if not family.rounds:
        deployed(recipe, runner, family, start, start.instruct, "decoding/instruct")
    # A Base is no rival, and likeliest to end in time where it does not drift.
    base = runner.run(
        "test/base", measure, config, model=start.base, data=data, judge=judge, decoding=recipe.decoding.at(0.0),
        reward=reward, style="few-shot",
    )
    family.tests.append(ModelTest("base, few-shot", None, base))
    models = [("instruct", 0, start.instruct), *(
        (f"round {round.number}", round.number, round.candidate) for round in family.rounds if round.candidate
    )]
    for name, number, model in models:
        measured = runner.run(
            f"test/{name.replace(' ', '-')}", measure, config, model=model, data=data, judge=judge,
            decoding=decoding_of(recipe, family, model), reference=start.instruct, reward=reward,
            best_of=recipe.evaluate.best_of if number == 0 else 0,
        )
        family.tests.append(ModelTest(name, number, measured))


def require(audited: Artifact[AuditRecord], config: RequiredAudit, progress: Progress) -> None:
    """Says what the audit found amiss, and stops the run where a reward model may not train anything.

    Raises:
        AuditError: it failed, and must not.
    """
    record = audited.result
    reasons = "; ".join(record.reasons)
    if reasons and config.required:
        raise AuditError(
            f"{audited.name}: the reward model may not train anything: {reasons}. To go on all the same, give "
            "--allow-failed-audit (or set reward.audit.required: false); the release will say so"
        )
    if reasons:
        progress.say(
            f"{audited.name}: FAILED, and the reward model is used all the same (reward.audit.required: false): "
            f"{reasons}"
        )
    elif record.warnings:
        more = f" (and {len(record.warnings) - 1} more in the report)" if len(record.warnings) > 1 else ""
        progress.say(f"{audited.name}: {record.verdict}: {record.warnings[0]}{more}")
