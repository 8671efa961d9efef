"""Nothing that a model, a file or a server wrote steers the terminal, or is read as markup."""

from __future__ import annotations

import ast
import io
import json
import time
from pathlib import Path

import pytest
from rich.text import Text
from typer.testing import CliRunner

import triptych
from test_cli import call, refused
from test_cli import release as release
from test_cli import runs as runs
from triptych.cli import terminal
from triptych.display import Display
from triptych.pipeline.ledger import Ledger
from triptych.progress import Terminal

SOURCE = Path(triptych.__file__).parent
PRINTING = {"cli/terminal.py", "progress.py", "display.py"}
HOSTILE = [
    "[/x]", "[red]x", "[link=https://evil.example]x[/link]", ":smile:", "\x1b[2J", "\x1b]0;mine\x07", "\x9b31m",
    "\x1b]52;c;ZXZpbA==\x07", "a\r\x1b[Kb", "\u202eabc", "\x08\x08\x08",
]
NAME = "".join(HOSTILE) + "\nOK: all is well"


def steers(text: str) -> bool:
    """Whether anything is left by which a terminal does something."""
    return any(letter in text for letter in "\x1b\x07\x08\r\x9b\u202e\x00")


def test_only_two_files_print() -> None:
    """A call of `print`, of a console, or of a standard stream elsewhere would be a way round."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name in PRINTING or name.startswith("reward/sandboxed/"):  # there standard output is a pipe
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"print", "Console", "typer.echo", "typer.secho", "click.echo"} or called.endswith(
                    (".print", "stdout.write", "stderr.write")
                ):
                    found.append(f"{name}:{node.lineno}: {called}")
    assert found == []


@pytest.mark.attack("terminal")
@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("way", ["line", "passage", "cell", "heading", "error", "styled"])
def test_text_of_others_is_printed_as_it_is(
    text: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"<{text}>"
    if way == "line":
        terminal.say(given)
    elif way == "passage":
        terminal.quote(("a: ", "bold"), given)
    elif way == "styled":
        terminal.say((given, "bold red"))
    elif way == "error":
        terminal.show_error(given)
    else:
        table = terminal.table_of(given if way == "heading" else "name")
        table.add_row("x" if way == "heading" else given)
        terminal.show(table)
    shown = "".join(capsys.readouterr())
    assert not steers(shown)
    assert "<" in shown
    assert ">" in shown
    assert (given in shown) == (text.isprintable()), "markup and emoji stay as they were written"


@pytest.mark.attack("terminal")
def test_styles_of_ours_stay_on_a_terminal() -> None:
    file = io.StringIO()
    Display(file=file, force_terminal=True, color_system="standard").print(Text("a\x1b[2J", "red"))
    assert file.getvalue() == "\x1b[31ma\x1b[0m\n"


@pytest.mark.attack("terminal")
def test_a_second_line_does_not_pass_for_one_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(f"note: {NAME}")
    terminal.show_error(NAME)
    assert not any(line.startswith("OK") for line in "".join(capsys.readouterr()).splitlines())


@pytest.mark.attack("terminal")
@pytest.mark.parametrize("text", HOSTILE)
def test_progress_prints_names_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Terminal(every=0.0)
    progress.stage(f"<{text}>", f"({text})")
    progress.step(1, 2, text, 3, **{text: 1.0})
    progress.say(f"<{text}>")
    shown = capsys.readouterr().err
    assert not steers(shown)
    assert shown.count("<") == 3
    assert shown.count(text) == (5 if text.isprintable() else 0)


@pytest.mark.attack("terminal")
def test_the_line_that_is_rewritten_holds_no_other_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Terminal()
    progress.live = True
    progress.console = Display(file=io.StringIO(), force_terminal=True)
    progress.every = 0.0
    monkeypatch.setattr(progress, "name", NAME)
    progress.step(1, 2, "tokens", 3)
    line = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert line.startswith("\r\x1b[2K        ")
    assert not steers(line.removeprefix("\r\x1b[2K"))


def test_the_rate_of_a_stages_second_answers_is_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Terminal(every=0.0)
    progress.stage("test")
    for done, seen, moment in ((0, 0, 100.0), (4, 400, 104.0), (0, 0, 200.0), (2, 400, 202.0)):
        now = moment
        progress.step(done, 4, "tokens", seen)
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()[1:]]
    assert lines == ["test 0/4", "test 4/4 100 tokens/s", "test 0/4", "test 2/4 200 tokens/s 2.0 s left"]


@pytest.mark.attack("terminal")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_ledger_names_stages_that_stay_text(runs: Path, text: str) -> None:
    ledger = Ledger(runs / "mine" / "ledger.jsonl")
    (runs / "mine").mkdir()
    ledger.add("started", f"<{text}>", fingerprint=text)
    result = call("status", "mine")
    assert result.exit_code == 0, result.output
    assert not steers(result.output)


@pytest.mark.attack("terminal")
@pytest.mark.parametrize("text", HOSTILE)
def test_a_group_s_name_does_not_end_the_audit(tmp_path: Path, release: Path, text: str) -> None:
    data = tmp_path / "data.jsonl"
    rows = [
        {"prompt": f"say {n}", "chosen": f"good {n}", "rejected": f"bad {n}", "task": f"<{text}>"} for n in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("audit", release, "--data", data, "--output", tmp_path / "out")
    assert isinstance(result.exception, SystemExit), result.exception
    assert not steers(result.output + result.stderr)
    assert "ordered as labelled" in result.stdout


@pytest.mark.attack("terminal")
@pytest.mark.parametrize("text", HOSTILE)
def test_names_in_errors_stay_text(tmp_path: Path, text: str) -> None:
    name = f"<{text}>"
    for command in (["status", name], ["verify", tmp_path / name], ["chat", name], ["check", tmp_path / name]):
        assert not steers(refused(*command))


@pytest.mark.attack("terminal")
def test_chat_prints_an_answer_without_what_steers(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triptych.engine.rollout import Policy
    from triptych.records import Rollout

    def write(self: Policy, prompts: list[object], *_: object, **__: object) -> list[list[Rollout]]:
        return [[Rollout(prompts[0], (1,), (1,), (0.0,), NAME, True)]]  # type: ignore[arg-type]

    monkeypatch.setattr(Policy, "write", write)
    result = CliRunner().invoke(triptych.cli.app, ["chat", str(release)], input="Hi\n")
    assert result.exit_code == 0, result.output
    assert not steers(result.output)
    assert "[/x][red]x[link=https://evil.example]x[/link]:smile:" in result.output
