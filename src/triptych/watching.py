"""A run that goes on by itself: a round starts whenever people have added enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from triptych.errors import AuditError, RecipeError, RunError, WaitingError
from triptych.people.inbox import Inbox
from triptych.people.questions import Form
from triptych.recipe import Recipe, load


@dataclass
class Watch:
    """A recipe whose rounds wait for people.

    Attributes:
        carry_out: runs the cycle of a recipe.
        at_least: new lines that start a round.
        every: seconds between two looks at the file.
        say, complain: are told what it waits for, and which reward model failed its audit.
    """

    path: Path
    overrides: Sequence[str]
    runs: Path
    carry_out: Callable[[Recipe], object]
    at_least: int
    every: float
    say: Callable[[str], None]
    complain: Callable[[str], None]

    @cached_property
    def recipe(self) -> Recipe:
        """As it was when the watch began."""
        return load(self.path, self.overrides)

    @cached_property
    def form(self) -> Form:
        """Of what people add.

        Raises:
            RecipeError: the recipe names no file that they add to.
        """
        form = self.recipe.people_give
        if form is None:
            raise RecipeError("watch needs a file that people add lines to: feedback: [{people: labels.jsonl}]")
        return form

    @cached_property
    def inbox(self) -> Inbox:
        """What they have added."""
        assert self.recipe.people is not None
        return Inbox.of_run(self.runs / self.recipe.name, self.recipe.people.path, self.form)

    def keep(self, rounds: int | None = None) -> None:
        """Runs round after round, each when people have added enough; never ends by itself without `rounds`.

        Raises:
            RecipeError: the recipe cannot be watched.
            RunError: there are several ranks.
            TriptychError: any that the cycle raises, but for people at a gate, who are waited for.
        """
        inbox, form = self.inbox, self.form
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RunError("watch waits in one process; for a round on several ranks give triptych run --ranks")
        # The last round may not have come to its end; before the first people must be asked.
        wanted = self.at_least + self._decided(inbox.rounds)
        while rounds is None or inbox.rounds < rounds:
            shown = ""
            while (count := inbox.waiting) < wanted:
                now = f"round {inbox.rounds + 1}: {count} of {wanted} new {form} in {inbox.file}"
                if note := inbox.note:
                    now += f"\n{note}"
                if now != shown:
                    self.say(now)
                shown = now
                time.sleep(self.every)
            wanted = self.at_least + self._decided(inbox.rounds + 1)

    def _decided(self, round: int) -> int:
        """Every round up to this one, however long people take at a gate; how many lines it gave back."""
        while True:
            verdicts = self._verdicts()
            try:
                return self._carried_out(round)
            except WaitingError as error:
                self.say(str(error))
                while self._verdicts() == verdicts:
                    time.sleep(self.every)

    def _carried_out(self, round: int) -> int:
        try:
            self.carry_out(load(self.path, [*self.overrides, f"improve.rounds={round}"]))
        except AuditError as error:
            if self.inbox.rounds == 0 or self.form != "comparisons":  # others would not mend it
                raise
            self.complain(str(error))
            return self.inbox.give_back()
        return 0

    def _verdicts(self) -> int | None:
        """When somebody last added to the verdicts at the gate."""
        file = self.recipe.gate.people.path if self.recipe.gate.people else None
        return file.stat().st_mtime_ns if file and file.exists() else None
