"""What a model answers to prompts of a user's own: how long, how often cut, how different, and how it is rewarded."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, scored
from triptych.instructions.following import followed_by_kind
from triptych.pipeline.result import Result
from triptych.progress import Progress
from triptych.records import Conversation, Prompt
from triptych.statistics.intervals import Interval, mean_interval
from triptych.statistics.scores import means_by_name


class AnswerSurvey(Result):
    """A model's answers, one to each prompt.

    Attributes:
        decoding: how they were drawn, as "temperature 0.5".
        prompts_left_out: prompts that leave no room for an answer.
        mean_length: tokens per answer.
        cut: share of the answers that did not end.
        distinct: different answers in proportion to all.
        reward: their mean score, with its interval; None without a reward.
        parts: what it is made of, as each of its rules: "reward/length".
        instructions: for each kind of the prompts' instructions the share that is followed.
    """

    decoding: str
    prompts: int
    prompts_left_out: int = 0
    mean_length: float
    cut: float
    distinct: float
    reward: float | None = None
    reward_interval: Interval | None = None
    parts: dict[str, float] = Field(default_factory=dict)
    instructions: dict[str, float] = Field(default_factory=dict)


def survey(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, reward: Scorer | None, progress: Progress,
    places: Sequence[str] | None = None,
) -> AnswerSurvey:
    """Has a policy answer each prompt once; those that leave no room for an answer are left out, and it is said.

    Args:
        places: where each prompt stands.

    Raises:
        ModelError: no prompt leaves room.
    """
    asked = policy.fitting(prompts, sampling.max_tokens, progress, places=places)
    answers = [group[0] for group in policy.write(asked, sampling, progress=progress)]
    conversations = [Conversation(rollout.prompt, rollout.answer) for rollout in answers]
    scores = scored(reward, conversations) if reward else None
    score, interval = mean_interval(scores.totals) if scores else (None, None)
    parts = [scores.parts_of(place, "reward") for place in range(len(answers))] if scores else []
    return AnswerSurvey(
        decoding=sampling.name,
        prompts=len(asked),
        prompts_left_out=len(prompts) - len(asked),
        mean_length=sum(len(answer.tokens) for answer in answers) / len(answers),
        cut=sum(not answer.finished for answer in answers) / len(answers),
        distinct=len({answer.answer for answer in answers}) / len(answers),
        reward=score,
        reward_interval=interval,
        parts=means_by_name(parts),
        instructions=means_by_name([followed_by_kind(row.prompt, row.answer) for row in conversations]),
    )
