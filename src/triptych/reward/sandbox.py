"""Code that a model wrote, run against unit tests: two processes, each in a sandbox of its own.

One process runs the answer's code, the other the tests. They share nothing but a pipe each way, on which the tests call
the answer's functions (:mod:`triptych.reward.sandboxed`): what the code patches is not in the interpreter that judges,
and what the tests expect is never in the memory of the code.

What holds, for each of the two:

- files: bubblewrap (`bwrap`) shows the interpreter's folders, read-only, and an empty /tmp in memory for at most 16 MiB
  and 1024 entries; Landlock beside it where the kernel has it;
- processes: a process namespace of its own, which ends with the verdict, whatever the code started or called;
- memory: the address space, of the only process that the system call filter allows, in which threads share;
- time: wall clock, and processor time;
- network: a namespace of its own without any interface, and no sockets but local ones;
- privileges: none, no environment, and where root runs it a user id that belongs to nobody.

What it does not protect from: faults of the kernel, heating the processor for the time it is given, and tests that ask
the answer for the verdict, as `assert make(1) == make(1)` does where both are objects of the answer's class. For code
from strangers use a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO

from triptych.errors import RewardError
from triptych.reward.sandboxed import answer, judge
from triptych.reward.sandboxed.confinement import FILES

HARNESS = Path(answer.__file__).parent
SOURCE = HARNESS.parents[2]
"""The folder from which the harness is imported; inside the sandbox there is nothing in it but the harness."""

LIBRARIES = tuple(dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib")))
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", "TMPDIR": "/tmp", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(SOURCE), *LIBRARIES)), "PYTHONHASHSEED": "0",
}


@dataclass(frozen=True, slots=True)
class UnitTestResult:
    """Whether tests passed, and if not why."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Whether this machine can confine code.

    Attributes:
        missing: what it lacks, and what to do; nothing where the sandbox is whole.
    """

    missing: str = ""

    @property
    def whole(self) -> bool:
        """Whether all of it holds."""
        return not self.missing

    def __str__(self) -> str:
        return self.missing or "confined: no files, no network, no other process, nothing after the verdict"


@cache
def confinement() -> Confinement:
    """Tries the sandbox once."""
    if sys.platform != "linux":
        return Confinement(f"there is no sandbox for {sys.platform}, only for Linux")
    if shutil.which("bwrap") is None:
        return Confinement("bubblewrap is missing (`apt install bubblewrap`, or `dnf install bubblewrap`)")
    verdict = _run("def one(): return 1", "assert one() == 1", 30.0, 256, boxed=True)
    return Confinement() if verdict.passed else Confinement(f"bubblewrap cannot be used here: {verdict.reason}")


def run_tests(
    code: str, tests: str, *, seconds: float = 5.0, mebibytes: int = 512, unconfined: bool = False
) -> UnitTestResult:
    """Runs `code`, then `tests`, which see its names; passed where nothing was raised to the end.

    Args:
        code, tests: Python; what they print goes nowhere but to each other.
        seconds: of wall clock for all of it; CPU time is limited to the same.
        mebibytes: of memory for the code, and as much for the tests.
        unconfined: run it also where it cannot be confined; the limits hold as far as they can be set.

    Raises:
        RewardError: this machine cannot confine the code, and `unconfined` is not set.
    """
    kept = confinement()
    if not kept.whole and not unconfined:
        raise RewardError(
            f"unit tests: this machine cannot confine the code that a model writes: {kept}. In a container or a "
            "virtual machine that may be harmed, `unconfined: true` runs it all the same"
        )
    return _run(code, tests, seconds, mebibytes, boxed=kept.whole)


def _run(code: str, tests: str, seconds: float, mebibytes: int, *, boxed: bool) -> UnitTestResult:
    limits = [str(seconds), str(mebibytes), str(int(boxed))]
    # The report goes into a file, which RLIMIT_FSIZE bounds, and not into a pipe that could be flooded.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as job, tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as faults,
        contextlib.ExitStack() as ends,
    ):
        job.write(json.dumps({"code": code, "tests": tests}).encode())
        job.seek(0)
        asked, asks = _pipe(ends)
        replies, tells = _pipe(ends)
        command = [*(_box() if boxed else ()), os.path.realpath(sys.executable), "-P", "-s", "-S", "-c"]
        with _started([*command, _main(answer), *limits], asked, tells, faults, folder):
            ends_of_judge = [str(replies), str(asks)]
            with _started(
                [*command, _main(judge), *limits, *ends_of_judge], job, report, faults, folder, (replies, asks)
            ) as judging:
                ends.close()  # so that each side sees when the other ends
                try:
                    judging.wait(timeout=seconds)
                except subprocess.TimeoutExpired:
                    return UnitTestResult(False, f"took longer than {seconds:g} seconds")
        report.seek(0)
        faults.seek(0)
        said = report.read(4000).decode("utf-8", "replace")
        if said == "null":
            return UnitTestResult(True)
        last = faults.read(10_000).decode("utf-8", "replace").strip().splitlines()[-1:]
        why = json.loads(said) if said else "".join(last) or f"ended with code {judging.returncode}"
        return UnitTestResult(False, why)


def _main(module: ModuleType) -> str:
    """Starts a module; `python -m` takes 10 ms more."""
    return f"from {module.__name__} import main; main()"


def _pipe(ends: contextlib.ExitStack) -> tuple[int, int]:
    pair = os.pipe()
    for end in pair:
        ends.callback(os.close, end)
    return pair


@contextlib.contextmanager
def _started(
    command: list[str], stdin: int | IO[bytes], stdout: int | IO[bytes], stderr: IO[bytes], folder: str,
    passed: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed in the end; what it started in its namespace dies with it."""
    with subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=folder, env=ENVIRONMENT, pass_fds=passed,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _box() -> tuple[str, ...]:
    """The command of bubblewrap up to the program."""
    root = os.getuid() == 0
    spaces = ("ipc", "pid", "net", "uts", *(() if root else ("user",)))
    shown = dict.fromkeys(("/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, *LIBRARIES, str(HARNESS)))
    # bwrap would give them the modes that they have outside, and /root none for others.
    parents = sorted({str(above) for path in shown for above in Path(path).parents} - {"/", "/tmp"})
    # Root needs no namespace of users; it gives itself away as one (:func:`confinement.confine`).
    kept = ("SYS_ADMIN", *(("SETUID", "SETGID") if root else ()))
    return (
        str(shutil.which("bwrap")), *(f"--unshare-{space}" for space in spaces), "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv",
        *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
        "--perms", "1777", "--size", str(FILES), "--tmpfs", "/tmp",
        *(word for path in parents for word in ("--perms", "0755", "--dir", path)),
        *(word for path in shown for word in ("--ro-bind-try", path, path)),
        *(word for path in ("/dev/null", "/dev/urandom") for word in ("--dev-bind", path, path)),
        "--remount-ro", "/", "--chdir", "/tmp", "--cap-drop", "ALL",
        *(word for name in kept for word in ("--cap-add", f"CAP_{name}")), "--",
    )
