"""A reward that was made elsewhere, looked over where it lies and taken into a run before anything is trained."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from triptych.data.files import read_comparisons
from triptych.display import one_line
from triptych.engine.hub import HUB_FILES, HUB_NAME, download, repository_of
from triptych.engine.inspection import ADAPTER, Stored, inspect, read_object
from triptych.engine.models import TOKENIZER_FILES, load_tokenizer, tokenizer_difference
from triptych.engine.scoring import RewardModel
from triptych.errors import ModelError, RewardError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import StageContext, UserFiles, alone
from triptych.records import Comparison, Conversation, Prompt
from triptych.reward.description import DESCRIPTION, LARGEST, TEMPLATE, Description, TakenModel
from triptych.reward.judge import POLICY, JudgeReward
from triptych.reward.rules import FUNCTIONS, OwnFunction, RulesReward
from triptych.reward.taken import TakenReward
from triptych.reward.trust import Trust
from triptych.storage import Folder, copy_regular, sha256_all

INSIDE = ("", "model", "reward", "release/reward")
"""Where a reward lies in a folder that is named: there, or where a stage, a release or a run has it."""

LEARNT = "learnt.jsonl"
"""What a training alone leaves beside its model: the rows that it was trained on."""


@dataclass(frozen=True, slots=True)
class OfferedReward:
    """A reward where it lies.

    Attributes:
        folder: with its `config.json` or `reward.json`; of the Hub, in the Hub's cache.
        hub: whether it is of the Hub.
        described: what it says that it is.
    """

    folder: Path
    hub: bool
    described: Description

    @property
    def models(self) -> list[Path]:
        """The folders of the models that it is made of."""
        return [model for part in self.described.all() for model in part.models]

    def tensors(self, model: Path) -> Mapping[str, Stored]:
        """Those of one of its models, which is looked over."""
        return inspect(model)

    def reads_otherwise(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """By what one of its models reads a conversation otherwise than a family's tokenizer; None where none does."""
        differences = (tokenizer_difference(tokenizer, load_tokenizer(model)) for model in self.models)
        return next((difference for difference in differences if difference), None)

    @property
    def parameters(self) -> int:
        """Of all of its models."""
        return sum(math.prod(tensor.shape) for model in self.models for tensor in self.tensors(model).values())

    @property
    def files(self) -> list[Path]:
        """Those that it is read from."""
        return sorted({file for part in self.described.all() for file in _files(part)})

    @property
    def learnt(self) -> list[Comparison]:
        """The comparisons that it learnt, where `triptych reward` left them beside it."""
        files = [folder / LEARNT for folder in (self.folder, self.folder.parent) if not self.hub]
        return next((read_comparisons(file) for file in files if file.is_file()), [])

    @property
    def digest(self) -> str:
        """The Hub's commit, or one digest of its files."""
        return self.folder.name if self.hub else sha256_all(self.folder, self.files)


def offered(config: TakenReward, *, is_part: bool = False) -> OfferedReward:
    """The reward that the settings name, looked over; nothing of it is computed, asked or run.

    Args:
        is_part: of a mixture.

    Raises:
        ModelError: a model of it cannot be used, or the Hub did not give it.
        RewardError: there is none, it is no reward, or it names what the settings do not allow.
    """
    folder, hub = _located(config)
    offer = OfferedReward(folder, hub, Description.of(folder, is_part=is_part))
    for part in offer.described.all():
        if isinstance(part.content, JudgeReward) and part.content.endpoint is None and part.content.model == POLICY:
            raise RewardError(f"{part.file}: asks the policy, which is this run's own: write `kind: judge` instead")
        if isinstance(part.content, TakenModel) and not part.models:
            raise RewardError(f"{part.file}: is the model {one_line(part.content.model)[:200]!r}, which is not in this "
                              "folder: name it as `from`")
    try:
        Trust.in_recipe([config]).require(offer.described, [Path(name).name for name in config.allow_model])
    except RewardError as error:
        raise RewardError(f"{error}\n(a recipe has these names beside `from`, as `allow_functions: true`)") from None
    for model in offer.models:
        if (model / ADAPTER).exists():
            raise RewardError(f"{model}: is adapters over a model that lies elsewhere; make a folder of its own of it "
                              f"with triptych merge {shlex.quote(str(model))} FOLDER, and name that")
        offer.tensors(model)
        classes = read_object(model / "config.json").get("architectures") or []
        if classes and "SequenceClassification" not in str(classes):
            raise RewardError(f"{model}: is {one_line(classes[0])[:100]}; a reward is a sequence classifier, whose "
                              "output is the score; a language model that is asked is `kind: judge`")
    return offer


def _located(config: TakenReward) -> tuple[Path, bool]:
    """Where the reward lies, and whether that is the Hub's cache."""
    name, path = config.from_.name, config.from_.path
    if path.is_dir():
        for folder in (path / inner for inner in INSIDE):
            if any((folder / file).is_file() for file in (DESCRIPTION, "config.json")):
                return folder, False
        raise RewardError(f"{name}: no reward is here: neither {DESCRIPTION} nor a sequence classifier's config.json, "
                          "nor a release or a run with one")
    if path.exists() or not HUB_NAME.fullmatch(name):
        raise RewardError(f"{name}: there is no such folder, and it is neither a name on the Hub nor an address")
    return download(name), True


def _files(part: Description) -> Iterator[Path]:
    """The files of a reward without its parts'."""
    for model in part.models:
        for pattern in HUB_FILES:
            yield from model.glob(pattern)
    if part.content is not None:
        yield part.file
    if isinstance(part.content, JudgeReward):
        yield part.folder / TEMPLATE
    if isinstance(part.content, RulesReward):
        for place, rule in enumerate(part.content.rules):
            if isinstance(rule, OwnFunction):
                yield part.folder / FUNCTIONS / f"{place}.py"


class RewardTaken(Result):
    """A reward that was taken.

    Attributes:
        source: the Hub's name, or the last part of the path (never the whole, which is this machine's own).
        hub: whether it is of the Hub.
        digest: the Hub's commit, or one digest of its files.
        parameters: of its models.
        released: whether its models can be released: they have the Base's tokenizer.
    """

    source: str
    hub: bool
    digest: str
    parameters: int
    released: bool

    @property
    def headline(self) -> str:
        """Which it is."""
        return self.source + ("" if self.released else ", not released")


def take_rewards(
    runner: Runner, rewards: Mapping[str, TakenReward], base: Artifact[Result] | None
) -> dict[str, Artifact[Result]]:
    """The rewards that were made elsewhere, by the names that their settings give them; each is taken once.

    Args:
        rewards: by their places, which name the stages.
        base: whose tokenizer the released ones must have; None where nothing is released.
    """
    taken: dict[str, Artifact[Result]] = {}
    for place, config in rewards.items():
        name, path = config.from_.name, config.from_.path
        if name not in taken:
            folder = runner.outside(partial(_folder_of, config), planned=path)
            sources = UserFiles({name: folder, **config.files})
            taken[name] = runner.run(f"taken/{place}", take_reward, config, base=base, sources=sources)
    return taken


def _folder_of(config: TakenReward) -> Path:
    """Where its files lie; of the Hub its name, which stands for itself."""
    return offered(config).folder if config.from_.path.exists() else config.from_.path


@alone
def take_reward(
    context: StageContext, config: TakenReward, base: Folder | None, sources: Mapping[str, str | Path]
) -> RewardTaken:
    """Copies what the reward is read from, and has its models score an answer.

    A family shares one tokenizer. A model that reads conversations as the Base does gets its files. Another one scores
    like any other, and is not released: `reward.json` says of it what the release will.

    Raises:
        ModelError, RewardError: as `offered`; or it is made of several models with another tokenizer.
    """
    offer = offered(config)
    source = repository_of(config.from_.name) if offer.hub else config.from_.path.resolve().name
    differs = offer.reads_otherwise(load_tokenizer(base / "model")) if base and offer.models else None
    if differs and offer.described.content is not None:
        raise RewardError(
            f"{config.from_.name}: {differs} of a model of it is not the Base's, and a family shares one tokenizer; "
            "only a reward that is one model can be left out of the release"
        )
    copied = context.output / "model" if offer.described.content is None else context.output
    for file in offer.files:
        place = copied / file.relative_to(offer.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if any(file.is_relative_to(model) for model in offer.models):
            shutil.copyfile(file, place)
        else:
            copy_regular(file, place, LARGEST)
    if base and not differs:  # what else its files say, of lengths and sides, is the family's too
        for model in offer.models:
            for name in TOKENIZER_FILES:
                shutil.copyfile(base / "model" / name, copied / model.relative_to(offer.folder) / name)
    for model in offer.models:
        _require_score(copied / model.relative_to(offer.folder), config.from_.name)
    digest = offer.digest
    if differs:
        context.progress.say(
            f"{config.from_.name}: {differs} is not the Base's; it scores like any reward, and is not released: "
            "a family shares one tokenizer"
        )
        content = {"kind": "taken", "model": Path(source).name, "model_digest": digest}
        (context.output / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return RewardTaken(
        source=source, hub=offer.hub, digest=digest, parameters=offer.parameters, released=not differs
    )


def _require_score(model: Path, name: str) -> None:
    """Refuses a model that cannot score an answer, which it is asked to.

    Raises:
        RewardError: it cannot, and why.
    """
    try:
        (score,) = RewardModel(model).score([Conversation(Prompt.of("Who are you?"), "A language model.")])
    except ModelError as error:
        raise RewardError(f"{name}: {error}") from error
    if not math.isfinite(score):
        raise RewardError(f"{name}: its score of an answer is {score}")
