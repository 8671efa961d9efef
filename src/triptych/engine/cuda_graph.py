"""Work of a CUDA device recorded once and replayed, so that a decoding step's small kernels are launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FEW = 4
"""So many calls with the same shapes are not worth a recording."""


class CudaGraph:
    """A function of tensors that is recorded as a CUDA graph once it is called often with the same shapes.

    The function works on the device alone and waits for nothing. What else it reads or writes stays where it is. What
    it needs meanwhile lies in one place for all shapes: one recording is replayed at a time.

    Args:
        function: gives one tensor; its result lasts until the next call.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result for these arguments."""
        shapes = tuple(argument.shape for argument in arguments)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= FEW:
            return self.function(*arguments)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(arguments)
        graph, places, result = self._graphs[shapes]
        for place, argument in zip(places, arguments, strict=True):
            place.copy_(argument)
        graph.replay()
        return result

    def _record(self, arguments: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        places = [argument.clone() for argument in arguments]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels and fetch their memory in a first call
            for _ in range(2):
                self.function(*places)
        torch.cuda.current_stream().wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another thread may work on the device meanwhile, as a server's reward does; its calls are no part of this.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self.function(*places)
        return graph, places, result
