"""When no connection can be accepted for want of descriptors or memory: what the log is told of it, and how often."""

from __future__ import annotations

import errno
import logging
import math
from typing import Final

import trio

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.1
"""Before the next try, as other trio servers do."""
TELL_EVERY_S: Final = 10.0
"""A shortage that lasts is told again after this time, and not at every try."""
_CODES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def is_shortage(error: OSError) -> bool:
    """Whether trying again helps, once others have given something back."""
    return error.errno in _CODES


class Shortage:
    """Of one server; needs a running loop for its clock."""

    __slots__ = ("_held_back", "_quiet_until", "told")

    def __init__(self) -> None:
        self.told = False
        """Whether the last that was told is that nothing can be accepted."""
        self._quiet_until = -math.inf
        self._held_back = 0

    def met(self, error: OSError) -> None:
        """None could be accepted: log it, unless that was done a short time ago."""
        now = trio.current_time()
        if now < self._quiet_until:
            self._held_back += 1
            return
        log.error("cannot accept connections: %s; trying again%s", error.strerror, self._count())
        self.told, self._quiet_until = True, now + TELL_EVERY_S

    def over(self) -> None:
        """One was accepted: log it, if ``told``."""
        log.warning("connections are accepted again%s", self._count())
        self.told = False

    def _count(self) -> str:
        """How many tries were not told of since the last that was."""
        count, self._held_back = self._held_back, 0
        return f" (and {count} times more since the last message)" if count else ""
