"""Processes that a script starts, and that must not outlive it. Standard library only."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def clean_up_when_told_to_end() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: what was entered is left, and servers are stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))


def _end_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec nothing may be loaded

    def end_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return end_with_parent


END_WITH_PARENT: Final = _end_with_parent()
"""As ``preexec_fn``: the child gets SIGTERM when the thread that starts it ends, even by kill -9, where the system is
Linux. For programs that start everything in their main thread."""
