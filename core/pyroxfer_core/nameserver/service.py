"""The object behind ``Pyro.NameServer``: the API of Pyro4's name server and of Pyro5's in one."""

from __future__ import annotations

import builtins
from typing import Any, Final

import trio

from ..errors import NamingError, PyroError
from ..objects.context import current_call
from ..objects.expose import expose
from ..uri import Uri
from .addresses import is_this_machine
from .matching import matching_names
from .rules import NAME_SERVER, check_name, check_reachable, check_tags, check_uri
from .storage import Entry, MemoryStorage, Query, Storage

MAX_ENTRIES: Final = 100_000
"""Names one server holds: 20 MB of usual entries, and with every text at its limit no more than 0.6 GB."""

Tags = set[str] | builtins.list[str]
"""Metadata as the caller's library has it: a list towards protocol 48, a set towards 502."""
Listing = dict[str, str] | dict[str, tuple[str, Tags]]
"""URI text, or URI text and metadata, by name."""


@expose
class NameServer:
    """A flat space of names, each with a URI and metadata tags.

    Args:
        storage: where the entries live, in memory by default. Whoever made it closes it.
        allow_loopback: accept loopback addresses from other machines.
        max_entries: names held at once; registering more is refused.

    Every method raises NamingError when the storage fails, and NamingError or TypeError for a name, tag or pattern
    that is too long, of the wrong type, or has control characters (see ``rules``).
    """

    def __init__(
        self, storage: Storage | None = None, *, allow_loopback: bool = False, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._storage = storage if storage is not None else MemoryStorage()
        self._allow_loopback = allow_loopback
        self._max_entries = max_entries
        self._regex_children = trio.CapacityLimiter(2)

    async def ping(self) -> None:
        """Answers when the name server is there."""

    async def count(self) -> int:
        """Number of names, the name server's own included."""
        return await self._storage.count()

    async def lookup(self, name: str, return_metadata: bool = False) -> Uri | tuple[Uri, Tags]:
        """The URI registered under a name, with its metadata when asked for.

        Raises:
            NamingError: ``unknown name: …``.
        """
        entry = await self._storage.get(check_name(name))
        if entry is None:
            raise NamingError(f"unknown name: {name}")
        uri = Uri(entry.uri)
        return (uri, _tags(entry)) if return_metadata else uri

    async def register(self, name: str, uri: Uri | str, safe: bool = False, metadata: Any = None) -> None:
        """Store a URI and metadata under a name, in place of what was there unless ``safe``.

        When this returns, the entry survives whatever the storage promises to survive.

        Raises:
            NamingError: ``name already registered: …`` with ``safe``; an address nobody, or nobody else, can
                connect to; too many names.
            PyroError: not a URI.
        """
        checked = check_uri(uri)
        check_name(name)
        entry = Entry(uri.rstrip("\n") if isinstance(uri, str) else str(checked), check_tags(metadata))
        check_reachable(name, checked, remote=not self._allow_loopback and _caller_is_remote())
        if await self._storage.count() >= self._max_entries and await self._storage.get(name) is None:
            raise NamingError(f"this name server is full: it holds {self._max_entries} names")
        if not await self._storage.put(name, entry, replace=not safe):
            raise NamingError(f"name already registered: {name}")

    async def set_metadata(self, name: str, metadata: Any) -> None:
        """Replace the metadata of an entry; None or an empty collection clears it.

        Raises:
            NamingError: ``unknown name: …``.
        """
        if not await self._storage.set_metadata(check_name(name), check_tags(metadata)):
            raise NamingError(f"unknown name: {name}")

    async def remove(self, name: str | None = None, prefix: str | None = None, regex: str | None = None) -> int:
        """Remove one name, or those with a prefix, or those a pattern matches; never the name server's own entry.

        Returns: the number of entries removed. When it returns, the removal is as durable as a registration.
        """
        if name and check_name(name) != NAME_SERVER:
            removed = await self._storage.remove([name])
            if removed or not _caller_is_pyro4():  # there an unknown name falls through to the other filters
                return removed
        if not prefix and not regex:
            return 0
        entries = await self._by_prefix(prefix) if prefix else await self._by_regex(regex)
        return await self._storage.remove([found for found in entries if found != NAME_SERVER])

    async def list(
        self,
        prefix: str | None = None,
        regex: str | None = None,
        metadata_all: Any = None,
        metadata_any: Any = None,
        return_metadata: bool = False,
    ) -> Listing:
        """Entries by name; all of them, or those that pass the one filter that is given.

        Raises:
            ValueError: more than one filter.
            NamingError: ``invalid regex: …``, or one that is too long or runs too long.
        """
        if isinstance(metadata_all, bool):  # the third argument in Pyro5 is return_metadata
            metadata_all, return_metadata = None, metadata_all
        _refuse_several_filters(prefix, regex, metadata_all, metadata_any)
        if regex:
            return _listing(await self._by_regex(regex), return_metadata)
        if prefix:
            return _listing(await self._by_prefix(prefix), return_metadata)
        query = _tag_query(metadata_all, metadata_any)
        return _listing(await self._storage.select(query), return_metadata)

    async def yplookup(self, meta_all: Any = None, meta_any: Any = None, return_metadata: bool = True) -> Listing:
        """Entries that have all, or any, of some tags; nothing when there are no tags.

        Raises:
            ValueError: both criteria are given.
        """
        if meta_all and meta_any:
            raise ValueError("give either meta_all or meta_any, not both")
        query = _tag_query(meta_all or None, meta_any or None)
        if query == Query():
            return {}
        return _listing(await self._storage.select(query), return_metadata)

    async def _by_prefix(self, prefix: str) -> dict[str, Entry]:
        return await self._storage.select(Query(prefix=check_name(prefix, "prefix")))

    async def _by_regex(self, regex: Any) -> dict[str, Entry]:
        check_name(regex, "regex")
        entries = await self._storage.select(Query())
        return {name: entries[name] for name in await matching_names(regex, entries, self._regex_children)}


def _refuse_several_filters(*filters: Any) -> None:
    """Pyro4 counts every filter that is not None, Pyro5 those that are not empty."""
    pyro4 = _caller_is_pyro4()
    if sum(given is not None if pyro4 else bool(given) for given in filters) > 1:
        raise ValueError("you can only filter on one thing at a time")


def _tag_query(all_of: Any, any_of: Any) -> Query:
    return Query(all_of=check_tags(all_of, "metadata_all"), any_of=check_tags(any_of, "metadata_any"))


def _listing(entries: dict[str, Entry], return_metadata: bool) -> Listing:
    if return_metadata:
        return {name: (entry.uri, _tags(entry)) for name, entry in entries.items()}
    return {name: entry.uri for name, entry in entries.items()}


def _tags(entry: Entry) -> Tags:
    return sorted(entry.metadata) if _caller_is_pyro4() else set(entry.metadata)


def _caller() -> Any:
    """The context of the remote call that runs here; None when a program calls its own name server."""
    try:
        return current_call.get()
    except PyroError:
        return None


def _caller_is_pyro4() -> bool:
    caller = _caller()
    return caller is not None and caller.protocol == 48


def _caller_is_remote() -> bool:
    caller = _caller()
    if caller is None or caller.peer == "unix":
        return False
    return not is_this_machine(str(caller.peer).rpartition(":")[0].strip("[]"))
