"""Which prompt a model answers best: a system prompt and worked examples, searched within a budget of tokens.

A better prompt costs nothing, so a trained model has to beat it. Candidates answer validation prompts in rounds of
successive halving (Jamieson and Talwalkar 2016, *Non-stochastic Best Arm Identification and Hyperparameter
Optimization*): each round has an equal part of the budget, and the better half goes on. What was found is measured on
the test prompts, where it chose nothing.

Where a language model may reflect, it rewrites system prompts first (:mod:`triptych.evaluate.reflection`), by every
second validation prompt and half of the budget. The others choose, so that no prompt is chosen by what it was
written from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.data.template import prompt_tokens
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.errors import ModelError
from triptych.evaluate.preamble import FOUND, Examinee, Preamble
from triptych.evaluate.reflection import KEPT, Reflection, Rewritten, reflector_of, rewrite
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.progress import Progress
from triptych.records import Conversation, Prompt, turns
from triptych.statistics.intervals import Interval, mean_interval
from triptych.storage import Folder, write_whole

WITH_PROMPT = "with the prompt found"
"""How tables call a model that is asked so."""
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer exactly what is asked, and follow every instruction in it.",
    "Find each requirement of the request, and write one answer that meets all of them.",
)


class Prompting(Config):
    """What is tried.

    Attributes:
        systems: system prompts, by default `SYSTEMS`; none is tried in any case.
        examples: how many worked examples, of the conversations that Instruct learns, stand before a prompt as turns.
        tokens: so many are sampled at the most.
        reflection: a language model that rewrites system prompts by what went wrong behind them; None for none.
    """

    systems: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    examples: tuple[Annotated[int, Field(ge=0)], ...] = (0, 2, 4)
    tokens: int = Field(default=100_000, ge=1000)
    reflection: Reflection | None = None

    @property
    def first_systems(self) -> list[str | None]:
        """The system prompts that it begins with, none first."""
        return list(dict.fromkeys((None, *(SYSTEMS if self.systems is None else self.systems))))

    @property
    def reflecting(self) -> int:
        """How many of the tokens are for reflection, at the most."""
        return self.tokens // 2 if self.reflection else 0

    def too_few(self, max_tokens: int) -> str | None:
        """Why the tokens are not enough for one answer behind each prompt that is tried; None where they are.

        Args:
            max_tokens: of an answer.
        """
        systems = len(self.first_systems) + (KEPT if self.reflection else 0)
        tried = systems * len({0, *self.examples})
        needed = tried * max_tokens * (2 if self.reflection else 1)
        why = f"{tried} prompts are tried, and an answer may have {max_tokens} tokens (decoding.max_tokens)"
        also = "; the other half is for reflection" if self.reflection else ""
        return f"must be at least {needed}, for {why}{also}; got {self.tokens}" if self.tokens < needed else None


class TriedPrompt(Result):
    """A candidate, and its mean score on so many validation prompts.

    Attributes:
        reflected: whether its system prompt was rewritten by reflection.
    """

    name: str
    score: float
    prompts: int
    reflected: bool = False


class PromptFound(Result):
    """The best of the candidates.

    Attributes:
        system: its system prompt; None for none.
        examples: how many worked examples stand before a prompt.
        gain: over no system prompt and no examples, on the validation prompts that both answered; as it was chosen by
            these, it is no proof.
        sampled: tokens, those of reflection included.
        rewrites: how many system prompts were written by reflection.
        accepted: how many of them were better on the prompts that they were written from.
        tried: all candidates, those first that went on longest.
    """

    system: str | None
    examples: int
    chooser: str
    gain: float
    gain_interval: Interval
    sampled: int
    rewrites: int = 0
    accepted: int = 0
    tried: tuple[TriedPrompt, ...]

    @property
    def headline(self) -> str:
        """What was found."""
        return self.tried[0].name if self.tried else ""

    @property
    def reflected(self) -> bool:
        """Whether its system prompt was rewritten by reflection."""
        return bool(self.tried) and self.tried[0].reflected

    @classmethod
    def planned(cls) -> Self:
        """Something, for want of knowing."""
        return cls.model_construct(system=SYSTEMS[0], examples=0)


@reads(data=("prompts_validation", "examples"))
def search_prompt(
    context: StageContext, config: Prompting, model: Folder, data: Folder, chooser: Scorer, decoding: Sampling,
    sources: Mapping[str, str | Path] | None = None,
) -> PromptFound:
    """Searches for the best prompt on `data/prompts_validation.jsonl`, and keeps it in `prompt.json`.

    The prompt alone answers in every round. Of equals it is taken, else the one that is named first.

    Args:
        decoding: of the model as it is deployed; its seed does not count.
        sources: the folder of the model that reflects, where the settings name one.

    Raises:
        TriptychError: an answer could not be scored, or the model that reflects does not reply.
    """
    assert config.too_few(decoding.max_tokens) is None, "a recipe's tokens are enough for an answer to each"
    policy = Policy.open(model / "model")
    prompts = policy.fitting(DataFolder(data).prompts("validation").read(), decoding.max_tokens, context.progress)
    examinee = Examinee(policy, chooser, replace(decoding, seed=context.seed), context.progress)
    systems, rewritten = config.first_systems, Rewritten()
    if config.reflection is not None and _writable(Preamble(SYSTEMS[0], ()), policy, prompts[0], context.progress):
        rewritten = rewrite(
            examinee, reflector_of(config.reflection, policy, sources or {}, context), systems, prompts[1::2],
            rewrites=config.reflection.rewrites, tokens=config.reflecting, seed=context.seed,
        )
        prompts = prompts[::2] if rewritten.rewrites else prompts
    examples = DataFolder(data).examples
    tried = candidates_of(config, examples.read() if examples.exists else (), rewritten.systems)
    candidates = [candidate for candidate in tried if _writable(candidate, policy, prompts[0], context.progress)]
    scores, order = _halve(candidates, examinee, prompts, config.tokens)
    best = order[0]
    preamble = candidates[best]
    gain, interval = mean_interval([new - old for new, old in zip(scores[best], scores[0], strict=True)])
    context.progress.say(f"of {len(candidates)} prompts the best by {chooser.name}: {preamble.name}")
    write_whole(context.output / FOUND, json.dumps(
        {"messages": turns(preamble.messages)}, ensure_ascii=False, indent=1) + "\n")
    reflected = set(rewritten.systems) - {*systems}
    return PromptFound(
        system=preamble.system, examples=len(preamble.examples), chooser=chooser.name, gain=gain,
        gain_interval=interval, sampled=examinee.sampled, rewrites=rewritten.rewrites, accepted=rewritten.accepted,
        tried=tuple(
            TriedPrompt(
                name=candidates[place].name, score=_mean(scores[place]), prompts=len(scores[place]),
                reflected=candidates[place].system in reflected,
            )
            for place in order
        ),
    )


def _halve(
    candidates: Sequence[Preamble], examinee: Examinee, prompts: Sequence[Prompt], tokens: int
) -> tuple[list[list[float]], list[int]]:
    """Each candidate's scores on the first prompts, and the candidates' places, the best first.

    Args:
        tokens: of the examinee at the most, which has sampled some already.
    """
    scores: list[list[float]] = [[] for _ in candidates]
    alive = list(range(len(candidates)))
    rounds = max(1, math.ceil(math.log2(len(candidates))))
    order = alive
    for left in range(rounds, 0, -1):
        share = examinee.sampled + (tokens - examinee.sampled) / left
        goal = len(scores[0]) + math.ceil((len(prompts) - len(scores[0])) / left)
        while (answered := len(scores[0])) < goal:
            expected = int((share - examinee.sampled) / (len(alive) * examinee.length))
            possible = (tokens - examinee.sampled) // (len(alive) * examinee.decoding.max_tokens)
            affordable = min(possible, max(expected, not answered))
            asked = prompts[answered : min(goal, answered + affordable)]
            if not asked:
                break
            for place in alive:
                scores[place] += [row.score for row in examinee.ask(candidates[place].messages, asked)]
        ranked = sorted(alive, key=lambda place: -_mean(scores[place]))  # of equals the one that is named first
        order = [*ranked, *(place for place in order if place not in alive)]
        rivals = [place for place in ranked if place]
        alive = [0, *rivals[: math.ceil(len(rivals) / 2)]]
    return scores, order


def candidates_of(
    config: Prompting, shown: Sequence[Conversation], rewritten: Sequence[str] = ()
) -> list[Preamble]:
    """Each system prompt with each number of examples, nothing first; the examples of different tasks take turns.

    Args:
        rewritten: system prompts beside those of the settings.
    """
    seen: dict[str | None, int] = {}
    rank = []
    for example in shown:
        rank.append(seen.setdefault(example.prompt.task, 0))
        seen[example.prompt.task] += 1
    mixed = [example for _, example in sorted(zip(rank, shown, strict=True), key=lambda ranked: ranked[0])]
    tried = [
        Preamble(system, tuple(mixed[:count]))
        for count in sorted({0, *config.examples}) for system in dict.fromkeys((*config.first_systems, *rewritten))
    ]
    return list(dict.fromkeys(tried))


def _writable(candidate: Preamble, policy: Policy, prompt: Prompt, progress: Progress) -> bool:
    """Whether the model's chat template can write the candidate; what it refuses is said."""
    try:
        prompt_tokens(policy.tokenizer, candidate.before(prompt))
    except ModelError as error:
        progress.say(f"{candidate.name}: not tried: {error}")
        return False
    return True


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
