"""Names kept in a name server by a program without a loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..nameserver.keeping import Registration
from ..uri import Uri
from .config import config
from .names import run_async


class Renewal:
    """Renews a registration in the loop of the daemon it is combined with."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    @property
    def sockets(self) -> list[socket.socket]:
        """None: nothing comes in."""
        return []

    def events(self, eventsockets: Sequence[Any]) -> None:
        """Nothing came."""

    async def serve_beside(self) -> None:
        """Renew until cancelled."""
        await self._registration.keep()


@contextmanager
def registered(names: Mapping[str, Uri]) -> Iterator[Renewal]:
    """Names in the name server of ``config`` while the body runs; what is yielded must be combined with a daemon.

    Raises:
        NamingError: no name server, or it refuses one of the names.
    """
    registration = Registration(names, settings=config.settings())
    run_async(registration.begin)
    try:
        yield Renewal(registration)
    finally:
        run_async(registration.end)
