"""Which prompts are asked for feedback."""

from __future__ import annotations

from triptych.data.folder import DataFolder
from triptych.errors import RunError
from triptych.records import Prompt
from triptych.storage import Folder


def prompts_to_ask(data: Folder) -> list[Prompt]:
    """The prompts whose answers are compared while the run goes on.

    Raises:
        RunError: there is none.
    """
    if pool := DataFolder(data).prompts("feedback").read_any():
        return pool
    raise RunError(
        "no prompt is left to ask for feedback: the gate's judge has comparisons of every one that is improved on; "
        "give improve.prompts of their own, or lower gate.judge.share_of_feedback"
    )
