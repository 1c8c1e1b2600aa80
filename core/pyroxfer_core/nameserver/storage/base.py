"""What a name server needs from the place where its entries live.

Every call is async, because an engine may have to wait for a disk or for a network; one that does not (memory) simply
never waits. An engine checks nothing: names, URIs and tags were checked by the service that calls it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored under one name."""

    uri: str
    """URI text exactly as it was registered."""
    metadata: frozenset[str] = frozenset()
    """Tags: case-sensitive, without order."""


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
        return (
            name.startswith(self.prefix)
            and self.all_of <= entry.metadata
            and (not self.any_of or not self.any_of.isdisjoint(entry.metadata))
        )


class Storage(ABC):
    """The entries of one name server.

    Each call is atomic: it happens whole or not at all, also when it is cancelled. When a call that changes something
    returns, the change survives whatever the engine promises to survive.

    Raises (every method): NamingError when the engine fails; nothing was changed then.
    """

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
    async def put(self, name: str, entry: Entry, *, replace: bool = True) -> bool:
        """Store an entry, URI and metadata together. False: ``replace`` is false and the name is taken."""

    @abstractmethod
    async def set_metadata(self, name: str, metadata: frozenset[str]) -> bool:
        """Replace the tags of an entry. False: there is no such entry."""

    @abstractmethod
    async def remove(self, names: Iterable[str]) -> int:
        """Remove these entries; the number of those that were there."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of files and connections. Closing twice is harmless."""
