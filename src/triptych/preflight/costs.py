"""What each stage of a recipe takes of time and memory, roughly, told before it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.audit.stage import Audit
from triptych.base.continuing import ContinuedPretraining
from triptych.base.pretrained import BaseImport
from triptych.base.pretraining import Pretraining
from triptych.configuration import Config
from triptych.data.folds import FOLDS
from triptych.engine.adapters import Lora
from triptych.engine.device import compute_dtype, device
from triptych.engine.sampling import Sampling
from triptych.engine.training import Optimization
from triptych.evaluate.answers import Answering
from triptych.evaluate.decoding import Decoding
from triptych.evaluate.gate import Gate
from triptych.evaluate.measurement import Measurement
from triptych.evaluate.prompting import Prompting
from triptych.improve.loop import Improvement
from triptych.instruct.finetuning import Finetuning
from triptych.pipeline.call import StageCall
from triptych.pipeline.scorer import ArtifactScorer
from triptych.preflight import memory
from triptych.preflight.memory import Architecture
from triptych.recipe import Recipe, TakenBase
from triptych.reward.regression import RegressionReward
from triptych.reward.remote import RemoteReward
from triptych.reward.rules import RulesReward
from triptych.reward.taken import TakenReward
from triptych.reward.training import PairwiseReward, RewardTrained

EFFICIENCY, HALF = 0.6, 400
"""The share of the measured rate of matrix products that a pass through a wide model reaches, and the width at which a
narrow one reaches a half; measured on processors, at widths of 96, 128 and 576."""
DISPATCH = 0.5e-3
"""Seconds that a decoding step takes on a processor for each layer beside products, of a few sequences."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage takes, roughly: tokens that are computed, and the most memory that its process holds."""

    stage: str
    tokens: int
    seconds: float
    gib: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What it computes in a second, and reads of weights: the roofline of Williams et al. (2009).

    Attributes:
        rate: products and sums, in the compute type.
        bandwidth: bytes of a matrix that vectors are multiplied with.
    """

    rate: float
    bandwidth: float

    def training(self, model: Architecture, tokens: int, adapters: bool) -> float:
        """Seconds of learning tokens: 6 products and sums for each parameter (Kaplan et al. 2020), 4 beside adapters,
        where weights have no gradient."""
        return (2 if adapters else 3) * self.applying(model, tokens)

    def applying(self, model: Architecture, tokens: int) -> float:
        """Seconds of a forward pass: 2 for each parameter."""
        reached = min(EFFICIENCY, model.width / (model.width + HALF))
        return 2 * model.active * tokens / (reached * self.rate)

    def decoding(self, model: Architecture, tokens: int, together: int) -> float:
        """Seconds of writing tokens, so many sequences together: each step reads all weights once."""
        dispatched = model.layers * DISPATCH if device().type == "cpu" else 0.0
        read = memory.itemsize() * model.parameters / self.bandwidth
        return tokens / together * (read + dispatched) + self.applying(model, tokens)


@cache
def this_machine() -> Machine:
    """Measured in half a second, on the device that does the work."""
    side = 1024 if device().type == "cpu" else 8192
    weights = torch.ones(4 * side, side, dtype=compute_dtype(), device=device())
    return Machine(
        2 * 4 * side**3 / _seconds(lambda: weights @ weights[:side]),
        weights.nbytes / _seconds(lambda: weights @ weights[0]),
    )


def _seconds(work: Callable[[], Tensor], spent: float = 0.25) -> float:
    """Of the fastest of many calls: whatever else the machine does makes some of them slower."""
    ends, fastest = time.perf_counter() + spent, float("inf")
    while (began := time.perf_counter()) < ends or fastest == float("inf"):
        work()[0].sum().item()  # waits for a device
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


@dataclass(frozen=True, slots=True)
class Texts:
    """The tokens of a split: all that are computed, the longest row, and how many keys a token sees, in the mean."""

    rows: int = 0
    tokens: int = 0
    longest: int = 0
    keys: float = 0.0

    @classmethod
    def of(cls, sizes: Sequence[int], lengths: Sequence[int], part: float = 1.0) -> Texts:
        """Of rows that compute `sizes` tokens and reach `lengths` positions; they are this part of all."""
        total = sum(sizes)
        keys = sum(size * length for size, length in zip(sizes, lengths, strict=True)) / max(1, total)
        return cls(round(len(sizes) / (part or 1)), round(total / (part or 1)), max(lengths, default=0), keys)

    def drawn(self, rows: int) -> int:
        """The tokens of so many rows, in the mean."""
        return rows * self.tokens // max(1, self.rows)

    def padded(self, model: Architecture, sequences: int = 1) -> float:
        """How many times its tokens are computed: once in packed rows; at most as if all were as long as the longest.

        Args:
            sequences: of a row.
        """
        return 1.0 if model.packed else sequences * self.rows * self.longest / max(1, self.tokens)


def costs(
    plan: Sequence[StageCall[Any]], recipe: Recipe, model: Architecture, texts: Mapping[str, Texts], machine: Machine,
    taken: Mapping[str, int] | None = None,
) -> list[Cost]:
    """The costs of a plan's stages, of those that take any to speak of.

    Args:
        texts: of each split, by its name, and the `answers` of the demonstrations: models are taken to write as much.
        taken: the parameters of rewards that were made elsewhere, by `Recipe.taken`'s places. A reward is counted
            everywhere as large as the model, so that only what these have beyond it is added.
    """
    source, model = memory.files(model), as_used(recipe, model)
    answer = recipe.decoding.max_tokens
    beyond = sum(max(0, count - model.parameters) for count in (taken or {}).values())
    adapters = _rank(recipe) is not None
    other = other_model(recipe, model)
    judging = other if recipe.gate.apart is not None else 0
    scoring = 0 if all(isinstance(part, RulesReward | RemoteReward) for part in recipe.reward.model.within) else other

    def met(stage: StageCall[Any]) -> Circumstances:
        judged = judging > 0 and recipe.gate.preferences is None
        return Circumstances(
            stage, model, source, answer, adapters, other, scoring, judging, judged,
            asked=recipe.gate.answering.prompts, texts=texts,
        )

    works = [(stage, work) for stage in plan if (work := workload(stage.config, met(stage)))]
    return [
        Cost(
            stage.name, work.trained + work.applied + work.sampled,
            machine.training(model, work.trained, getattr(stage.config, "lora", None) is not None)
            + machine.applying(model, work.applied) + machine.decoding(model, work.sampled, work.together)
            + machine.applying(replace(model, parameters=larger), work.sampled),
            (memory.BASELINE + work.bytes + memory.itemsize() * larger) / GIB,
        )
        for stage, work in works for larger in [beyond if _scores(stage) else 0]
    ]


def _scores(stage: StageCall[Any]) -> bool:
    """Whether a stage has answers scored."""
    return isinstance(stage.config, TakenReward) or any(
        isinstance(value, ArtifactScorer) for value in stage.arguments.values()
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens that are trained on, that a model is applied to, and that are sampled, so many sequences together; and
    bytes that are taken."""

    bytes: int
    trained: int = 0
    applied: int = 0
    sampled: int = 0
    together: int = 1


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a stage's workload follows from beside its settings.

    Attributes:
        source: bytes of the model as others stored it.
        answer: the longest, in tokens, where a model is decoded as it is deployed.
        adapters: whether nothing is trained whole.
        other: bytes of a second model that is only read.
        scoring: bytes of the reward's, where it is one.
        judging: bytes of the second reward model at the gate, where there is one.
        judged: whether that is the judge, and not one that only watches there.
        asked: the prompts of a round's gate.
        texts: of each split, by its name.
    """

    stage: StageCall[Any]
    model: Architecture
    source: int
    answer: int
    adapters: bool
    other: int
    scoring: int
    judging: int
    judged: bool
    asked: int
    texts: Mapping[str, Texts]

    @property
    def weights(self) -> int:
        """Bytes of the model's weights."""
        return memory.weights(self.model)

    @property
    def frozen(self) -> int:
        """Bytes of the model where it is only read."""
        return memory.frozen(self.model)

    @property
    def sampler(self) -> int:
        """Bytes of what it is sampled from."""
        return memory.sampler(self.model, self.adapters)

    @property
    def written(self) -> int:
        """Tokens of an answer."""
        return answer_length(self.texts, self.answer)

    @property
    def scorers(self) -> set[str]:
        """Which of the scorers that the stage is given are models."""
        given = {name for name, value in self.stage.arguments.items() if isinstance(value, ArtifactScorer)}
        models = {
            "reward": self.scoring > 0, "judge": self.judged, "chooser": self.judged or self.scoring > 0,
            "preferences": self.judging > 0,
        }
        return {name for name in given if models.get(name)}

    def answers(self, asked: Texts, rows: int) -> int:
        """Bytes of answers to so many of these prompts."""
        return memory.sampling(self.model, rows, asked.longest, self.answer)

    def slots(self, asked: Texts, rows: int) -> int:
        """How many of them are written together."""
        return memory.slots(self.model, rows, asked.longest, self.answer)


def answer_length(texts: Mapping[str, Texts], longest: int) -> int:
    """Tokens that a model writes for an answer: as many as it learnt to, where somebody knows."""
    learnt = texts.get("answers")
    return min(longest, -(-learnt.tokens // learnt.rows)) if learnt and learnt.rows else longest


@singledispatch
def workload(config: Config, given: Circumstances) -> Workload | None:
    """What a stage with these settings does; None where it is next to nothing, or nobody knows yet.

    Each kind of settings has its own below; a stage without one takes nothing to speak of.
    """
    return None


@workload.register
def of_pretraining(config: Pretraining, given: Circumstances) -> Workload:
    """Of training a Base from scratch."""
    taken = memory.training(given.model, config, config.batch_tokens, config.context)
    return Workload(taken, trained=config.tokens)


@workload.register
def of_import(config: BaseImport, given: Circumstances) -> Workload:
    """Of taking a Base from others."""
    whole = memory.loading(given.model) if given.model.packed else 2 * given.weights
    taking = memory.taking(given.model, given.source, rounded=config.quantization is not None)
    return Workload(max(taking, whole + memory.applied(given.model)))


@workload.register
def of_continuing(config: ContinuedPretraining, given: Circumstances) -> Workload:
    """Of training a Base further; its held-out text, which is measured twice, is not counted."""
    taken = memory.training(given.model, config, min(config.at_once, config.batch_tokens), config.context)
    return Workload(taken, trained=config.tokens)


@workload.register
def of_finetuning(config: Finetuning, given: Circumstances) -> Workload:
    """Of fine-tuning."""
    shown = given.texts["demonstrations"]
    times = shown.padded(given.model)
    together = min(config.at_once, config.batch_tokens, shown.tokens)
    taken = memory.training(given.model, config, round(together * times), shown.keys)
    return Workload(taken, trained=round(shown.tokens * config.epochs * times))


@workload.register
def of_taking(config: TakenReward, given: Circumstances) -> Workload:
    """Of opening a reward that was made elsewhere."""
    return Workload(memory.loading(given.model))


@workload.register(PairwiseReward)
@workload.register(RegressionReward)
def of_reward(config: PairwiseReward | RegressionReward, given: Circumstances) -> Workload | None:
    """Of training a reward model; of comparisons that people are still to make nobody knows."""
    compared = given.texts.get(f"comparisons_{given.stage.arguments.get('share', 'train')}")
    if compared is None:
        return None
    refreshed = isinstance(given.stage.parents["start"].result, RewardTrained)
    times = compared.padded(given.model, sequences=2)
    together = min(config.at_once, compared.drawn(config.batch_pairs))
    taken = memory.training(given.model, config, round(together * times), compared.keys, predicts=False)
    epochs = config.refresh_epochs if refreshed else config.epochs
    return Workload(taken, trained=round(compared.tokens * epochs * times))


@workload.register
def of_audit(config: Audit, given: Circumstances) -> Workload | None:
    """Of auditing a reward model, of which some rows are scored in float32; of one that is none nothing is counted."""
    judging = not given.stage.name.startswith("round-")
    if not (given.judging if judging else given.scoring):
        return None
    compared = given.texts.get("comparisons_judge_heldout" if judging else "comparisons_heldout", Texts())
    rows = compared.rows + 5 * config.perturbed  # changed answers beside the chosen ones
    # One that was trained whole was written in float32.
    held = memory.loading(given.model if given.adapters else replace(given.model, stored=4))
    whole = 0 if given.adapters else given.weights
    return Workload(
        whole + held + memory.applied(given.model, predicts=False),
        applied=rows * compared.tokens // max(1, compared.rows),
    )


@workload.register
def of_choice(config: Decoding, given: Circumstances) -> Workload:
    """Of choosing a temperature."""
    asked, tried = given.texts["prompts_validation"], len(set(config.temperatures))
    sampled = tried * asked.rows * given.written
    answers = given.answers(asked, asked.rows)
    models = given.frozen + given.sampler + given.scoring + given.judging
    taken = models + answers + memory.applied(given.model)
    together = given.slots(asked, asked.rows)
    read = tried * asked.tokens
    return Workload(taken, applied=read + len(given.scorers) * (read + sampled), sampled=sampled, together=together)


@workload.register
def of_prompting(config: Prompting, given: Circumstances) -> Workload:
    """Of searching for a prompt; what stands before the prompts is not counted."""
    asked = given.texts["prompts_validation"]
    answers = given.answers(asked, asked.rows)
    files = [file for folder in given.stage.sources.values() for file in Path(folder).glob("*.safetensors")]
    reflecting = 2 * sum(file.stat().st_size for file in files)  # a model that reflects, and its sampler's copy
    models = given.frozen + given.sampler + given.scoring + given.judging + reflecting
    taken = models + answers + memory.applied(given.model)
    together = given.slots(asked, asked.rows)
    return Workload(taken, applied=len(given.scorers) * config.tokens, sampled=config.tokens, together=together)


@workload.register
def of_improvement(config: Improvement, given: Circumstances) -> Workload:
    """Of a round of improvement by any method."""
    length = answer_length(given.texts, config.max_tokens)
    trained, applied, sampled = improvement(config, given.texts, length)
    together = memory.slots(
        given.model, config.prompts_per_step * config.group_size, given.texts["prompts_improve"].longest,
        config.max_tokens, config.group_size,
    )
    reference = given.other if config.lora is None else 0  # the trunk below the adapters
    taken = reference + given.scoring + given.judging + improving(config, given.model, given.texts)
    learnt = round(trained * padding(config, given.model, given.texts))
    return Workload(taken, learnt, applied, sampled, together)


@workload.register
def of_answers(config: Answering, given: Circumstances) -> Workload:
    """Of both models' answers at the gate."""
    gate = given.texts["prompts_gate"]
    rows = min(gate.rows, config.prompts)
    read = gate.drawn(rows)
    sampled = 3 * rows * given.written  # both models as deployed, and the candidate at temperature 1
    models = given.frozen + given.other + 2 * given.sampler
    taken = models + given.answers(gate, rows) + memory.applied(given.model)
    return Workload(taken, applied=2 * (read + sampled), sampled=sampled, together=given.slots(gate, rows))


@workload.register
def of_gate(config: Gate, given: Circumstances) -> Workload | None:
    """Of the gate, where models score both models' answers."""
    if not given.scorers:
        return None
    gate = given.texts["prompts_gate"]
    rows = min(gate.rows, given.asked)
    scored = 2 * (gate.drawn(rows) + rows * given.written)
    taken = given.scoring + given.judging + memory.applied(given.model, predicts=False)
    return Workload(taken, applied=len(given.scorers) * scored)


@workload.register
def of_measurement(config: Measurement, given: Circumstances) -> Workload:
    """Of a model's answers to the test prompts, or to those of a task."""
    arguments, data = given.stage.arguments, given.stage.parents["data"].name
    name = "prompts_test" if data == "data" else data
    asked = given.texts[f"{name}, few-shot" if arguments.get("style") == "few-shot" else name]
    deployed = arguments.get("decoding")
    ways = {"temperature 1", "greedy", deployed.name if isinstance(deployed, Sampling) else "chosen later"}
    only_deployed = arguments.get("only_deployed")  # the answers to a task's prompts, which rules score
    drawn = 1 if only_deployed else len(ways) + int(str(arguments.get("best_of", 0)))
    sampled = drawn * asked.rows * given.written
    answers = given.answers(asked, asked.rows)
    models = given.frozen + given.sampler + given.other + given.scoring + given.judging
    taken = models + answers + memory.applied(given.model)
    read = drawn * asked.tokens
    # The judge scores all answers, the reward those as deployed, and those of which it takes the best.
    once = asked.tokens + asked.rows * given.written
    rewarded = (1 + int(str(arguments.get("best_of", 0)))) * once if "reward" in given.scorers else 0
    scored = 0 if only_deployed else rewarded + (read + sampled if "judge" in given.scorers else 0)
    parents = given.stage.parents
    compared = 2 * once if "reference" in parents and parents["reference"].name != parents["model"].name else 0
    together = given.slots(asked, asked.rows)
    return Workload(taken, applied=read + scored + compared, sampled=sampled, together=together)


def improvement(config: Improvement, texts: Mapping[str, Texts], length: int) -> tuple[int, int, int]:
    """The tokens of a round that are trained on, that a model is applied to, and that are sampled.

    Args:
        length: of an answer.
    """
    asked = config.samplings * config.prompts_per_step
    if given := learnt(config, texts):
        read = asked * given.tokens // max(1, given.rows)  # of comparisons one of each prompt, the least there is
        # For KTO policy and reference read each prompt with another's answer too.
        return read, (3 if config.needs_thumbs else 1) * read, 0
    prompt = texts["prompts_improve"].tokens // max(1, texts["prompts_improve"].rows)
    written, kept = (asked * answers * length for answers in (config.group_size, config.learnt_per_prompt))
    trained = config.updates_per_rollout * (asked * prompt + kept)
    return trained, written + kept, written  # the reward model scores all, the reference what is kept


def learnt(config: Improvement, texts: Mapping[str, Texts]) -> Texts | None:
    """The feedback that a method learns from; None where it learns from what it samples.

    What people have not given yet is taken to be answers to the prompts, as long as they may be.
    """
    name, answers = ("thumbs", 1) if config.needs_thumbs else ("comparisons_train", 2)
    if not (config.needs_thumbs or config.needs_comparisons):
        return None
    asked = texts["prompts_improve"]
    longest = asked.longest + config.max_tokens
    expected = Texts(asked.rows, asked.tokens + answers * asked.rows * config.max_tokens, longest, longest)
    return texts.get(name, expected)


def padding(config: Improvement, model: Architecture, texts: Mapping[str, Texts]) -> float:
    """How many times the tokens that a round trains on are computed, as :meth:`Texts.padded`."""
    if given := learnt(config, texts):
        return given.padded(model, sequences=1 if config.needs_thumbs else 2)
    asked, answers = texts["prompts_improve"], config.learnt_per_prompt
    learning = Texts(
        asked.rows, asked.tokens + asked.rows * answers * config.max_tokens, asked.longest + config.max_tokens
    )
    return learning.padded(model, sequences=answers)


def improving(config: Improvement, model: Architecture, texts: Mapping[str, Texts]) -> int:
    """Bytes of the policy in training, and of the answers while they are written.

    A step writes answers with a copy of the policy, then scores them, then learns from them; between these what was
    taken is given back.
    """
    trained, _, written = improvement(config, texts, config.max_tokens)
    asked = texts["prompts_improve"]
    tokens = round(min(config.at_once, trained // config.steps) * padding(config, model, texts))
    given = learnt(config, texts)
    keys = given.keys if given else asked.keys + config.max_tokens
    answers = [memory.sampling(model, config.eval_prompts, asked.longest, config.max_tokens)]
    if written:
        together = config.prompts_per_step * config.group_size
        answers.append(memory.sampling(model, together, asked.longest, config.max_tokens, config.group_size))
    learning = memory.training(model, config, tokens, keys)
    whole = memory.weights(model) + memory.optimizer_state(model, config)
    held = whole if config.lora is None else memory.frozen(model)
    writing = memory.sampler(model, config.lora is not None) + memory.applied(model) + max(answers)
    return max(learning, held + writing)


def trainings(recipe: Recipe) -> list[Optimization | None]:
    """How each model of a run is trained; None for one that is not."""
    judges = [recipe.gate.apart.model] if recipe.gate.apart is not None else []
    learners = [*([recipe.learner] if recipe.learner is not None else []), *judges]
    folds = FOLDS * learners if recipe.splits.cross_fit is True else []
    rounds = [recipe.improve.method] * recipe.improve.rounds
    return [recipe.finetuning, recipe.learner, *judges, *rounds, *folds]


def as_used(recipe: Recipe, model: Architecture) -> Architecture:
    """The model as a run has it, which may round it to four bits."""
    if not isinstance(recipe.base, TakenBase) or recipe.base.quantization is None:
        return model
    return replace(model, stored=2, quantized=_rank(recipe) is not None)


def other_model(recipe: Recipe, model: Architecture) -> int:
    """Bytes of one model more that is only read: where all are adapters over one trunk, adapters in float32."""
    rank = _rank(recipe)
    return memory.frozen(model) if rank is None else memory.adapters(model, Lora(rank=rank))


def _rank(recipe: Recipe) -> int | None:
    """The largest rank of adapters, where nothing is trained whole; else None."""
    adapters = [one.lora for one in trainings(recipe) if one is not None]
    ranks = [lora.rank for lora in adapters if lora is not None]
    return max(ranks) if ranks and len(ranks) == len(adapters) else None


def disk_space(recipe: Recipe, model: Architecture) -> int:
    """Bytes that a run writes: its models, in float32 or as adapters, and a checkpoint with the optimizer's state."""
    whole, merged = memory.weights(model), recipe.release.form == "merged"
    kept = [whole if one is None or one.lora is None else memory.adapters(model, one.lora) for one in trainings(recipe)]
    base = memory.files(as_used(recipe, model))
    further = isinstance(recipe.base, TakenBase) and recipe.base.train is not None
    return (
        # The Base, what is trained of it, and weights with AdamW's two moments.
        base + further * whole + sum(kept) + 3 * max(kept)
        + (3 * base if merged else base + 2 * max(kept))
    )


def from_scratch(config: Pretraining) -> Architecture:
    """The Llama that pretraining makes."""
    width, inner = config.width, -(-config.width * 8 // 3 // 32) * 32
    key_value_width = width // config.heads * config.key_value_heads
    layer = 2 * width * width + 2 * width * key_value_width + 3 * width * inner + 2 * width
    parameters = config.layers * layer + config.vocabulary * width + width
    return Architecture(
        parameters, config.vocabulary, width, inner, config.layers, config.heads, width, key_value_width,
        config.context,
    )
