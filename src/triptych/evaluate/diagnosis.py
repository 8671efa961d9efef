"""What a round that was not promoted failed by: the Base, the instructions, the reward, the optimiser, or the gate.

The champion, which the round set out from, answers the validation prompts several times. Whether one of the answers is
good (pass@k, Chen et al. 2021, *Evaluating Large Language Models Trained on Code*, where a good answer is one that the
judge likes as well as the best quarter of the held-out demonstrations) says what the model can do at all. Whether the
reward ranks the same answers as the judge does says what it teaches. What reward and judge became at the gate says what
the optimiser made of it. The first of these that is not as it should be is to blame; it is told with its measurement,
and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import quantiles
from typing import Literal

from pydantic import Field

from triptych.configuration import Config
from triptych.data.folder import DataFolder
from triptych.data.splits import decontaminate
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import Scorer, learns, unscorable
from triptych.evaluate.gate import REJECTED, UNDECIDED, Decided, gate_scores
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext
from triptych.records import Conversation, Prompt
from triptych.statistics.intervals import mean_interval, prompts_needed
from triptych.statistics.scores import PairedScore, TaskScore
from triptych.statistics.significance import detectable
from triptych.storage import Folder

Bottleneck = Literal["base", "instructions", "reward", "optimiser", "gate"]
CALLED: dict[Bottleneck, str] = {
    "base": "the Base", "instructions": "the instructions", "reward": "the reward", "optimiser": "the optimiser",
    "gate": "the gate's power",
}
ENOUGH = 0.5
"""The share of the prompts that a model must have a good answer to, among several, for improvement to find it."""
CHANCE, WEAK, SOUND = 0.5, 0.6, 0.7
"""How often a reward that knows nothing ranks two answers as the judge does, one that hardly teaches anything, and one
that is not to blame where the judge fell while it rose."""
CLEAR = 0.7
"""A gate that finds only candidates which win more than this has too few prompts to say anything of the others."""
LEVELS = 400
"""So many held-out demonstrations say what a good answer is."""
FEWEST = 8
"""Fewer rows than this say nothing of a kind."""


class Diagnosis(Config):
    """What is measured where a round is not promoted.

    Attributes:
        prompts: of the validation prompts, and of the conversations that Instruct has not seen.
        answers: of the champion to each, sampled at temperature 1.
    """

    prompts: int = Field(default=48, ge=FEWEST)
    answers: int = Field(default=8, ge=2)


class Diagnosed(Result):
    """What was measured, and what is to blame.

    Attributes:
        blamed: the bottleneck; None where everything is as it should be.
        because: the measurement that shows it, as a sentence.
        answers: to each prompt.
        passed: the share of the validation prompts to which one of so many answers is good; None where nobody knows
            what a good answer is, for there are no demonstrations held out, or the judge only compares.
        passed_taught: the same of the prompts of demonstrations that Instruct has not seen.
        ranked: how often the reward ranks two answers to a prompt as the judge does, where the judge tells them apart.
        reward, judge: champion and candidate on the gate's prompts.
        prompts_needed: so many would have told, at the win rate that was found.
    """

    blamed: Bottleneck | None
    because: str
    answers: int
    passed: TaskScore | None
    passed_taught: TaskScore | None
    ranked: TaskScore | None
    reward: PairedScore
    judge: PairedScore
    prompts_needed: int | None

    @property
    def headline(self) -> str:
        """What is to blame."""
        return CALLED[self.blamed] if self.blamed else "nothing"


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt's answers with both scores of each."""

    prompt: Prompt
    judge: Sequence[float]
    reward: Sequence[float]

    @property
    def ranked(self) -> float | None:
        """The share of the pairs that the reward ranks as the judge, ties of the reward a half; None without a pair."""
        agreed = [
            0.5 if self.reward[i] == self.reward[j] else float((self.reward[i] > self.reward[j]) == (first > second))
            for (i, first), (j, second) in combinations(enumerate(self.judge), 2) if first != second
        ]
        return sum(agreed) / len(agreed) if agreed else None


def diagnose(
    context: StageContext, config: Diagnosis, champion: Folder, data: Folder, gate: Folder, decided: Decided,
    reward: Scorer, judge: Scorer, decoding: Sampling, absolute: bool = True,
) -> Diagnosed:
    """Measures what the round had to work with, and what it made of it.

    Args:
        champion: whose answers are scored, and whom the candidate set out from.
        gate: of the round, with both models' scores.
        reward: that the round was improved by.
        decoding: gives the longest answer.
        absolute: the judge's score of an answer does not depend on the others that it is asked about.
    """
    files, policy = DataFolder(data), Policy.open(champion / "model")
    taught = files.demonstrations("heldout").read_any() if absolute else []
    taught = [row for row in taught if unscorable(judge, row.prompt) is None]  # a rule may need what only prompts have
    if learns(judge):  # it would find what it learnt itself better than what anybody writes
        taught, _ = decontaminate(taught, [*files.comparisons("judge").read_any(), *files.ratings("judge").read_any()])
    good = levels(taught[:LEVELS], judge)
    asked = files.prompts("validation").read()[: config.prompts]
    shown = [row.prompt for row in taught if unscorable(reward, row.prompt) is None][: config.prompts]
    plain = Sampling(decoding.max_tokens, seed=context.seed)

    def write(prompts: Sequence[Prompt]) -> list[Judged]:
        prompts = policy.fitting(prompts, plain.max_tokens, context.progress) if prompts else []
        groups = policy.write(prompts, plain, n=config.answers, progress=context.progress) if prompts else []
        rows = [Conversation(rollout.prompt, rollout.answer) for group in groups for rollout in group]
        by_judge, by_reward = (scorer.score(rows) if rows else [] for scorer in (judge, reward))
        parts = [slice(place * config.answers, (place + 1) * config.answers) for place in range(len(groups))]
        return [
            Judged(prompt, by_judge[part], by_reward[part]) for prompt, part in zip(prompts, parts, strict=True)
        ]

    answered = write(asked)
    scores = gate_scores(gate)
    measured = Diagnosed(
        blamed=None, because="", answers=config.answers,
        passed=_share(passes(answered, good)), passed_taught=_share(passes(write(shown), good)),
        ranked=_share([share for row in answered if (share := row.ranked) is not None]),
        reward=PairedScore.of([row.reward_before for row in scores], [row.reward_after for row in scores]),
        judge=PairedScore.of([row.before for row in scores], [row.after for row in scores]),
        prompts_needed=prompts_needed([row.won for row in scores], 0.5, decided.level),
    )
    blamed, because = blame(measured, decided)
    diagnosed = measured.model_copy(update={"blamed": blamed, "because": because})
    context.progress.say(f"what to blame: {diagnosed.headline}: {because}")
    return diagnosed


def levels(taught: Sequence[Conversation], judge: Scorer) -> dict[str | None, float]:
    """What the judge's score of a good answer is: the upper quartile of the demonstrations, of all and of each task."""
    by_task: dict[str | None, list[float]] = {}
    for row, score in zip(taught, judge.score(taught) if taught else (), strict=True):
        for task in {None, row.prompt.task}:
            by_task.setdefault(task, []).append(score)
    return {task: quantiles(scores, n=4)[2] for task, scores in by_task.items() if len(scores) >= FEWEST}


def passes(answered: Sequence[Judged], good: dict[str | None, float]) -> list[float]:
    """Whether one of each prompt's answers is good; none where nobody knows what that is."""
    if None not in good:
        return []
    return [float(max(row.judge) >= good.get(row.prompt.task, good[None])) for row in answered]


def blame(diagnosed: Diagnosed, decided: Decided) -> tuple[Bottleneck | None, str]:
    """The first of the cycle's parts that is not as it should be, and the measurement that shows it."""
    passed, taught, ranked = diagnosed.passed, diagnosed.passed_taught, diagnosed.ranked
    if passed is not None and passed.score < ENOUGH:
        of = f"one of {diagnosed.answers} answers is as good as the best quarter of the demonstrations on"
        if taught is not None and taught.score > ENOUGH and taught.interval[0] > passed.interval[1]:
            return "instructions", (
                f"{of} {_shown(passed)} of the prompts to improve on, and on {_shown(taught)} of those that Instruct "
                "was taught to answer: the model can do it, and does not where it is asked so"
            )
        return "base", f"{of} {_shown(passed)}: improvement finds no better answer where none is written"
    if ranked is not None and (ranked.interval[0] <= CHANCE or ranked.score < WEAK):
        return "reward", f"of two answers to a prompt the reward prefers the judge's in {_shown(ranked)}"
    rose, liked = _change(diagnosed.reward), _change(diagnosed.judge)
    needed = "" if diagnosed.prompts_needed is None else f"; about {diagnosed.prompts_needed:,} would tell"
    rate = detectable(decided.prompts, decided.level)
    if decided.decision == UNDECIDED and rate > CLEAR:
        only = "no candidate" if rate >= 1 else f"only a candidate that wins {rate:.0%} of all such prompts"
        return "gate", f"with {decided.prompts} prompts {only} is promoted four times in five{needed}"
    if diagnosed.reward.interval[0] <= 0:
        return "optimiser", f"the reward did not rise: {rose}"
    if decided.decision == REJECTED and diagnosed.judge.gain > 0:
        return "optimiser", f"the reward rose ({rose}), and it went too far: {decided.reason}"
    if ranked is not None and ranked.score < SOUND and diagnosed.judge.interval[1] < 0:
        return "reward", (
            f"the reward rose ({rose}) and the judge fell ({liked}); of two answers to a prompt the reward prefers the "
            f"judge's in {_shown(ranked)}"
        )
    if diagnosed.judge.gain <= 0:
        return "optimiser", f"the reward rose ({rose}) and the judge did not ({liked})"
    if decided.decision == UNDECIDED:
        return "gate", f"reward and judge rose ({liked}), and {decided.prompts} prompts are few{needed}"
    return None, "everything that is measured here is as it should be"


def _share(values: Sequence[float]) -> TaskScore | None:
    if not values:
        return None
    mean, interval = mean_interval(values)
    return TaskScore(score=mean, interval=interval, prompts=len(values))


def _shown(share: TaskScore) -> str:
    low, high = share.interval
    return f"{share.score:.0%} (95% interval {low:.0%} to {high:.0%}, {share.prompts} prompts)"


def _change(score: PairedScore) -> str:
    low, high = score.interval
    return f"{score.before:.3f} to {score.after:.3f}, 95% interval of the change {low:+.3f} to {high:+.3f}"
