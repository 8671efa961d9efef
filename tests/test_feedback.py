"""Comparisons labelled by a judge: flipped as often as stated, split by prompt, and added up over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.data.files import read_comparisons, write
from triptych.errors import RunError
from triptych.feedback.accumulation import accumulate
from triptych.feedback.labelling import ExactLabelling, Labelled, _compared, label
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Prompt, Rollout, user


class Digits:
    """Likes the answer whose number is larger."""

    name = identity = "digits"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [float(conversation.answer.strip() or 0) for conversation in conversations]


class Letters:
    """Likes answers with many different letters."""

    name = identity = "letters"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [float(len(set(conversation.answer))) for conversation in conversations]


class Indifferent(Letters):
    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [0.5] * len(conversations)


def group(number: int, *answers: str) -> list[Rollout]:
    return [Rollout(Prompt(user(f"question {number}")), (1,), (2,), (0.0,), answer, True) for answer in answers]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.35])
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_are_flipped_at_the_stated_rate(noise: float, seed: int) -> None:
    groups = [group(i, "1", "2", "3") for i in range(2000)]
    found, _ = _compared(groups, Digits(), ExactLabelling(noise=noise), seed)
    flipped = sum(float(row.chosen) < float(row.rejected) for row in found) / len(found)
    assert flipped == pytest.approx(noise, abs=0.02 if noise else 0)


def test_ties_empty_and_equal_answers_are_not_compared() -> None:
    groups = [group(0, "4", "4", "4.0"), group(1, "5", ""), group(2, "6", " "), group(3, "1", "7")]
    ((only,), _) = _compared(groups, Digits(), ExactLabelling(noise=0.0), 1)
    assert (only.chosen, only.rejected, only.source) == ("7", "1", "digits")


def test_no_cut_answer_is_learnt_as_the_better_one() -> None:
    answers = group(0, "1", "2", "3")
    answers[1] = replace(answers[1], finished=False)
    found, cut = _compared([answers], Digits(), ExactLabelling(noise=0.0), 1)
    assert {(row.chosen, row.rejected) for row in found} == {("3", "1"), ("3", "2")}
    assert cut == 1
    turned = ExactLabelling().model_copy(update={"noise": 1.0})
    found, cut = _compared([answers], Digits(), turned, 1)
    assert {(row.chosen, row.rejected) for row in found} == {("1", "3"), ("1", "2")}
    assert cut == 1


def test_the_same_seed_gives_the_same_labels_and_another_other_ones() -> None:
    groups = [group(i, "1", "2") for i in range(300)]
    one, same, other = (_compared(groups, Digits(), ExactLabelling(noise=0.3), seed) for seed in (1, 1, 2))
    assert one == same != other


CONFIG = ExactLabelling(prompts=20, answers=3, noise=0.1, heldout=0.3, max_tokens=200)  # a random model ends late


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "prompts_feedback.jsonl", [Prompt(user(f"say {i} things")) for i in range(30)])
    return folder


def labelled(
    output: Path, data: Path, author: Path, round: int, earlier: Path | None = None, judge: type = Letters
) -> Labelled:
    output.mkdir()
    context = StageContext(output, output, Silent(), seed=4, checkpoint_seconds=60)
    return label(context, CONFIG, data, author, judge(), round=round, earlier=earlier)


def prompts_of(rows: Sequence[Comparison]) -> set[str]:
    return {row.prompt.key for row in rows}


def test_rounds_add_up_and_what_is_held_out_stays_so(tmp_path: Path, data: Path, policy_folder: Path) -> None:
    # 30 prompts are asked 20 at a time: the second round comes back to the first ones.
    first, second = tmp_path / "first", tmp_path / "second"
    metrics = labelled(first, data, policy_folder, round=1)
    more = labelled(second, data, policy_folder, round=2, earlier=first)
    trained, held = (read_comparisons(first / f"comparisons_{name}.jsonl") for name in ("train", "heldout"))
    trained_since, held_since = (
        read_comparisons(second / f"comparisons_{name}.jsonl") for name in ("train", "heldout")
    )

    assert metrics.comparisons == len(trained) + len(held)
    assert metrics.answers == 60
    assert metrics.comparisons + metrics.ties + metrics.cut == 20 * 3
    assert metrics.cut > 0
    assert metrics.labelled_by == "letters"
    assert len(prompts_of([*trained_since, *held_since])) > len(prompts_of([*trained, *held]))
    assert trained_since[: len(trained)] == trained
    assert held_since[: len(held)] == held
    assert len(trained_since) + len(held_since) == metrics.comparisons + more.comparisons
    assert held_since[len(held) :] == read_comparisons(second / "comparisons_heldout_new.jsonl")
    assert not prompts_of(trained_since) & prompts_of(held_since)


def test_the_same_round_gives_the_same_bytes(tmp_path: Path, data: Path, policy_folder: Path) -> None:
    for name in ("one", "other"):
        labelled(tmp_path / name, data, policy_folder, round=1)
    for file in ("comparisons_train.jsonl", "comparisons_heldout.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_judge_that_sees_no_difference_stops_the_run(tmp_path: Path, data: Path, policy_folder: Path) -> None:
    with pytest.raises(RunError, match="nothing to learn from"):
        labelled(tmp_path / "none", data, policy_folder, round=1, judge=Indifferent)


@pytest.mark.parametrize(("share", "missing"), [(0.0001, "held out"), (0.9999, "trained on")])
def test_comparisons_of_which_one_part_would_be_empty_stop_the_run(
    tmp_path: Path, data: Path, share: float, missing: str
) -> None:
    rows = [Comparison(Prompt(user(f"say {i} things")), "good", "bad") for i in range(10)]
    context = StageContext(tmp_path, tmp_path, Silent(), seed=4, checkpoint_seconds=60)
    with pytest.raises(RunError, match=f"none of 10 comparisons is {missing}"):
        accumulate(context, rows, share, data, None)
    assert not list(tmp_path.iterdir())
