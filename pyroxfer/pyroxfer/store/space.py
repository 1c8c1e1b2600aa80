"""Room for files that are on their way: what the disk has free, a quota, and what others have been promised.

Blocking; safe to use from several threads, and with a ledger from several processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import NoSpaceError
from ..names import printable
from .ledger import NOTHING, Elsewhere, Ledger

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
        self._counted = NOTHING
        """What others had told at the last count."""

    @property
    def is_shared(self) -> bool:
        """Whether a small file has to ask, too: there is a quota, or somebody has been promised space."""
        if self._quota is not None or self._promised:
            return True
        return self._ledger is not None and bool(self._ledger.elsewhere().promises)

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

    def check(self, folder_fd: int, size: int, there: Callable[[], int], path: str) -> None:
        """Whether files of ``size`` bytes together can come below a folder at all; nothing is promised. ``there``
        counts what they may turn out to be equal to, or take the place of, and is called only when it matters.

        Raises:
            NoSpaceError: they cannot.
        """
        with self._exclusive():
            elsewhere = self._look_elsewhere()
            free = self._free(folder_fd, elsewhere)
            if self._quota is not None:
                free = min(free, self._left(-1, size, self._quota, elsewhere))
        if size > free and (there_now := there()) + free < size:
            raise NoSpaceError(
                f"{printable(path) or 'the folder served'}: {size - there_now} bytes more are needed and {free} are"
                " free at the receiver"
            )

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

    def _look_elsewhere(self) -> Elsewhere:
        return NOTHING if self._ledger is None else self._ledger.elsewhere()

    def _check(self, fd: int, size: int, path: str) -> None:
        elsewhere = self._look_elsewhere()
        free = self._free(fd, elsewhere) + os.fstat(fd).st_blocks * 512
        if size > free:
            raise NoSpaceError(f"{printable(path)}: {size} bytes are needed and {free} are free at the receiver")
        if self._quota is not None:
            left = self._left(fd, size, self._quota, elsewhere)
            if size > left:
                raise NoSpaceError(f"{printable(path)}: {size} bytes are needed and {left} of the quota are left")

    def _free(self, fd: int, elsewhere: Elsewhere) -> int:
        """Bytes that the disk has free, less what files other than this one have been promised."""
        status = os.fstatvfs(fd)
        owed = sum(
            max(0, (promised or 0) - os.fstat(other).st_blocks * 512)
            for other, promised in self._promised.values()
            if other != fd
        )
        return max(0, status.f_bavail * status.f_frsize - owed - elsewhere.owed)

    def _left(self, fd: int, size: int, quota: int, elsewhere: Elsewhere) -> int:
        """What is left of the quota, as things were counted last; before a refusal they are counted again."""
        known = self._counted
        due = time.monotonic() >= self._good_until or elsewhere.removals != known.removals
        changed = bool(self._since) or elsewhere.added != known.added
        left = self._left_by_count(fd, quota, elsewhere)
        if due or elsewhere.added < known.added or (changed and left < size):
            self._count_again(elsewhere)
            left = self._left_by_count(fd, quota, elsewhere)
        return left

    def _left_by_count(self, fd: int, quota: int, elsewhere: Elsewhere) -> int:
        promised = elsewhere.promised + sum(size or 0 for other, size in self._promised.values() if other != fd)
        added = self._since + elsewhere.added - self._counted.added
        return max(0, quota - self._used - added - promised)

    def _count_again(self, elsewhere: Elsewhere) -> None:
        began = time.monotonic()
        held = elsewhere.length + sum(os.fstat(fd).st_size for fd, _ in self._promised.values())
        self._used, self._since, self._counted = max(0, self._count() - held), 0, elsewhere
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
