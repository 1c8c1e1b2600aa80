"""The address of one daemon: what it listens on, and where the URIs of its objects lead to."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import trio

from ..errors import CommunicationError, DaemonError
from ..settings import Settings
from ..transport.inherited import refuse_other_sockets
from ..transport.sockets import StreamSocket, bind_unix, remove_socket_file
from .door import open_door, refuse_open_door
from .places import (
    WILDCARDS,
    bind_hosts,
    host_towards,
    parse_advertised,
    place,
    place_of_listener,
    places_of,
    published_host,
)


class Address:
    """Has its sockets between `bind` and `close`. The arguments are those of `Daemon`, and so are the errors."""

    def __init__(
        self,
        host: str | Sequence[str],
        port: int,
        unixsocket: str | None,
        nathost: str | None,
        natport: int | None,
        advertise: str | None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        for listener in listeners:
            refuse_other_sockets(listener)
        if listeners:
            host, port, unixsocket = places_of(listeners)
        if advertise is not None:
            if nathost is not None or natport is not None:
                raise ValueError("advertise says what nathost and natport say: give one of them")
            nathost, natport = parse_advertised(advertise)
        if natport is not None and nathost is None:
            raise ValueError("must provide natport with nathost")
        if unixsocket is not None and nathost is not None:
            raise ValueError("cannot use nathost together with unixsocket")
        self._hosts = (host,) if isinstance(host, str) else tuple(host)
        if not self._hosts:
            raise ValueError("a daemon needs a host to listen on")
        self.port = port
        """The one asked for; once bound the one it is."""
        self._unixsocket = unixsocket
        self._nathost = nathost
        self._natport = natport
        self._given = list(listeners)
        self.listeners: list[socket.socket] = []
        """What it listens on, the first host's first; none before `bind` and after `close`."""

    def bind(self, settings: Settings, *, guarded: bool) -> None:
        """Take the address; twice is fine.

        Args:
            guarded: callers have to prove something, whatever the settings say.

        Raises:
            CommunicationError: it cannot be had, or the sockets that were given are closed.
            SecurityError: it is reachable from other machines and nothing protects it.
        """
        if self.listeners:
            return
        for host in self._tcp_hosts:
            refuse_open_door(host, settings, guarded=guarded)
        if self._given:
            if any(sock.fileno() < 0 for sock in self._given):
                raise CommunicationError("the sockets that this daemon was given are closed: give them to a new one")
            self.listeners = list(self._given)
        elif self._unixsocket is not None:
            self.listeners = [bind_unix(self._unixsocket)]
        else:
            self.listeners = bind_hosts(self._hosts, self.port, settings.prefer_ip_version)
            self.port = self.listeners[0].getsockname()[1]

    def close(self, *, watched: bool) -> None:
        """Give it up; twice is fine.

        Args:
            watched: tasks of this loop may be waiting at the sockets.
        """
        if not self.listeners:
            return
        for listener in self.listeners:
            if watched and listener.fileno() >= 0:
                trio.lowlevel.notify_closing(listener)
            listener.close()
        self.listeners = []
        if self._unixsocket is not None and not self._given:
            remove_socket_file(self._unixsocket)

    @property
    def _tcp_hosts(self) -> Sequence[str]:
        return self._hosts if self._unixsocket is None or self._given else ()

    def problem(self, settings: Settings, *, guarded: bool) -> str | None:
        """See `Daemon.open_door`."""
        problems = (open_door(host, settings, guarded=guarded) for host in self._tcp_hosts)
        return next((problem for problem in problems if problem is not None), None)

    def _check_bound(self) -> None:
        if not self.listeners:
            raise DaemonError("the daemon has no address before `async with` or bind()")

    @property
    def location(self) -> str:
        """``host:port`` of the first host, or ``./u:path``, on this side of any NAT.

        Raises:
            DaemonError: not bound yet.
        """
        if self._unixsocket is not None:
            return f"./u:{self._unixsocket}"
        self._check_bound()
        return place(self._hosts[0] or "0.0.0.0", self.port)  # noqa: S104  # what an empty host means

    @property
    def numeric(self) -> str | None:
        """The numeric address it listens on; None for a unix socket.

        Raises:
            DaemonError: not bound yet.
        """
        self._check_bound()
        return None if self._unixsocket is not None else str(self.listeners[0].getsockname()[0])

    @property
    def nat_location(self) -> str | None:
        """The published address when it differs from the internal one."""
        return None if self._nathost is None else place(self._nathost, self._natport or self.port)

    @property
    def published(self) -> str:
        """Where URIs lead to. Errors as `location`."""
        internal = self.location
        if self._nathost is not None or self._unixsocket is not None:
            return self.nat_location or internal
        if self._is_plain:
            return internal
        return place(published_host(self._hosts[:1] if self._given else self._hosts), self.port)

    def towards(self, sock: StreamSocket) -> str:
        """Where URIs lead to that go over this connection: the client can reach the address at which it came in."""
        if self._nathost is not None or not self.listeners:
            return self.published
        if self._given:
            return place_of_listener(sock)
        if self._unixsocket is not None or self._is_plain:
            return self.published
        return place(host_towards(self._hosts, self.listeners, str(sock.getsockname()[0])), self.port)

    @property
    def _is_plain(self) -> bool:
        """Whether it is one host, which everybody knows by the same name."""
        return len(self._hosts) == 1 and self._hosts[0] not in WILDCARDS


class ConnectedAddress(Address):
    """The address of a daemon that serves one connection, which stays its maker's."""

    def __init__(self, sock: socket.socket, *args: Any) -> None:
        super().__init__(*args)
        self._sock = sock

    def bind(self, settings: Settings, *, guarded: bool) -> None:
        """Take a descriptor of our own, so that closing it leaves the other one open."""
        if not self.listeners:
            self.listeners = [self._sock.dup()]

    @property
    def location(self) -> str:
        """Of our end."""
        name = self._sock.getsockname()
        return place(name[0], name[1]) if isinstance(name, tuple) else f"./u:{name or '<<not-bound>>'}"
