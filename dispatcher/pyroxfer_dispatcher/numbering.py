"""Numbers of the bodies that leave in pieces on one connection: so many at once, and the others in turn."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from pyroxfer_core.wire import MAX_BODIES

from .hub import Hub


class Numbered(Protocol):
    """Whose body is to leave."""

    @property
    def waits_for_number(self) -> bool:
        """Whether it still is to."""

    def take_number(self, number: int) -> None:
        """It may leave under this number."""


class Numbers:
    """Those of one connection."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._free = list(range(MAX_BODIES))
        self._waiting: deque[Numbered] = deque()

    def take(self, who: Numbered) -> int | None:
        """A number that is free; None: `Numbered.take_number` tells it later."""
        if self._free:
            return self._free.pop()
        self._waiting.append(who)
        return None

    def give(self, number: int) -> None:
        """The body has left."""
        self._free.append(number)
        if self._waiting:
            self._hub.later(self._hand_out)

    def _hand_out(self, now: float) -> None:
        while self._free and self._waiting:
            who = self._waiting.popleft()
            if who.waits_for_number:
                who.take_number(self._free.pop())
