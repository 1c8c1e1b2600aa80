"""Waiting for a socket without the event loop, while nothing else runs in the whole program.

A turn of the loop for one socket costs as much as a small call. So when a single task is all that runs, waiting for
its next message again and again, it waits in a system call of its own: for a millisecond at most, and with a turn of
the loop every millisecond. As soon as any other task has something to do, waiting goes through the loop again.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Final

import trio

BRIEF_S: Final = 0.001
"""How long the loop may stand still for one socket, and how often it gets a turn while that goes on."""
_BRIEF_MS: Final = 1
ALONE_AFTER: Final = 16
"""Waits for one socket in a row, each over within `BRIEF_S` of the one before, until its task counts as alone."""
ALONE_AGAIN_AFTER: Final = 128
"""The same after other tasks had something to do."""


class Input:
    """Waits until a socket has something to read."""

    __slots__ = ("_loop", "_poll", "_sock", "quick")

    def __init__(self, sock: socket.socket) -> None:
        """Must be made in the loop the socket belongs to."""
        self._sock = sock
        self._loop = _loop_here()
        self._poll: select.poll | None = None
        self.quick = False
        """Whether `wait_briefly` is worth calling: this socket's task is alone."""

    def wait_briefly(self) -> bool:
        """Wait outside the loop. False: nothing came, or the loop must have its turn; go on with `wait`."""
        loop = self._loop
        if loop.others or time.perf_counter() >= loop.turn_at:
            return False
        assert self._poll is not None, "made when its task was found alone"
        if self._poll.poll(_BRIEF_MS):
            return True
        loop.rejoin(ALONE_AFTER)
        return False

    async def wait(self, _: object = None) -> None:
        """Wait through the loop. ClosedResourceError: the socket was closed, with `notify_closing`."""
        loop = self._loop
        if self.quick:
            await loop.take_turn()
            if self.quick:
                return
        await trio.lowlevel.wait_readable(self._sock)
        if loop.count(self) and self._sock.fileno() >= 0 and loop.leave(self):
            if self._poll is None:
                self._poll = select.poll()
                self._poll.register(self._sock, select.POLLIN)
            await loop.take_turn()  # tasks that run after this one in the same turn are not seen before

    def close(self) -> None:
        """The socket is about to be closed."""
        if self.quick:
            self._loop.rejoin(ALONE_AFTER)


class _Loop(trio.abc.Instrument):
    """Who is alone in one loop.

    It is an instrument of the loop only while a task waits outside of it, to notice when another one has something to
    do.
    """

    def __init__(self) -> None:
        self._last: Input | None = None
        """Who waited last, until `_last_at`."""
        self._last_at = 0.0
        self._to_go = ALONE_AFTER
        """Quick waits in a row that are missing for it to count as alone."""
        self._alone: Input | None = None
        self._task: trio.lowlevel.Task | None = None
        self.others = False
        """A task besides the one that is alone has something to do."""
        self.turn_at = 0.0
        """When the loop must have a turn."""

    def count(self, waited: Input) -> bool:
        """Count a wait that is over; whether its task seems to be alone."""
        now = time.perf_counter()
        if waited is self._last and now - self._last_at < BRIEF_S:
            self._to_go -= 1
        else:
            self._last, self._to_go = waited, max(self._to_go, ALONE_AFTER)
        self._last_at = now
        return self._to_go <= 0

    def leave(self, waits: Input) -> bool:
        """Let the running task wait outside the loop from now on, if nothing else can run before the next turn."""
        if not hasattr(select, "poll") or not self._quiet():
            self._to_go = ALONE_AFTER
            return False
        self.rejoin(ALONE_AFTER)  # a task that was alone, and waits no more
        trio.lowlevel.add_instrument(self)
        self._alone, self._task, self.others, waits.quick = waits, trio.lowlevel.current_task(), False, True
        return True

    def rejoin(self, to_go: int) -> None:
        """Wait through the loop again."""
        if self._alone is None:
            return
        trio.lowlevel.remove_instrument(self)
        self._alone.quick = False
        self._alone = self._task = None
        self._to_go = to_go

    async def take_turn(self) -> None:
        """Let the loop have a turn, and see whether anything else happened in it."""
        if not self.others:
            await trio.lowlevel.checkpoint()
        if self.others or not self._quiet():
            self.rejoin(ALONE_AGAIN_AFTER)

    def _quiet(self) -> bool:
        """Whether nothing is due before the next turn."""
        statistics = trio.lowlevel.current_statistics()
        self.turn_at = time.perf_counter() + BRIEF_S
        return statistics.tasks_runnable == 0 and statistics.seconds_to_next_deadline > 2 * BRIEF_S

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """The loop tells that a task can go on."""
        if task is not self._task:
            self.others = True


_loops: Final[trio.lowlevel.RunVar[_Loop]] = trio.lowlevel.RunVar("pyroxfer alone")


def _loop_here() -> _Loop:
    try:
        return _loops.get()
    except LookupError:
        loop = _Loop()
        _loops.set(loop)
        return loop
