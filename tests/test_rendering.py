"""Templates that a stranger wrote are rendered within limits of time and size, and every failure says its reason."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from test_models import edit, policy, tokenizer
from triptych.data import rendering, template
from triptych.data.rendering import RenderingError, limited
from triptych.display import one_line
from triptych.engine import models
from triptych.errors import ModelError, RewardError
from triptych.records import Conversation, Prompt, user
from triptych.reward.judge import JudgeReward, LanguageJudge

attack = pytest.mark.attack("model folders")
DOUBLED = "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = DOUBLE %}{% endfor %}"
HOSTILE = {
    "{{ 1 / 0 }}": "division by zero",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "range",
    "{{ 'x' * 10 ** 9 }}": "it makes more than",
    "{{ 10 ** 9 * 'x' }}": "it makes more than",
    "{{ [0] * 10 ** 9 }}": "it makes more than",
    "{{ 10 ** (10 ** 10) }}": "a number of more than",
    "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}": "more than",
    "{{ '%1000000000d' % 1 }}": "it makes more than",
    "{{ '%*d' % (1000000000, 1) }}": "it makes more than",
    "{{ '{:1000000000}'.format(1) }}": "it makes more than",
    "{{ '{:{}}'.format(1, 1000000000) }}": "it makes more than",
    "{{ 'x'.ljust(10 ** 9) }}": "it calls ljust",
    "{{ 'x'.expandtabs(10 ** 9) }}": "it calls expandtabs",
    "{{ 'x' | center(10 ** 9) }}": "No filter named 'center'",
    "{{ lipsum(10 ** 9) }}": "'lipsum' is undefined",
    "{{ ('x' * 10 ** 6).replace('x', 'y' * 10 ** 6) }}": "it makes more than",
    "{{ ('x' * 10 ** 6) | replace('x', 'y' * 10 ** 6) }}": "it makes more than",
    "{{ ('\\n' * 10 ** 6) | indent(10 ** 6) }}": "it makes more than",
    "{{ [1] | batch(10 ** 9, 'x') | list }}": "batch with a number beyond",
    "{{ {'a': {'b': 1}} | tojson(indent=10 ** 6) }}": "it indents JSON",
    "{{ [[1]] | sum(start=[]) }}": "it adds lists",
    "{% set a = 'x' * 10 ** 6 %}{{ ''.join([a] * 1000) }}": "it makes more than",
    "{% set a = 'x' * 10 ** 6 %}{{ range(100000) | map('replace', '0', a) | join }}": "it makes more than",
    "{% set a = 'x' * 10 ** 6 %}{% for i in range(100000) %}{{ a }}{% endfor %}": "it makes more than",
    DOUBLED.replace("DOUBLE", "ns.x ~ ns.x"): "it makes more than",
    DOUBLED.replace("DOUBLE", "ns.x + ns.x"): "it makes more than",
    DOUBLED.replace("DOUBLE", "[ns.x, ns.x]"): "",  # by either limit
    DOUBLED.replace("DOUBLE", "{'a': ns.x, 'b': ns.x}"): "",  # by either limit
    DOUBLED.replace("DOUBLE", "(ns.x, ns.x)"): "",  # by either limit
    DOUBLED.replace("DOUBLE", "dict(a=ns.x, b=ns.x)"): "",  # by either limit
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}": "RecursionError",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "takes longer than",
    "{{ messages[0].nothing.more }}": "has no attribute",
    "{{ messages + 1 }}": "TypeError",
    "{{ ''.__class__.__mro__ }}": "",
    "{% include '/etc/passwd' %}": "",
    "{{ raise_exception('\x1b[2J no\ncats') }}": "no cats",
    "{" + "{": "unexpected",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}": "",
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)


@attack
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:60])
def test_a_hostile_template_fails_soon_and_small_with_its_file(tmp_path: Path, text: str) -> None:
    words = tokenizer()
    words.chat_template = text
    words.name_or_path = str(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(text)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelError) as caught:
        template.prompt_tokens(words, Prompt.of("hello"))
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a gibibyte"
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'chat_template.jinja'}: the chat template cannot be applied: ")
    assert HOSTILE[text] in message
    assert message == one_line(message)


@attack
@pytest.mark.parametrize("text", ["{{ 1 / 0 }}", "{{ 'x' * 10 ** 9 }}", "{% for a in range(99999) %}"])
def test_a_judges_template_has_the_same_limits(text: str) -> None:
    def score() -> None:
        judge = LanguageJudge(JudgeReward(), None, text)  # type: ignore[arg-type]  # nobody is asked
        judge.score([Conversation(Prompt(user("hello")), "there")])

    with pytest.raises(RewardError, match="the judge's template: "):
        score()


@attack
def test_a_template_of_a_folder_is_named_by_its_folder(tmp_path: Path) -> None:
    models.save(policy(), tokenizer(), tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path / "tokenizer_config.json", chat_template=[{"name": "other", "template": "x"}])
    with pytest.raises(ModelError, match=f"{tmp_path}: the chat template cannot be applied: .*no default"):
        template.prompt_tokens(models.load_tokenizer(tmp_path), Prompt.of("a"))


ORDINARY = [
    template.CHATML,
    "{% for m in messages %}{{ loop.index }}{{ m.content | trim | upper }}{{ m['role'] ~ ': ' ~ 3 }}{% endfor %}",
    "{{ '%s-%5d|%.2f' % ('a', 1700000000, 2.5) }}{{ '{:>5}|{}'.format('a', 1700000000) }}{{ 2 ** 10 * 3 }}",
    "{{ messages | tojson(indent=4) }}{{ messages | map(attribute='content') | join(', ') }}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ ns.t }}",
    "{% macro m(a, b=[1, 2]) %}{{ a }}{{ b[1:] }}{% endmacro %}{{ m('x') }}{{ m('y', (1, 2)) }}",
    "{{ {'a': 1}.items() | list }}{{ 'a b' | title }}{{ [3, 1] | sort | first }}{{ range(3) | sum }}",
    "{% generation %}{{ messages[0].content.replace('e', 'E').split('l') }}{% endgeneration %}{{ 'a\nb' | indent(2) }}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{{ a % b }}{{ -a * b }}{% endfor %}{{ [1] + [2] }}{{ [0] * 3 }}",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_template_reads_as_in_transformers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    rendering.limit_chat_templates()
    words = tokenizer()
    words.chat_template = text
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    ours = limited(lambda: words.apply_chat_template(turns, tokenize=False))
    monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", ImmutableSandboxedEnvironment)
    chat_template_utils._compile_jinja_template.cache_clear()
    assert ours == words.apply_chat_template(turns, tokenize=False)
    chat_template_utils._compile_jinja_template.cache_clear()


def test_a_long_conversation_is_rendered() -> None:
    environment = rendering.Environment(undefined=StrictUndefined)
    text = limited(lambda: environment.from_string("{{ a }}{{ a ~ a }}{{ a + a }}").render(a="x" * 2**20))
    assert len(text) == 5 * 2**20


def test_every_rendering_has_the_whole_budget() -> None:
    environment = rendering.Environment()
    for _ in range(3):
        limited(lambda: environment.from_string("{{ 'x' * n }}").render(n=2**25 - 1))
    with pytest.raises(RenderingError, match="more than 67,108,864 characters"):
        limited(lambda: environment.from_string("{{ 'x' * n }}").render(n=2**26))
