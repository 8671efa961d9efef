"""The recipe: each stage's own settings put together, loaded from one YAML file and checked.

File names in a recipe are relative to the recipe's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, create_model, model_validator

from triptych import configuration
from triptych.audit.stage import Audit
from triptych.base.pretraining import Pretraining
from triptych.configuration import Config, tagged
from triptych.data.files import dataset_name
from triptych.dataset.preparation import DataPreparation
from triptych.errors import RecipeError
from triptych.evaluate.answers import Answering
from triptych.evaluate.decoding import Decoding
from triptych.evaluate.gate import Gate
from triptych.evaluate.measurement import Measurement
from triptych.feedback.labelling import ExactLabelling, Labelling
from triptych.improve.loop import Improvement
from triptych.improve.registry import METHODS, method_of
from triptych.instruct.finetuning import Finetuning
from triptych.people.questions import Asking
from triptych.release.signature import Signing
from triptych.reward.ensemble import EnsembleReward
from triptych.reward.judge import JudgeReward
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import Reward
from triptych.reward.regression import RegressionReward
from triptych.reward.rules import RulesReward
from triptych.reward.training import PairwiseReward, RewardTraining
from triptych.storybook.world import Storybook


class BaseSection(Config):
    """Where the Base comes from: taken (`from`), or trained from scratch (`train`) on `text`.

    Attributes:
        chat_template: "chatml" or a .jinja file; by default the model's own, or ChatML where it has none.
        text: files of plain text; a taken Base is only measured on their held-out part.
    """

    from_: str | None = Field(default=None, alias="from")
    train: Pretraining | None = None
    chat_template: str | None = None
    text: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> BaseSection:
        if (self.from_ is None) == (self.train is None):
            raise ValueError("needs either `from` (a folder, a .gguf file, a Hub name) or `train`")
        return self


class InstructSection(Finetuning):
    """Fine-tuning and its conversations."""

    data: tuple[str, ...] = ()


class FileFeedback(Config):
    """Comparisons from a file."""

    file: str


class ExactFeedback(Config):
    """Comparisons of what the champion writes, labelled by the storybook's exact judge in every round."""

    exact: ExactLabelling = ExactLabelling()


class JudgedLabelling(Labelling):
    """Labels by a language model.

    Attributes:
        by: the model; it may be the champion itself.
    """

    by: JudgeReward


class JudgedFeedback(Config):
    """Comparisons of what the champion writes, labelled by a language model in every round."""

    judged: JudgedLabelling


class PeopleFeedback(Asking):
    """Comparisons that people add to a file while the run goes on; each round takes those that are new.

    Attributes:
        people: the file.
    """

    people: str = Field(pattern=r".\.jsonl$")


class AuditSection(Audit):
    """The audit, and what a failed one does.

    Attributes:
        required: stop the run if the audit fails; if False it goes on and the release records the failure.
    """

    required: bool = True


class RatingFeedback(Config):
    """Answers rated by attributes, from a file."""

    ratings: str


class ThumbFeedback(Config):
    """Answers that were liked or not, from a file."""

    thumbs: str


class Audited(Config):
    """A reward of some kind, and its audit."""

    audit: AuditSection = AuditSection()

    @property
    def reward(self) -> Reward:
        """The settings without the audit's."""
        kind = next(each for each in get_args(Reward) if isinstance(self, each))
        found: Reward = settings(kind, self)
        return found


class PairwiseSection(PairwiseReward, Audited):
    """A reward model trained on comparisons."""


class RegressionSection(RegressionReward, Audited):
    """A reward model of several attributes."""


class EnsembleSection(EnsembleReward, Audited):
    """Several reward models."""


class RulesSection(RulesReward, Audited):
    """Rules."""


class JudgingSection(JudgeReward, Audited):
    """A language model that judges."""


class MixtureSection(MixtureReward, Audited):
    """A weighted sum of rewards."""


RewardSection = Annotated[
    PairwiseSection | RegressionSection | EnsembleSection | RulesSection | JudgingSection | MixtureSection,
    Field(discriminator="kind"), tagged("kind", "pairwise"),
]


class Rounds(Config):
    """The prompts of improvement, whatever its method, and how many rounds."""

    prompts: tuple[str, ...] = ()
    rounds: int = Field(default=1, ge=0)

    @property
    def own(self) -> Improvement:
        """The method's settings."""
        assert isinstance(self, Improvement)
        found: Improvement = settings(method_of(self).settings, self)
        return found


def rounds_of(kind: type[Improvement]) -> Any:
    """The section of a recipe that a method's settings and its rounds make."""
    return create_model(f"{kind.__name__}Section", __base__=(kind, Rounds), __doc__=kind.__doc__)


IMPROVE_SECTIONS: Mapping[str, Any] = {method.name(): rounds_of(method.settings) for method in METHODS}
"""The section of each method, by the method's name."""

if TYPE_CHECKING:
    class ImproveSection(Improvement, Rounds):
        """What the sections of all methods have."""

        method: str
else:
    ImproveSection = Annotated[
        reduce(or_, IMPROVE_SECTIONS.values()), Field(discriminator="method"), tagged("method", "grpo"),
    ]


class JudgeSection(PairwiseReward):
    """A second reward model as the gate's judge, trained on comparisons that the first one never sees."""

    share_of_feedback: float = Field(default=0.5, gt=0, lt=1)


GateJudge = Annotated[
    JudgeSection | RulesReward | JudgeReward, Field(discriminator="kind"), tagged("kind", "pairwise")
]


class GateSection(Answering, Gate):
    """The gate and who judges there.

    Attributes:
        judge: takes no part in the training; measures every model.
        people: the file in which people say which answer they prefer, where they decide at the gate.
    """

    judge: Literal["exact"] | GateJudge = JudgeSection()
    people: str | None = Field(default=None, pattern=r".\.jsonl$")


class SplitSection(Config):
    """How much of the user's own data is kept for measuring; see `Intake`."""

    test: int = Field(default=300, ge=2)
    gate: int = Field(default=600, ge=2)
    validation: int = Field(default=64, ge=8)
    heldout: float = Field(default=0.15, gt=0, lt=0.5)


class ReleaseSection(Config):
    """How the family is published.

    Attributes:
        sign: with what; by default the release is not signed.
    """

    version: str = "1.0"
    license: str = "other"
    language: str = "en"
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
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=1, ge=0, lt=2**31)
    storybook: Storybook | None = None
    base: BaseSection
    instruct: InstructSection = InstructSection()
    feedback: tuple[
        FileFeedback | RatingFeedback | ThumbFeedback | ExactFeedback | JudgedFeedback | PeopleFeedback, ...
    ] = ()
    reward: RewardSection = PairwiseSection()
    improve: ImproveSection = IMPROVE_SECTIONS["grpo"]()
    compare: tuple[ImproveSection, ...] = ()
    decoding: Decoding = Decoding()
    gate: GateSection = GateSection()
    evaluate: Measurement = Measurement()
    splits: SplitSection = SplitSection()
    wrong_rows: Literal["refuse", "skip"] = "refuse"
    release: ReleaseSection = ReleaseSection()
    goals: Goals = Goals()

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        exact = [source for source in self.feedback if isinstance(source, ExactFeedback)]
        files = self.comparison_files
        if self.storybook is None:
            if exact or self.gate.judge == "exact":
                raise ValueError("the exact judge only knows the storybook: add `storybook: {}` or name another judge")
            if not self.instruct.data:
                raise ValueError("instruct.data must name at least one file of conversations")
            if self.base.train is not None and not self.base.text:
                raise ValueError("base.text must name the files that a Base is trained on")
        elif (
            files or self.rating_files or self.thumb_files or self.instruct.data or self.improve.prompts
            or self.base.text or self.base.train is None
        ):
            raise ValueError("the storybook brings all of the data; files of your own go into a recipe without it")
        growing = ExactFeedback | JudgedFeedback | PeopleFeedback
        if len([source for source in self.feedback if isinstance(source, growing)]) > 1:
            raise ValueError("feedback may name one judge that labels, or one file that people add to, once")
        if isinstance(self.gate.judge, JudgeSection) and not files:
            raise ValueError("gate.judge is a reward model, which needs comparisons from a file in `feedback`")
        judge = self.gate.judge
        if isinstance(judge, JudgeReward) and judge.is_policy:
            raise ValueError("gate.judge may not be the policy, which is what it judges: name a model or an endpoint")
        if self.gate.people is not None and self.gate.people == self.people:
            raise ValueError("gate.people is the file of feedback, which is trained on: name another")
        labelling = self.labelling
        if isinstance(judge, JudgeReward) and isinstance(labelling, JudgedLabelling) and (
            (judge.model, judge.endpoint) == (labelling.by.model, labelling.by.endpoint)
        ):
            raise ValueError("gate.judge labels the comparisons too, and may take no part in training: name another")
        if lacking := self.lacks(self.improve):
            raise ValueError(f"improve.method {self.improve.method} learns from {lacking}, and feedback names none")
        needs = {material for part in self.reward.reward.within for material in part.needs}
        if "comparisons" in needs and not self.compared:
            raise ValueError("feedback must name comparisons, on which the reward model is trained: [{file: ...}]")
        if "ratings" in needs and not self.rating_files:
            raise ValueError("feedback must name ratings, on which the reward model is trained: [{ratings: ...}]")
        return self

    @property
    def methods(self) -> list[str]:
        """The methods that can be compared on this recipe's budget."""
        return list(IMPROVE_SECTIONS)

    def with_method(self, method: str) -> Recipe:
        """The recipe with another method on the same budget: what `compare` says of it, else its defaults."""
        told = next((section for section in (*self.compare, self.improve) if section.method == method), None)
        section = told if told is not None else IMPROVE_SECTIONS[method]()
        shared = {name: getattr(self.improve, name) for name in (*Improvement.model_fields, *Rounds.model_fields)
                  if name not in section.model_fields_set}
        return self.model_copy(update={"improve": section.model_copy(update=shared)})

    @property
    def comparison_files(self) -> tuple[str, ...]:
        """The files of comparisons."""
        return tuple(source.file for source in self.feedback if isinstance(source, FileFeedback))

    @property
    def rating_files(self) -> tuple[str, ...]:
        """The files of ratings."""
        return tuple(source.ratings for source in self.feedback if isinstance(source, RatingFeedback))

    @property
    def thumb_files(self) -> tuple[str, ...]:
        """The files of answers that were liked or not."""
        return tuple(source.thumbs for source in self.feedback if isinstance(source, ThumbFeedback))

    def lacks(self, method: Improvement) -> str | None:
        """What of people's feedback a method learns from and the recipe has none of."""
        if method.needs_comparisons and not self.compared:
            return "comparisons"
        return "thumbs" if method.needs_thumbs and not self.thumb_files else None

    @property
    def people(self) -> str | None:
        """The file that people add comparisons to, if there is one."""
        return next((source.people for source in self.feedback if isinstance(source, PeopleFeedback)), None)

    @property
    def asking(self) -> Asking | None:
        """What people are asked in every round, if they are."""
        return next((settings(Asking, each) for each in self.feedback if isinstance(each, PeopleFeedback)), None)

    @property
    def growing(self) -> bool:
        """Whether rounds have comparisons of their own."""
        return self.labelling is not None or self.people is not None

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
                return source.judged
        return None

    @property
    def preparation(self) -> DataPreparation:
        """What is read from the user's own files."""
        judge = self.gate.judge
        return DataPreparation(
            text=self.base.text, conversations=self.instruct.data, comparisons=self.comparison_files,
            ratings=self.rating_files, thumbs=self.thumb_files, prompts=self.improve.prompts,
            wrong_rows=self.wrong_rows,
            judge=judge.share_of_feedback if isinstance(judge, JudgeSection) else 0.0,
            **self.splits.model_dump(),
        )

    @property
    def sources(self) -> dict[str, str | Path]:
        """Every data file by the name that the recipe gives it: its path, or the name of a dataset."""
        return {name: self.place(name) for names in self._data_names() for name in names}

    def _data_names(self) -> Iterator[Sequence[str]]:
        yield self.base.text
        yield self.instruct.data
        yield self.comparison_files
        yield self.rating_files
        yield self.thumb_files
        yield self.improve.prompts

    @property
    def base_place(self) -> str | Path:
        """The Base's folder or .gguf file; what is neither stays as it is, a name on the Hub."""
        assert self.base.from_ is not None
        path = self._folder / Path(self.base.from_).expanduser()
        return path if path.exists() or path.suffix.lower() == ".gguf" or self.base.from_.startswith((".", "/", "~")) \
            else self.base.from_

    @property
    def learner(self) -> RewardTraining | None:
        """How the reward, or the first part of it that is trained, is trained; None where nothing is."""
        return next((part for part in self.reward.reward.within if isinstance(part, RewardTraining)), None)

    def reward_files(self, reward: Reward) -> dict[str, str | Path]:
        """The files and folders that a reward's settings name, by these names.

        Raises:
            RecipeError: one is missing, or a file with a function lies outside the recipe's folder.
        """
        found: dict[str, str | Path] = {}
        home = self._folder.resolve()
        for name in (name for part in reward.within for name in part.files):
            path = self._folder / Path(name).expanduser()
            if not path.exists():
                raise RecipeError(f"{path}: there is no such file, and the reward names it")
            if name.endswith(".py") and not path.resolve().is_relative_to(home):
                raise RecipeError(f"{name}: a function is taken only from the recipe's own folder, {home}")
            found[name] = path
        return found

    @property
    def signing(self) -> Signing | None:
        """How the release is signed, its key where it lies."""
        sign = self.release.sign
        return sign.model_copy(update={"key": str(self.place(sign.key))}) if sign and sign.key else sign

    def place(self, name: str) -> str | Path:
        """Where a file named in the recipe lies; a dataset's or a Hub model's name stays as it is."""
        path = self._folder / Path(name).expanduser()
        return name if not path.exists() and dataset_name(name) else path


def settings(kind: type[Config], section: Config) -> Any:
    """The part of a recipe's section that is a stage's own configuration."""
    return kind(**{name: getattr(section, name) for name in kind.model_fields})


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `--set` overrides applied.

    Raises:
        RecipeError: every problem with its line.
    """
    recipe = configuration.load(path, Recipe, overrides)
    recipe._folder = path.parent
    recipe.reward_files(recipe.reward.reward)
    if isinstance(recipe.gate.judge, RulesReward | JudgeReward):
        recipe.reward_files(recipe.gate.judge)
    if isinstance(recipe.labelling, JudgedLabelling):
        recipe.reward_files(recipe.labelling.by)
    return recipe
