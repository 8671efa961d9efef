"""A reward's folder is data: what it names is asked, run and rendered only where the user said so, by each command."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from test_check import rows, tiny_model
from test_cli import call, refused
from test_endpoint import Wire, completion
from triptych.errors import RewardError
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Conversation, Prompt, user
from triptych.release.verification import FORMAT, Manifest, ModelEntry, listing, seal, verify
from triptych.reward.judge import TEMPLATES, JudgeReward, keep_judge
from triptych.reward.mixture import MixtureReward
from triptych.reward.registry import open_reward
from triptych.reward.rules import RulesReward, keep_rules
from triptych.reward.trust import Trust

KEY = "sk-of-mine"
SAID = "A secret of mine"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    wire = Wire()
    wire.says = lambda: iter([completion("2")])
    yield wire
    wire.socket.close()


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("stranger") / "instruct")


Files = dict[str, str | bytes | dict[str, Any]]


def reward_at(folder: Path, files: Files) -> Path:
    """A reward's folder with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else
                         (content if isinstance(content, str) else json.dumps(content)).encode())
    return folder


def released(folder: Path, instruct: Path, files: Files) -> Path:
    """A stranger's release, which is what its manifest says."""
    reward_at(folder / "reward", files)
    shutil.copytree(instruct, folder / "instruct")
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text("{}")
    entry = ModelEntry(parents=[], data=[], fingerprint="0")
    seal(folder, Manifest(
        format=FORMAT, name="tiny", version="1.0", license="other", recipe="0",
        models={"base": entry, "instruct": entry, "reward": entry}, files=listing(folder),
    ))
    assert verify(folder) == []
    return folder


SHIPPED = (TEMPLATES / "score.jinja").read_text(encoding="utf-8")


def judge(url: str, template: str = SHIPPED, **more: Any) -> Files:
    endpoint = {"url": url, "model": "m", "key_env": "OPENAI_API_KEY", "retries": 0} | more
    return {"reward.json": {"kind": "judge", "endpoint": endpoint}, "template.jinja": template}


def alone(files: Files) -> Files:
    return files


def mixed(files: Files) -> Files:
    """The reward as the second part of a mixture."""
    parts = [{"name": name, "weight": 1} for name in ("form", "other")]
    harmless: Files = {"parts/form/reward.json": {"kind": "rules", "rules": [{"rule": "length", "most": 9}]}}
    return {"reward.json": {"kind": "mixture", "parts": parts}} | harmless | {
        f"parts/other/{name}": content for name, content in files.items()
    }


NESTED = pytest.mark.parametrize("nested", [alone, mixed])


def chat(release: Path, *flags: object) -> Any:
    return call("chat", release, "--max-tokens", 4, *flags, typed=f"{SAID}\n")


def audit(release: Path, *flags: object) -> Any:
    data = rows(release.parent / "pairs.jsonl", [{"prompt": SAID, "chosen": "a b", "rejected": f"c {i}"} for i in "de"])
    return call("audit", release, "--data", data, "--output", release.parent / "audit", *flags)


def evaluate_answers(release: Path, *flags: object) -> Any:
    prompts = rows(release.parent / "prompts.jsonl", [{"prompt": SAID}])
    return call(
        "evaluate", release / "instruct", "--prompts", prompts, "--reward", release, "--max-tokens", 4, *flags
    )


def evaluate_agreement(release: Path, *flags: object) -> Any:
    data = rows(release.parent / "pairs.jsonl", [{"prompt": SAID, "chosen": "a b", "rejected": "c"}])
    return call("evaluate", release, "--comparisons", data, *flags)


def audit_predecessor(release: Path, *flags: object) -> Any:
    harmless = reward_at(release.parent / "harmless", {"reward.json": {
        "kind": "rules", "rules": [{"rule": "length", "most": 9}]
    }})
    data = rows(release.parent / "pairs.jsonl", [{"prompt": SAID, "chosen": "a b", "rejected": "c"}])
    return call(
        "audit", harmless, "--predecessor", release, "--data", data, "--output", release.parent / "audit", *flags
    )


COMMANDS = pytest.mark.parametrize("command", [
    chat, audit, audit_predecessor, evaluate_answers, evaluate_agreement
])


def told(result: Any) -> str:
    """All that a command printed, which ended without a traceback."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return " ".join((result.stdout + result.stderr).split())


@pytest.mark.attack("a stranger's reward")
@COMMANDS
@NESTED
def test_no_command_sends_text_or_key_where_a_folder_says(
    wire: Wire, instruct: Path, tmp_path: Path, command: Callable[..., Any], nested: Callable[[Files], Files]
) -> None:
    release = released(tmp_path / "release", instruct, nested(judge(wire.url)))
    result = command(release)
    assert wire.heard == []
    said = told(result)
    assert (
        f"would send your text and the value of OPENAI_API_KEY to {wire.url}; "
        f"--allow-endpoint {wire.url} --allow-key OPENAI_API_KEY allows it"
    ) in said
    assert KEY not in said
    assert result.exit_code == (0 if command is chat else 1)  # who chats still gets the answer


@pytest.mark.attack("a stranger's reward")
@COMMANDS
def test_each_command_asks_where_the_user_says(
    wire: Wire, instruct: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    release = released(tmp_path / "release", instruct, mixed(judge(wire.url)))
    told(command(release, "--allow-endpoint", wire.url, "--allow-key", "OPENAI_API_KEY"))
    assert SAID in wire.heard[0].decode()
    assert f"authorization: bearer {KEY}\r\n" in wire.heard[0].decode().lower()


@pytest.mark.attack("a stranger's reward")
@pytest.mark.parametrize("flags", [
    ["--allow-endpoint", "{root}"], ["--allow-endpoint", "{url}/v1"], ["--allow-endpoint", "{url}x"],
    ["--allow-endpoint", "{url}"], ["--allow-key", "OPENAI_API_KEY"],
    ["--allow-endpoint", "{url}", "--allow-key", "AWS_SECRET_ACCESS_KEY"],
    ["--allow-endpoint", "https://api.openai.com/v1", "--allow-key", "OPENAI_API_KEY"],
    ["--allow-endpoint", "*"], ["--allow-functions"], ["--allow-template"],
])
def test_what_is_allowed_is_that_address_with_that_key_and_no_other(
    wire: Wire, tmp_path: Path, instruct: Path, flags: list[str]
) -> None:
    release = released(tmp_path / "release", instruct, judge(wire.url))
    root = wire.url.removesuffix("/v1")
    result = chat(release, *(flag.format(url=wire.url, root=root) for flag in flags))
    assert wire.heard == []
    assert "answers are not scored" in told(result)


@pytest.mark.attack("a stranger's reward")
def test_an_address_may_be_asked_without_a_key_and_other_variables_stay_here(
    wire: Wire, tmp_path: Path, instruct: Path
) -> None:
    release = released(tmp_path / "release", instruct, judge(wire.url, key_env=None))
    assert "reward 0.25" in told(chat(release, "--allow-endpoint", f"{wire.url}/", "--allow-key", "OPENAI_API_KEY"))
    assert KEY not in wire.heard[0].decode()


FUNCTION: Files = {
    "reward.json": {"kind": "rules", "rules": [{"rule": "function", "function": "mine.py:score"}]},
    "functions/0.py": "open('it-ran', 'w').close()\ndef score(conversation): return 0.75\n",
}


@pytest.mark.attack("a stranger's reward")
@COMMANDS
@NESTED
def test_no_command_runs_functions_of_a_folder(
    instruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any],
    nested: Callable[[Files], Files],
) -> None:
    monkeypatch.chdir(tmp_path)
    release = released(tmp_path / "release", instruct, nested(FUNCTION))
    result = command(release, "--allow-endpoint", "https://a/v1", "--allow-template")
    assert not Path("it-ran").exists()
    assert "functions/0.py: would run mine.py:score, with all that you yourself may do" in told(result)
    assert "--allow-functions allows it" in told(result)
    told(command(release, "--allow-functions"))
    assert Path("it-ran").exists()


@pytest.mark.attack("a stranger's reward")
@COMMANDS
@NESTED
def test_no_command_renders_a_template_of_a_folder(
    wire: Wire, instruct: Path, tmp_path: Path, command: Callable[..., Any], nested: Callable[[Files], Files]
) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
    release = released(tmp_path / "release", instruct, nested(judge(wire.url, endless)))
    began = time.monotonic()
    said = told(command(release, "--allow-endpoint", wire.url, "--allow-key", "OPENAI_API_KEY"))
    assert time.monotonic() - began < 10
    assert "template.jinja: would run as a template, and is none of Triptych's" in said
    assert wire.heard == []


@pytest.mark.attack("a stranger's reward")
@COMMANDS
@pytest.mark.parametrize("model", ["../instruct", "/etc", "instruct", "HuggingFaceTB/SmolLM2-135M"])
def test_no_command_opens_a_model_that_a_folder_names(
    instruct: Path, tmp_path: Path, command: Callable[..., Any], model: str
) -> None:
    files: Files = {"reward.json": {"kind": "judge", "model": model, "model_digest": "0"}, "template.jinja": SHIPPED}
    release = released(tmp_path / "release", instruct, files)
    assert f"would open the model '{model}'; --allow-model" in told(command(release))


def test_a_judges_model_is_the_one_that_the_user_gives(instruct: Path, tmp_path: Path) -> None:
    files: Files = {"reward.json": {"kind": "judge", "model": "instruct"}, "template.jinja": SHIPPED}
    release = released(tmp_path / "release", instruct, files)
    assert "reward " in told(chat(release, "--allow-model", instruct))
    policy: Files = {"reward.json": {"kind": "judge"}, "template.jinja": SHIPPED}
    release = released(tmp_path / "other" / "release", instruct, policy)
    assert all("error" not in told(command(release)) for command in (chat, evaluate_answers, evaluate_agreement))
    assert "name the release that it is part of" in refused(
        "evaluate", release / "reward", "--comparisons", release.parent / "pairs.jsonl"
    )


@pytest.mark.attack("a stranger's reward")
def test_code_of_answers_runs_for_no_folder(tmp_path: Path, instruct: Path) -> None:
    files: Files = {"reward.json": {"kind": "rules", "rules": [
        {"rule": "tests", "unconfined": True, "seconds": 1e9, "mebibytes": 10**9}
    ]}}
    release = released(tmp_path / "release", instruct, files)
    assert "would run Python code of answers without a sandbox, where this machine has none," in told(chat(release))
    # A rule that needs a reference has none in a chat: the answer is there, and the chat goes on.
    assert "not scored" in told(chat(release, "--allow-functions"))


@pytest.mark.attack("a stranger's reward")
def test_everything_that_is_refused_is_said_at_once(wire: Wire, tmp_path: Path) -> None:
    parts = [{"name": name, "weight": 1} for name in ("a", "b")]
    files: Files = {"reward.json": {"kind": "mixture", "parts": parts}}
    files |= {f"parts/a/{name}": content for name, content in judge(wire.url, "{{ answer }}").items()}
    files |= {f"parts/b/{name}": content for name, content in FUNCTION.items()}
    with pytest.raises(RewardError) as error:
        open_reward(reward_at(tmp_path / "reward", files))
    assert [line.split(": would ")[1][:8] for line in str(error.value).splitlines()[1:]] == [
        "send you", "run as a", "run mine"
    ]


@pytest.mark.attack("a stranger's reward")
@pytest.mark.parametrize("claim", [{"trusted": True}, {"own": True}, {"trust": {"functions": True}}])
def test_a_folder_cannot_say_of_itself_that_it_is_ones_own(tmp_path: Path, claim: dict[str, Any]) -> None:
    content = FUNCTION["reward.json"]
    assert isinstance(content, dict)
    files = FUNCTION | {"reward.json": content | claim}
    with pytest.raises(RewardError, match=r"reward\.json: cannot be used"):
        open_reward(reward_at(tmp_path / "runs/mine/artifacts/round-1-reward", files))


@pytest.mark.parametrize(("rule", "message"), [
    ({"rule": "exat"}, "rules.0: rule must be one of exact, "),
    ({"rule": "exat"}, ", got 'exat'; did you mean exact?"),
    ({"rule": "length", "most": "few"}, "rules.0.most: must be a whole number at least 0, got 'few'"),
    ({"rule": "length", "mst": 3}, "rules.0.mst: unknown field; did you mean most?"),
])
def test_a_misspelt_rule_is_named_with_the_nearest(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    folder = reward_at(tmp_path / "rules", {"reward.json": {"kind": "rules", "rules": [rule]}})
    with pytest.raises(RewardError, match=re.escape(message)):
        open_reward(folder)


@pytest.mark.attack("a stranger's reward")
@pytest.mark.parametrize("place", ["runs/mine/release", "runs/mine", "mine"])
def test_a_run_that_somebody_gave_you_is_data(
    wire: Wire, instruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    released(tmp_path / "runs/mine/release", instruct, judge(wire.url))
    (tmp_path / "runs/mine/ledger.jsonl").write_text("")
    (tmp_path / "runs/mine/recipe.yaml").write_text(f"reward: {{kind: judge, endpoint: {{url: {wire.url}, model: m}}}}")
    assert "--allow-endpoint" in told(call("chat", place, "--max-tokens", 4, typed=f"{SAID}\n"))
    assert wire.heard == []


def kept(folder: Path, config: JudgeReward | RulesReward, sources: dict[str, Path]) -> Path:
    (folder / "output").mkdir(parents=True)
    context = StageContext(folder / "output", folder, Silent(), 1, 60.0)
    if isinstance(config, JudgeReward):
        keep_judge(context, config, sources)
    else:
        keep_rules(context, config, sources)
    return folder / "output"


@pytest.mark.attack("a stranger's reward")
def test_an_artifact_of_ones_own_does_what_the_recipe_names_and_nothing_else(wire: Wire, tmp_path: Path) -> None:
    config = JudgeReward.model_validate({"endpoint": {"url": wire.url, "model": "m", "key_env": "OPENAI_API_KEY"}})
    artifact = kept(tmp_path / "judge", config, {})
    trust = Trust.in_recipe(MixtureReward.model_validate(
        {"parts": [{"name": "a", "weight": 1, "reward": config.model_dump()}]}
    ).within)
    row = Conversation(Prompt(user(SAID)), "answer")
    assert open_reward(artifact, trust=trust).score([row]) == [0.25]
    told = (artifact / "reward.json").read_text()
    for edited in (told.replace("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"), told.replace("/v1", "/v2")):
        (artifact / "reward.json").write_text(edited)
        with pytest.raises(RewardError, match="would send your text"):
            open_reward(artifact, trust=trust)
    reward_at(artifact, FUNCTION)
    with pytest.raises(RewardError, match="would run"):
        open_reward(artifact, trust=trust)
    assert len(wire.heard) == 1
    assert replace(trust, functions=True) == Trust.in_recipe([config, RulesReward.model_validate(
        {"rules": [{"rule": "tests"}]}
    )])


def test_a_recipes_own_function_and_template_are_used(tmp_path: Path, wire: Wire) -> None:
    (tmp_path / "mine.py").write_text("def score(conversation): return 0.75\n")
    (tmp_path / "mine.jinja").write_text("From 1 to {{ highest }}? {{ answer }}")
    rules = RulesReward.model_validate({"rules": [{"rule": "function", "function": "mine.py:score"}]})
    config = JudgeReward.model_validate({"endpoint": {"url": wire.url, "model": "m"}, "template": "mine.jinja"})
    row = Conversation(Prompt(user(SAID)), "my answer")
    for each, score in ((rules, 0.75), (config, 0.25)):
        artifact = kept(tmp_path / each.kind, each, {name: tmp_path / name for name in each.named})
        with pytest.raises(RewardError, match="allows it"):
            open_reward(artifact)
        assert open_reward(artifact, trust=Trust.in_recipe([each])).score([row]) == [score]
    assert "From 1 to 5? my answer" in wire.heard[0].decode()


def json_of(**content: Any) -> Files:
    return {"reward.json": content}


def loop(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts/a").symlink_to("..")


def deep(folder: Path) -> None:
    for _ in range(300):
        folder = folder / "parts/a"
        reward_at(folder, json_of(kind="mixture", parts=[{"name": "a", "weight": 1}]))


def member(folder: Path) -> None:
    (folder / "models/0").mkdir(parents=True)


def outside(name: str) -> Callable[[Path], None]:
    """The file is a link to one outside the folder, as a key would be."""

    def link(folder: Path) -> None:
        (folder.parent / "secret").write_text('{"kind": "rules", "rules": [{"rule": "refusal"}]}')
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../secret" if "/" not in name else "../../secret")

    return link


def fifo(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


MIXTURE = json_of(kind="mixture", parts=[{"name": "a", "weight": 1}])
DAMAGED: dict[str, tuple[Files, Callable[[Path], None] | None]] = {
    "members without end": (json_of(kind="ensemble", members=10**9, penalty=1), member),
    "members in thousands of digits": ({"reward.json": f'{{"kind": "ensemble", "members": {"9" * 4000}}}'}, member),
    "no members": (json_of(kind="ensemble", members=0, penalty=1), None),
    "members below none": (json_of(kind="ensemble", members=-1, penalty=1), None),
    "members as text": (json_of(kind="ensemble", members="1", penalty=1), member),
    "a penalty that is no number": ({"reward.json": '{"kind": "ensemble", "members": 1, "penalty": NaN}'}, member),
    "an endless penalty": ({"reward.json": '{"kind": "ensemble", "members": 1, "penalty": 1e999}'}, member),
    "a weight that is no number": ({"reward.json": '{"kind": "mixture", "parts": [{"name": "a", "weight": NaN}]}'},
                                   loop),
    "a part outside": (json_of(kind="mixture", parts=[{"name": "../a", "weight": 1}]), None),
    "a part anywhere": (json_of(kind="mixture", parts=[{"name": "/etc", "weight": 1}]), None),
    "a part with a line's end": (json_of(kind="mixture", parts=[{"name": "a\n", "weight": 1}]), None),
    "a part twice": (json_of(kind="mixture", parts=[{"name": "a", "weight": 1}] * 2), None),
    "no parts": (json_of(kind="mixture", parts=[]), None),
    "a part that is itself": (MIXTURE, loop),
    "parts in parts": (MIXTURE, deep),
    "no part there": (MIXTURE, None),
    "an unknown kind": (json_of(kind="\x1b[2Jmagic"), None),
    "a kind that is a list": (json_of(kind=["judge"]), None),
    "no kind": (json_of(rules=[]), None),
    "a list": ({"reward.json": "[]"}, None),
    "deep lists": ({"reward.json": "[" * 100_000}, None),
    "deep objects": ({"reward.json": '{"kind":' * 100_000}, None),
    "a deep schema": ({"reward.json": '{"kind": "rules", "rules": [{"rule": "json", "json_schema": '
                                      + '{"not": ' * 400 + "{}" + "}" * 400 + "}]}"}, None),
    "digits": ({"reward.json": "1" * 5000}, None),
    "bytes": ({"reward.json": b"\xff\xfe"}, None),
    "nothing": ({"reward.json": ""}, None),
    "too much": ({"reward.json": b" " * (17 << 20)}, None),
    "a FIFO": ({}, fifo("reward.json")),
    "a folder": ({"reward.json/a": ""}, None),
    "a link to nothing": ({}, lambda folder: (folder / "reward.json").symlink_to("nowhere")),
    "a link to itself": ({}, lambda folder: (folder / "reward.json").symlink_to("reward.json")),
    "a device": ({}, lambda folder: (folder / "reward.json").symlink_to("/dev/zero")),
    "a link outside": ({}, outside("reward.json")),
    "a template outside": (json_of(kind="judge"), outside("template.jinja")),
    "a template that waits": (json_of(kind="judge"), fifo("template.jinja")),
    "no template": (json_of(kind="judge"), None),
    "a function outside": (FUNCTION, outside("functions/0.py")),
    "no function": (json_of(kind="rules", rules=[{"rule": "function", "function": "a.py:b"}]), None),
    "a key in the clear": (judge("http://example.org/v1"), None),
    "a variable that is none": (judge("https://example.org/v1", key_env="A B"), None),
    "threads without end": (judge("https://example.org/v1", parallel=10**9), None),
    "a thousand faults": (json_of(kind="rules", rules=[{"rule": "length", "most": "x" * 99}] * 1000), None),
}


@pytest.mark.attack("a stranger's reward")
@pytest.mark.parametrize("what", DAMAGED)
def test_a_folder_that_is_not_as_it_must_be_is_one_clear_error(tmp_path: Path, what: str) -> None:
    files, prepare = DAMAGED[what]
    folder = tmp_path / "reward"
    folder.mkdir()
    reward_at(folder, files)
    if prepare:
        prepare(folder)
    everything = Trust.given(["http://example.org/v1"], ["OPENAI_API_KEY"], functions=True, templates=True)
    began = time.monotonic()
    with pytest.raises(RewardError) as error:
        open_reward(folder, trust=everything, models={"policy": tmp_path})
    assert time.monotonic() - began < 3
    said = str(error.value)
    assert said.startswith(str(folder))
    assert len(said) < 1200
    assert said.isprintable()


def test_a_flag_that_is_no_address_is_said(instruct: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="--allow-endpoint must begin with https"):
        Trust.given(["api.openai.com"])
