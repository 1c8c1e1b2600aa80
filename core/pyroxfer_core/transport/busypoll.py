"""Waiting for what comes at once without a pass through trio's loop, as long as no other task has anything to do."""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

import trio

from .sockets import StreamSocket

MOST_DISTURBED: Final = 7
"""Doublings of the pause after other tasks ran: a busy loop is looked at once in 128 waits."""


class _Others(trio.abc.Instrument):
    """Sees, while it is among the instruments of the loop, whether other tasks than one that waits have to run."""

    __slots__ = ("_waiting", "seen")

    def __init__(self, waiting: trio.lowlevel.Task) -> None:
        self._waiting = waiting
        self.seen = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Called by trio: it will run in this turn or the next."""
        if task is not self._waiting:
            self.seen = True

    before_task_step = task_scheduled
    """It runs now, and may have been scheduled before."""


class BusyPoll:
    """Where one connection waits: in the loop like everybody, or for moments in the thread of the loop.

    A pass through the loop costs as much as all the rest of a small call. It can be left out where nobody misses it:
    after a wait in the loop that was short, and in which no other task ran, the thread itself waits for what comes
    next, until ``hold_s`` have passed. Then it is the loop's turn again.

    Args:
        hold_s: seconds between two waits in the loop, and most seconds of one wait in the thread, which the kernel
            rounds up to a millisecond. So the thread is kept from other tasks for twice the time at most. 0 never
            waits in it.
        clock: tells seconds.
    """

    __slots__ = ("_clock", "_disturbed", "_hold_s", "_pause", "_until")

    def __init__(self, hold_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._until = 0.0
        """Up to then the thread may wait."""
        self._disturbed = 0
        self._pause = 0
        """Waits before it is looked again whether the loop is busy."""

    async def wait_readable(self, sock: StreamSocket, poll: select.poll) -> None:
        """Wait until a socket, which alone is registered in ``poll``, has something to read.

        Errors and cancellation as with trio's: but a wait in the thread is not cancelled, and ends by itself.
        """
        if self._clock() < self._until:
            if poll.poll(self._hold_s * 1000):
                return
            self._until = 0.0
        elif self._pause:
            self._pause -= 1
        elif self._hold_s:
            await self._look_around(sock)
            return
        await trio.lowlevel.wait_readable(sock)

    async def _look_around(self, sock: StreamSocket) -> None:
        """Wait in the loop, and see who else runs meanwhile."""
        others = _Others(trio.lowlevel.current_task())
        begin = self._clock()
        trio.lowlevel.add_instrument(others)
        try:
            await trio.lowlevel.wait_readable(sock)
        finally:
            trio.lowlevel.remove_instrument(others)
        if others.seen:
            self._disturbed = min(self._disturbed + 1, MOST_DISTURBED)
            self._pause = 2**self._disturbed
            return
        self._disturbed = max(self._disturbed - 1, 0)
        now = self._clock()
        if now - begin < self._hold_s:
            self._until = now + self._hold_s
