"""A reward behind an address that scores: the numbers of the reward itself, and of a stranger's server no other."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from test_check import tiny_model, write_recipe
from test_endpoint import KEY, Wire, endless, http
from test_reward_cycle import run_cycle
from test_server import served
from triptych.configuration import load as load_settings
from triptych.engine.endpoint import LONGEST
from triptych.engine.models import load_reward, load_tokenizer, save
from triptych.engine.scoring import RewardModel, learns, learnt_elsewhere, log_odds
from triptych.errors import RecipeError, RewardError
from triptych.pipeline.stage import StageContext
from triptych.preflight import check
from triptych.progress import Silent
from triptych.recipe import load
from triptych.records import Check, Conversation, Message, Prompt, user
from triptych.reward.registry import open_reward
from triptych.reward.remote import RemoteReward, RemoteScorer, keep_remote
from triptych.reward.rules import Rules, RulesReward, keep_rules
from triptych.reward.trust import Trust
from triptych.reward_names import WrittenReward, open_named
from triptych.server.served import ServedFamily, ServedReward

TINY = Path(__file__).parent / "tiny.yaml"
SCALE = {"outputs": {"reward": {"weight": 1.0, "mean": 0.0, "deviation": 1.0}}, "mean": 0.25, "deviation": 0.05}
ROWS = [
    *(Conversation(Prompt.of(f"a small cat {i}"), f"sat on {i} red mats") for i in range(68)),
    Conversation(
        Prompt((Message("system", "a dog"), *user("a cat"), Message("assistant", "sat"), *user("on?"))), "a mat"
    ),
    Conversation(Prompt.of("a cat"), ""),
]
"""Three requests: 32 answers, 32, and 6."""


@pytest.fixture(scope="module")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "reward"
    save(load_reward(policy_folder / "model", fresh=True, seed=3), load_tokenizer(policy_folder / "model"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reward_scale": SCALE}))
    return folder


@pytest.fixture(scope="module")
def address(reward_folder: Path) -> Iterator[str]:
    with served(ServedFamily("cats", {}, ServedReward(RewardModel(reward_folder)))) as place:
        yield place


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    wire.says = lambda: iter([scores(1.5, -2)])
    yield wire
    wire.socket.close()


def settings(url: str, **more: Any) -> RemoteReward:
    return RemoteReward.model_validate({"endpoint": {"url": url, "model": "reward", "retries": 0} | more})


def scores(*values: object) -> bytes:
    return http({"data": [{"index": place, "score": value} for place, value in enumerate(values)]})


def ask(wire: Wire, cache: Path | None = None, **more: Any) -> list[float]:
    return RemoteScorer(settings(wire.url, **more), cache).score(ROWS[:2])


def refused(wire: Wire, **more: Any) -> str:
    with pytest.raises(RewardError) as error:
        ask(wire, **more)
    return str(error.value)


def kept(folder: Path, config: RemoteReward) -> Path:
    folder.mkdir(parents=True)
    keep_remote(StageContext(folder, folder, Silent(), 1, checkpoint_seconds=60.0), config)
    return folder


@pytest.mark.parametrize("end", ["/v1", "/v1/", "/v1/score", "/score"])
def test_scores_are_those_of_the_reward_itself_many_in_a_request(address: str, reward_folder: Path, end: str) -> None:
    scorer = RemoteScorer(settings(address + end))
    assert scorer.score([*ROWS, ROWS[0]]) == pytest.approx(
        RewardModel(reward_folder).score([*ROWS, ROWS[0]]), abs=1e-5
    )
    assert scorer.requests == 3
    assert len(scorer.score(ROWS)) == len(ROWS)
    assert scorer.requests == 3
    assert scorer.score([]) == []


def test_pooling_gives_the_heads_outputs_a_conversation_at_a_time(address: str, reward_folder: Path) -> None:
    scorer = RemoteScorer(settings(f"{address}/pooling", parallel=2))
    model = RewardModel(reward_folder)
    raw = [row[0] for row in model.outputs(ROWS[-4:]).tolist()]
    assert scorer.score(ROWS[-4:]) == pytest.approx(raw, abs=1e-5)
    assert model.score(ROWS[-4:]) != pytest.approx(raw, abs=1e-2)
    assert scorer.requests == 4
    with pytest.raises(RewardError, match="has tools, which /pooling cannot be told"):
        scorer.score([Conversation(Prompt(user("Why?"), tools=("{}",)), "So.")])


@pytest.mark.parametrize(("outputs", "score"), [
    ([0.5], 0.5), ([[1.5], [0.25]], 0.25), ([0.5, 1.0], None), ([[0.5, 1.0]], None), ([], None), (0.5, None),
    ([[]], None), (None, None),
])
def test_of_outputs_for_each_token_the_last_is_the_score(wire: Wire, outputs: Any, score: float | None) -> None:
    wire.says = lambda: iter([http({"data": [{"index": 0, "data": outputs}]})])
    scorer = RemoteScorer(settings(wire.url.removesuffix("/v1") + "/pooling"))
    if score is not None:
        assert scorer.score(ROWS[:1]) == [score]
        sent = json.loads(wire.heard[0].partition(b"\r\n\r\n")[2])
        assert (sent["task"], sent["use_activation"], len(sent["messages"])) == ("classify", False, 2)
    else:
        with pytest.raises(RewardError, match="a score that is not one finite number"):
            scorer.score(ROWS[:1])


def test_rules_there_are_told_references_and_checks(tmp_path: Path) -> None:
    rules = RulesReward.model_validate({"rules": [{"rule": "exact"}, {"rule": "instructions", "weight": 0.5}]})
    keep_rules(StageContext(tmp_path, tmp_path, Silent(), 1, checkpoint_seconds=60.0), rules)
    checks = (Check("keywords:existence", {"keywords": ["mat"]}),)
    rows = [Conversation(Prompt(user("Where?"), "on a mat", "place", checks=checks), answer) for answer in
            ("on a mat", "a mat", "")]
    local = Rules(rules, tmp_path)
    with served(ServedFamily("rules", {}, ServedReward(local))) as place:
        assert RemoteScorer(settings(f"{place}/v1")).score(rows) == local.score(rows) == [1.5, 0.5, 0.0]
        with pytest.raises(RewardError, match=r"400 Bad Request: .*reference"):
            RemoteScorer(settings(f"{place}/v1")).score([ROWS[0]])


def test_it_is_a_part_of_a_mixture_by_settings_by_its_name_and_in_a_folder(
    address: str, reward_folder: Path, tmp_path: Path
) -> None:
    alone = RewardModel(reward_folder).score(ROWS[:3])
    path = tmp_path / "mixture.yaml"
    path.write_text(
        f"kind: mixture\nparts:\n- {{name: a, weight: 2, reward: {{from: '{address}/v1/score#reward', parallel: 1}}}}\n"
        f"- {{name: b, weight: 1, reward: {{kind: remote, endpoint: {{url: '{address}/pooling', model: reward}}}}}}\n"
        "- {name: c, weight: 1, reward: {kind: rules, rules: [{rule: length, most: 9}]}}\n"
    )
    mixture = open_named(path)
    assert mixture.score(ROWS[:3]) == pytest.approx([2 * one + (0.05 * one + 0.25) + 1 for one in alone], abs=1e-5)
    named = open_named(f"{address}/score#reward")
    assert named.score(ROWS[:3]) == pytest.approx(alone, abs=1e-5)
    assert named.name == "reward"
    for scorer in (mixture, named):
        assert (learns(scorer), learnt_elsewhere(scorer), log_odds(scorer)) == (True, True, None)


@pytest.mark.parametrize("end", ["/v2", "/v1/chat/completions", "/get_reward", "/classify", ""])
def test_an_address_that_nobody_knows_how_to_ask_is_refused(end: str) -> None:
    with pytest.raises(ValidationError, match=r"must be one of /v1, /score, /pooling"):
        settings(f"http://127.0.0.1:9{end}")


@pytest.mark.attack("endpoint")
@pytest.mark.parametrize(("reply", "said"), [
    (scores(1.0), "replied 1 scores where 2 answers were sent"),
    (scores(1.0, 2.0, 3.0), "replied 3 scores where 2 answers were sent"),
    (http({"data": {"0": 1}}), "replied no list of scores"),
    (http({"data": [1.0, 2.0]}), "replied no list of scores"),
    (http({}), "replied no list of scores"),
    (http([1.0, 2.0]), "something else than an object"),
    (http({"data": [{"index": 0, "score": 1}, {"index": 0, "score": 2}]}), "each of 0 to 1 must stand there once"),
    (http({"data": [{"index": 1, "score": 1}, {"index": 2, "score": 2}]}), "each of 0 to 1 must stand there once"),
    (http({"data": [{"index": True, "score": 1}, {"index": 0, "score": 2}]}), "each of 0 to 1 must stand there once"),
    (http({"data": [{"index": [0], "score": 1}, {"index": 1, "score": 2}]}), "each of 0 to 1 must stand there once"),
    (http({"data": [{"score": 1}, {"score": 2}]}), "each of 0 to 1 must stand there once"),
    *((scores(1.0, value), "a score that is not one finite number") for value in
      (math.nan, math.inf, "1.0", None, True, [1.0], {"score": 1}, 10**400)),
    (http(b" " * (LONGEST + 1)), f"more than {LONGEST:,} bytes"),
    (http("no JSON"), "no JSON that can be read"),
    (http(b"", "307 Temporary", "Location: http://127.0.0.1:9/score\r\n"), "redirects are not followed"),
    (http({"error": {"message": "no such reward"}}, "404 No"), "404 Not Found: no such reward"),
])
def test_what_are_no_scores_of_these_answers_enters_nothing(
    wire: Wire, tmp_path: Path, reply: bytes, said: str
) -> None:
    wire.says = lambda: iter([reply])
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1") as error:
        ask(wire, tmp_path)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert len(wire.heard) == 1


@pytest.mark.attack("endpoint")
def test_a_reply_without_end_ends(wire: Wire) -> None:
    wire.says = endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536)
    assert f"more than {LONGEST:,} bytes" in refused(wire, seconds=30)
    wire.says = lambda: iter([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"])
    assert "gave up after 1 attempts" in refused(wire, seconds=0.5)


def test_scores_stand_where_their_index_says(wire: Wire) -> None:
    wire.says = lambda: iter([http({"data": [{"index": 1, "score": -2}, {"index": 0, "score": 1.5}]})])
    assert ask(wire) == [1.5, -2.0]


@pytest.mark.parametrize(("first", "header", "waits"), [
    ("500 No", "", (0.25, 0.75)), ("429 Wait", "Retry-After: 3\r\n", (3, 3)),
    ("503 Wait", "Retry-After: 1e9\r\n", (60, 60)),
])
def test_what_may_pass_is_tried_again(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, first: str, header: str, waits: tuple[float, float]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    replies = iter([http({}, first, header), scores(1.5, -2)])
    wire.says = lambda: iter([next(replies)])
    assert ask(wire, retries=1) == [1.5, -2.0]
    assert waits[0] <= max(slept) <= waits[1]


@pytest.mark.attack("endpoint")
def test_the_key_is_sent_and_stands_nowhere(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    assert ask(wire, tmp_path / "cache", key_env="MY_KEY") == [1.5, -2.0]
    assert f"authorization: bearer {KEY}".lower() in wire.heard[0].decode().lower()
    kept(tmp_path / "reward", settings(wire.url, key_env="MY_KEY"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()] == []
    wire.says = lambda: iter([http({"error": {"message": f"wrong key {KEY}", "code": "invalid_api_key"}}, "401 No")])
    assert refused(wire, key_env="MY_KEY").endswith("/v1: 401 Unauthorized (invalid_api_key)")
    with pytest.raises(ValidationError, match="must begin with https"):
        settings("http://example.org/v1", key_env="MY_KEY")


def test_a_resumed_run_asks_for_nothing_again(wire: Wire, tmp_path: Path) -> None:
    expected = ask(wire, tmp_path)
    file = tmp_path / "scores.jsonl"
    lines = file.read_bytes().splitlines()
    assert ask(wire, tmp_path) == expected
    assert len(wire.heard) == 1
    nonsense = [json.dumps(json.loads(lines[1]) | {"replied": value}).encode() for value in
                (math.nan, math.inf, "1", None, True, [1.0], 10**400)]
    wire.says = lambda: iter([scores(-2)])
    for row in (*nonsense, b"[", b"{}", lines[1][:20], b""):
        file.write_bytes(lines[0] + b"\n" + row)
        assert ask(wire, tmp_path) == expected
    assert len(wire.heard) == 1 + len(nonsense) + 4


def test_long_answers_go_in_requests_of_their_own(wire: Wire) -> None:
    wire.says = lambda: iter([scores(1)])
    rows = [Conversation(Prompt.of(f"{i}?"), "a" * 600_000) for i in range(3)]
    assert RemoteScorer(settings(wire.url, parallel=1)).score(rows) == [1.0, 1.0, 1.0]
    assert len(wire.heard) == 3


def test_ranks_share_the_answers_out(address: str, reward_folder: Path) -> None:
    def halves(work: Any, items: Sequence[Any], model: Any = None, sizes: Any = ()) -> list[Any]:
        return [*work(items[::2]), *work(items[1::2])]

    scorer = RemoteScorer(settings(f"{address}/v1"), shard_map=halves)
    expected = RewardModel(reward_folder).score([*ROWS[:6:2], *ROWS[1:6:2]])
    assert scorer.score(ROWS[:6]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.attack("a stranger's reward")
def test_an_address_in_a_folder_is_asked_only_where_the_user_says(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    folder = kept(tmp_path / "reward", settings(wire.url, key_env="MY_KEY"))
    for endpoints, keys in (((), ()), ([wire.url], []), ([f"{wire.url}/score"], ["MY_KEY"])):
        with pytest.raises(RewardError, match=f"would send your text and the value of MY_KEY to {wire.url}; "
                                              f"--allow-endpoint {wire.url} --allow-key MY_KEY allows it"):
            open_reward(folder, trust=Trust.given(endpoints, keys))
    inside = kept(tmp_path / "mixed" / "parts" / "a", settings(wire.url)).parents[1]
    (inside / "reward.json").write_text('{"kind": "mixture", "parts": [{"name": "a", "weight": 3}]}')
    with pytest.raises(RewardError, match="would send your text to"):
        open_reward(inside)
    assert wire.heard == []
    assert open_reward(folder, trust=Trust.given([wire.url], ["MY_KEY"])).score(ROWS[:2]) == [1.5, -2.0]
    assert open_reward(inside, trust=Trust.given([wire.url])).score(ROWS[:2]) == [4.5, -6.0]


HERE = "{kind: remote, endpoint: {url: 'http://127.0.0.1:9/v1', model: reward}}"
RULES = "{kind: rules, rules: [{rule: repetition}]}"


@pytest.mark.parametrize(("overrides", "said"), [
    ([f"reward={HERE}", "gate.judge={from: 'http://127.0.0.1:9/v1/score#reward'}"],
     r"gate\.judge trains the policy too"),
    ([f"reward={{kind: mixture, parts: [{{name: a, weight: 1, reward: {HERE}}}]}}", f"gate.judge={HERE}"],
     r"gate\.judge trains the policy too"),
    ([f"reward={HERE}", "feedback=[]", f"gate.judge={RULES}"], "the reward at http://127.0.0.1:9/v1 is audited before"),
])
def test_what_may_have_learnt_is_kept_apart_and_audited(tmp_path: Path, overrides: list[str], said: str) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(RecipeError, match=said):
        load(path, overrides)
    with pytest.raises(RecipeError, match=r"gate\.judge trains the policy too"):  # the same model in another form
        load(path, [f"reward={HERE}", "gate.judge={from: 'http://127.0.0.1:9/pooling#reward'}"])
    load(path, [f"reward={HERE}", "gate.judge={from: 'http://127.0.0.1:9/score#other'}"])


def test_a_check_asks_each_address_once(tmp_path: Path, wire: Wire) -> None:
    wire.says = lambda: iter([http({}, "503 Wait")])
    part = {"name": "a", "weight": 1, "reward": {"from": f"{wire.url}/score#reward"}}
    path = write_recipe(
        tmp_path, feedback=[], gate={"judge": {"from": f"{wire.url}/score#judge"}},
        reward={"kind": "mixture", "audit": {"required": False}, "parts": [part]},
    )
    assert [problem.partition(": http")[0] for problem in check.check(path).problems] == [
        "reward.parts[0].reward.endpoint", "gate.judge.endpoint",
    ]
    assert len(wire.heard) == 2


@pytest.mark.slow
def test_it_trains_and_judges_in_a_run(address: str, reward_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY.read_text())
    with served(ServedFamily("judge", {}, ServedReward(RewardModel(reward_folder)))) as judge:
        family, release = run_cycle(
            tmp_path, f"reward={{from: '{address}/v1/score#reward', audit: {{required: false}}}}",
            f"gate.judge={{from: '{judge}/v1/score#reward'}}", "improve.rounds=1", "improve.steps=1",
        )
    reward = family.rounds[0].reward
    assert reward is not None
    assert reward.audit is not None
    assert any("nothing says which comparisons it was trained on" in text for text in reward.audit.result.warnings)
    assert reward.scorer.score(ROWS[:3]) == pytest.approx(RewardModel(reward_folder).score(ROWS[:3]), abs=1e-5)
    assert (tmp_path / "run" / "cache" / "scores.jsonl").stat().st_size > 1000
    assert {path.name for path in (release / "reward").iterdir()} == {"README.md", "reward.json"}
    assert "a reward behind an address" in (release / "reward" / "README.md").read_text()
    assert family.judging is not None
    assert family.judging.scorer.name == "reward"
    with pytest.raises(RewardError, match="would send your text to"):
        open_reward(release / "reward")


def test_settings_say_what_is_wrong_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text("kind: remote\nendpoint:\n  url: http://127.0.0.1:9/rank\n  model: reward\n")
    with pytest.raises(RecipeError, match=r"reward\.yaml.*by its end nobody knows how to ask there"):
        load_settings(path, WrittenReward)
    tiny_model(tmp_path / "model")
    with pytest.raises(RewardError, match="name the model that is asked there too"):
        open_named("http://127.0.0.1:9/v1/score")
