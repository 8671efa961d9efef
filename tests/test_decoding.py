"""The deployed decoding: how it is chosen; gate and test are at it, and distances stay those of the policies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.data.files import write
from triptych.deployment import watcher
from triptych.engine.models import load_policy, load_tokenizer, save
from triptych.engine.rollout import Policy, divergence
from triptych.engine.sampling import Sampling, passed_over
from triptych.engine.scoring import Facing, Scorer
from triptych.errors import ModelError, RecipeError
from triptych.evaluate.answers import Answering, answer, answered
from triptych.evaluate.decoding import SEEDS, Decoding, choose
from triptych.evaluate.measurement import Measurement, Measurements, _before_the_next, few_shot, measure
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Conversation, Prompt, Rollout, user
from triptych.storage import read_rows

PROMPTS = [Prompt(user(f"a cat saw {number} dogs")) for number in range(8)]
TINY = Path(__file__).parent / "tiny.yaml"


@dataclass
class Counting:
    """A scorer by a character, of which no two answers have quite as many."""

    letter: str = "a"
    name: str = "counting"
    identity: str = "counting"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [each.answer.count(self.letter) + len(each.answer) / 1000 for each in conversations]


@dataclass
class Indifferent:
    name: str = "indifferent"
    identity: str = "indifferent"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [0.25] * len(conversations)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("validation", "gate", "test"):
        write(folder / f"prompts_{split}.jsonl", PROMPTS)
    return folder


@pytest.fixture(scope="module")
def candidate(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy with its weights shaken."""
    folder = tmp_path_factory.mktemp("candidate")
    model: Any = load_policy(policy_folder / "model")
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    save(model, load_tokenizer(policy_folder / "model"), folder / "model")
    return folder


def context(folder: Path) -> StageContext:
    folder.mkdir()
    return StageContext(folder, folder, Silent(), 1, 60.0)


def test_greedy_is_said_in_one_way(tmp_path: Path) -> None:
    assert Decoding.model_validate({"greedy": True}).temperature == 0.0
    assert Decoding(temperature=0.0).at(0.0) == Sampling(96, 0.0)
    assert load(TINY, ["decoding={greedy: true, max_tokens: 8}"]).decoding.at(0.0).name == "greedy"
    for told in ("{greedy: true, temperature: 0.5}", "{greedy: false}", "{temperature: -1}", "{temperature: warm}"):
        with pytest.raises(RecipeError, match=re.escape(f"--set decoding={told}: decoding")):
            load(TINY, [f"decoding={told}"])


@pytest.mark.parametrize(("settings", "said"), [
    ({"do_sample": True, "top_k": 20, "repetition_penalty": 1.1}, "top_k 20, repetition_penalty 1.1"),
    ({"do_sample": True, "temperature": 0.6}, None),
    ({"do_sample": True, "top_k": 0, "top_p": 0.9, "min_p": None}, None), ({"top_k": 20}, None), ({}, None),
    ({"do_sample": False, "repetition_penalty": 1.2, "min_p": 0.1}, "repetition_penalty 1.2"),
])
def test_what_of_a_models_own_settings_is_not_applied_is_said(
    settings: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    assert passed_over(tmp_path) is None
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    note = passed_over(tmp_path)
    assert (note is None) == (said is None)
    assert said is None or f": {said} of its" in str(note)
    (tmp_path / "generation_config.json").write_text("no JSON")
    with pytest.raises(ModelError, match="is not valid JSON"):
        Sampling.of(tmp_path)


def test_a_decoding_is_called_by_what_it_does() -> None:
    assert Sampling(1).name == "temperature 1"
    assert Sampling(1, 0.0, top_p=0.9).name == "greedy"
    assert Sampling(1, 0.5, top_p=0.9).name == "temperature 0.5, top_p 0.9"


def test_the_best_temperature_by_the_chooser_is_taken(policy_folder: Path, data: Path, tmp_path: Path) -> None:
    config = Decoding(temperatures=(1.0, 0.0, 0.5), max_tokens=12)
    found = choose(context(tmp_path / "a"), config, policy_folder, data, Counting())
    policy = Policy.open(policy_folder / "model")
    means = {}
    for temperature in (0.0, 0.5, 1.0):
        groups = policy.write(PROMPTS, Sampling(12, temperature, seed=1 + SEEDS))
        scores = Counting().score([Conversation(each.prompt, each.answer) for (each,) in groups])
        means[temperature] = sum(scores) / len(scores)
    assert {row.temperature: row.score for row in found.temperatures} == pytest.approx(means)
    assert len(set(means.values())) == 3
    assert found.temperature == max(means, key=lambda each: means[each])
    assert found.chooser == "counting"


@pytest.mark.parametrize(("example", "answer", "kept"), [
    ("Question: {prompt}\nAnswer: {answer}", "One.\n\nTwo.\n\nQuestion: x", "One.\n\nTwo."),
    ("Question: {prompt}\nAnswer: {answer}", "\n\nOne.", "One."),
    ("Question: {prompt} Answer: {answer}", "One. Question: x", "One."),
    ("{prompt}\n{answer}", "One.\n\nTwo.", "One."),
])
def test_what_the_base_writes_ends_where_the_next_example_would_begin(
    policy_folder: Path, example: str, answer: str, kept: str
) -> None:
    tokenizer = Policy.open(policy_folder / "model").tokenizer
    rollout = Rollout(PROMPTS[0], (1,), tuple(range(40)), (0.0,) * 40, answer, False)
    assert _before_the_next(rollout, tokenizer, Measurement(example=example)).answer == kept


def test_of_equal_temperatures_the_lowest_is_taken(policy_folder: Path, data: Path, tmp_path: Path) -> None:
    config = Decoding(temperatures=(1.0, 0.3, 0.7), max_tokens=4)
    assert choose(context(tmp_path / "a"), config, policy_folder, data, Indifferent()).temperature == 0.3


def test_the_gate_is_at_each_models_own_decoding(
    policy_folder: Path, candidate: Path, data: Path, tmp_path: Path
) -> None:
    greedy, warm = Sampling(12, 0.0), Sampling(12, 0.5)
    found = answer(context(tmp_path / "a"), Answering(), candidate, policy_folder, data, greedy, warm)
    assert (found.decoding_before, found.decoding_after) == ("temperature 0.5", "greedy")
    pairs = answered(tmp_path / "a")
    after = Policy.open(candidate / "model").write(PROMPTS, greedy)
    before = Policy.open(policy_folder / "model").write(PROMPTS, replace(warm, seed=10_010))
    assert [pair.after for pair in pairs] == [each.answer for (each,) in after]
    assert [pair.before for pair in pairs] == [each.answer for (each,) in before]


def test_the_distance_is_the_policies_own_at_any_decoding(
    policy_folder: Path, candidate: Path, data: Path, tmp_path: Path
) -> None:
    warm, plain = Sampling(12, 0.3), Sampling(12)
    for place, decoding in enumerate((warm, plain)):
        folder = tmp_path / str(place)
        found = answer(context(folder), Answering(), candidate, policy_folder, data, decoding, decoding)
        policies = [Policy.open(each / "model") for each in (candidate, policy_folder)]
        own = policies[0].write(PROMPTS, replace(plain, seed=10_011))
        assert found.kl == pytest.approx(divergence(policies[0], policies[1], own), rel=1e-5)
    # What was drawn at a low temperature is another distribution's, and tells another distance.
    tempered = policies[0].write(PROMPTS, replace(warm, seed=10_011))
    assert found.kl is not None
    assert abs(divergence(policies[0], policies[1], tempered) - found.kl) > 0.1 * found.kl


def test_a_model_is_measured_as_deployed_with_the_others_beside_it(
    policy_folder: Path, candidate: Path, data: Path, tmp_path: Path
) -> None:
    judge, reward = Counting("o"), Counting("t")
    found = measure(
        context(tmp_path / "a"), Measurement(), candidate, data, judge, Sampling(12, 0.5), policy_folder, reward,
        best_of=4,
    )
    assert set(found.decodings) == {"temperature 0.5", "temperature 1", "greedy", "best of 4"}
    rows = read_rows(tmp_path / "a" / "answers.jsonl")
    policy = Policy.open(candidate / "model")
    ways = {"temperature 0.5": Sampling(12, 0.5, seed=1), "temperature 1": Sampling(12, seed=1),
            "greedy": Sampling(12, 0.0)}
    for name, sampling in ways.items():
        written = [group[0] for group in policy.write(PROMPTS, sampling)]
        assert [row["decodings"][name]["answer"] for row in rows] == [each.answer for each in written]
        judged = judge.score([Conversation(each.prompt, each.answer) for each in written])
        assert [row["decodings"][name]["judge"] for row in rows] == judged
        assert found.decodings[name].score == pytest.approx(sum(judged) / len(judged))
    assert [row["deployed"] for row in rows] == [row["decodings"]["temperature 0.5"] for row in rows]
    assert found.score == found.decodings["temperature 0.5"].score
    own = policy.write(PROMPTS, ways["temperature 1"])
    assert found.kl == pytest.approx(divergence(policy, Policy.open(policy_folder / "model"), own), rel=1e-5)
    groups = policy.write(PROMPTS, Sampling(12, seed=1), n=4)
    best = [max(group, key=lambda each: reward.score([Conversation(each.prompt, each.answer)])[0]) for group in groups]
    assert [row["decodings"]["best of 4"]["answer"] for row in rows] == [each.answer for each in best]
    told = {name for row in rows for name, one in row["decodings"].items() if one["reward"] is not None}
    assert told == {"temperature 0.5"}  # as deployed
    assert found.decodings["best of 4"].drawn == 4


@dataclass
class Longer:
    """Says only which of two answers is longer."""

    name: str = "longer"
    identity: str = "longer"
    compares: bool = True

    def facing(self, rivals: dict[str, str]) -> Scorer:
        return Facing(self, rivals)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        beside = [len(row.prompt.reference) if row.prompt.reference is not None else None for row in conversations]
        return [
            0.5 if other is None or len(row.answer) == other else float(len(row.answer) > other)
            for row, other in zip(conversations, beside, strict=True)
        ]


def test_a_judge_that_only_compares_is_given_something_to_compare_with(
    policy_folder: Path, candidate: Path, data: Path, tmp_path: Path
) -> None:
    config, decoding = Measurement(), Sampling(12, 0.5)
    before = measure(context(tmp_path / "a"), config, policy_folder, data, Longer(), decoding)
    after = measure(context(tmp_path / "b"), config, candidate, data, Longer(), decoding, beside=tmp_path / "a")
    rows = {name: read_rows(tmp_path / name / "answers.jsonl") for name in "ab"}
    own = [row["deployed"]["answer"] for row in rows["a"]]

    def longer(answers: Sequence[str]) -> float:
        pairs = list(zip(map(len, answers), map(len, own), strict=True))
        return sum(0.5 if one == other else one > other for one, other in pairs) / len(pairs)

    assert before.score == 0.5  # beside itself
    for found, name in ((before, "a"), (after, "b")):
        for way, numbers in found.decodings.items():
            assert numbers.score == longer([row["decodings"][way]["answer"] for row in rows[name]])
    assert len({numbers.score for numbers in (*before.decodings.values(), *after.decodings.values())}) > 2


def test_temperatures_are_compared_with_the_lowest(policy_folder: Path, data: Path, tmp_path: Path) -> None:
    config = Decoding(temperatures=(1.0, 0.0), max_tokens=12)
    found = choose(context(tmp_path / "a"), config, policy_folder, data, Longer())
    assert found.temperatures[0].score == 0.5
    assert found.temperatures[1].score != 0.5


def test_a_decoding_that_is_deployed_is_measured_once(policy_folder: Path, data: Path, tmp_path: Path) -> None:
    found = measure(context(tmp_path / "a"), Measurement(), policy_folder, data, Counting(), Sampling(12, 0.0))
    assert set(found.decodings) == {"greedy", "temperature 1"}
    assert found.decoding == "greedy"


def test_who_decides_at_the_gate_chooses_nothing_before_it_unless_it_cannot_err() -> None:
    judge, reward = Counting("o"), Counting("t")
    assert watcher(load(TINY), judge, reward) is judge
    rules = load(TINY, ["gate.judge={kind: rules, rules: [{rule: length, most: 40}]}"])
    assert watcher(rules, judge, reward) is judge
    model = load(TINY, ["gate.judge={kind: judge, endpoint: {url: 'http://127.0.0.1:9', model: m}}"])
    assert watcher(model, judge, reward) is reward
    assert watcher(model, judge, None) is judge  # no round, no gate


@pytest.mark.attack("failing stage")
def test_a_prompt_without_room_for_all_examples_gets_fewer(policy_folder: Path, tmp_path: Path) -> None:
    policy = Policy.open(policy_folder / "model")
    assert policy.context == 256
    short, long = Prompt(user("a cat")), Prompt(user("a cat " * 12))
    shown = [Conversation(Prompt(user(f"what saw {number} dogs " * 4)), "a cat") for number in range(3)]
    config = Measurement()
    lengths = {each.messages[0].content: len(few_shot(policy.tokenizer, shown, config)(each)) for each in (short, long)}
    room = max(lengths.values()) - 1
    assert lengths["a cat"] <= room
    render = few_shot(policy.tokenizer, shown, config, room)
    assert render(short) == few_shot(policy.tokenizer, shown, config)(short)
    assert render(long) == few_shot(policy.tokenizer, shown[:2], config)(long)
    write(tmp_path / "prompts_test.jsonl", [short, long])
    write(tmp_path / "examples.jsonl", shown)

    def found(answer: int) -> Measurements:
        here, decoding = context(tmp_path / str(answer)), Sampling(answer, 0.0)
        return measure(here, config, policy_folder, tmp_path, Counting(), decoding, style="few-shot")

    fewer = found(256 - room)
    assert (fewer.prompts, fewer.fewer_examples) == (2, 1)
    assert found(256 - room - 1).fewer_examples == 0
    with pytest.raises(ModelError, match="no prompt fits the model's context of 256 tokens"):
        found(250)
