"""How entries are heard of: name servers of ours tell changes, stock ones are asked again and again, etcd is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import trio

from pyroxfer_core import Proxy, Settings
from pyroxfer_core.errors import NamingError
from pyroxfer_core.nameserver import Address, Entry, Query, Registry, locate_ns, open_registry, read_entries

from .follow import MAX_ENTRIES, Hearing

LISTING_S: Final = 30.0
"""How long a name server may take for a listing."""
LOOK_S: Final = 1.0
"""How often it is checked whether etcd is still there."""
AGAIN_S: Final = 0.1
"""Before everything is read anew, because too much has changed to be told."""
SILENCE_S: Final = 1.0
"""After which a name server that is asked for changes, and says nothing, has none to tell."""


class NameServerSource:
    """A name server, of either library or ours.

    Args:
        host, port: as for `locate_ns`.
        interval_s: between two looks, where changes are not told.
    """

    def __init__(
        self, host: str | None, port: int | None, query: Query, interval_s: float, settings: Settings
    ) -> None:
        self._host, self._port = host, port
        self._query = query
        self._interval_s = interval_s
        self._settings = settings
        self._revision: int | None = None
        """Up to which everything was heard."""

    async def __call__(self, hearing: Hearing) -> float:
        """See `follow.Source`."""
        async with await locate_ns(self._host, self._port, settings=self._settings) as ns:
            if ns._pyroMetadata is not None and "watch" in ns._pyroMetadata.methods:
                return await self._watch(ns, hearing)
            self._revision = None
            with trio.move_on_after(LISTING_S):
                hearing.all_are(await read_entries(ns, self._query))
                return self._interval_s
            raise NamingError(f"{ns._pyroUri.location} gave no listing within {LISTING_S:g} s")

    async def _watch(self, ns: Proxy, hearing: Hearing) -> float:
        """Go on where it was left, or from the beginning."""
        failure: Exception
        async with trio.open_nursery() as nursery:
            if self._revision is not None:
                nursery.start_soon(_note_silence, hearing)
            try:
                await self._follow(ns, hearing)
                failure = NamingError(f"{ns._pyroUri.location} ended its list of changes")
            except Exception as error:
                failure = error  # as it is, not in a group
            nursery.cancel_scope.cancel()
        if self._revision is None or not _is_forgotten(failure):
            raise failure
        self._revision = None
        return AGAIN_S

    async def _follow(self, ns: Proxy, hearing: Hearing) -> None:
        beginning: dict[str, Entry] | None = {} if self._revision is None else None
        async for item in ns.watch(after=self._revision, prefix=self._query.prefix):
            revision, entries = _read_item(item)
            if beginning is None:
                hearing.some_are(entries)
            else:
                _add_wanted(beginning, entries, hearing)
                if revision is None:
                    continue
                hearing.all_are(beginning)
                beginning = None
            self._revision = revision


async def _note_silence(hearing: Hearing) -> None:
    """Where nothing has changed nothing is told, while an error comes at once."""
    await trio.sleep(SILENCE_S)
    hearing.is_well()


def _is_forgotten(error: Exception) -> bool:
    """Whether a registry cannot tell what changed since."""
    return isinstance(error, NamingError) and "not known any more" in str(error)


def _add_wanted(found: dict[str, Entry], entries: Mapping[str, Entry | None], hearing: Hearing) -> None:
    for name, entry in entries.items():
        if entry is not None and len(found) < MAX_ENTRIES and hearing.addresses(name, entry):
            found[name] = entry


def _read_item(item: Any) -> tuple[int | None, dict[str, Entry | None]]:
    """One item of a watch.

    Raises:
        NamingError: it is something else.
    """
    try:
        revision, entries = item["revision"], item["entries"]
        if revision is not None:
            revision = int(revision)
        return revision, {str(name): _read_entry(entry) for name, entry in entries.items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        raise NamingError("the name server tells changes in a form that is not known") from None


def _read_entry(entry: Mapping[str, Any] | None) -> Entry | None:
    if entry is None:
        return None
    return Entry(
        tuple(
            Address(str(one["uri"]), frozenset(map(str, one["metadata"])), frozenset(map(int, one["protocols"])))
            for one in entry["addresses"]
        )
    )


class EtcdSource:
    """A registry in etcd, read without a name server.

    Args:
        place: ``etcd:URL``.
    """

    def __init__(self, place: str, registries: Registries) -> None:
        self._place = place
        self._registries = registries

    async def __call__(self, hearing: Hearing) -> float:
        """See `follow.Source`."""
        failure: NamingError | None = None
        async with self._registries.use(self._place) as registry:
            revision, entries = await registry.snapshot()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_look_after, registry, self._place, hearing)
                try:
                    await _read_on(registry, revision, entries, hearing)
                except NamingError as error:
                    failure = error  # as it is, not in a group
                nursery.cancel_scope.cancel()
        raise failure or NamingError(f"{self._place} ended its list of changes")


async def _read_on(registry: Registry, revision: int, entries: Mapping[str, Entry], hearing: Hearing) -> None:
    """Everything that is there, and what changes; everything anew when more changed than can be told."""
    while True:
        hearing.all_are(entries)
        try:
            async with aclosing(registry.changes(revision)) as changes:
                async for change in changes:
                    hearing.some_are(change.entries)
        except NamingError as error:
            if not _is_forgotten(error):
                raise
        await trio.sleep(AGAIN_S)
        revision, entries = await registry.snapshot()


async def _look_after(registry: Registry, place: str, hearing: Hearing) -> None:
    while True:
        if registry.stale_s is None:
            hearing.is_well()
        else:
            hearing.is_lost(f"cannot reach {place}")
        await trio.sleep(LOOK_S)


class Registries:
    """Opened registries, each of which is one for all that use it, and closed after the last of them.

    Args:
        nursery: they run in it.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._shared: dict[str, _Shared] = {}

    @asynccontextmanager
    async def use(self, place: str) -> AsyncIterator[Registry]:
        """The registry of this place.

        Raises:
            NamingError: it cannot be used.
        """
        shared = self._shared.get(place)
        if shared is None:
            shared = self._shared[place] = _Shared(open_registry(place))
            self._nursery.start_soon(shared.run)
        shared.users += 1
        try:
            yield shared.registry
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[place]
                shared.running.cancel()


class _Shared:
    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.users = 0
        self.running = trio.CancelScope()

    async def run(self) -> None:
        try:
            with self.running:
                await self.registry.run()
        finally:
            await self.registry.aclose()
