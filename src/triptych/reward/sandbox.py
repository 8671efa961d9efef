"""Code that a model wrote, run against unit tests in a process of its own with limits.

What holds on Linux, as far as the kernel allows it (:func:`confinement` says what it allows here):

- time: wall clock and CPU; then the process and all that it started are killed;
- memory: the address space of each process; sizes and number of files, number of processes;
- files: by Landlock only the interpreter's folders and /usr can be read, and only a temporary folder written;
- network: a network namespace of its own without any interface; else TCP is refused by Landlock.

What it does not protect from: faults of the kernel itself, heating the processor for the time it is given, and an
answer that looks for a way to pass dishonestly. Answer and tests share one interpreter, so code that patches what
the tests call, or that searches the interpreter for how a pass is reported, can claim one. Where a policy is trained
for long against tests, look at what it writes. For code from strangers use a virtual machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache

from triptych.errors import RewardError

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
LANDLOCK_CREATE = 444
"""The system call landlock_create_ruleset, whose number is the same on every architecture."""

HARNESS = r'''
import ctypes, json, os, resource, struct, sys

job = json.load(sys.stdin)
report = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)

def confine(folder):
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        return
    known = (1 << 13) - 1
    known |= (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    read = 1 | 4 | 8
    rules = struct.pack("QQ", known, 3) if abi >= 4 else struct.pack("Q", known)
    ruleset = libc.syscall(444, rules, len(rules), 0)
    allowed = {path: read for path in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64"}}
    allowed |= {folder: known, "/dev/urandom": 4, "/dev/null": 2 | 4}
    for path, access in allowed.items():
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                access &= 1 | 2 | 4 | (1 << 14 if abi >= 3 else 0)
            libc.syscall(445, ruleset, 1, struct.pack("=Qi", access, place), 0)
            os.close(place)
    libc.prctl(38, 1, 0, 0, 0)
    if libc.syscall(446, ruleset, 0) != 0:
        os._exit(3)
    os.close(ruleset)

if sys.platform == "linux":
    confine(os.getcwd())
memory, seconds = job["memory"], job["seconds"]
for name, most in (
    ("RLIMIT_CPU", int(seconds) + 1), ("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 1 << 24), ("RLIMIT_NOFILE", 64),
    ("RLIMIT_NPROC", 64), ("RLIMIT_CORE", 0),
):
    resource.setrlimit(getattr(resource, name), (most, most))

def run(code, tests, report, word):
    world = {"__name__": "answer"}
    exec(compile(code, "answer.py", "exec"), world)
    exec(compile(tests, "tests.py", "exec"), world)
    os.write(report, word)

try:
    run(job["code"], job["tests"], report, job["word"].encode())
except BaseException as error:
    os.write(report, f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace"))
finally:
    os._exit(0)
'''


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether tests passed, and if not why."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What keeps the code in here.

    Attributes:
        namespaces: processes and network of its own.
        files: the kernel's ABI of Landlock; 0 where there is none.
    """

    namespaces: bool
    files: int

    @property
    def network(self) -> bool:
        """Whether the network is out of reach, TCP at least."""
        return self.namespaces or self.files >= 4

    @property
    def whole(self) -> bool:
        """Whether both files and network are kept from it."""
        return self.network and self.files > 0

    def __str__(self) -> str:
        parts = {"no network": self.network, "own processes": self.namespaces, "few files": self.files > 0}
        return ", ".join(name if has else f"not: {name}" for name, has in parts.items())


@cache
def confinement() -> Confinement:
    """What this machine's kernel allows."""
    if sys.platform != "linux":
        return Confinement(False, 0)
    spaces = shutil.which("unshare") is not None and subprocess.run(
        [*NAMESPACES, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    ).returncode == 0
    return Confinement(spaces, max(0, ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE, None, 0, 1)))


def run_tests(
    code: str, tests: str, *, seconds: float = 5.0, mebibytes: int = 512, unconfined: bool = False
) -> Verdict:
    """Runs `code`, then `tests` in the same namespace; passed where nothing was raised to the end.

    Args:
        code, tests: Python; what they print goes nowhere.
        seconds: of wall clock for all of it; CPU time is limited to the same.
        mebibytes: of address space.
        unconfined: run it also where files or network cannot be kept from it; the other limits hold all the same.

    Raises:
        RewardError: this machine cannot keep files or network from the code, and `unconfined` is not set.
    """
    kept = confinement()
    if not kept.whole and not unconfined:
        raise RewardError(
            f"unit tests: this machine cannot confine the code that a model writes ({kept}); run it in a container or "
            "a virtual machine that may be harmed, and set `unconfined: true` there"
        )
    word = secrets.token_hex(16)
    job = {"code": code, "tests": tests, "seconds": seconds, "memory": mebibytes << 20, "word": word}
    command = [*(NAMESPACES if kept.namespaces else ()), sys.executable, "-I", "-c", HARNESS]
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    # Its report goes into a file, which RLIMIT_FSIZE bounds, and not into a pipe that could be flooded.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as report:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=report, stderr=subprocess.DEVNULL, cwd=folder,
            env=environment, start_new_session=True,
        ) as process:
            try:
                process.communicate(json.dumps(job).encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                return Verdict(False, f"took longer than {seconds:g} seconds")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        report.seek(0)
        said = report.read(1000).decode("utf-8", "replace")
    return Verdict(True) if said == word else Verdict(False, said or f"ended with code {process.returncode}")
