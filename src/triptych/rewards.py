"""The rewards of a run: made by stages, opened as scorers, and audited before they train or judge anything."""

from __future__ import annotations

from dataclasses import replace

from triptych.audit.record import AuditRecord
from triptych.audit.stage import audit
from triptych.data.folder import HELD_OUT, AuditedOn, DataFolder, TrainedOn
from triptych.data.separation import exposed
from triptych.data.splits import form
from triptych.errors import AuditError, RewardError
from triptych.family import AuditedScorer
from triptych.feedback.rated import RatingWeights, imply
from triptych.pipeline.artifact import Artifact
from triptych.pipeline.result import Result
from triptych.pipeline.runner import Runner
from triptych.progress import Progress
from triptych.recipe import Recipe, RequiredAudit
from triptych.reward.crossfitting import cross_fit
from triptych.reward.kind import RewardConfig
from triptych.reward.making import Materials, make_reward
from triptych.reward.registry import scorer_of
from triptych.reward.taken import TakenReward
from triptych.reward.taking import LEARNT, offered
from triptych.storage import Folder


def require_taken(recipe: Recipe) -> None:
    """Refuses a reward made elsewhere that cannot be taken.

    Raises:
        ModelError, RewardError: why.
    """
    for place, config in recipe.taken.items():
        offered(config, is_part="/" in place)


def learnt_evidence(recipe: Recipe, data: Folder) -> str | None:
    """What is wrong where a reward that was made elsewhere learnt what it would be audited on; None where it did not.

    Only what was left beside a reward is known; of others nobody knows here what they learnt.
    """
    files = DataFolder(data)
    split: TrainedOn | AuditedOn = "train" if files.crossfitted("train") else "heldout"
    audited = set(map(form, files.comparisons(split).read_any())) if recipe.taken else set()
    for config in recipe.taken.values():
        if config.from_.path.exists() and (shared := audited & set(map(form, offered(config).learnt))):
            return (
                f"{config.from_.name}: it learnt {len(shared):,} of the {len(audited):,} prompts that it would be "
                f"audited on ({LEARNT} beside it); give feedback that it has not seen, as its heldout.jsonl"
            )
    return None


def learnt_unknown(config: RewardConfig) -> bool:
    """Whether a part of a reward was made elsewhere, and nobody knows here what it learnt."""
    return any(isinstance(part, TakenReward) and not offered(part, is_part=True).learnt for part in config.within)


def require_unseen(recipe: Recipe, data: Folder, progress: Progress) -> None:
    """Refuses a reward made elsewhere that learnt what it would be audited on, where the audit must be passed.

    Raises:
        RewardError: it did.
    """
    if fault := learnt_evidence(recipe, data):
        if recipe.reward.audit.required:
            raise RewardError(fault)
        progress.say(fault)


def make_audited(
    recipe: Recipe, runner: Runner, name: str, config: RewardConfig, materials: Materials,
    evidence: Artifact[Result] | None, *, audit_name: str, reader: str | None = None,
    predecessor: AuditedScorer | None = None,
) -> AuditedScorer:
    """Makes a reward and audits it on what is held out of its evidence.

    Args:
        name, audit_name: of the two stages.
        evidence: with comparisons; None where there are none, and then it is not audited.
        reader: what a reader of the report calls it; by default its kind's name.
        predecessor: the reward that it was refreshed from.
    """
    data, comparisons, share = materials.data, materials.comparisons, materials.share
    if data is not None and comparisons is not None:
        exposes = runner.outside(lambda: exposed(data, comparisons, share), planned=False)
        materials = replace(materials, exposed=exposes)
    parts = make_reward(runner, name, config, materials)
    scorer = scorer_of(runner, config, parts[""], materials.champion, reader)
    folds = cross_fit(
        runner, name, config, materials, recipe.splits.cross_fit, earlier=predecessor.folds if predecessor else None
    )
    unknown = evidence is not None and runner.outside(lambda: learnt_unknown(config), planned=False)
    audited = None if evidence is None else runner.run(
        audit_name, audit, recipe.reward.audit.checks, comparisons=evidence, reward=scorer, share=HELD_OUT[share],
        predecessor=predecessor.scorer if predecessor else None, unknown=unknown, **folds.scorers,
    )
    return AuditedScorer(parts, scorer, evidence, audited, folds)


def evidence_of(
    recipe: Recipe, runner: Runner, data: Artifact[Result], feedback: Artifact[Result] | None
) -> Artifact[Result] | None:
    """The comparisons that a round's reward is audited on: the round's own, or those that ratings imply."""
    weights = recipe.reward.model.implying
    if not weights or recipe.compared:
        return feedback
    rated = runner.run("round-1/rated", imply, RatingWeights(weights=dict(weights)), data=data)
    return rated if rated.result.heldout else None


def require(audited: Artifact[AuditRecord] | None, config: RequiredAudit, progress: Progress) -> None:
    """Says what an audit found amiss, and stops the run where a reward model may not train anything.

    Raises:
        AuditError: it failed, and must not.
    """
    if audited is None:
        return
    record = audited.result
    reasons = "; ".join(record.reasons)
    if reasons and config.required:
        raise AuditError(
            f"{audited.name}: the reward model may not train anything: {reasons}. To go on all the same, give "
            "--allow-failed-audit (or set reward.audit.required: false); the release will say so"
        )
    if reasons:
        progress.say(
            f"{audited.name}: FAILED, and the reward model is used all the same (reward.audit.required: false): "
            f"{reasons}"
        )
    elif record.warnings:
        more = f" (and {len(record.warnings) - 1} more in the report)" if len(record.warnings) > 1 else ""
        progress.say(f"{audited.name}: {record.verdict}: {record.warnings[0]}{more}")
