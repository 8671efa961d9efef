"""The process itself: stages, their edges, the rounds.

Each stage reads the artifacts of others and leaves one of its own; stages never import each other, and meet
only here. What is done already is found by its fingerprint and not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.base.pretraining import Pretraining, pretrain
from triptych.base.taking import Taking, take_base
from triptych.data.intake import take_in
from triptych.engine.scoring import Scorer
from triptych.errors import AuditError
from triptych.evaluate.gate import PROMOTED, Gate, decide
from triptych.evaluate.measurement import Measurement, measure
from triptych.feedback.labelling import label
from triptych.improve import dpo, grpo
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import Stage
from triptych.recipe import AuditSection, JudgeSection, Recipe, settings
from triptych.reward.audit.stage import Audit, audit
from triptych.reward.kinds import open_reward
from triptych.reward.training import PairwiseReward, train_reward
from triptych.storybook.judge import ExactJudge
from triptych.storybook.world import write_world


@dataclass
class Round:
    """The artifacts of one round; those that were not reached are None."""

    number: int
    feedback: Artifact | None = None
    reward: Artifact | None = None
    audit: Artifact | None = None
    candidate: Artifact | None = None
    gate: Artifact | None = None

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
        tests: each model's measurement on the test prompts, by its name.
    """

    judge: Scorer | None = None
    judges: list[Artifact] = field(default_factory=list)
    data: Artifact | None = None
    base: Artifact | None = None
    instruct: Artifact | None = None
    rounds: list[Round] = field(default_factory=list)
    champion: Artifact | None = None
    tests: dict[str, Artifact] = field(default_factory=dict)

    @property
    def reward(self) -> Artifact | None:
        """The last round's reward model."""
        return next((round.reward for round in reversed(self.rounds) if round.reward), None)


def cycle(recipe: Recipe, runner: Runner, family: Family) -> None:
    """Runs the whole cycle; `family` holds what was made, also where the run stops on the way.

    Raises:
        AuditError: a reward model failed its audit, and the recipe requires it to pass.
    """
    run = runner.run
    family.data = data = run(data_stage(recipe))
    family.base = base = run(base_stage(recipe, data))
    family.instruct = family.champion = champion = run(
        Stage("instruct", finetune, settings(Finetuning, recipe.instruct), {"base": base, "data": data})
    )
    instruct = champion
    family.judge = judge = independent_judge(recipe, runner, family, instruct, data)

    for number in range(1, recipe.improve.rounds + 1):
        family.rounds.append(this := Round(number))
        earlier = family.rounds[-2] if number > 1 else None
        this.feedback = feedback = collect(recipe, runner, number, champion, data, judge, earlier)
        # A refreshed reward model goes on from the last one, on all comparisons so far.
        start = earlier.reward if earlier and earlier.reward else champion
        if earlier and feedback is earlier.feedback:
            this.reward, this.audit = reward, audited = start, earlier.audit
        else:
            this.reward = reward = run(Stage(
                f"round-{number}/reward", train_reward, settings(PairwiseReward, recipe.reward),
                {"start": start, "comparisons": feedback},
            ))
            this.audit = audited = run(Stage(
                f"round-{number}/audit", audit, settings(Audit, recipe.reward.audit),
                {"reward": reward, "comparisons": feedback}
                | ({"predecessor": earlier.reward} if earlier and earlier.reward else {}),
            ))
        require(audited, recipe.reward.audit)
        scorer = open_reward(reward.folder, identity=reward.digest)
        tools = {"reward": scorer, "judge": judge, "round": number}
        this.candidate = candidate = run(improvement(recipe, number, champion, data, feedback, reward, tools))
        this.gate = run(Stage(
            f"round-{number}/gate", decide, settings(Gate, recipe.gate),
            {"candidate": candidate, "champion": champion, "data": data}, {"reward": scorer, "judge": judge},
            {"reward": reward},
        ))
        runner.progress.say(f"{this.gate.metrics['decision']}: {this.gate.metrics['reason']}")
        if this.promoted:
            family.champion = champion = candidate

    measure_all(recipe, runner, family, base, instruct, data, judge)


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
    recipe: Recipe, runner: Runner, family: Family, instruct: Artifact, data: Artifact
) -> Scorer:
    """The exact judge, or a second reward model on comparisons that the first never sees."""
    section = recipe.gate.judge
    if not isinstance(section, JudgeSection):
        return ExactJudge()
    model = runner.run(Stage(
        "judge", train_reward, settings(PairwiseReward, section), {"start": instruct, "comparisons": data},
        {"share": "judge"},
    ))
    audited = runner.run(Stage(
        "judge/audit", audit, settings(Audit, recipe.reward.audit), {"reward": model, "comparisons": data},
        {"share": "judge_heldout"},
    ))
    family.judges = [model, audited]
    require(audited, recipe.reward.audit)
    return open_reward(model.folder, identity=model.digest, name="second reward model")


def collect(
    recipe: Recipe, runner: Runner, number: int, champion: Artifact, data: Artifact, judge: Scorer,
    earlier: Round | None,
) -> Artifact:
    """The comparisons of a round: those from files, and new ones of what the champion writes."""
    before = earlier.feedback if earlier else data if recipe.comparison_files else None
    if recipe.labelling is None:
        assert before is not None
        return before
    inputs = {"data": data, "author": champion} | ({"earlier": before} if before else {})
    return runner.run(Stage(
        f"round-{number}/feedback", label, recipe.labelling, inputs, {"judge": judge, "round": number}
    ))


def improvement(
    recipe: Recipe, number: int, champion: Artifact, data: Artifact, feedback: Artifact, reward: Artifact,
    tools: Mapping[str, object],
) -> Stage:
    """The round's candidate by the recipe's method; what it is scored by, and measured with, are its tools."""
    section, inputs = recipe.improve, {"champion": champion, "data": data}
    name, parents = f"round-{number}/improve", {"reward": reward}
    if isinstance(section, dpo.Dpo):
        if section.pairs == "comparisons":
            inputs["comparisons"] = feedback
        return Stage(name, dpo.improve, settings(dpo.Dpo, section), inputs, tools, parents)
    return Stage(name, grpo.improve, settings(grpo.Grpo, section), inputs, tools, parents)


def require(audited: Artifact | None, config: AuditSection) -> None:
    """Stops the run where a reward model may not train anything."""
    if audited is not None and config.required and not audited.metrics["passed"]:
        reasons = "; ".join(audited.metrics["reasons"])
        raise AuditError(
            f"{audited.name}: the reward model may not train anything: {reasons}. To go on all the same, give "
            "--allow-failed-audit (or set reward.audit.required: false); the release will say so"
        )


def measure_all(
    recipe: Recipe, runner: Runner, family: Family, base: Artifact, instruct: Artifact, data: Artifact,
    judge: Scorer,
) -> None:
    """Every model on the test prompts: the Base with worked examples, Instruct, each round's candidate."""
    reward = {"reward": family.reward} if family.reward else {}
    scorers = {name: open_reward(artifact.folder, identity=artifact.digest) for name, artifact in reward.items()}
    models = {"base, few-shot": base, "instruct": instruct}
    models |= {f"round {round.number}": round.candidate for round in family.rounds if round.candidate}
    for name, model in models.items():
        inputs = {"model": model, "data": data}
        if model is not base:
            inputs["reference"] = instruct
        style = "few-shot" if model is base else "chat"
        label = name.replace(", few-shot", "").replace(" ", "-")
        family.tests[name] = runner.run(Stage(
            f"test/{label}", measure, settings(Measurement, recipe.evaluate), inputs,
            {"judge": judge, "style": style, **scorers}, reward,
        ))
