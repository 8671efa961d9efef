"""What a user may name as a reward: each name opens the scorer that it means, and a wrong one is one clear error."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

import triptych
from test_check import rows, tiny_model, tokenizer
from test_cli import call
from test_docs import DOCS
from test_endpoint import Wire, completion
from triptych.engine import models
from triptych.errors import TriptychError
from triptych.people.verdicts import Panel
from triptych.records import Conversation, Prompt, user
from triptych.reward.judge import LanguageJudge
from triptych.reward_names import open_named

KEY = "sk-of-mine"
LENGTH = "{rule: length, most: 3}"
LOUD = 'def loud(conversation):\n    return float(conversation.answer.count("!"))\n'
ROW = Conversation(Prompt(user("Why?")), "so it is !!")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "writer")


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    wire = Wire()
    wire.says = lambda: iter([completion("A")])
    yield wire
    wire.socket.close()


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of answers to the same 12 prompts, the second ones shorter."""
    long, short = (
        rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{i}?", "completion": answer} for i in range(12)])
        for name, answer in (("long", "one two three four"), ("short", "one two three"))
    )
    return long, short


def settings(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "judge.yaml"
    path.write_text(text)
    return path


def test_settings_in_yaml_are_a_recipes_and_name_files_beside_them(tmp_path: Path) -> None:
    rules = settings(tmp_path / "judges", f"kind: rules\nrules: [{LENGTH}, {{rule: function, function: f.py:loud}}]\n")
    (tmp_path / "judges/f.py").write_text(LOUD)
    opened = triptych.open_reward(rules)
    assert opened.score([ROW]) == [2.0]
    assert opened.identity == triptych.open_reward(rules).identity
    part = f"{{name: a, weight: 3, reward: {{kind: rules, rules: [{LENGTH}]}}}}"
    mixture = settings(tmp_path / "judges", f"kind: mixture\nparts: [{part}]\n")
    short = Conversation(ROW.prompt, "so it is")
    assert triptych.open_reward(mixture).score([ROW, short]) == [0.0, 3.0]


@pytest.mark.parametrize(("text", "message"), [
    ("kind: rules\nrules:\n  - {rule: lenth}\n", "judge.yaml:3: rules.0: rule must be one of "),
    ("kind: rules\nrules:\n  - {rule: lenth}\n", ", got 'lenth'; did you mean length?"),
    ("knd: rules\n", "judge.yaml:1: knd: unknown field; did you mean kind?"),
    ("kind: pairwise\n", "judge.yaml: holds a reward that is trained, which a command does not"),
    ("kind: judge\n", "judge.yaml: asks the policy itself, which is not here; name a model or an endpoint"),
    ("kind: judge\nmodel: none\n", "none: there is no such file, and "),
])
def test_wrong_settings_are_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TriptychError, match=re.escape(message)) as raised:
        triptych.open_reward(settings(tmp_path, text))
    assert "at least 1, got 0" not in str(raised.value)  # the list has an entry, which is wrong


def test_the_gate_the_audit_and_an_evaluation_take_settings(
    tmp_path: Path, answers: tuple[Path, Path], writer: Path
) -> None:
    long, short = answers
    judge = settings(tmp_path, f"kind: rules\nrules: [{LENGTH}]\n")
    result = call("gate", long, short, "--judge", judge, "--out", tmp_path / "gate")
    assert (result.exit_code, "the candidate is preferred by rules: win rate 100.0%" in result.stdout) == (0, True)
    compared = [{"prompt": f"{i}?", "chosen": "a", "rejected": "a b c d"} for i in range(9)]
    pairs = rows(tmp_path / "pairs.jsonl", compared)
    result = call("audit", judge, "--data", pairs, "--output", tmp_path / "audit")
    assert "only 9 held-out prompts, where 30 are the least that count: give more comparisons" in " ".join(
        result.stderr.split()
    )
    assert "raise the share" not in result.stderr
    assert json.loads((tmp_path / "audit/audit.json").read_text())["accuracy"] == 1
    prompts = rows(tmp_path / "prompts.jsonl", [{"prompt": "Why?"}])
    result = call(
        "evaluate", writer, "--prompts", prompts, "--reward", judge, "--max-tokens", 3, "--output", tmp_path / "n.json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "n.json").read_text())["reward"] == 1
    result = call("evaluate", judge, "--comparisons", pairs)
    assert re.search(r"accuracy +1\b", result.stdout), result.output


def test_a_language_model_alone_compares_at_the_gate_and_scores_elsewhere(
    tmp_path: Path, answers: tuple[Path, Path], writer: Path
) -> None:
    opened = open_named(writer)
    assert isinstance(opened, LanguageJudge)
    assert (opened.name, opened.config.ask) == ("writer", "score")
    result = call("gate", *answers, "--judge", writer, "--out", tmp_path / "gate")
    assert result.exit_code in (0, 1, 2), result.output
    record = json.loads((tmp_path / "gate/gate.json").read_text())
    assert (record["judge"], record["decided_by"]) == ("writer", "writer")
    assert record["judge_counts"]["asked"] == 12
    assert "inconsistent" in record["judge_counts"]  # it compared, in both orders


@pytest.mark.parametrize("flags", [[], ["--allow-key", "OPENAI_API_KEY"]])
def test_an_address_is_asked_with_the_key_that_is_named(
    tmp_path: Path, wire: Wire, answers: tuple[Path, Path], flags: list[str]
) -> None:
    result = call("gate", *answers, "--judge", f"{wire.url}#great", *flags, "--out", tmp_path / "gate")
    assert result.exit_code == 2, result.output  # who always replies A prefers neither
    record = json.loads((tmp_path / "gate/gate.json").read_text())
    assert (record["judge"], record["judge_counts"]["inconsistent"]) == ("great", 12)
    heard = b"".join(wire.heard).decode()
    assert '"model": "great"' in heard
    assert (KEY in heard) == bool(flags)
    assert KEY not in result.output


@pytest.mark.parametrize(("name", "flags", "message"), [
    ("{url}", [], "name the model that is asked there too, as in {url}#MODEL"),
    ("http://example.org/v1#m", ["--allow-key", "OPENAI_API_KEY"], "would be sent a key in the clear"),
    ("{url}#m", ["--allow-key", "A", "--allow-key", "B"], "one key is sent there; give --allow-key once"),
    ("nothing", [], "nor settings in a .yaml file, nor URL#MODEL"),
    ("nothing.yaml", [], "nothing.yaml"),
])
def test_what_is_no_reward_ends_the_gate_with_its_own_exit_code(
    tmp_path: Path, wire: Wire, answers: tuple[Path, Path], name: str, flags: list[str], message: str
) -> None:
    result = call("gate", *answers, "--judge", name.format(url=wire.url), *flags, "--out", tmp_path / "gate")
    assert result.exit_code == 3
    assert message.format(url=wire.url) in " ".join(result.stderr.split())
    assert wire.heard == []
    assert not (tmp_path / "gate").exists()


def hub(root: Path, folder: Path, name: str) -> None:
    """A model in the Hub's cache under `root`: its files are links into `blobs`."""
    place = root / f"models--someone--{name}"
    revision = place / "snapshots" / ("0" * 40)
    (place / "blobs").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    revision.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copyfile(file, place / "blobs" / file.name)
        (revision / file.name).symlink_to(Path("../../blobs") / file.name)


def test_models_and_rewards_are_taken_from_the_hub(
    tmp_path: Path, writer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(models.load_reward(writer, fresh=True, seed=1), tokenizer(), tmp_path / "scorer")
    hub(tmp_path / "hub", writer, "writer")
    hub(tmp_path / "hub", tmp_path / "scorer", "scorer")
    monkeypatch.setattr("triptych.engine.hub.snapshot_download", lambda name, **more: snapshot_download(
        name, **more, cache_dir=tmp_path / "hub", local_files_only=True
    ))
    prompts = rows(tmp_path / "prompts.jsonl", [{"prompt": f"{i}?"} for i in range(8)])
    given = ("--prompts", prompts, "--max-tokens", 3, "--temperature", 1)
    result = call("gate", writer, "someone/writer", *given, "--judge", "someone/scorer", "--out", tmp_path / "gate")
    assert result.exit_code in (0, 1, 2), result.output
    assert json.loads((tmp_path / "gate/gate.json").read_text())["judge"] == "reward model"
    judged = triptych.gate(
        writer, "someone/writer", prompts, judge="someone/writer", max_tokens=3, temperature=1,
    )
    assert judged.judge == "writer"
    assert triptych.open_reward("someone/scorer").score([ROW]) == triptych.open_reward(tmp_path / "scorer").score([ROW])
    missing = call("gate", writer, "someone/else", *given, "--judge", "someone/scorer", "--out", tmp_path / "x")
    assert missing.exit_code == 3
    assert "someone/else: there is no folder of this name, and the Hugging Face Hub did not give it" in missing.stderr


def test_the_commands_of_the_page_decide(
    tmp_path: Path, writer: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    section = page.partition("## The gate without a recipe")[2].partition("\n## ")[0]
    scripts = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for script in scripts:
        for name, text in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", script, re.DOTALL | re.MULTILINE):
            Path(name).write_text(text)
    for name in ("old", "new", "writer"):
        shutil.copytree(writer, f"models/{name}")
    models.save(models.load_reward(writer, fresh=True, seed=1), tokenizer(), tmp_path / "judge")
    settings = json.loads(Path("models/old/generation_config.json").read_text()) | {"max_new_tokens": 3}
    for name in ("old", "new"):
        Path(f"models/{name}/generation_config.json").write_text(json.dumps(settings))
    asked = [{"prompt": f"{i}?", "checks": [{"kind": "punctuation:no_comma"}]} for i in range(12)]
    rows(tmp_path / "questions.jsonl", asked)
    rows(tmp_path / "old.jsonl", [row | {"completion": "one, two"} for row in asked])
    rows(tmp_path / "new.jsonl", [{"prompt": row["prompt"], "completion": "one two"} for row in asked])
    commands = [
        shlex.split(line.replace("http://127.0.0.1:8000/v1", wire.url)) for script in scripts
        for line in script.splitlines() if line.startswith("triptych gate")
    ]
    assert len(commands) == 6
    codes = []
    for _, *command in commands:
        codes.append(call(*command).exit_code)
        if codes[-1] == 4:
            panel = Panel(Path("gates/people/questions.jsonl"), Path("gates/people/verdicts.jsonl"))
            for question in panel.open.values():
                panel.add(question, "first" if question.first == "one two" else "second")
    assert codes[0] in (0, 1, 2)  # two equal models
    assert codes[1:] == [0, codes[2], 2, 4, 0]
    assert codes[2] in (0, 1, 2)  # an untrained judge
    assert json.loads(Path("gates/rules/gate.json").read_text())["judge_after"] == pytest.approx(1.2)
