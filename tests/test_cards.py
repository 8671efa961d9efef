"""Whatever stands in a name, the cards and pages show it as text: no HTML, no link, no cell, no heading of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from markdown_it.token import Token

from test_release import summary
from triptych.display import one_line
from triptych.engine.sampling import Sampling
from triptych.records import user
from triptych.release.card import ReleasedFamily, family_card, markdown, model_card
from triptych.release.lineage import ROLES, DataFile, Lineage, Parent, RewardExample, Role, WrittenExample
from triptych.report.page import render, render_audit, render_comparison
from triptych.report.summary import MethodComparison, Sample, SampleAnswer, Summary

HOSTILE = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "</title></style></script>", "a | b", "|", "`|`",
    "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "<https://evil.example>", "[x]: https://evil",
    "`code` ``more``", "`", "\\", "\\|", "**bold** _it_ ~~gone~~", "&lt;b&gt; &#60;i>", "$$x$$ \\\\(y\\\\)",
    "line\n# heading\n\n- item\n| --- |\n", "\n---\nlicense: mit\n---\n", "<!--", "]]>", "\x1b[2J\u202e", "\ud800\x00",
    '" onmouseover="alert(1)', "' onmouseover='alert(1)", "{{ 7 * 7 }}{% raw %}", "x" * 3000, "é\u0301 日本 🦊",
]
MEANT = {"passed", "failed", "passed with reservations", "must fall", "must stay"}


def tokens(text: str) -> list[Token]:
    """What a reader of Markdown makes of a card, without its metadata."""
    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") else text
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    return [token for block in blocks for token in (block, *(block.children or []))]


def hostile(value: Any, text: str) -> Any:
    """The same with the text before every string but the few that only the program chooses."""
    if isinstance(value, dict):
        return {key: hostile(each, text) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(each, text) for each in value]
    return text + value if isinstance(value, str) and value not in MEANT else value


def attacked(text: str) -> Summary:
    """A summary with the text in every name and every sentence."""
    found = hostile(summary().model_dump(), text)
    for row in (*found["models"], *found["audits"]):
        for field in ("by_task", "by_group", "baselines"):
            if field in row:
                row[field] = {text + name: value for name, value in row[field].items()}
    found["audits"][0] |= {"verdict": "failed", "reasons": [text], "warnings": [text]}
    found["losses"] = {text: [{"step": 1, "loss": 1.0, "seen": 1}]}
    found["stages"][0] |= {"parents": [text]}
    found["verdict"]["baselines"] = [{
        "name": found["verdict"]["rival"], "free": True, "drawn": 1, "score": 0.5, "interval": (0.4, 0.6),
        "gain": 0.1, "gain_interval": (0.0, 0.2),
    }]
    return Summary.model_validate(found)


def family(text: str, numbers: Summary) -> ReleasedFamily:
    """A family with the text in its own names, its parents, its files and its reward's outputs."""
    parents = (Parent(text + "hub", text, hub=True), Parent(text + "local", text))
    lineage: dict[Role, Lineage] = {role: Lineage(text, parents, (DataFile(text, text, 3),)) for role in ROLES}
    part = {"weight": 1.0, "mean": 0.0, "deviation": 1.0}
    scale = {"outputs": {text: part, text + "b": part}, "mean": 0.0, "deviation": 1.0, "log_odds": True}
    said = WrittenExample(user(text), f"{text}\n\n\n{text}")
    scored = tuple(RewardExample(user(text), text + answer, 0.5) for answer in ("a", "b"))
    return ReleasedFamily(
        text, text, text, text, text, lineage, numbers, scored, None, scale, (said,), text, text + "c",
        Sampling(3), (text,), text,
    )


def shape(text: str) -> list[tuple[str, str]]:
    """What a card is made of: its blocks, links and code, without the words."""
    return [
        (token.type, str(token.attrs)) for token in tokens(text)
        if token.type not in ("text", "text_special", "inline", "softbreak")
    ]


@pytest.mark.attack("page")
@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_others_is_text(text: str) -> None:
    shown = tokens(f"| a | b |\n|---|---|\n| {markdown(text)} | end |\n")
    plain = tokens("| a | b |\n|---|---|\n| x | end |\n")
    assert [token.type for token in shown if token.type not in ("text", "text_special")] == [
        token.type for token in plain if token.type not in ("text", "text_special")
    ]
    said = "".join(token.content for token in tokens(f"x {markdown(text)} x") if token.type.startswith("text"))
    assert said.split() == f"x {one_line(text)} x".split(), "the words stay as they were"


@pytest.mark.attack("page")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_is_made_of_the_same_parts_whatever_its_names_are(text: str) -> None:
    made, plain = family(text, attacked(text)), family("word", attacked("word"))
    for role in ROLES:
        card = model_card(role, made)
        assert shape(card) == shape(model_card(role, plain))
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", card)
        assert list(ModelCard(card).data.to_dict()) == list(ModelCard(model_card(role, plain)).data.to_dict())
    assert shape(family_card(made)) == shape(family_card(plain))


@pytest.mark.attack("page")
def test_code_ends_where_it_should() -> None:
    made = family("`</code>|<img src=x>`", attacked("x"))
    assert "| `?</code>?<img src=x>?` |" in model_card("base", made)


def test_plain_names_stay_as_they_are() -> None:
    plain = "best_of_n, round 2: reward-model (greedy, top_p 0.9) + 3.5% #1!"
    assert markdown(plain) == plain


class Parts(HTMLParser):
    """The tags of a page with the names of their attributes; how many ticks a chart has room for depends on words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


@pytest.mark.attack("page")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_is_made_of_the_same_parts_whatever_its_names_are(text: str) -> None:
    def pages(text: str) -> list[str]:
        numbers = attacked(text)
        answer = SampleAnswer(model=text, text="a" + text, judge=0.5, reward=None)
        samples = [Sample(prompt=text, task=text, answers=[answer])]
        method = {
            "method": text, "seeds": 1, "decodings": [text], "better": True, "score": 0.5, "score_interval": (0.4, 0.6),
            "gain": 0.1, "gain_interval": (0.0, 0.2), "win_rate": 0.5, "win_rate_interval": (0.4, 0.6),
            "at_equal_length": [None], "kl": 0.1, "length": 3.0, "seconds": 1.0, "promoted": 1,
        }
        compared = MethodComparison.model_validate({
            "recipe": text, "judge": text, "rival": text, "before": 0.5, "budget": {"updates": 1, "answers": 1},
            "methods": [method],
        })
        return [render(numbers, samples), render_audit(numbers.audits[0], text, text), render_comparison(compared)]

    short = len(text) < 100  # a long answer can be scrolled
    for page, plain in zip(pages(text), pages("word" if short else "w" * 3000), strict=True):
        found, meant = Parts(page).found, Parts(plain).found
        assert [part for part in found if part[0] not in ("line", "text")] == [
            part for part in meant if part[0] not in ("line", "text")
        ]
        assert set(found) == set(meant)
        assert page.encode()
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)


def test_a_cross_fitted_audit_is_never_called_held_out() -> None:
    numbers = attacked("word")
    fitted = numbers.model_copy(update={"audits": [numbers.audits[-1].model_copy(update={"folds": 5})]})
    for name, made in (("held-out", numbers), ("cross-fitted", fitted)):
        shown = family("word", made)
        card, of_family = model_card("reward", shown), family_card(shown)
        assert f"On 400 {name} comparisons" in card
        assert f"% of 400 {name} comparisons" in of_family
        assert f"of 400 {name} comparisons ordered" in render(made, [])
        assert f"Accuracy on 400 {name} comparisons" in render_audit(made.audits[-1], "mine", "0.1")
        for text in (card, of_family):
            data = ModelCard(text).data
            assert isinstance(data, ModelCardData)
            (measured,) = [row for row in data.eval_results or () if row.metric_type == "accuracy"]
            assert (measured.dataset_type, measured.dataset_name) == (name, f"400 {name} comparisons of this run")
    assert "held-out comparisons" not in model_card("reward", family("word", fitted))
    assert "**models like this one**" in model_card("reward", family("word", fitted))


def test_a_reward_that_a_round_made_of_an_earlier_one_is_of_the_familys_base() -> None:
    """Of a later round: it started from models that are in no repository."""
    for parent, base in (("round-1/reward", ["word-base"]), ("round-1/improve", ["word-base"]),
                         ("instruct", ["word-instruct"]), ("their.gguf", None), ("round-trip", None)):
        shown = family("word", attacked("word"))
        mine = replace(shown.lineage["reward"], parents=(Parent(parent, "0" * 64),))
        data = ModelCard(model_card("reward", replace(shown, lineage={**shown.lineage, "reward": mine}))).data
        assert data.get("base_model") == base
        assert data.get("base_model_relation") == (base and "finetune")
