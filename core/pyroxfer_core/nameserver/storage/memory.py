"""Entries in a dictionary: gone when the process ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace as changed

from .base import Entry, Query, Storage


class MemoryStorage(Storage):
    """Volatile entries. No call ever waits."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    async def get(self, name: str) -> Entry | None:
        return self._entries.get(name)

    async def count(self) -> int:
        return len(self._entries)

    async def select(self, query: Query) -> dict[str, Entry]:
        return {name: entry for name, entry in self._entries.items() if query.matches(name, entry)}

    async def put(self, name: str, entry: Entry, *, replace: bool = True) -> bool:
        if not replace and name in self._entries:
            return False
        self._entries[name] = entry
        return True

    async def set_metadata(self, name: str, metadata: frozenset[str]) -> bool:
        entry = self._entries.get(name)
        if entry is None:
            return False
        self._entries[name] = changed(entry, metadata=metadata)
        return True

    async def remove(self, names: Iterable[str]) -> int:
        return sum(self._entries.pop(name, None) is not None for name in names)

    async def aclose(self) -> None:
        """Nothing to let go of."""
