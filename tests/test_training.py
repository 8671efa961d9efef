"""The train loop: sums over what counts, no step with numbers that are not finite, resumption to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import SHAPE, some_tokens, tiny, with_our_attention
from triptych.engine import nf4, training
from triptych.engine.checkpoint import Checkpoint
from triptych.engine.curve import Curve, read_curve, write_curve
from triptych.engine.forward import AnswerPack, answer_logprobs, pack_answers
from triptych.engine.training import GradientAccumulation, Loss, Optimization, Step, shuffled, train
from triptych.errors import TrainingError
from triptych.improve.loop import reused
from triptych.progress import Silent

ROWS: list[tuple[list[int], list[list[int]]]] = [([], [some_tokens(4 + 3 * (i % 5), i)]) for i in range(24)]
STEPS = 8


class Killed(Exception):  # noqa: N818 (it is no error)
    """What stands for the kill."""


def policy() -> Any:
    return with_our_attention(tiny("llama", tied=False, dtype=torch.float32))


def wide() -> Any:
    """A model whose matrices have so many numbers that AdamW keeps their moments in 8 bits."""
    torch.manual_seed(7)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE | {"hidden_size": 64, "intermediate_size": 128}))
    return with_our_attention(model)


def learn(
    model: Any, optimization: Optimization, *, split: int = 1, checkpoint: Checkpoint | None = None,
    killed_at: int | None = None, steps: int = STEPS,
) -> Curve:
    """Language modelling of a few rows a step, in `split` batches, until it is killed."""

    def prepare(step: int) -> Step[AnswerPack]:
        if step == killed_at:
            raise Killed
        rows = [ROWS[i] for i in shuffled(len(ROWS), step, seed=1)[:6]]
        size = -(-len(rows) // split)
        batches = [pack_answers(rows[i : i + size], "cpu") for i in range(0, len(rows), size)]
        return Step(batches, weight=sum(len(batch.predictions.targets) for batch in batches), numbers={"rows": 6.0})

    def loss(packed: AnswerPack) -> Loss:
        logprobs, _ = answer_logprobs(model, packed)
        return Loss(-logprobs.sum(), {"likeliest": logprobs.max() * len(packed.predictions.targets)})

    return train(model, steps, prepare, loss, optimization, checkpoint=checkpoint, progress=Silent())


def quadratic(
    model: nn.Module, loss: Callable[[int, Tensor], Tensor], optimization: Optimization, **more: Any
) -> Curve:
    """Trains a linear layer on a loss of the step's number and its output."""
    inputs = torch.eye(3)
    return train(
        model, more.pop("steps", 6), lambda step: Step([step], weight=1.0, rows=[10 * step, 10 * step + 1]),
        lambda step: Loss(loss(step, model(inputs))), optimization,
        checkpoint=more.pop("checkpoint", None), progress=Silent(), **more,
    )


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 throughout, so that sums in another order differ by rounding only."""
    monkeypatch.setattr(training, "autocast", nullcontext)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("split", [2, 3, 6])
def test_small_batches_accumulate_to_the_large_one(split: int) -> None:
    gradients: list[list[Tensor]] = []
    for parts in (1, split):
        model = policy()
        original = torch.nn.utils.clip_grad_norm_

        def remember(parameters: Any, clip: float, original: Any = original) -> Tensor:
            weights = list(parameters)
            gradients.append([weight.grad.clone() for weight in weights])
            norm: Tensor = original(weights, clip)
            return norm

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", remember)
            curve = learn(model, Optimization(learning_rate=1e-3), split=parts, steps=1)
        assert curve[0]["rows"] == 6
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(one.abs().max()) + 1e-9)


@pytest.mark.usefixtures("exact")
def test_the_loss_is_the_mean_over_tokens_and_the_gradient_that_of_plain_torch() -> None:
    model, plain = policy(), tiny("llama", tied=False, dtype=torch.float32)
    rows = [ROWS[i] for i in shuffled(len(ROWS), 0, seed=1)[:6]]
    total, tokens = torch.zeros(()), 0
    for _, (row,) in rows:
        logits = plain(torch.tensor([row])).logits[0, :-1]
        total = total + nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        tokens += len(row) - 1
    (total / tokens).backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in plain.parameters()])
    curve = learn(model, Optimization(learning_rate=1e-3), split=3, steps=1)
    assert curve[0]["loss"] == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    assert curve[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert curve[0]["seen"] == tokens


@pytest.mark.usefixtures("exact")
def test_the_first_update_is_adamws_of_the_clipped_gradient() -> None:
    layer = nn.Linear(3, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    # The gradient is (30, 30, 30), clipped to norm 1; AdamW's first step is lr * sign, after the decay.
    quadratic(
        layer, lambda _, output: 30 * output.sum(),
        Optimization(learning_rate=0.1, warmup=0, decay="constant", weight_decay=0.5), steps=1,
    )
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 3), 2.0 * (1 - 0.1 * 0.5) - 0.1))


@pytest.mark.usefixtures("exact")
def test_weight_decay_spares_biases() -> None:
    layer = nn.Linear(3, 1)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    quadratic(
        layer, lambda _, output: 0 * output.sum(),
        Optimization(learning_rate=0.1, warmup=0, decay="constant", weight_decay=0.5), steps=1,
    )
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 3), 0.95))
    assert layer.bias.item() == 1.0


def unusable_loss(output: Tensor) -> Tensor:
    return output.sum() * float("nan")


def unusable_gradient(output: Tensor) -> Tensor:
    return (0 * output).sqrt().sum()  # the loss is zero, its gradient 0 * infinity


UNUSABLE = {"loss": unusable_loss, "gradient": unusable_gradient}


@pytest.mark.parametrize("fault", list(UNUSABLE))
def test_a_step_that_is_not_finite_leaves_the_weights_and_is_recorded_with_its_rows(fault: str) -> None:
    layer = nn.Linear(3, 1)
    seen: list[Tensor] = []

    def after(step: int, row: dict[str, Any]) -> None:
        seen.append(layer.weight.detach().clone())

    curve = quadratic(
        layer, lambda step, output: UNUSABLE[fault](output) if step in (2, 3, 5) else output.square().sum(),
        Optimization(learning_rate=0.01, patience=3), after=after, steps=8,
    )
    assert [row["skipped"] for row in curve] == [0, 0, 1, 1, 0, 1, 0, 0]
    named = [(row["step"], row["fault"], row["rows"]) for row in curve if row["skipped"]]
    assert named == [(3, fault, [20, 21]), (4, fault, [30, 31]), (6, fault, [50, 51])]
    changed = [not torch.equal(one, other) for one, other in pairwise(seen)]
    assert changed == [True, False, False, True, False, True, True]
    assert all(torch.isfinite(weight).all() for weight in seen)


def test_what_is_not_finite_before_the_loss_skips_the_step_without_computing_it() -> None:
    layer = nn.Linear(3, 1)
    before = copy.deepcopy(layer.state_dict())

    def loss(batch: int) -> Loss:
        raise AssertionError("the loss of a step that is skipped is not computed")

    curve = train(
        layer, 2, lambda step: Step([step], 1.0, {"reward": math.nan}, rows=[7], fault="reward"), loss,
        Optimization(learning_rate=0.01), checkpoint=None, progress=Silent(),
    )
    assert [(row["fault"], row["rows"]) for row in curve] == [("reward", [7])] * 2
    assert all(torch.equal(before[name], weight) for name, weight in layer.state_dict().items())


def test_too_many_such_steps_in_a_row_stop_the_run_with_the_weights_as_they_were() -> None:
    layer = nn.Linear(3, 1)
    before = layer.weight.detach().clone()
    told = r"3 steps in a row .* the loss of step 3 of the rows 20, 21\. Look at these rows, or lower the learning rate"
    with pytest.raises(TrainingError, match=told):
        quadratic(layer, lambda _, output: unusable_loss(output), Optimization(learning_rate=0.01, patience=3))
    assert torch.equal(layer.weight, before)


def test_a_bad_state_is_never_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0)
    layer = nn.Linear(3, 1)
    with pytest.raises(TrainingError):
        quadratic(
            layer, lambda step, output: unusable_loss(output) if step >= 2 else output.square().sum(),
            Optimization(learning_rate=0.01, patience=2), checkpoint=checkpoint,
        )
    state = checkpoint.restore(layer, training._optimizers(layer, Optimization(learning_rate=0.01)))
    assert state is not None
    assert [row["step"] for row in state["curve"]] == [1, 2]


def test_the_curve_is_on_disk_while_the_training_goes_on(tmp_path: Path) -> None:
    """A training that goes on from its checkpoint begins its curve there."""
    file, layer = tmp_path / "curve.jsonl", nn.Linear(3, 1)
    lengths: list[int] = []
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0, every=2)

    def loss(step: int, output: Tensor) -> Tensor:
        lengths.append(len(read_curve(file)))
        if step == 3 and len(lengths) == 4:
            raise Killed
        return output.square().sum()

    def go_on() -> Curve:
        return quadratic(
            layer, loss, Optimization(learning_rate=0.01), checkpoint=checkpoint, start={"validation_kl": 0.0}
        )

    with pytest.raises(Killed):
        go_on()
    assert [row["step"] for row in read_curve(file)] == [0, 1, 2, 3]
    curve = go_on()
    assert lengths == [1, 2, 3, 4, 3, 4, 5, 6]
    assert read_curve(file)[0] == {"step": 0, "validation_kl": 0.0}
    assert [row["loss"] for row in read_curve(file)[1:]] == pytest.approx([row["loss"] for row in curve], rel=1e-6)


def test_a_training_ends_where_it_is_told_to() -> None:
    seen: list[int] = []

    def after(step: int, row: dict[str, Any]) -> bool:
        seen.append(step)
        return step == 2

    curve = quadratic(
        nn.Linear(3, 1), lambda _, output: output.square().sum(), Optimization(learning_rate=0.01), steps=8, after=after
    )
    assert seen == [0, 1, 2]
    assert [row["step"] for row in curve] == [1, 2, 3]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0)
    layer = nn.Linear(3, 1)

    def after(step: int, row: dict[str, Any]) -> None:
        if step == 2:  # as an update that overflows would leave them
            with torch.no_grad():
                layer.weight[0, 1] = math.inf

    with pytest.raises(TrainingError):
        quadratic(
            layer, lambda _, output: output.square().sum(), Optimization(learning_rate=0.01, patience=1),
            checkpoint=checkpoint, after=after,
        )
    state = checkpoint.restore(layer, training._optimizers(layer, Optimization(learning_rate=0.01)))
    assert state is not None
    assert [row["step"] for row in state["curve"]] == [1, 2]
    assert all(torch.isfinite(weight).all() for weight in layer.parameters())


def test_a_run_killed_behind_a_skipped_step_still_knows_of_it(tmp_path: Path) -> None:
    optimization = Optimization(learning_rate=0.01, patience=3)

    def run(killed: bool, checkpoint: Checkpoint | None) -> tuple[Curve, nn.Module]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)

        def loss(step: int, output: Tensor) -> Tensor:
            if killed and step == 5:
                raise Killed
            return unusable_loss(output) if step in (1, 3) else output.square().sum()

        return quadratic(layer, loss, optimization, checkpoint=checkpoint, steps=8), layer

    expected, whole = run(killed=False, checkpoint=None)
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0)
    with pytest.raises(Killed):
        run(killed=True, checkpoint=checkpoint)
    curve, layer = run(killed=False, checkpoint=checkpoint)
    for rows in (curve, expected):  # no number equals what is no number
        assert [row.get("rows") for row in rows if row["skipped"]] == [[10, 11], [30, 31]]
        for row in rows:
            row.update({name: "nan" for name, value in row.items() if value != value})
    assert curve == expected
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(whole.parameters(), layer.parameters(), strict=True))


def test_the_learning_rate_by_hand() -> None:
    cosine = Optimization(learning_rate=1.0, warmup=0.2)
    assert [cosine.factor(step, 10) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert cosine.factor(6, 10) == pytest.approx(0.1 + 0.9 * 0.5)
    assert cosine.factor(9, 10) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    linear = Optimization(learning_rate=1.0, warmup=0.2, decay="linear")
    assert [linear.factor(step, 10) for step in (2, 4, 9)] == pytest.approx([1.0, 0.775, 0.2125])
    constant = Optimization(learning_rate=1.0, warmup=0, decay="constant")
    assert {constant.factor(step, 10) for step in range(10)} == {1.0}
    assert cosine.factor(0, 1) == 1.0


def test_the_curve_shows_the_rate_of_every_step() -> None:
    curve = learn(policy(), Optimization(learning_rate=2e-3, warmup=0.25, decay="linear"))
    expected = [0.5, 1, 1, *(0.1 + 0.9 * (1 - k / 6) for k in range(1, 6))]
    assert [row["learning_rate"] / 2e-3 for row in curve] == pytest.approx(expected)
    assert [row["step"] for row in curve] == list(range(1, STEPS + 1))


EIGHT_BITS = pytest.param({"optimizer": "adamw_8bit"}, marks=pytest.mark.skipif(
    not nf4.available(), reason="bitsandbytes is not installed"
))


@pytest.mark.parametrize("optimizer", [{}, {"muon_learning_rate": 0.02}, EIGHT_BITS])
@pytest.mark.parametrize("kills", [[1], [5], [2, 3, 7]])
def test_a_killed_training_goes_on_to_the_same_bits(
    tmp_path: Path, optimizer: dict[str, Any], kills: list[int]
) -> None:
    optimization = Optimization(learning_rate=3e-3, weight_decay=0.1, **optimizer)
    make = wide if optimizer.get("optimizer") else policy
    whole = make()
    expected = learn(whole, optimization, split=2)
    for killed_at in [*kills, None]:
        model = make()
        checkpoint = Checkpoint(tmp_path / "training.pt", seconds=0)
        if killed_at is None:
            curve = learn(model, optimization, split=2, checkpoint=checkpoint)
        else:
            with pytest.raises(Killed):
                learn(model, optimization, split=2, checkpoint=checkpoint, killed_at=killed_at)
    assert curve == expected
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = policy()
    adamw, muon = training._optimizers(model, Optimization(learning_rate=1e-3, muon_learning_rate=0.02))
    taken = {id(weight) for group in muon.param_groups for weight in group["params"]}
    named = {name for name, weight in model.named_parameters() if id(weight) in taken}
    assert named == {name for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2}
    others = {id(weight) for group in adamw.param_groups for weight in group["params"]}
    assert not taken & others
    assert taken | others == {id(weight) for weight in model.parameters()}


@pytest.mark.skipif(not nf4.available(), reason="bitsandbytes is not installed")
def test_adamw_in_8_bits_may_have_all_there_is_to_train() -> None:
    model = wide()
    for name, weight in model.named_parameters():
        weight.requires_grad = ".layers.0." in name and weight.ndim == 2  # as adapters are
    (optimizer,) = training._optimizers(model, Optimization(learning_rate=1e-3, optimizer="adamw_8bit"))
    assert len(optimizer.param_groups[0]["params"]) == 7


def test_one_rollout_that_cannot_be_learnt_is_one_fault_however_often_it_is_used() -> None:
    model, faulty = policy(), False

    def prepare(number: int) -> Step[int]:
        return Step([number], 1.0, fault="reward" if faulty or not number else None)

    def fall(batch: int) -> Loss:
        return Loss(sum((weight.sum() for weight in model.parameters()), torch.zeros(())))

    def curve(times: int) -> Curve:
        config = Optimization(learning_rate=1e-3, patience=2)
        return train(model, 6, reused(prepare, times), fall, config, checkpoint=None, progress=Silent())

    assert [row["skipped"] for row in curve(3)] == [1, 1, 1, 0, 0, 0]
    faulty = True
    with pytest.raises(TrainingError, match="2 steps in a row"):
        curve(3)


@pytest.mark.skipif(not nf4.available(), reason="bitsandbytes is not installed")
def test_adamw_in_8_bits_learns_as_adamw_does() -> None:
    losses, others = (
        [row["loss"] for row in learn(wide(), Optimization(learning_rate=3e-3, optimizer=kind), steps=16)]
        for kind in ("adamw", "adamw_8bit")
    )
    assert losses != others
    assert losses[-1] < 0.9 * losses[0]
    assert others == pytest.approx(losses, rel=0.01)


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    layer = nn.Linear(3, 1)
    optimizers = training._optimizers(layer, Optimization(learning_rate=0.01))
    checkpoint = Checkpoint(tmp_path / "deep" / "training.pt", seconds=3600)
    assert checkpoint.restore(layer, optimizers) is None
    assert not checkpoint.due(1)
    checkpoint.save(layer, optimizers, {"curve": []})
    (tmp_path / "deep" / "training.partial").write_bytes(b"cut off by a kill")
    assert checkpoint.restore(layer, optimizers) == {"curve": []}


def test_saving_takes_a_fiftieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([60.0, 60.0, 69.0, 69.0 + 449.0, 69.0 + 450.0])  # a save takes 9 seconds
    monkeypatch.setattr("triptych.engine.checkpoint.time.monotonic", lambda: next(clock))
    checkpoint = Checkpoint(tmp_path / "training.pt", seconds=60, saved=0.0)
    assert checkpoint.due(1)
    checkpoint.save(nn.Linear(3, 1), [], {})
    assert [checkpoint.due(2), checkpoint.due(2)] == [False, True]
    assert Checkpoint(tmp_path / "training.pt", seconds=0, took=9.0).interval == 0


def test_epochs_are_shuffled_differently_and_the_same_every_time() -> None:
    orders = [shuffled(50, epoch, seed) for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert shuffled(50, 1, 2) == orders[-1]


def test_a_curve_comes_back(tmp_path: Path) -> None:
    curve = [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "loss": 0.25, "reward": -1.0}]
    write_curve(tmp_path / "curve.jsonl", curve)
    assert read_curve(tmp_path / "curve.jsonl") == curve
    skipped = {"loss": math.nan, "gradient_norm": math.inf, "rows": [3], "fault": "loss"}
    write_curve(tmp_path / "skipped.jsonl", [skipped])
    assert (tmp_path / "skipped.jsonl").read_text() == (
        '{"loss": null, "gradient_norm": null, "rows": [3], "fault": "loss"}\n'
    )
    assert math.isnan(read_curve(tmp_path / "skipped.jsonl")[0]["loss"])
    assert read_curve(tmp_path / "none.jsonl") == []


def test_a_micro_batch_that_is_not_given_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, chosen = GradientAccumulation(learning_rate=1.0), GradientAccumulation(learning_rate=1.0, micro_batch=512)
    for kind, tokens in (("cpu", 1024), ("cuda", 8192)):
        monkeypatch.setattr(training, "device", lambda kind=kind: torch.device(kind))
        assert usual.at_once == tokens
        assert chosen.at_once == 512
    assert usual.micro_batch is None  # so that a run is the same one on another machine
