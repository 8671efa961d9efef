"""A first recipe for the model and the files that somebody has, set by what a check of it finds."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from triptych.errors import RecipeError
from triptych.preflight.check import Findings, check
from triptych.yaml_edit import write_values

STEP = 64
"""A context is the longest row's tokens, rounded up to a multiple of so many."""

OPENING = """\
# Written by `triptych init`. What it does not say has a default (docs/recipe.md); `triptych check` says what it takes.
"""


def draft(
    folder: Path, model: str, answers: Sequence[str], comparisons: Sequence[str], prompts: Sequence[str],
    schema: Path | None,
) -> str:
    """The text of a recipe.

    Args:
        folder: where it will lie; its files are named from there.
        model: a folder, a `.gguf` file, or a name on the Hub.
        answers: files of conversations to learn from, or names on the Hub, as all files may be.
        comparisons: of what people prefer.
        prompts: to improve on; without any those of the answers.
        schema: a JSON schema, of what an answer must be.

    Raises:
        RecipeError: nothing says what a good answer is, nothing is asked, or the schema is no JSON.
    """
    if not comparisons and schema is None:
        raise RecipeError("nothing says what a good answer is: give --comparisons FILE, or for JSON --schema FILE")
    if not (prompts or answers):
        raise RecipeError("there is nothing to improve on: give --prompts FILE, or --answers FILE")

    def named(name: str) -> str:
        if not Path(name).exists():
            return name
        beside = os.path.relpath(name, folder)
        return os.path.abspath(name) if beside.startswith("../..") else beside

    form = {"kind": "rules", "rules": [{"rule": "json", "json_schema": _read(schema)}]} if schema else None
    again = copy.deepcopy(form)  # the same object twice would be written as an alias
    recipe: dict[str, Any] = {
        "name": folder.resolve().name, "base": {"from": named(model)},
        "instruct": {"data": [named(file) for file in answers]} if answers else "none",
    }
    if comparisons:
        recipe["feedback"] = [{"file": named(file)} for file in comparisons]
    if form and comparisons:
        parts = {"people": {"kind": "pairwise"}, "form": form}
        recipe["reward"] = {
            "kind": "mixture", "parts": [{"name": name, "weight": 1, "reward": part} for name, part in parts.items()],
        }
        recipe["gate"] = {"judge": again, "preferences": {"share_of_feedback": 0.5}}
    elif form:
        recipe["reward"] = form | {"rules": [*form["rules"], {"rule": "repetition", "weight": 0.2}]}
        recipe["gate"] = {"judge": again}
    recipe["improve"] = {"prompts": [named(file) for file in prompts or answers]}
    recipe["release"] = {"version": "0.1", "license": "other"}
    return OPENING + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)


def settle(path: Path) -> tuple[list[str], Findings]:
    """Writes into a drafted recipe what its data and this machine ask for, by what a check finds.

    Returns:
        The settings that were written, as of `--set`, and what is found now.
    """
    findings = check(path)
    settings = [*_context(findings), *findings.settings]
    if settings:
        findings = check(path, settings)
    if findings.problems:  # comparisons that are too few to prove a reward are enough to begin with
        lenient = [*settings, "reward.audit.required=false"]
        if not (reported := check(path, lenient)).problems:
            settings, findings = lenient, reported
    write_values(path, settings)
    return settings, findings


def _context(findings: Findings) -> list[str]:
    """Room for the longest conversation, where the usual one leaves some out."""
    report = findings.lengths.get("demonstrations")
    if report is None or not report.over:
        return []
    wanted = -(-report.longest // STEP) * STEP
    return [f"instruct.context={min(wanted, findings.positions or wanted)}"]


def _read(schema: Path) -> Any:
    """A JSON schema, as it stands in a recipe."""
    try:
        return json.loads(schema.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{schema}: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{schema}: is no JSON: {error}") from None
