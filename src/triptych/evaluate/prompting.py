"""Which prompt a model answers best: a system prompt and worked examples, searched within a budget of tokens.

A better prompt costs nothing, so a trained model has to beat it. Candidates answer validation prompts in rounds of
successive halving (Jamieson and Talwalkar 2016, *Non-stochastic Best Arm Identification and Hyperparameter
Optimization*): each round has an equal part of the budget, and the better half goes on. What was found is measured on
the test prompts, where it chose nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.data.template import prompt_tokens
from triptych.engine.rollout import Policy, Render
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.errors import ModelError
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation, Message, Messages, Prompt, turns
from triptych.statistics.intervals import Interval, mean_interval
from triptych.storage import Folder, read_object, write_whole

FOUND = "prompt.json"
"""What was found: `{"messages": [...]}`, the turns before the user's own."""
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
    """

    systems: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    examples: tuple[Annotated[int, Field(ge=0)], ...] = (0, 2, 4)
    tokens: int = Field(default=100_000, ge=1000)


class TriedPrompt(Result):
    """A candidate, and its mean score on so many validation prompts."""

    name: str
    score: float
    prompts: int


class PromptFound(Result):
    """The best of the candidates.

    Attributes:
        system: its system prompt; None for none.
        examples: how many worked examples stand before a prompt.
        gain: over no system prompt and no examples, on the validation prompts that both answered; as it was chosen by
            these, it is no proof.
        sampled: tokens.
        tried: all candidates, those first that went on longest.
    """

    system: str | None
    examples: int
    chooser: str
    gain: float
    gain_interval: Interval
    sampled: int
    tried: tuple[TriedPrompt, ...]

    @property
    def headline(self) -> str:
        """What was found."""
        return self.tried[0].name if self.tried else ""

    @classmethod
    def planned(cls) -> Self:
        """Something, for want of knowing."""
        return cls.model_construct(system=SYSTEMS[0], examples=0)


@dataclass(frozen=True, slots=True)
class Preamble:
    """What stands before a prompt: a system prompt or none, and worked examples."""

    system: str | None
    examples: tuple[Conversation, ...]

    @property
    def name(self) -> str:
        """In words."""
        said = f"“{self.system}”" if self.system is not None else "no system prompt"
        return f"{said}, {len(self.examples)} examples" if self.examples else said

    @property
    def messages(self) -> Messages:
        """Its turns."""
        said = () if self.system is None else (Message("system", self.system),)
        return (*said, *(turn for example in self.examples for turn in example.messages if turn.role != "system"))

    def before(self, prompt: Prompt) -> Prompt:
        """The prompt behind it; a system prompt of its own stays, in place of this one's."""
        return behind(self.messages, prompt)


def behind(preamble: Messages, prompt: Prompt) -> Prompt:
    """A prompt behind other turns; where it has a system prompt of its own, that stands first, in place of theirs."""
    own = tuple(turn for turn in prompt.messages if turn.role == "system")
    first = own or tuple(turn for turn in preamble if turn.role == "system")
    shown = tuple(turn for turn in preamble if turn.role != "system")
    return replace(prompt, messages=(*first, *shown, *(turn for turn in prompt.messages if turn.role != "system")))


def rendered_behind(preamble: Messages, policy: Policy, max_tokens: int) -> Render:
    """Renders a prompt behind other turns; where these leave no room for an answer, the prompt alone."""

    def render(prompt: Prompt) -> list[int]:
        tokens = prompt_tokens(policy.tokenizer, behind(preamble, prompt))
        fits = policy.context is None or len(tokens) + max_tokens <= policy.context
        return tokens if fits else policy.render(prompt)

    return render


def read_preamble(folder: Folder) -> Messages:
    """What was found, from the folder of the search."""
    rows = read_object(folder / FOUND)["messages"]
    return tuple(Message(row["role"], row["content"]) for row in rows)


def search_prompt(
    context: StageContext, config: Prompting, model: Folder, data: Folder, chooser: Scorer, decoding: Sampling
) -> PromptFound:
    """Searches for the best prompt on `data/prompts_validation.jsonl`, and keeps it in `prompt.json`.

    The prompt alone answers in every round. Of equals it is taken, else the one that is named first.

    Args:
        decoding: of the model as it is deployed; its seed does not count.
    """
    policy = Policy.open(model / "model")
    prompts = policy.fitting(DataFolder(data).prompts("validation").read(), decoding.max_tokens, context.progress)
    examples = DataFolder(data).examples
    tried = candidates_of(config, examples.read() if examples.exists else ())
    candidates = _accepted(tried, policy, prompts[0], context)
    scores: list[list[float]] = [[] for _ in candidates]
    alive, sampled, answers = list(range(len(candidates))), 0, 0
    rounds = max(1, math.ceil(math.log2(len(candidates))))
    order = alive
    for left in range(rounds, 0, -1):
        share = sampled + (config.tokens - sampled) / left
        goal = len(scores[0]) + math.ceil((len(prompts) - len(scores[0])) / left)
        while (answered := len(scores[0])) < goal:
            length = sampled / answers if answers else decoding.max_tokens  # at first nobody knows how long they are
            affordable = int((share - sampled) / (len(alive) * length))
            asked = prompts[answered : min(goal, answered + max(affordable, not answers))]
            if not asked:
                break
            for place in alive:
                groups = policy.write(
                    asked, replace(decoding, seed=context.seed), progress=context.progress,
                    render=rendered_behind(candidates[place].messages, policy, decoding.max_tokens),
                )
                rollouts = [rollout for (rollout,) in groups]
                scores[place] += chooser.score([Conversation(rollout.prompt, rollout.answer) for rollout in rollouts])
                sampled += sum(len(rollout.tokens) for rollout in rollouts)
                answers += len(rollouts)
        ranked = sorted(alive, key=lambda place: -_mean(scores[place]))  # of equals the one that is named first
        order = [*ranked, *(place for place in order if place not in alive)]
        rivals = [place for place in ranked if place]
        alive = [0, *rivals[: math.ceil(len(rivals) / 2)]]
    best = order[0]
    preamble = candidates[best]
    gain, interval = mean_interval([new - old for new, old in zip(scores[best], scores[0], strict=True)])
    context.progress.say(f"of {len(candidates)} prompts the best by {chooser.name}: {preamble.name}")
    write_whole(context.output / FOUND, json.dumps(
        {"messages": turns(preamble.messages)}, ensure_ascii=False, indent=1) + "\n")
    return PromptFound(
        system=preamble.system, examples=len(preamble.examples), chooser=chooser.name, gain=gain,
        gain_interval=interval, sampled=sampled, tried=tuple(
            TriedPrompt(name=candidates[place].name, score=_mean(scores[place]), prompts=len(scores[place]))
            for place in order
        ),
    )


def candidates_of(config: Prompting, shown: Sequence[Conversation]) -> list[Preamble]:
    """Each system prompt with each number of examples, nothing first; the examples of different tasks take turns."""
    seen: dict[str | None, int] = {}
    rank = []
    for example in shown:
        rank.append(seen.setdefault(example.prompt.task, 0))
        seen[example.prompt.task] += 1
    systems = SYSTEMS if config.systems is None else config.systems
    mixed = [example for _, example in sorted(zip(rank, shown, strict=True), key=lambda ranked: ranked[0])]
    tried = [
        Preamble(system, tuple(mixed[:count]))
        for count in sorted({0, *config.examples}) for system in dict.fromkeys((None, *systems))
    ]
    return list(dict.fromkeys(tried))


def _accepted(
    candidates: Sequence[Preamble], policy: Policy, prompt: Prompt, context: StageContext
) -> list[Preamble]:
    """The candidates that the model's chat template can write; what it refuses is said."""
    accepted = []
    for candidate in candidates:
        try:
            prompt_tokens(policy.tokenizer, candidate.before(prompt))
        except ModelError as error:
            context.progress.say(f"{candidate.name}: not tried: {error}")
        else:
            accepted.append(candidate)
    return accepted


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
