"""Who reads a connection that several threads wait at."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable

from .waiting import Waiter, seconds_left


class ReadingDuty:
    """One thread reads for all; the others sleep until it has their answers, or nobody reads any more.

    An interrupt can come between any two steps, but not while a lock is taken by ``with``.
    """

    def __init__(self) -> None:
        self._guard = threading.RLock()
        """Guards `reader`, `_followers` and every `Waiter.wake`, also from a finalizer that runs in between."""
        self.reader: Waiter | None = None
        """Whose thread reads."""
        self._followers: dict[Waiter, bool] = {}

    def take(self, waiter: Waiter) -> bool:
        """Whether nobody else reads; the duty is taken then, and given back by `settle`."""
        with self._guard:
            if self.reader is None:
                self.reader = waiter
            return self.reader is waiter

    def while_free(self, act: Callable[[], object]) -> bool:
        """Do something that must not be done while a thread reads, and say whether one did."""
        with self._guard:
            if self.reader is None:
                act()
            return self.reader is not None

    def settle(self, waiter: Waiter) -> None:
        """End a wait, however it ends: give back the duty, and see that somebody takes it up. Twice is fine."""
        with self._guard:
            if self.reader is waiter:
                self.reader = None
            if self._followers:
                self._followers.pop(waiter, None)
                if self.reader is None:
                    for follower in list(self._followers)[:1]:
                        self._wake(follower)

    def follow(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep until the answer was read by another thread, or nobody reads any more.

        Raises:
            builtins.TimeoutError: neither happened by ``deadline`` (on the monotonic clock).
        """
        wake = threading.Lock()
        wake.acquire()
        with self._guard:
            waiter.wake = wake  # before the look: who gives the answer meanwhile sees it, and wakes this thread
            if waiter.settled or self.reader is None:
                return
            self._followers[waiter] = True
        if not wake.acquire(timeout=seconds_left(deadline)):
            raise builtins.TimeoutError

    def rouse(self, waiter: Waiter) -> None:
        """Wake the thread of this call if it sleeps."""
        with self._guard:
            self._wake(waiter)

    def rouse_all(self) -> None:
        """Wake every thread that sleeps."""
        with self._guard:
            for follower in list(self._followers):
                self._wake(follower)

    def _wake(self, waiter: Waiter) -> None:
        """Wake a thread if it follows; the guard is held."""
        if self._followers.pop(waiter, False) and waiter.wake is not None:
            waiter.wake.release()
