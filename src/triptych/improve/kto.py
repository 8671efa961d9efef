"""Kahneman-Tversky optimisation: a policy improved on single answers that were liked or not, without pairs.

Ethayarajh et al. (2024), *KTO: Model Alignment as Prospect Theoretic Optimization*. What an answer gains is its
log-ratio beyond a reference point, the policy's distance from the champion. A liked answer shall gain, another shall
lose, and the more either did so already the less it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from triptych.data.folder import DataFolder
from triptych.data.lengths import fit
from triptych.engine import distributed
from triptych.engine.curve import Curve, Row
from triptych.engine.forward import AnswerPack, Model, answer_logprobs, by_answer, pack_answers
from triptych.engine.rollout import infer
from triptych.engine.training import Loss, Step
from triptych.errors import TrainingError
from triptych.improve import losses
from triptych.improve.loop import Improvement, Loop, passes
from triptych.improve.method import Method
from triptych.records import Thumb
from triptych.storage import Folder

BALANCE = (1.0, 1.5)
"""Between which λ_D·n_D / (λ_U·n_U) should lie, says the paper in section 4.2."""


class Kto(Improvement):
    """Improvement on thumbs; a step takes the next `prompts_per_step` of them.

    Attributes:
        kl_coefficient: β, by which log-ratios are multiplied: the larger, the nearer the policy stays.
        desirable_weight, undesirable_weight: λ_D and λ_U, of thumbs up and down.
        context: longest prompt with its answer in tokens; longer ones are left out.
    """

    method: Literal["kto"] = "kto"
    kl_coefficient: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    context: int = Field(default=512, ge=16)

    @property
    def needs_thumbs(self) -> bool:
        """They are all it learns from."""
        return True

    @property
    def needs_reward(self) -> bool:
        """Thumbs say themselves what is liked."""
        return False

    @model_validator(mode="after")
    def _unsampled(self) -> Self:
        if self.updates_per_rollout > 1:
            raise ValueError("updates_per_rollout is of samplings, and kto samples none; leave it 1")
        return self


@dataclass(frozen=True, slots=True)
class Liked:
    """The tokens of a prompt and an answer, and whether this was liked."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    liked: bool


@dataclass(slots=True)
class LikedPack:
    """Packed answers.

    Attributes:
        reference: `[A]` the reference's log-probability of each.
        liked: `[A]`.
        distance: z of the step.
    """

    packed: AnswerPack
    reference: Tensor
    liked: Tensor
    distance: float


class KtoMethod(Method[Kto, LikedPack]):
    """KTO over the loop."""

    settings = Kto
    unit = "answers"

    def __init__(self, loop: Loop, config: Kto, feedback: Folder | None = None) -> None:
        super().__init__(loop, config, feedback)
        data = DataFolder(feedback or loop.data)
        self.rows, self.lines = self._fitting(data.thumbs.read())
        if not self.rows:
            raise TrainingError("no thumb is left to train on; raise improve.context or give more of them")
        self.held, _ = self._fitting(data.thumbs_heldout.read_any())
        self.plan = passes(len(self.rows), config, loop.seed)
        up = sum(row.liked for row in self.rows)
        weights = config.desirable_weight * up, config.undesirable_weight * (len(self.rows) - up)
        if not BALANCE[0] * weights[1] <= weights[0] <= BALANCE[1] * weights[1]:
            loop.context.progress.say(
                f"thumbs: {up} are up and {len(self.rows) - up} down; improve.desirable_weight and undesirable_weight "
                "should make those that are up count 1 to 1.5 times as much together"
            )

    def _fitting(self, thumbs: Sequence[Thumb]) -> tuple[list[Liked], Sequence[int]]:
        """Those that are not too long, and their lines."""
        limit = min(self.config.context, self.loop.policy.context or self.config.context)
        fitted = fit([thumb.question for thumb in thumbs], self.loop.tokenizer, limit, "drop")
        if fitted.dropped:
            self.loop.context.progress.say(f"thumbs: {fitted}")
        return [
            Liked(row.prompt, row.answer, thumbs[line - 1].label)
            for row, line in zip(fitted.rows, fitted.lines, strict=True)
        ], fitted.lines

    def heldout(self) -> Row:
        """The mean loss of thumbs that are held out, and the share on its side of the reference point."""
        if not self.held:
            return {}
        z = distance(self.loop.model, self.loop.reference.model, self.held, self.config.at_once)
        return self.watched(Step([replace(batch, distance=z) for batch in self._heldout], weight=len(self.held)))

    @cached_property
    def _heldout(self) -> list[LikedPack]:
        return packs_of(self.loop.reference.model, self.held, self.config.at_once, z=0.0)

    def prepare(self, number: int) -> Step[LikedPack]:
        """The next answers, with what they gain measured from where the policy is."""
        drawn = self.plan[number // self.config.updates_per_rollout]
        made = step(self.loop.model, self.loop.reference.model, [self.rows[i] for i in drawn], self.config.at_once)
        made.rows = [self.lines[i] for i in drawn]
        return made

    def loss(self, batch: LikedPack) -> Loss:
        """The loss of the answers, summed."""
        return loss(self.loop.model, batch, self.config)

    def numbers(self, curve: Curve) -> dict[str, float]:
        """How many thumbs there were, and how many of them up."""
        return {"thumbs": len(self.rows), "thumbs_up": sum(row.liked for row in self.rows)}


Answered = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's tokens and an answer's."""


def step(model: Model, reference: Model, rows: Sequence[Liked], micro_batch: int) -> Step[LikedPack]:
    """An update's batches, and the policy's distance from the reference before it."""
    z = distance(model, reference, rows, micro_batch)
    return Step(packs_of(reference, rows, micro_batch, z), weight=len(rows), numbers={"distance": z})


def packs_of(reference: Model, rows: Sequence[Liked], micro_batch: int, z: float) -> list[LikedPack]:
    """The rows packed, with what the reference gives their answers, which stays as it is while the policy learns."""
    answers = [(row.prompt, row.answer) for row in rows]
    parts = _dealt(answers, micro_batch)
    packs = _packed(answers, parts, reference.device)
    far = infer(reference, lambda packed: by_answer(answer_logprobs(reference, packed)[0], packed), packs)
    return [
        LikedPack(packed, logprobs, torch.tensor([rows[i].liked for i in members], device=logprobs.device), z)
        for members, packed, logprobs in zip(parts, packs, far, strict=True)
    ]


def distance(model: Model, reference: Model, rows: Sequence[Liked], micro_batch: int) -> float:
    """z = max(0, mean of log π/π_ref) of each prompt with the answer of the row before: answers that are none of its.

    The paper's estimate of the policy's KL, section 4.1, without sampling; low, but the same for liked and other
    answers. Rows whose prompt is that of the row before are left out of it.
    """
    mixed = [
        (row.prompt, before.answer) for before, row in zip([rows[-1], *rows[:-1]], rows, strict=True)
        if before.prompt != row.prompt
    ]
    packs = _packed(mixed, _dealt(mixed, micro_batch), model.device)

    mine, theirs = (
        infer(one, lambda packed, one=one: answer_logprobs(one, packed)[0].sum(), packs)  # type: ignore[misc]
        for one in (model, reference)
    )
    ratios = [float(here - there) for here, there in zip(mine, theirs, strict=True)]
    return max(0.0, sum(ratios) / max(1, len(mixed)))


def _dealt(answers: Sequence[Answered], micro_batch: int) -> list[list[int]]:
    return distributed.micro_batches((len(prompt) + len(answer) for prompt, answer in answers), micro_batch)


def _packed(
    answers: Sequence[Answered], parts: Sequence[Sequence[int]], device: torch.device | str
) -> list[AnswerPack]:
    return [pack_answers([(answers[i][0], [answers[i][1]]) for i in members], device) for members in parts]


def loss(model: Model, pack: LikedPack, config: Kto) -> Loss:
    """The loss summed over the answers, and how many lie on their side of the reference point."""
    ratios = by_answer(answer_logprobs(model, pack.packed)[0], pack.packed) - pack.reference
    answer_losses = losses.kto(
        ratios, pack.liked, pack.distance, config.kl_coefficient, config.desirable_weight, config.undesirable_weight
    )
    return Loss(answer_losses.sum(), {"accuracy": ((ratios > pack.distance) == pack.liked).float().sum()})
