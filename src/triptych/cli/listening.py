"""The address at which a command serves pages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import RunError


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its address as a browser takes it.

    Raises:
        RunError: nobody can listen there.
    """
    try:
        opened = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).split(" (")[0]
        raise RunError(f"--host {host} --port {port}: {reason}; give another port, or 0 for any") from None
    name = f"[{host}]" if ":" in host else host
    with opened:
        yield opened, f"http://{name}:{opened.getsockname()[1]}"
