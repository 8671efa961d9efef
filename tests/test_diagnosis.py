"""What a round failed by: each planted fault is blamed, with the measurement that shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from test_prompting import context
from triptych.cycle import plan
from triptych.data.files import write
from triptych.data.folder import DataFolder
from triptych.engine.sampling import Sampling
from triptych.evaluate.diagnosis import Diagnosed, Diagnosis, Judged, blame, diagnose, levels, passes
from triptych.evaluate.gate import PROMOTED, REJECTED, SCORES, UNDECIDED, Decided, GateScores
from triptych.recipe import load
from triptych.records import Comparison, Conversation, Prompt, user
from triptych.statistics.scores import PairedScore, TaskScore

TINY = Path(__file__).parent / "tiny.yaml"
SAMPLING = Sampling(12)


def share(mean: float, wide: float = 0.1) -> TaskScore:
    return TaskScore(score=mean, interval=(mean - wide, mean + wide), prompts=48)


def change(gain: float, wide: float = 0.05) -> PairedScore:
    return PairedScore(before=0.5, after=0.5 + gain, gain=gain, interval=(gain - wide, gain + wide), prompts=300)


def decided(decision: str, reason: str = "", prompts: int = 300) -> Decided:
    return Decided.model_construct(decision=decision, reason=reason, prompts=prompts, level=0.025)


def found(**changed: Any) -> Diagnosed:
    """Of a round in which nothing is wrong, but for what is changed."""
    return Diagnosed(**{
        "blamed": None, "because": "", "answers": 8, "passed": share(0.8), "passed_taught": share(0.8),
        "ranked": share(0.8), "reward": change(0.2), "judge": change(0.1), "prompts_needed": 900,
    } | changed)


@pytest.mark.parametrize(("changed", "decision", "blamed", "shown"), [
    ({"passed": share(0.2), "passed_taught": share(0.25), "ranked": share(0.5)}, REJECTED, "base", "on 20% (95%"),
    ({"passed": share(0.2), "passed_taught": None}, UNDECIDED, "base", "improvement finds no better answer"),
    ({"passed": share(0.2)}, UNDECIDED, "instructions", "on 80% (95% interval 70% to 90%, 48 prompts) of those"),
    ({"passed": share(0.1), "passed_taught": share(0.58, 0.15)}, UNDECIDED, "instructions", "on 58%"),
    ({"passed": share(0.45), "passed_taught": share(0.58, 0.15)}, UNDECIDED, "base", "on 45%"),
    ({"ranked": share(0.55, 0.03)}, REJECTED, "reward", "prefers the judge's in 55%"),
    ({"ranked": share(0.62, 0.15), "judge": change(-0.1)}, REJECTED, "reward", "62%"),
    ({"ranked": share(0.65), "judge": change(-0.1)}, REJECTED, "reward", "the judge fell (0.500 to 0.400"),
    ({"ranked": share(0.65), "judge": change(-0.03)}, REJECTED, "optimiser", "and the judge did not (0.500 to 0.470"),
    ({"reward": change(0.0), "judge": change(0.0)}, UNDECIDED, "optimiser", "the reward did not rise: 0.500 to 0.500"),
    ({"judge": change(-0.1)}, REJECTED, "optimiser", "and the judge did not (0.500 to 0.400"),
    ({}, REJECTED, "optimiser", "it went too far: KL of 30 nats"),
    ({}, UNDECIDED, "gate", "300 prompts are few; about 900 would tell"),
    ({}, PROMOTED, None, "as it should be"),
    ({"passed": None, "passed_taught": None, "ranked": None}, UNDECIDED, "gate", "are few"),
])
def test_the_first_part_that_is_not_as_it_should_be_is_to_blame(
    changed: dict[str, Any], decision: str, blamed: str | None, shown: str
) -> None:
    who, because = blame(found(**changed), decided(decision, "KL of 30 nats"))
    assert who == blamed
    assert shown in because


@pytest.mark.parametrize(("prompts", "blamed", "shown"), [
    (4, "gate", "with 4 prompts no candidate is promoted four times in five"),
    (40, "gate", "with 40 prompts only a candidate that wins 72% of all such prompts"),
    (60, "optimiser", "the reward did not rise"),
])
def test_a_gate_of_few_prompts_says_nothing_of_a_reward_that_did_not_rise(
    prompts: int, blamed: str, shown: str
) -> None:
    unchanged = found(reward=change(0.1, 1.0), judge=change(0.1, 1.0))
    who, because = blame(unchanged, decided(UNDECIDED, prompts=prompts))
    assert (who, shown in because) == (blamed, True), because
    assert blame(unchanged, decided(REJECTED, prompts=prompts))[0] == "optimiser"


def test_a_reward_is_compared_with_the_judge_where_the_judge_tells_two_answers_apart() -> None:
    prompt = Prompt(user("a cat"))
    assert Judged(prompt, [1, 2, 3], [10, 20, 30]).ranked == 1
    assert Judged(prompt, [1, 2, 3], [30, 20, 10]).ranked == 0
    assert Judged(prompt, [1, 2, 2], [5, 5, 7]).ranked == 0.75
    assert Judged(prompt, [2, 2, 2], [1, 2, 3]).ranked is None


@dataclass
class Letters:
    """A scorer by how often some letters stand in an answer."""

    letters: str
    sign: float = 1.0
    name: str = "letters"
    identity: str = "letters"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [self.sign * sum(row.answer.count(letter) for letter in self.letters) for row in conversations]


def test_a_good_answer_is_as_good_as_the_best_quarter_of_its_tasks_demonstrations() -> None:
    taught = [Conversation(Prompt(user(f"cat {i}"), task="cats"), "a" * i) for i in range(9)]
    taught += [Conversation(Prompt(user(f"dog {i}"), task="dogs"), "a" * 20) for i in range(3)]
    good = levels(taught, Letters("a"))
    assert good == {None: 17.0, "cats": 6.5}, "three dogs are too few to say anything of dogs"
    rows = [Judged(Prompt(user("x"), task=task), [0, score], [0, 0])
            for task, score in (("cats", 7), ("cats", 6), ("dogs", 18), (None, 16))]
    assert passes(rows, good) == [1, 0, 1, 0]
    assert passes(rows, levels(taught[:3], Letters("a"))) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "prompts_validation.jsonl", [Prompt(user(f"a cat saw {number} dogs")) for number in range(12)])
    write(folder / "demonstrations_heldout.jsonl", [
        Conversation(Prompt(user(f"what of cat {number}")), "q" * 30) for number in range(12)])
    return folder


def gate(folder: Path, gain: Callable[[int], float]) -> Path:
    """The scores of a gate in which judge and reward gain the same."""
    folder.mkdir()
    rows = [GateScores(key=str(i), before=0.5, after=0.5 + gain(i), won=0.5 + gain(i), reward_before=0,
                       reward_after=gain(i)) for i in range(40)]
    (folder / SCORES).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("judge", "reward", "gain", "blamed"), [
    (Letters("q"), Letters("q"), 0.1, "base"),  # a random model writes no thirty of them
    (Letters("ab", -1.0), Letters("ab"), 0.1, "reward"),
    (Letters("ab", -1.0), Letters("abc", -1.0), 0.0, "optimiser"),
    (Letters("ab", -1.0), Letters("abc", -1.0), 0.1, "gate"),
])
def test_the_stage_measures_what_the_champion_writes(
    judge: Letters, reward: Letters, gain: float, blamed: str, policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    result = diagnose(
        context(tmp_path / "diagnosis"), Diagnosis(prompts=8, answers=6), policy_folder, data,
        gate(tmp_path / "gate", lambda i: gain * (1 + i % 3)), decided(UNDECIDED), reward, judge, SAMPLING,
    )
    assert result.blamed == blamed
    assert result.passed is not None
    assert result.passed.prompts == 8
    assert result.passed.score == (blamed != "base")
    assert result.prompts_needed == (None if gain == 0 else 41)
    again = diagnose(
        context(tmp_path / "again"), Diagnosis(prompts=8, answers=6), policy_folder, data,
        tmp_path / "gate", decided(UNDECIDED), reward, judge, SAMPLING, absolute=False,
    )
    assert (again.passed, again.passed_taught, again.ranked) == (None, None, result.ranked)


@dataclass
class Asking(Letters):
    """A scorer that only knows prompts with a mark, as a rule that needs a reference."""

    def applies(self, prompt: Prompt) -> bool:
        """It does, where it can be asked."""
        return True

    def fault(self, prompt: Prompt) -> str | None:
        """What the prompt lacks."""
        return None if "saw" in prompt.messages[-1].content else "needs a mark"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        assert all("saw" in row.prompt.messages[-1].content for row in conversations)
        return super().score(conversations)


def test_what_the_judge_learnt_itself_is_no_measure_of_a_good_answer(
    policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "data"
    shutil.copytree(data, shared)
    judged = [Comparison(row.prompt, row.answer, "no") for row in DataFolder(data).demonstrations("heldout").read()]
    write(shared / "comparisons_judge.jsonl", judged)

    def passed(judge: Letters, name: str) -> TaskScore | None:
        scores = gate(tmp_path / f"{name} gate", lambda i: 0.1)
        return diagnose(
            context(tmp_path / name), Diagnosis(prompts=8, answers=6), policy_folder, shared, scores,
            decided(UNDECIDED), Letters("q"), judge, SAMPLING,
        ).passed

    @dataclass
    class Rule(Letters):
        learns = False

    assert passed(Letters("q"), "learnt") is None, "every demonstration is one of what it learnt"
    assert passed(Rule("q"), "rule") is not None


def test_demonstrations_that_the_judge_cannot_score_say_nothing_of_a_good_answer(
    policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    result = diagnose(
        context(tmp_path / "diagnosis"), Diagnosis(prompts=8, answers=6), policy_folder, data,
        gate(tmp_path / "gate", lambda i: 0.1), decided(UNDECIDED), Letters("ab"), Asking("ab"), SAMPLING,
    )
    assert (result.passed, result.passed_taught) == (None, None)
    assert result.ranked is not None
    assert result.ranked.score == 1


def test_a_round_that_is_promoted_needs_no_diagnosis() -> None:
    assert not [stage.name for stage in plan(load(TINY)) if "diagnosis" in stage.name]
