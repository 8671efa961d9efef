"""The report page: what it says, that it is safe and self-contained, and that a browser really draws it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from triptych.audit.record import (
    AuditVerdict,
    Calibration,
    Consistency,
    Drift,
    Lead,
    LengthBias,
    Person,
    Perturbation,
    TrivialRule,
)
from triptych.display import duration
from triptych.report.answers import word_changes
from triptych.report.charts import Estimate, Line, interval_chart, line_chart, number
from triptych.report.page import Headline, headline, render, render_audit, thin
from triptych.report.stages import CycleStep, cycle_steps
from triptych.report.summary import (
    AuditSummary,
    Base,
    Baseline,
    Bin,
    DecodedScore,
    DiagnosisSummary,
    Domain,
    FinalVerdict,
    Interval,
    LossPoint,
    ModelScore,
    PairedScore,
    Point,
    RewardOrder,
    RoundSummary,
    Sample,
    SampleAnswer,
    StageRow,
    Summary,
    Tally,
    TaskScore,
    TaskSummary,
    decoded_as,
)

ATTACK = '<script>window.broken = 1</script><img src="https://evil.example/x.png" onerror="alert(1)">'


def around(value: float, half: float) -> Interval:
    return (value - half, value + half)


def decodings(score: float) -> dict[str, DecodedScore]:
    ways = {"temperature 0.5": (score, 1), "greedy": (score - 0.02, 1), "temperature 1": (score - 0.1, 1),
            "best of 8": (score + 0.2, 8)}
    return {
        way: DecodedScore(score=value, interval=around(value, 0.03), reward=None, mean_length=40.0, drawn=drawn)
        for way, (value, drawn) in ways.items()
    }


def verdict(gain: float, interval: Interval, better: bool, missed: list[str] | None = None) -> FinalVerdict:
    """A champion that is so much above Instruct at temperature 0.5, and more above the others."""
    half = (interval[1] - interval[0]) / 2
    baselines = [
        Baseline(name=decoded_as(way), free=found.drawn == 1, drawn=found.drawn, score=found.score,
                 interval=found.interval, gain=gain + 0.56 - found.score,
                 gain_interval=around(gain + 0.56 - found.score, half))
        for way, found in decodings(0.56).items()
    ]
    return FinalVerdict(
        better=better, rival="Instruct at temperature 0.5", gain=gain, gain_interval=interval,
        gain_at_temperature_1=0.3, gain_at_temperature_1_interval=(0.2, 0.4), baselines=baselines, missed=missed or [],
    )


def model(name: str, round_: int | None, score: float, champion: bool = False) -> ModelScore:
    tasks = {
        task: TaskScore(score=score + shift, interval=around(score + shift, 0.06), prompts=100)
        for task, shift in (("story", 0.06), ("question", -0.04), ("translation", -0.02))
    }
    return ModelScore(
        name=name,
        round=round_,
        decoding="greedy" if round_ is None else "temperature 0.5",
        score=score,
        interval=around(score, 0.031),
        prompts=300,
        decodings=decodings(score) if round_ == 0 else one_way(score) if round_ is None else {},
        reward=None if round_ is None else 4 * score - 3.1,
        kl=None if round_ is None else 9.0 * round_,
        mean_length=41.3,
        champion=champion,
        by_task=tasks,
    )


def one_way(score: float) -> dict[str, DecodedScore]:
    """Of a Base, which is asked greedily here."""
    return {"greedy": DecodedScore(score=score, interval=around(score, 0.031), drawn=1, reward=None, mean_length=41.3)}


def audit(round_: int, accuracy: float, passed: bool) -> AuditSummary:
    bins = [(0.53, 0.51, 70), (0.61, 0.63, 92), (0.7, 0.66, 101), (0.8, 0.77, 120), (0.93, 0.84, 217)]
    return AuditSummary(
        round=round_,
        comparisons=600,
        trained_on=2400,
        accuracy=accuracy,
        interval=around(accuracy, 0.033),
        ceiling=0.9,
        baselines={"random": 0.5, "longer wins": 0.571, "shorter wins": 0.429},
        by_group={
            group: TaskScore(score=accuracy + shift, interval=around(accuracy + shift, 0.06), prompts=200)
            for group, shift in (("story", -0.05), ("question", 0.04), ("translation", 0.01))
        },
        calibration_error=0.041,
        bins=[Bin(confidence=c, accuracy=a, count=n) for c, a, n in bins],
        length_correlation=-0.12,
        when_longer=0.871,
        when_shorter=None if round_ > 1 else 0.812,
        verdict="passed" if passed else "failed",
        best_trivial=TrivialRule(name="longer wins", accuracy=0.571),
        reasons=[] if passed else ["Accuracy 78.0% is under 90% of the noise ceiling (81.0%)."],
        **(measured_in_full() if round_ > 1 else {}),
    )


def measured_in_full() -> dict[str, Any]:
    """What an audit holds besides, as a record on disk may leave it out."""
    share = around(0.5, 0.1)
    return {
        "required": False,
        "warnings": ["length: it leans towards longer answers"],
        "leads": {rule: Lead(lead=0.2, interval=around(0.2, 0.03)) for rule in ("random", "longer wins")},
        "person": Person(
            comparisons=300, model=0.7, model_interval=share, person=0.85, lead=-0.15, lead_interval=around(-0.15, 0.02)
        ),
        "calibration": Calibration(temperature=1.4, error=0.06, mended_error=0.03, chance_error=0.02),
        "length": LengthBias(prefers_longer=0.71, labels_longer=0.64, excess=0.07, excess_interval=around(0.07, 0.03),
                         gap=None, gap_interval=None, coefficient=-0.31, interval=around(-0.31, 0.2),
                         reward_coefficient=1.6),
        "perturbations": [
            Perturbation(name="said twice", rule="must fall", answers=100, wrong=0.4, interval=share, change=-0.2)
        ],
        "consistency": [
            Consistency(way="padded on the left", difference=0.5, tolerance=1e-3),
            Consistency(way="padded on the right", difference=None, tolerance=1e-3),
            Consistency(way="in bfloat16", difference=0.01, tolerance=None),
        ],
        "drift": [
            Drift(comparisons="new", count=770, agreement=0.79, interval=share, accuracy=0.68, predecessor=0.66,
                  lead=0.02, lead_interval=around(0.02, 0.04), correlation=0.83)
        ],
    }


def a_round(round_: int, decision: str, reason: str, gain: float) -> RoundSummary:
    noise = random.Random(round_)
    curve = [
        Point(
            step=step,
            kl=max(0.0, 0.32 * step + noise.gauss(0, 0.15)),
            reward=-1.2 + 2.3 * (1 - math.exp(-step / 14)) + noise.gauss(0, 0.12),
            judge=0.56 + gain * (1 - math.exp(-step / 9)) - 0.0001 * step**2 if step % 5 == 0 else None,
            length=40 + 0.2 * step,
            entropy=None if round_ == 2 else 1.4 - 0.01 * step,
        )
        for step in range(0, 41)
    ]
    return RoundSummary(
        round=round_,
        method="grpo",
        reward_before=-1.21,
        reward_after=0.94,
        judge_before=0.56,
        judge_after=0.56 + gain,
        win_rate=0.5 + gain,
        interval=around(0.5 + gain, 0.05),
        prompts=200,
        decoding_before="temperature 0.5",
        decoding_after="greedy",
        kl=12.4,
        length_before=41.0,
        length_after=48.2,
        decision=decision,
        reason=reason,
        curve=curve,
    )


def stages() -> list[StageRow]:
    edges: list[tuple[str, str, float, list[str]]] = [
        ("data", "storybook", 1.2, []),
        ("base", "base", 71.0, ["data"]),
        ("instruct", "instruct", 24.1, ["base", "data"]),
    ]
    before = "instruct"
    for r in (1, 2):
        edges += [
            (f"round-{r}/feedback", "feedback", 9.3, [before, "data"]),
            (f"round-{r}/reward", "reward", 31.7, [before, f"round-{r}/feedback"]),
            (f"round-{r}/audit", "audit", 2.2, [f"round-{r}/reward", f"round-{r}/feedback"]),
            (f"round-{r}/improve", "improve", 48.0, [before, f"round-{r}/reward"]),
            (f"round-{r}/answers", "evaluate", 4.0, [f"round-{r}/improve", before]),
            (f"round-{r}/gate", "evaluate", 6.0, [f"round-{r}/answers"]),
        ]
        before = f"round-{r}/improve"
    edges.append(("test/instruct", "evaluate", 14.0, ["data", "instruct"]))

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    return [
        StageRow(
            name=name,
            kind=kind,
            seconds=seconds,
            fingerprint=digest(name),
            digest=digest(name + "!"),
            parents=parents,
        )
        for name, kind, seconds, parents in edges
    ]


def losses(steps: int, start: float, end: float, seed: int) -> list[LossPoint]:
    noise = random.Random(seed)
    return [
        LossPoint(
            step=s, loss=end + (start - end) * math.exp(-5 * s / steps) + noise.gauss(0, 0.04), seen=s * 4096
        )
        for s in range(1, steps + 1)
    ]


@pytest.fixture
def summary() -> Summary:
    rejected = "The interval of the win rate reaches below one half (47% to 57%)."
    return Summary(
        name="quickstart",
        version="0.1.0",
        judge="the storybook's exact judge, in [0, 1]",
        verdict=verdict(
            0.25,
            (0.21, 0.29),
            True,
            ["Reward model's accuracy is 86.2% of what label noise allows; the target is 90%."],
        ),
        base=Base(
            source="trained from scratch",
            parameters=912_384,
            vocabulary=2048,
            bits_per_byte=0.713,
            tokens_seen=1_843_200,
        ),
        models=[
            model("base, few-shot", None, 0.31),
            model("instruct", 0, 0.56),
            model("round 1", 1, 0.81, champion=True),
            model("round 2", 2, 0.82),
        ],
        audits=[audit(1, 0.853, True), audit(2, 0.78, False)],
        rounds=[
            a_round(
                1, "promoted", "The judge prefers it on 75% of 200 prompts (70% to 80%), in budget.", 0.25
            ),
            a_round(2, "rejected", rejected, 0.02),
        ],
        stages=stages(),
        losses={
            "base": losses(900, 7.6, 2.1, 1),
            "instruct": losses(120, 2.4, 1.1, 2),
            "reward-1": losses(20, 0.69, 0.38, 3),
            "reward-2": [LossPoint(step=1, loss=0.41, seen=64)],
        },
        seconds=257.4,
        peak_memory_gib=1.83,
        release="runs/quickstart/release",
    )


@pytest.fixture
def samples() -> list[Sample]:
    long = "The fox went to the old mill and looked for the red ball. " * 40
    story = "Write a short story with a fox, a ball and a mill."
    texts = {
        "base, few-shot": ATTACK,
        "instruct": "Once there was a fox. The fox had a ball.\nIt went to the mill.",
        "round 1": "A small fox lost a red ball near the mill. She looked for it, and was glad to find it.",
        "round 2": long,
    }
    answers = [
        SampleAnswer(model=name, text=text, judge=0.2 * i if i else None, reward=-1.5 + i)
        for i, (name, text) in enumerate(texts.items())
    ]
    empty = Sample(
        prompt="Say nothing.", task=None, answers=[SampleAnswer(model="instruct", text="", judge=0, reward=None)]
    )
    return [Sample(prompt=story, task="story", answers=answers), empty]


@pytest.fixture
def bare() -> Summary:
    """A run that was stopped early: nothing but a Base."""
    return Summary(
        name="stopped",
        version="0.1.0",
        judge="none",
        verdict=None,
        base=Base(source="a folder", parameters=1, vocabulary=2, bits_per_byte=None, tokens_seen=None),
        models=[],
        audits=[],
        rounds=[],
        stages=[],
        losses={},
        seconds=3.0,
        peak_memory_gib=0.2,
        release=None,
    )


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag was closed in order."""

    void = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_headline_says_what_the_numbers_say(summary: Summary) -> None:
    assert headline(summary) == Headline(
        "Promoted: judge score +0.25 over Instruct at temperature 0.5 (95% interval 0.21 to 0.29).", "good"
    )


@pytest.mark.parametrize(
    ("gain", "interval", "text", "tone"),
    [
        (0.02, (-0.01, 0.05), "no better than {}: judge score +0.02 (95% interval −0.01 to 0.05).", "open"),
        (-0.3, (-0.4, -0.2), "worse than {}: judge score −0.30 (95% interval −0.40 to −0.20).", "bad"),
    ],
)
def test_headline_is_honest(summary: Summary, gain: float, interval: Interval, text: str, tone: str) -> None:
    told = headline(summary.model_copy(update={"verdict": verdict(gain, interval, better=False)}))
    assert told == Headline("Promoted at the gate, but " + text.format("Instruct at temperature 0.5"), tone)


def test_headline_names_a_baseline_that_is_not_beaten(summary: Summary) -> None:
    found = verdict(0.05, (0.01, 0.09), better=False)
    unsure = [each.model_copy(update={"gain": 0.07, "gain_interval": (-0.02, 0.16)})
              if each.name == "greedy Instruct" else each for each in found.baselines]
    told = headline(summary.model_copy(update={"verdict": found.model_copy(update={"baselines": unsure})}))
    assert told.text == (
        "Promoted at the gate, but no better than greedy Instruct: judge score +0.07 (95% interval −0.02 to 0.16)."
    )


def kept(summary: Summary, **last: object) -> Summary:
    """The same run where no candidate was promoted, with this of the last round's gate."""
    models = [each.model_copy(update={"champion": each.round == 0}) for each in summary.models]
    rounds = [*summary.rounds[:-1], summary.rounds[-1].model_copy(update=last)]
    return summary.model_copy(update={"models": models, "rounds": rounds})


def test_headline_of_a_kept_instruct_is_about_the_last_candidate(summary: Summary) -> None:
    rejected = kept(summary)
    said = "round 2's candidate is preferred to the champion on 52.0% of 200 prompts"
    assert headline(rejected) == Headline(f"Rejected: {said} (95% interval 47.0% to 57.0%).", "open")
    unsure = kept(summary, decision="too few prompts to tell", level=0.0125)
    assert headline(unsure) == Headline(f"Not promoted: {said} (97.5% interval 47.0% to 57.0%).", "open")


def test_headline_prints_a_small_gain_with_its_digits(summary: Summary) -> None:
    told = verdict(0.004, (0.001, 0.007), better=True)
    assert "score +0.004 over" in headline(summary.model_copy(update={"verdict": told})).text


def rows_of(html: str, title: str) -> list[tuple[str, str, str]]:
    """Of the first picture with this in its text alternative: each row's tip, the shape of its dot and its tone."""
    svg = next(svg for svg in re.findall(r"<svg.*?</svg>", html) if title in svg[: svg.index(">")])
    return re.findall(r'<g data-tip="([^"]*)">.*?class="mark (dot|ring) tone-(\w+)"', svg)


def test_the_first_picture_is_of_what_costs_nothing_and_the_champion(summary: Summary) -> None:
    html = render(summary, [])
    first = rows_of(html, "mean judge score (0 to 1) with 95% intervals. greedy few-shot Base 0.31; ")
    assert first == [
        ("greedy few-shot Base: 0.31, 95% interval 0.28 to 0.34", "dot", "grey"),
        ("Instruct at temperature 1: 0.46, 95% interval 0.43 to 0.49", "dot", "blue"),
        ("greedy Instruct: 0.54, 95% interval 0.51 to 0.57", "dot", "blue"),
        ("Instruct at temperature 0.5: 0.56, 95% interval 0.53 to 0.59", "dot", "blue"),
        ("Instruct, best of 8: 0.76, 95% interval 0.73 to 0.79", "ring", "grey"),
        ("Champion, temperature 0.5: 0.81, 95% interval 0.78 to 0.84", "dot", "green"),
    ]
    assert html.index("<h1") < html.index("<svg") < html.index("<h2")
    assert "it is deployed as temperature 0.5" in html
    # Where Instruct was kept, the candidates stand beside it.
    tones = [(tip.split(":")[0], tone) for tip, _, tone in rows_of(render(kept(summary), []), "Instruct at")]
    text = Page(render(kept(summary), [])).text
    assert "Gain over" not in text
    assert "Round 2: rejected The interval of the win rate reaches below one half (47% to 57%)." in text
    assert tones[3:] == [("Instruct at temperature 0.5", "green"), ("Instruct, best of 8", "grey"),
                         ("round 1, temperature 0.5", "orange"), ("round 2, temperature 0.5", "orange")]


def test_the_models_stand_in_order_with_a_warning_where_reward_and_judge_disagree(summary: Summary) -> None:
    assert "The models in order" not in render(summary, [])

    def shown(by_judge: list[str], by_reward: list[str]) -> tuple[list[str], bool]:
        order = RewardOrder(by_judge=by_judge, by_reward=by_reward, agree=by_judge == by_reward)
        html = render(summary.model_copy(update={"reward_order": order}), [])
        table = html[html.index('aria-label="Models in order"'):]
        rows = re.findall(r'<tr><th scope="row">.*?</tr>', table[: table.index("</table>")])
        return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows], "does not order the models" in html

    judged = ["instruct", "round 1", "round 2"]
    assert shown(judged, judged) == ([
        "1 round 2 0.82 0.79 to 0.85 round 2 0.18", "2 round 1 0.81 0.78 to 0.84 round 1 0.14",
        "3 instruct 0.56 0.53 to 0.59 instruct −0.86",
    ], False)
    assert shown(judged, ["round 1", "instruct", "round 2"]) == ([
        "1 round 2 0.82 0.79 to 0.85 round 2 0.18", "2 round 1 0.81 0.78 to 0.84 instruct −0.86 another",
        "3 instruct 0.56 0.53 to 0.59 round 1 0.14 another",
    ], True)


def test_audits_are_folded_and_a_failed_one_is_open_and_said(summary: Summary) -> None:
    html = render(summary, [])
    opened = re.findall(r'<details class="round"( open)?><summary><h3>(Round \d): ([\d.]+%) of 600 held-out', html)
    assert opened == [("", "Round 1", "85.3%"), (" open", "Round 2", "78.0%")]
    assert re.findall(r"<b>([^<]*the audit failed\.)</b> (.*?)</p>", html) == [
        ("Round 2: the audit failed.", "Accuracy 78.0% is under 90% of the noise ceiling (81.0%).")
    ]
    fine = summary.model_copy(update={"audits": summary.audits[:1]})
    assert "the audit failed" not in render(fine, [])
    assert '<details class="round" open>' in render_audit(audit(1, 0.853, True), "mine", "0.1")


@pytest.mark.parametrize(("before", "after", "old", "new"), [
    ("The pig saw a cup.", "The pig took a cup.", [("The pig ", False), ("saw", True), (" ", False), ("a cup.", False)],
     [("The pig ", False), ("took", True), (" ", False), ("a cup.", False)]),
    ("one  two", "one\ntwo", [("one  two", False)], [("one\ntwo", False)]),  # spaces make no difference
    ("", "new", [], [("new", True)]),
    ("a", "a, b!", [("a", False)], [("a", False), (", b!", True)]),
    ("end ", "end", [("end ", False)], [("end", False)]),
])
def test_what_changed_is_marked_word_by_word(
    before: str, after: str, old: list[tuple[str, bool]], new: list[tuple[str, bool]]
) -> None:
    assert word_changes(before, after) == (old, new)


def test_the_pieces_of_a_text_are_the_text(samples: list[Sample]) -> None:
    texts = [answer.text for sample in samples for answer in sample.answers] + ["\n\n ü—x  ", "…"]
    for before in texts:
        for after in texts:
            pieces = word_changes(before, after)
            assert ["".join(piece for piece, _ in side) for side in pieces] == [before, after]


def test_answers_stand_side_by_side_with_a_tally(summary: Summary, samples: list[Sample]) -> None:
    judged = [(0.2, 0.4), (0.4, 0.2), (0.5, 0.5), (0.1, 0.9), (None, 0.3)]
    rows = [
        Sample(prompt=f"prompt {place}", task=None, answers=[
            SampleAnswer(model="base, few-shot", text="x", judge=0.0, reward=None),
            SampleAnswer(model="instruct", text="a <red> ball", judge=before, reward=None),
            SampleAnswer(model="round 1", text="a blue ball", judge=after, reward=1.25),
        ])
        for place, (before, after) in enumerate(judged)
    ]
    html = render(summary, rows)
    text = Page(html).text
    assert "Before is instruct (temperature 0.5), after is round 1 (temperature 0.5)." in text
    counts = "the later answer is better (+) on 2 , worse (−) on 1 and as good (=) on 1 of the 4 prompts shown here"
    assert counts + "." in text
    assert html.count("a <del>&lt;red&gt;</del> ball") == html.count("a <ins>blue</ins> ball") == 5
    labels = re.findall(r'aria-label="Prompt (\d: [a-z ]+)"', html)
    assert labels == ["1: better", "2: worse", "3: as good", "4: better"]
    assert html.count("<details><summary>What base, few-shot wrote</summary>") == 4
    assert html.count("<details open><summary>What base, few-shot wrote</summary>") == 1  # of which nothing can be said
    models = [each.model_copy(update={"beside_instruct": Tally(better=1200, worse=80, as_good=20)})
              if each.champion else each for each in summary.models]
    text = Page(render(summary.model_copy(update={"models": models}), rows)).text
    assert counts + "; on all 1,300 test prompts it is better (+) on 1,200 , worse (−) on 80 and" in text
    assert "which was not promoted" not in text
    assert "after is round 2 (temperature 0.5), which was not promoted" in Page(render(kept(summary), rows)).text


def changed(before: float, after: float, *, share: bool = True) -> PairedScore:
    gain = after - before
    return PairedScore(before=before, after=after, gain=gain, interval=around(gain, 0.05), prompts=1300, share=share)


def test_every_part_and_rule_is_a_rate_before_and_after(summary: Summary) -> None:
    assert summary.verdict
    assert 'id="parts"' not in render(summary, [])
    found = summary.verdict.model_copy(update={
        "parts": {"reward/valid JSON": changed(0.41, 0.97), "judge/<short>": changed(0.8, 0.6),
                  "reward/model": changed(-0.2, 0.3, share=False)},
        "instructions": {"punctuation:no_comma": changed(0.5, 0.5)},
    })
    measured = summary.model_copy(update={"verdict": found})
    html = render(measured, [])
    section = html[html.index('<section id="parts">'):html.index('<section id="models">')]
    rows = re.findall(r"<tr><th scope=.row.>.*?</tr>", section, re.DOTALL)
    assert [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows] == [
        "valid JSON of the reward 41.0% → 97.0% +56.0 +51.0 to +61.0 points 1,300",
        "&lt;short&gt; of the judge 80.0% → 60.0% −20.0 −25.0 to −15.0 points 1,300",
        "model of the reward −0.200 → 0.300 +0.500 0.450 to 0.550 1,300",
        "punctuation:no_comma 50.0% → 50.0% ±0.0 −5.0 to +5.0 points 1,300",
    ]
    assert re.findall(r'bar ?(\w*) ?" style="([^"]+)"', section) == [
        ("", "margin-left:41.0%;width:56.0%"), ("fell", "margin-left:60.0%;width:20.0%"),
        ("", "margin-left:50.0%;width:0.0%"),
    ]
    assert 'id="parts"' not in render(kept(measured), [])  # it would be Instruct beside itself
    task = TaskSummary(name="mine", scored_by="rules", models=summary.models, parts={"exact": changed(0.1, 0.2)})
    page = render(summary.model_copy(update={"tasks": [task]}), [])
    assert "<caption>mine: each rule</caption>" in page
    assert "<td>10.0% → <b>20.0%</b></td>" in page


def test_page_is_well_formed_and_complete(summary: Summary, samples: list[Sample]) -> None:
    page = Page(render(summary, samples))
    for words in [
        headline(summary).text,
        summary.verdict.missed[0] if summary.verdict else "",
        "base, few-shot",
        "not measured",
        "85.3%",
        "The interval of the win rate reaches below one half",
        "Accuracy 78.0% is under",
        "it was used all the same",
        "leans towards longer answers",
        "Agrees with one person's vote",
        "+20.0 +17.0 to +23.0",
        "padded on the right fails too large",
        "79.0%",
        "4 min 17 s",
        "runs/quickstart/release",
        "(an empty answer)",
        summary.stages[3].fingerprint[:12],
    ]:
        assert words in page.text
    headings = [tag for tag, _ in page.tags if tag in {"h1", "h2"}]
    assert headings == ["h1"] + 6 * ["h2"]
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    plots = [attrs for tag, attrs in page.tags if tag == "svg"]
    # the verdict, 4 of scores, the gate, 2 for each round, 3 for each audit, 4 losses
    assert len(plots) == 1 + 4 + 1 + 4 + 6 + 4
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in plots)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_judges_own_audit_is_shown(summary: Summary, samples: list[Sample]) -> None:
    assert "The gate's judge" not in Page(render(summary, samples)).text
    judged = summary.model_copy(update={"judge_audit": audit(0, 0.613, True)})
    page = Page(render(judged, samples))
    assert "The gate's judge" in page.text
    assert "61.3%" in page.text


def test_a_base_that_was_trained_further_is_shown_by_its_files(
    summary: Summary, samples: list[Sample]
) -> None:
    assert "trained further" not in render(summary, samples)
    domains = (Domain(name="<cats>.txt", tokens=28_875, before=1.6612, after=1.5729),)
    page = render(summary.model_copy(update={"base": summary.base.model_copy(update={"domains": domains})}), samples)
    assert "<th scope=\"row\">&lt;cats&gt;.txt</th><td>28,875</td><td>1.661</td><td>1.573</td>" in page


def test_what_a_round_failed_by_is_told_with_its_measurements(summary: Summary, samples: list[Sample]) -> None:
    assert "What to blame" not in render(summary, samples)
    change = PairedScore(before=0.5, after=0.6, gain=0.1, interval=(0.02, 0.18), prompts=300)
    share = TaskScore(score=0.525, interval=(0.45, 0.6), prompts=48)
    diagnosis = DiagnosisSummary(
        blamed="the reward", because="of two <answers> it prefers", answers=8, passed=None, passed_taught=None,
        ranked=share, reward=change, judge=change,
    )
    rounds = [summary.rounds[0].model_copy(update={"diagnosis": diagnosis}), *summary.rounds[1:]]
    page = render(summary.model_copy(update={"rounds": rounds}), samples)
    assert "<strong>What to blame: the reward.</strong> Of two &lt;answers&gt; it prefers." in page
    assert "Two of these answers that the reward ranks as the judge does" in page
    assert "with a good one among" not in page


def test_an_audit_has_a_page_of_its_own() -> None:
    html = render_audit(audit(2, 0.78, False), ATTACK, "0.1")
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert "failed its audit" in page.text
    assert [tag for tag, _ in page.tags if tag == "svg"] == 3 * ["svg"]
    assert "src" not in {name for _, attrs in page.tags for name in attrs}


@pytest.mark.parametrize(("verdict", "tone"), [
    ("passed", "good"), ("passed with reservations", "warn"), ("failed", "bad"),
])
def test_the_verdict_has_three_states_and_the_worst_finding_beside_it(
    summary: Summary, samples: list[Sample], verdict: AuditVerdict, tone: str
) -> None:
    found = {"passed": [], "passed with reservations": ["length: it leans", "drift: worse"], "failed": []}[verdict]
    reasons = ["it beats nothing"] if verdict == "failed" else []
    last = audit(1, 0.8, True).model_copy(update={"verdict": verdict, "warnings": found, "reasons": reasons})
    worst = {"passed": "", "passed with reservations": "length: it leans", "failed": "it beats nothing"}[verdict]
    badge = f'<span class="badge {tone}">{verdict}</span>'
    badge += f' <small class="worst">{worst}</small>' if worst else ""
    assert render_audit(last, "mine", "0.1").count(badge) == 1
    html = render(summary.model_copy(update={"audits": [audit(1, 0.8, True), last]}), samples)
    panel = html.split("<h3>Reward</h3>")[1].split("</article>")[0]  # of the last audit, whatever it says
    assert badge in panel
    assert html.count(badge) >= 2


def test_page_loads_nothing(summary: Summary, samples: list[Sample]) -> None:
    html = render(summary, samples)
    page = Page(html)
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in {"src", "href", "srcset", "data"}]
    assert links
    assert all(link and link.startswith("#") for link in links)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_untrusted_text_is_escaped(summary: Summary, samples: list[Sample]) -> None:
    row = summary.models[1].model_copy(
        update={"name": ATTACK, "by_task": {ATTACK: summary.models[1].by_task["story"]}}
    )
    stage = summary.stages[0].model_copy(update={"name": ATTACK, "kind": ATTACK})
    changed = summary.model_copy(
        update={
            "name": ATTACK,
            "models": [row],
            "stages": [stage],
            "losses": {ATTACK: summary.losses["instruct"]},
            "audits": [summary.audits[0].model_copy(update={"baselines": {ATTACK: 0.5}})],
        }
    )
    page = Page(render(changed, samples))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_policy_allows_our_script_only(summary: Summary) -> None:
    html = render(summary, [])
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_nothing_to_show(bare: Summary) -> None:
    page = Page(render(bare, []))
    assert "svg" not in {tag for tag, _ in page.tags}
    assert "No verdict" in page.text
    assert "Nothing was released" in page.text
    assert "None" not in page.text


def test_odd_numbers_never_break_the_page(summary: Summary, samples: list[Sample]) -> None:
    """A judge in reward units, intervals out to the extremes, values not finite, one-point curves."""
    models = [
        m.model_copy(update={"score": -7.5 + i, "interval": (-1000.0, 900.0), "kl": math.nan})
        for i, m in enumerate(summary.models)
    ]
    curve = [Point(step=0, kl=-0.01, reward=-3.0, judge=None, length=3, entropy=None)]
    rounds = [
        summary.rounds[0].model_copy(update={"curve": curve}),
        summary.rounds[1].model_copy(update={"curve": []}),
    ]
    audits = [
        summary.audits[0].model_copy(
            update={"bins": [], "ceiling": None, "by_group": {}, "interval": (0.0, 1.0)}
        )
    ]
    broken = [LossPoint(step=1, loss=math.inf, seen=1), LossPoint(step=2, loss=math.nan, seen=2)]
    changed = summary.model_copy(
        update={"models": models, "rounds": rounds, "audits": audits, "losses": {"base": broken}}
    )
    html = render(changed, samples)
    page = Page(html)
    coordinates = [
        v
        for _, a in page.tags
        for k, v in a.items()
        if k in {"cx", "cy", "x", "y", "x1", "x2", "points", "d"}
    ]
    assert coordinates
    assert not any("nan" in str(v) or "inf" in str(v) for v in coordinates)
    assert "the judge&#39;s own units" in html


def test_marks_stand_where_their_numbers_say() -> None:
    chart = line_chart(
        [Line([(0.0, 1.0), (1.0, 2.0), (4.0, 3.0)])], title="t", x_label="x", y_label="y", square_root_x=True
    )
    spots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x0, y0), (x1, y1), (x2, y2) = spots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # at the roots 0, 1, 2
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1
    intervals = interval_chart([Estimate("m", 0.5, (0.4, 0.8))], title="t", x_label="x")
    whisker = re.search(r'class="mark whisker[^"]*" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', intervals)
    dot = re.search(r'<circle[^>]*cx="([\d.]+)"', intervals)
    assert whisker
    assert dot
    low, high, at = float(whisker[1]), float(whisker[2]), float(dot[1])
    assert (at - low) / (high - low) == pytest.approx(0.25, abs=0.01)


def test_a_curve_says_of_which_prompts_it_is_and_has_intervals_on_its_points(summary: Summary) -> None:
    html = render(summary, [])
    assert "Reward on the validation prompts" in html
    assert 'class="spread tone' not in html
    point = Point(step=4, kl=1.0, reward=2.0, judge=0.5, length=3, entropy=None, reward_interval=(1.0, 3.5))
    curve = [Point(step=0, kl=0.0, reward=1.0, judge=0.4, length=3, entropy=None, reward_interval=(0.5, 1.5)), point]
    rounds = [summary.rounds[0].model_copy(update={"curve": curve, "validation_prompts": 48}), summary.rounds[1]]
    units = {"base": "tokens", "reward-1": "pairs"}
    html = render(summary.model_copy(update={"rounds": rounds, "units": units}), [])
    assert html.count('class="spread tone-orange"') == 2
    assert "step 4: reward 2.00, 95% interval 1.00 to 3.50, KL 1.00 nats" in html
    assert "<td>2.000 <small>1.000 to 3.500</small></td><td>0.500</td>" in html
    for words in ("Reward on 48 validation prompts", "Judge on 48 validation prompts",
                  "The curve on 48 validation prompts in figures",
                  "reward over KL on the validation prompts, from 1.00",
                  "3,686,400 tokens seen", "81,920 pairs seen", "no curve here is of held-out rows"):
        assert words in html, words


def test_bars_reach_from_one_end_of_an_interval_to_the_other() -> None:
    line = Line([(0.0, 1.0), (1.0, 3.0)], intervals=[(0.0, 2.0), None])
    chart = line_chart([line], title="t", x_label="x", y_label="y")
    ((low, high),) = re.findall(r'class="spread[^"]*" x1="[\d.]+" y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"', chart)
    first, second = (float(y) for y in re.findall(r'cy="([\d.]+)"', chart))
    unit = (first - second) / 2
    assert float(low) - first == pytest.approx(unit, abs=0.2)
    assert first - float(high) == pytest.approx(unit, abs=0.2)


def test_the_stages_stand_as_the_cycle(summary: Summary) -> None:
    def told(steps: Sequence[CycleStep]) -> list[tuple[str, list[str]]]:
        return [(step.name, [stage.name for stage in step.stages]) for step in steps]

    rows = [*stages(), stages()[4].model_copy(update={"name": "judge", "kind": "reward"})]
    cycle = cycle_steps(summary.model_copy(update={"stages": rows}))
    assert told(cycle.first) == [
        ("Data", ["data"]), ("Base", ["base"]), ("Instruct", ["instruct"]), ("Judge", ["judge"])
    ]
    assert [(each.number, each.decision) for each in cycle.rounds] == [(1, "promoted"), (2, "rejected")]
    for each in cycle.rounds:
        assert told(each.steps) == [
            ("Feedback", [f"round-{each.number}/feedback"]), ("Reward", [f"round-{each.number}/reward"]),
            ("Audit", [f"round-{each.number}/audit"]), ("Improve", [f"round-{each.number}/improve"]),
            ("Gate", [f"round-{each.number}/answers", f"round-{each.number}/gate"]),
        ]
    assert cycle.rounds[0].steps[-1].seconds == 10.0
    assert told(cycle.last) == [("Test", ["test/instruct"])]
    assert sum(len(step.stages) for row in (cycle.first, *(each.steps for each in cycle.rounds), cycle.last)
               for step in row) == len(rows)


def test_a_step_that_was_not_run_is_said(summary: Summary) -> None:
    html = render(summary, [])
    lists = {label: [" ".join(re.sub(r"<[^>]+>", " ", step).split()) for step in re.findall(r"<li.*?</li>", row)]
             for label, row in re.findall(r'<ol class="steps" aria-label="([^"]+)">(.*?)</ol>', html, re.DOTALL)}
    assert lists == {
        "Before the rounds": ["Data 1.2 s", "Base 1 min 11 s", "Instruct 24 s"],
        "Round 1": ["Feedback 9.3 s", "Reward 32 s", "Audit 2.2 s", "Improve 48 s", "Gate 10 s"],
        "Round 2": ["Feedback 9.3 s", "Reward 32 s", "Audit 2.2 s", "Improve 48 s", "Gate 10 s"],
        "After the rounds": ["Test 14 s", "Release base, instruct, reward"],
    }
    assert re.findall(r'<p class="note">(The (?:candidate|champion) [^<]*)</p>', html) == [
        "The candidate becomes the champion, which begins the next round.", "The champion stays."
    ]
    early = summary.model_copy(update={"stages": stages()[:5], "rounds": [], "release": None})
    html = render(early, [])
    assert html.count('<li class="unrun">') == 3 + 2  # audit, improve, gate; test, release
    assert "It came to no gate." in html
    assert "nothing was released" in html


def test_numbers_in_print() -> None:
    assert number(-0.5) == "−0.50"
    assert number(0.25, sign=True) == "+0.25"
    assert number(-0.001) == "0.00"
    assert number(None) == number(math.nan) == "not measured"
    assert duration(4.2) == "4.2 s"
    assert duration(59.4) == "59 s"
    assert duration(59.9) == "1 min 00 s"
    assert duration(3725) == "1 h 02 min"


def test_thinning_keeps_both_ends() -> None:
    points = losses(2000, 5, 1, 0)
    kept = thin(points, 150)
    assert len(kept) == 150
    assert (kept[0], kept[-1]) == (points[0], points[-1])


CHROMIUM = next(
    (found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))),
    None,
)

WATCH = """
const errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => {
  errors.push("refused: " + event.violatedDirective);
});
window.addEventListener("load", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const empty = [];
  const plots = document.querySelectorAll("svg[data-plot]");
  for (const plot of plots) {
    const drawn = [...plot.querySelectorAll(".mark")].filter((mark) => {
      const box = mark.getBBox();
      return box.width > 0 || box.height > 0;
    });
    if (!drawn.length || !plot.getBoundingClientRect().width) empty.push(plot.getAttribute("aria-label"));
  }
  const buttons = document.querySelectorAll("[data-sample]");
  if (buttons.length > 1) buttons[1].click();
  const shown = [...document.querySelectorAll(".sample")].filter((s) => s.offsetParent).map((s) => s.id);
  document.querySelector("[data-tip]").dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
  const tip = document.getElementById("tip");
  const frame = document.createElement("pre");
  const found = { errors, empty, plots: plots.length, shown,
                  tip: tip.hidden ? "" : tip.textContent, inner: innerWidth,
                  room: document.documentElement.clientWidth, wide: document.documentElement.scrollWidth };
  frame.id = "found";
  frame.textContent = JSON.stringify(found);
  document.body.append(frame);
});
"""


def opened(html: str, folder: Path, width: int) -> dict[str, object]:
    """What a browser finds on the page, `width` pixels wide.

    A headless window cannot be as narrow as a phone, so a frame stands in for it.
    """
    digest = base64.b64encode(hashlib.sha256(WATCH.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    html = html.replace("<title>", f"<script>{WATCH}</script><title>", 1)
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "phone.html").write_text(
        f'<!doctype html><iframe src="report.html" width="{width}" height="800" style="border:0"></iframe>'
        '<pre id="found"></pre><script>onload = () => setTimeout(() => {'
        'const found = (page) => page.getElementById("found"); '
        "found(document).textContent = found(frames[0].document).textContent; }, 50)</script>",
        encoding="utf-8",
    )
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0"),
        *("--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom"),
    ]
    assert CHROMIUM
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", (folder / "phone.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return {**json.loads(unescape(found[1])), "console": console}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize("width", [375, 1200])
def test_in_a_browser(summary: Summary, samples: list[Sample], tmp_path: Path, width: int) -> None:
    found = opened(render(summary, samples), tmp_path, width)
    assert found["errors"] == found["console"] == []
    assert found["empty"] == []
    assert found["plots"] == 20
    assert found["shown"] == ["sample-2"]
    assert found["tip"] == "greedy few-shot Base: 0.31, 95% interval 0.28 to 0.34"
    assert found["inner"] == width
    assert found["wide"] == found["room"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")
def test_browser_test_can_fail(summary: Summary, samples: list[Sample], tmp_path: Path) -> None:
    """An empty plot, a script error and a page too wide for a phone are all seen."""
    html = render(summary, samples).replace("<main>", '<main style="width:500px">')
    html = html.replace("polyline", "g").replace('r="3.4"', 'r="0"').replace('id="sample-1"', 'id="gone"')
    found = opened(html, tmp_path, 375)
    assert "TypeError" in str(found["errors"])
    assert "TypeError" in str(found["console"])
    assert "Loss of base" in str(found["empty"])
    assert found["wide"] == 500
