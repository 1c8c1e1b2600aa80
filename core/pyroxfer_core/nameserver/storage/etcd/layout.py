"""How entries lie in etcd: one key for each address, so that each can hang on a lease of its own.

key    PREFIX ``names/`` NAME 0x00 first 16 hexadecimal digits of the SHA-256 of the URI
value  JSON: ``uri``, ``metadata``, ``protocols``, ``ttl`` (with a lease), ``order`` (place among the addresses)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..base import Address, Entry
from .client import b64, from_b64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One key and its value."""

    name: str
    key: bytes
    address: Address
    order: int
    revision: int
    """Of its last change."""


class Layout:
    """Keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.watched = prefix.encode()
        """All keys of ours begin with it."""
        self.base = f"{prefix}names/".encode()
        self.mark = f"{prefix}mark".encode()
        """Written by everyone who begins to watch: whoever sees it has seen all that was there before."""

    def range_of_name(self, name: str) -> tuple[bytes, bytes]:
        """First key of a name, and the one behind its last."""
        start = self.base + name.encode() + b"\0"
        return start, start[:-1] + b"\1"

    def range_of_prefix(self, prefix: str) -> tuple[bytes, bytes]:
        """The same for all names with a prefix."""
        start = self.base + prefix.encode() if prefix else self.base
        return start, end_of_prefix(start)

    def key(self, name: str, address: Address) -> bytes:
        """Where an address is."""
        return self.range_of_name(name)[0] + hashlib.sha256(address.uri.encode()).hexdigest()[:16].encode()

    def split(self, key: bytes) -> str | None:
        """The name in a key; None when it is not one of ours."""
        if not key.startswith(self.base) or b"\0" not in key:
            return None
        try:
            return key[len(self.base) :].partition(b"\0")[0].decode()
        except UnicodeDecodeError:
            return None

    def row(self, kv: dict[str, Any]) -> Row | None:
        """A key with its value; None, and a line in the log, when somebody else put something there."""
        key = from_b64(kv["key"])
        name = self.split(key)
        try:
            value = json.loads(from_b64(kv.get("value", "")))
            lease = str(kv["lease"]) if int(kv.get("lease", 0)) else None
            address = Address(
                str(value["uri"]),
                frozenset(map(str, value["metadata"])),
                frozenset(map(int, value["protocols"])),
                lease,
                None if lease is None else float(value["ttl"]),
            )
            order = int(value["order"])
        except (ValueError, TypeError, KeyError):
            name = None
        if name is None:
            log.warning("passed over a key in etcd that is no entry: %r", key)
            return None
        return Row(name, key, address, order, int(kv["mod_revision"]))

    def rows(self, kvs: Iterable[dict[str, Any]]) -> list[Row]:
        """All of these that are entries."""
        return [row for kv in kvs if (row := self.row(kv)) is not None]

    def put(self, name: str, address: Address, order: int) -> dict[str, Any]:
        """The operation of a transaction that stores an address."""
        value = {
            "uri": address.uri,
            "metadata": sorted(address.metadata),
            "protocols": sorted(address.protocols),
            "order": order,
        }
        put = {"key": b64(self.key(name, address))}
        if address.lease is not None:
            value["ttl"] = address.ttl
            put["lease"] = address.lease
        return {"request_put": {**put, "value": b64(json.dumps(value).encode())}}


def entry_of(rows: Iterable[Row]) -> Entry | None:
    """The entry that the rows of one name make."""
    ordered = sorted(rows, key=lambda row: (row.order, row.key))
    return Entry(tuple(row.address for row in ordered)) if ordered else None


def end_of_prefix(start: bytes) -> bytes:
    """The first key behind all keys that begin like this (UTF-8 never has a byte 0xFF)."""
    return start[:-1] + bytes([start[-1] + 1])
