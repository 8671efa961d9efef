"""glibc's allocator, which learns some things only where a program begins.

torch asks for memory at multiples of 64 bytes. glibc (seen of 2.36) cuts such a piece out of a larger one, and the ends
that are left go to its caches of small pieces, from where they do not grow together again. So a freed tensor leaves a
hole into which the same tensor does not fit, and a training takes up to a third more memory than without these caches
(docs/log.md).
"""

from __future__ import annotations

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""No caches of small pieces; Python has its own."""


def begin_anew() -> None:
    """Begins this process anew without these caches, unless its environment says something of them already.

    To be called before anything is done, as by the command line. Elsewhere the variable is the user's to set.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    os.environ[VARIABLE] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
