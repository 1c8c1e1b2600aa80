"""Entries of the name server in one form, from a stock listing or from what a server of ours tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import NamingError
from ..nameserver.lookup import checked_listing


@dataclass(frozen=True, slots=True)
class Address:
    """One address under a name."""

    uri: str
    protocols: tuple[str, ...] = ()
    """Protocols spoken there; empty: it is not known."""
    ttl: float | None = None
    """Seconds its lease lasts unless it is renewed; None: it has none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name."""

    name: str
    addresses: tuple[Address, ...]
    tags: tuple[str, ...] = ()


def entries_of_listing(listing: Any) -> tuple[Entry, ...]:
    """The entries of a listing with metadata, sorted by name.

    Raises:
        NamingError: it is none.
    """
    rows = sorted(checked_listing(listing).items())
    return tuple(Entry(name, (Address(uri),), tuple(tags)) for name, (uri, tags) in rows)


def take_changes(entries: dict[str, Entry], item: Any, wanted: Callable[[str], bool]) -> bool:
    """Bring entries up to date with an item of ``watch``; whether they are whole now.

    Raises:
        NamingError: it is none.
    """
    try:
        for name, told in item["entries"].items():
            if told is None:
                entries.pop(name, None)
            elif wanted(name):
                entries[str(name)] = _entry(str(name), told)
        return item["revision"] is not None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise NamingError("what the name server tells of changes cannot be read") from None


def _entry(name: str, told: Mapping[str, Any]) -> Entry:
    addresses = tuple(_address(address) for address in told["addresses"])
    return Entry(name, addresses, tuple(sorted(map(str, told["metadata"]))))


def _address(told: Mapping[str, Any]) -> Address:
    ttl = told.get("ttl")
    return Address(str(told["uri"]), tuple(map(str, told["protocols"])), None if ttl is None else float(ttl))
