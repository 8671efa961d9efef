"""A server of vLLM: the command that starts one in vLLM's own environment, and one that ends with this process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import weakref
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from triptych.display import one_line
from triptych.engine.device import compute_dtype, device
from triptych.engine.vllm_environment import triptych_server
from triptych.errors import ModelError

SHARE = 0.35
"""Of the memory of the device; the rest is for training there."""
STARTING = 1800.0
"""Seconds in which a server must have started; compilation is part of it."""


def interpreter(program: str) -> Path:
    """The Python of the environment that vLLM's program belongs to.

    Raises:
        ModelError: there is no such program.
    """
    path = shutil.which(Path(program).expanduser())
    python = Path(path).resolve().parent / "python" if path else None
    if python is None or not python.exists():
        raise ModelError(
            f"{one_line(program)}: there is no such program; install vLLM into an environment of its own (uv tool "
            "install vllm) and name its program, or the address of a server that `triptych sampler serve` started"
        )
    return python


def command(program: str, folder: Path, host: str, port: int) -> list[str]:
    """What starts a server with the model of a folder, in the environment of vLLM's program."""
    script = Path(triptych_server.__file__)
    settings: dict[str, object] = {
        "model": folder, "host": host, "port": port, "dtype": str(compute_dtype()).removeprefix("torch."),
        "max-model-len": -1,  # as much of the context as the memory holds
        "gpu-memory-utilization": SHARE,
        "logprobs-mode": "processed_logprobs",  # of the distribution that is sampled from
        "generation-config": "vllm",  # what the folder says of decoding is not for the answers that are learnt from
        "worker-extension-cls": f"{script.stem}.{triptych_server.WholeReload.__name__}",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    eager = ["--enforce-eager"] if device().type == "cpu" else []  # compiling takes minutes on a CPU
    return [str(interpreter(program)), str(script), *words, *eager]


def environment() -> dict[str, str]:
    """The environment of such a server: without what steers our Python and ranks, with the calls that take weights."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "PYTHONPATH": str(Path(triptych_server.__file__).parent), "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


class VllmServer:
    """A server that this process started; it ends with it.

    Args:
        program: vLLM's.
        folder: the Hugging Face folder whose model it begins with.

    Attributes:
        address: where it answers.
        log: the file of what it writes; gone when it has ended as it should.

    Raises:
        ModelError: it did not start; the error names the file of what it wrote.
    """

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        with NamedTemporaryFile(prefix="triptych-vllm-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            process = subprocess.Popen(
                [*command(program, folder, "127.0.0.1", port), triptych_server.WITH_PARENT],
                env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        try:
            self._wait(process)
        except BaseException:
            _end(process)
            raise
        self.close = weakref.finalize(self, _end, process, self.log)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        import httpx2

        until = time.monotonic() + STARTING
        while time.monotonic() < until and process.poll() is None:
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.address}/health", trust_env=False).is_success:
                    return
            time.sleep(0.5)
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if "Error" in line]
        why = f": {one_line(lines[-1])[-300:]}" if lines else ""
        raise ModelError(f"vLLM did not start{why}; what it wrote is in {self.log}")


def _end(process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    """Ends a server and all that it started; the log of one that had ended by itself stays."""
    if log is not None and process.poll() is None:
        log.unlink(missing_ok=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
