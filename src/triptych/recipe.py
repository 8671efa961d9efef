"""The recipe: each stage's own settings put together, loaded from one YAML file and checked.

File names in a recipe are relative to the recipe's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from triptych import configuration
from triptych.audit.stage import Audit
from triptych.base.continuing import ContinuedPretraining
from triptych.base.pretraining import Pretraining
from triptych.base.source import Quantization
from triptych.configuration import Composed, Config, Flat, UserFile, by_field, located
from triptych.data.folds import CrossFit
from triptych.data.source import STDLIB, Reading, Source, dataset_name, is_address
from triptych.data.stdlib import versioned
from triptych.data.template import Argument
from triptych.dataset.preparation import DataPreparation, NearRows, Splits
from triptych.engine import nf4
from triptych.engine.hub import ModelPlace
from triptych.engine.training import Optimization
from triptych.errors import RecipeError
from triptych.evaluate.answers import Answering
from triptych.evaluate.benchmarking import BenchmarkBudget, BenchmarkTask
from triptych.evaluate.decoding import Decoding
from triptych.evaluate.diagnosis import Diagnosis
from triptych.evaluate.gate import Gate
from triptych.evaluate.measurement import Measurement
from triptych.evaluate.prompting import Prompting
from triptych.feedback.labelling import ExactLabelling, Labelling
from triptych.improve.dpo import Dpo
from triptych.improve.grpo import Grpo
from triptych.improve.loop import Improvement
from triptych.improve.registry import METHODS, AnyMethod, method_of
from triptych.instruct.finetuning import Finetuning
from triptych.people.questionnaire import Annotation, read_guideline
from triptych.people.questions import Asking, Form
from triptych.release.lineage import ReleaseForm
from triptych.release.signature import Signing
from triptych.reward.absence import NoReward, absent, is_absent
from triptych.reward.judge import JudgeReward
from triptych.reward.kind import RewardConfig
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import Reward
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import RulesReward
from triptych.reward.taken import TakenReward, elsewhere
from triptych.reward.training import PairwiseReward, RewardTraining
from triptych.storage import write_whole
from triptych.storybook.world import Storybook
from triptych.trackers.tracker import TrackerName, missing


def _or_dataset(file: UserFile) -> UserFile:
    """A name that is no file's may be a dataset's, an address, or the standard library's."""
    if file.name == STDLIB and not file.path.exists():
        return UserFile(file.name, Path(versioned()))
    remote = is_address(file.name) or (not file.path.exists() and dataset_name(file.name))
    return UserFile(file.name, Path(file.name)) if remote else file


def _or_shipped(file: UserFile) -> UserFile:
    """A template that is no .jinja file has a name of its own."""
    return file if file.path.suffix == ".jinja" else UserFile(file.name, Path(file.name))


def _growing(file: UserFile) -> UserFile:
    if not file.path.name.removesuffix(".jsonl") or file.path.suffix != ".jsonl":
        raise ValueError(f"must be a .jsonl file, which people's answers are added to, got {file.name!r}")
    return file


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value or ()


def _installed(names: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
    if lacking := next(filter(None, map(missing, names)), None):
        raise ValueError(lacking)
    return tuple(dict.fromkeys(names))


DataFile = Annotated[UserFile, AfterValidator(_or_dataset)]
TemplateFile = Annotated[UserFile, AfterValidator(_or_shipped)]
GrowingFile = Annotated[UserFile, AfterValidator(_growing)]


class DataSource(Composed):
    """A file of data, and how it is read.

    Attributes:
        file: a file, a folder of files, a dataset's name, or an address.
    """

    file: DataFile
    reading: Flat[Reading] = Reading()

    @property
    def place(self) -> str | Path:
        """Where it lies; what is not on this machine is its name."""
        return self.file.name if is_address(self.file.name) else self.file.path

    @property
    def named(self) -> Source:
        """By the name that the recipe gives it: where it lies changes no result."""
        return Source(file=self.file.name, **dict(self.reading))

    @property
    def located(self) -> Source:
        """Where it lies."""
        return Source(file=str(self.place), **dict(self.reading))


def _with_file(value: object) -> object:
    return value if isinstance(value, dict | DataSource) else {"file": value}


Data = Annotated[DataSource, BeforeValidator(_with_file)]
"""A file of data; its name alone may stand for it."""


class TextSource(DataSource):
    """A file of plain text, or `python-stdlib`, the sources of Python's standard library.

    Attributes:
        weight: how much of the training comes from it, beside the other files' weights; 0 for text that is only
            measured. By default each file gives as much as it holds.
    """

    weight: float | None = Field(default=None, ge=0)


class BaseText(Config):
    """The plain text that a Base learns or is measured on.

    Attributes:
        text: files; a taken Base that is not trained further is only measured on their held-out part.
    """

    text: tuple[Annotated[TextSource, BeforeValidator(_with_file)], ...] = ()

    @field_validator("text")
    @classmethod
    def _weighed(cls, text: tuple[TextSource, ...]) -> tuple[TextSource, ...]:
        if unweighed := [source.file.name for source in text if source.weight is None]:
            if len(unweighed) < len(text):
                raise ValueError(f"needs a weight for every file or for none; {unweighed[0]} has none")
        elif len({source.file.name for source in text}) < len(text):
            raise ValueError("names a file twice, so that its weight is not known: name it once")
        return text

    @property
    def weights(self) -> dict[str, float] | None:
        """How much of the training comes from each file, by its name; None for as much as it holds."""
        weights = {source.file.name: source.weight for source in self.text if source.weight is not None}
        return weights or None


class TrainedBase(BaseText):
    """A Base that is trained from scratch (`train`) on `text`."""

    from_: None = Field(default=None, alias="from")
    train: Pretraining


class TakenBase(BaseText):
    """A Base that others made (`from`), and how it is trained further (`train`), if it is.

    Attributes:
        chat_template: "chatml" or a .jinja file; by default the model's own, or ChatML where it has none.
        template: arguments of its chat template, such as `enable_thinking`; they become its defaults.
        tokens: tokens of it that are such in the texts of messages too, as `<think>`.
        quantization: "nf4" rounds its matrices to four bits a number, in which they are held from there on by all that
            does not train them.
    """

    from_: ModelPlace = Field(alias="from")
    train: ContinuedPretraining | None = None
    chat_template: TemplateFile | None = None
    template: dict[str, Argument] = Field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.quantization and not nf4.available():
            raise ValueError(f"quantization {nf4.MISSING}")
        if self.quantization and self.train is not None:
            raise ValueError("quantization is of a Base that stays as it was taken: leave out train, or quantization")
        if self.train is not None and not self.text:
            raise ValueError("text must name the files that it is trained on")
        return self


def base_origin(base: object) -> str | None:
    """Where a Base comes from."""
    if not isinstance(base, dict):
        return "train" if isinstance(base, TrainedBase) else "from"
    return next((name for name in ("from", "train") if base.get(name, base.get(name + "_")) is not None), None)


base_origin.__name__ = "one of from (a folder, a .gguf file, a Hub name), train"
BaseOrigin = Annotated[
    Annotated[TakenBase, Tag("from")] | Annotated[TrainedBase, Tag("train")], Discriminator(base_origin)
]


class InstructTraining(Composed):
    """Fine-tuning and its conversations."""

    finetuning: Flat[Finetuning] = Finetuning()
    data: tuple[Data, ...] = ()


InstructStage = Annotated[
    Annotated[Literal["none"], Tag("none")] | Annotated[InstructTraining, Tag("trained")],
    Discriminator(lambda value: "none" if value == "none" else "trained"),
]
"""Fine-tuning, or "none" where the Base is an Instruct model already."""


class FileFeedback(DataSource):
    """Comparisons from a file."""


class RatingFeedback(Composed):
    """Answers rated by attributes, from a file."""

    ratings: DataFile
    reading: Flat[Reading] = Reading()

    @property
    def source(self) -> DataSource:
        """The file, and how it is read."""
        return DataSource(file=self.ratings, reading=self.reading)


class ThumbFeedback(Composed):
    """Answers that were liked or not, from a file."""

    thumbs: DataFile
    reading: Flat[Reading] = Reading()

    @property
    def source(self) -> DataSource:
        """The file, and how it is read."""
        return DataSource(file=self.thumbs, reading=self.reading)


class ExactFeedback(Config):
    """Comparisons of what the champion writes, labelled by the storybook's exact judge in every round."""

    exact: ExactLabelling


class JudgedLabelling(Composed):
    """Labels by a language model.

    Attributes:
        by: the model; it may be the champion itself.
    """

    labelling: Flat[Labelling] = Labelling()
    by: JudgeReward


class JudgedFeedback(Config):
    """Comparisons of what the champion writes, labelled by a language model in every round."""

    judged: JudgedLabelling


class PeopleFeedback(Composed):
    """Comparisons or thumbs that people add to a file while the run goes on; each round takes those that are new.

    Attributes:
        people: the file.
        asking: what they are asked.
        annotation: how several of them are.
    """

    people: GrowingFile
    asking: Flat[Asking] = Asking()
    annotation: Flat[Annotation] = Annotation()


Feedback = Annotated[
    Annotated[FileFeedback, Tag("file")] | Annotated[RatingFeedback, Tag("ratings")]
    | Annotated[ThumbFeedback, Tag("thumbs")] | Annotated[ExactFeedback, Tag("exact")]
    | Annotated[JudgedFeedback, Tag("judged")] | Annotated[PeopleFeedback, Tag("people")],
    by_field("file", "ratings", "thumbs", "exact", "judged", "people"),
]


class RequiredAudit(Composed):
    """The audit, and what a failed one does.

    Attributes:
        required: stop the run if the audit fails; if False it goes on and the release records the failure.
    """

    checks: Flat[Audit] = Audit()
    required: bool = True


class AuditedReward(Composed):
    """A reward of some kind, and its audit."""

    model: Flat[Reward] = PairwiseReward()
    audit: RequiredAudit = RequiredAudit()


class Rounds(Composed):
    """Improvement by some method: its prompts, and how many rounds; without any the reward is only made and audited."""

    method: Flat[AnyMethod] = Grpo()
    prompts: tuple[Data, ...] = ()
    rounds: int = Field(default=1, ge=0)


class TrainedJudge(Composed):
    """A second reward model as the gate's judge, trained on comparisons that the first one never sees."""

    model: Flat[PairwiseReward] = PairwiseReward()
    share_of_feedback: float = Field(default=0.5, gt=0, lt=1)


def kind(judge: object) -> object:
    """Of what kind the gate's judge is."""
    if isinstance(judge, dict):
        return judge.get("kind", "pairwise")
    return getattr(judge, "kind", "pairwise") if isinstance(judge, Config) else "exact"


GateJudge = Annotated[
    Annotated[Literal["exact"], Tag("exact")] | Annotated[TrainedJudge, Tag("pairwise")]
    | Annotated[RulesReward, Tag("rules")] | Annotated[JudgeReward, Tag("judge")]
    | Annotated[RemoteReward, Tag("remote")] | Annotated[TakenReward, Tag("taken")],
    Discriminator(kind), elsewhere,
]


class JudgedGate(Composed):
    """The gate and who judges there.

    Attributes:
        judge: takes no part in the training; measures every model.
        people: the file in which people say which answer they prefer, where they decide at the gate.
        annotation: how several of them are asked.
        preferences: a second reward model, trained on comparisons that the first one never sees, which does not decide
            but says whether people's preferences hold, where the judge is another; it bounds `max_preference_loss`.
    """

    answering: Flat[Answering] = Answering()
    decision: Flat[Gate] = Gate()
    judge: GateJudge = TrainedJudge()
    people: GrowingFile | None = None
    annotation: Flat[Annotation] = Annotation()
    preferences: TrainedJudge | None = None

    @model_validator(mode="after")
    def _one_apart(self) -> Self:
        if self.preferences is not None and isinstance(self.judge, TrainedJudge):
            raise ValueError("preferences is for gates where the judge is another: here it is a reward model of "
                             "people's comparisons already")
        if self.people is None and self.annotation != Annotation():
            raise ValueError("guideline, overlap and annotators are of people, who decide where the gate names their "
                             "file: people: verdicts.jsonl")
        return self

    @property
    def apart(self) -> TrainedJudge | None:
        """The second reward model, whether it decides or only says whether preferences hold."""
        return self.judge if isinstance(self.judge, TrainedJudge) else self.preferences

    @property
    def judging(self) -> PairwiseReward | RulesReward | JudgeReward | RemoteReward | TakenReward | None:
        """The judge as a reward; None for the exact one."""
        if isinstance(self.judge, str):
            return None
        return self.judge.model if isinstance(self.judge, TrainedJudge) else self.judge


class Task(DataSource):
    """Prompts of a kind that every model answers at the end; nothing is trained on them, or chosen by them.

    Attributes:
        name: of its stages, and in every report.
        score: what scores the answers.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    score: Flat[RulesReward]

    @property
    def stage(self) -> str:
        """The stage that keeps its prompts; those of its answers are named below it."""
        return f"tasks/{self.name}"


class HarnessBenchmark(Composed):
    """A benchmark of lm-evaluation-harness, on which Base, Instruct and each round's candidate are measured.

    Attributes:
        metric: the measure that counts, as "acc_norm" or "exact_match/strict-match"; by default the task's first.
        max_loss: what a candidate may lose of it to the champion, and no more by the 95% interval of the difference;
            none by default.
    """

    asked: Flat[BenchmarkTask]
    metric: str | None = None
    max_loss: float | None = Field(default=None, ge=0)

    @property
    def name(self) -> str:
        """Of its stages, and in every report."""
        return self.asked.task.path.stem if self.asked.is_file else self.asked.task.name

    @property
    def budget(self) -> BenchmarkBudget | None:
        """What a candidate may lose of it; None where it may lose anything."""
        return None if self.max_loss is None else BenchmarkBudget(metric=self.metric, max_loss=self.max_loss)


class RewardBenchmark(Composed):
    """A benchmark of reward models, RewardBench 2, RM-Bench or JudgeBench, on which each round's reward is measured.

    Attributes:
        reward: its file, or the dataset's name.
    """

    reward: DataFile
    reading: Flat[Reading] = Reading()

    @property
    def source(self) -> DataSource:
        """The file, and how it is read."""
        return DataSource(file=self.reward, reading=self.reading)

    @property
    def name(self) -> str:
        """Of its stages, and in every report."""
        return Path(self.reward.name).name.partition(".")[0]


def _with_task(value: object) -> object:
    return {"task": value} if isinstance(value, str) else value


Benchmarks = tuple[
    Annotated[
        Annotated[HarnessBenchmark, Tag("task")] | Annotated[RewardBenchmark, Tag("reward")],
        by_field("task", "reward"), BeforeValidator(_with_task),
    ], ...,
]


class Examination(Composed):
    """What every model is measured on: the test prompts and tasks at the end, benchmarks as soon as it is there."""

    measurement: Flat[Measurement] = Measurement()
    tasks: tuple[Task, ...] = ()
    benchmarks: Benchmarks = ()

    @field_validator("benchmarks")
    @classmethod
    def _called_differently(cls, benchmarks: Benchmarks) -> Benchmarks:
        names = [benchmark.name for benchmark in benchmarks]
        if again := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"each needs a name of its own, and two are {again}: name another file")
        return benchmarks

    @property
    def of_models(self) -> list[HarnessBenchmark]:
        """The benchmarks of models."""
        return [benchmark for benchmark in self.benchmarks if isinstance(benchmark, HarnessBenchmark)]

    @property
    def of_rewards(self) -> list[RewardBenchmark]:
        """The benchmarks of reward models."""
        return [benchmark for benchmark in self.benchmarks if isinstance(benchmark, RewardBenchmark)]

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError("each task needs a name of its own")
        return tasks


class Publication(Config):
    """How the family is published.

    Attributes:
        form: three plain models, or the Base with adapters for Instruct and Reward, where all is trained with `lora`.
        sign: with what; by default the release is not signed.
    """

    version: str = "1.0"
    license: str = "other"
    language: str = "en"
    form: ReleaseForm = "merged"
    sign: Signing | None = None


class Goals(Config):
    """What the run should reach; a missed goal is said in the summary and changes nothing else.

    Attributes:
        gain: the champion's score, as it is deployed, over the strongest baseline that costs nothing.
        gain_at_temperature_1: the champion's score over round 0's Instruct, both sampled at temperature 1.
        equal_length: the champion's win rate against that baseline at equal length.
        share_of_ceiling: the last reward model's accuracy over the best that the label noise allows.
        over_trivial: the last reward model's accuracy less that of the best trivial rule, a bag of words included.
    """

    gain: float | None = None
    gain_at_temperature_1: float | None = None
    equal_length: float | None = None
    over_trivial: float | None = None
    share_of_ceiling: float | None = None


class Recipe(Config):
    """The whole of a run.

    Attributes:
        compare: the own settings of methods for `triptych compare`, where they are not the defaults; what they leave
            out of steps, prompts, answers and so on is that of `improve`.
        decontaminate: benchmarks, of whose prompts no row may hold a part.
        near_duplicates: what happens to rows to learn from that nearly repeat a held-out prompt, or an earlier row:
            they are counted and named ("report"), or left out.
        prompting: a search for the prompt that Instruct answers best, as a rival; None for none.
        diagnosis: what is measured where a round is not promoted, to say what it failed by; None for nothing.
        tracker: where the curves are shown besides, one name or several; no result depends on it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=1, ge=0, lt=2**31)
    storybook: Storybook | None = None
    base: BaseOrigin
    instruct: InstructStage = InstructTraining()
    feedback: tuple[Feedback, ...] = ()
    reward: Annotated[AuditedReward, absent] = AuditedReward()
    improve: Rounds = Rounds()
    compare: tuple[AnyMethod, ...] = ()
    decoding: Decoding = Decoding()
    prompting: Prompting | None = None
    gate: JudgedGate = JudgedGate()
    diagnosis: Diagnosis | None = Diagnosis()
    evaluate: Examination = Examination()
    splits: Splits = Splits()
    decontaminate: tuple[Data, ...] = ()
    near_duplicates: NearRows = "report"
    wrong_rows: Literal["refuse", "skip"] = "refuse"
    reasoning: Literal["learn", "leave_out"] = "learn"
    release: Publication = Publication()
    goals: Goals = Goals()
    tracker: Annotated[tuple[TrackerName, ...], BeforeValidator(_listed), AfterValidator(_installed)] = ()

    @model_validator(mode="after")
    def _whole(self, info: ValidationInfo) -> Self:
        exact = [source for source in self.feedback if isinstance(source, ExactFeedback)]
        files = self.comparison_files
        judge, by = self.gate.judge, self.labeller
        if self.storybook is None:
            if exact or judge == "exact":
                raise ValueError("the exact judge only knows the storybook: add `storybook: {}` or name another judge")
            if self.finetuning is None and not self.improve.prompts:
                raise ValueError("improve.prompts must name at least one file, for instruct is none and has no prompts")
            if self.finetuning is not None and not self.conversation_files:
                raise ValueError("instruct.data must name at least one file of conversations")
            if self.pretraining is not None and not self.base.text:
                raise ValueError("base.text must name the files that a Base is trained on")
        elif (
            files or self.rating_files or self.thumb_files or self.conversation_files or self.improve.prompts
            or self.base.text or self.decontaminate or self.pretraining is None
        ):
            raise ValueError("the storybook brings all of the data; files of your own go into a recipe without it")
        labelled = sum(isinstance(source, ExactFeedback | JudgedFeedback) for source in self.feedback)
        added = sum(isinstance(source, PeopleFeedback) for source in self.feedback)
        if labelled > 1 or added > 1 or (labelled and self.people_give == "comparisons"):
            raise ValueError("feedback may name one judge that labels, or one file that people add to, once; beside a "
                             "judge people may be asked for thumbs (ask_for: thumbs)")
        if self.gate.apart and not files:
            raise ValueError(f"{self.apart_name} is a reward model, which needs comparisons from a file in `feedback`")
        if isinstance(judge, JudgeReward) and judge.is_policy:
            raise ValueError("gate.judge may not be the policy, which is what it judges: name a model or an endpoint")
        if self.gate.people is not None and self.people is not None and self.gate.people.path == self.people.path:
            raise ValueError("gate.people is the file of feedback, which is trained on: name another")
        if isinstance(judge, JudgeReward) and by is not None and _asked(judge) == _asked(by):
            raise ValueError("gate.judge labels the comparisons too, and may take no part in training: name another")
        asked = [_asked(part) for part in self.reward.model.within if isinstance(part, JudgeReward)]
        if isinstance(judge, JudgeReward) and _asked(judge) in asked:
            raise ValueError("gate.judge trains the policy too, and may take no part in training: name another")
        if self.improve.rounds and (lacking := self.lacks(self.improve.method)):
            raise ValueError(f"improve.method {method_of(self.improve.method).name()} {lacking}")
        if not self.rewarded:
            self._do_without()
        needs = {material for part in self.reward.model.within for material in part.needs}
        if "comparisons" in needs and not self.compared:
            raise ValueError("feedback must name comparisons, on which the reward model is trained: [{file: ...}]")
        if "ratings" in needs and not self.rating_files:
            raise ValueError("feedback must name ratings, on which the reward model is trained: [{ratings: ...}]")
        taken = [part for part in self.reward.model.within if isinstance(part, TakenReward)]
        remote = [part for part in self.reward.model.within if isinstance(part, RemoteReward)]
        if (taken or remote) and self.reward.audit.required and not self.compared:
            name = f"reward.from, {taken[0].from_.name}," if taken else f"the reward at {remote[0].endpoint.url}"
            raise ValueError(f"{name} is audited before it trains anything: feedback must "
                             "name comparisons ([{file: ...}]), or set reward.audit.required: false")
        if isinstance(judge, RemoteReward) and judge.place in [part.place for part in remote]:
            raise ValueError("gate.judge trains the policy too, and may take no part in training: name another")
        if isinstance(judge, TakenReward) and judge.from_.path in [part.from_.path for part in taken]:
            raise ValueError("gate.judge trains the policy too, and may take no part in training: name another")
        if self.release.form == "adapters" and (whole := self.trained_whole):
            raise ValueError(f"release.form is adapters, and {whole[0]} is trained whole: give it `lora: {{}}`, or "
                             "release it merged")
        if self.prompting is not None and (why := self.prompting.too_few(self.decoding.max_tokens)):
            raise ValueError(f"prompting.tokens {why}")
        home = located("", info).resolve()
        for name, path in self.reward_files.items():
            if name.endswith(".py") and path.exists() and not path.resolve().is_relative_to(home):
                raise ValueError(f"{name}: a function is taken only from the recipe's own folder, {home}")
        return self

    def _do_without(self) -> None:
        """Refuses what needs a reward, where there is none."""
        if not self.improve.rounds:
            raise ValueError("reward is none, and with improve.rounds 0 nothing is left to do but fine-tune: give a "
                             "reward, or a round")
        if self.evaluate.of_rewards:
            raise ValueError(f"evaluate.benchmarks: {self.evaluate.of_rewards[0].name} measures rewards, and reward is "
                             "none")
        if goal := next((name for name in ("over_trivial", "share_of_ceiling") if getattr(self.goals, name)), None):
            raise ValueError(f"goals.{goal} is of a reward model, and reward is none")
        judging = self.gate.judging
        if judging is None or judging.holds_anywhere or self.gate.people is not None:
            return
        why = "needs somebody to choose: gate.judge decides, so it chooses nothing before, and reward is none"
        if self.decoding.temperature == "best":
            raise ValueError(f"decoding.temperature best {why}; name one, as decoding: {{temperature: 0}}")
        if self.prompting is not None:
            raise ValueError(f"prompting {why}; leave it out")

    @model_validator(mode="before")
    @classmethod
    def _given_pairs(cls, values: object) -> object:
        """Without a reward the pairs of DPO are those that are given: others would be scored."""
        if not isinstance(values, dict) or not is_absent(values.get("reward")):
            return values
        improve = values.get("improve")
        if not isinstance(improve, dict) or improve.get("method") != "dpo":
            return values
        return values | {"improve": {"pairs": "comparisons"} | improve}

    @property
    def judged_by_reward(self) -> bool:
        """Whether a rule of the gate's judge is one of the reward's, too."""
        rewarding = [part for part in self.reward.model.within if isinstance(part, RulesReward)]
        judging = self.gate.judge
        if not isinstance(judging, RulesReward):
            return False
        known = [rule.model_copy(update={"weight": 1.0, "name": None}) for part in rewarding for rule in part.rules]
        return any(rule.model_copy(update={"weight": 1.0, "name": None}) in known for rule in judging.rules)

    @property
    def trained_whole(self) -> list[str]:
        """Which of the stages that the released models come from are trained without `lora`."""
        trained: list[tuple[str, object]] = [("instruct", self.finetuning)]
        trained += [("improve", self.improve.method)] if self.improve.rounds else []
        trained += [("reward", part) for part in self.reward.model.within]
        return [name for name, config in trained if isinstance(config, Optimization) and config.lora is None]

    @property
    def methods(self) -> dict[str, type[Improvement]]:
        """The methods that can be compared on this recipe's budget, and what their settings are."""
        return {method.name(): method.settings for method in METHODS}

    def with_method(self, name: str) -> Recipe:
        """The recipe with another method on the same budget: what `compare` says of it, else its defaults.

        Raises:
            ValidationError: it cannot be on this budget.
        """
        settings, budget = self.methods[name], self.improve.method
        own = next((given for given in (*self.compare, budget) if type(given) is settings), settings())
        shared = Improvement.model_fields.keys() - own.model_fields_set
        given = {"pairs": "comparisons"} if settings is Dpo and not self.rewarded else {}
        method = settings(**dict(own) | {field: getattr(budget, field) for field in shared} | given)
        return self.model_copy(update={"improve": self.improve.model_copy(update={"method": method})})

    @property
    def pretraining(self) -> Pretraining | None:
        """How the Base is trained from scratch; None where it is taken."""
        return self.base.train if isinstance(self.base, TrainedBase) else None

    @property
    def finetuning(self) -> Finetuning | None:
        """How the Base becomes Instruct; None where it is that already."""
        return None if self.instruct == "none" else self.instruct.finetuning

    @property
    def apart_name(self) -> str:
        """Where the recipe names the second reward model."""
        return "gate.preferences" if self.gate.preferences else "gate.judge"

    @property
    def conversation_files(self) -> tuple[DataSource, ...]:
        """The files of conversations to learn."""
        return () if self.instruct == "none" else self.instruct.data

    @property
    def comparison_files(self) -> tuple[DataSource, ...]:
        """The files of comparisons."""
        return tuple(source for source in self.feedback if isinstance(source, FileFeedback))

    @property
    def rating_files(self) -> tuple[DataSource, ...]:
        """The files of ratings."""
        return tuple(source.source for source in self.feedback if isinstance(source, RatingFeedback))

    @property
    def thumb_files(self) -> tuple[DataSource, ...]:
        """The files of answers that were liked or not."""
        return tuple(source.source for source in self.feedback if isinstance(source, ThumbFeedback))

    @property
    def rewarded(self) -> bool:
        """Whether there is a reward."""
        return not isinstance(self.reward.model, NoReward)

    @property
    def cross_fit(self) -> CrossFit:
        """Whether comparisons are cross-fitted, which is for audits: where none is due, some are held out to watch."""
        audited = self.rewarded or self.gate.apart is not None
        return self.splits.cross_fit if audited or self.splits.cross_fit != "auto" else False

    def lacks(self, method: Improvement) -> str | None:
        """What a method learns from and the recipe has none of, in words that its name goes before."""
        if method.needs_reward and not self.rewarded:
            pairs = ", as its pairs are sampled" if isinstance(method, Dpo) and method.pairs == "sampled" else ""
            return (f"learns from scores{pairs}, and reward is none: without one dpo learns from comparisons "
                    "(pairs: comparisons, loss dpo or ipo), and kto from thumbs")
        if method.needs_comparisons and not self.compared:
            return "learns from comparisons, and feedback names none"
        if method.needs_thumbs and not self.thumb_files and self.people_give != "thumbs":
            return "learns from thumbs, and feedback names none"
        return None

    @property
    def people(self) -> UserFile | None:
        """The file that people add feedback to, if there is one."""
        return next((source.people for source in self.feedback if isinstance(source, PeopleFeedback)), None)

    @property
    def annotation(self) -> Annotation:
        """How several people are asked in every round, if they are."""
        people = (source.annotation for source in self.feedback if isinstance(source, PeopleFeedback))
        return next(people, Annotation())

    @property
    def asking(self) -> Asking | None:
        """What people are asked in every round, if they are."""
        default: Form = "thumbs" if self.improve.method.needs_thumbs else "comparisons"
        return next((
            source.asking.model_copy(update={"ask_for": source.asking.ask_for or default})
            for source in self.feedback if isinstance(source, PeopleFeedback)
        ), None)

    @property
    def people_give(self) -> Form | None:
        """The form of what people add, if they are asked."""
        return self.asking.ask_for if self.asking else None

    @property
    def growing(self) -> bool:
        """Whether rounds have comparisons of their own."""
        return self.labelling is not None or self.people_give == "comparisons"

    @property
    def compared(self) -> bool:
        """Whether there are comparisons at all."""
        return self.growing or bool(self.comparison_files)

    @property
    def labelling(self) -> Labelling | None:
        """How new comparisons are labelled in every round, if they are."""
        for source in self.feedback:
            if isinstance(source, ExactFeedback):
                return source.exact
            if isinstance(source, JudgedFeedback):
                return source.judged.labelling
        return None

    @property
    def labeller(self) -> JudgeReward | None:
        """The language model that labels them, if one does."""
        return next((source.judged.by for source in self.feedback if isinstance(source, JudgedFeedback)), None)

    @property
    def preparation(self) -> DataPreparation:
        """What is read from the user's own files."""
        return DataPreparation(
            text=_names(self.base.text), conversations=_names(self.conversation_files),
            comparisons=_names(self.comparison_files), ratings=_names(self.rating_files),
            thumbs=_names(self.thumb_files), prompts=_names(self.improve.prompts), wrong_rows=self.wrong_rows,
            reasoning=self.reasoning, benchmarks=_names(self.decontaminate),
            near_duplicates=self.near_duplicates,
            judge=self.gate.apart.share_of_feedback if self.gate.apart else 0.0,
            thumbs_heldout=0.0 if self.rewarded else self.splits.heldout,
            **dict(self.splits) | {"cross_fit": self.cross_fit},
        )

    def preparation_of(self, task: Task) -> DataPreparation:
        """How a task's prompts are read."""
        return DataPreparation(prompts=(task.named,), wrong_rows=self.wrong_rows, reasoning=self.reasoning)

    @property
    def sources(self) -> dict[str, str | Path]:
        """Where every file of the run's data lies, by the name that the recipe gives it; of a dataset its name."""
        files = (
            self.base.text, self.conversation_files, self.comparison_files, self.rating_files, self.thumb_files,
            self.improve.prompts, self.decontaminate,
        )
        return {source.file.name: source.place for source in chain(*files)}

    def trained_on(self, *, text: bool) -> list[str]:
        """The files that models learn from, by the names that the recipe gives them.

        Args:
            text: whether the Base learns its text, and is not only measured on it.
        """
        files = (
            [source for source in self.base.text if text and source.weight != 0], self.conversation_files,
            self.comparison_files, self.rating_files, self.thumb_files, self.improve.prompts,
        )
        return [source.file.name for source in chain(*files)]

    def located(self, source: Source) -> Source:
        """A file that `preparation` names, where it lies."""
        return source.at(self.sources[source.file])

    @property
    def reward_files(self) -> dict[str, Path]:
        """Where the files and folders lie that the reward, the gate's judge, who labels or a task names, by them."""
        rewards = (self.reward.model, self.gate.judge, self.labeller, *(task.score for task in self.evaluate.tasks))
        return {
            name: path
            for reward in rewards if isinstance(reward, RewardConfig) for name, path in reward.files.items()
        }

    @property
    def reflecting_model(self) -> dict[str, Path]:
        """Where the folder lies of the model that reflects on prompts, by its name; none where it has none."""
        return self.prompting.reflection.files if self.prompting and self.prompting.reflection else {}

    @property
    def taken(self) -> dict[str, TakenReward]:
        """The rewards that were made elsewhere: the "reward", a part of it as "reward/NAME", and the gate's "judge"."""
        model, judge = self.reward.model, self.gate.judge
        parts = {f"reward/{part.name}": part.reward for part in model.parts} if isinstance(model, MixtureReward) else {}
        rewards: dict[str, object] = {"reward": model, **parts, "judge": judge}
        return {place: reward for place, reward in rewards.items() if isinstance(reward, TakenReward)}

    @property
    def trains_reward(self) -> bool:
        """Whether a reward model is trained, as the reward or as the gate's judge."""
        return self.learner is not None or self.gate.apart is not None

    @property
    def learner(self) -> RewardTraining | None:
        """How the reward, or the first part of it that is trained, is trained; None where nothing is."""
        return next((part for part in self.reward.model.within if isinstance(part, RewardTraining)), None)


def _names(sources: Iterable[DataSource]) -> tuple[Source, ...]:
    return tuple(source.named for source in sources)


def _asked(judge: JudgeReward) -> tuple[Path | None, str | None, str | None]:
    """The model that is asked, wherever it is, and however patiently."""
    folder, endpoint = judge.files.get(judge.model), judge.endpoint
    place = (endpoint.url.rstrip("/"), endpoint.model) if endpoint else (None, None)
    return (folder.resolve() if folder else None, *place)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `--set` overrides applied.

    Raises:
        RecipeError: every problem with its line.
    """
    recipe = configuration.load(path, Recipe, overrides)
    for file in recipe.reward_files.values():
        if not file.exists():
            raise RecipeError(f"{file}: there is no such file, and the reward names it")
    for folder in recipe.reflecting_model.values():
        if not folder.exists():
            raise RecipeError(f"{folder}: there is no such folder, and prompting.reflection.model names it")
    for annotation in (recipe.gate.annotation, recipe.annotation):
        if annotation.guideline is not None:
            read_guideline(annotation.guideline.path)
    return recipe


def store(recipe: Recipe, destination: Path, file: Path | None = None) -> None:
    """Keeps the resolved recipe beside its results."""
    content = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
    whence = f"{file} with every default; file names are relative to {file.parent}" if file else "with every default"
    write_whole(destination, f"# {whence}\n{content}")
