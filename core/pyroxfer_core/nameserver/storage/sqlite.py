"""Entries in an SQLite file, in the schema of Pyro's own ``sql:`` storage.

A change is acknowledged after it was committed with ``synchronous=FULL``, so it survives the death of the process and
of the machine. Everything is read once and then kept in memory too, where it is looked up; when another process
changes the file, a Pyro name server for instance, that is noticed and the file is read again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import trio

from ...errors import NamingError
from .base import Entry, Query
from .memory import MemoryStorage
from .tables import prepare, read_entries, transaction, write_entry

_BUSY_TIMEOUT_S: Final = 5.0
"""How long a change waits for another process that writes to the same file (sqlite3's default)."""
_UNSEEN_S: Final = 0.002
"""How long lookups may not see what another process changed in the file: looking costs as much as the lookup."""
_LOOK_S: Final = 1.0
"""How often the file is looked at for changes by others while nobody asks for a name."""


class SqliteStorage(MemoryStorage):
    """Entries in the file ``path``, which may come from Pyro4 or Pyro5, also from before there was metadata.

    Opening blocks (disk, and a lock when another process writes); do it before serving or in a worker thread.

    Raises:
        ValueError: ``:memory:``, which Pyro refuses too: it is what MemoryStorage is for.
        NamingError: the file cannot be opened, is damaged or no database, or holds other tables of the same names; it
            was not changed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if str(path) in ("", ":memory:"):
            raise ValueError("sqlite's :memory: database is not supported; use the storage 'memory'")
        self.path = Path(path)
        self._look_at = 0.0
        with _translated(f"cannot open the name database {self.path}"), contextlib.ExitStack() as undo:
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            undo.callback(self._connection.close)
            self._version = self._data_version()
            self._entries = prepare(self._connection)
            undo.pop_all()
        for name, entry in self._entries.items():
            for address in entry.addresses:
                if address.lease is not None and address.ttl is not None:
                    self._leases.adopt(address.lease, address.ttl, name)

    async def get(self, name: str) -> Entry | None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _UNSEEN_S
            await self._look()
        return self._entries.get(name)

    async def count(self) -> int:
        await self._look()
        return await super().count()

    async def select(self, query: Query) -> dict[str, Entry]:
        await self._look()
        return await super().select(query)

    async def snapshot(self) -> tuple[int, dict[str, Entry]]:
        await self._look()
        return await super().snapshot()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run)
            while True:
                await trio.sleep(_LOOK_S)
                with contextlib.suppress(NamingError):  # whoever asks next hears of it
                    await self._look()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # waits for one running change at most
            async with self._changing:
                await trio.to_thread.run_sync(self._connection.close)

    async def _look(self) -> None:
        """Read the file again if somebody else changed it. While a change runs here, that one looks."""
        if self._changing.locked():
            return
        with _translated("cannot read the name database"):
            if self._data_version() == self._version:
                return
        async with self._changing:
            with _translated("cannot read the name database"):
                entries, self._version = await trio.to_thread.run_sync(self._read)
            self._take_over(entries)

    async def _persist(self, changed: Mapping[str, Entry | None]) -> bool:
        with _translated("cannot change the name database"):
            found = await trio.to_thread.run_sync(self._write, changed)
        if found is None:
            return True
        entries, self._version = found
        self._take_over(entries)
        return False

    def _write(self, changed: Mapping[str, Entry | None]) -> tuple[dict[str, Entry], int] | None:
        """Commit; or, if somebody else changed the file since it was read, read it again."""
        with transaction(self._connection):
            if self._data_version() == self._version:
                for name, entry in changed.items():
                    write_entry(self._connection, name, entry)
                return None
        return self._read()

    def _read(self) -> tuple[dict[str, Entry], int]:
        """Entries, and a version that is theirs or older."""
        version = self._data_version()
        return read_entries(self._connection), version

    def _data_version(self) -> int:
        """Changes when another connection has changed the file."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _take_over(self, entries: Mapping[str, Entry]) -> None:
        """What others changed becomes visible, as one change."""
        changed: dict[str, Entry | None] = {name: None for name in self._entries if name not in entries}
        changed |= {name: entry for name, entry in entries.items() if self._entries.get(name) != entry}
        self._record(changed)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """The one seam where errors of sqlite become ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise NamingError(f"{what}: {error}") from error
