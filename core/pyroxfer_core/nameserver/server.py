"""A name server that is running: its daemon, its own entry, and the broadcast responder."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import trio

from ..errors import NamingError
from ..server.background import in_background
from ..server.daemon import Daemon
from ..settings import Settings
from ..uri import NS_PORT, Uri
from .addresses import is_loopback
from .broadcast import BroadcastResponder, open_responder
from .cleaning import Cleaner
from .keeping import GOODBYE_S, RENEWALS, TTL_S
from .rules import NAME_SERVER
from .service import NameServer
from .storage import Address, Entry, Lease, Registry, open_registry

OWN_TAGS: Final = frozenset({"class:Pyro4.naming.NameServer", "class:Pyro5.nameserver.NameServer"})
"""Metadata of the own entry: programs of either library find it by the tag of theirs."""


@dataclass(frozen=True, slots=True)
class RunningNameServer:
    """A name server that listens."""

    daemon: Daemon
    name_server: NameServer
    """The object itself, for use in this process."""
    responder: BroadcastResponder | None

    @property
    def uri(self) -> Uri:
        """What its own entry says: the address outside of a NAT, if there is one."""
        return self.daemon.uri_for(NAME_SERVER)

    @property
    def internal_uri(self) -> Uri:
        """The address on this side of a NAT."""
        return self.daemon.uri_for(NAME_SERVER, nat=False)


@asynccontextmanager
async def start_ns(
    host: str = "localhost",
    port: int = NS_PORT,
    *,
    unixsocket: str | None = None,
    nathost: str | None = None,
    natport: int | None = None,
    storage: str = "memory",
    broadcast: bool = True,
    bchost: str = "",
    bcport: int | None = None,
    allow_loopback: bool = False,
    autoclean_s: float = 0.0,
    settings: Settings | None = None,
    listeners: Sequence[socket.socket] = (),
) -> AsyncIterator[RunningNameServer]:
    """Run a name server while the body of ``async with`` runs.

    Args:
        port: 0 picks a free one.
        storage: ``memory``, ``sql:FILE`` or ``etcd:URL``.
        broadcast: answer broadcasts; never done on a unix socket, a loopback address or IPv6.
        bchost: address to listen on for broadcasts, empty for all; ``bcport`` defaults to
            ``settings.ns_broadcast_port``.
        allow_loopback: let other machines register loopback addresses.
        autoclean_s: period in seconds (at least 3) of trying all addresses that have no lease, to remove those at
            which nobody has answered for 20 seconds; 0 leaves them alone.
        listeners: sockets that listen already, instead of ``host``, ``port`` and ``unixsocket``; see `Daemon`.

    Raises:
        ValueError: no such storage, too short a period, or the NAT options do not fit together.
        NamingError: the storage, or the UDP port, cannot be had.
        CommunicationError, SecurityError: the address cannot be had (see Daemon.bind).
    """
    settings = settings or Settings()
    daemon = Daemon(host, port, unixsocket, nathost, natport, settings, listeners=listeners)
    async with AsyncExitStack() as stack:
        opened = await trio.to_thread.run_sync(open_registry, storage)
        stack.push_async_callback(opened.aclose)
        stack.callback(daemon.close)
        daemon.bind()
        name_server = NameServer(opened, allow_loopback=allow_loopback)
        await stack.enter_async_context(in_background(opened.run))
        await stack.enter_async_context(own_entry(opened, str(daemon.register(name_server, NAME_SERVER))))
        if autoclean_s:
            await stack.enter_async_context(in_background(Cleaner(opened, autoclean_s).run))
        responder = None
        if broadcast and no_broadcast_reason(daemon) is None:
            bcport = settings.ns_broadcast_port if bcport is None else bcport
            responder = await open_responder(daemon.uri_for(NAME_SERVER, nat=False), bchost, bcport)
            await stack.enter_async_context(in_background(responder.run))
        await stack.enter_async_context(daemon)
        yield RunningNameServer(daemon, name_server, responder)


@asynccontextmanager
async def own_entry(registry: Registry, uri: str) -> AsyncIterator[None]:
    """The entry of a name server itself. In a registry that several share it is one address of them, on a lease."""
    if not registry.is_shared:
        await registry.put(NAME_SERVER, Entry.single(uri, OWN_TAGS))
        yield
        return
    lease = await _add_own(registry, uri)

    async def renew() -> None:
        nonlocal lease
        while True:
            await trio.sleep(lease.ttl / RENEWALS)
            with suppress(NamingError):  # said by the registry; it is tried again
                if await registry.renew(lease.id) is None:
                    lease = await _add_own(registry, uri)

    try:
        async with in_background(renew):
            yield
    finally:
        with trio.move_on_after(GOODBYE_S, shield=True), suppress(NamingError):
            await registry.revoke(lease.id)


async def _add_own(registry: Registry, uri: str) -> Lease:
    lease = await registry.grant(TTL_S)
    await registry.add(NAME_SERVER, Address(uri, OWN_TAGS, frozenset({48, 502}), lease.id, lease.ttl))
    return lease


def no_broadcast_reason(daemon: Daemon) -> str | None:
    """Why broadcasts are of no use for what this bound daemon listens on; None when they are of use."""
    address = daemon.bound_address
    if address is None:
        return "a unix socket"
    if ":" in address:
        return "IPv6"
    return "localhost" if is_loopback(address) else None
