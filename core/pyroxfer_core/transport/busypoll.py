"""Waiting for what comes at once without a pass through trio's loop, as long as no other task has anything to do."""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

import trio

from .sockets import StreamSocket

WAIT_TIMES: Final = 2.5
"""How many times as long as the loop may go without a turn one wait in the thread lasts: longer than most ticks of
the kernel, which programs its timer anew for each wait that would end before the next one. On a virtual machine that
costs more than the rest of a call."""
MOST_TICK_S: Final = 0.01
"""The kernel rounds a wait up to ticks of its clock, which are 1, 4 or 10 ms long."""
MOST_DISTURBED: Final = 7
"""Doublings of the pause after a look that was no good: a busy loop is looked at once in 128 waits."""


class _Others(trio.abc.Instrument):
    """Sees, while it is among the instruments of the loop, whether other tasks than one that waits have to run."""

    __slots__ = ("_waiting", "seen")

    def __init__(self, waiting: trio.lowlevel.Task) -> None:
        self._waiting = waiting
        self.seen = False

    def __dir__(self) -> tuple[str, ...]:
        """All that trio has to look at: to look at whatever an object has costs as much as a turn of the loop."""
        return ("before_task_step", "task_scheduled")

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Called by trio: it will run in this turn or the next."""
        if task is not self._waiting:
            self.seen = True

    before_task_step = task_scheduled
    """It runs now, and may have been scheduled before."""


class BusyPoll:
    """Where somebody waits: in the loop like everybody, or for moments in the thread of the loop.

    A pass through the loop costs as much as all the rest of a small call. It can be left out where nobody misses it:
    after a wait in the loop that was short, in which no other task ran, and when no timer goes off soon, the thread
    itself waits for what comes next, until ``hold_s`` have passed. Then it is the loop's turn again.

    Args:
        hold_s: seconds between two waits in the loop. A wait in the thread may begin at their end, and last
            `WAIT_TIMES` as long, rounded up to a tick of the kernel, when nothing comes. 0 never waits in it.
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
        """Waits before it is looked again whether the loop is quiet."""

    def patience(self) -> float:
        """How many seconds the thread may wait now; 0: it is the loop's turn."""
        return self._hold_s * WAIT_TIMES if self._clock() < self._until else 0.0

    def waited_in_vain(self) -> None:
        """The thread has waited as long as it may, and nothing came: this is dear, so it shall be seldom."""
        self._until = 0.0
        self._pause_longer(by=2)

    def _pause_longer(self, by: int) -> None:
        self._disturbed = min(self._disturbed + by, MOST_DISTURBED)
        self._pause = 2**self._disturbed

    async def wait_in_loop(self, sock: StreamSocket | select.epoll) -> None:
        """Wait as trio does, and see now and then whether anybody would miss the loop."""
        if self._pause:
            self._pause -= 1
        elif self._hold_s:
            await self._look_around(sock)
            return
        await trio.lowlevel.wait_readable(sock)

    def _timer_is_near(self) -> bool:
        """Whether a time of the loop is over before it has a turn again. New ones are not set while nobody runs."""
        seconds = trio.lowlevel.current_statistics().seconds_to_next_deadline
        return seconds < self._hold_s * (1 + WAIT_TIMES) + MOST_TICK_S

    async def _look_around(self, sock: StreamSocket | select.epoll) -> None:
        """Wait in the loop, and see who else runs meanwhile."""
        others = _Others(trio.lowlevel.current_task())
        begin = self._clock()
        trio.lowlevel.add_instrument(others)
        try:
            await trio.lowlevel.wait_readable(sock)
        finally:
            trio.lowlevel.remove_instrument(others)
        now = self._clock()
        if others.seen or now - begin >= self._hold_s or self._timer_is_near():
            self._pause_longer(by=1)
            return
        self._disturbed = max(self._disturbed - 1, 0)
        self._until = now + self._hold_s
