"""One section of the configuration that discovers backends: what its registry says, and what counts meanwhile."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import trio

from pyroxfer_core.errors import PyroError
from pyroxfer_core.nameserver import Address, Entry

from .admin import log, note
from .config import DiscoverConfig
from .found import Found, Unusable, Wanted

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 15.0
"""After a failure a registry is left alone for about this long at first, twice as long after each further one, but
not longer than that; a random part of it is taken off, so that dispatchers do not all come back at once."""
GRACE_S: Final = 15.0
"""A registry that was away and comes back without an address may have been restarted empty, or have stood still while
leases ended: so long the address is kept, in which every program that lives has registered again."""
SETTLE_S: Final = 0.05
"""Counting what there is looks at every backend: what changes within so long after it is counted together."""
MAX_ENTRIES: Final = 10_000
"""Entries that are looked at; what there is beyond them is passed over."""
MAX_LINES: Final = 20
"""Addresses that cannot be used of which one answer of a registry makes the log speak."""

WAITING: Final = "waiting"
"""Nothing was heard of the registry yet."""
FOLLOWING: Final = "following"
LOST: Final = "lost"
"""It cannot be reached; what it said last counts."""


class Hearing(Protocol):
    """Whoever is told what a registry says."""

    def addresses(self, name: str, entry: Entry) -> tuple[Address, ...]: ...

    def all_are(self, entries: Mapping[str, Entry]) -> None: ...

    def some_are(self, entries: Mapping[str, Entry | None]) -> None: ...

    def is_well(self) -> None: ...

    def is_lost(self, reason: str) -> None: ...


Source = Callable[[Hearing], Awaitable[float]]
"""Tells what a registry says, as long as it can; returns after how many seconds it is to be asked again. PyroError:
it cannot be reached, or does not answer as a registry does."""


class Follower:
    """The state of one section.

    Args:
        wanted: what the section asks for.
        origin: the kind of its registry.
        registry: where that is, for people.
        changed: called when `found`, or the state, may be another one.
        service: the name that lines of the log carry.
    """

    def __init__(
        self,
        section: DiscoverConfig,
        wanted: Wanted,
        source: Source,
        origin: str,
        registry: str,
        changed: Callable[[], None],
        service: str,
    ) -> None:
        self.section = section
        self.origin = origin
        self.registry = registry
        self.state = WAITING
        self.reason = ""
        """Why the registry is lost."""
        self.found: tuple[Found, ...] = ()
        """The backends, as far as is known."""
        self.looked = trio.Event()
        """Set when the registry has answered, or could not, for the first time."""
        self.running = trio.CancelScope()
        self._wanted = wanted
        self._source = source
        self._changed = changed
        self._labels = {"service": service, "registry": registry}
        self._since = trio.current_time()
        self._failures = 0
        self._said: dict[str, tuple[Address, ...]] = {}
        """What the registry says, by name."""
        self._unsure: set[tuple[str, str]] = set()
        """Names and URIs it has not spoken of since it is back ..."""
        self._missing: dict[str, tuple[Address, ...]] = {}
        """... and the addresses of those of them that are gone there, but kept; see GRACE_S."""
        self._returned = trio.Event()
        self._news = trio.Event()
        """Set while something is to be counted."""
        self._usable: dict[str, tuple[Found, ...]] = {}
        """What of both can be used ..."""
        self._refused: dict[str, dict[str, str]] = {}
        """... and the URIs that cannot, with the reason."""
        self._lines = 0
        self._passed_over = 0

    def inherit(self, found: tuple[Found, ...]) -> None:
        """What an earlier section knew counts until the registry is heard for the first time."""
        self.found = found

    def describe(self) -> dict[str, Any]:
        """Its state in plain values."""
        return {
            "registry": self.registry,
            "state": self.state,
            "since_s": round(trio.current_time() - self._since, 3),
            "reason": self.reason,
            "backends": len(self.found),
            "missing": sum(map(len, self._missing.values())),
            "refused": sum(map(len, self._refused.values())),
            "passed_over": self._passed_over,
        }

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        with self.running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._let_go)
                nursery.start_soon(self._count_news)
                while True:
                    try:
                        pause_s = await self._source(self)
                    except Exception as error:  # a registry may send errors of any class
                        self.is_lost(_text_of(error))
                        pause_s = self._next_pause_s()
                    await trio.sleep(pause_s)

    def _next_pause_s(self) -> float:
        whole = min(FIRST_PAUSE_S * 2.0 ** min(self._failures, 16), MAX_PAUSE_S)
        self._failures += 1
        return whole * random.uniform(0.5, 1.0)

    # -- what the registry says

    def addresses(self, name: str, entry: Entry) -> tuple[Address, ...]:
        """The addresses of an entry that are asked for."""
        return self._wanted.addresses(name, entry)

    def all_are(self, entries: Mapping[str, Entry]) -> None:
        """Everything there is."""
        self.is_well()
        said = {name: some for name, entry in entries.items() if (some := self.addresses(name, entry))}
        for name in self._said.keys() - said.keys():
            self._take(name, ())
        for name, addresses in said.items():
            self._take(name, addresses)
        self._count()

    def some_are(self, entries: Mapping[str, Entry | None]) -> None:
        """What changed: entries as they are now, None for those that are gone."""
        self.is_well()
        taken = [
            self._take(name, () if entry is None else self.addresses(name, entry)) for name, entry in entries.items()
        ]
        if any(taken):  # a registry tells of all its names, and counting looks at every backend
            self._news.set()

    def is_well(self) -> None:
        """The registry answers. One that was away is not believed at once that something is gone."""
        self._failures = 0
        if self.state == LOST:
            note(logging.WARNING, "registry_back", **self._labels, backends=len(self.found))
            self._unsure.update((name, address.uri) for name, some in self._said.items() for address in some)
            self._returned.set()
        if self.state != FOLLOWING:
            self._become(FOLLOWING, "")

    def is_lost(self, reason: str) -> None:
        """The registry cannot be reached: what it said last counts."""
        if self.state != LOST:
            note(logging.WARNING, "registry_lost", **self._labels, backends_kept=len(self.found), reason=reason)
            self._become(LOST, reason)
        elif self.reason != reason:
            self.reason = reason
            self._changed()

    def _become(self, state: str, reason: str) -> None:
        self.state, self.reason, self._since = state, reason, trio.current_time()
        self.looked.set()
        self._changed()

    # -- what counts

    async def _let_go(self) -> None:
        """End the time for which missing addresses are kept; it begins anew each time the registry is back."""
        while True:
            await self._returned.wait()
            self._returned = trio.Event()
            with trio.move_on_after(GRACE_S):
                await self._returned.wait()
                continue
            if self.state == FOLLOWING:
                self._unsure.clear()
                names, self._missing = tuple(self._missing), {}
                for name in names:
                    self._read(name)
                self._count()

    def _take(self, name: str, addresses: tuple[Address, ...]) -> bool:
        """What the registry says of a name. Whether that is news."""
        there = {address.uri for address in addresses}
        self._unsure.difference_update((name, uri) for uri in there)
        known = self._said.get(name, ())
        if addresses == known:
            return False
        gone = [address for address in (*known, *self._missing.get(name, ())) if address.uri not in there]
        _set(self._missing, name, tuple(address for address in gone if (name, address.uri) in self._unsure))
        if not addresses or name in self._said or len(self._said) < MAX_ENTRIES:
            _set(self._said, name, addresses)
        self._read(name)
        return True

    def _read(self, name: str) -> None:
        """See what can be used of a name."""
        usable: list[Found] = []
        refused: dict[str, str] = {}
        for address in (*self._said.get(name, ()), *self._missing.get(name, ())):
            try:
                usable.append(self._wanted.read(name, address))
            except Unusable as error:
                refused[address.uri] = str(error)
        self._tell_refused(name, refused)
        _set(self._usable, name, tuple(usable))
        _set(self._refused, name, refused)

    def _tell_refused(self, name: str, refused: Mapping[str, str]) -> None:
        known = self._refused.get(name, {})
        for uri, reason in refused.items():
            if known.get(uri) != reason:
                self._lines += 1
                if self._lines <= MAX_LINES:
                    note(logging.WARNING, "backend_refused", **self._labels, name=name, uri=uri, reason=reason)

    async def _count_news(self) -> None:
        """Count what changes: at once, and what changes shortly afterwards together."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            self._count()
            await trio.sleep(SETTLE_S)

    def _count(self) -> None:
        """What is known has changed: see which backends it makes."""
        if self._lines > MAX_LINES:
            note(logging.WARNING, "backends_refused", **self._labels, more=self._lines - MAX_LINES)
        self._lines = 0
        found: dict[object, Found] = {}
        for name in sorted(self._usable):
            for one in self._usable[name]:
                found.setdefault(one.uri, one)
        self.found = self._first(found.values())
        self._changed()

    def _first(self, found: Iterable[Found]) -> tuple[Found, ...]:
        """As many as are allowed, those first that were there before."""
        most, known = self.section.max_backends, {one.uri for one in self.found}
        every = sorted(found, key=lambda one: one.uri not in known)
        if len(every) > most and not self._passed_over:
            note(logging.WARNING, "backends_passed_over", **self._labels, more=len(every) - most, max_backends=most)
        self._passed_over = max(0, len(every) - most)
        return tuple(every[:most])


def _text_of(error: Exception) -> str:
    if isinstance(error, PyroError):
        return str(error)
    log.debug("a registry failed in a way that is not known", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _set(table: dict[str, Any], name: str, value: Any) -> None:
    """Nothing is kept for what is empty."""
    if value:
        table[name] = value
    else:
        table.pop(name, None)
