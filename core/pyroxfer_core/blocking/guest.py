"""The daemon's loop inside somebody else's: it does its work when the program's own loop says so."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

FINISH_WITHIN_S: Final = 30.0
MOST_TURNS: Final = 1000
"""Turns in a row before the program's own loop is asked again."""


class GuestLoop:
    """Runs an async function a little at a time, always in the thread that calls `turn`.

    ``sock`` becomes readable when there is something to do.
    """

    def __init__(self, main: Callable[[], Awaitable[Any]]) -> None:
        self.sock, self._bell = socket.socketpair()
        self.sock.setblocking(False)
        self._bell.setblocking(False)
        self._due: deque[Callable[[], object]] = deque()
        self._outcome: Any = None
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=self._run_soon,
            done_callback=self._finished,
            host_uses_signal_set_wakeup_fd=True,
        )
        self.turn()

    def _run_soon(self, function: Callable[[], object]) -> None:
        self._due.append(function)
        try:
            self._bell.send(b"!")
        except BlockingIOError:
            pass  # it rings already

    def _finished(self, result: Any) -> None:
        self._outcome = result

    @property
    def done(self) -> bool:
        """Whether the function has ended."""
        return self._outcome is not None

    def turn(self) -> None:
        """Do what is to be done now, without waiting for anything."""
        try:
            self.sock.recv(4096)
        except BlockingIOError:
            pass
        for _ in range(MOST_TURNS):
            if not self._due:
                return
            self._due.popleft()()
        self._run_soon(lambda: None)

    def finish(self) -> Any:
        """Go on until the function has ended; what it returned or raised.

        Raises:
            TimeoutError: it did not end in time.
        """
        while self._outcome is None:
            if not select.select([self.sock], [], [], FINISH_WITHIN_S)[0]:
                raise TimeoutError("the loop of the daemon does not end")
            self.turn()
        self.sock.close()
        self._bell.close()
        return self._outcome.unwrap()
