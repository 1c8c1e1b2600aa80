"""The entries of the name server, kept up to date while somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ..client.items import ItemStream
from ..errors import PyroError
from .entries import Entry, entries_of_listing, take_changes
from .names import Names

POLL_S: Final = 1.0
"""How often a name server that does not tell of changes is asked for them, and one that is gone is looked for."""
SETTLE_S: Final = 0.25
"""How long changes are collected before they are shown."""
MAX_SHOWN: Final = 2_000
"""Entries that are shown at once; how many there are is said beside them."""
FIRST_WITHIN_S: Final = 10.0
"""How long the first look at the name server may take."""


@dataclass(frozen=True, slots=True)
class View:
    """The entries at one moment."""

    entries: tuple[Entry, ...] = ()
    """Sorted by name, at most MAX_SHOWN."""
    total: int = 0
    leases: bool = False
    """The name server knows of leases, so that their absence means something."""
    error: str | None = None
    """Why there is nothing, or why this is old."""
    version: int = 0


class Mirror:
    """What all pages of a gateway look at. There is no task of its own: one of those who look keeps it for all.

    Args:
        wanted: whether an entry of this name is of interest; others are not kept.
    """

    def __init__(self, names: Names, wanted: Callable[[str], bool]) -> None:
        self._names = names
        self._wanted = wanted
        self._entries: dict[str, Entry] = {}
        self._leases = False
        self._error: str | None = None
        self._whole = False
        self._version = 0
        self._keeper = trio.Lock()
        self._changed = trio.Event()

    async def keep(self) -> None:
        """Keep it up to date until cancelled; when another does so already, after that one."""
        async with self._keeper:
            try:
                while True:
                    await self._follow()
            finally:
                self._whole = False

    async def look(self) -> View:
        """The entries now, asked for unless somebody keeps them up to date."""
        if not self._whole:
            with trio.move_on_after(FIRST_WITHIN_S):
                try:
                    self._keeper.acquire_nowait()
                except trio.WouldBlock:
                    await self._changed.wait()
                else:
                    try:
                        await self._follow(once=True)
                    finally:
                        self._whole = False
                        self._keeper.release()
        return self._view()

    async def changed(self, since: int) -> View:
        """The entries when they are not those of this version any more, with changes that come shortly after."""
        if self._version == since:
            await self._changed.wait()
        await trio.sleep(SETTLE_S)
        return self._view()

    def _view(self) -> View:
        names = sorted(self._entries)
        shown = tuple(self._entries[name] for name in names[:MAX_SHOWN])
        return View(shown, len(names), self._leases, self._error, self._version)

    async def _follow(self, once: bool = False) -> None:
        """Until the connection ends, or, when the name server does not tell of changes, for one look."""
        try:
            stream = await self._names.watch()
            self._leases = stream is not None
            if stream is not None:
                await self._take_all(stream, once)
            else:
                found = {entry.name: entry for entry in entries_of_listing(await self._names.listing())}
                self._set({name: entry for name, entry in found.items() if self._wanted(name)})
        except PyroError as error:
            self._set(self._entries, str(error))
        if not once:
            await trio.sleep(POLL_S)

    async def _take_all(self, stream: ItemStream, once: bool) -> None:
        entries: dict[str, Entry] = {}
        async with stream:
            async for item in stream:
                whole = take_changes(entries, item, self._wanted)
                if whole:
                    self._set(entries)
                if whole and once:
                    return

    def _set(self, entries: dict[str, Entry], error: str | None = None) -> None:
        same = entries is not self._entries and entries == self._entries and error == self._error and self._whole
        self._entries, self._error, self._whole = entries, error, True
        if not same:
            self._version += 1
            changed, self._changed = self._changed, trio.Event()
            changed.set()
