"""The object behind ``Pyro.NameServer``: the APIs of Pyro4's and of Pyro5's name server, and what goes beyond."""

from __future__ import annotations

import builtins
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import trio

from ..errors import NamingError, PyroError
from ..objects.context import current_call
from ..objects.expose import expose
from ..uri import Uri
from .addresses import is_loopback, is_this_machine
from .cleaning import why_unreachable
from .matching import matching_names
from .rules import (
    NAME_SERVER,
    check_name,
    check_port,
    check_protocols,
    check_reachable,
    check_revision,
    check_tags,
    check_ttl,
    check_uri,
)
from .storage import Address, Entry, MemoryStorage, Query, Registry
from .watching import Item, details, follow

MAX_ENTRIES: Final = 200_000
"""Names one server holds: 100 MB of usual entries."""
MAX_ADDRESSES: Final = 100
"""Addresses of one name."""

STALE: Final = "PXST"
"""Annotation of an answer that comes from memory: for how many seconds (u32) the storage has not been reachable."""

Tags = set[str] | builtins.list[str]
"""Metadata as the caller's library has it: a list towards protocol 48, a set towards 502."""
Listing = dict[str, str] | dict[str, tuple[str, Tags]]
"""URI text, or URI text and metadata, by name."""


@expose
class NameServer:
    """A flat space of names, each with one or more URIs and metadata tags.

    Args:
        registry: where the entries live, in memory by default. Whoever made it closes it, and runs it for leases.
        allow_loopback: accept loopback addresses from other machines.
        max_entries: names held at once; registering more is refused.

    Every method raises NamingError when the storage fails, and NamingError or TypeError for a name, tag or pattern
    that is too long, of the wrong type, or has control characters (see ``rules``).
    """

    def __init__(
        self, registry: Registry | None = None, *, allow_loopback: bool = False, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._registry = registry if registry is not None else MemoryStorage()
        self._allow_loopback = allow_loopback
        self._max_entries = max_entries
        self._regex_children = trio.CapacityLimiter(2)
        self._reaching_back = trio.CapacityLimiter(8)

    # --- Pyro's methods ----------------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Answers when the name server is there."""

    async def count(self) -> int:
        """Number of names, the name server's own included."""
        return await self._registry.count()

    async def lookup(self, name: str, return_metadata: bool = False) -> Uri | tuple[Uri, Tags]:
        """A URI registered under a name, with the metadata of the name when asked for.

        Of several addresses one at random of those that the caller can use: in its protocol, and, when it is on
        another machine, not on loopback if there is another.

        Raises:
            NamingError: ``unknown name: …``, or no address of it speaks the caller's protocol.
        """
        entry = await self._registry.get(check_name(name))
        self._say_if_stale()
        if entry is None:
            raise self._unknown(name)
        uri = _parsed(_choose(name, entry))
        return (uri, _tags(entry)) if return_metadata else uri

    async def register(
        self,
        name: str,
        uri: Uri | str,
        safe: bool = False,
        metadata: Any = None,
        *,
        ttl: float | None = None,
        lease: str | None = None,
        add: bool = False,
        protocols: Any = None,
    ) -> str | None:
        """Store a URI and metadata under a name, in place of what was there unless ``safe`` or ``add``.

        When this returns, the entry survives whatever the storage promises to survive.

        Args:
            ttl: seconds after which the address is removed, unless ``renew`` is called again and again with the lease
                that is returned then.
            lease: id of a lease that was returned before: the address is removed when that one ends.
            add: keep the other addresses of the name.
            protocols: 48, 502 or both, what is spoken there. Unless given, what a stock client speaks that registers
                it, and unknown when the client is one of ours.

        Returns: the id of the new lease, with ``ttl``.

        Raises:
            NamingError: ``name already registered: …`` with ``safe``; ``unknown lease: …``; an address nobody, or
                nobody else, can connect to; too many names or addresses.
            PyroError: not a URI.
        """
        checked = check_uri(uri)
        check_name(name)
        text = uri.rstrip("\n") if isinstance(uri, str) else str(checked)
        spoken = _spoken_by_caller(checked) if protocols is None else check_protocols(protocols)
        address = Address(text, check_tags(metadata), spoken)
        check_reachable(name, checked, remote=not self._allow_loopback and _caller_is_remote())
        await self._check_room(name, add)
        leased = await self._with_lease(address, ttl, lease)
        if add:
            await self._registry.add(name, leased)
        elif not await self._registry.put(name, Entry((leased,)), replace=not safe):
            if ttl is not None:
                await self._registry.revoke(str(leased.lease))
            raise NamingError(f"name already registered: {name}")
        return None if ttl is None else leased.lease

    async def set_metadata(self, name: str, metadata: Any) -> None:
        """Replace the metadata of an entry; None or an empty collection clears it.

        Raises:
            NamingError: ``unknown name: …``.
        """
        if not await self._registry.set_metadata(check_name(name), check_tags(metadata)):
            raise NamingError(f"unknown name: {name}")

    async def remove(
        self,
        name: str | None = None,
        prefix: str | None = None,
        regex: str | None = None,
        *,
        uri: Uri | str | None = None,
    ) -> int:
        """Remove one name, or those with a prefix, or those a pattern matches; never the name server's own entry.

        Args:
            uri: with a name: only this address of it.

        Returns: the number of entries removed, or of addresses with ``uri``. When it returns, the removal is as
            durable as a registration.
        """
        if name and check_name(name) != NAME_SERVER:
            if uri is not None:
                return int(await self._registry.remove_address(name, str(check_uri(uri))))
            removed = await self._registry.remove([name])
            if removed or not _caller_is_pyro4():  # there an unknown name falls through to the other filters
                return removed
        if not prefix and not regex:
            return 0
        entries = await self._by_prefix(prefix) if prefix else await self._by_regex(regex)
        return await self._registry.remove([found for found in entries if found != NAME_SERVER])

    async def list(
        self,
        prefix: str | None = None,
        regex: str | None = None,
        metadata_all: Any = None,
        metadata_any: Any = None,
        return_metadata: bool = False,
    ) -> Listing:
        """Entries by name, each with its first address; all of them, or those that pass the one filter that is given.

        By metadata, as programs search for what they will call: those only that the caller can use, see `lookup`.

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
        entries = await self._select(query)
        return _listing(entries if query == Query() else _usable(entries), return_metadata)

    async def yplookup(self, meta_all: Any = None, meta_any: Any = None, return_metadata: bool = True) -> Listing:
        """Entries that have all, or any, of some tags, as far as the caller can use them; nothing without tags.

        Raises:
            ValueError: both criteria are given.
        """
        if meta_all and meta_any:
            raise ValueError("give either meta_all or meta_any, not both")
        query = _tag_query(meta_all or None, meta_any or None)
        if query == Query():
            return {}
        return _listing(_usable(await self._select(query)), return_metadata)

    # --- beyond Pyro -------------------------------------------------------------------------------------------

    async def renew(self, lease: str) -> float:
        """Make a lease last for its whole time again.

        Returns: seconds until it ends, unless it is renewed again.

        Raises:
            NamingError: ``unknown lease: …``: it ended, and its addresses are gone; register them again.
        """
        seconds = await self._registry.renew(check_name(lease, "lease"))
        if seconds is None:
            raise NamingError(f"unknown lease: {lease}")
        return seconds

    async def revoke(self, lease: str) -> None:
        """End a lease and remove its addresses at once; an unknown one is no error."""
        await self._registry.revoke(check_name(lease, "lease"))

    async def lookup_all(self, name: str) -> dict[str, Any]:
        """Everything known of a name: ``addresses`` (each with ``uri``, ``metadata``, ``protocols``, and ``ttl`` when
        it has a lease) and ``metadata`` of all of them.

        Raises:
            NamingError: ``unknown name: …``.
        """
        entry = await self._registry.get(check_name(name))
        self._say_if_stale()
        if entry is None:
            raise self._unknown(name)
        return details(entry)

    async def watch(self, after: int | None = None, prefix: str = "") -> AsyncGenerator[Item, None]:
        """An item stream without end: the entries as they are, then every change, in order.

        Each item is a dictionary: ``entries`` from names to what `lookup_all` tells, or None for those that are gone;
        and ``revision``, None while the entries at the beginning are still incomplete.

        Args:
            after: a revision that an item carried: only what changed after it.
            prefix: names that begin with it only.

        Raises:
            NamingError: ``revision … is not known any more``: too many changes since, or another registry; watch
                without ``after``.
        """
        async with aclosing(follow(self._registry, check_revision(after), check_name(prefix, "prefix"))) as items:
            async for item in items:
                yield item

    async def reach_back(self, port: int) -> dict[str, Any]:
        """Whether this machine can connect to a TCP port of the caller's own address, for those who look for a fault.

        Returns: ``address``, as which the caller is seen here; ``reachable``; and ``reason``, why not.
        """
        check_port(port)
        caller = _caller()
        if caller is None or caller.peer == "unix":
            return {"address": "", "reachable": False, "reason": "the caller has no address"}
        address = str(caller.peer).rpartition(":")[0].strip("[]")
        async with self._reaching_back:
            reason = await why_unreachable(address, port)
        return {"address": address, "reachable": reason is None, "reason": reason}

    # --- helpers -----------------------------------------------------------------------------------------------

    async def _check_room(self, name: str, add: bool) -> None:
        if not add and await self._registry.count() < self._max_entries:
            return
        entry = await self._registry.get(name)
        if entry is None:
            if await self._registry.count() >= self._max_entries:
                raise NamingError(f"this name server is full: it holds {self._max_entries} names")
        elif add and len(entry.addresses) >= MAX_ADDRESSES:
            raise NamingError(f"{name!r} has {MAX_ADDRESSES} addresses already, more are not possible")

    async def _with_lease(self, address: Address, ttl: float | None, lease: str | None) -> Address:
        if ttl is not None and lease is not None:
            raise ValueError("give either ttl or lease, not both")
        if lease is not None:
            return replace(address, lease=lease, ttl=await self.renew(lease))
        if ttl is None:
            return address
        granted = await self._registry.grant(check_ttl(ttl))
        return replace(address, lease=granted.id, ttl=granted.ttl)

    async def _select(self, query: Query) -> dict[str, Entry]:
        entries = await self._registry.select(query)
        self._say_if_stale()
        return entries

    def _unknown(self, name: str) -> NamingError:
        """An error carries no annotations, so the text says when it comes from memory."""
        seconds = self._registry.stale_s
        old = "" if seconds is None else f" (from memory; the storage has not answered for {seconds:.0f} s)"
        return NamingError(f"unknown name: {name}{old}")

    def _say_if_stale(self) -> None:
        """Mark an answer that comes from memory because the storage cannot be reached."""
        seconds = self._registry.stale_s
        if seconds is not None and (caller := _caller()) is not None:
            caller.response_annotations[STALE] = min(int(seconds), 2**32 - 1).to_bytes(4)

    async def _by_prefix(self, prefix: str) -> dict[str, Entry]:
        return await self._select(Query(prefix=check_name(prefix, "prefix")))

    async def _by_regex(self, regex: Any) -> dict[str, Entry]:
        check_name(regex, "regex")
        entries = await self._select(Query())
        return {name: entries[name] for name in await matching_names(regex, entries, self._regex_children)}


@lru_cache(maxsize=4096)
def _parsed(uri: str) -> Uri:
    """The same few thousand are looked up again and again."""
    return Uri(uri)


def _choose(name: str, entry: Entry) -> str:
    """URI text for the caller."""
    addresses = entry.addresses
    if len(addresses) == 1 and not addresses[0].protocols:
        return addresses[0].uri
    protocol = _caller_protocol()
    usable = [address.uri for address in addresses if address.speaks(protocol)]
    if not usable:
        spoken = " and ".join(str(one) for one in sorted(frozenset().union(*(at.protocols for at in addresses))))
        raise NamingError(
            f"{name!r} cannot be used with protocol {protocol}: it was registered for protocol {spoken}"
        )
    if len(usable) > 1 and _caller_is_remote():
        usable = [uri for uri in usable if not is_loopback(Uri(uri).host or "localhost")] or usable
    return usable[0] if len(usable) == 1 else random.choice(usable)


def _usable(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries, and their addresses, that the caller can use."""
    protocol = _caller_protocol()
    if protocol is None:
        return entries
    kept = {name: entry.without(lambda address: not address.speaks(protocol)) for name, entry in entries.items()}
    return {name: entry for name, entry in kept.items() if entry is not None}


def _refuse_several_filters(*filters: Any) -> None:
    """Pyro4 counts every filter that is not None, Pyro5 those that are not empty."""
    pyro4 = _caller_is_pyro4()
    if sum(given is not None if pyro4 else bool(given) for given in filters) > 1:
        raise ValueError("you can only filter on one thing at a time")


def _tag_query(all_of: Any, any_of: Any) -> Query:
    return Query(all_of=check_tags(all_of, "metadata_all"), any_of=check_tags(any_of, "metadata_any"))


def _listing(entries: dict[str, Entry], return_metadata: bool) -> Listing:
    if return_metadata:
        as_list = _caller_is_pyro4()
        return {name: (entry.uri, _shaped(entry, as_list)) for name, entry in entries.items()}
    return {name: entry.uri for name, entry in entries.items()}


def _tags(entry: Entry) -> Tags:
    return _shaped(entry, _caller_is_pyro4())


def _shaped(entry: Entry, as_list: bool) -> Tags:
    return sorted(entry.metadata) if as_list else set(entry.metadata)


def _caller() -> Any:
    """The context of the remote call that runs here; None when a program calls its own name server."""
    try:
        return current_call.get()
    except PyroError:
        return None


def _caller_is_pyro4() -> bool:
    caller = _caller()
    return caller is not None and caller.protocol == 48


def _caller_protocol() -> int | None:
    """The only protocol that the caller speaks; None for our own library, which speaks both."""
    caller = _caller()
    return None if caller is None or caller.client.is_own else int(caller.protocol)


def _spoken_by_caller(uri: Uri) -> frozenset[int]:
    """A stock program registers what it serves itself, with the library it calls us with."""
    protocol = _caller_protocol()
    return frozenset() if protocol is None or uri.protocol != "PYRO" else frozenset({protocol})


def _caller_is_remote() -> bool:
    caller = _caller()
    if caller is None or caller.peer == "unix":
        return False
    return not is_this_machine(str(caller.peer).rpartition(":")[0].strip("[]"))
