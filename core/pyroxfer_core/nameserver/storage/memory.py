"""Entries in a dictionary: gone when the process ends."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Final

import trio

from ...errors import NamingError
from .base import Changes, Entry, Lease, Query, Registry, Update
from .history import History
from .leases import LeaseTable

log = logging.getLogger(__name__)

MIN_TTL_S: Final = 1.0
"""Seconds of the shortest lease."""
RETRY_S: Final = 1.0
"""How long to wait before a lease that ended is taken out again, when the engine failed to do it."""


class MemoryStorage(Registry):
    """Volatile entries, of this process alone. No call waits, except for one that is changing entries right now."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._history = History(time.time_ns() // 1000)  # later than anything an earlier process counted
        self._leases = LeaseTable()
        self._changing = trio.Lock()

    async def get(self, name: str) -> Entry | None:
        return self._entries.get(name)

    async def count(self) -> int:
        return len(self._entries)

    async def select(self, query: Query) -> dict[str, Entry]:
        return {name: entry for name, entry in self._entries.items() if query.matches(name, entry)}

    async def snapshot(self) -> tuple[int, dict[str, Entry]]:
        return self._history.revision, self._entries.copy()

    def changes(self, after: int) -> AsyncGenerator[Changes, None]:
        return self._history.follow(after)

    async def update(self, names: Iterable[str], change: Update) -> dict[str, Entry | None]:
        names = list(names)
        async with self._changing:
            while True:
                before = {name: self._entries.get(name) for name in names}
                changed = {name: new for name, old in before.items() if (new := change(name, old)) != old}
                if not changed or await self._persist(changed):
                    self._record(changed)
                    return before

    async def grant(self, ttl: float) -> Lease:
        return Lease(self._leases.grant(ttl), ttl)

    async def renew(self, lease: str) -> float | None:
        return self._leases.renew(lease)

    async def revoke(self, lease: str) -> None:
        removed: frozenset[str] = frozenset()
        while names := self._leases.names(lease) - removed:  # more may be registered while these are removed
            await self.update(names, lambda _, old: old and old.without(lambda address: address.lease == lease))
            removed |= names
        self._leases.forget(lease)

    async def run(self) -> None:
        self._leases.begin()
        while True:
            lease = await self._leases.wait_for_end()
            while True:
                try:
                    await self.revoke(lease)
                    break
                except NamingError as error:
                    log.warning("a lease that ended cannot be taken out yet: %s", error)
                    await trio.sleep(RETRY_S)

    async def aclose(self) -> None:
        """Nothing to let go of."""

    async def _persist(self, changed: Mapping[str, Entry | None]) -> bool:
        """Make a change lasting, before anybody sees it. False: somebody else changed the entries, try again."""
        return True

    def _record(self, changed: Mapping[str, Entry | None]) -> None:
        """Make a change visible."""
        for name, entry in changed.items():
            if entry is None:
                del self._entries[name]
            else:
                self._entries[name] = entry
                self._attach_leases(name, entry)
        if changed:
            self._history.append(changed)

    def _attach_leases(self, name: str, entry: Entry) -> None:
        for address in entry.addresses:
            if address.lease is not None:
                self._leases.attach(address.lease, address.ttl or MIN_TTL_S, name)
