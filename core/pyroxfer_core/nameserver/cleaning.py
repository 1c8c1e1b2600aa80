"""Auto-clean: removing addresses without a lease at which nobody has answered for a while."""

from __future__ import annotations

import logging
from typing import Final

import trio

from ..errors import NamingError, PyroError
from ..uri import Uri
from .rules import NAME_SERVER
from .storage import Address, Query, Registry

log = logging.getLogger(__name__)

SHORTEST_PERIOD_S: Final = 3.0
"""As in Pyro."""
GRACE_S: Final = 20.0
"""How long an address must have been unreachable before it is removed, as in Pyro."""
CONNECT_TIMEOUT_S: Final = 5.0
TOGETHER: Final = 32
"""Addresses tried at once."""
KEPT: Final = frozenset({NAME_SERVER, "Pyro.Daemon"})
"""Names that are never removed."""


class Cleaner:
    """Tries every address each ``period_s`` seconds.

    Left alone are addresses with a lease, names that stand for other names, and what cannot be read as a URI: for
    none of them says a connection whether it is dead.

    Raises:
        ValueError: the period is shorter than SHORTEST_PERIOD_S.
    """

    def __init__(self, registry: Registry, period_s: float) -> None:
        if not period_s >= SHORTEST_PERIOD_S:
            raise ValueError(f"auto-clean needs a period of at least {SHORTEST_PERIOD_S:g} seconds")
        self._registry = registry
        self._period_s = period_s
        self._failing: dict[tuple[str, str], float] = {}
        """Since when an address of a name has not been reachable."""
        self._together = trio.CapacityLimiter(TOGETHER)

    async def run(self) -> None:
        """Clean until cancelled."""
        while True:
            await trio.sleep(self._period_s)
            try:
                await self.clean_once()
            except NamingError as error:
                log.warning("auto-clean has to wait: %s", error)

    async def clean_once(self) -> None:
        """Try every address once; remove those that have failed for GRACE_S.

        Raises:
            NamingError: the registry fails.
        """
        entries = await self._registry.select(Query())
        tried = [
            (name, address, uri)
            for name, entry in entries.items()
            if name not in KEPT
            for address in entry.addresses
            if (uri := _place_of(address)) is not None
        ]
        async with trio.open_nursery() as nursery:
            for name, address, uri in tried:
                nursery.start_soon(self._try, name, address, uri)
        known = {(name, address.uri) for name, address, _ in tried}
        self._failing = {key: since for key, since in self._failing.items() if key in known}
        for name, address, _ in tried:
            since = self._failing.get((name, address.uri))
            if since is not None and trio.current_time() - since >= GRACE_S:
                await self._remove(name, address)

    async def _try(self, name: str, address: Address, uri: Uri) -> None:
        async with self._together:
            reachable = await is_reachable(uri)
        if reachable:
            self._failing.pop((name, address.uri), None)
        else:
            self._failing.setdefault((name, address.uri), trio.current_time())

    async def _remove(self, name: str, dead: Address) -> None:
        """Unless it was registered anew meanwhile."""
        await self._registry.update([name], lambda _, entry: entry and entry.without(lambda at: at == dead))
        del self._failing[name, dead.uri]
        log.warning("removed %r at %s: nobody has answered there for %g s", name, dead.uri, GRACE_S)


def _place_of(address: Address) -> Uri | None:
    if address.lease is not None:
        return None
    try:
        uri = Uri(address.uri)
    except PyroError:
        return None
    return uri if uri.protocol == "PYRO" and uri.location is not None else None


async def why_unreachable(address: str, port: int) -> str | None:
    """Why no connection to this port can be had within CONNECT_TIMEOUT_S; None when it can."""
    with trio.move_on_after(CONNECT_TIMEOUT_S):
        try:
            stream = await trio.open_tcp_stream(address, port)
        except (OSError, ValueError) as error:
            cause = error.__cause__
            return str(cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause or error)
        await trio.aclose_forcefully(stream)
        return None
    return f"no answer within {CONNECT_TIMEOUT_S:g} s"


async def is_reachable(uri: Uri) -> bool:
    """Whether something accepts connections at a PYRO URI, within CONNECT_TIMEOUT_S."""
    if uri.sockname is None:
        return await why_unreachable(str(uri.host), uri.port or 0) is None
    with trio.move_on_after(CONNECT_TIMEOUT_S):
        try:
            stream = await trio.open_unix_socket(uri.sockname)
        except (OSError, ValueError):
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False
