"""Triptych runs the development cycle of a large language model and releases a family: Base,
Instruct and, where people's preferences are learnt, Reward.

The names below are the Python interface; each is loaded when it is first used.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if "OMP_WAIT_POLICY" not in os.environ:
    # Read when torch is loaded. By default a thread of GNU OpenMP spins for milliseconds at every barrier, and keeps
    # the core from the very thread that it waits for where other work is on the machine (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if TYPE_CHECKING:
    from triptych.api import (
        audit,
        compare,
        evaluate,
        export,
        gate,
        improve,
        merge,
        open_reward,
        push,
        run,
        synthesise,
        train_reward,
        train_sft,
    )
    from triptych.engine.chat import Chat
    from triptych.engine.rollout import Policy
    from triptych.engine.sampling import Sampling
    from triptych.errors import TriptychError
    from triptych.recipe import Recipe
    from triptych.records import Conversation, Prompt

__version__ = "0.1.0"

__all__ = [
    "Chat",
    "Conversation",
    "Policy",
    "Prompt",
    "Recipe",
    "Sampling",
    "TriptychError",
    "audit",
    "compare",
    "evaluate",
    "export",
    "gate",
    "improve",
    "merge",
    "open_reward",
    "push",
    "run",
    "synthesise",
    "train_reward",
    "train_sft",
]

_MODULES = {
    "Chat": "engine.chat", "Policy": "engine.rollout", "Sampling": "engine.sampling", "TriptychError": "errors",
    "Conversation": "records", "Prompt": "records", "Recipe": "recipe",
}
"""Where a name comes from that is not of `api`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'triptych' has no attribute {name!r}")
    return getattr(import_module(f"triptych.{_MODULES.get(name, 'api')}"), name)


class _Interface(ModuleType):
    """This module, where `audit`, `evaluate` and `improve` are the functions, not the folders that hold their parts."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):  # an import binds a folder to its name
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Interface
