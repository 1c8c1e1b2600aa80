"""One task that watches all sockets of calls in passage and calls back: no task, and no wake-up, per message."""

from __future__ import annotations

import logging
import os
import select
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

import trio

from pyroxfer_core import StreamSocket

log = logging.getLogger("pyroxfer.dispatcher")

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
LEFT: Final = select.EPOLLRDHUP
ONCE: Final = select.EPOLLET
"""What does not change is told once only: of a peer that is gone for good, which nobody can choose not to hear of."""
STAY_S: Final = 0.004
"""How long traffic may keep everything else of the program waiting."""
WAIT_S: Final = 0.001
"""How long the next message is waited for meanwhile; the kernel knows nothing shorter."""
SPIN_FOR: Final = 2
"""It is looked for without sleeping for no more sockets than a client and its backend have: several need the core."""
MOST_MISSES: Final = 7
"""Doublings of the pause after waiting in vain: at most one turn in 128 costs that time for nothing."""
MAX_EVENTS: Final = 256
"""Sockets served between two looks at the rest of the program."""
LATELY_S: Final = 0.001
"""How old a look at all sockets may be to stand for one at a single socket."""


class Watched(Protocol):
    """Somebody who owns a socket."""

    def on_ready(self, events: int) -> None:
        """Something happened; may close any channel, its own included."""

    def give_up(self) -> None:
        """Serving it failed: end it."""


def _give_up(owner: Watched) -> None:
    try:
        owner.give_up()
    except Exception:
        log.exception("and its end was not orderly either")


class Patience:
    """Whether to try again what may be in vain: seldom, where it mostly was."""

    __slots__ = ("_misses", "_pause")

    def __init__(self) -> None:
        self._misses = 0
        self._pause = 0

    def wants(self) -> bool:
        """Whether to try now; asked at each chance."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def paid(self) -> None:
        """It was worth it."""
        if self._misses:
            self._misses -= 1

    def failed(self) -> None:
        """It was in vain: the next attempts are put off, longer and longer."""
        self._misses = min(self._misses + 1, MOST_MISSES)
        self._pause = 2**self._misses


class Hub:
    """Watches sockets inside `run`; everything happens in the thread, and between the steps, of trio.

    Args:
        spin_s: how long the next message is looked for before the thread sleeps, where there is a second core: to be
            woken takes as long as passing a message on.
    """

    def __init__(self, spin_s: float = 0.0) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._later: deque[Callable[[float], None]] = deque()
        self._in_turn = False
        self._ready: dict[int, int] = {}
        """What the last look found, and sockets of which it can tell nothing ..."""
        self._looked_at = 0.0
        """... and when that was; 0.0 while it had no room for all that there was."""
        self._staying = Patience()
        self._spinning = Patience()
        self._served: set[int] = set()
        """The sockets that had something to say since trio was asked last."""
        self._spin_s = spin_s if len(os.sched_getaffinity(0)) > 1 else 0.0

    def watch(self, sock: StreamSocket, owner: Watched, events: int) -> None:
        """Call ``owner`` when one of the events can happen without waiting."""
        number = sock.fileno()
        self._epoll.register(number, events)
        self._watched[number] = owner
        self._ready[number] = 0

    def change(self, sock: StreamSocket, events: int) -> None:
        """Wait for other events. A socket whose peer is gone is always reported."""
        number = sock.fileno()
        self._epoll.modify(number, events)
        self._ready[number] = 0

    def forget(self, sock: StreamSocket) -> None:
        """Stop watching; before the socket is closed."""
        number = sock.fileno()
        if self._watched.pop(number, None) is not None:
            self._epoll.unregister(number)

    def was_silent(self, sock: StreamSocket) -> bool:
        """Whether at a look a moment ago nothing had come there, not even the end. False: it was not looked for."""
        lately = self._in_turn and monotonic() - self._looked_at < LATELY_S
        return lately and sock.fileno() not in self._ready

    def later(self, call: Callable[[float], None]) -> None:
        """Run something soon, but not within what is being done now."""
        if not self._in_turn and not self._later:
            trio.lowlevel.current_trio_token().run_sync_soon(self._run_later)
        self._later.append(call)

    async def run(self) -> None:
        """Serve until cancelled. An owner that fails loses its socket; the others go on."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._served.clear()
            self.turn()
            if self._staying.wants():
                self._stay()

    def _stay(self) -> None:
        """Go on without asking trio while the next message comes at once: that costs as much as passing it on."""
        until = monotonic() + STAY_S
        while self._spin() or self.turn(WAIT_S):
            if monotonic() > until:
                self._staying.paid()
                return
        self._staying.failed()

    def _spin(self) -> bool:
        """Serve whoever is ready within moments, in which the core is left to others. False when nobody was."""
        if not self._spin_s or len(self._served) > SPIN_FOR or not self._spinning.wants():
            return False
        until = monotonic() + self._spin_s
        while not self.turn():
            os.sched_yield()
            if monotonic() > until:
                self._spinning.failed()
                return False
        self._spinning.paid()
        return True

    def turn(self, wait_s: float = 0) -> bool:
        """Serve whoever is ready, now or soon. False when nobody was."""
        watched = self._watched
        ready = self._epoll.poll(wait_s, MAX_EVENTS)
        self._ready = dict(ready)
        self._looked_at = monotonic() if len(ready) < MAX_EVENTS else 0.0
        self._served.update(self._ready)
        self._in_turn = True
        for number, events in ready:
            owner = watched.get(number)
            if owner is not None:
                try:
                    owner.on_ready(events)
                except Exception:
                    log.exception("a connection ended with an unexpected error")
                    _give_up(owner)
        self._in_turn = False
        if self._later:
            self._run_later()
        return bool(ready)

    def _run_later(self) -> None:
        """What is added meanwhile is done as well."""
        now = monotonic()
        for call in iter(self._next_of_later, None):
            try:
                call(now)
            except Exception:
                log.exception("something that was put off failed")

    def _next_of_later(self) -> Callable[[float], None] | None:
        return self._later.popleft() if self._later else None

    def close(self) -> None:
        """The end: nobody is watched any more."""
        self._watched.clear()
        self._epoll.close()
