"""The leases of a registry that one process owns: when each ends, and which names hang on it."""

from __future__ import annotations

import heapq
import secrets
from dataclasses import dataclass, field
from typing import Final

import trio

from ...errors import NamingError

MAX_LEASES: Final = 200_000
"""Leases at once; each needs about 0.5 KB."""


@dataclass(slots=True)
class _Lease:
    ttl: float
    deadline: float
    """On trio's clock; infinite until the table is used."""
    names: set[str] = field(default_factory=set)


class LeaseTable:
    """Leases by id. Time counts on trio's clock, from `begin` on: leases found in a file begin anew then."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._deadlines: list[tuple[float, str]] = []
        """A heap with one item a lease, which may be too early: renewing does not touch it."""
        self._earlier = trio.Event()

    def grant(self, ttl: float) -> str:
        """A new lease, running.

        Raises:
            NamingError: there are too many.
        """
        if len(self._leases) >= MAX_LEASES:
            raise NamingError(f"this name server is full: it holds {MAX_LEASES} leases")
        lease = secrets.token_hex(8)
        self._begin(lease, _Lease(ttl, trio.current_time() + ttl))
        return lease

    def adopt(self, lease_id: str, ttl: float, name: str) -> None:
        """A lease that was found in a file, with a name that hangs on it."""
        if lease_id not in self._leases:
            self._leases[lease_id] = _Lease(ttl, float("inf"))
        self._leases[lease_id].names.add(name)

    def begin(self) -> None:
        """Start the time of all leases anew; whatever was counted before was on another clock."""
        now = trio.current_time()
        for lease in self._leases.values():
            lease.deadline = now + lease.ttl
        self._deadlines = [(lease.deadline, lease_id) for lease_id, lease in self._leases.items()]
        heapq.heapify(self._deadlines)

    def _begin(self, lease_id: str, lease: _Lease) -> None:
        self._leases[lease_id] = lease
        heapq.heappush(self._deadlines, (lease.deadline, lease_id))
        if self._deadlines[0][1] == lease_id:
            self._earlier.set()

    def renew(self, lease_id: str) -> float | None:
        """The whole time again, in seconds; None: unknown."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return None
        lease.deadline = trio.current_time() + lease.ttl
        return lease.ttl

    def attach(self, lease_id: str, ttl: float, name: str) -> None:
        """A name hangs on it now. A lease that ended at this very moment begins anew."""
        if lease_id not in self._leases:
            self._begin(lease_id, _Lease(ttl, trio.current_time() + ttl))
        self._leases[lease_id].names.add(name)

    def names(self, lease_id: str) -> frozenset[str]:
        """Names that hang on it, or once did."""
        lease = self._leases.get(lease_id)
        return frozenset() if lease is None else frozenset(lease.names)

    def forget(self, lease_id: str) -> None:
        """The lease ended."""
        self._leases.pop(lease_id, None)

    async def wait_for_end(self) -> str:
        """Wait until a lease ends; its id. It stays known until `forget`."""
        while True:
            self._earlier = trio.Event()
            with trio.move_on_at(self._deadlines[0][0] if self._deadlines else float("inf")):
                await self._earlier.wait()
                continue
            if (lease := self._pop_ended()) is not None:
                return lease

    def _pop_ended(self) -> str | None:
        """Take the first item off the heap; put it back if its lease was renewed."""
        _, lease_id = heapq.heappop(self._deadlines)
        lease = self._leases.get(lease_id)
        if lease is None:
            return None
        if lease.deadline > trio.current_time():
            heapq.heappush(self._deadlines, (lease.deadline, lease_id))
            return None
        return lease_id
