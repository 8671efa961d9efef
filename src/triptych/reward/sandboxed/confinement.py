"""A process gives up what it will not need; there is no way back. Uses nothing but the standard library.

Seccomp forbids other processes and all memory that no limit counts, so that the limit on one address space is the limit
on the sum; threads share that address space and are allowed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterator, Sequence

FILES = 1 << 24
"""Bytes that the work folder can hold, in sum."""

ENTRIES = 1024
"""Files, folders and links that it can hold."""

NOWHERE = 0x7F000000
"""From here on are the user ids that the code gets where it is started by root; they belong to nobody."""

SYSTEM_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "clone": 56, "clone3": 435, "socket": 41, "fcntl": 72,
        "fork": 57, "vfork": 58, "ptrace": 101, "process_vm_readv": 310, "unshare": 272, "setns": 308, "mount": 165,
        "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68,
        "mq_open": 240, "io_setup": 206, "io_uring_setup": 425, "userfaultfd": 323, "bpf": 321,
        "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250,
    }),
    "aarch64": (0xC00000B7, {
        "clone": 220, "clone3": 435, "socket": 198, "fcntl": 25,
        "ptrace": 117, "process_vm_readv": 270, "unshare": 97, "setns": 268, "mount": 40,
        "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186,
        "mq_open": 180, "io_setup": 0, "io_uring_setup": 425, "userfaultfd": 282, "bpf": 280,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219,
    }),
}
"""For each processor its number in the kernel's audit, and the system calls that the filter knows."""


class ConfinementError(Exception):
    """The kernel refused a limit; nothing may run."""


def confine(seconds: float, mebibytes: int, *, boxed: bool) -> None:
    """Limits this process and all that comes of it.

    Args:
        seconds: of processor time.
        mebibytes: of address space.
        boxed: whether this is inside bwrap, whose /tmp is a file system in memory.

    Raises:
        ConfinementError: a limit could not be set, and `boxed` asks for all of them.
    """
    linux = sys.platform == "linux"
    kernel = ctypes.CDLL(None, use_errno=True)
    if boxed:
        options = f"size={FILES},nr_inodes={ENTRIES}".encode()
        _hold("the size of /tmp", kernel.mount(None, b"/tmp", None, 32 | 2 | 4, options))  # remount, nosuid, nodev
        if os.getuid() == 0:
            nobody = NOWHERE + int.from_bytes(os.urandom(2), "little")
            os.setgroups([])
            os.setresgid(nobody, nobody, nobody)
            os.setresuid(nobody, nobody, nobody)
        _hold("capabilities", kernel.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    for name, most in (
        ("CPU", int(seconds) + 1), ("AS", mebibytes << 20), ("FSIZE", FILES), ("NOFILE", 64), ("NPROC", 64),
        ("CORE", 0), ("MSGQUEUE", 0), ("SIGPENDING", 64), ("MEMLOCK", 1 << 16),
    ):
        if hasattr(resource, f"RLIMIT_{name}"):
            try:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
            except (OSError, ValueError) as error:
                if boxed:
                    raise ConfinementError(f"limit {name}: {error}") from None
    if linux:
        held = kernel.prctl(38, 1, 0, 0, 0) == 0 and _seccomp(kernel)  # no new privileges
        if boxed and not held:
            raise ConfinementError(f"no system call filter on {os.uname().machine}")
        _landlock(kernel, os.getcwd())


def _hold(what: str, returned: int) -> None:
    if returned != 0:
        raise ConfinementError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _seccomp(kernel: ctypes.CDLL) -> bool:
    """The filter on system calls; False where the kernel has none."""
    known = SYSTEM_CALLS.get(os.uname().machine)
    if known is None:
        return False
    program = b"".join(struct.pack("HBBI", *step) for step in _filter(*known))
    steps = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    return int(kernel.prctl(22, 2, header, 0, 0)) == 0


def _filter(architecture: int, calls: dict[str, int]) -> Iterator[tuple[int, ...]]:
    """Steps of classic BPF: (operation, jump if so, jump if not, operand). Offsets are those of `seccomp_data`."""
    load, equal, least, has, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, forbid, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    number, processor, first, second = 0, 4, 16, 24

    def only(call: str, argument: int, test: int, value: int, so: int, otherwise: int) -> Iterator[tuple[int, ...]]:
        yield equal, 0, 4, calls[call]
        yield load, 0, 0, argument
        yield test, 0, 1, value
        yield end, 0, 0, so
        yield end, 0, 0, otherwise

    steps: list[tuple[int, ...]] = [
        (load, 0, 0, processor), (equal, 1, 0, architecture), (end, 0, 0, kill),
        (load, 0, 0, number), (least, 0, 1, 0x40000000), (end, 0, 0, forbid),  # the x32 calls of x86_64
        (equal, 0, 1, calls["clone3"]), (end, 0, 0, missing),  # the C library then uses clone, whose flags can be seen
        *only("clone", first, has, 0x10000, allow, forbid),  # a thread
        *only("socket", first, equal, 1, allow, forbid),  # AF_UNIX, which asyncio needs
        *only("fcntl", second, equal, 1031, forbid, allow),  # a larger pipe
    ]
    for name, call in calls.items():
        if name not in ("clone", "clone3", "socket", "fcntl"):
            steps += [(equal, 0, 1, call), (end, 0, 0, forbid)]
    yield from [*steps, (end, 0, 0, allow)]


def _landlock(kernel: ctypes.CDLL, folder: str) -> None:
    """Reads the interpreter's folders, writes one folder; nothing else, where the kernel has Landlock."""
    abi = kernel.syscall(444, None, 0, 1)
    if abi < 1:
        return
    known = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    rules = struct.pack("QQ", known, 3) if abi >= 4 else struct.pack("Q", known)
    ruleset = kernel.syscall(444, rules, len(rules), 0)
    execute_and_read, read, write = 1 | 4 | 8, 4, 2
    readable: Sequence[str] = (sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", *filter(None, sys.path))
    allowed = {path: execute_and_read for path in readable}
    allowed |= {folder: known, "/dev/urandom": read, "/dev/null": read | write}
    for path, access in allowed.items():
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                access &= 1 | 2 | 4 | (1 << 14 if abi >= 3 else 0)
            kernel.syscall(445, ruleset, 1, struct.pack("=Qi", access, place), 0)
            os.close(place)
    if kernel.syscall(446, ruleset, 0) != 0:
        raise ConfinementError("Landlock refused its rules")
    os.close(ruleset)
