"""The commands of docs/parts.md do what the page says, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from test_check import rows, tiny_model, write_recipe
from test_cli import call
from triptych.engine.models import load_reward, load_tokenizer, save

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parts.md"
BRIEF = ("steps=2", "prompts_per_step=4", "max_tokens=4", "eval_every=1", "eval_prompts=8", "learning_rate=1e-3")
SAMPLED = ("group_size=2",)
RUN = (
    *(f"improve.{setting}" for setting in (*BRIEF, *SAMPLED)), "reward.audit.required=false", "decoding.max_tokens=4",
    "decoding.temperature=1", "evaluate.prompts=10", "evaluate.best_of=2", "gate.prompts=20",
)
UNREWARDED = tuple(setting for setting in RUN if not setting.startswith("reward."))
SAID: dict[str, tuple[tuple[str, ...], int | None, str]] = {
    "triptych reward preferences.jsonl --from models/mine --out reward": (("epochs=1",), 0, "triptych audit reward"),
    "triptych audit reward --data reward/heldout.jsonl --training reward/learnt.jsonl": ((), None, "audit.html"),
    "triptych improve models/mine --reward reward --prompts questions.jsonl --out better": (
        (*BRIEF, *SAMPLED), 0, "better is made"),
    "triptych gate models/mine better --judge other-reward --prompts other-questions.jsonl": (
        (), None, "gate/gate.html"),
    "triptych improve models/mine --method dpo --comparisons preferences.jsonl --out by-pairs": (
        BRIEF, 0, "by-pairs is made"),
    "triptych improve models/mine --method kto --thumbs thumbs.jsonl --out by-thumbs": (BRIEF, 0, "by-thumbs is made"),
    "triptych check taken.yaml": ((), 0, "taken.yaml is fine"),
    "triptych run taken.yaml": (RUN, 0, "runs/taken/report.html"),
    "triptych check pairs.yaml": ((), 0, "pairs.yaml is fine"),
    "triptych run pairs.yaml": (UNREWARDED, 0, "runs/pairs/report.html"),
    "triptych run family.yaml": (RUN, 0, "runs/family/report.html"),
}
"""Each command of the page: settings that make it brief, its exit code (None where that is the tiny model's), and what
it prints in any case."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_runs_what_is_tried() -> None:
    assert [line for block in blocks("sh") for line in block.splitlines()] == list(SAID)


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "model").rename(tmp_path / "models" / "mine")
    for name, seed in (("models/their-reward", 1), ("other-reward", 2)):
        model = tiny_model(tmp_path / "start")
        save(load_reward(model, fresh=True, seed=seed), load_tokenizer(model), tmp_path / name)
    rows(tmp_path / "other-questions.jsonl", [{"prompt": f"And what of {i}?"} for i in range(30)])
    rows(tmp_path / "thumbs.jsonl", [
        {"prompt": f"Is it {i}?", "completion": text, "label": text == "Yes."}
        for i in range(40) for text in ("Yes.", "No.")
    ])
    for block in blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command, (settings, code, said) in SAID.items():
        given = [word for setting in settings for word in ("--set", setting)]
        done = call(*shlex.split(command)[1:], *given)
        assert code is None or done.exit_code == code, done.output
        assert said in done.output
    curve = [json.loads(line) for line in (tmp_path / "by-pairs" / "curve.jsonl").read_text().splitlines()]
    assert all("validation_loss" in row and "validation_reward" not in row for row in curve)
    for run in ("taken", "family"):
        release = tmp_path / "runs" / run / "release"
        assert {path.name for path in release.iterdir() if path.is_dir()} == {"base", "instruct", "reward"}
        assert (release / "reward" / "model.safetensors").is_file()
    release = tmp_path / "runs" / "pairs" / "release"
    assert {path.name for path in release.iterdir() if path.is_dir()} == {"base", "instruct"}
    assert "runs/pairs/release holds what its manifest lists" in call("verify", "runs/pairs/release").output
