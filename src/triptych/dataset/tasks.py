"""A task's prompts, read and kept apart from what is trained on.

Prompts that a run learns from or chooses by are left out of the task, and not the other way round: so a task can be
added or changed behind a run, and nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from triptych.data.folder import DataFolder
from triptych.data.normal_form import normalised
from triptych.data.separation import COMPARED, OTHERS, PROVING, RATED, stored
from triptych.data.splits import PromptedRecord, prompt_of, taught_forms
from triptych.dataset.preparation import EXAMPLES, DataPreparation, of_different_turns, read_all
from triptych.errors import DataError, Fault
from triptych.pipeline.result import Result
from triptych.pipeline.stage import StageContext, alone
from triptych.storage import Folder

USED = (*(name for name in PROVING if name != "prompts_test"), *COMPARED, *RATED, *OTHERS)
"""The parts of a run's data that it learns from or chooses by."""


class TaskPrepared(Result):
    """How many prompts a task has, and how many were left out.

    Attributes:
        prompts_used: left out, for the run learns from them or chooses by them.
        left_out_lines: where the first of these stand.
    """

    prompts: int
    prompts_used: int = 0
    duplicate_prompts: int = 0
    wrong_rows_left_out: int = 0
    left_out_lines: list[str] = Field(default_factory=list)

    @property
    def left_out(self) -> list[str]:
        """What was left out, and why."""
        lines = []
        if self.prompts_used:
            places = ", ".join(self.left_out_lines) + (", ..." if self.prompts_used > EXAMPLES else "")
            lines.append(
                f"{self.prompts_used:,} prompts are among those that the run learns from or chooses by, and are left "
                f"out ({places})"
            )
        if self.duplicate_prompts:
            lines.append(f"{self.duplicate_prompts:,} prompts have the same turns as an earlier one and are left out")
        return lines


@alone
def prepare_task(
    context: StageContext, config: DataPreparation, sources: Mapping[str, str | Path], data: Folder
) -> TaskPrepared:
    """Writes the prompts as those of a test, and beside them the run's worked examples for the Base.

    Args:
        config: which file; of the rest what holds for prompts.
        data: the run's own.

    Raises:
        DataError: every wrong row, unless they are to be skipped; or no prompt is left.
    """
    records = read_all(config, sources)
    for fault in records.skipped:
        context.progress.say(f"left out: {fault}")
    for note in records.notes:
        context.progress.say(f"data: {note}")
    (source,) = config.prompts
    prompts, repeated = of_different_turns(records.prompts)
    forms = {asked for rows in stored(data, *USED).values() for row in rows for asked in _forms(row)}
    used = [prompt for prompt in prompts if _forms(prompt) & forms]
    kept = [prompt for prompt in prompts if not _forms(prompt) & forms]
    if not kept:
        what = f"none is left: the run learns from all of these {len(prompts):,}, or chooses by them; give others"
        raise DataError([Fault(source.file, None, "prompts", what)])
    output = DataFolder(context.output)
    output.prompts("test").write(kept)
    output.examples.write(DataFolder(data).examples.read_any())
    prepared = TaskPrepared(
        prompts=len(kept), prompts_used=len(used), duplicate_prompts=len(repeated),
        wrong_rows_left_out=len(records.skipped),
        left_out_lines=[records.places[id(prompt)] for prompt in used[:EXAMPLES]],
    )
    for line in prepared.left_out:
        context.progress.say(f"{source.file}: {line}")
    return prepared


def _forms(record: PromptedRecord) -> set[str]:
    """The normal forms of what the record teaches, with and without instructions that were added to its prompt.

    Where a file holds such an instruction as a part of its text, nobody knows that it was added.
    """
    return {*taught_forms(record), normalised(prompt_of(record))}
