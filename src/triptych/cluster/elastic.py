"""Ranks of this machine, started and watched by torchrun's elastic launch, which is used here as a library."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from triptych.errors import RunError

GRACE = 300
"""Seconds that ranks have to end in when they are asked to; the first one writes what the run came to."""


def launch(arguments: Sequence[str], ranks: int, nodes: int = 1, rendezvous: str | None = None, name: str = "") -> int:
    """Gives a command of `triptych` to so many ranks of this machine, and waits for them.

    Args:
        arguments: of the command line.
        nodes: machines on which this call is made; their ranks are one run.
        rendezvous: HOST or HOST:PORT of one of them, where they find each other.
        name: the run's, so that two runs do not meet there.

    Returns:
        0, or the exit code of the rank that failed first: 128 + signal where one ended it, and where one ended this.

    Raises:
        RunError: ranks cannot be started so, or the machines do not find each other.
    """
    _require(ranks, nodes, rendezvous)
    logging.disable(logging.ERROR)  # the ranks say themselves what is wrong
    try:
        with TemporaryDirectory(prefix="triptych-") as logs:
            config = LaunchConfig(
                nodes, nodes, ranks, max_restarts=0, rdzv_backend="c10d", rdzv_endpoint=rendezvous or "localhost:0",
                run_id=f"triptych-{name}" if rendezvous else uuid.uuid4().hex, shutdown_timeout=GRACE,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            elastic_launch(config, sys.executable)("-m", "triptych", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        killed = signal.Signals(-failure.exitcode)
        hint = "; the system does so where memory is short" if killed == signal.SIGKILL else ""
        raise RunError(f"rank {rank} was ended by {killed.name}{hint}. The same command goes on") from error
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except (RendezvousError, ValueError) as error:
        raise RunError(f"--rendezvous {rendezvous}: the machines do not find each other there ({error})") from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _require(ranks: int, nodes: int, rendezvous: str | None) -> None:
    """Refuses what cannot be started, before anything is."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("torchrun has started the ranks already; leave out --ranks and --nodes")
    if nodes > 1 and rendezvous is None:
        raise RunError(f"--nodes {nodes} needs --rendezvous HOST:PORT, one of the machines, where they find each other")
    if nodes == 1 and rendezvous is not None:
        raise RunError("--rendezvous is for several machines; give --nodes too")
    if torch.cuda.is_available() and ranks > (devices := torch.cuda.device_count()):
        raise RunError(f"--ranks {ranks}: each rank needs a device of its own, and this machine has {devices}")
