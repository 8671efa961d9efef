"""The processes that torchrun starts for one run: each computes its share, and all come to the same results.

Every rank runs the same program on the same data. What is long is shared: micro-batches, prompts to be answered,
answers to be scored; the results are gathered in their order, so that no rank can tell how many there are. In
training each rank holds a slice of the weights, of their gradients and of the optimizer's state (FSDP2: Zhao et
al. 2023, *PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel*), and a slice of every model that is not
trained. One process alone pays for none of it.
"""

from __future__ import annotations

import copy
import gc
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from triptych.engine.packing import APPLIED, fill
from triptych.errors import TriptychError

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

BACKENDS = "cpu:gloo,cuda:nccl"
PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others; one that fails is seen by torchrun at once, which ends all."""

SHARDING = "_triptych_sharding"
"""Where a model that lies in slices keeps what gathers them."""

_alone = False


def init() -> None:
    """Joins the ranks that torchrun started; does nothing in a process of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(BACKENDS, timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


def destroy() -> None:
    """Leaves the others when all have come this far.

    A thread of gloo that lets go of its last tensor while the interpreter ends aborts the process: the barrier, which
    holds none, and the pause let such a thread have the interpreter before.
    """
    if dist.is_initialized():
        dist.barrier()
        time.sleep(0.3)
        dist.destroy_process_group()


def world_size() -> int:
    """How many ranks work together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Which of them this one is; the first is 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def local_world_size() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def single_rank() -> Iterator[None]:
    """For what one rank does without the others: within, there is no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast(value: Item) -> Item:
    """The first rank's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_first(act: Callable[[], Item]) -> Item:
    """What the first rank alone does, on every rank; where it cannot, no rank goes on, and none waits for another.

    Raises:
        TriptychError: the first rank's, on all of them.
    """
    if world_size() == 1:
        return act()
    outcome: tuple[Item] | TriptychError | None = None
    if rank() == 0:
        try:
            with single_rank():
                outcome = (act(),)
        except TriptychError as error:
            outcome = error
    outcome = broadcast(outcome)
    assert outcome is not None
    if isinstance(outcome, TriptychError):
        raise outcome
    return outcome[0]


def all_reduce(numbers: Sequence[float]) -> list[float]:
    """Each number summed over the ranks, the same on all of them."""
    if world_size() == 1:
        return list(numbers)
    total = torch.tensor(list(numbers), dtype=torch.float64, device="cpu")
    dist.all_reduce(total)
    sums: list[float] = total.tolist()
    return sums


def shard(items: Sequence[Item]) -> list[Item]:
    """This rank's share: every `count`-th."""
    return list(items[rank() :: world_size()])


def all_gather(part: Sequence[Item], device: torch.device | str = "cpu") -> list[Item]:
    """What each rank made of its :func:`shard`, back in the order of the whole, on every rank.

    Args:
        device: where the tensors lie that it holds; one rank's is not another's.
    """
    if world_size() == 1:
        return list(part)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, _moved(list(part), "cpu"))
    order = [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]
    return _moved(order, device)


def shard_map(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], model: nn.Module | None = None,
    sizes: Iterable[int] = (),
) -> list[Result]:
    """What `work` makes of each item, in their order, on every rank; each item is worked on by one rank alone.

    Args:
        model: that the work computes with, without gradient. One that is not trained lies in slices from here on.
        sizes: of the items in tokens, where there is a model; it is given batches of at most `APPLIED`.
    """
    if model is None:
        return all_gather(work(shard(items)))
    if not any(weight.requires_grad for weight in model.parameters()):
        fully_shard_frozen(model)
    batches = [[items[i] for i in batch] for batch in micro_batches(sizes, APPLIED)]
    with torch.no_grad():
        made = [forward(model, work, batch) for batch, _ in shard_evenly(batches)]
    return [result for results in all_gather(made)[: len(batches)] for result in results]


def _moved(content: list[Item], device: torch.device | str) -> list[Item]:
    moved: list[Item] = tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, content)
    return moved


def shard_evenly(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """This rank's share of the items, as many on every rank: one that is short repeats the last, marked False."""
    short = -len(items) % world_size()
    return shard([(item, True) for item in items] + [(item, False) for item in items[-1:]] * short)


def micro_batches(sizes: Iterable[int], budget: int) -> list[list[int]]:
    """Items in their order in batches of at most `budget` tokens, as alike as possible, and enough for every rank.

    With one rank this is :func:`triptych.engine.packing.fill`.
    """
    sizes = list(sizes)
    batches = fill(sizes, budget)
    if world_size() == 1 or not batches:
        return batches
    wanted = -(-len(batches) // world_size()) * world_size()
    smaller = range(max(sizes), max(*sizes, budget) + 1)
    return fill(sizes, smaller[bisect_left(smaller, -wanted, key=lambda size: -len(fill(sizes, size)))])


class _Computation(nn.Module):
    """Any computation with a model as the forward pass of one module, at which FSDP gathers what it sharded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[Any], Any], batch: Any) -> Any:
        return function(batch)


@contextmanager
def fully_shard_within(model: nn.Module) -> Iterator[None]:
    """Within, each rank holds a slice of the model's weights; behind it, all hold the whole of them.

    Every layer is gathered when it computes; embeddings, last norm and head are gathered for a whole pass. The
    model is called through :func:`forward` as long as it is sharded. A group of one rank is sharded too, so that the
    whole way is tried on one device.
    """
    if not dist.is_initialized() or _alone:
        yield
        return
    _fully_shard(model)
    try:
        yield
        parts = dict(full_copy(model).named_children())
    finally:
        vars(model).pop(SHARDING)
    for name, part in parts.items():
        setattr(model, name, part)


def grouped() -> bool:
    """Whether this process is one of a group, in which models lie in slices."""
    return dist.is_initialized()


def fully_shard_frozen(model: Any) -> Any:
    """The model, which is not trained: from here on each rank holds a slice of it, and calls it by :func:`forward`."""
    if dist.is_initialized() and not _alone and SHARDING not in vars(model):
        gc.collect()  # a model in slices that is no longer used: its layers and FSDP's states hold each other
        _fully_shard(model)
    return model


def _fully_shard(model: nn.Module) -> None:
    """Leaves each rank a slice of every weight, and keeps on the model what gathers them, and what it looks like whole.

    Kept there, it goes when the model goes.
    """
    skeleton = _with_weights(model, [weight.detach().to("meta") for weight in model.parameters()])
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
        fully_shard(layer, mesh=mesh)
    root = _Computation(model)
    fully_shard(root, mesh=mesh)
    vars(model)[SHARDING] = root, skeleton


def forward(model: nn.Module, function: Callable[[Batch], Result], batch: Batch) -> Result:
    """`function(batch)`, which calls the model; every rank makes the same number of these calls.

    What carries a gradient is returned as a tensor, or in tuples, lists and dicts.
    """
    sharding: tuple[_Computation, nn.Module] | None = vars(model).get(SHARDING)
    if sharding is None:
        return function(batch)
    assert not _alone, "one rank alone cannot compute with a model that lies in slices"
    root, _ = sharding
    result: Result = root(function, batch)
    if not torch.is_grad_enabled():
        assert isinstance(root, FSDPModule)
        root.reshard()
    return result


def full_copy(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of the whole model, its floating weights in `dtype`; of a sharded one on every rank."""
    _, plain = vars(model).get(SHARDING, (None, model))
    weights = (full_tensor(weight.detach()) for weight in model.parameters())
    return _with_weights(plain, [weight.to(dtype or weight.dtype, copy=True) for weight in weights])


def _with_weights(model: Any, weights: Sequence[Tensor]) -> Any:
    """A copy of the model with these weights in place of its own; tied ones stay tied."""
    mine = list(model.parameters())
    new = [nn.Parameter(weight, requires_grad=own.requires_grad) for own, weight in zip(mine, weights, strict=True)]
    return copy.deepcopy(model, {id(own): weight for own, weight in zip(mine, new, strict=True)})


def full_tensor(content: Any) -> Any:
    """Tensors, or anything that holds tensors, with those gathered that lie in slices; all ranks call it."""
    if isinstance(content, Tensor):
        return content.full_tensor() if isinstance(content, DTensor) else content
    return tree_map(lambda part: full_tensor(part) if isinstance(part, DTensor) else part, content)


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The whole tensor in slices as another one lies; as it is where that one is whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def all_finite(tensors: Iterator[Tensor]) -> bool:
    """Whether every number of them is finite, on every rank."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return all_reduce([float(not all(bool(torch.isfinite(tensor).all()) for tensor in local))])[0] == 0
