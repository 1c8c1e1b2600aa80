"""The latest changes of a registry, for those who watch it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import trio

from ...errors import NamingError
from .base import Changes, Entry

KEPT: Final = 10_000
"""Changes that a watcher may be behind, or away: with usual entries about 5 MB."""


class History:
    """Changes in order, each with a revision of its own, of which the last KEPT are kept.

    Args:
        revision: the one before the first change.
    """

    def __init__(self, revision: int) -> None:
        self.revision = revision
        """Of the last change."""
        self._start = revision
        self._changes: deque[Changes] = deque()
        self._appended = trio.Event()

    @property
    def oldest(self) -> int:
        """The earliest revision after which every change is known."""
        return self._start

    def append(self, entries: Mapping[str, Entry | None], revision: int | None = None) -> None:
        """Add a change, by default with the next revision, and wake those who wait for it."""
        self.revision = self.revision + 1 if revision is None else revision
        if len(self._changes) == KEPT:
            self._start = self._changes.popleft().revision
        self._changes.append(Changes(self.revision, entries))
        appended, self._appended = self._appended, trio.Event()
        appended.set()

    def restart(self, revision: int) -> None:
        """Forget everything: what happened before this revision was not seen."""
        self._changes.clear()
        self.revision = self._start = revision
        appended, self._appended = self._appended, trio.Event()
        appended.set()

    async def follow(self, after: int) -> AsyncGenerator[Changes, None]:
        """Every change after a revision, without end; a reader costs nothing but its place.

        Raises:
            NamingError: the revision is too old, or of another registry, or the reader was too slow.
        """
        while True:
            for change in self._after(after):
                after = change.revision
                yield change
            if self.revision == after:
                await self._appended.wait()

    def _after(self, revision: int) -> list[Changes]:
        """Some of the changes after it, at least one if there are any."""
        if not self._start <= revision <= self.revision:
            raise NamingError(f"revision {revision} is not known any more; watch from the beginning")
        if revision == self.revision:
            return []
        low, high = 0, len(self._changes)
        while low < high:
            middle = (low + high) // 2
            if self._changes[middle].revision <= revision:
                low = middle + 1
            else:
                high = middle
        return [self._changes[index] for index in range(low, min(low + 100, len(self._changes)))]
