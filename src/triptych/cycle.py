"""The process itself: stages, their edges, the rounds.

Each stage reads the artifacts of others and leaves one of its own; stages never import each other, and meet
only here. What is done already is found by its fingerprint and not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from triptych.audit.stage import Audit, audit
from triptych.base.pretrained import Taking, take_base
from triptych.base.pretraining import Pretraining, pretrain
from triptych.data.references import require_references
from triptych.dataset.preparation import take_in
from triptych.engine import distributed
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.errors import AuditError, RunError, WaitingError
from triptych.evaluate.answers import QUESTIONS as ASKED
from triptych.evaluate.answers import Answering, answer
from triptych.evaluate.decoding import choose
from triptych.evaluate.gate import PROMOTED, Gate, decide
from triptych.evaluate.measurement import Measurement, measure
from triptych.feedback.labelling import label
from triptych.feedback.rated import Weighing, imply
from triptych.improve.checkpoints import Limits
from triptych.improve.improvement import improve
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.people.inbox import Arriving, Inbox, add
from triptych.people.questions import FILE as QUESTIONS
from triptych.people.questions import ask
from triptych.people.verdicts import Panel
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import Stage
from triptych.progress import Progress
from triptych.recipe import AuditSection, JudgedLabelling, Recipe, settings
from triptych.release.signature import check_signing
from triptych.reward.ensemble import EnsembleReward
from triptych.reward.judge import POLICY, JudgeReward
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import WORKS, Reward, open_reward, within
from triptych.reward.regression import RegressionReward
from triptych.reward.rules import RulesReward
from triptych.reward.training import PairwiseReward, RewardTraining, train_reward
from triptych.reward.trust import Trust
from triptych.storage import write_whole
from triptych.storybook.judge import ExactJudge
from triptych.storybook.world import write_world

GATE_QUESTIONS = "gate-questions.jsonl"
"""What a gate that waits for people asks them, in the run's folder."""


@dataclass
class Round:
    """The artifacts of one round; those that were not reached are None.

    Attributes:
        evidence: the comparisons that the reward is audited on: the round's own, or what ratings imply.
        scorer: the reward, opened.
        rewards: every artifact that the reward is made of, by its place in it; the whole one's is "".
    """

    number: int
    feedback: Artifact | None = None
    evidence: Artifact | None = None
    reward: Artifact | None = None
    audit: Artifact | None = None
    candidate: Artifact | None = None
    answers: Artifact | None = None
    gate: Artifact | None = None
    scorer: Scorer | None = None
    rewards: dict[str, Artifact] = field(default_factory=dict)

    @property
    def promoted(self) -> bool:
        """Whether the candidate became the champion."""
        return self.gate is not None and self.gate.metrics["decision"] == PROMOTED


@dataclass
class Family:
    """What the cycle has made so far.

    Attributes:
        judges: the gate's own reward model and its audit, where it has one.
        champion: the best Instruct model that was proved.
        decodings: the choice of each model's own decoding, by the model's digest; none where the recipe fixes it.
        tests: each model's measurement on the test prompts, by its name.
    """

    judge: Scorer | None = None
    judges: list[Artifact] = field(default_factory=list)
    data: Artifact | None = None
    base: Artifact | None = None
    instruct: Artifact | None = None
    rounds: list[Round] = field(default_factory=list)
    champion: Artifact | None = None
    decodings: dict[str, Artifact] = field(default_factory=dict)
    tests: dict[str, Artifact] = field(default_factory=dict)

    @property
    def reward(self) -> Artifact | None:
        """The last round's reward model."""
        return next((round.reward for round in reversed(self.rounds) if round.reward), None)

    def failures(self, this: Round) -> int:
        """The rounds before this one that did not promote; each spent a part of the run's error."""
        return sum(not round.promoted for round in self.rounds if round.number < this.number)


def cycle(recipe: Recipe, runner: Runner, family: Family) -> None:
    """Runs the whole cycle; `family` holds what was made, also where the run stops on the way.

    Raises:
        AuditError: a reward model failed its audit, and the recipe requires it to pass.
        WaitingError: people decide at a gate, and have not answered all of its questions.
        ReleaseError: the release could not be signed as the recipe asks.
    """
    if recipe.signing is not None:
        check_signing(recipe.signing)
    judge = begin(recipe, runner, family)
    for number in range(1, recipe.improve.rounds + 1):
        ask_people(recipe, runner, family, number)
        family.rounds.append(this := Round(number))
        reward_of_round(recipe, runner, family, this, judge)
        improve_and_gate(recipe, runner, family, this, judge)
        assert this.gate
        runner.progress.say(f"{this.gate.metrics['decision']}: {this.gate.metrics['reason']}")
        if this.promoted:
            family.champion = this.candidate
    ask_people(recipe, runner, family, recipe.improve.rounds + 1)
    measure_all(recipe, runner, family, judge)


def begin(recipe: Recipe, runner: Runner, family: Family) -> Scorer:
    """Data, Base and Instruct, which is the first champion; and the judge, who is given back."""
    require_references(recipe)
    run = runner.run
    family.data = data = run(data_stage(recipe))
    family.base = base = run(base_stage(recipe, data))
    family.instruct = family.champion = run(
        Stage("instruct", finetune, settings(Finetuning, recipe.instruct), {"base": base, "data": data})
    )
    family.judge = independent_judge(recipe, runner, family, base, family.instruct, data)
    return family.judge


def reward_of_round(recipe: Recipe, runner: Runner, family: Family, this: Round, judge: Scorer) -> None:
    """A round's comparisons, its reward, and the audit that this must pass."""
    base, champion, data = family.base, family.champion, family.data
    assert base
    assert champion
    assert data
    earlier = family.rounds[-2] if this.number > 1 else None
    this.feedback = collect(recipe, runner, this.number, champion, data, judge, earlier)
    reward_round(recipe, runner, this, earlier, base, champion, data)
    require(this.audit, recipe.reward.audit, runner.progress)


def improve_and_gate(
    recipe: Recipe, runner: Runner, family: Family, this: Round, judge: Scorer, name: str | None = None
) -> None:
    """The champion improved against the round's reward, the two's answers, and what the gate says of them.

    Args:
        name: that the stages begin with; by default the round's.

    Raises:
        WaitingError: people decide, and have not answered every question.
    """
    name = name or f"round-{this.number}"
    champion, data, reward, scorer = family.champion, family.data, this.reward, this.scorer
    assert champion
    assert data
    assert reward
    assert scorer
    champion_decoding = deployed(recipe, runner, family, champion, "decoding/instruct", judge, this)
    limits = Limits(recipe.gate.max_kl, recipe.gate.min_length_ratio, recipe.gate.max_length_ratio)
    watching = watcher(recipe, judge, scorer)
    seen = {"judge": None if watching is scorer else watching}
    tools = {"reward": scorer, **seen, "round": this.number, "limits": limits}
    this.candidate = runner.run(improvement(recipe, name, champion, data, this.feedback, reward, tools))
    candidate_decoding = deployed(recipe, runner, family, this.candidate, f"{name}/decoding", judge, this)
    this.answers = answers = runner.run(Stage(
        f"{name}/answers", answer, settings(Answering, recipe.gate),
        {"candidate": this.candidate, "champion": champion, "data": data},
        {"candidate_decoding": candidate_decoding, "champion_decoding": champion_decoding, "round": this.number},
    ))
    people = recipe.gate.people
    this.gate = runner.run(Stage(
        f"{name}/gate", decide, settings(Gate, recipe.gate), {"answers": answers},
        {"reward": scorer, "judge": judge, "measured": answers.metrics, "failures": family.failures(this)},
        {"reward": reward},
        sources={people: verdicts(recipe, runner, answers)} if people else {},
    ))


def watcher(recipe: Recipe, judge: Scorer, reward: Scorer | None) -> Scorer:
    """Who may watch and choose before the gate, where whoever decides may have chosen nothing.

    The exact judge and rules hold on any prompts, and the validation prompts are not the gate's. A learned judge and a
    language model err in ways that a choice by them would find, so the round's reward watches in their place; unless
    people decide, beside whom the judge is another one.
    """
    sound = recipe.gate.judge == "exact" or isinstance(recipe.gate.judge, RulesReward)
    return judge if sound or recipe.gate.people is not None or reward is None else reward


def decoding_of(recipe: Recipe, family: Family, model: Artifact) -> Sampling:
    """How a model is decoded: as the recipe says, or at the temperature that was chosen for it."""
    config = recipe.decoding
    if config.temperature != "best":
        return config.at(config.temperature)
    return config.at(family.decodings[model.digest].metrics["temperature"])


def deployed(
    recipe: Recipe, runner: Runner, family: Family, model: Artifact, name: str, judge: Scorer, this: Round | None
) -> Sampling:
    """How a model is decoded; where the recipe does not fix it, it is chosen once for each model.

    Args:
        name: of the stage that chooses.
        this: the round whose reward may have to choose.
    """
    if recipe.decoding.temperature == "best" and model.digest not in family.decodings:
        assert family.data
        chooser = watcher(recipe, judge, this.scorer if this else None)
        parents = {"chooser": this.reward} if this and this.reward and chooser is this.scorer else {}
        family.decodings[model.digest] = runner.run(Stage(
            name, choose, recipe.decoding, {"model": model, "data": family.data}, {"chooser": chooser}, parents
        ))
    return decoding_of(recipe, family, model)


def panel(recipe: Recipe, answers: Artifact) -> Panel:
    """The people who decide on these answers."""
    assert recipe.gate.people
    return Panel(answers.folder / ASKED, Path(recipe.place(recipe.gate.people)))


def verdicts(recipe: Recipe, runner: Runner, answers: Artifact) -> Path:
    """What people said to all that a gate asks, kept in the run's folder.

    Raises:
        WaitingError: some questions are open; they are in the run's gate-questions.jsonl.
    """
    asked = panel(recipe, answers)
    kept = runner.folder / "verdicts" / f"{answers.folder.name}.jsonl"
    still = distributed.broadcast([] if kept.exists() else list(asked.open))
    if still:
        place = runner.folder / GATE_QUESTIONS
        if distributed.rank() == 0:
            write_whole(place, asked.questions.read_text(encoding="utf-8"))
        raise WaitingError(
            f"{answers.name.replace('/answers', '/gate')} waits for people: {len(still)} of {len(asked.all)} "
            f"questions are open ({place}); answer them with triptych label, then give the same command again"
            + "".join(f"\n{note}" for note in asked.notes)
        )
    if distributed.rank() == 0:
        (runner.folder / GATE_QUESTIONS).unlink(missing_ok=True)
        asked.take(kept)
    distributed.barrier()
    return kept


def reward_round(
    recipe: Recipe, runner: Runner, this: Round, earlier: Round | None, base: Artifact, champion: Artifact,
    data: Artifact,
) -> None:
    """The round's reward and its audit; those of the round before where nothing that they come from is new."""
    config = recipe.reward.reward
    asks_policy = any(
        isinstance(each, JudgeReward) and each.endpoint is None and each.model == POLICY for each in within(config)
    )
    if earlier and this.feedback is earlier.feedback and not asks_policy:
        this.reward, this.evidence, this.audit, this.scorer, this.rewards = (
            earlier.reward, earlier.evidence, earlier.audit, earlier.scorer, earlier.rewards
        )
        return
    materials = {"base": base, "champion": champion, "data": data}
    if this.feedback:
        materials["comparisons"] = this.feedback
    before = earlier.rewards if earlier else {}
    this.rewards = make_reward(recipe, runner, f"round-{this.number}/reward", config, materials, before)
    this.reward = reward = this.rewards[""]
    this.scorer = scorer = opened(recipe, runner, config, reward, champion)
    this.evidence = this.feedback
    if isinstance(config, RegressionReward) and not recipe.compared and config.weights:
        rated = runner.run(Stage("round-1/rated", imply, Weighing(weights=config.weights), {"data": data}))
        this.evidence = rated if rated.metrics["heldout"] else None
    if this.evidence:
        this.audit = runner.run(Stage(
            f"round-{this.number}/audit", audit, settings(Audit, recipe.reward.audit), {"comparisons": this.evidence},
            {"reward": scorer} | ({"predecessor": earlier.scorer} if earlier and earlier.scorer else {}),
            {"reward": reward} | ({"predecessor": earlier.reward} if earlier and earlier.reward else {}),
        ))


def make_reward(
    recipe: Recipe, runner: Runner, name: str, config: Reward, materials: Mapping[str, Artifact],
    before: Mapping[str, Artifact], member: int = 0, place: str = "",
) -> dict[str, Artifact]:
    """A reward of any kind, with the stages that its parts are, each by its place in it.

    Args:
        materials: base, champion, data and, where there are any, comparisons.
        before: the last round's, from which trained kinds go on.
    """
    made: dict[str, Artifact] = {}
    inputs: dict[str, Artifact] = {}
    tools: dict[str, object] = {}

    def part(key: str, reward: Reward, member: int = 0) -> Artifact:
        inner = f"{place}/{key}".lstrip("/")
        made.update(make_reward(recipe, runner, f"{name}/{key}", reward, materials, before, member, inner))
        return made[inner]

    if isinstance(config, EnsembleReward):
        inputs = {f"member_{index}": part(str(index), config.member, index) for index in range(config.members)}
    elif isinstance(config, MixtureReward):
        inputs = {each.name: part(each.name, each.reward) for each in config.parts}
    elif isinstance(config, RewardTraining):
        inputs["start"] = before.get(place, materials[config.start])
        if "comparisons" in materials:
            inputs["comparisons"] = materials["comparisons"]
        if isinstance(config, RegressionReward):
            inputs["ratings"] = materials["data"]
        if member:
            tools["member"] = member
    elif isinstance(config, JudgeReward) and config.endpoint is None and config.model == POLICY:
        inputs["policy"] = materials["champion"]
    sources = recipe.reward_files(config) if isinstance(config, RulesReward | JudgeReward) else {}
    made[place] = runner.run(Stage(name, WORKS[type(config)], config, inputs, tools, sources=sources))
    return made


def opened(
    recipe: Recipe, runner: Runner, config: Reward, reward: Artifact, champion: Artifact | None, name: str | None = None
) -> Scorer:
    """The reward in an artifact as a scorer; what the user's own recipe names may be asked and run, nothing else."""
    models = {Path(file).name: Path(place) for file, place in recipe.reward_files(config).items()}
    if champion:
        models[POLICY] = champion.folder / "model"
    cache = runner.folder / "cache"
    trust = Trust.in_recipe(within(config))
    return open_reward(reward.folder, identity=reward.digest, name=name, models=models, cache=cache, trust=trust)


def data_stage(recipe: Recipe) -> Stage:
    """The world that is written, or the user's files."""
    if recipe.storybook is not None:
        return Stage("data", write_world, recipe.storybook, alone=True)
    return Stage("data", take_in, recipe.intake, sources=recipe.sources, alone=True)


def base_stage(recipe: Recipe, data: Artifact) -> Stage:
    """A Base trained from scratch, or taken from others."""
    if recipe.base.train is not None:
        return Stage("base", pretrain, settings(Pretraining, recipe.base.train), {"data": data})
    assert recipe.base.from_ is not None
    name, template = recipe.base.from_, recipe.base.chat_template
    sources = {name: recipe.base_place}
    if template and template.endswith(".jinja"):
        sources[template] = recipe.place(template)
    taking = Taking(name=name, chat_template=template)
    return Stage("base", take_base, taking, {"data": data}, sources=sources, alone=True)


def independent_judge(
    recipe: Recipe, runner: Runner, family: Family, base: Artifact, instruct: Artifact, data: Artifact
) -> Scorer:
    """The exact judge, rules, a language model, or a second reward model on comparisons the first never sees."""
    section = recipe.gate.judge
    if isinstance(section, str):
        return ExactJudge()
    if isinstance(section, RulesReward | JudgeReward):
        made = make_reward(recipe, runner, "judge", section, {}, {})
        family.judges = [made[""]]
        return opened(recipe, runner, section, made[""], None, name="the gate's " + section.kind)
    model = runner.run(Stage(
        "judge", train_reward, settings(PairwiseReward, section),
        {"start": instruct if section.start == "champion" else base, "comparisons": data},
        {"share": "judge"},
    ))
    scorer = open_reward(model.folder, identity=model.digest, name="second reward model")
    audited = runner.run(Stage(
        "judge/audit", audit, settings(Audit, recipe.reward.audit), {"comparisons": data},
        {"reward": scorer, "share": "judge_heldout"}, {"reward": model},
    ))
    family.judges = [model, audited]
    require(audited, recipe.reward.audit, runner.progress)
    return scorer


def collect(
    recipe: Recipe, runner: Runner, number: int, champion: Artifact, data: Artifact, judge: Scorer,
    earlier: Round | None,
) -> Artifact | None:
    """The comparisons of a round: those from files, and new ones of what the champion writes; None without any."""
    before = earlier.feedback if earlier else data if recipe.comparison_files else None
    known = {"earlier": before} if before else {}
    if recipe.people is not None:
        return arrived(recipe, runner, number, {"data": data, **known}) or before
    if recipe.labelling is None:
        return before
    inputs = {"data": data, "author": champion, **known}
    if isinstance(recipe.labelling, JudgedLabelling):
        asked = recipe.labelling.by
        made = make_reward(recipe, runner, f"round-{number}/labeller", asked, {"champion": champion}, {})
        judge = opened(recipe, runner, asked, made[""], champion, name="a language model")
    return runner.run(Stage(
        f"round-{number}/feedback", label, recipe.labelling, inputs, {"judge": judge, "round": number}
    ))


def ask_people(recipe: Recipe, runner: Runner, family: Family, number: int) -> None:
    """Has the champion write what people may compare for a round; the run's questions.jsonl is the newest."""
    if recipe.asking is None:
        return
    data, champion = family.data, family.champion
    assert data
    assert champion
    tools: dict[str, object] = {"round": number}
    parents: dict[str, Artifact] = {}
    if family.rounds and (last := family.rounds[-1]).reward:
        tools["reward"], parents["reward"] = last.scorer, last.reward
    asked = runner.run(Stage(
        f"round-{number}/questions", ask, recipe.asking, {"data": data, "author": champion}, tools, parents
    ))
    if distributed.rank() == 0:
        place = runner.folder / QUESTIONS
        write_whole(place, (asked.folder / QUESTIONS).read_text(encoding="utf-8"))
        runner.progress.say(f"{asked.metrics['questions']} questions to people: {place}, or triptych label")


def arrivals(recipe: Recipe, folder: Path) -> Inbox:
    """Where people add comparisons, and what the rounds of the run in this folder took of them."""
    assert recipe.people is not None
    return Inbox(Path(recipe.place(recipe.people)), folder / "arrivals")


def arrived(recipe: Recipe, runner: Runner, number: int, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """What people compared since the last round, added to the rest; None where it is nothing.

    Raises:
        RunError: there is nothing new, and nothing old either.
    """
    assert recipe.people is not None
    waiting = arrivals(recipe, runner.folder)
    if distributed.rank() == 0 and waiting.note:
        runner.progress.say(waiting.note)
    taken = distributed.broadcast(waiting.take(number, recipe.wrong_rows) if distributed.rank() == 0 else None)
    assert taken is not None
    if not taken.read_text(encoding="utf-8"):
        if "earlier" not in inputs:
            taken.unlink()
            raise RunError(
                f"{waiting.file}: no comparison has arrived; answer the questions in {runner.folder / QUESTIONS} "
                "(triptych label), or have triptych watch wait for others"
            )
        return None
    config = Arriving(heldout=recipe.splits.heldout, wrong_rows=recipe.wrong_rows)
    return runner.run(Stage(f"round-{number}/feedback", add, config, inputs, sources={recipe.people: taken}))


def improvement(
    recipe: Recipe, name: str, champion: Artifact, data: Artifact, feedback: Artifact | None, reward: Artifact,
    tools: Mapping[str, object],
) -> Stage:
    """A candidate by the recipe's method; what it is scored by, and measured with, are its tools."""
    config, inputs = recipe.improve.own, {"champion": champion, "data": data}
    if config.needs_comparisons:
        assert feedback, "the recipe sees to it"
        inputs["comparisons"] = feedback
    return Stage(f"{name}/improve", improve, config, inputs, tools, {"reward": reward})


def require(audited: Artifact | None, config: AuditSection, progress: Progress) -> None:
    """Says what the audit found amiss, and stops the run where a reward model may not train anything.

    Raises:
        AuditError: it failed, and must not.
    """
    if audited is None:
        return
    reasons, warnings = "; ".join(audited.metrics["reasons"]), audited.metrics["warnings"]
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
    elif warnings:
        more = f" (and {len(warnings) - 1} more in the report)" if len(warnings) > 1 else ""
        progress.say(f"{audited.name}: {audited.metrics['verdict']}: {warnings[0]}{more}")


def measure_all(recipe: Recipe, runner: Runner, family: Family, judge: Scorer) -> None:
    """Every model on the test prompts: the Base with worked examples, Instruct, each round's candidate."""
    base, instruct, data = family.base, family.instruct, family.data
    assert base
    assert instruct
    assert data
    reward = {"reward": family.reward} if family.reward else {}
    scorers = {"reward": family.rounds[-1].scorer} if family.reward else {}
    if not family.rounds:
        deployed(recipe, runner, family, instruct, "decoding/instruct", judge, None)
    models = {"base, few-shot": base, "instruct": instruct}
    models |= {f"round {round.number}": round.candidate for round in family.rounds if round.candidate}
    for name, model in models.items():
        inputs = {"model": model, "data": data}
        decoding = recipe.decoding.at(0.0)  # a Base is no rival, and likeliest to end in time where it does not drift
        if model is not base:
            inputs["reference"] = instruct
            decoding = decoding_of(recipe, family, model)
        style = "few-shot" if model is base else "chat"
        best_of = {"best_of": recipe.evaluate.best_of} if model is instruct else {}
        label = name.replace(", few-shot", "").replace(" ", "-")
        family.tests[name] = runner.run(Stage(
            f"test/{label}", measure, settings(Measurement, recipe.evaluate), inputs,
            {"judge": judge, "style": style, "decoding": decoding, **best_of, **scorers}, reward,
        ))
