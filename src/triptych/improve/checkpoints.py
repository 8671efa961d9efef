"""The way of a policy through a round: how it was measured, which of its steps is kept, what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.engine import distributed
from triptych.engine.checkpoint import read_tensors, write_tensors
from triptych.engine.curve import Curve, Row
from triptych.improve.overoptimisation import Overoptimisation, fitted
from triptych.statistics.intervals import mean_interval

Watcher = Literal["judge", "reward", "loss", "nothing"]
"""Whose numbers on what is held out choose: a judge's or a reward's scores, or where there is neither the loss; or
nothing, where no feedback is held out either."""
JUDGED = "judged"
"""The judge's score of each validation prompt, in a watched row."""
REWARDED = "rewarded"
"""The reward's, of each."""
ERROR = 0.05
"""How often, at most, a judge's score that is flat may be said to have fallen."""
COLLAPSED = 0.3
"""The share of its first entropy below which a policy hardly varies."""
MISMATCH = 0.1
"""Nats a token by which sampler and trainer may differ."""
CUT = 0.5
"""The share of answers cut at the limit above which most are not scored as they would end."""
MORE_CUT = 0.2
"""A smaller growth of that share is noise."""
LONGER = 1.5
"""How many times as long answers may become without a word."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a policy may go; beyond that the gate would reject it, and a round ends.

    Attributes:
        kl: nats per answer from the reference.
        min_length_ratio, max_length_ratio: of its mean answer length over the reference's.
    """

    kl: float | None = None
    min_length_ratio: float | None = None
    max_length_ratio: float | None = None

    @property
    def identity(self) -> list[float | None]:
        """What they are, for the fingerprint of what they bound."""
        return [self.kl, self.min_length_ratio, self.max_length_ratio]

    def exceeded(self, row: Row, start: Row) -> str | None:
        """Which of them a measured policy is beyond, and what would help; None where it is within."""
        if self.kl is not None and not row["validation_kl"] <= self.kl:  # what is no number is beyond it too
            distance = f"{row['validation_kl']:.1f} nats from the champion"
            return f"{distance}, over gate.max_kl, {self.kl:g}: raise kl_coefficient"
        ratio = row["validation_length"] / max(1.0, start["validation_length"])
        bound = None
        if self.max_length_ratio is not None and ratio > self.max_length_ratio:
            bound = f"over gate.max_length_ratio, {self.max_length_ratio:g}"
        if self.min_length_ratio is not None and ratio < self.min_length_ratio:
            bound = f"under gate.min_length_ratio, {self.min_length_ratio:g}"
        return bound and (
            f"answers {ratio:.2f} times as long, {bound}: the reward may be for length, see its audit; "
            "raise kl_coefficient"
        )


UNLIMITED = Limits()


@dataclass(slots=True)
class PolicyCheckpoints:
    """The steps of a round, some of them measured on the validation prompts.

    Attributes:
        steps: of the whole round.
        updates_per_rollout: updates for each sampling.
        folder: where the weights of the watcher's best are kept; None where the last policy is the candidate.
        limits: beyond which no policy is kept, and the round ends.
        watcher: whose scores choose.
        start: the measurements of the reference.
        curve: the rows of the steps so far.
    """

    steps: int
    updates_per_rollout: int = 1
    folder: Path | None = None
    limits: Limits = UNLIMITED
    watcher: Watcher = "judge"
    start: Row = field(default_factory=dict)
    curve: Curve = field(default_factory=list)
    _begun: bool = field(default=False, init=False)

    @property
    def watched(self) -> list[Row]:
        """The steps at which the policy was measured, the reference's own first."""
        return [{"step": 0, **self.start}, *(row for row in self.curve if "validation_kl" in row)]

    @property
    def last(self) -> int:
        """The step at which the round ended."""
        return int(self.curve[-1]["step"]) if self.curve else self.steps

    @property
    def judged(self) -> list[Row]:
        """The steps that the judge measured, the reference's own first."""
        return [row for row in self.watched if math.isfinite(row.get("validation_judge", math.nan))]

    @property
    def best(self) -> list[Row]:
        """The watched steps within the limits, those that the watcher likes best in front; of equals the later one."""
        there = [row for row in self.watched[1:] if math.isfinite(self._worth(row)) and not self.exceeded(row)]
        return sorted(there, key=lambda row: (-self._worth(row), -row["step"]))

    def _worth(self, row: Row) -> float:
        """How much the watcher likes a measured policy; not finite where it said nothing of it."""
        value = float(row.get(f"validation_{self.watcher}", math.nan))
        return -value if self.watcher == "loss" else value

    @property
    def kept(self) -> int:
        """The step whose policy is the candidate: the best of those whose weights are there."""
        if self.folder is None:
            return self.last
        there = (row["step"] for row in self.best if row["step"] == self.last or self._policy(row).exists())
        return int(next(there, self.last))

    def exceeded(self, row: Row) -> str | None:
        """Which limit a measured policy is beyond."""
        return self.limits.exceeded(row, self.start)

    def overoptimisation(self, *, best_of_n: bool) -> Overoptimisation | None:
        """The judge's score against the distance, where there are points enough."""
        if not self.judged or self.judged[0]["step"] > 0:
            return None
        start, *reached = self.judged
        return fitted(
            [row["validation_kl"] for row in reached], [row[JUDGED] for row in reached], start[JUDGED],
            best_of_n=best_of_n,
        )

    def alarms(self) -> list[str]:
        """What went wrong on the way, each as a sentence that says which limit, at which step, and what to do."""
        return [*self._stopped(), *self._overoptimised(), *self._collapsed(), *self._apart(), *self._longer(),
                *self._cut(), *self._skipped()]

    @property
    def _end(self) -> Row | None:
        """The round's last step, where it was measured."""
        return next((row for row in reversed(self.watched[1:]) if row["step"] == self.last), None)

    def _stopped(self) -> Iterator[str]:
        end = self._end
        beyond = end and self.exceeded(end)
        if end and beyond:
            candidate = "no policy before it was within" if self.kept == end["step"] else (
                f"the candidate is the policy of step {self.kept}"
            )
            yield f"stopped at step {end['step']} of {self.steps}: {beyond}, or lower the learning rate; {candidate}"

    def _overoptimised(self) -> Iterator[str]:
        """Where the judge's score fell behind its best while the reward rose.

        By the one-sided interval of the paired difference over the validation prompts. Each of the points before the
        end might have been the best by chance, and so has its share of the error (Bonferroni).
        """
        *before, end = self.judged or [{}]
        if not before or end["step"] != self.last or "validation_reward" not in end:
            return
        best = max(before, key=lambda row: float(row["validation_judge"]))
        falls = [high - low for high, low in zip(best[JUDGED], end[JUDGED], strict=True)]
        fell, (least, _) = mean_interval(falls, confidence=1 - 2 * ERROR / len(before))
        if least > 0 and end["validation_reward"] > best["validation_reward"]:
            yield (
                f"over-optimised: from step {best['step']} to {end['step']} the reward rose by "
                f"{end['validation_reward'] - best['validation_reward']:.2f} while the judge's score fell by "
                f"{fell:.2f} (at least {least:.2f}), at {end['validation_kl']:.1f} nats; a better reward model, a "
                "larger kl or fewer steps would help"
            )

    def _collapsed(self) -> Iterator[str]:
        varied = [row for row in self.curve
                  if math.isfinite(row.get("entropy", math.nan)) and row.get("cut", 0.0) < 1]
        first = varied[0]["entropy"] if varied else 0.0
        if varied and varied[-1]["entropy"] < COLLAPSED * first:
            step = next(row["step"] for row in varied if row["entropy"] < COLLAPSED * first)
            yield (
                f"entropy fell from {first:.2f} to {varied[-1]['entropy']:.2f} nats a token, at step {step} below "
                f"{COLLAPSED:g} of what it was: the policy hardly varies; "
                "raise kl_coefficient, or lower the learning rate"
            )

    def _apart(self) -> Iterator[str]:
        fresh = self.curve[:: self.updates_per_rollout]  # behind later updates of a rollout the policy itself moved
        worst = max(fresh, key=lambda row: row.get("sampler_mismatch", 0.0), default={})
        if worst.get("sampler_mismatch", 0.0) > MISMATCH:
            yield (
                f"sampler and trainer differ by up to {worst['sampler_mismatch']:.2f} nats a token at step "
                f"{worst['step']}, over {MISMATCH:g}: look at their precision, and leave correction on"
            )

    def _longer(self) -> Iterator[str]:
        start, end = self.start.get("validation_length", 0.0), self.watched[-1]
        if len(self.watched) > 1 and not self.exceeded(end) and end["validation_length"] > LONGER * max(1.0, start):
            yield (
                f"answers grew from {start:.0f} to {end['validation_length']:.0f} tokens by step {end['step']}, over "
                f"{LONGER:g} times: the reward may be for length; see its audit"
            )

    def _cut(self) -> Iterator[str]:
        shares = [row["cut"] for row in self.curve if math.isfinite(row.get("cut", math.nan))]
        if not shares:
            return
        latest = shares[-4:]  # one step's answers are few
        now = sum(latest) / len(latest)
        if now > CUT or now > shares[0] + MORE_CUT:
            yield (
                f"{now:.0%} of the answers were cut at max_tokens in the last steps, {shares[0]:.0%} in the first: "
                "raise max_tokens, or cut_price where the method has one"
            )

    def _skipped(self) -> Iterator[str]:
        skipped = [row for row in self.curve if "fault" in row]
        if skipped:
            steps = ", ".join(str(row["step"]) for row in skipped)
            rows = ", ".join(map(str, sorted({line for row in skipped for line in row["rows"]})))
            yield (
                f"{len(skipped)} of {len(self.curve)} steps were skipped ({steps}), the last because its "
                f"{skipped[-1]['fault']} is not finite: look at the prompts in lines {rows}, or lower the learning rate"
            )

    def remember(self, row: Row, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Keeps the policy's weights while it is the best so far, and those of the best before it.

        A run that goes on from an earlier step finds its best there; what it comes to again is written again.
        """
        if self.folder is None:
            return
        if not self._begun:
            self._forget(row["step"])
        if row["step"] == self.steps or self.exceeded(row):
            return
        before = next(iter(self.best), None)
        if not self._worth(row) >= (self._worth(before) if before else -math.inf):
            return
        write_tensors(self._policy(row), weights())
        for older in self.best[1:]:
            if distributed.rank() == 0:
                self._policy(older).unlink(missing_ok=True)

    def _forget(self, step: int) -> None:
        """Deletes the weights that an earlier attempt left of this step and later ones: here they may be others."""
        self._begun = True
        assert self.folder is not None
        for path in self.folder.glob("policy-*.pt"):
            if int(path.stem.removeprefix("policy-")) >= step and distributed.rank() == 0:
                path.unlink(missing_ok=True)

    def recall(self, model: nn.Module) -> None:
        """Gives the model the weights of the step that is kept."""
        if self.kept == self.last:
            return
        distributed.barrier()
        path = self._policy({"step": self.kept})
        weights = read_tensors(path, f"delete the folder {path.parent} to train from the beginning")
        names = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if name in names:  # a value head is not kept
                    names[name].copy_(weight)

    def _policy(self, row: Row) -> Path:
        """Where a step's weights are kept."""
        assert self.folder is not None
        return self.folder / f"policy-{row['step']}.pt"
