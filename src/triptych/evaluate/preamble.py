"""What stands before a prompt: a system prompt and worked examples; and a model that is asked behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from triptych.data.template import prompt_tokens
from triptych.display import one_line
from triptych.engine.rollout import Policy, Render
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, facing, scored
from triptych.progress import Progress
from triptych.records import Conversation, Message, Messages, Prompt
from triptych.storage import Folder, read_object

FOUND = "prompt.json"
"""What was found: `{"messages": [...]}`, the turns before the user's own."""
SHOWN = 200
"""So many letters of a system prompt are shown where it is named."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """What stands before a prompt: a system prompt or none, and worked examples."""

    system: str | None
    examples: tuple[Conversation, ...]

    @property
    def name(self) -> str:
        """In words."""
        text = one_line(self.system or "")
        short = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
        said = f"“{short}”" if self.system is not None else "no system prompt"
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
    """A prompt behind other turns; where it begins with a system prompt of its own, that stands in place of theirs.

    System turns further down stay where they are.
    """
    own = tuple(takewhile(lambda turn: turn.role == "system", prompt.messages))
    first = own or tuple(turn for turn in preamble if turn.role == "system")
    shown = tuple(turn for turn in preamble if turn.role != "system")
    return replace(prompt, messages=(*first, *shown, *prompt.messages[len(own) :]))


def rendered_behind(preamble: Messages, policy: Policy, max_tokens: int, context: int | None = None) -> Render:
    """Renders a prompt behind other turns; where these leave no room for an answer, the prompt alone.

    Args:
        context: tokens of prompt and answer; by default as many as the model knows positions.
    """
    context = context or policy.context

    def render(prompt: Prompt) -> list[int]:
        tokens = prompt_tokens(policy.tokenizer, behind(preamble, prompt))
        fits = context is None or len(tokens) + max_tokens <= context
        return tokens if fits else policy.render(prompt)

    return render


def preamble_of(model: Path) -> Messages:
    """The turns behind which a model answers best, as its folder says; none where it does not."""
    return read_preamble(model) if (model / FOUND).is_file() else ()


def read_preamble(folder: Folder) -> Messages:
    """What was found, from the folder of the search."""
    rows = read_object(folder / FOUND)["messages"]
    return tuple(Message(row["role"], row["content"]) for row in rows)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer, its score, and what the score is made of."""

    conversation: Conversation
    score: float
    parts: Mapping[str, float]


@dataclass
class Examinee:
    """A model that is asked behind one thing and another, and its answers scored.

    Attributes:
        sampled: tokens so far, of its answers and of whatever else is to be counted with them.
        answers: how many it gave.
        written: tokens of these.
        rivals: the first answer to each prompt, for a chooser that only compares.
    """

    policy: Policy
    chooser: Scorer
    decoding: Sampling
    progress: Progress
    sampled: int = 0
    answers: int = 0
    written: int = 0
    rivals: dict[str, str] = field(default_factory=dict)

    def ask(self, preamble: Messages, prompts: Sequence[Prompt]) -> list[Attempt]:
        """Its answer to each prompt behind these turns, of `decoding.max_tokens` at the most."""
        groups = self.policy.write(
            prompts, self.decoding, progress=self.progress,
            render=rendered_behind(preamble, self.policy, self.decoding.max_tokens),
        )
        rollouts = [rollout for (rollout,) in groups]
        written = sum(len(rollout.tokens) for rollout in rollouts)
        self.sampled += written
        self.written += written
        self.answers += len(rollouts)
        rows = [Conversation(rollout.prompt, rollout.answer) for rollout in rollouts]
        scores = scored(facing(self.chooser, self.rivals), rows)
        columns = scores.parts.items()
        return [
            Attempt(row, total, {name: value for name, values in columns if (value := values[place]) is not None})
            for place, (row, total) in enumerate(zip(rows, scores.totals, strict=True))
        ]

    @property
    def length(self) -> float:
        """Tokens of an answer: the mean, or as many as there may be while nobody knows."""
        return self.written / self.answers if self.answers else self.decoding.max_tokens
