"""Room for files that are on their way: what the disk has free, a quota, and what others have been promised.

Blocking; safe to use from several threads, and with a ledger from several processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..errors import NoSpaceError
from ..names import printable
from .ledger import Ledger, Page, Promise

COUNT_AGAIN: Final = 20
LEAST_AGE_S: Final = 10.0
"""What lies below the root is counted again after ten seconds at least, and twenty times as long as counting took."""


class Space:
    """The room below one root.

    Args:
        count: counts the bytes of all files there now.
        quota: bytes at most, of all files together; None is what the disk has.
        ledger: where other processes that serve the same root say what they have promised.
    """

    def __init__(self, count: Callable[[], int], quota: int | None = None, ledger: Ledger | None = None) -> None:
        self._count = count
        self._quota = quota
        self._ledger = ledger
        self._lock = threading.Lock()
        self._promised: dict[int, tuple[int, int | None]] = {}
        self._used = 0
        self._since = 0
        self._good_until = 0.0
        self._elsewhere = (0, 0)
        """Bytes added and removals of others, at the last count."""

    @property
    def is_shared(self) -> bool:
        """Whether a small file has to ask, too: there is a quota, or somebody has been promised space."""
        if self._quota is not None or self._promised:
            return True
        return self._ledger is not None and any(page.promised for page in self._ledger.pages())

    def reserve(self, fd: int, size: int | None, path: str) -> Reservation:
        """Promise an open file room to grow to ``size``; None takes what it gets. What it holds already needs none.

        Raises:
            NoSpaceError: so much is not free, less what others have been promised.
        """
        with self._exclusive():
            self._check(fd, size or 0, path)
            self._promised[fd] = (fd, size)
        return Reservation(self, fd, path)

    def grow(self, fd: int, size: int, path: str) -> None:
        """Promise a file of unknown size more; errors as ``reserve``."""
        known = self._promised[fd][1] or 0
        if size > known:
            with self._exclusive():
                self._check(fd, size, path)
                self._promised[fd] = (fd, size)

    def release(self, fd: int) -> None:
        """End a promise: what the file holds by now counts as used until the next count."""
        with self._exclusive():
            if self._promised.pop(fd, None) is not None and self._quota is not None:
                status = os.fstat(fd)
                if status.st_nlink:
                    self._since += status.st_size
                    if self._ledger is not None:
                        self._ledger.page.added += status.st_size

    def removed(self) -> None:
        """Something was removed: the next that asks, in whatever process, finds it counted."""
        with self._exclusive():
            self._good_until = 0.0
            if self._ledger is not None:
                self._ledger.page.removed += 1

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Nobody else, here or in another process, promises anything meanwhile; what changed is told at the end."""
        with self._lock, contextlib.ExitStack() as stack:
            if self._ledger is not None:
                stack.enter_context(self._ledger.locked())
            yield
            if self._ledger is not None:
                self._ledger.page.promised = [(fd, size or 0) for fd, size in self._promised.values()]
                self._ledger.publish()

    def _check(self, fd: int, size: int, path: str) -> None:
        pages = [] if self._ledger is None else self._ledger.pages()
        promises = Ledger.promises(pages)
        status = os.fstatvfs(fd)
        held = os.fstat(fd).st_blocks * 512
        owed = sum(
            max(0, (promised or 0) - os.fstat(other).st_blocks * 512)
            for other, promised in self._promised.values()
            if other != fd
        )
        owed += sum(max(0, promise.size - promise.held) for promise in promises)
        free = max(0, status.f_bavail * status.f_frsize - owed) + held
        if size > free:
            raise NoSpaceError(f"{printable(path)}: {size} bytes are needed and {free} are free at the receiver")
        if self._quota is not None:
            self._check_quota(fd, size, path, self._quota, pages, promises)

    def _check_quota(
        self, fd: int, size: int, path: str, quota: int, pages: Sequence[Page], promises: Sequence[Promise]
    ) -> None:
        """As things were counted last; before a refusal they are counted again."""
        added, removals = sum(page.added for page in pages), sum(page.removed for page in pages)

        def left() -> int:
            promised = sum(size or 0 for other, size in self._promised.values() if other != fd)
            promised += sum(promise.size for promise in promises)
            return max(0, quota - self._used - self._since - (added - self._elsewhere[0]) - promised)

        stale = time.monotonic() >= self._good_until or removals != self._elsewhere[1] or added < self._elsewhere[0]
        if stale or ((self._since or added != self._elsewhere[0]) and left() < size):
            self._count_again(sum(promise.length for promise in promises))
            self._elsewhere = (added, removals)
        if size > left():
            raise NoSpaceError(f"{printable(path)}: {size} bytes are needed and {left()} of the quota are left")

    def _count_again(self, elsewhere: int) -> None:
        """``elsewhere`` bytes are in files that other processes have promised more to."""
        began = time.monotonic()
        held = sum(os.fstat(fd).st_size for fd, _ in self._promised.values()) + elsewhere
        self._used, self._since = max(0, self._count() - held), 0
        took = time.monotonic() - began
        self._good_until = time.monotonic() + max(LEAST_AGE_S, COUNT_AGAIN * took)


class Reservation:
    """The promise to one file, until it is released."""

    def __init__(self, space: Space, fd: int, path: str) -> None:
        self._space, self._fd, self._path = space, fd, path

    def grow(self, size: int) -> None:
        """Make sure of room for ``size`` bytes; errors as ``Space.reserve``."""
        self._space.grow(self._fd, size, self._path)

    def release(self) -> None:
        """The file is over: in place, kept, or removed. Its descriptor must still be open."""
        self._space.release(self._fd)
