"""What a name server, or a dispatcher, needs from the place where the entries live.

Every call is async, because an engine may have to wait for a disk or for a network; one that does not (memory) simply
never waits. An engine checks nothing: names, URIs and tags were checked by the service that calls it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Address:
    """One URI of an entry, and what came with it."""

    uri: str
    """URI text exactly as it was registered."""
    metadata: frozenset[str] = frozenset()
    """Tags: case-sensitive, without order."""
    protocols: frozenset[int] = frozenset()
    """48, 502 or both; empty when nobody said."""
    lease: str | None = None
    """The address is gone when this lease ends; None stays until it is removed."""
    ttl: float | None = None
    """Seconds that one renewal of the lease lasts."""

    def speaks(self, protocol: int | None) -> bool:
        """Whether a client of this protocol can use it, as far as is known; None stands for one that speaks both."""
        return protocol is None or not self.protocols or protocol in self.protocols


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored under one name: at least one address, in the order in which they were registered."""

    addresses: tuple[Address, ...]

    @classmethod
    def single(cls, uri: str, metadata: frozenset[str] = frozenset()) -> Entry:
        """An entry as Pyro knows it."""
        return cls((Address(uri, metadata),))

    @property
    def uri(self) -> str:
        """URI text of the first address."""
        return self.addresses[0].uri

    @property
    def metadata(self) -> frozenset[str]:
        """The tags of all addresses."""
        if len(self.addresses) == 1:
            return self.addresses[0].metadata
        return frozenset().union(*(address.metadata for address in self.addresses))

    def tagged(self, metadata: frozenset[str]) -> Entry:
        """The same with these tags on each address."""
        return Entry(tuple(replace(address, metadata=metadata) for address in self.addresses))

    def with_address(self, added: Address) -> Entry:
        """The same with one more address, in place of the one with the same URI."""
        if all(address.uri != added.uri for address in self.addresses):
            return Entry((*self.addresses, added))
        return Entry(tuple(added if address.uri == added.uri else address for address in self.addresses))

    def without(self, unwanted: Callable[[Address], bool]) -> Entry | None:
        """The same without some addresses; None when none is left."""
        kept = tuple(address for address in self.addresses if not unwanted(address))
        return Entry(kept) if kept else None


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries are meant; conditions that are given must all hold, an empty query means every entry."""

    prefix: str = ""
    """Beginning of the name, exact and case-sensitive."""
    all_of: frozenset[str] = frozenset()
    """Tags that must all be present."""
    any_of: frozenset[str] = frozenset()
    """Tags of which at least one must be present; empty is no condition."""

    def matches(self, name: str, entry: Entry) -> bool:
        """The meaning of a query, which every engine must agree with."""
        if not name.startswith(self.prefix):
            return False
        if not self.all_of and not self.any_of:
            return True
        tags = entry.metadata
        return self.all_of <= tags and (not self.any_of or not self.any_of.isdisjoint(tags))


@dataclass(frozen=True, slots=True)
class Lease:
    """What keeps addresses registered as long as it is renewed."""

    id: str
    ttl: float
    """Seconds that one renewal lasts."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed at once: entries as they are since this revision, None for those that are gone."""

    revision: int
    """Grows with every change, also over a restart."""
    entries: Mapping[str, Entry | None]


Update = Callable[[str, Entry | None], Entry | None]
"""From a name and its entry (None: there is none) to what shall be stored instead. It may be called several times
for one update, so it only computes."""


class Registry(ABC):
    """Entries by name, with leases and an ordered watch.

    Each call is atomic: it happens whole or not at all, also when it is cancelled. When a call that changes something
    returns, the change survives whatever the engine promises to survive.

    Raises (every method): NamingError when the engine fails; nothing was changed then, unless its text begins with
    ``Unknown``.
    """

    # --- what an engine does -----------------------------------------------------------------------------------

    @abstractmethod
    async def get(self, name: str) -> Entry | None:
        """The entry of this name, or None."""

    @abstractmethod
    async def count(self) -> int:
        """How many entries there are."""

    @abstractmethod
    async def select(self, query: Query) -> dict[str, Entry]:
        """The entries that match, by name, in no promised order."""

    @abstractmethod
    async def update(self, names: Iterable[str], change: Update) -> dict[str, Entry | None]:
        """Compare and swap: replace entries by what ``change`` makes of them, as if nobody else changed any.

        Returns: the entries as they were, None where there was none.
        """

    @abstractmethod
    async def snapshot(self) -> tuple[int, dict[str, Entry]]:
        """All entries, and the revision at which they were like that."""

    @abstractmethod
    def changes(self, after: int) -> AsyncGenerator[Changes, None]:
        """Every change after a revision, in order, without end.

        Raises:
            NamingError: ``revision … is not known any more``: take a new snapshot.
        """

    @abstractmethod
    async def grant(self, ttl: float) -> Lease:
        """A new lease of ``ttl`` seconds, or of more where the engine cannot do less; to be set in addresses."""

    @abstractmethod
    async def renew(self, lease: str) -> float | None:
        """Make a lease last for its whole time again; the seconds, or None: there is no such lease (any more)."""

    @abstractmethod
    async def revoke(self, lease: str) -> None:
        """End a lease and remove its addresses; an unknown one is no error."""

    @abstractmethod
    async def run(self) -> None:
        """What must go on in the background for leases to end and changes to be seen; never returns."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of files and connections. Closing twice is harmless."""

    @property
    def stale_s(self) -> float | None:
        """For how many seconds answers have come from memory, because the engine cannot be reached; else None."""
        return None

    @property
    def is_shared(self) -> bool:
        """Whether other name servers keep their entries in the same place."""
        return False

    # --- what follows from it ----------------------------------------------------------------------------------

    async def put(self, name: str, entry: Entry, *, replace: bool = True) -> bool:
        """Store an entry, whole. False: ``replace`` is false and the name is taken."""
        before = await self.update([name], lambda _, old: entry if replace or old is None else old)
        return replace or before[name] is None

    async def add(self, name: str, address: Address) -> None:
        """Store one more address under a name, in place of the one with the same URI."""
        await self.update([name], lambda _, old: Entry((address,)) if old is None else old.with_address(address))

    async def set_metadata(self, name: str, metadata: frozenset[str]) -> bool:
        """Replace the tags of an entry. False: there is no such entry."""
        before = await self.update([name], lambda _, old: old and old.tagged(metadata))
        return before[name] is not None

    async def remove(self, names: Iterable[str]) -> int:
        """Remove these entries; the number of those that were there."""
        before = await self.update(names, lambda _, old: None)
        return sum(entry is not None for entry in before.values())

    async def remove_address(self, name: str, uri: str) -> bool:
        """Remove one address of an entry, and the entry with its last. False: there is no such address."""
        before = (await self.update([name], lambda _, old: old and old.without(lambda at: at.uri == uri)))[name]
        return before is not None and any(address.uri == uri for address in before.addresses)
