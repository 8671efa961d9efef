"""Two ranks agree with one: losses, weights, samples, scores; checkpoints pass from one number to the other.

This file is also the program that the ranks run: `torchrun tests/test_distributed.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import to_jsonable_python
from torch.distributed.tensor import DTensor

from conftest import every_core
from triptych.base.pretraining import Pretraining, pretrain
from triptych.data.files import write
from triptych.engine import attention, device, distributed
from triptych.engine.adapters import Lora
from triptych.engine.curve import read_curve
from triptych.engine.forward import answer_logprobs
from triptych.engine.models import load_policy, load_tokenizer
from triptych.engine.muon import Muon, WholeMuon
from triptych.engine.packing import fill
from triptych.engine.rollout import Policy, infer, pack_rollouts
from triptych.engine.sampling import Sampling
from triptych.engine.scoring import RewardModel
from triptych.errors import DataError, Fault, TriptychError, WaitingError
from triptych.improve.dpo import Dpo
from triptych.improve.grpo import Grpo
from triptych.improve.improvement import improve
from triptych.improve.kto import Kto
from triptych.improve.loop import Improvement
from triptych.improve.ppo import Ppo
from triptych.improve.rloo import Rloo
from triptych.instruct.finetuning import Finetuning, finetune
from triptych.pipeline.runner import Runner
from triptych.pipeline.stage import StageContext
from triptych.progress import Silent
from triptych.records import Comparison, Conversation, Document, Prompt, Rating, Thumb, user
from triptych.reward.judge import TEMPLATES, JudgeReward, LanguageJudge, LocalJudge
from triptych.reward.regression import RegressionReward, train_regression
from triptych.reward.rules import FUNCTIONS, Length, OwnFunction, Rules, RulesReward
from triptych.reward.training import PairwiseReward, train_reward

WORDS = ("small", "red", "cat", "sat", "saw", "dog", "mat")
NOUNS = [f"a {one} {other}" for one in WORDS for other in WORDS if one != other]
FINETUNING = Finetuning(epochs=1, batch_tokens=512, micro_batch=160, learning_rate=3e-3)
REWARD = PairwiseReward(epochs=1, batch_pairs=8, micro_batch=256, learning_rate=3e-3)
REGRESSION = RegressionReward(
    epochs=1, batch_pairs=8, micro_batch=256, learning_rate=3e-3, weights={"long": 1.0, "red": 0.5, "preference": 1.0}
)
GRPO = Grpo(
    steps=3, prompts_per_step=5, group_size=4, max_tokens=8, micro_batch=256, eval_every=2, eval_prompts=8,
    learning_rate=3e-3,
)
BUDGET = GRPO.model_dump(include=set(Improvement.model_fields))
DPO = Dpo(**BUDGET)
PRETRAINING = Pretraining(
    vocabulary=300, width=24, layers=2, heads=2, key_value_heads=1, context=64, tokens=1500, batch_tokens=256
)


class Killed(Exception):  # noqa: N818 (it is no error)
    """What stands for the kill."""


class Deadly(Silent):
    """Ends the work behind a step."""

    def __init__(self, last: int) -> None:
        self.last = last

    def step(self, done: int, total: int, unit: str, seen: int, **numbers: float) -> None:
        if unit == "tokens" and done == self.last:
            raise Killed


def write_data(folder: Path) -> None:
    """Rows for every stage."""
    asked = [Prompt(user(text)) for text in NOUNS]
    answers = [f"{text} saw {other}" for text, other in zip(NOUNS, reversed(NOUNS), strict=True)]
    conversations = [Conversation(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
    pairs = [Comparison(prompt, answer, answer[::-1]) for prompt, answer in zip(asked, answers, strict=True)]
    documents = [Document(answer) for answer in answers]
    ratings = [
        Rating(prompt, answer, {"long": float(len(answer)), "red": float("red" in answer)})
        for prompt, answer in zip(asked, answers, strict=True)
    ]
    thumbs = [Thumb(row.prompt, row.answer, place % 3 > 0) for place, row in enumerate(conversations)]
    files: dict[str, Sequence[Any]] = {
        "thumbs": thumbs,
        "ratings_train": ratings[:23], "ratings_heldout": ratings[23:30], "comparisons_heldout": pairs[19:25],
        "demonstrations": conversations, "demonstrations_heldout": conversations[:7], "comparisons_train": pairs[:19],
        "prompts_improve": asked, "prompts_validation": asked[:8], "text": documents, "text_heldout": documents[:5],
    }
    for name, rows in files.items():
        write(folder / f"{name}.jsonl", rows)


def context(folder: Path, name: str, progress: Any = None) -> StageContext:
    """A context whose checkpoints are written behind every step; each rank has an output of its own."""
    output = folder / name / ("output" if distributed.rank() == 0 else f"rank-{distributed.rank()}")
    output.mkdir(parents=True, exist_ok=True)
    return StageContext(output, folder / name, progress or Silent(), seed=1, checkpoint_seconds=0)


def adapted(config: Any) -> Any:
    """The same stage with adapters."""
    return config.model_copy(update={"lora": Lora(rank=4)})


class Falling:
    """A judge who likes the policy of the second step best, told by how often it was asked."""

    name = identity = "falling"

    def __init__(self) -> None:
        self.scores = [0.5, 0.9, 0.1]

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        return [self.scores.pop(0)] * len(conversations)


OWN_RULE = """
def score(conversation):
    if "red" in conversation.answer:
        raise ValueError("red")
    return -float(len(conversation.prompt.messages[-1].content))
"""


def rules(data: Path) -> Rules:
    """A user's own rule that fails on some answers, which get the least of what all others got."""
    path = data / FUNCTIONS / "0.py"
    if distributed.rank() == 0:
        path.parent.mkdir(exist_ok=True)
        path.write_text(OWN_RULE)
    distributed.barrier()
    config = RulesReward(rules=(OwnFunction(function="rule.py:score"), Length(most=9)))
    return Rules(config, data, shard_map=distributed.shard_map)


def language_judge(policy: Path) -> LanguageJudge:
    """The policy, asked which of two answers is better."""
    config = JudgeReward(ask="compare")
    template = (TEMPLATES / "compare.jinja").read_text()
    return LanguageJudge(config, LocalJudge(policy / "model", distributed.shard_map), template)


def dealt(folder: Path) -> None:
    """What is made of some items, and which of them each rank saw."""
    seen: list[str] = []

    def work(items: Sequence[str]) -> list[str]:
        seen.extend(items)
        return [item.upper() for item in items]

    made = distributed.shard_map(work, "abcde")
    (folder / f"dealt-{distributed.rank()}.json").write_text(json.dumps([made, seen]))


def outside(folder: Path) -> None:
    """What a runner does outside of its stages: its result or error on each rank, and what each rank did of it."""
    done: list[str] = []
    runner = Runner(folder / "run", Silent(), 1, 0)

    def wait(error: Exception) -> None:
        done.append(type(error).__name__)
        raise error

    def act() -> Path:
        done.append(f"of {distributed.world_size()}")
        return folder

    come_to = [str(runner.outside(act, folder) == folder)]
    faults = [Fault("mine.jsonl", 3, "prompt", "missing"), Fault("mine.jsonl", 4, None, "empty")]
    for error in WaitingError("2 questions are open"), DataError(faults):
        try:
            runner.outside(partial(wait, error), None)
        except TriptychError as raised:
            come_to.append(f"{type(raised).__name__}: {raised}")
    (folder / f"outside-{distributed.rank()}.json").write_text(json.dumps([come_to, done]))


def work(data: Path, policy: Path, folder: Path) -> None:
    """Every stage that trains; what it measured is written down by every rank."""
    found: dict[str, Any] = {
        "base": pretrain(context(folder, "base"), PRETRAINING, data),
        "instruct": finetune(context(folder, "instruct"), FINETUNING, policy, data),
        "reward": train_reward(context(folder, "reward"), REWARD, policy, data),
        "instruct-lora": finetune(context(folder, "instruct-lora"), adapted(FINETUNING), policy, data),
        "reward-lora": train_reward(context(folder, "reward-lora"), adapted(REWARD), policy, data),
    }
    found["regression"] = train_regression(context(folder, "regression"), REGRESSION, policy, data, data)
    distributed.barrier()
    scorer = RewardModel(folder / "reward" / "output" / "model", shard_map=distributed.shard_map)
    rows = [Conversation(Prompt(user(text)), other) for text in NOUNS for other in NOUNS[:2]]
    found["scores"] = {"of answers": scorer.score(rows), "of none": scorer.score([])}
    for name, details in {"rules": rules(data).details(rows), "judge": language_judge(policy).details(rows)}.items():
        found[name] = {"totals": details.totals, **details.counts, **details.notes}
    for name, config in {"grpo": GRPO, "grpo-lora": adapted(GRPO)}.items():
        found[name] = improve(context(folder, name), config, policy, data, scorer, judge=None)
    found["dpo"] = improve(context(folder, "dpo"), DPO, policy, data, scorer, judge=None)
    found["kto"] = improve(context(folder, "kto"), Kto(**BUDGET), policy, data, scorer, judge=None)
    found["rloo"] = improve(context(folder, "rloo"), Rloo(**BUDGET), policy, data, scorer, judge=None)
    found["ppo"] = improve(context(folder, "ppo"), Ppo(**BUDGET), policy, data, scorer, judge=None)
    found["kept"] = improve(context(folder, "kept"), adapted(GRPO), policy, data, scorer, judge=Falling())
    assert found["kept"].kept == 2
    (folder / f"measured-{distributed.rank()}.json").write_text(json.dumps(to_jsonable_python(found)))


def killed(data: Path, policy: Path, folder: Path) -> None:
    """A fine-tuning that ends behind its second step."""
    with pytest.raises(Killed):
        finetune(context(folder, "resumed", Deadly(2)), FINETUNING, policy, data)


def resumed(data: Path, policy: Path, folder: Path) -> None:
    """The same fine-tuning, which goes on from there."""
    finetune(context(folder, "resumed"), FINETUNING, policy, data)


def muon(folder: Path) -> None:
    """One step of Muon with a matrix in slices and with the same whole, and how far it went."""
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 33, 24)
    layer = torch.nn.Linear(24, 33, bias=False)
    layer.weight.data.copy_(start)
    root = torch.nn.Sequential(layer)
    ends = []
    with distributed.fully_shard_within(root):
        for kind, weight in (Muon, torch.nn.Parameter(start.clone())), (WholeMuon, layer.weight):
            weight.grad = distributed.shard_like(gradient, weight)
            kind([weight], lr=0.1, weight_decay=0.1).step()
            ends.append(distributed.full_tensor(weight.detach()))
    numbers = [float((ends[0] - ends[1]).abs().max()), float((ends[0] - start).abs().max())]
    (folder / f"muon-{distributed.rank()}.json").write_text(json.dumps(numbers))


def stale(policy: Path, folder: Path) -> None:
    """A policy in slices whose update the sampler missed, and the error of each rank that would write."""
    author = Policy(load_policy(policy / "model", attention=attention.NAME), load_tokenizer(policy / "model"))
    prompts = [Prompt(user(text)) for text in NOUNS[:4]]
    found = []
    with distributed.fully_shard_within(author.model):
        author.write(prompts, Sampling(4))
        author.logprobs(author.write(prompts, Sampling(4)))  # to compute is no update
        found.append(author.in_sync)
        optimizer = torch.optim.AdamW(author.model.parameters(), fused=True)
        for weight in author.model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        with pytest.raises(RuntimeError, match="sync_weights"):
            author.write(prompts, Sampling(4))
        author.sync_weights()
        author.write(prompts, Sampling(4))
        found.append(author.in_sync)
    found.append(author.in_sync)  # the whole weights are other tensors
    (folder / f"stale-{distributed.rank()}.json").write_text(json.dumps(found))


def frozen(policy: Path, folder: Path) -> None:
    """Models that are opened to be used and not to be trained: how many numbers of them this rank holds, what of
    their log-probabilities all know, and the share of a trained reward model that was asked for scores.
    """
    author = Policy.open(policy / "model")
    whole = sum(weight.numel() for weight in author.model.parameters())
    prompts = [Prompt(user(text)) for text in NOUNS[:5]]
    written = author.write(prompts, Sampling(4))
    first = author.logprobs(written)
    again = author.logprobs(author.write(prompts, Sampling(4)))  # the sampler's weights are still the model's
    reward = RewardModel(folder / "reward" / "output" / "model", shard_map=distributed.shard_map)
    reward.score([Conversation(prompts[0], "a cat")])
    judge = LocalJudge(policy / "model", distributed.shard_map)
    judge.choose(["a", "b", "c"], ["1", "2"])
    held = [held_here(model) / whole for model in (author.model, reward.model, judge.model)]
    mixed = load_policy(policy / "model", attention=attention.NAME, frozen=True)
    for part in mixed.modules():
        if isinstance(part, torch.nn.Linear):
            part.to(torch.bfloat16)
    distributed.fully_shard_frozen(mixed)

    def rounded(groups: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return answer_logprobs(mixed, pack_rollouts(groups, "cpu"))[0]

    in_bfloat16 = infer(mixed, rounded, [[group] for group in written])
    same = all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    numbers = {"held": held, "same": same, "logprobs": [values.tolist() for values in [*first, *in_bfloat16]]}
    (folder / f"frozen-{distributed.rank()}.json").write_text(json.dumps(numbers))


def held_here(model: Any) -> int:
    """How many of a model's numbers lie on this rank."""
    weights = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return sum(weight.numel() for weight in weights)


def torchrun(*arguments: str | Path, count: int = 2) -> None:
    """Runs a program on ranks of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with every_core():
        ended = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def both(
    float32: None, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folders of the same work done by one process and by two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    one.mkdir()
    two.mkdir()
    write_data(folder)
    killed(folder, policy_folder, one)
    torchrun(__file__, folder, policy_folder, two, one)
    work(folder, policy_folder, one)
    frozen(policy_folder, one)
    resumed(folder, policy_folder, two)
    return one, two


def difference(mine: Path, theirs: Path) -> float:
    """The largest difference of a weight of two model folders."""
    one, two = load_policy(mine).state_dict(), load_policy(theirs).state_dict()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def moved(folder: Path, start: Path) -> float:
    """How far training took the weights."""
    return difference(folder, start / "model")


STAGES = [
    "base", "instruct", "reward", "regression", "grpo", "dpo", "kto", "rloo", "ppo", "kept", "instruct-lora",
    "reward-lora", "grpo-lora",
]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_measure_what_one_does(both: tuple[Path, Path], stage: str) -> None:
    one, two = (read_curve(folder / stage / "output" / "curve.jsonl") for folder in both)
    assert len(one) == len(two) > 2
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        close = MUON if stage == "base" and mine["step"] > 1 else TOLERANCE
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=close, abs=close), (stage, mine["step"], name)


def test_every_rank_knows_the_same_numbers(both: tuple[Path, Path]) -> None:
    one = json.loads((both[0] / "measured-0.json").read_text())
    two = [json.loads((both[1] / f"measured-{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1]
    for stage, numbers in one.items():
        for name, value in numbers.items():
            close = MUON if stage == "base" else TOLERANCE
            exact = value is None or isinstance(value, str | int) or name == "alarms"
            expected = value if exact else pytest.approx(value, rel=close, abs=close)
            assert two[0][stage][name] == expected, (stage, name)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.startswith("re")])
def test_the_weights_come_out_the_same(both: tuple[Path, Path], stage: str) -> None:
    one, two = (folder / stage / "output" / "model" for folder in both)
    assert difference(one, two) < (2 * MUON if stage == "base" else WEIGHTS)


def test_a_training_goes_on_with_another_number_of_ranks(both: tuple[Path, Path], policy_folder: Path) -> None:
    one, two = both
    expected = one / "instruct" / "output"
    for folder in (one / "resumed", two / "resumed"):  # one, then two ranks; two, then one
        assert difference(expected / "model", folder / "output" / "model") < WEIGHTS
        assert moved(folder / "output" / "model", policy_folder) > 10 * WEIGHTS
        steps = read_curve(folder / "output" / "curve.jsonl")
        for mine, theirs in zip(read_curve(expected / "curve.jsonl"), steps, strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=TOLERANCE)


def test_muon_takes_the_same_step_with_a_matrix_in_slices(both: tuple[Path, Path]) -> None:
    for rank in range(2):
        apart, moved = json.loads((both[1] / f"muon-{rank}.json").read_text())
        assert apart == 0
        assert moved > 0.01


def test_a_sampler_of_weights_in_slices_does_not_write_when_they_moved(both: tuple[Path, Path]) -> None:
    for rank in range(2):
        assert json.loads((both[1] / f"stale-{rank}.json").read_text()) == [True, True, False]


def test_of_a_model_that_is_not_trained_each_rank_holds_a_slice(both: tuple[Path, Path]) -> None:
    alone, first, second = (
        json.loads((both[place] / f"frozen-{rank}.json").read_text()) for place, rank in ((0, 0), (1, 0), (1, 1))
    )
    assert alone["held"][0] == alone["held"][2] == 1
    for mine, here, there in zip(alone["held"], first["held"], second["held"], strict=True):
        assert here == pytest.approx(mine / 2, rel=0.01)
        assert here + there == pytest.approx(mine)
    for numbers in (alone, first, second):
        assert numbers["same"]
        for mine, theirs in zip(alone["logprobs"], numbers["logprobs"], strict=True):
            assert theirs == pytest.approx(mine, abs=TOLERANCE)


def test_each_item_is_worked_on_by_one_rank(both: tuple[Path, Path]) -> None:
    shares = [json.loads((both[1] / f"dealt-{rank}.json").read_text()) for rank in range(2)]
    assert shares == [[list("ABCDE"), list("ace")], [list("ABCDE"), list("bd")]]


def test_what_the_first_rank_does_for_all_or_cannot_is_known_to_all(both: tuple[Path, Path]) -> None:
    come_to = ["True", "WaitingError: 2 questions are open",
               "DataError: mine.jsonl:3: prompt: missing\nmine.jsonl:4: empty"]
    done = [["of 1", "WaitingError", "DataError"], []]
    for rank in range(2):
        assert json.loads((both[1] / f"outside-{rank}.json").read_text()) == [come_to, done[rank]]


def test_an_answer_on_which_a_rule_fails_gets_the_least_of_every_ranks(both: tuple[Path, Path]) -> None:
    numbers = json.loads((both[1] / "measured-1.json").read_text())["rules"]
    least = -float(max(map(len, NOUNS)))
    failed = [value for value, answer in zip(numbers["totals"], NOUNS[:2] * len(NOUNS), strict=True) if "red" in answer]
    assert len(failed) == numbers["function.failed"] > 10
    assert set(failed) == {1 + least}  # each is short, and its prompt counts nothing


def test_batches_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [30, 10, 10, 10, 20, 20, 40, 5, 5]
    assert distributed.micro_batches(sizes, 64) == fill(sizes, 64)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.micro_batches(sizes, 1000) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert distributed.micro_batches(sizes, 64) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]  # four have no smaller largest
    assert distributed.micro_batches([100], 64) == [[0]]
    assert distributed.micro_batches([], 64) == []


def test_a_rank_that_falls_short_repeats_a_batch_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append(distributed.shard_evenly("abcd"))
    assert found == [[("a", True), ("d", True)], [("b", True), ("d", False)], [("c", True), ("d", False)]]
    monkeypatch.undo()
    assert distributed.shard_evenly("ab") == [("a", True), ("b", True)]


@pytest.mark.slow
def test_a_whole_cycle_on_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    recipe = Path(__file__).parent / "tiny.yaml"
    run = [sys.executable, "-m", "triptych", "run", str(recipe), "--runs"]
    with every_core():
        subprocess.run([*run, tmp_path / "two", "--ranks", "2"], check=True, capture_output=True)
    subprocess.run([*run, tmp_path / "one"], check=True, capture_output=True)
    one, two = (tmp_path / name / "tiny" for name in ("one", "two"))
    assert {path.name for path in (two / "release").iterdir()} == {path.name for path in (one / "release").iterdir()}
    assert not any((two / "work").iterdir())
    events = [json.loads(line) for line in (two / "ledger.jsonl").read_text().splitlines()]
    done = [event["stage"] for event in events if event["event"] in ("started", "finished")]
    assert len(done) == 2 * len(set(done))  # each started and finished once
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    for stage in ("base", "instruct"):  # later stages hang on what was sampled, where a rounding decides
        for mine, theirs in zip(*(summary["losses"][stage] for summary in summaries), strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=0.02)


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all(tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text(
        "from triptych.engine import distributed\ndistributed.init()\n"
        "if distributed.rank() == 1:\n    raise ValueError('on purpose')\ndistributed.barrier()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "on purpose" in ended.stderr


TOLERANCE = 2e-5
MUON = 5e-3
"""Muon iterates in the compute type; in bfloat16 the order of sums shows earlier."""
WEIGHTS = 1e-4

if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    device.cpu_flags = str
    distributed.init()
    data, policy, mine, others = map(Path, sys.argv[1:])
    muon(mine)
    stale(policy, mine)
    dealt(mine)
    outside(mine)
    work(data, policy, mine)
    frozen(policy, mine)
    killed(data, policy, mine)
    distributed.barrier()
    resumed(data, policy, others)
    distributed.destroy()
