"""Whoever gives an answer a number: a trained reward model, an exact judge, anything with `score`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from triptych.data.template import scored_tokens
from triptych.engine import attention
from triptych.engine.device import autocast
from triptych.engine.forward import Model, head_outputs
from triptych.engine.models import held_exactly, load_reward, load_tokenizer
from triptych.engine.packing import APPLIED, Group, Pack, fill, grown
from triptych.engine.trunk import Float32Products
from triptych.errors import ModelError
from triptych.records import Conversation, Prompt

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShardMap(Protocol):
    """How a scorer has many items worked on: by this process, or shared out over the ranks of a run.

    Whoever opens a scorer for several ranks gives it :func:`triptych.engine.distributed.shard_map`; the scorer knows of
    no ranks.
    """

    def __call__(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], model: Model | None = None,
        sizes: Iterable[int] = (),
    ) -> list[Result]:
        """What `work` makes of each item, in their order.

        Args:
            model: that the work computes with.
            sizes: of the items in tokens, where there is a model.
        """


def unsharded(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], model: Model | None = None,
    sizes: Iterable[int] = (),
) -> list[Result]:
    """All of it by this process."""
    if model is None:
        return list(work(items))
    with torch.no_grad():
        return [result for batch in fill(sizes, APPLIED) for result in work([items[i] for i in batch])]


class Scorer(Protocol):
    """Scores answers; higher is better."""

    @property
    def name(self) -> str:
        """What it is, for the reader of a report."""

    @property
    def identity(self) -> str:
        """What it is, exactly: part of the fingerprint of what it scored."""

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A score for each answer."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of answers, with what they are made of where the scorer says so.

    Attributes:
        totals: what :meth:`Scorer.score` gives.
        parts: for each part its value for each answer; None where it does not apply to one.
        counts: what else there is to say, such as how many of a judge's verdicts contradicted one another.
        notes: by part, what somebody should look at, such as the first answer on which a rule failed.
    """

    totals: list[float]
    parts: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def parts_of(self, place: int, who: str) -> dict[str, float]:
        """The parts of one answer's score under "who/part"; those that do not apply to it are left out."""
        values = {name: column[place] for name, column in self.parts.items()}
        return {f"{who}/{name}": value for name, value in values.items() if value is not None}

    def by_task(self, tasks: Sequence[str | None]) -> dict[str, dict[str, float]]:
        """Each part's mean over all answers (under "all") and over those to each named task."""
        means: dict[str, dict[str, float]] = {}
        for name, values in self.parts.items():
            members: dict[str, list[float]] = {}
            for task, value in zip(tasks, values, strict=True):
                if value is not None:
                    for key in ("all", task) if task else ("all",):
                        members.setdefault(key, []).append(value)
            means[name] = {key: sum(these) / len(these) for key, these in members.items()}
        return means

    def numbers(self, tasks: Sequence[str | None]) -> dict[str, float]:
        """The same as flat numbers of a curve: "reward/length", "reward/length/story", and the counts."""
        counts = {f"reward/{name}": float(count) for name, count in self.counts.items()}
        return counts | {
            f"reward/{name}" if task == "all" else f"reward/{name}/{task}": mean
            for name, means in self.by_task(tasks).items() for task, mean in means.items()
        }


@runtime_checkable
class Detailed(Protocol):
    """A scorer that says what its scores are made of."""

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The scores and their parts."""


@runtime_checkable
class Preferring(Protocol):
    """A scorer whose scores say how sure it is: an answer of score a is preferred with chance σ(log_odds · (a − b))."""

    @property
    def log_odds(self) -> float | None:
        """The log-odds in one unit of score; None where differences of these scores are none."""


def log_odds(scorer: Scorer) -> float | None:
    """The log-odds in one unit of the scorer's score; None where differences of its scores are none.

    They are of Bradley-Terry models that were trained without margins, and of means of these. Rules, a judge's
    grades, a sum of rewards and a mean less a spread order answers, and say nothing about how sure they are.
    """
    return scorer.log_odds if isinstance(scorer, Preferring) else None


@runtime_checkable
class Learning(Protocol):
    """A scorer that says whether it, or a part of it, learnt from comparisons or ratings."""

    @property
    def learns(self) -> bool:
        """False of rules, and of a language model that is asked as it is."""


def learns(scorer: Scorer) -> bool:
    """Whether the scorer may have learnt from comparisons or ratings: one that does not say so may have."""
    return scorer.learns if isinstance(scorer, Learning) else True


@runtime_checkable
class Unknown(Protocol):
    """A scorer that says whether it, or a part of it, may have learnt from what nobody here can look up."""

    @property
    def learnt_elsewhere(self) -> bool:
        """True of what is behind an address."""


def learnt_elsewhere(scorer: Scorer) -> bool:
    """Whether the scorer may have learnt the very comparisons that it is audited on, as nobody here knows."""
    return isinstance(scorer, Unknown) and scorer.learnt_elsewhere


@runtime_checkable
class Disagreeing(Protocol):
    """A scorer of several, who may disagree; its details have that as their part "spread"."""

    def spread(self, conversations: Sequence[Conversation]) -> list[float]:
        """How much they disagree about each answer."""


@runtime_checkable
class PairwiseOnly(Protocol):
    """A scorer that may only say which of two answers is better: one alone gets a half, however good it is."""

    @property
    def compares(self) -> bool:
        """Whether it, or a part of it, only does that."""

    def facing(self, rivals: dict[str, str]) -> Scorer:
        """The same, with something to compare each answer with; see :func:`facing`."""


def compares(scorer: Scorer) -> bool:
    """Whether the scorer, or a part of it, only says which of two answers is better."""
    return isinstance(scorer, PairwiseOnly) and scorer.compares


def facing(scorer: Scorer, rivals: dict[str, str]) -> Scorer:
    """The scorer; one that only compares compares each answer with the prompt's reference, or else with the rival's.

    Args:
        rivals: an answer to each prompt, by its key; the first answer to one that has none becomes it.
    """
    return scorer.facing(rivals) if isinstance(scorer, PairwiseOnly) and scorer.compares else scorer


@dataclass(frozen=True)
class Facing:
    """A scorer that only compares, with an answer of a rival's to each prompt; see :func:`facing`."""

    scorer: Scorer
    rivals: dict[str, str]

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    @property
    def identity(self) -> str:
        """The scorer's."""
        return self.scorer.identity

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The scorer's scores."""
        return self.details(conversations).totals

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The scorer's scores, and what it says of them."""
        return scored(self.scorer, [
            row if row.prompt.reference else Conversation(
                replace(row.prompt, reference=self.rivals.setdefault(row.prompt.key, row.answer)), row.answer
            )
            for row in conversations
        ])


@runtime_checkable
class Limited(Protocol):
    """A scorer that says nothing of answers to some prompts, or needs something of a prompt that it scores."""

    def applies(self, prompt: Prompt) -> bool:
        """Whether it says anything of answers to the prompt."""

    def fault(self, prompt: Prompt) -> str | None:
        """What the prompt lacks, or None where it can be asked."""


def applies(scorer: Scorer, prompt: Prompt) -> bool:
    """Whether the scorer says anything of answers to the prompt."""
    return not isinstance(scorer, Limited) or scorer.applies(prompt)


def unscorable(scorer: Scorer, prompt: Prompt) -> str | None:
    """Why answers to the prompt cannot be scored, or None where they can."""
    if not isinstance(scorer, Limited):
        return None
    silent = "nothing of this reward applies to it: its rules or parts are for other tasks"
    return scorer.fault(prompt) or (None if scorer.applies(prompt) else silent)


def scored(scorer: Scorer, conversations: Sequence[Conversation]) -> Scores:
    """The scorer's scores, with their parts where it knows them."""
    return scorer.details(conversations) if isinstance(scorer, Detailed) else Scores(scorer.score(conversations))


@dataclass(frozen=True, slots=True)
class Output:
    """One output z of a reward model's head, which stands for w · (m + s · z) in the raw score.

    Attributes:
        weight, mean, deviation: w, m, s; m and s are those of the attribute's ratings that it was trained on.
    """

    weight: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How the outputs of a reward model's head become one score; part of its `config.json`, as `reward_scale`.

    raw = Σ_k w_k · (m_k + s_k · z_k), score = (raw − mean) / deviation

    A model without it, trained elsewhere, has its one output as its score; one with several outputs is refused.

    Attributes:
        outputs: by name, in the order of the head; the names are those of `id2label`.
        mean, deviation: of the raw scores of a reference set of answers.
        log_odds: whether a difference of raw scores is the log-odds that the first answer is preferred. Of a model
            that does not say so it is taken to be where it has one output, as reward models elsewhere are trained.
    """

    outputs: Mapping[str, Output]
    mean: float = 0.0
    deviation: float = 1.0
    log_odds: bool = False

    @classmethod
    def of(cls, config: Any) -> Scale:
        """The scale that a model's configuration holds.

        Raises:
            ModelError: it holds something else under that name, or several outputs and nothing that says their worth.
        """
        names = [str(config.id2label[index]) for index in range(config.num_labels)]
        given = getattr(config, "reward_scale", None)
        if given is None and len(names) > 1:
            raise ModelError(
                f"config.json: the head has {len(names)} outputs ({', '.join(names)}), and nothing says what each of "
                "them is worth: the outputs of a classifier are no reward. Take a model with one output, or, for the "
                f"sum Σ w · (mean + deviation · output), add {_example(names)}"
            )
        if given is None:
            return cls({name: Output() for name in names}, log_odds=True)
        try:
            scale = cls(
                {name: Output(**given["outputs"][name]) for name in names}, float(given["mean"]),
                float(given["deviation"]), bool(given.get("log_odds", len(names) == 1)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"config.json: reward_scale cannot be read: {error!r}") from error
        if not scale.deviation > 0:
            raise ModelError(f"config.json: reward_scale.deviation must be above 0, got {scale.deviation}")
        return scale

    def tell(self, config: Any) -> None:
        """Writes the scale into a model's configuration."""
        config.reward_scale = dataclasses.asdict(self)

    def attributes(self, outputs: Tensor) -> Tensor:
        """`[N, K]` attributes in the units of their ratings, for `[N, K]` outputs."""
        parts = list(self.outputs.values())
        deviations, means = (
            torch.tensor(numbers, device=outputs.device)
            for numbers in ([part.deviation for part in parts], [part.mean for part in parts])
        )
        return outputs * deviations + means

    def raw(self, outputs: Tensor) -> Tensor:
        """`[N]` raw scores for `[N, K]` outputs."""
        weights = torch.tensor([part.weight for part in self.outputs.values()], device=outputs.device)
        return self.attributes(outputs) @ weights

    def normalised(self, raw: Tensor) -> Tensor:
        """`[N]` scores for `[N]` raw ones: zero mean and unit deviation on the reference set."""
        return (raw - self.mean) / self.deviation


def _example(names: Sequence[str]) -> str:
    """A scale that a model's configuration might hold, as JSON."""
    scale = dataclasses.asdict(Scale({name: Output() for name in names}))
    return json.dumps({"reward_scale": scale}, ensure_ascii=False)


@dataclass
class RewardModel:
    """A trained reward model as a scorer: packed, each prompt computed once for all its answers.

    Attributes:
        folder: a Hugging Face folder; it is opened when the first answer is scored.
        precise: compute in float32 as a released folder does elsewhere, instead of the faster compute type.
        shard_map: how prompts with their answers are shared out.
    """

    folder: Path
    name: str = "reward model"
    identity: str = ""
    precise: bool = False
    shard_map: ShardMap = unsharded

    @cached_property
    def model(self) -> Model:
        """The trunk and its head."""
        frozen = not self.precise or held_exactly(self.folder)
        return load_reward(self.folder, fresh=False, attention=attention.NAME, frozen=frozen)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that lies beside the model."""
        return load_tokenizer(self.folder)

    @cached_property
    def scale(self) -> Scale:
        """How its outputs become a score."""
        return Scale.of(self.model.config)

    @property
    def log_odds(self) -> float | None:
        """See `Preferring`: scores are normalised, so that a unit of them is a deviation of raw ones."""
        return self.scale.deviation if self.scale.log_odds else None

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Normalised scores: those of the reference set have mean 0 and deviation 1."""
        return self.details(conversations).totals

    def raw(self, conversations: Sequence[Conversation]) -> list[float]:
        """Scores as the head gives them, before they are normalised."""
        rewards: list[float] = self.scale.raw(self.outputs(conversations)).tolist()
        return rewards

    def details(self, conversations: Sequence[Conversation]) -> Scores:
        """The normalised scores and, of a model with several outputs, each attribute in its ratings' units."""
        outputs = self.outputs(conversations)
        totals = self.scale.normalised(self.scale.raw(outputs)).tolist()
        columns = self.scale.attributes(outputs).T.tolist()
        names = self.scale.outputs
        return Scores(totals, dict(zip(names, columns, strict=True)) if len(names) > 1 else {})

    def outputs(self, conversations: Sequence[Conversation]) -> Tensor:
        """`[N, K]`: the head's outputs at the end of each conversation, as the chat template writes it; on the CPU."""
        groups: dict[str, list[int]] = {}
        for index, conversation in enumerate(conversations):
            groups.setdefault(conversation.prompt.key, []).append(index)
        members = [[conversations[i] for i in group] for group in groups.values()]
        tokens = [
            scored_tokens(self.tokenizer, group[0].prompt, [conversation.messages[-1] for conversation in group])
            for group in members
        ]
        sizes = [len(prompt) + sum(map(len, answers)) for prompt, answers in tokens]
        outputs = torch.zeros(len(conversations), self.model.config.num_labels, device="cpu")
        computed = self.shard_map(self._group_outputs, tokens, self.model, sizes)
        for group, values in zip(groups.values(), computed, strict=True):
            outputs[group] = values
        return outputs

    def token_outputs(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """`[N, K]`: the head's outputs at the last token of each row of tokens, none empty; on the CPU."""
        return torch.cat(self.shard_map(self._group_outputs, [([], [row]) for row in rows], self.model, map(len, rows)))

    def _group_outputs(self, groups: Sequence[Group]) -> list[Tensor]:
        """`[answers, K]` for each group, the tokens of a prompt and of its answers."""
        pack, ends = pack_scored(groups, self.model.device)
        with Float32Products() if self.precise else autocast():
            values = head_outputs(self.model, pack)[ends]
        return list(torch.split(values.cpu(), [len(answers) for _, answers in groups]))


def pack_scored(groups: Sequence[Group], device: torch.device | str) -> tuple[Pack, Tensor]:
    """Packs `(prompt, answers)` groups; the second result is the segments that end in an answer, in order."""
    segments, answers = grown(groups)
    return Pack(segments, device), torch.tensor([segment for segment, _ in answers], device=device)
