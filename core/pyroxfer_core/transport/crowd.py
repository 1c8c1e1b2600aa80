"""How many connections come from one address: nobody may have all of them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from ..settings import Settings
from .sockets import is_local_address

log = logging.getLogger(__name__)


def host_of(address: Any) -> str | None:
    """Where a connection with this address comes from; None for a unix socket, and for this machine."""
    return None if is_local_address(address) else str(address[0])


class Crowd:
    """Connections by address."""

    def __init__(self, settings: Settings) -> None:
        said = settings.max_connections_per_host
        self._limit = max(1, settings.max_connections // 2) if said is None else said
        self._counts: Counter[str] = Counter()

    def enter(self, host: str | None) -> bool:
        """Count one more; False when that is one too many."""
        if host is None:
            return True
        if self._counts[host] >= self._limit:
            log.warning("a connection from %s was closed: it has %d already", host, self._limit)
            return False
        self._counts[host] += 1
        return True

    def leave(self, host: str | None) -> None:
        """One has ended."""
        if host is not None:
            self._counts[host] -= 1
            if not self._counts[host]:
                del self._counts[host]
