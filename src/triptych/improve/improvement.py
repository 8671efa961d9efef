"""The stage of improvement: a round by any method, which its settings name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from pydantic import Field

from triptych.engine.scoring import Scorer
from triptych.improve.checkpoints import UNLIMITED, Limits
from triptych.improve.loop import Improvement, Loop
from triptych.improve.overoptimisation import Overoptimisation
from triptych.improve.registry import method_of
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, reads
from triptych.storage import Folder


class Improved(Result):
    """A round of improvement.

    Attributes:
        steps: at which it ended.
        answers: that were written for it.
        kept: the step whose policy is the candidate.
        watched_by: whose scores on the validation prompts chose it: the "judge", or the "reward" where no judge may; or
            the "loss" on held-out feedback, where there is no reward; "nothing" where none is held out.
        alarms: what went wrong on the way.
        overoptimisation: the fitted curve, where there were points enough.
        numbers: the method's own.
    """

    method: str
    steps: int
    answers: int
    kept: int
    watched_by: str
    alarms: tuple[str, ...]
    overoptimisation: Overoptimisation | None = None
    numbers: dict[str, float] = Field(default_factory=dict)

    @property
    def problems(self) -> Sequence[str]:
        """The alarms."""
        return self.alarms


@reads(data=("prompts_improve", "prompts_validation", "thumbs"), feedback=("comparisons", "thumbs"))
def improve(
    context: StageContext, config: Improvement, champion: Folder, data: Folder, reward: Scorer | None,
    judge: Scorer | None, round: int = 1, limits: Limits = UNLIMITED, feedback: Folder | None = None,
) -> Improved:
    """Improves the champion against the reward; the champion is also the reference.

    Args:
        reward: None for a method that learns from feedback alone.
        judge: watches on the validation prompts; None where it decides at the gate and may choose nothing.
        feedback: the folder of the comparisons or of the thumbs that the method learns from; thumbs are by default
            those of `data`.
    """
    with closing(Loop(context, config, champion, data, reward, judge, round, limits)) as loop:
        method = method_of(config)(loop, config, feedback)
        curve = loop.run(method.prepare, method.loss, method.unit, leave=method.detach, heldout=method.heldout)
    checkpoints = loop.checkpoints
    numbers = method.numbers(curve)
    written = int(numbers.get("answers", config.written(checkpoints.last)))
    return Improved(
        method=method.name(), steps=checkpoints.last, answers=written,
        kept=checkpoints.kept, watched_by=checkpoints.watcher, alarms=tuple(checkpoints.alarms()),
        overoptimisation=checkpoints.overoptimisation(best_of_n=method.best_of_n), numbers=numbers,
    )
