"""What is in etcd as far as we have heard: entries in memory, and their history for those who watch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from ..base import Entry
from ..history import History
from .client import from_b64
from .layout import Layout, Row, entry_of


class Mirror:
    """Entries at one revision, brought forward by events."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._rows: dict[str, dict[bytes, Row]] = {}
        self.entries: dict[str, Entry] = {}
        self.history = History(0)
        self.revision = 0
        """Up to which everything that was heard is in here; 0 before the first load."""
        self._moved = trio.Event()

    async def reach(self, revision: int) -> None:
        """Wait until it has heard of everything up to a revision."""
        while self.revision < revision:
            await self._moved.wait()

    def load(self, rows: Iterable[Row], revision: int) -> None:
        """Begin anew with everything that is there at a revision.

        Who watches has to begin anew too, unless nothing changed that we did not hear of.
        """
        self._rows = {}
        for row in rows:
            self._rows.setdefault(row.name, {})[row.key] = row
        entries = {name: entry for name, of in self._rows.items() if (entry := entry_of(of.values())) is not None}
        if not self.revision or entries != self.entries:
            self.history.restart(revision)
        self.entries = entries
        self._move_to(revision)

    def apply(self, events: Iterable[dict[str, Any]]) -> None:
        """Bring forward by the events of one answer of a watch, each revision as one change."""
        changed: dict[str, Entry | None] = {}
        revision = 0
        for event in events:
            at = int(event["kv"]["mod_revision"])
            if at != revision:
                self._record(changed, revision)
                changed, revision = {}, at
            changed |= self._apply(event)
        self._record(changed, revision)

    def _apply(self, event: dict[str, Any]) -> dict[str, Entry | None]:
        kv = event["kv"]
        key = from_b64(kv["key"])
        name = self._layout.split(key)
        if name is None:
            return {}
        row = None if event.get("type") == "DELETE" else self._layout.row(kv)
        rows = self._rows.setdefault(name, {})
        rows.pop(key, None)
        if row is not None:
            rows[key] = row
        if not rows:
            del self._rows[name]
        return {name: entry_of(rows.values())}

    def _record(self, changed: dict[str, Entry | None], revision: int) -> None:
        seen: dict[str, Entry | None] = {}
        for name, entry in changed.items():
            if entry != self.entries.get(name):
                seen[name] = entry
            if entry is None:
                self.entries.pop(name, None)
            else:
                self.entries[name] = entry
        if seen:
            self.history.append(seen, revision)
        if revision > self.revision:
            self._move_to(revision)

    def _move_to(self, revision: int) -> None:
        self.revision = revision
        moved, self._moved = self._moved, trio.Event()
        moved.set()
