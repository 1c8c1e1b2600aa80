"""A daemon in a program that has a loop of its own: the program says when methods run, and in which thread.

The connections are looked after in a thread; whatever is the program's code waits in a queue until `turn`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from ..server.workers import PoolBusyError, ThreadEndedError, WorkerPool

JOIN_PERIOD_S: Final = 0.02
"""How often a loop that ends looks for methods that are still to be run."""


class OwnLoop:
    """Functions to be run by the program's own loop, and the thread of the daemon that wants them run."""

    def __init__(self, serve: Callable[[], object]) -> None:
        self.sock, self._bell = socket.socketpair()
        self.sock.setblocking(False)
        self._bell.setblocking(False)
        self._due: deque[Callable[[], None]] = deque()
        self._serve = serve
        self._thread = threading.Thread(target=self._run, name="pyroxfer daemon", daemon=True)
        self.is_served = True
        """The daemon has not ended."""

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self.is_served = False
            self.ring()

    def __len__(self) -> int:
        return len(self._due)

    def post(self, run: Callable[[], None]) -> None:
        """Have a function run at the next turn; ``sock`` becomes readable."""
        self._due.append(run)
        self.ring()

    def ring(self) -> None:
        """Make ``sock`` readable."""
        try:
            self._bell.send(b"!")
        except BlockingIOError:
            pass  # it rings already

    def turn(self) -> None:
        """Run what is due, in this thread. Nothing happens when another thread has ended the loop."""
        with contextlib.suppress(OSError):  # nothing rings, or it is closed
            self.sock.recv(4096)
        for _ in range(len(self._due)):
            try:
                run = self._due.popleft()
            except IndexError:  # another thread ends the loop, and runs what is still due
                return
            run()

    def join(self) -> None:
        """Wait for the daemon's thread, running what it still wants run."""
        while self._thread.is_alive():
            self.turn()
            self._thread.join(JOIN_PERIOD_S)
        self.sock.close()
        self._bell.close()


class SwitchedPool(WorkerPool):
    """Runs functions in threads, or where the program's own loop turns once there is one."""

    def __init__(self, threads: int, queue: int) -> None:
        super().__init__(threads, queue)
        self._most = threads + queue
        self.own_loop: OwnLoop | None = None

    @property
    def full(self) -> bool:
        """Whether a function would have to wait for a thread; the program's own loop is none."""
        return self.own_loop is None and super().full

    @property
    def lends(self) -> bool:
        """Never the program's own loop, which serves others."""
        return self.own_loop is None

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function, and wait for it; as `WorkerPool.run`.

        Raises:
            PoolBusyError: too many are waiting to be run.
        """
        loop = self.own_loop
        if loop is None:
            return await super().run(function, *args, **kwargs)
        if len(loop) >= self._most:
            raise PoolBusyError("busy: too many calls wait for the program's loop; try again later")
        return await _run_in(loop, functools.partial(function, *args, **kwargs))

    async def run_iterator(self, function: Callable[..., Any], *args: Any) -> Any:
        """Fetch items; as `WorkerPool.run_iterator`."""
        if self.own_loop is None:
            return await super().run_iterator(function, *args)
        return await _run_in(self.own_loop, functools.partial(function, *args))


async def _run_in(loop: OwnLoop, function: Callable[[], Any]) -> Any:
    context, token = contextvars.copy_context(), trio.lowlevel.current_trio_token()
    done = trio.Event()
    result: list[Any] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            result.append(context.run(function))
        except Exception as raised:
            error.append(raised)
        except BaseException as raised:  # it ends the connection of its caller, as in a thread
            error.append(ThreadEndedError(f"{type(raised).__name__} in a method"))
            if isinstance(raised, KeyboardInterrupt):
                raise
        finally:
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # nobody waits any more

    loop.post(run)
    await done.wait()
    if error:
        raise error[0]
    return result[0]
