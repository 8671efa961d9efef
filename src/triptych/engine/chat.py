"""A conversation under way with a policy: it goes on turn by turn, and fits itself into the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych.engine.rollout import Policy, Render
from triptych.engine.sampling import Sampling
from triptych.errors import ModelError
from triptych.records import Message, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Reply:
    """A policy's answer to what was said last.

    Attributes:
        rollout: the answer, behind the turns that it was written from.
        forgotten: how many of the first turns no longer fitted the context, and are gone from the conversation.
    """

    rollout: Rollout
    forgotten: int


@dataclass
class Chat:
    """A conversation with a policy.

    Attributes:
        sampling: how answers are drawn; its seed is the first one's, and each later one has the next.
        render: the turns as tokens; by default as the policy renders them, with nothing before them.
        turns: that were said and are remembered; none at the beginning, and it may be emptied to begin anew.
        replies: how many answers were drawn.
    """

    policy: Policy
    sampling: Sampling
    render: Render | None = None
    turns: list[Message] = field(default_factory=list)
    replies: int = 0

    def reply(self, text: str) -> Reply:
        """Says something and has the policy answer; the first question and answer are forgotten until the rest fits.

        Raises:
            ModelError: what is said leaves by itself no room for an answer; then it is not remembered.
        """
        turns = [*self.turns, Message("user", text)]
        while len(turns) > 1 and not self._fits(turns):
            turns = turns[2:]
        if not self._fits(turns):
            raise ModelError(
                f"this leaves no room for an answer of {self.sampling.max_tokens} tokens in the model's context of "
                f"{self.policy.context}: say less, or lower max_tokens"
            )
        sampling = replace(self.sampling, seed=self.sampling.seed + self.replies)
        ((rollout,),) = self.policy.write([Prompt(tuple(turns))], sampling, render=self.render)
        forgotten = len(self.turns) + 1 - len(turns)
        self.turns, self.replies = [*turns, Message("assistant", rollout.answer)], self.replies + 1
        return Reply(rollout, forgotten)

    def _fits(self, turns: Sequence[Message]) -> bool:
        context, render = self.policy.context, self.render or self.policy.render
        return context is None or len(render(Prompt(tuple(turns)))) + self.sampling.max_tokens <= context
