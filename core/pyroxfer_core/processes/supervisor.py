"""The parent of several workers: it starts them, passes signals on, and replaces those that die.

It knows nothing of processes: how one is started is given to it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

log = logging.getLogger(__name__)

LEAST_PAUSE_S: Final = 0.1
MOST_PAUSE_S: Final = 10.0
"""Before another worker takes the place of one that died; twice as long each time ..."""
STEADY_S: Final = 30.0
"""... until one has lived so long."""
SIGNALLED: Final = 128
"""A process ended by a signal counts as this plus its number, as shells have it."""


class Child(Protocol):
    """One worker, seen from its parent."""

    async def ready(self) -> bool:
        """Wait until it serves; False when it ended before. Cancelling is safe."""

    async def wait(self) -> int:
        """Wait for its end: its exit code, or the signal that ended it as a negative number. Cancelling is safe."""

    def send_signal(self, number: int) -> None:
        """Nothing happens when it has ended."""


Spawn = Callable[[int], Awaitable[Child]]
"""Starts the worker with this number, from 0. Raises OSError."""


class Supervisor:
    """Keeps ``count`` workers running.

    Args:
        spawn: starts one.
        gone: told the number of each worker that has ended, before another one takes its place.
        ending: called when the workers are told to end.

    Attributes:
        serving: set when the first worker serves, and the others had their chance.
        ending: set when the workers are told to end.
    """

    def __init__(
        self,
        spawn: Spawn,
        count: int,
        gone: Callable[[int], object] = lambda number: None,
        ending: Callable[[], object] = lambda: None,
    ) -> None:
        self._spawn = spawn
        self._count = count
        self._gone = gone
        self._on_ending = ending
        self.serving = trio.Event()
        self.ending = trio.Event()
        self._children: dict[int, Child] = {}
        self._owed: dict[int, set[int]] = {}
        """Signals that those who do not serve yet will get when they do."""
        self._codes = [0]
        self._last_word: int | None = None
        self._pausing: set[trio.CancelScope] = set()

    async def run(self) -> int:
        """Run the workers until all have ended after `tell`, or one has ended by itself with exit code 0: then the
        others are told to, too.

        The first is alone until it serves: what keeps it from doing so is not worth a second try, and its exit code
        is the result. Cancelling tells all of them to end, and waits for that.

        Returns:
            The highest exit code.
        """
        async with trio.open_nursery() as nursery:
            first = _Place(self, 0)
            code = await first.begin()
            if code is not None:
                return code
            nursery.start_soon(first.keep)
            others = [_Place(self, number) for number in range(1, self._count)]
            for place in others:
                nursery.start_soon(place.keep)
            for place in others:
                await place.tried.wait()
            self.serving.set()
        return max(self._codes)

    def tell(self, number: int) -> None:
        """Send a signal to all workers. After SIGTERM or SIGINT none is replaced any more; others would end a worker
        that does not serve yet, which gets them when it does."""
        is_last = number in (signal.SIGTERM, signal.SIGINT)
        if is_last:
            if self._last_word is None:
                self._on_ending()
                self.ending.set()
            self._last_word = number
            for scope in self._pausing:
                scope.cancel()
        for place, child in self._children.items():
            if is_last or place not in self._owed:
                child.send_signal(number)
            else:
                self._owed[place].add(number)

    # --- for places

    async def start(self, number: int) -> Child | None:
        """One more worker; None when the system has no room for it."""
        try:
            child = await self._spawn(number)
        except OSError as error:
            if self._last_word is None:  # else its listeners were closed in the meantime
                log.error("worker %d cannot be started: %s", number, error.strerror or error)
            return None
        self._children[number] = child
        self._owed[number] = set()
        if self._last_word is not None:
            child.send_signal(self._last_word)
        return child

    @property
    def code_of_nobody(self) -> int:
        """What a worker that was not started counts as: one that failed, or that died of being told to end."""
        return 1 if self._last_word is None else SIGNALLED + self._last_word

    def serves(self, number: int) -> None:
        """The worker that was started does."""
        for owed in self._owed.pop(number, ()):
            self._children[number].send_signal(owed)

    async def end_of(self, number: int, child: Child) -> int:
        """Wait for its end; when cancelled, tell it to."""
        try:
            code = await child.wait()
        except trio.Cancelled:
            child.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True):
                await child.wait()
            raise
        finally:
            del self._children[number]
            self._owed.pop(number, None)
            self._gone(number)
        return SIGNALLED - code if code < 0 else code

    def is_over(self, code: int, *, served: bool) -> bool:
        """Whether the end of a worker is the end of its place."""
        if self._last_word is None and not (served and code == 0):
            return False
        if self._last_word is None:
            self.tell(signal.SIGTERM)
        elif served or code != SIGNALLED + self._last_word:  # who was still starting just dies of it
            self._codes.append(code)
        return True

    async def pause(self, seconds: float) -> None:
        """Sleep, until told to end."""
        with trio.CancelScope() as scope:
            self._pausing.add(scope)
            try:
                if self._last_word is None:
                    await trio.sleep(seconds)
            finally:
                self._pausing.discard(scope)


class _Place:
    """One worker after another under one number."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self._supervisor = supervisor
        self._number = number
        self._child: Child | None = None
        self._served = False
        self._since = 0.0
        self._pause = LEAST_PAUSE_S
        self.tried = trio.Event()
        """Its first worker serves, or has ended."""

    async def begin(self) -> int | None:
        """Start one and wait until it serves; its exit code when it ended instead."""
        self._served = False
        self._since = trio.current_time()
        self._child = None if self._supervisor.ending.is_set() else await self._supervisor.start(self._number)
        if self._child is None:
            return self._supervisor.code_of_nobody
        try:
            self._served = await self._child.ready()
        except trio.Cancelled:
            with contextlib.suppress(trio.Cancelled):
                await self._supervisor.end_of(self._number, self._child)
            raise
        if self._served:
            self._supervisor.serves(self._number)
            return None
        return await self._supervisor.end_of(self._number, self._child)

    async def keep(self) -> None:
        """Until it is over."""
        supervisor, number = self._supervisor, self._number
        code = None if self._served else await self.begin()
        while True:
            self.tried.set()
            if code is None:
                assert self._child is not None, "it serves"
                code = await supervisor.end_of(number, self._child)
            if supervisor.is_over(code, served=self._served):
                return
            if trio.current_time() - self._since >= STEADY_S:
                self._pause = LEAST_PAUSE_S
            log.error("worker %d has ended with %d; another one begins in %g s", number, code, self._pause)
            await supervisor.pause(self._pause)
            self._pause = min(self._pause * 2, MOST_PAUSE_S)
            if supervisor.ending.is_set():
                return
            code = await self.begin()
