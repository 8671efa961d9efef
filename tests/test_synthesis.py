"""Instructions that a model writes: by Magpie and Self-Instruct, filtered, answered, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import triptych
from triptych.data.files import read_conversations, write
from triptych.data.template import prompt_tokens, question_opening_tokens
from triptych.dataset.synthesis import ANOTHER, TOGETHER, Synthesis, synthesise
from triptych.engine.models import load_tokenizer
from triptych.engine.rollout import Policy
from triptych.engine.sampling import Sampling
from triptych.errors import RunError
from triptych.progress import Silent
from triptych.records import Conversation, Prompt, Rollout

SEEDS = [Prompt.of(f"Name the {word} of the sea") for word in ("colour", "depth", "taste", "age")]


@dataclass
class Author:
    """Stands for a policy: writes what it is told, and keeps what it was asked."""

    tokenizer: Any
    instructions: Callable[[int], tuple[str, bool]]
    answers: Callable[[str, int], tuple[str, bool]] = lambda asked, place: (f"An answer to {asked}", True)
    asked: list[tuple[str, Sampling, list[int] | None]] = field(default_factory=list)
    written: int = 0

    def write(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1, render: Any = None, progress: Any = None
    ) -> list[list[Rollout]]:
        groups = []
        for prompt in prompts:
            text = prompt.messages[-1].content
            self.asked.append((text, sampling, render(prompt) if render else None))
            group = []
            for place in range(n):
                inventing = render is not None or text.startswith("Here are")
                made, finished = self.instructions(self.written) if inventing else self.answers(text, place)
                self.written += inventing
                group.append(Rollout(prompt, (), (), (), made, finished))
            groups.append(group)
        return groups


def numbered(number: int) -> tuple[str, bool]:
    """An instruction like no other."""
    return " ".join(f"w{number}x{place}" for place in range(6)), True


def author(policy_folder: Path, *what: Any) -> Author:
    return Author(load_tokenizer(policy_folder / "model"), *what)


def made(
    policy: Author, seeds: Sequence[Prompt] = (), reward: Any = None, **settings: Any
) -> tuple[list[Conversation], Counter[str]]:
    return synthesise(cast(Policy, policy), Synthesis(**settings), seeds, reward, 5, Silent())


def test_the_ways_take_turns_and_each_asks_in_its_own(policy_folder: Path) -> None:
    policy = author(policy_folder, numbered)
    rows, left_out = made(policy, SEEDS, count=100)
    assert [row.prompt.task for row in rows] == ["magpie"] * TOGETHER + ["self-instruct"] * (100 - TOGETHER)
    assert not left_out
    assert len({row.prompt.key for row in rows}) == 100
    assert all(row.answer == f"An answer to {row.prompt.messages[0].content}" for row in rows)
    opening = policy.asked[0][2]
    assert opening == question_opening_tokens(policy.tokenizer)
    whole = prompt_tokens(policy.tokenizer, SEEDS[0])
    assert whole[: len(opening or ())] == opening
    assert len(opening or ()) < len(whole)
    shown = [text for text, _, _ in policy.asked if text.startswith("Here are")]
    assert len(shown) == TOGETHER
    assert shown[0].startswith(ANOTHER[:8] + " 4 tasks:\n\n1. Name the ")
    assert len(set(shown)) > 4, "the tasks are drawn anew"
    assert {row.prompt.task for row in made(author(policy_folder, numbered), count=100)[0]} == {"magpie"}


def test_what_is_left_out_is_counted(policy_folder: Path) -> None:
    kinds: list[tuple[str, bool]] = [
        ("Name the colour of the sea!", True), ("too short", True), ("word " * 200, True),
        ("goes on and on and", False),
    ]

    def mixed(number: int) -> tuple[str, bool]:
        return kinds[number % 8] if number % 8 < len(kinds) else numbered(number)

    def answers(asked: str, place: int) -> tuple[str, bool]:
        number = int(asked.split("x")[0][1:])
        return {4: ("cut", False), 5: ("the same word " * 9, True), 6: ("", True)}.get(number % 8, ("Good.", True))

    rows, left_out = made(author(policy_folder, mixed, answers), SEEDS, count=8)
    assert [row.answer for row in rows] == ["Good."] * 8
    assert left_out["nearly repeats another"] == 8
    assert left_out["does not end"] == 8
    assert left_out["has fewer than 4 words, or more than 150"] == 16
    assert left_out["has no answer that ends"] >= 14
    assert left_out["has an answer that repeats itself"] >= 7


def test_a_reward_takes_the_best_of_several_answers(policy_folder: Path) -> None:
    reward = SimpleNamespace(name="long", identity="long", score=lambda rows: [len(row.answer) for row in rows])
    policy = author(policy_folder, numbered, lambda asked, place: ("very " * (4 * place) + "long answer", place < 3))
    rows, _ = made(policy, reward=reward, count=3, answers=4)
    # Of the longer ones one repeats itself, and one is cut.
    assert {row.answer for row in rows} == {"very very very very long answer"}
    assert policy.asked[-1][1].temperature == 1.0
    greedy = author(policy_folder, numbered)
    made(greedy, count=1)
    assert greedy.asked[-1][1].temperature == 0.0


def test_it_ends_where_a_model_writes_nothing_that_can_be_used(policy_folder: Path) -> None:
    policy = author(policy_folder, lambda number: ("no", True))
    rows, left_out = made(policy, count=10)
    assert rows == []
    assert 80 <= sum(left_out.values()) <= 80 + TOGETHER


def test_the_file_is_what_fine_tuning_reads(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = author(policy_folder, numbered)
    monkeypatch.setattr(Policy, "open", lambda folder: policy)
    write(tmp_path / "seeds.jsonl", SEEDS)
    out = tmp_path / "new" / "own.jsonl"
    triptych.synthesise(policy_folder, out, seeds=tmp_path / "seeds.jsonl", count=5, progress=Silent())
    assert len(read_conversations(out)) == 5
    with pytest.raises(RunError, match="is there already"):
        triptych.synthesise(policy_folder, out, count=5, progress=Silent())
    policy.instructions = lambda number: ("no", True)
    with pytest.raises(RunError, match=r"not one conversation was to be had from .*: \d+ has fewer than 4 words"):
        triptych.synthesise(policy_folder, tmp_path / "none.jsonl", count=5, progress=Silent())
