"""Ports for services that must be told theirs, or come back on it."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from random import Random

FIRST, SHARE, SHARES = 10_000, 1_000, 20
"""Below those that the system gives to sockets that ask for any (from 32,768 on Linux): nobody takes one by accident
between the question and its use, or while a service is down."""


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on, each given once by a process; of test runners side by side each has its
    own share of them."""
    return list(itertools.islice(filter(_is_free, _CANDIDATES), count))


def _candidates() -> Iterator[int]:
    runner = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    share = int(runner or os.getpid()) % SHARES
    start = Random(os.getpid()).randrange(SHARE)
    return (FIRST + share * SHARE + (start + step) % SHARE for step in itertools.count())


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


_CANDIDATES = _candidates()
