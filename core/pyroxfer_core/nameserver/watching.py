"""What those who watch a name server are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from itertools import islice
from typing import Any, Final

from .storage import Changes, Entry, Query, Registry

CHUNK: Final = 500
"""Entries of one item at the beginning of a watch."""

Item = dict[str, Any]
"""``entries`` and ``revision``, see NameServer.watch."""


def details(entry: Entry) -> dict[str, Any]:
    """All of an entry in values that every serializer carries."""
    return {
        "addresses": [
            {"uri": address.uri, "metadata": sorted(address.metadata), "protocols": sorted(address.protocols)}
            | ({} if address.ttl is None else {"ttl": address.ttl})
            for address in entry.addresses
        ],
        "metadata": sorted(entry.metadata),
    }


async def follow(registry: Registry, after: int | None, prefix: str) -> AsyncGenerator[Item, None]:
    """What NameServer.watch promises."""
    if after is None:
        after, entries = await registry.snapshot()
        query = Query(prefix=prefix)
        wanted = ((name, entry) for name, entry in entries.items() if query.matches(name, entry))
        while chunk := dict(islice(wanted, CHUNK)):
            yield _item(None, chunk)
        del entries, wanted
        yield _item(after, {})
    async with aclosing(registry.changes(after)) as changes:
        async for change in changes:
            if item := _filtered(change, prefix):
                yield item


def _filtered(change: Changes, prefix: str) -> Item | None:
    if not prefix:
        return _item(change.revision, change.entries)
    entries = {name: entry for name, entry in change.entries.items() if name.startswith(prefix)}
    return _item(change.revision, entries) if entries else None


def _item(revision: int | None, entries: Mapping[str, Entry | None]) -> Item:
    return {
        "revision": revision,
        "entries": {name: None if entry is None else details(entry) for name, entry in entries.items()},
    }
