"""The audit as a stage: every measurement, and the verdict whether the reward model may train anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from triptych.audit.agreement import beside_a_person, by_group, leads, outcomes, trivial
from triptych.audit.calibration import calibration, reliability
from triptych.audit.consistency import consistency
from triptych.audit.coverage import coverage
from triptych.audit.crossfitted import CrossFitted, cross_fitted_words
from triptych.audit.drift import drift
from triptych.audit.length import blind_side, leaning, length_bias, spearman
from triptych.audit.perturbations import perturbations
from triptych.audit.record import AUDIT, Agreement, AuditRecord, Calibration, TrivialRule
from triptych.audit.words import bag_of_words
from triptych.configuration import Config
from triptych.data.folder import TRAINED, AuditedOn, DataFolder
from triptych.engine.scoring import RewardModel, Scorer, learns, learnt_elsewhere, log_odds
from triptych.pipeline.stage import StageContext, reads
from triptych.records import Comparison, Conversation
from triptych.statistics.intervals import mean_interval
from triptych.storage import Folder

BAG_OF_WORDS = "bag of words"
CONSISTENCY_COMPARISONS = 8

REMADE = "change its rules, its question or who is asked"
"""What mends a reward that is not trained."""

UNKNOWN = (
    "training: nothing says which comparisons it was trained on. It may have learnt these, and then this audit says "
    "nothing of others; triptych audit --training leaves out those that you know it was trained on"
)


class Audit(Config):
    """What a reward model must show before it may train a policy.

    Attributes:
        least_margin: by how much the accuracy must exceed every trivial rule's (random, longer wins, shorter wins),
            at the lower end of the 95% interval of the difference.
        least_prompts: held-out comparisons of fewer prompts prove nothing, for a bootstrap over so few is too sure.
        perturbed: prompts whose chosen answers are changed in ways that the reward must notice, or overlook.
        tolerance: largest difference between the scores of one answer alone, packed and in plain transformers.
    """

    least_margin: float = Field(default=0.0, ge=0, lt=0.5)
    least_prompts: int = Field(default=30, ge=1)
    perturbed: int = Field(default=100, ge=0)
    tolerance: float = Field(default=1e-3, gt=0)


@dataclass(frozen=True)
class Evidence:
    """What an audit is made from.

    Attributes:
        rows: comparisons that the reward model has not seen.
        training: those that it was trained on, for the bag of words; empty where they are not known.
        new: which of `rows` are newer than the predecessor.
        folds: of how many models' evidence it is, where each was trained without a fold of `rows`.
        seed: of the folds, which the bag of words has too; None where there are none.
        unseen: whether it is known that the reward has not learnt from `rows`.
    """

    rows: Sequence[Comparison]
    training: Sequence[Comparison] = ()
    new: Sequence[bool] = ()
    folds: int = 0
    seed: int | None = None
    unseen: bool = True


@reads(comparisons=("comparisons",))
def audit(
    context: StageContext, config: Audit, /, comparisons: Folder, reward: Scorer, share: AuditedOn = "heldout",
    predecessor: Scorer | None = None, unknown: bool = False, **folds: Scorer,
) -> AuditRecord:
    """Audits a reward on the comparisons of a split; the record is also in `audit.json`.

    Where none is held out, the audit is of all of them: cross-fitted if the reward was trained on them.

    Args:
        predecessor: the reward model that this one was refreshed from; a cross-fitted audit does not look at it.
        unknown: it was made elsewhere, and may have learnt these very comparisons.
        folds: rewards like this one, "fold_0" that which was trained without the first fold and so on.
    """
    files = DataFolder(comparisons)
    training, unseen = files.comparisons(TRAINED[share]).read(), not (unknown or learnt_elsewhere(reward))
    if files.crossfitted(TRAINED[share]):
        evidence = Evidence(training, folds=len(folds), seed=context.seed, unseen=unseen)
        models = [folds[f"fold_{fold}"] for fold in range(len(folds))]
        record = examine(CrossFitted(models, context.seed) if models else reward, evidence, config, released=reward)
    else:
        rows = files.comparisons(share).read()
        fresh = set(files.new_comparisons.read_any()) if predecessor else set()
        evidence = Evidence(rows, training, [row in fresh for row in rows], unseen=unseen)
        record = examine(reward, evidence, config, predecessor)
    (context.output / AUDIT).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def examine(
    scorer: Scorer, evidence: Evidence, config: Audit, predecessor: Scorer | None = None,
    released: Scorer | None = None,
) -> AuditRecord:
    """The whole audit; consistency is measured of a trained model, drift where it has a predecessor.

    Args:
        released: the reward that is used, where others stand for it; its consistency needs no held-out comparison.
    """
    released = released or scorer
    rows = evidence.rows
    chosen, rejected = scored(scorer, rows)
    record = measured(evidence, chosen, rejected, log_odds(scorer))
    differences = [a - b for a, b in zip(chosen, rejected, strict=True)]
    if config.perturbed:
        record.perturbations = perturbations(rows, differences, scorer.score, config.perturbed)
    if evidence.unseen or not learns(released):
        own = None if evidence.folds else [score for pair in zip(chosen, rejected, strict=True) for score in pair]
        record.coverage = coverage(_answers(rows), own, released)
    if isinstance(released, RewardModel):
        few = _one_of_each_prompt(rows)[:CONSISTENCY_COMPARISONS]
        record.consistency = consistency(released.folder, _answers(few), config.tolerance)
    if predecessor is not None:
        before = [a - b for a, b in zip(*scored(predecessor, rows), strict=True)]
        record.drift = drift(rows, evidence.new or [False] * len(rows), differences, before)
    return judged(record, config, learns=learns(released), unseen=evidence.unseen)


def scored(scorer: Scorer, rows: Sequence[Comparison]) -> tuple[list[float], list[float]]:
    """The scores of the chosen and of the rejected answers: those that train."""
    scores = scorer.score(_answers(rows))
    return scores[0::2], scores[1::2]


def agree(scorer: Scorer, rows: Sequence[Comparison]) -> Agreement:
    """How often a reward orders comparisons as labelled, beside rules that know nothing of what is said."""
    record = measured(Evidence(rows), *scored(scorer, rows), log_odds(scorer))
    return Agreement(
        comparisons=record.comparisons, accuracy=record.accuracy, interval=record.interval,
        calibration_error=record.calibration_error, length_correlation=record.length_correlation,
        baselines=record.baselines,
    )


def measured(
    evidence: Evidence, chosen: Sequence[float], rejected: Sequence[float], unit: float | None = None
) -> AuditRecord:
    """What the scores of both answers of each comparison say, without a verdict.

    Args:
        unit: the log-odds in one unit of score; None where differences of these scores are none.
    """
    rows = evidence.rows
    prompts = [row.prompt.key for row in rows]
    right = outcomes(chosen, rejected)
    differences = [a - b for a, b in zip(chosen, rejected, strict=True)]
    rules = trivial(rows)
    if evidence.seed is not None:
        rules[BAG_OF_WORDS] = cross_fitted_words(rows, evidence.seed)
    elif evidence.training:
        rules[BAG_OF_WORDS] = bag_of_words(evidence.training, rows)
    baselines = {name: sum(rule) / len(rule) for name, rule in rules.items()}
    best = max(baselines, key=lambda name: baselines[name])
    accuracy, interval = mean_interval(right, prompts)
    sure = [] if unit is None else [unit * difference for difference in differences]
    bins, error = reliability(sure)
    scores = [score for pair in zip(chosen, rejected, strict=True) for score in pair]
    return AuditRecord(
        comparisons=len(rows), prompts=len(set(prompts)), folds=evidence.folds, accuracy=accuracy, interval=interval,
        baselines=baselines, best_trivial=TrivialRule(name=best, accuracy=baselines[best]),
        leads=leads(right, rules, prompts),
        person=beside_a_person(rows, right),
        by_group=by_group(rows, right),
        calibration_error=error if sure else None, bins=bins, calibration=calibration(sure, prompts) if sure else None,
        length_correlation=spearman(scores, [len(conversation.answer) for conversation in _answers(rows)]),
        when_longer=_mean([r for r, rule in zip(right, rules["longer wins"], strict=True) if rule == 1.0]),
        when_shorter=_mean([r for r, rule in zip(right, rules["longer wins"], strict=True) if rule == 0.0]),
        length=length_bias(rows, right, differences),
        verdict="failed", reasons=["not judged"],
    )


def judged(record: AuditRecord, config: Audit, *, learns: bool = True, unseen: bool = True) -> AuditRecord:
    """The record with its verdict and warnings.

    To pass, the accuracy must be above that of *each* trivial rule: the lower end of the 95% interval of the paired
    difference, over prompts, must be above `least_margin`. A small sample has a wide interval and so does not pass
    by luck; several such tests that must all hold are no easier to pass than one (Berger 1982). The bag of words is
    no trivial rule but a model that has learnt from the same labels: it must not be proved better, the upper end of
    the interval below 0, and a model that is not proved better than it passes with a warning. A warning is a
    reservation, and is told wherever the verdict is.

    Args:
        learns: whether the reward is trained, and not made of rules or questions: what would mend it follows from that.
        unseen: whether it is known that it has not learnt from these comparisons.
    """
    reasons = []
    if record.prompts < config.least_prompts:
        reasons.append(
            f"only {record.prompts} {record.evidence} prompts, where {config.least_prompts} are the least that count: "
            f"{_more(record, learns)}"
        )
    name = min(
        (rule for rule in record.leads if rule != BAG_OF_WORDS), key=lambda rule: record.leads[rule].interval[0]
    )
    if record.leads[name].interval[0] <= config.least_margin:
        reasons.append(_not_ahead(record, name, config.least_margin, learns))
    words = record.leads.get(BAG_OF_WORDS)
    if words and words.interval[1] < 0:
        reasons.append(
            f"accuracy {record.accuracy:.1%} is below that of a bag of words trained on the same comparisons "
            f"({record.baselines[BAG_OF_WORDS]:.1%}): it knows less than to count words; "
            + ("give it more epochs, another learning rate or a better starting model" if learns else REMADE)
        )
    broken = [row for row in record.consistency if not row.holds]
    reasons += [
        f"scores differ by how they are computed: {row.way}, by "
        f"{'an error' if row.difference is None else format(row.difference, '.2g')} where {row.tolerance:.2g} is "
        "allowed; look at the padding and end tokens in config.json and tokenizer_config.json"
        for row in broken
    ]
    record.reasons, record.warnings = reasons, _warnings(record, learns)
    if learns and not unseen:
        record.warnings.append(UNKNOWN)
    record.verdict = "failed" if reasons else "passed with reservations" if record.warnings else "passed"
    return record


def _not_ahead(record: AuditRecord, name: str, margin: float, learns: bool) -> str:
    lead = record.leads[name]
    low, high = lead.interval
    shortfall = (
        f"accuracy {record.accuracy:.1%} does not beat '{name}' ({record.baselines[name]:.1%}) "
        f"{f'by {margin:.1%} ' if margin else ''}beyond chance: the lead is {100 * lead.lead:+.1f} points, 95% "
        f"interval {100 * low:+.1f} to {100 * high:+.1f}; "
    )
    if lead.lead <= margin:
        mended = "give it more or cleaner comparisons, more epochs or a better starting model"
        return shortfall + (mended if learns else f"{REMADE}, or look for wrong labels")
    # The interval narrows with the root of the number of prompts.
    needed = math.ceil(record.prompts * ((lead.lead - low) / (lead.lead - margin)) ** 2)
    return shortfall + (
        f"about {max(needed, record.prompts + 1):,} {record.evidence} prompts would show a lead of this size (there "
        f"are {record.prompts:,}): {_more(record, learns)}"
    )


def _more(record: AuditRecord, learns: bool) -> str:
    return "give more comparisons" + (", or raise the share that is held out" if learns and not record.folds else "")


def _warnings(record: AuditRecord, learns: bool) -> list[str]:
    """What to look at, from what spoils a policy most to what spoils it least."""
    warnings = []
    if side := blind_side(record):
        warnings.append(
            f"length: it is right on only {side[1]:.1%} of comparisons where the {side[0]} answer is preferred, less "
            "often than a coin: it follows the length there, or most of these labels are wrong; "
            + (f"add comparisons in which the {side[0]} answer is the better one" if learns else REMADE)
        )
    if record.length and (liked := leaning(record.length)):
        warnings.append(
            f"length: it leans towards {liked} answers: it prefers the longer in {record.length.prefers_longer:.1%} of "
            f"comparisons and the labels do in {record.length.labels_longer:.1%}; it is right on "
            f"{record.when_longer:.1%} where the longer answer is preferred and on {record.when_shorter:.1%} where the "
            f"shorter is; {'add comparisons where length and quality disagree' if learns else REMADE}"
        )
    words = record.leads.get(BAG_OF_WORDS)
    if words and words.interval[0] <= 0:
        warnings.append(
            f"bag of words: it is not proved better than counting words, {record.accuracy:.1%} and "
            f"{record.baselines[BAG_OF_WORDS]:.1%}; what it rewards may be words rather than what they say"
        )
    warnings += [
        f"drift: it orders {row.comparisons} comparisons worse than its predecessor, {row.accuracy:.1%} and "
        f"{row.predecessor:.1%}"
        for row in record.drift if row.lead_interval[1] < 0
    ]
    warnings += [
        f"perturbation: '{row.name}' {row.rule}, and goes the wrong way on {row.wrong:.0%} of {row.answers} answers"
        for row in sorted(record.perturbations, key=lambda row: -row.wrong) if row.interval[0] > 0.5
    ]
    if record.calibration and record.calibration.error > max(0.1, 2 * record.calibration.chance_error):
        warnings.append(_miscalibrated(record, record.calibration))
    if record.folds:
        warnings.append(
            f"cross-fitted: with so few comparisons none is held out, so {record.folds} models like this one were each "
            "trained without a part of them and measured on that part; this one, trained on all of them, is measured "
            "on none. The intervals are over prompts and leave out that the models' training differs by chance"
        )
    return warnings


def _miscalibrated(record: AuditRecord, calibration: Calibration) -> str:
    sure = sum(bar.confidence * bar.count for bar in record.bins) / record.comparisons
    how = "too sure" if sure > record.accuracy else "not sure enough"
    said = (
        f"calibration: it is {how}, with a calibration error of {calibration.error:.1%} on half of the prompts; with "
        f"rewards divided by {calibration.temperature:.2g}, as fits the other half best, the error is "
        f"{calibration.mended_error:.1%}"
    )
    return said if calibration.mended_error < calibration.error else said + ", so that no temperature mends it"


def _one_of_each_prompt(rows: Sequence[Comparison]) -> list[Comparison]:
    return list({row.prompt.key: row for row in rows}.values())


def _answers(rows: Sequence[Comparison]) -> list[Conversation]:
    return [Conversation(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
