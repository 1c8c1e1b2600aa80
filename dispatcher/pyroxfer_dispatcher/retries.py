"""How many calls may be sent a second time. Pure."""

from __future__ import annotations

from typing import Final

MAX_SENDS: Final = 3
"""Connections on which one request is begun; connects that are refused do not count."""
SHARE: Final = 0.1
"""Retries for each call."""
AT_FIRST: Final = 10.0
"""Retries that a service has before it has had any calls ..."""
MOST: Final = 100.0
"""... and the most it can save up."""


class RetryBudget:
    """A service in trouble must not get more calls for it: at most one retry for ten calls, in the long run."""

    __slots__ = ("_left", "denied", "used")

    def __init__(self) -> None:
        self._left = AT_FIRST
        self.used = 0
        self.denied = 0

    def earn(self) -> None:
        """A call came."""
        if self._left < MOST:
            self._left += SHARE

    def spend(self) -> bool:
        """Whether one retry may be made now."""
        if self._left < 1.0:
            self.denied += 1
            return False
        self._left -= 1.0
        self.used += 1
        return True
