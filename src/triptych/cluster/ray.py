"""Ranks of a Ray cluster, started by Ray Train, wherever the cluster has devices or cores for them.

The command is given inside the cluster, as `ray job submit` does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from triptych.engine.distributed import BACKENDS, PATIENCE
from triptych.errors import RunError


def launch(work: Callable[[], int], ranks: int) -> None:
    """Has so many ranks of the cluster do the same work, and waits for them.

    Args:
        work: in this folder, which is at the same path on every machine; its result is an exit code.

    Raises:
        RunError: Ray is not installed, there is no cluster here, or a rank failed, which says itself why.
    """
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise RunError("--ray needs Ray Train; install triptych[ray]") from error
    try:
        ray.init("auto")
    except ConnectionError as error:
        raise RunError("--ray: there is no Ray cluster here; give the command to one by `ray job submit`") from error
    devices = ray.cluster_resources().get("GPU", 0) > 0
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"work": work, "folder": os.getcwd()},
        # Devices of one machine are nearest to each other; cores are shared out among the ranks of a machine.
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=devices, placement_strategy="PACK" if devices else "SPREAD"
        ),
        # Nothing is kept there: what a run leaves is in its own folder.
        run_config=RunConfig(storage_path=tempfile.gettempdir()),
        torch_config=TorchConfig(BACKENDS if devices else "gloo", timeout_s=int(PATIENCE.total_seconds())),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RunError(f"a rank failed: {error}") from error


def _rank(given: Mapping[str, Any]) -> None:
    os.chdir(given["folder"])
    if code := given["work"]():
        raise RuntimeError(f"exit code {code}")
