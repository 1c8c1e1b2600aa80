"""Where a daemon listens, and what it tells others about that."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Sequence
from typing import Final

from ..errors import CommunicationError
from ..transport.sockets import StreamSocket, bind_tcp, is_loopback_host, unmapped
from ..uri import Uri

log = logging.getLogger(__name__)

PORT_TRIES: Final = 20
"""How often another free port is tried that is free on every address."""
WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104  # compared, not listened on


def place(host: str, port: int) -> str:
    """``host:port``, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place_of_listener(sock: StreamSocket) -> str:
    """``host:port`` or ``./u:path`` of what a socket listens on, or of our end of a connection that came in there.

    Raises:
        CommunicationError: a unix socket without a file, which no URI can name.
    """
    name = sock.getsockname()
    if sock.family != socket.AF_UNIX:
        return place(unmapped(name[0]), name[1])
    if not isinstance(name, str) or not name:
        raise CommunicationError("cannot serve on an abstract unix socket: URIs cannot name it")
    return f"./u:{name}"


def places_of(listeners: Sequence[socket.socket]) -> tuple[list[str], int, str | None]:
    """Hosts, the port and the path of the unix socket that these listen on; the first decides which of them counts.

    Raises:
        CommunicationError: a unix socket without a file, which no URI can name.
    """
    places = [Uri(f"PYRO:x@{place_of_listener(listener)}") for listener in listeners]
    hosts = [found.host for found in places if found.host is not None]
    return hosts or ["localhost"], places[0].port or 0, places[0].sockname


def parse_advertised(text: str) -> tuple[str, int | None]:
    """Host and port of ``HOST`` or ``HOST:PORT``; None for the port that is listened on.

    Raises:
        ValueError: it is neither.
    """
    bare = text.count(":") > 1 and not text.startswith("[")  # an IPv6 address without brackets
    try:
        found = Uri(f"PYRO:x@{text if not bare and _has_port(text) else f'{_bracketed(text)}:0'}")
    except Exception:
        raise ValueError(f"advertise is HOST or HOST:PORT, not {text!r}") from None
    if not found.host or found.sockname is not None or not set(text).isdisjoint(" \t\r\n/@"):
        raise ValueError(f"advertise is HOST or HOST:PORT, not {text!r}")
    return found.host, found.port or None


def _has_port(text: str) -> bool:
    return text.rpartition("]")[2].count(":") == 1


def _bracketed(text: str) -> str:
    return f"[{text}]" if ":" in text and not text.startswith("[") else text


def bind_hosts(hosts: Sequence[str], port: int, prefer: int) -> list[socket.socket]:
    """A listening socket for each host, all on one port; with port 0 on one that is free on all of them.

    Raises:
        CommunicationError: one of the addresses cannot be had.
    """
    for attempt in range(PORT_TRIES):
        listeners: list[socket.socket] = []
        try:
            for host in hosts:
                chosen = listeners[0].getsockname()[1] if listeners else port
                listeners.append(bind_tcp(host, chosen, prefer))
                warn_of_loopback(host, listeners[-1].getsockname()[0])
            return listeners
        except CommunicationError as error:
            for listener in listeners:
                listener.close()
            taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if port or not listeners or not taken or attempt == PORT_TRIES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def warn_of_loopback(host: str, address: str) -> None:
    """Say so when a name that looks like this machine's leads nobody else to it: Debian's hosts file does that."""
    if host == "localhost" or _is_numeric(host) or not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return
    log.warning(
        "the host name %r resolves to %s on this machine, so no other machine can connect: "
        "listen on an address, or correct the name in /etc/hosts",
        host,
        address,
    )


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == ""
    return True


def published_host(hosts: Sequence[str]) -> str:
    """The host to tell others about when nobody said which: the first that they can reach, this machine's address for
    a wildcard."""
    reachable = [host for host in hosts if not is_loopback_host(host)] or list(hosts)
    return own_address(reachable[0]) if reachable[0] in WILDCARDS else reachable[0]


def own_address(wildcard: str) -> str:
    """The address of this machine that packets to elsewhere leave from; its host name when there is no network."""
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if wildcard == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def host_towards(hosts: Sequence[str], listeners: Sequence[socket.socket], address: str) -> str:
    """The host that a client which reached us at this address of ours can go on using."""
    for host, listener in zip(hosts, listeners, strict=True):
        if host not in WILDCARDS and listener.fileno() >= 0 and listener.getsockname()[0] == address:
            return host
    return address
