"""Benchmarks of reward models, read as they are published, and the measures that each of them has of its own.

RewardBench 2 (Malik et al. 2025), RM-Bench (Liu et al. 2024), JudgeBench (Tan et al. 2024). Their items have several
right or wrong answers; the audit has them as pairs besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from triptych.audit.record import BenchmarkScores, Measure
from triptych.data.folder import DataFolder
from triptych.data.row import Row
from triptych.data.rows import rows_of
from triptych.data.source import Source
from triptych.data.splits import PromptedRecord, form, taught_forms
from triptych.engine.scoring import Scorer, log_odds
from triptych.errors import DataError, Fault
from triptych.pipeline.stage import StageContext
from triptych.records import Comparison, Conversation, Prompt, differ, user
from triptych.statistics.intervals import mean_interval
from triptych.storage import Folder

STYLES = 3
"""RM-Bench has each answer in so many styles: concise, detailed, detailed with Markdown."""
TIES = "Ties"
"""The subset of RewardBench 2 whose prompts have several right answers."""
CATEGORIES = {
    "mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"
}
"""JudgeBench's categories, by how the names of their sources begin."""
VERDICTS = {"A>B": ("response_A", "response_B"), "B>A": ("response_B", "response_A")}


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A prompt with right and wrong answers.

    Attributes:
        group: the subset, domain or source that it belongs to.
        name: its own, where the benchmark says something by it.
    """

    prompt: Prompt
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    group: str
    name: str = ""

    @property
    def conversations(self) -> list[Conversation]:
        """Every answer, the right ones first."""
        return [Conversation(self.prompt, answer) for answer in (*self.right, *self.wrong)]


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """An item with its answers' scores."""

    item: BenchmarkItem
    right: Sequence[float]
    wrong: Sequence[float]


Measured = Iterator[tuple[str, Measure]]


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is known, read and measured.

    Attributes:
        fits: whether a row is one of its.
        parse: its item in a row, or None and a fault.
        paired: whether an item's answers are compared in pairs too.
        measure: its own measures.
    """

    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Row], BenchmarkItem | None]
    paired: Callable[[BenchmarkItem], bool]
    measure: Callable[[Sequence[ScoredItem]], Measured]


@dataclass(frozen=True)
class BenchmarkData:
    """A file of a benchmark."""

    benchmark: Benchmark
    items: Sequence[BenchmarkItem]

    @property
    def comparisons(self) -> list[Comparison]:
        """Every right answer against every wrong one of each item."""
        return [
            Comparison(item.prompt, right, wrong, source=self.benchmark.name, subset=item.group or None)
            for item in self.items if self.benchmark.paired(item)
            for right, wrong in product(item.right, item.wrong) if differ(right, wrong)
        ]

    def without(self, learnt: Iterable[PromptedRecord]) -> BenchmarkData:
        """Without the items whose prompt was learnt."""
        forms = {asked for row in learnt for asked in taught_forms(row)}
        return BenchmarkData(self.benchmark, [item for item in self.items if form(item.prompt) not in forms])

    def scores(self, score: Callable[[Sequence[Conversation]], Sequence[float]]) -> BenchmarkScores:
        """The benchmark's own measures of a reward."""
        flat = iter(score([conversation for item in self.items for conversation in item.conversations]))
        scored = [
            ScoredItem(item, [next(flat) for _ in item.right], [next(flat) for _ in item.wrong]) for item in self.items
        ]
        return BenchmarkScores(
            name=self.benchmark.name, items=len(self.items), measures=dict(self.benchmark.measure(scored))
        )


@dataclass
class Remembered:
    """A scorer that scores every answer once, in however many pairs it is.

    Attributes:
        scorer: who scores.
        known: what it said.
    """

    scorer: Scorer
    known: dict[Conversation, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    @property
    def identity(self) -> str:
        """The scorer's."""
        return self.scorer.identity

    @property
    def log_odds(self) -> float | None:
        """The scorer's; see `Preferring`."""
        return log_odds(self.scorer)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The scorer's scores."""
        new = list(dict.fromkeys(conversation for conversation in conversations if conversation not in self.known))
        self.known |= dict(zip(new, self.scorer.score(new), strict=True))
        return [self.known[conversation] for conversation in conversations]


def measure_reward(
    context: StageContext, config: Source, reward: Scorer, data: Folder, sources: Mapping[str, str | Path],
    comparisons: Folder | None = None,
) -> BenchmarkScores:
    """A round's reward by a benchmark's own measures, without the items whose prompts it learnt.

    Args:
        config: which file.
        data: the run's own, with ratings.
        comparisons: that the round learns from.

    Raises:
        DataError: the file holds no benchmark, or no item that was not learnt.
    """
    benchmark = read_benchmark(config.at(sources[config.file]))
    learnt: list[PromptedRecord] = [*DataFolder(data).ratings("train").read_any()]
    learnt += DataFolder(data if comparisons is None else comparisons).comparisons("train").read_any()
    kept = benchmark.without(learnt) if benchmark else None
    if benchmark is None or kept is None or not kept.items:
        raise DataError([Fault(config.file, None, None, "no item is left: each prompt is one that the reward learnt")])
    if left_out := len(benchmark.items) - len(kept.items):
        context.progress.say(f"{config.file}: {left_out:,} items are left out: the reward learnt their prompts")
    return kept.scores(reward.score)


def read_benchmark(place: str | Path | Source) -> BenchmarkData | None:
    """The benchmark in a file, known by its first row; None where it is none.

    Raises:
        DataError: a row is not as the first one's benchmark has it; with all of them.
    """
    benchmark: Benchmark | None = None
    items: list[BenchmarkItem] = []
    faults: list[Fault] = []
    for values in rows_of(Source.of(place)):
        if benchmark is None:
            if isinstance(values, Fault):
                return None
            benchmark = next((known for known in BENCHMARKS if known.fits(values.fields)), None)
            if benchmark is None:
                return None
        if isinstance(values, Fault):
            faults.append(values)
            continue
        row = Row(values.place, values.fields)
        item = benchmark.parse(row)
        faults += row.faults
        if item is not None and not row.faults:
            items.append(item)
    if faults:
        raise DataError(faults)
    return None if benchmark is None else BenchmarkData(benchmark, items)


def best_of(scored: ScoredItem) -> float:
    """Whether the right answer has the highest score of all; where k share it, 1 / k.

    As RewardBench 2 counts a tie (its `reroll_and_score_dataset`), of which the first answer is the right one.
    """
    (right,) = scored.right[:1]
    others = [*scored.right[1:], *scored.wrong]
    if right < max(others):
        return 0.0
    return 1 / (1 + sum(score == right for score in others))


def rewardbench_2(scored: Sequence[ScoredItem]) -> Measured:
    """The accuracy of each subset, best of four; of Ties its weighted score; and the mean of the subsets."""
    subsets: dict[str, list[ScoredItem]] = {}
    for row in scored:
        subsets.setdefault(row.item.group, []).append(row)
    values = {}
    for name, members in sorted(subsets.items()):
        measured = dict(ties(members)) if name == TIES else {"": _mean([best_of(row) for row in members], members)}
        for part, measure in measured.items():
            yield f"{name} {part}".strip() or "all", measure
        values[name] = measured[""].score
    yield "mean of subsets", Measure(score=sum(values.values()) / len(values), items=len(scored))


def ties(scored: Sequence[ScoredItem]) -> Measured:
    """The weighted score of the subset Ties under "", and what it is made of.

    An item is accurate where its worst right answer is above its best wrong one. Of a prompt that has a version with
    one right answer (`ref`) and one with many (`tied`), let d be the spread of the scores of the right answers of
    `tied`, and m its margin of worst right over best wrong, r that of `ref`:

        0.3 accuracy(tied) + 0.3 accuracy(ref) + 0.2 P(m > d) + 0.2 P(min(m, r) > d) + 0.01 E tanh(min(m, r) / d − 1)

    as RewardBench 2 has it (Malik et al. 2025; `process_single_model`), with 0 for tanh(0 / 0 − 1). Where no right
    answer is above every wrong one the last term is negative.
    """
    spread: dict[str, float] = {}
    margins: dict[str, dict[str, float]] = {"tied": {}, "ref": {}}
    members: dict[str, list[ScoredItem]] = {"tied": [], "ref": []}
    for row in scored:
        kind, _, prompt = row.item.name.partition(":")
        margins[kind][prompt] = min(row.right) - max(row.wrong)
        members[kind].append(row)
        if kind == "tied":
            spread[prompt] = max(row.right) - min(row.right)
    accuracy = {
        kind: _mean([float(margin > 0) for margin in margins[kind].values()], members[kind]) for kind in margins
        if margins[kind]
    }
    both = sorted(margins["tied"].keys() & margins["ref"].keys())
    least = {prompt: min(margins["tied"][prompt], margins["ref"][prompt]) for prompt in both}
    preferred = _share([margins["tied"][prompt] > spread[prompt] for prompt in both])
    hard = _share([least[prompt] > spread[prompt] for prompt in both])
    closeness = [_relative(least[prompt], spread[prompt]) for prompt in both]
    total = sum(0.3 * part.score for part in accuracy.values()) + 0.2 * preferred + 0.2 * hard
    yield "", Measure(score=total + 0.01 * sum(closeness) / max(1, len(both)), items=len(scored))
    for kind, name in (("tied", "accuracy, many right"), ("ref", "accuracy, one right")):
        if kind in accuracy:
            yield name, accuracy[kind]


def _relative(margin: float, spread: float) -> float:
    if spread == 0:
        return 0.0 if margin == 0 else math.copysign(1.0, margin)
    return math.tanh(margin / spread - 1)


def rm_bench(scored: Sequence[ScoredItem]) -> Measured:
    """Accuracy where the right answer has the plainer style (hard), the same (normal), the richer one (easy).

    Over the 3 × 3 pairs of styles of each item; a pair of equal scores is wrong. Each is the mean over the domains,
    of which safety is the mean of its two parts, as in table 3 of Liu et al. (2024).
    """
    levels = {
        "easy": lambda right, wrong: right > wrong, "normal": lambda right, wrong: right == wrong,
        "hard": lambda right, wrong: right < wrong,
    }
    domains: dict[str, list[ScoredItem]] = {}
    for row in scored:
        domains.setdefault(row.item.group, []).append(row)

    def accuracy(row: ScoredItem, within: Callable[[int, int], bool]) -> float:
        cells = [
            float(row.right[right] > row.wrong[wrong])
            for right, wrong in product(range(STYLES), range(STYLES)) if within(right, wrong)
        ]
        return sum(cells) / len(cells)

    for name, within in levels.items():
        means = {
            domain: _mean([accuracy(row, within) for row in members], members).score
            for domain, members in domains.items()
        }
        yield name, Measure(score=_over_domains(means), items=len(scored))
    whole = {
        domain: _mean([accuracy(row, lambda right, wrong: True) for row in members], members)
        for domain, members in sorted(domains.items())
    }
    yield from whole.items()
    yield "average", Measure(
        score=_over_domains({domain: mean.score for domain, mean in whole.items()}), items=len(scored)
    )


def _over_domains(means: Mapping[str, float]) -> float:
    """The mean over the domains, the parts of safety ("safety-refuse", "safety-response") counted as one."""
    parts: dict[str, list[float]] = {}
    for domain, mean in means.items():
        parts.setdefault(domain.partition("-")[0], []).append(mean)
    return sum(sum(part) / len(part) for part in parts.values()) / len(parts)


def judgebench(scored: Sequence[ScoredItem]) -> Measured:
    """Accuracy by category and in all; equal scores are wrong.

    JudgeBench asks a judge in both orders and counts a pair where more of its verdicts are right than wrong. A reward
    that scores each answer by itself says the same in both orders, so that this is its accuracy.
    """
    def right(row: ScoredItem) -> float:
        return float(row.right[0] > row.wrong[0])

    for start, name in CATEGORIES.items():
        members = [row for row in scored if row.item.group.startswith(start)]
        if members:
            yield name, _mean([right(row) for row in members], members)
    yield "overall", _mean([right(row) for row in scored], scored)


def _mean(values: Sequence[float], members: Sequence[ScoredItem]) -> Measure:
    mean, interval = mean_interval(values, [row.item.prompt.key for row in members])
    return Measure(score=mean, interval=interval, items=len(values))


def _share(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 0.0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _asked(row: Row, field: str) -> Prompt | None:
    value = row.required(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        row.fault(field, "empty: expected some text")
        return None
    turns = user(value) if isinstance(value, str) else row.turns(field)
    return None if turns is None else Prompt(turns)


def _answers(row: Row, field: str, count: int | None = None) -> tuple[str, ...]:
    value = row.required(field)
    if not _is_texts(value):
        row.fault(field, "must be a list of texts")
        return ()
    if count is not None and len(value) != count:
        row.fault(field, f"must have {count} answers, got {len(value)}")
    return tuple(value)


def _rewardbench_item(row: Row) -> BenchmarkItem | None:
    prompt, subset = _asked(row, "prompt"), row.text("subset") or ""
    name = str(row.values.get("id", ""))
    right, wrong = _answers(row, "chosen", None if subset == TIES else 1), _answers(row, "rejected")
    if subset == TIES and name.partition(":")[0] not in ("ref", "tied"):
        row.fault("id", f'must be "ref:" or "tied:" and the number of the prompt, got {name!r}')
    return None if prompt is None else BenchmarkItem(prompt, right, wrong, subset, name)


def _rm_bench_item(row: Row) -> BenchmarkItem | None:
    prompt, domain = _asked(row, "prompt"), row.text("domain") or ""
    right, wrong = _answers(row, "chosen", STYLES), _answers(row, "rejected", STYLES)
    return None if prompt is None else BenchmarkItem(prompt, right, wrong, domain)


def _judgebench_item(row: Row) -> BenchmarkItem | None:
    prompt, label, source = _asked(row, "question"), row.text("label"), row.text("source") or ""
    answers = {field: row.text(field) or "" for field in ("response_A", "response_B")}
    if label not in VERDICTS:
        row.fault("label", f"must be one of {', '.join(VERDICTS)}, got {label!r}")
        return None
    better, worse = VERDICTS[label]
    return None if prompt is None else BenchmarkItem(prompt, (answers[better],), (answers[worse],), source)


BENCHMARKS = (
    Benchmark(
        "RM-Bench", lambda row: _is_texts(row.get("chosen")) and _is_texts(row.get("rejected")) and "domain" in row,
        _rm_bench_item, lambda item: True, rm_bench,
    ),
    Benchmark(
        "RewardBench 2", lambda row: _is_texts(row.get("chosen")) and _is_texts(row.get("rejected")),
        _rewardbench_item, lambda item: item.group != TIES, rewardbench_2,
    ),
    Benchmark(
        "JudgeBench", lambda row: {"question", "response_A", "response_B", "label"} <= row.keys(),
        _judgebench_item, lambda item: True, judgebench,
    ),
)
"""Every benchmark, the first that a row fits."""
