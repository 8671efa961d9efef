"""The report's charts, drawn as SVG text: lines, estimates with intervals, reliability.

Every chart is a function from numbers to one `<svg data-plot>` that takes its colours from the page's CSS (so
that dark mode costs nothing) and is drawn about as wide as a phone, so that its text stays readable there.
A value that is not finite is left out; a chart with nothing to draw says "not measured" instead of showing an
empty frame. Labels are untrusted text and are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from triptych.display import printable

WIDTH = 420.0
NOT_MEASURED = "not measured"

Point = tuple[float, float]


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number as it is printed: a real minus sign, thousands separated, None as "not measured"."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return ("±" if sign else "") + text  # never "−0.00"
    return ("−" if value < 0 else "+" if sign else "") + text


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    text = number(None if value is None else 100 * value, digits)
    return text if text == NOT_MEASURED else text + "%"


@dataclass(frozen=True)
class Line:
    """One line of a line chart.

    Attributes:
        tips: what hovering over each point says.
        dots: draws the points, not only what joins them.
        faint: the raw values behind a smoothed line.
        intervals: of each point, drawn as a bar; None for none.
    """

    points: Sequence[Point]
    tips: Sequence[str] = ()
    tone: str = "blue"
    dots: bool = True
    faint: bool = False
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Estimate:
    """One row of a dot-and-interval chart. `strong` rows are filled dots, the others hollow."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    tone: str = "blue"
    strong: bool = True
    confidence: float = 0.95


@dataclass(frozen=True)
class ReferenceLine:
    """A dashed reference line at `value` across a dot-and-interval chart, named on top."""

    value: float
    label: str


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    square_root_x: bool = False,
    x_reach: float = -math.inf,
) -> Markup:
    """Lines over a shared axis, which reaches at least to `x_reach` so that charts side by side compare.

    With `square_root_x` x is placed at its root and labelled as it is.
    """

    def warp(x: float) -> float:
        # A sampled KL can fall slightly below zero; on the root scale it sits at zero.
        return math.sqrt(max(x, 0.0)) if square_root_x else x

    drawn = [(line, [(i, x, y) for i, (x, y) in enumerate(line.points) if _finite(x, y)]) for line in lines]
    everything = [(x, y) for _, points in drawn for _, x, y in points]
    if not everything:
        return _nothing()
    height, left, right, top, bottom = 244.0, 52.0, WIDTH - 14, 34.0, 196.0
    bars = [end for line in lines for bar in line.intervals if bar and _finite(*bar) for end in bar]
    xs, ys = [x for x, _ in everything], [*(y for _, y in everything), *bars]
    y_low, y_high = _padded(min(ys), max(ys))
    x_low, x_high = (0.0, max(*xs, x_reach, 1e-9)) if square_root_x else (min(xs), max(*xs, x_reach))
    x_ticks, x_text = _root_ticks(x_high) if square_root_x else _ticks(x_low, x_high, 5)
    if x_low == x_high:
        x_ticks, x_text = [x_low], lambda x: f"{x:,.6g}"  # one point stands in the middle
        x_low, x_high = x_low - 1, x_high + 1
    px = _scale(warp(x_low), warp(x_high), left, right)
    py = _scale(y_low, y_high, bottom, top)
    parts = []
    y_ticks, y_text = _ticks(y_low, y_high, 4)
    for tick in y_ticks:
        parts.append(_segment(left, py(tick), right, py(tick), "grid"))
        parts.append(_text(left - 8, py(tick) + 4, y_text(tick), "end", "tick"))
    shown = -math.inf
    for tick in x_ticks:
        at = px(warp(tick))
        if at - shown < 36:  # a root scale crowds its ticks at the right
            continue
        shown = at
        parts.append(_segment(at, bottom, at, bottom + 5, "axis"))
        parts.append(_text(at, bottom + 20, x_text(tick), "middle", "tick"))
    parts.append(_segment(left, bottom, right, bottom, "axis"))
    parts.append(_text(4, 16, y_label, "start", "label"))
    parts.append(_text(right, height - 7, x_label, "end", "label"))
    for line, points in drawn:
        if len(points) > 1:
            path = " ".join(f"{px(warp(x)):.1f},{py(y):.1f}" for _, x, y in points)
            faint = " faint" if line.faint else ""
            parts.append(f'<polyline class="mark line tone-{line.tone}{faint}" points="{path}"/>')
        for i, x, y in points:
            bar = line.intervals[i] if i < len(line.intervals) else None
            if bar and _finite(*bar):
                parts.append(_segment(px(warp(x)), py(bar[0]), px(warp(x)), py(bar[1]), f"spread tone-{line.tone}"))
            tip = line.tips[i] if i < len(line.tips) else ""
            kind = "mark dot" if line.dots or len(points) == 1 else "hit"
            radius = 3.4 if kind != "hit" else 6
            parts.append(_circle(px(warp(x)), py(y), radius, f"{kind} tone-{line.tone}", tip))
    return _svg(height, title, parts)


def interval_chart(
    rows: Sequence[Estimate],
    *,
    title: str,
    x_label: str,
    text: Callable[[float], str] = number,
    rules: Sequence[ReferenceLine] = (),
    bounds: tuple[float, float] = (-math.inf, math.inf),
    also: Sequence[Estimate] = (),
) -> Markup:
    """One row for each estimate: its name, a dot, its interval and its value in figures.

    The axis stays inside `bounds`, the values that are possible, and has room for the estimates `also`, so
    that charts side by side share it.
    """
    rows = [row for row in rows if _finite(row.value)]
    rules = [rule for rule in rules if _finite(rule.value)]
    if not rows:
        return _nothing()
    longest = max(len(row.label) for row in rows)
    left = min(40 + 6.6 * longest, 210) if longest > 8 else 88.0
    right, top, step = WIDTH - 62, 30.0 if rules else 12.0, 30.0
    bottom = top + step * len(rows)
    values = [v for row in (*rows, *also) for v in (row.value, *(row.interval or ())) if _finite(v)]
    low, high = _padded(min(values + [r.value for r in rules]), max(values + [r.value for r in rules]))
    low, high = max(low, bounds[0]), min(high, bounds[1])
    px = _scale(low, high, left, right)
    parts = []
    ticks, _ = _ticks(low, high, 4)
    shown = -math.inf
    for tick in ticks:
        parts.append(_segment(px(tick), top, px(tick), bottom, "grid"))
        if px(tick) - shown >= 40:
            shown = px(tick)
            parts.append(_text(px(tick), bottom + 18, text(tick), "middle", "tick"))
    parts.append(_segment(left, bottom, right, bottom, "axis"))
    for rule in rules:
        parts.append(_segment(px(rule.value), top - 6, px(rule.value), bottom, "rule"))
        # Kept inside the picture where the line stands at its edge.
        at = min(max(px(rule.value), 3.2 * len(rule.label)), WIDTH - 3.2 * len(rule.label))
        parts.append(_text(at, top - 12, rule.label, "middle", "tick"))
    for i, row in enumerate(rows):
        y = top + step * (i + 0.5)
        tip = f"{row.label}: {text(row.value)}"
        strength = "strong" if row.strong else "weak"
        parts.append(f"<g{_tip(tip + _between(row, text))}>")
        parts.append(_text(left - 10, y + 4.5, _cut(row.label, left), "end", f"label {strength}"))
        if row.interval and _finite(*row.interval):
            a, b = px(_clamp(row.interval[0], low, high)), px(_clamp(row.interval[1], low, high))
            parts.append(_segment(a, y, b, y, f"mark whisker tone-{row.tone}"))
            parts.extend(_segment(end, y - 4, end, y + 4, f"whisker tone-{row.tone}") for end in (a, b))
        shape = "dot" if row.strong else "ring"
        parts.append(_circle(px(_clamp(row.value, low, high)), y, 5, f"mark {shape} tone-{row.tone}"))
        parts.append(_text(WIDTH - 2, y + 4.5, text(row.value), "end", f"value {strength}"))
        parts.append("</g>")
    parts.append(_text(right, bottom + 38, x_label, "end", "label"))
    return _svg(bottom + 46, title, parts)


def reliability_chart(bins: Sequence[tuple[float, float, int]], *, title: str) -> Markup:
    """Predicted preference against what was preferred: `(confidence, accuracy, count)`, area for count."""
    bins = [b for b in bins if _finite(b[0], b[1]) and b[2] > 0]
    if not bins:
        return _nothing()
    height, left, right, top, bottom = 320.0, 52.0, WIDTH - 100, 34.0, 272.0
    # Confidence in the preferred answer starts at one half; a diagram of both answers starts at zero.
    low = 0.5 if min(min(c, a) for c, a, _ in bins) >= 0.5 else 0.0
    px, py = _scale(low, 1, left, right), _scale(low, 1, bottom, top)
    parts = []
    for tick in _ticks(low, 1, 4)[0]:
        parts.append(_segment(left, py(tick), right, py(tick), "grid"))
        parts.append(_segment(px(tick), top, px(tick), bottom, "grid"))
        parts.append(_text(left - 8, py(tick) + 4, percent(tick, 0), "end", "tick"))
        parts.append(_text(px(tick), bottom + 18, percent(tick, 0), "middle", "tick"))
    parts.append(_segment(px(low), py(low), px(1), py(1), "rule"))
    parts.append(_text(right + 6, top + 4, "calibrated", "start", "tick"))
    path = " ".join(f"{px(_clamp(c, low, 1)):.1f},{py(_clamp(a, low, 1)):.1f}" for c, a, _ in bins)
    if len(bins) > 1:
        parts.append(f'<polyline class="mark line tone-orange" points="{path}"/>')
    largest = max(count for _, _, count in bins)
    for confidence, accuracy, count in bins:
        tip = f"said {percent(confidence)}, was right {percent(accuracy)} ({count:,} comparisons)"
        radius = 3 + 8 * math.sqrt(count / largest)
        at = px(_clamp(confidence, low, 1)), py(_clamp(accuracy, low, 1))
        parts.append(_circle(*at, radius, "mark bubble tone-orange", tip))
    parts.append(_text(4, 16, "ordered as labelled", "start", "label"))
    parts.append(_text(right, height - 6, "how sure the reward model was", "end", "label"))
    return _svg(height, title, parts)


def _svg(height: float, title: str, parts: Sequence[str]) -> Markup:
    size = f'viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}"'
    head = f'<svg data-plot {size} role="img" aria-label="{_escaped(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _nothing() -> Markup:
    return Markup(f'<p class="none">{NOT_MEASURED}</p>')


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _circle(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{_tip(tip)}/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escaped(text)}</text>'


def _tip(tip: str) -> str:
    return f' data-tip="{_escaped(tip)}"' if tip else ""


def _escaped(text: str) -> Markup:
    return escape(printable(text))


def _between(row: Estimate, text: Callable[[float], str]) -> str:
    if not row.interval:
        return ""
    return f", {100 * row.confidence:.4g}% interval {text(row.interval[0])} to {text(row.interval[1])}"


def _cut(label: str, room: float) -> str:
    """A label shortened to about the room there is; SVG text does not wrap."""
    fits = max(int((room - 14) / 6.9), 4)
    return label if len(label) <= fits else label[: fits - 1] + "…"


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range with air around it, also where all values are the same."""
    air = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - air, high + air


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, about: int) -> tuple[list[float], Callable[[float], str]]:
    """Round values inside the range, and how to print them with the digits that their step needs."""
    raw = (high - low) / about or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if not math.isclose(step * 10**digits, round(step * 10**digits)):
        digits += 1  # a step of 0.25 needs one more digit than its power says

    def text(value: float) -> str:
        if step >= 1000:
            return number(value / 1000, 0 if step % 1000 == 0 else 1) + ("k" if value else "")
        return number(value, digits)

    return [i * step for i in range(first, last + 1)], text


def _root_ticks(high: float) -> tuple[list[float], Callable[[float], str]]:
    """Ticks from zero for a root scale, closer together near zero: 0, 1, 2, 5, 10, ..."""
    power = math.floor(math.log10(high))
    steps = [m * 10.0**p for p in (power - 2, power - 1, power) for m in (1, 2, 5)]
    return [0.0] + [step for step in steps if step <= high], lambda value: f"{value:,.6g}"
