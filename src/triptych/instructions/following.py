"""Which of a prompt's instructions an answer follows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from triptych.deadline import within
from triptych.instructions.registry import instruction
from triptych.records import Check, Prompt, conclusion

SECONDS = 5.0
"""How long an instruction may look at one answer; one that has not said yes by then is not followed."""


def followed(prompt: Prompt, answer: str) -> list[bool]:
    """For each of the prompt's instructions whether the answer follows it; an empty answer follows none."""
    return [_follows(check, answer) for check in prompt.checks]


def unfollowed(prompt: Prompt, answer: str) -> list[Check]:
    """Those of the prompt's instructions that the answer does not follow; it is given limits of time."""
    return [check for check in prompt.checks if not _in_time(partial(_follows, check, answer))]


def followed_by_kind(prompt: Prompt, answer: str) -> dict[str, float]:
    """For each kind of the prompt's instructions the share that the answer follows; it is given limits of time."""
    outcomes: dict[str, list[bool]] = {}
    for check in prompt.checks:
        outcomes.setdefault(check.kind, []).append(_in_time(partial(_follows, check, answer)))
    return {kind: sum(members) / len(members) for kind, members in outcomes.items()}


def _follows(check: Check, answer: str) -> bool:
    concluded = conclusion(answer)  # how a model comes to its answer was not asked to have a form
    return bool(concluded.strip()) and instruction(check.kind, check.arguments).follows(concluded)


def _in_time(question: Callable[[], bool]) -> bool:
    try:
        return within(SECONDS, question)
    except Exception:  # whatever an answer brings about
        return False
