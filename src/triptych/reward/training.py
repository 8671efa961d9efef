"""A reward model trained on comparisons, on ratings, or on both at once.

All comparisons and ratings of a prompt are one group: the prompt and each distinct answer are computed once, however
many rows they are in, and they stay in one update (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from triptych.data.folder import HELD_OUT, DataFolder, TrainedOn
from triptych.data.lengths import TokenizedComparison, fit
from triptych.engine import attention, distributed
from triptych.engine.adapters import adapt
from triptych.engine.curve import write_curve
from triptych.engine.forward import head_outputs
from triptych.engine.inspection import trunk_of
from triptych.engine.models import load_reward, load_tokenizer, parameters, save
from triptych.engine.packing import Pack, fill
from triptych.engine.scoring import Output, RewardModel, Scale, pack_scored
from triptych.engine.training import GradientAccumulation, Loss, Step, shuffled, train
from triptych.errors import AuditError
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Comparison, Conversation, Rating
from triptych.reward.kind import Material, RewardConfig
from triptych.reward.losses import bradley_terry, squared_error
from triptych.reward.making import Making, given
from triptych.storage import Folder

REFERENCES = 512
"""So many answers set the mean and the deviation of a reward model's scores."""


class RewardTraining(GradientAccumulation, RewardConfig):
    """What every trained kind has.

    Attributes:
        start: what a first reward model starts from, the round's champion or the Base; later rounds go on from the
            last reward model.
        epochs: passes over the comparisons.
        refresh_epochs: passes when it goes on from the last round's reward model.
        batch_pairs: comparisons (and ratings) in an update; a prompt's stay together.
        context: longest prompt with one answer, in tokens.
        overlong: what happens to longer ones: left out, or their answers cut. Either is counted and reported.
        margin: by how much the chosen answer should win: not at all, by the data's `margin` where there is one, or
            by the lead in votes, from 0 (as many for either) to 1 (all for the chosen one). Trained with margins, a
            difference of scores is no log-odds.
        center_rewards_coefficient: pulls r_chosen + r_rejected towards zero, so that scores of models can be compared.
    """

    start: Literal["champion", "base"] = "champion"
    epochs: int = Field(default=2, ge=1)
    refresh_epochs: int = Field(default=1, ge=1)
    batch_pairs: int = Field(default=32, ge=1)
    context: int = Field(default=512, ge=16)
    overlong: Literal["drop", "truncate"] = "drop"
    margin: Literal["none", "data", "votes"] = "data"
    center_rewards_coefficient: float = Field(default=0.01, ge=0)
    learning_rate: float = Field(default=1e-5, gt=0)


class PairwiseReward(RewardTraining):
    """A Bradley-Terry reward model, trained on comparisons."""

    needs: ClassVar[frozenset[Material]] = frozenset({"comparisons"})
    kind: Literal["pairwise"] = "pairwise"

    def make(self, making: Making) -> Artifact[Result]:
        """A training on the round's comparisons."""
        return making.runner.run(
            making.name, train_reward, self, start=making.start(self.start),
            comparisons=given(making.materials.comparisons), share=making.materials.share, member=making.member,
        )


class RewardTrained(Result):
    """What a reward model was trained on.

    Attributes:
        dropped, truncated: rows that are longer than the context.
        raw_mean, raw_deviation: of the raw scores that set its scale.
    """

    parameters: int
    comparisons: int
    ratings: int
    dropped: int
    truncated: int
    epochs: int
    raw_mean: float
    raw_deviation: float


SEEDS: Mapping[TrainedOn, int] = {"train": 0, "judge": 500_000}
"""What is added to the run's seed: the gate's own model must not start from the reward's head. What the policy is
optimised along would be a direction that the two have in common, whatever either learnt."""


@reads(comparisons=("comparisons",))
def train_reward(
    context: StageContext, config: PairwiseReward, start: Folder, comparisons: Folder, share: TrainedOn = "train",
    member: int = 0,
) -> RewardTrained:
    """Trains on the comparisons of a split, from a policy or from an earlier reward model.

    Args:
        member: which of an ensemble; each has its own head to start from, and its own order of the data.
    """
    files = DataFolder(comparisons)
    rows = files.comparisons(share).read()
    trained = fit_model(context, config, start, rows, seed=context.seed + 1_000 * member + SEEDS[share])
    heldout = files.comparisons(HELD_OUT[share])
    # A margin moves the difference at which a pair is learnt, so that it is no longer the log-odds.
    log_odds = not any(row.margin for row in with_margins(rows, config.margin))
    scale = Scale({"reward": Output()}, log_odds=log_odds)
    return trained.finish(context, scale, answers_of(heldout.read_any() or rows))


@dataclass
class TrainedModel:
    """A model that was trained, and what it was trained on: see :class:`RewardTrained`.

    Attributes:
        trunk: the folder of the weights that its adapters, if it has any, are added to.
    """

    model: Any
    tokenizer: Any
    trunk: Path
    comparisons: int
    ratings: int
    dropped: int
    truncated: int
    epochs: int

    def scorer(self, scale: Scale) -> RewardModel:
        """The model as it is, as a scorer with this scale."""
        scorer = RewardModel(Path(), shard_map=distributed.shard_map)
        scorer.model, scorer.tokenizer, scorer.scale = self.model, self.tokenizer, scale
        return scorer

    def finish(self, context: StageContext, scale: Scale, reference: Sequence[Conversation]) -> RewardTrained:
        """Completes the scale by the mean and deviation of the reference answers' raw scores, and saves."""
        raw = torch.tensor(self.scorer(scale).raw(reference), dtype=torch.float64, device="cpu")
        deviation = float(raw.std(correction=0))
        # Where all raw scores are equal there is nothing to bring to a deviation of 1; the audit says so.
        finished = dataclasses.replace(scale, mean=float(raw.mean()), deviation=deviation if deviation > 1e-6 else 1.0)
        finished.tell(self.model.config)
        save(self.model, self.tokenizer, context.output / "model", trunk=context.name(self.trunk))
        return RewardTrained(
            parameters=parameters(self.model), comparisons=self.comparisons, ratings=self.ratings,
            dropped=self.dropped, truncated=self.truncated, epochs=self.epochs,
            raw_mean=float(raw.mean()), raw_deviation=deviation,
        )


def answers_of(comparisons: Sequence[Comparison], ratings: Sequence[Rating] = ()) -> list[Conversation]:
    """The answers of comparisons and ratings, at most as many as set a scale."""
    answers = [Conversation(row.prompt, answer) for row in comparisons for answer in (row.chosen, row.rejected)]
    return (answers + [Conversation(row.prompt, row.response) for row in ratings])[:REFERENCES]


@dataclass(slots=True)
class _Batch:
    """Packed rows: the segments of each comparison's answers `[B]`, of the rated ones `[R]`, their targets `[R, K]`."""

    pack: Pack
    chosen: Tensor
    rejected: Tensor
    margin: Tensor | None
    rated: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class TokenizedRating:
    """A prompt's tokens, an answer's, and the answer's attributes as targets of the head's outputs."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    targets: tuple[float, ...]


@dataclass(slots=True)
class _Group:
    """The comparisons and ratings of one prompt, the comparisons' lines, and its distinct answers."""

    prompt: tuple[int, ...]
    rows: list[TokenizedComparison] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    ratings: list[TokenizedRating] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(answer) for answer in self.answers)

    @property
    def weight(self) -> int:
        return len(self.rows) + len(self.ratings)


def fit_model(
    context: StageContext, config: RewardTraining, start: Folder, comparisons: Sequence[Comparison],
    ratings: Sequence[Rating] = (), attributes: Sequence[Output] = (), names: Sequence[str] = ("reward",),
    seed: int = 0, comparison_weight: float = 1.0,
) -> TrainedModel:
    """Trains one model; comparisons order its last output, ratings fit the ones before it.

    The loss of an update is Σ bradley_terry · comparison_weight + Σ squared_error over its rows, divided by their
    number.

    Args:
        start: an artifact with `model/`: a policy, or an earlier reward model with the same outputs.
        attributes: mean and deviation of the rated attributes, by which targets are standardised.
        names: of the head's outputs; the attributes' first.
        seed: of a fresh head and of the order of the data.
    """
    folder = start / "model"
    tokenizer = load_tokenizer(folder)
    marked = with_margins(comparisons, config.margin)
    fitted = fit(marked, tokenizer, config.context, config.overlong, scored=True)
    if fitted.dropped or fitted.truncated:
        context.progress.say(f"comparisons: {fitted}")
    rows, lines, dropped, truncated = fitted.rows, fitted.lines, fitted.dropped, fitted.truncated
    kept = _rated(ratings, names, attributes, tokenizer, config)
    if len(kept) < len(ratings):
        context.progress.say(f"ratings: {len(ratings) - len(kept)} of {len(ratings)} are too long and left out")
    if not rows and not kept:
        raise AuditError(
            f"no row is left to train on ({dropped + len(ratings)} are too long); raise reward.context or give more"
        )
    refreshed = _has_outputs(folder, names)
    epochs = config.refresh_epochs if refreshed else config.epochs
    model: Any = load_reward(
        folder, fresh=not refreshed, outputs=names, seed=seed, attention=attention.NAME, merged=config.lora is None
    )
    adapt(model, config.lora, seed, folder)
    groups = _grouped(rows, lines, kept)
    plan = [
        [order[i] for i in members]
        for epoch in range(epochs)
        for order in [shuffled(len(groups), epoch, seed)]
        for members in fill((groups[i].weight for i in order), config.batch_pairs)
    ]

    def prepare(step: int) -> Step[_Batch]:
        drawn = [groups[i] for i in plan[step]]
        dealt = distributed.micro_batches((group.tokens for group in drawn), config.at_once)
        batches = [_packed([drawn[i] for i in part], model.device) for part in dealt]
        lines = [line for group in drawn for line in group.lines]
        return Step(batches, weight=sum(group.weight for group in drawn), rows=lines)

    def loss(batch: _Batch) -> Loss:
        outputs = head_outputs(model, batch.pack)
        chosen, rejected = outputs[batch.chosen, -1], outputs[batch.rejected, -1]
        total = comparison_weight * bradley_terry(
            chosen, rejected, batch.margin, config.center_rewards_coefficient).sum(
        )
        numbers = {"accuracy": (chosen > rejected).float().sum()} if rows and not kept else {}
        if kept:
            error = squared_error(outputs[batch.rated, : batch.targets.shape[1]], batch.targets).sum()
            total, numbers = total + error, {"squared_error": error}
        return Loss(total, numbers)

    curve = train(
        model, len(plan), prepare, loss, config,
        checkpoint=context.checkpoint(), progress=context.progress, unit="rows" if kept else "pairs",
    )
    write_curve(context.output / "curve.jsonl", curve)
    return TrainedModel(
        model, tokenizer, trunk_of(folder), comparisons=len(rows), ratings=len(kept),
        dropped=dropped + len(ratings) - len(kept), truncated=truncated, epochs=epochs,
    )


def with_margins(rows: Iterable[Comparison], margin: Literal["none", "data", "votes"]) -> list[Comparison]:
    """The comparisons with the margins that are to be trained on.

    The lead of v of n votes is (2v − n) / n; a comparison without votes has none.
    """
    if margin == "data":
        return list(rows)
    leading = []
    for row in rows:
        votes, people = row.votes_for_chosen, row.num_annotators
        lead = (2 * votes - people) / people if margin == "votes" and votes is not None and people else None
        leading.append(dataclasses.replace(row, margin=lead))
    return leading


def _rated(
    ratings: Sequence[Rating], names: Sequence[str], attributes: Sequence[Output], tokenizer: Any,
    config: RewardTraining,
) -> list[TokenizedRating]:
    """The ratings that fit the context, their scores standardised; NaN where an attribute was not rated."""
    answers = [Conversation(rating.prompt, rating.response) for rating in ratings]
    fitted = fit(answers, tokenizer, config.context, config.overlong, scored=True)
    return [
        TokenizedRating(row.prompt, row.answer, tuple(
            (ratings[line - 1].scores.get(name, float("nan")) - part.mean) / part.deviation
            for name, part in zip(names, attributes, strict=False)
        ))
        for row, line in zip(fitted.rows, fitted.lines, strict=True)
    ]


def _grouped(
    rows: Sequence[TokenizedComparison], lines: Sequence[int], ratings: Sequence[TokenizedRating] = ()
) -> list[_Group]:
    """The rows by prompt, in the order in which prompts first appear."""
    groups: dict[tuple[int, ...], _Group] = {}
    for row, line in zip(rows, lines, strict=True):
        group = groups.setdefault(row.prompt, _Group(row.prompt))
        group.rows.append(row)
        group.lines.append(line)
        group.answers += [answer for answer in (row.chosen, row.rejected) if answer not in group.answers]
    for rating in ratings:
        group = groups.setdefault(rating.prompt, _Group(rating.prompt))
        group.ratings.append(rating)
        group.answers += [rating.answer] if rating.answer not in group.answers else []
    return list(groups.values())


def _packed(groups: Sequence[_Group], device: torch.device | str) -> _Batch:
    pack, scored = pack_scored([(group.prompt, group.answers) for group in groups], device)
    chosen, rejected, margins, rated, targets = [], [], [], [], []
    first = 0
    for group in groups:
        places = {answer: first + place for place, answer in enumerate(group.answers)}
        first += len(group.answers)
        for row in group.rows:
            chosen.append(places[row.chosen])
            rejected.append(places[row.rejected])
            margins.append(row.margin)
        for rating in group.ratings:
            rated.append(places[rating.answer])
            targets.append(rating.targets)
    given = any(margin is not None for margin in margins)
    return _Batch(
        pack, scored[chosen], scored[rejected],
        torch.tensor([margin or 0.0 for margin in margins], device=device) if given else None,
        scored[rated], torch.tensor(targets, device=device) if targets else torch.zeros(0, 0, device=device),
    )


def _has_outputs(folder: Path, names: Sequence[str]) -> bool:
    """Whether the folder's model is a reward model with just these outputs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "SequenceClassification" not in str(config.get("architectures")):
        return False
    labels = list((config.get("id2label") or {0: "LABEL_0"}).values())
    return labels == list(names) or len(labels) == len(names) == 1
