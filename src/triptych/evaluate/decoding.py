"""How a released model is decoded, and which temperature of a small set it is best at.

Dividing the logits by a temperature below one costs nothing and often gains much; so every comparison is between models
at their own best decoding, chosen on the validation prompts, and temperature 1 only stands beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, facing
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Conversation
from triptych.statistics.intervals import Interval, mean_interval
from triptych.storage import Folder

Temperature = Annotated[float, Field(ge=0)]


class Decoding(Config):
    """How answers are drawn wherever a model is compared, measured, released or talked to.

    Attributes:
        temperature: 0 takes the likeliest token; `greedy: true` says the same. By default each model's best.
        temperatures: of these.
        top_p: samples among the likeliest tokens whose probabilities add up to this.
        max_tokens: an answer is cut there.
    """

    temperature: Temperature | Literal["best"] = "best"
    temperatures: tuple[Temperature, ...] = Field(default=(0.0, 0.3, 0.5, 0.7, 1.0), min_length=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=96, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _greedy(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or "greedy" not in settings:
            return settings
        rest = {name: value for name, value in settings.items() if name != "greedy"}
        if settings["greedy"] is not True:
            raise ValueError("greedy can only be true; for anything else give a temperature")
        if "temperature" in rest:
            raise ValueError("greedy and a temperature contradict each other: give one of the two")
        return rest | {"temperature": 0.0}

    def at(self, temperature: float) -> Sampling:
        """The decoding at one temperature."""
        return Sampling(self.max_tokens, temperature, self.top_p)


class TemperatureScore(Config):
    """A model's score at a temperature."""

    temperature: float
    score: float
    interval: Interval


class Chosen(Result):
    """The best temperature of those that were tried.

    Attributes:
        chooser: whose scores chose.
    """

    temperature: float
    chooser: str
    prompts: int
    temperatures: tuple[TemperatureScore, ...]

    @classmethod
    def planned(cls) -> Self:
        """Temperature 1, for want of knowing."""
        return cls.model_construct(temperature=1.0)


SEEDS = 1_000_003
"""What is added to the run's seed: by its own noise the candidate was chosen among the checkpoints, at temperature 1,
which would be the best of the temperatures for that alone."""


@reads(data=("prompts_validation",))
def choose(
    context: StageContext, config: Decoding, model: Folder, data: Folder, chooser: Scorer
) -> Chosen:
    """Answers `data/prompts_validation.jsonl` at each temperature; the best by the chooser is the result.

    Of equals the lower temperature is taken. The noise is the same at every temperature.
    """
    policy = Policy.open(model / "model")
    prompts = policy.fitting(DataFolder(data).prompts("validation").read(), config.max_tokens, context.progress)
    scores: dict[float, list[float]] = {}
    rivals: dict[str, str] = {}  # answers at the lowest temperature, for a chooser that only compares
    for temperature in sorted(set(config.temperatures)):
        sampling = replace(config.at(temperature), seed=context.seed + SEEDS)
        groups = policy.write(prompts, sampling, progress=context.progress)
        rows = [Conversation(rollout.prompt, rollout.answer) for (rollout,) in groups]
        scores[temperature] = facing(chooser, rivals).score(rows)
    means = {temperature: mean_interval(these) for temperature, these in scores.items()}
    best = max(means, key=lambda temperature: means[temperature][0])  # of equals the first, which is the lowest
    context.progress.say(f"decoded at {config.at(best).name}, the best of {len(means)} by {chooser.name}")
    return Chosen(
        temperature=best, chooser=chooser.name, prompts=len(prompts),
        temperatures=tuple(
            TemperatureScore(temperature=temperature, score=score, interval=interval)
            for temperature, (score, interval) in means.items()
        ),
    )
