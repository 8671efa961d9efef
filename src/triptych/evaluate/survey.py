"""What a model answers to prompts of a user's own: how long, how often cut, how different, and how it is rewarded."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer
from triptych.pipeline.result import Result
from triptych.progress import Progress
from triptych.records import Conversation, Prompt
from triptych.statistics.intervals import Interval, mean_interval


class AnswerSurvey(Result):
    """A model's answers, one to each prompt.

    Attributes:
        decoding: how they were drawn, as "temperature 0.5".
        prompts_left_out: prompts that leave no room for an answer.
        mean_length: tokens per answer.
        cut: share of the answers that did not end.
        distinct: different answers in proportion to all.
        reward: their mean score, with its interval; None without a reward.
    """

    decoding: str
    prompts: int
    prompts_left_out: int = 0
    mean_length: float
    cut: float
    distinct: float
    reward: float | None = None
    reward_interval: Interval | None = None


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
    score, interval = None, None
    if reward is not None:
        conversations = [Conversation(rollout.prompt, rollout.answer) for rollout in answers]
        score, interval = mean_interval(reward.score(conversations))
    return AnswerSurvey(
        decoding=sampling.name,
        prompts=len(asked),
        prompts_left_out=len(prompts) - len(asked),
        mean_length=sum(len(answer.tokens) for answer in answers) / len(answers),
        cut=sum(not answer.finished for answer in answers) / len(answers),
        distinct=len({answer.answer for answer in answers}) / len(answers),
        reward=score,
        reward_interval=interval,
    )
