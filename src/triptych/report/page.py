"""The page that a person looks at: `render` turns a run's summary and samples into one HTML file.

Everything on it comes from the summary. The page needs no network and no script; the script only adds values
under the pointer and shows the sample prompts one at a time. What models wrote is untrusted: the template
escapes it, and the page's own policy lets no script run but ours and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from triptych.display import duration, printable
from triptych.engine.curve import Curve, thinned
from triptych.pipeline.state import RunState
from triptych.report.answers import side_by_side, tally
from triptych.report.charts import (
    NOT_MEASURED,
    Estimate,
    Line,
    ReferenceLine,
    interval_chart,
    line_chart,
    number,
    percent,
    reliability_chart,
)
from triptych.report.stages import cycle_steps
from triptych.report.summary import (
    RIVALS,
    AuditSummary,
    Interval,
    LossPoint,
    MethodComparison,
    ModelScore,
    RoundSummary,
    Sample,
    Summary,
    TaskScore,
    decoded_as,
)

if TYPE_CHECKING:
    from triptych.evaluate.gate import Decided

FOLDER = Path(__file__).parent
MOST_POINTS = 150
WATCHED = ("loss", "accuracy", "reward", "kl")
"""What the page of a run under way shows of its trainings."""
TONES = {"done": "good", "reused": "good", "interrupted": "warn", "stopped": "warn", "failed": "bad"}


def render(summary: Summary, samples: Sequence[Sample], *, live: bool = False) -> str:
    """The whole report as one self-contained HTML document.

    Args:
        live: whether it asks the server that it comes from for a newer one.
    """
    before, after = _compared(summary.models)
    shown = side_by_side(samples, *(model.name if model else None for model in (before, after)))
    return _environment().get_template("page.html.j2").render(
        summary=summary,
        before=before,
        after=after,
        shown=shown,
        tally=tally(shown),
        parts=_has_parts(summary),
        headline=headline(summary),
        verdict_chart=_verdict_chart(summary),
        champion=next((model for model in summary.models if model.champion), None),
        reward=summary.audits[-1] if summary.audits else None,
        tasks=_tasks(summary.models),
        order=_order(summary),
        score_charts=_score_charts(summary),
        rounds=[(round_, *_round_charts(round_)) for round_ in summary.rounds],
        win_rates=_win_rates(summary.rounds),
        unfolded=False,
        audits=[_audit(audit, f"Round {audit.round}") for audit in summary.audits]
        + [_audit(audit, "The gate's judge") for audit in [summary.judge_audit] if audit]
        + [_audit(audit, "Whether preferences hold") for audit in [summary.preferences_audit] if audit],
        losses=[
            (name, *_loss_chart(name, points, summary.units.get(name, ""))) for name, points in summary.losses.items()
        ],
        cycle=cycle_steps(summary),
        longest_stage=max((stage.seconds for stage in summary.stages), default=0.0) or 1.0,
        **_files(live),
    )


def _has_parts(summary: Summary) -> bool:
    """Whether a champion is beside Instruct by what scores are made of; where Instruct was kept there is no change."""
    verdict, promoted = summary.verdict, any(model.champion and model.round for model in summary.models)
    return promoted and verdict is not None and any(
        (verdict.parts, verdict.instructions, *(task.parts or task.instructions for task in summary.tasks))
    )


def _compared(models: Sequence[ModelScore]) -> tuple[ModelScore | None, ModelScore | None]:
    """Instruct, and the champion beside it; the last candidate where none was promoted."""
    later = [model for model in models if model.round]
    before = next((model for model in models if model.round == 0), None)
    return before, next((model for model in later if model.champion), later[-1] if later else None)


def render_progress(name: str, run: RunState, curves: Mapping[str, Curve], *, has_report: bool) -> str:
    """How far a run is, as a page that asks its server for a newer one.

    Args:
        curves: what there is of each training, by its stage.
        has_report: whether an earlier command left one.
    """
    order = sorted(run.stages, key=lambda stage: stage.state != "under way")
    return _environment().get_template("progress.html.j2").render(
        name=name, run=run, has_report=has_report, now=next((s for s in order if s.state == "under way"), None),
        done=sum(stage.state in ("done", "reused") for stage in run.stages), tones=TONES,
        charts=[(stage.name, *chart) for stage in order for chart in _progress_charts(stage.name, curves[stage.name])],
        **_files(live=True),
    )


def _progress_charts(stage: str, curve: Curve) -> Iterator[tuple[str, Markup]]:
    """A training's charts so far, each with what it shows in words."""
    for series in WATCHED:
        rows = thinned([row for row in curve if math.isfinite(row.get(series, math.nan))], MOST_POINTS)
        if rows:
            words = f"{series} {number(rows[-1][series], 3)} at step {int(rows[-1]['step']):,}"
            tips = [f"step {int(row['step']):,}: {number(row[series], 4)}" for row in rows]
            line = Line([(float(row["step"]), row[series]) for row in rows], tips, dots=len(rows) <= 25)
            yield words, line_chart([line], title=f"{stage}: {words}", x_label="step", y_label=series)


def render_audit(audit: AuditSummary, name: str, version: str) -> str:
    """The audit of one reward model as a page of its own."""
    template = _environment().get_template("audit_page.html.j2")
    audits = [_audit(audit, name)]
    return template.render(audit=audit, audits=audits, unfolded=True, name=name, version=version, **_files())


def render_gate(
    gate: Decided, samples: Sequence[Sample], champion: str, candidate: str, version: str
) -> str:
    """What a gate decided between two models as a page of its own, with answers of both side by side.

    Args:
        samples: with answers of "champion" and "candidate".
    """
    row = Estimate(candidate, gate.win_rate, gate.interval, "green" if gate.decision == "promoted" else "orange",
                   confidence=1 - 2 * gate.level)
    shown = side_by_side(samples, "champion", "candidate")
    return _environment().get_template("gate.html.j2").render(
        gate=gate, shown=shown, tally=tally(shown), champion=champion, candidate=candidate, version=version,
        chart=_rates([row]), unit="Words" if gate.kl is None else "Tokens", **_files(),
    )


def render_comparison(comparison: MethodComparison) -> str:
    """Methods side by side, from `compare.json`: a table and its charts."""
    methods = comparison.methods
    before = ReferenceLine(comparison.before, comparison.rival)
    charts = [
        ("Judge's score", interval_chart(
            [Estimate(row.method, row.score, row.score_interval, "green") for row in methods],
            title="Mean judge score by method", x_label="judge's score", rules=[before],
        )),
        (f"Win rate against {comparison.rival}", interval_chart(
            [Estimate(row.method, row.win_rate, row.win_rate_interval, "green") for row in methods],
            title="Win rate by method", x_label="prompts where the judge prefers the candidate",
            text=lambda value: percent(value, 0), rules=[ReferenceLine(0.5, "no difference")], bounds=(0.0, 1.0),
        )),
    ]
    template = _environment().get_template("comparison.html.j2")
    return template.render(comparison=comparison, charts=charts, **_files())


def _files(live: bool = False) -> dict[str, object]:
    """The page's style and script, and the script's digest for the page's policy."""
    names = ("page", "live") if live else ("page",)
    style, script = (
        "".join((FOLDER / f"{name}.{kind}").read_text(encoding="utf-8") for name in names) for kind in ("css", "js")
    )
    return {
        "live": live,
        "style": Markup(style),
        "script": Markup(script),
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


@dataclass(frozen=True)
class Headline:
    """The first sentence of the page, and the tone it is set in: "good", "bad" or "open"."""

    text: str
    tone: str


def headline(summary: Summary) -> Headline:
    """Whether a candidate was promoted, and how far it is above the strongest that costs nothing, in one line."""
    verdict, rounds = summary.verdict, summary.rounds
    before = next((model for model in summary.models if model.round == 0), None)
    after = next((model for model in summary.models if model.champion), None)
    if verdict is None:
        return Headline("No verdict: the run ended before its models were compared.", "open")
    if not rounds:
        return Headline("No verdict: no round of improvement was run, so there is nothing to compare.", "open")
    if before and after and before.name == after.name:
        last = rounds[-1]
        word = "Rejected" if last.decision == "rejected" else "Not promoted"
        rate = f"{percent(last.win_rate)} of {last.prompts:,} prompts"
        confidence = f"{100 * _confidence(last):.4g}% interval {_percent_bracket(last.interval)}"
        return Headline(
            f"{word}: round {last.round}'s candidate is preferred to the champion on {rate} ({confidence}).", "open"
        )
    rival = verdict.decisive
    digits = _digits(rival.gain_interval)
    gain, interval = number(rival.gain, digits, sign=True), interval_text(rival.gain_interval, digits)
    if verdict.better:
        return Headline(f"Promoted: judge score {gain} over {rival.name} ({interval}).", "good")
    claim, tone = ("worse than", "bad") if rival.gain_interval[1] < 0 else (verdict.claim, "open")
    return Headline(f"Promoted at the gate, but {claim} {rival.name}: judge score {gain} ({interval}).", tone)


def _confidence(round_: RoundSummary) -> float:
    """Of the interval of a round's win rate."""
    return 1 - 2 * (round_.level or 0.025)


def interval_text(interval: Interval | None, digits: int = 2) -> str:
    """An interval in words."""
    if interval is None or not all(math.isfinite(end) for end in interval):
        return f"interval {NOT_MEASURED}"
    return f"95% interval {number(interval[0], digits)} to {number(interval[1], digits)}"


def count(value: int | None) -> str:
    """A count, shortened from a million on."""
    if value is None:
        return NOT_MEASURED
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:,}"


def thin(points: Sequence[LossPoint], most: int = MOST_POINTS) -> list[LossPoint]:
    """At most `most` of the points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_written,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "interval": _bracket,
        "percent_interval": _percent_bracket,
        "duration": duration,
        "count": count,
        "clock": lambda time: datetime.fromtimestamp(time).strftime("%H:%M"),
    }
    return environment


def _written(value: object) -> object:
    """What a template prints: escaping leaves what turns the direction of writing, and what no file can hold."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _bracket(interval: Interval, digits: int = 2) -> str:
    return f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def _percent_bracket(interval: Interval) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"


def _digits(interval: Interval) -> int:
    """Digits that tell the ends of an interval apart, so that a small gain is not printed as 0.00."""
    width = interval[1] - interval[0]
    return 3 if math.isfinite(width) and width < 0.02 else 2


def _tasks(models: Sequence[ModelScore]) -> list[str]:
    return list(dict.fromkeys(task for model in models for task in model.by_task))


def _order(summary: Summary) -> list[tuple[ModelScore, ModelScore]]:
    """The models from the best to the worst, by the judge and beside it by the reward; empty where it scored none."""
    if summary.reward_order is None:
        return []
    models = {model.name: model for model in summary.models}
    orders = (summary.reward_order.by_judge, summary.reward_order.by_reward)
    return [(models[judged], models[rewarded]) for judged, rewarded in zip(*map(reversed, orders), strict=True)]


def _judge_scale(summary: Summary) -> tuple[str, tuple[float, float]]:
    """What the judge's scores are called, and their bounds: [0, 1] or a reward model's own units."""
    ends = [end for model in summary.models for end in (model.score, *model.interval)]
    if all(0 <= end <= 1 for end in ends):
        return "mean judge score (0 to 1)", (0.0, 1.0)
    return "mean judge score (the judge's own units)", (-math.inf, math.inf)


def _tone(model: ModelScore) -> str:
    if model.champion:
        return "green"
    return {None: "grey", 0: "blue"}.get(model.round, "orange")


def _verdict_chart(summary: Summary) -> Markup | None:
    """Base, Instruct and champion as deployed, with what Instruct does for nothing and as the best of n.

    Where no candidate was promoted they stand beside Instruct instead.
    """
    axis, bounds = _judge_scale(summary)
    promoted = any(model.champion and model.round for model in summary.models)
    rows: list[Estimate] = []
    for model in summary.models:
        if model.name in RIVALS:
            rows += _ways(model, RIVALS[model.name])
        elif model.champion and model.round:
            rows.append(Estimate(f"Champion, {model.decoding}", model.score, model.interval, "green"))
        elif not promoted:
            rows.append(_estimate(model, model))
    verdict = summary.verdict
    rules = [ReferenceLine(row.score, "strongest that costs nothing")
             for row in (verdict.baselines if verdict else []) if verdict and row.name == verdict.rival]
    title = f"{axis} with 95% intervals. " + _listed(rows)
    return interval_chart(rows, title=title, x_label=axis, bounds=bounds, rules=rules) if rows else None


def _ways(model: ModelScore, called: str) -> list[Estimate]:
    """A model that a champion must beat in every way of decoding; what costs more than an answer is hollow."""
    ways = sorted(model.decodings.items(), key=lambda item: (item[1].drawn, item[1].score))
    return [
        Estimate(
            decoded_as(way, called), score.score, score.interval,
            "grey" if score.drawn > 1 or model.round is None
            else "green" if model.champion and way == model.decoding else "blue",
            strong=score.drawn == 1,
        )
        for way, score in ways
    ]


def _score_charts(summary: Summary) -> list[tuple[str, Markup]]:
    """Every model as it is deployed, on all test prompts and on each task's."""
    axis, bounds = _judge_scale(summary)
    groups: dict[str, list[Estimate]] = {"All test prompts": []}
    for model in summary.models:
        groups["All test prompts"].append(_estimate(model, model))
        for name, part in model.by_task.items():
            groups.setdefault(name, []).append(_estimate(model, part))
    everything = [row for rows in groups.values() for row in rows]
    charts = []
    for name, rows in groups.items():
        title = f"{name}: {axis} with 95% intervals. " + _listed(rows)
        charts.append((name, interval_chart(rows, title=title, x_label=axis, bounds=bounds, also=everything)))
    return charts if summary.models else []


def _estimate(model: ModelScore, part: ModelScore | TaskScore) -> Estimate:
    return Estimate(f"{model.name}, {model.decoding}", part.score, part.interval, _tone(model))


def _listed(rows: Sequence[Estimate]) -> str:
    return "; ".join(f"{row.label} {number(row.value)}" for row in rows)


def _round_charts(round_: RoundSummary) -> tuple[Markup, Markup]:
    """Reward and judge over KL, in two panels because their units differ; without a reward the held-out loss."""

    def panel(name: Literal["reward", "loss", "judge"], unit: str, tone: str, of: str) -> Markup:
        kept = [(point, value) for point in round_.curve if (value := getattr(point, name)) is not None]
        bars = [getattr(point, f"{name}_interval", None) for point, _ in kept]
        tips = [
            f"step {point.step}: {name} {number(value)}{f', {interval_text(bar)}' if bar else ''}, "
            f"KL {number(point.kl)} nats"
            for (point, value), bar in zip(kept, bars, strict=True)
        ]
        line = Line([(point.kl, value) for point, value in kept], tips, tone, intervals=bars)
        ends = f"from {number(kept[0][1])} to {number(kept[-1][1])}" if kept else NOT_MEASURED
        return line_chart(
            [line],
            title=f"Round {round_.round}: {name} over KL on {of}, {ends}",
            x_label="KL, nats per answer (root scale)",
            y_label=f"{name} ({unit})",
            square_root_x=True,
            x_reach=max((point.kl for point in round_.curve if math.isfinite(point.kl)), default=0.0),
        )

    prompts = "the validation prompts"
    learnt = (
        panel("loss", "mean", "orange", "held-out feedback") if round_.reward_before is None
        else panel("reward", "the reward model's units", "orange", prompts)
    )
    return learnt, panel("judge", "mean score", "blue", prompts)


def _win_rates(rounds: Sequence[RoundSummary]) -> Markup:
    rows = [
        Estimate(
            f"round {r.round}", r.win_rate, r.interval, "green" if r.decision == "promoted" else "orange",
            confidence=_confidence(r),
        )
        for r in rounds
    ]
    return _rates(rows)


def _rates(rows: Sequence[Estimate]) -> Markup:
    return interval_chart(
        rows,
        title="Win rate of each round's candidate against the champion: "
        + "; ".join(f"{row.label} {percent(row.value)}" for row in rows),
        x_label="prompts where the candidate is preferred",
        text=lambda value: percent(value, 0),
        rules=[ReferenceLine(0.5, "no difference")],
        bounds=(0.0, 1.0),
    )


def _audit(audit: AuditSummary, title: str) -> tuple[AuditSummary, str, Markup, Markup, Markup]:
    """The audit under its title, and its charts: accuracy among its baselines, by group, reliability."""
    rows = [Estimate("reward model", audit.accuracy, audit.interval, "orange")]
    rows += [Estimate(name, value, None, "grey", strong=False) for name, value in audit.baselines.items()]
    rules = [] if audit.ceiling is None else [ReferenceLine(audit.ceiling, "noise ceiling")]
    shared = "comparisons ordered as labelled"
    name = f"Reward model, {title}"

    def chart(rows: Sequence[Estimate], title: str, rules: Sequence[ReferenceLine]) -> Markup:
        return interval_chart(
            rows,
            title=f"{name}, {title}: " + "; ".join(f"{row.label} {percent(row.value)}" for row in rows),
            x_label=shared,
            text=lambda value: percent(value, 0),
            rules=rules,
            bounds=(0.0, 1.0),
        )

    groups = [Estimate(g, part.score, part.interval, "orange") for g, part in audit.by_group.items()]
    bins = [(b.confidence, b.accuracy, b.count) for b in audit.bins]
    error = "" if audit.calibration_error is None else f": calibration error {percent(audit.calibration_error)}"
    reliability = reliability_chart(bins, title=f"{name}, reliability{error}")
    charts = chart(rows, "accuracy", rules), chart(groups, "accuracy by group", []), reliability
    return audit, title, *charts


def _loss_chart(name: str, points: Sequence[LossPoint], unit: str) -> tuple[str, Markup]:
    """What the chart shows in words, and the chart: the points, and a running mean where they are many."""
    seen = f"{unit} seen".strip()
    kept = thin([point for point in points if math.isfinite(point.loss)])
    tips = [f"step {p.step:,}: {number(p.loss, 4)} ({p.seen:,} {seen})" for p in kept]
    raw = [(float(p.step), p.loss) for p in kept]
    many = len(kept) > 25
    lines = [Line(raw, tips, "blue", dots=not many, faint=many)]
    if many:
        lines.append(Line(_smoothed(raw), tone="blue", dots=False))
    words = NOT_MEASURED
    if kept:
        words = f"{number(kept[0].loss, 3)} → {number(kept[-1].loss, 3)}, {points[-1].seen:,} {seen}"
    if len(points) > len(kept) > 0:
        words += f"; {len(kept)} of {len(points):,} points drawn"
    return words, line_chart(lines, title=f"Loss of {name}: {words}", x_label="step", y_label="loss")


def _smoothed(points: Sequence[tuple[float, float]], share: float = 0.08) -> list[tuple[float, float]]:
    """A centred running mean over a share of the points."""
    reach = max(1, round(share * len(points) / 2))
    means = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        means.append((x, sum(near) / len(near)))
    return means
