"""The stage of improvement: a round by any method, which its settings name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from triptych.engine.scoring import Scorer
from triptych.improve.checkpoints import UNLIMITED, Limits
from triptych.improve.loop import Improvement, Loop
from triptych.improve.registry import method_of
from triptych.pipeline.stage import Metrics, StageContext


def improve(
    context: StageContext, config: Improvement, champion: Path, data: Path, reward: Scorer, judge: Scorer | None,
    round: int = 1, limits: Limits = UNLIMITED, comparisons: Path | None = None,
) -> Metrics:
    """Improves the champion against the reward; the champion is also the reference.

    Args:
        judge: watches on the validation prompts; None where it decides at the gate and may choose nothing.
        comparisons: the folder of the round's comparisons, where `config.needs_comparisons`.
    """
    loop = Loop(context, config, champion, data, reward, judge, round, limits)
    method = method_of(config)(loop, config, comparisons)
    curve = loop.run(method.prepare, method.loss, method.unit, leave=method.detach)
    checkpoints = loop.checkpoints
    found = {
        "method": method.name(), "steps": checkpoints.last, "answers": config.answers, "kept": checkpoints.kept,
        "watched_by": checkpoints.watcher, "alarms": checkpoints.alarms(),
    }
    if turning := checkpoints.overoptimisation(best_of_n=method.best_of_n):
        found["overoptimisation"] = dataclasses.asdict(turning)
    return found | method.metrics(curve)
