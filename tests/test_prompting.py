"""A better prompt is found within its budget by whoever may choose, and measured where it chose nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test_judge import Server, text
from triptych import results
from triptych.cycle import plan
from triptych.data.files import write
from triptych.data.template import prompt_tokens
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import ModelError
from triptych.evaluate import prompting
from triptych.evaluate.measurement import ANSWERS, Measurement, ScoredAnswer, TestedPrompt, measure
from triptych.evaluate.preamble import FOUND, Preamble, behind, read_preamble, rendered_behind
from triptych.evaluate.prompting import WITH_PROMPT, Prompting, candidates_of, search_prompt
from triptych.execution import execute
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Conversation, Message, Prompt, user

TINY = Path(__file__).parent / "tiny.yaml"
PROMPTS = [Prompt(user(f"a cat saw {number} dogs")) for number in range(16)]
EXAMPLES = [Conversation(Prompt(user(f"what of {word}"), task=task), f"a {word}") for word, task in (
    ("cat", "one"), ("dog", "one"), ("bird", "two"), ("fish", "two")
)]
CONFIG = Prompting(systems=("be brief", "be kind"), examples=(0, 1), tokens=4000)
SAMPLING = Sampling(24, 0.0)


@dataclass
class Counting:
    """A scorer by a letter, of which no two answers have quite as many."""

    name: str = "counting"
    identity: str = "counting"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [each.answer.count("a") + len(each.answer) / 1000 for each in conversations]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("validation", "test"):
        write(folder / f"prompts_{split}.jsonl", PROMPTS)
    write(folder / "examples.jsonl", EXAMPLES)
    return folder


def context(folder: Path) -> StageContext:
    folder.mkdir()
    return StageContext(folder, folder, Silent(), 1, 60.0)


def test_nothing_is_tried_first_and_examples_of_different_tasks_take_turns() -> None:
    tried = candidates_of(Prompting(systems=("x", "x"), examples=(3, 0)), EXAMPLES)
    assert [(each.system, [example.answer for example in each.examples]) for each in tried] == [
        (None, []), ("x", []), (None, ["a cat", "a bird", "a dog"]), ("x", ["a cat", "a bird", "a dog"])
    ]
    assert len(candidates_of(CONFIG, ())) == 3  # without examples their number makes no difference


def test_a_prompts_own_system_prompt_stays() -> None:
    preamble = Preamble("be brief", (EXAMPLES[0],)).messages
    own = Prompt((Message("system", "own"), *user("hello")))
    assert [turn.content for turn in behind(preamble, own).messages] == ["own", "what of cat", "a cat", "hello"]
    assert [turn.content for turn in behind(preamble, PROMPTS[0]).messages] == [
        "be brief", "what of cat", "a cat", "a cat saw 0 dogs"
    ]
    later = Prompt((*user("hello"), Message("assistant", "hi"), Message("system", "now"), *user("go on")))
    assert behind((), later) == later
    assert [turn.content for turn in behind(preamble, later).messages] == [
        "be brief", "what of cat", "a cat", "hello", "hi", "now", "go on"
    ]


@pytest.mark.parametrize("tokens", [1000, 100_000])
def test_the_best_by_the_chooser_is_found_within_the_budget(
    tokens: int, policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"tokens": tokens})
    found = search_prompt(context(tmp_path / "a"), config, policy_folder, data, Counting(), SAMPLING)
    tried = {each.name: each for each in found.tried}
    plain = tried["no system prompt"]
    assert len(tried) == 6
    assert plain.prompts == max(each.prompts for each in found.tried)
    assert (plain.prompts == len(PROMPTS)) == (tokens > 1000)
    assert found.sampled <= tokens
    assert found.sampled > tokens / 2 or plain.prompts == len(PROMPTS)  # what there is is used
    best = found.tried[0]
    assert best.score >= plain.score
    assert found.gain == pytest.approx(best.score - plain.score)
    assert len({each.prompts for each in found.tried}) > 1  # some were given up
    policy = Policy.open(policy_folder / "model")
    shown = candidates_of(config, EXAMPLES)
    chosen = next(each for each in shown if (each.system, len(each.examples)) == (found.system, found.examples))
    assert (best.name, read_preamble(tmp_path / "a")) == (chosen.name, chosen.messages)
    for name, preamble in (("no system prompt", shown[0]), (best.name, chosen)):
        assert mean_of(policy, preamble, tried[name].prompts) == pytest.approx(tried[name].score)


def mean_of(policy: Policy, preamble: Preamble, count: int) -> float:
    """What a candidate's answers to the first prompts score."""
    render = rendered_behind(preamble.messages, policy, SAMPLING.max_tokens)
    groups = policy.write(PROMPTS[:count], SAMPLING, render=render)
    scores = Counting().score([Conversation(rollout.prompt, rollout.answer) for (rollout,) in groups])
    return sum(scores) / count


def test_what_the_template_refuses_is_not_tried(
    policy_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(tokenizer: Any, prompt: Prompt) -> list[int]:
        if prompt.messages[0].role == "system":
            raise ModelError("no system prompts here")
        return prompt_tokens(tokenizer, prompt)

    monkeypatch.setattr(prompting, "prompt_tokens", refusing)
    found = search_prompt(context(tmp_path / "a"), CONFIG, policy_folder, data, Counting(), SAMPLING)
    assert sorted(each.name for each in found.tried) == ["no system prompt", "no system prompt, 1 examples"]


def test_a_model_is_measured_behind_what_was_found(policy_folder: Path, data: Path, tmp_path: Path) -> None:
    for name, messages in (("nothing", []), ("found", [{"role": "system", "content": "be kind"}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / FOUND).write_text(json.dumps({"messages": messages}))
    settings: dict[str, Any] = {"judge": Counting(), "decoding": SAMPLING}
    plain, asked = (
        measure(context(tmp_path / f"{name} asked"), Measurement(), policy_folder, data, prompting=tmp_path / name,
                **settings)
        for name in ("nothing", "found")
    )
    assert WITH_PROMPT not in plain.decodings
    policy = Policy.open(policy_folder / "model")
    render = rendered_behind((Message("system", "be kind"),), policy, SAMPLING.max_tokens)
    groups = policy.write(PROMPTS, replace(SAMPLING, seed=1), render=render)
    scores = Counting().score([Conversation(rollout.prompt, rollout.answer) for (rollout,) in groups])
    assert asked.decodings[WITH_PROMPT].score == pytest.approx(sum(scores) / len(scores))
    assert render(PROMPTS[0]) != policy.render(PROMPTS[0])
    assert asked.score == plain.score  # as it is deployed it is asked as before


def test_where_there_is_no_room_the_prompt_stands_alone(policy_folder: Path) -> None:
    policy = Policy.open(policy_folder / "model")
    long = Preamble("be kind " * 3000, ()).messages
    assert rendered_behind(long, policy, 8)(PROMPTS[0]) == policy.render(PROMPTS[0])


@pytest.mark.parametrize(("gain", "champion", "released"), [(1.0, 0, True), (0.0, 0, False), (1.0, 1, False)])
def test_a_prompt_is_released_where_it_wins_and_instruct_is_the_one_it_was_found_for(
    gain: float, champion: int, released: bool, tmp_path: Path
) -> None:
    def answer(score: float) -> ScoredAnswer:
        return ScoredAnswer(answer="x", tokens=1, judge=score, reward=None)

    rows = [
        TestedPrompt(key=str(n), task=None, prompt=(("user", "x"),), deployed=answer(n),
                     decodings={WITH_PROMPT: answer(n + gain)}) for n in range(8)
    ]
    (tmp_path / ANSWERS).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    family: Any = SimpleNamespace(
        prompts={"instruct": tmp_path}, champion_round=champion, tests=[SimpleNamespace(round=0, artifact=tmp_path)]
    )
    assert (results._better_prompt(family) == tmp_path / FOUND) == released


def test_a_cycle_with_a_search_has_one_more_baseline(tmp_path: Path, tiny_run: Path) -> None:
    server = Server()
    server.reply = lambda body: (200, text("```\nbe kind\n```"), {})
    settings = [
        "prompting={systems: [be brief], examples: [0, 1], tokens: 4000}",
        f"prompting.reflection={{endpoint: {{url: {server.url!r}, model: m}}, rewrites: 2}}",
    ]
    recipe = load(TINY, settings)
    names = [stage.name for stage in plan(recipe)]
    assert names.index("prompting/instruct") < names.index("test/instruct")
    assert not any(name.startswith("prompting/") for name in (stage.name for stage in plan(load(TINY))))
    shutil.copytree(tiny_run / "artifacts", tmp_path / "artifacts")
    summary = execute(recipe, tmp_path, Silent())
    assert summary is not None
    (found,) = summary.prompts
    assert (found.model, found.rewrites, len(server.asked)) == ("instruct", 2, 2)
    assert (found.tried, found.accepted) in ((4, 0), (6, 1))
    assert found.sampled <= 4000
    assert found.reflected == ("be kind" in found.prompt)
    assert "; 2 more were rewritten by reflection" in (tmp_path / "report.html").read_text()
    assert summary.verdict is not None
    searched = {baseline.name for baseline in summary.verdict.baselines if baseline.free} & {
        f"Instruct, {WITH_PROMPT}"
    }
    assert bool(searched) == (found.prompt != "no system prompt")
