"""Sockets: connecting, listening, and the options every connection has. OS errors become ours here.

Connections use plain non-blocking sockets: trying the call first and waiting only on EAGAIN costs half of what a
stream object does per message.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from ..errors import AuthenticationError, CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from ..uri import Uri

BACKLOG: Final = 1024
SPEAK_FIRST_S: Final = 1
"""How long the kernel keeps a connection to itself that has said nothing. Clients of a daemon speak first, so who is
accepted has mostly said already what it wants, and costs nobody a wait. Others are accepted after that time."""
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
"""A silent peer is found dead after 15 + 3 x 5 seconds."""


_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if hasattr(socket, "TCP_KEEPIDLE"):
    _OPTIONS += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
    ]


class StreamSocket(Protocol):
    """What a connection needs of a non-blocking socket: a plain one has it, and so has one under TLS."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def getpeername(self) -> Any: ...
    def getsockname(self) -> Any: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def getsockopt(self, level: int, option: int, /) -> int: ...
    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None: ...
    def recv(self, count: int, flags: int = ..., /) -> bytes: ...
    def recv_into(self, buffer: Any, count: int = ..., flags: int = ..., /) -> int: ...
    def send(self, data: Any, flags: int = ..., /) -> int: ...
    def sendmsg(self, buffers: Any, ancillary: tuple[()] = ..., flags: int = ..., /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class PeerRefusedError(ConnectionAbortedError):
    """The peer ended a TLS connection because of what this side showed of itself; the text says what to do."""


def lost_connection(error: BaseException, text: str) -> CommunicationError:
    """Ours for an error of a connection."""
    return (
        AuthenticationError(reason_of(error)) if isinstance(error, PeerRefusedError) else ConnectionClosedError(text)
    )


class HasPeer(Protocol):
    """A socket that knows its other side."""

    @property
    def family(self) -> int: ...
    def getpeername(self) -> Any: ...


class HasOptions(Protocol):
    """A socket whose options can be set."""

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None: ...


def limit_wait(sock: HasOptions, receive_s: float) -> None:
    """Let a ``recv`` that waits, and that nothing comes of for so long, fail with BlockingIOError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(receive_s))


@functools.lru_cache(maxsize=16)
def timeval(seconds: float) -> bytes:
    """A span of time as the kernel takes it."""
    return struct.pack("ll", *divmod(round(seconds * 1_000_000), 1_000_000))


def set_options(sock: StreamSocket) -> None:
    """Non-blocking, no delay, keep-alive."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        set_keepalive(sock)


def set_keepalive(sock: StreamSocket) -> None:
    """Options of a TCP connection: no Nagle delay (two sends without this stall 44 ms), dead peers are found.

    A listening socket hands them on to the connections that it accepts, which then have them already.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and sock.getsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY
    ):
        return
    begin_keepalive(sock)


def begin_keepalive(sock: StreamSocket) -> None:
    """`set_keepalive` of a connection just made, which cannot have them yet."""
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)


def peer_text(sock: HasPeer) -> str:
    """The other side for people: ``127.0.0.1:4711``, ``[::1]:4711`` or ``unix``."""
    try:
        address = sock.getpeername()
    except OSError:
        return "unix" if sock.family == socket.AF_UNIX else "gone"
    return address_text(address)


def address_text(address: Any) -> str:
    """`peer_text` of an address as a socket gives it."""
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of(text: str) -> Any:
    """The address that `address_text` was made of, without what IPv6 adds; empty for a unix socket."""
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else ""


class ClosedSocket:
    """What is still known of a socket that was closed."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def getpeername(self) -> Any:
        """Who was at the other end."""
        return address_of(self._peer)

    def fileno(self) -> int:
        """As closed sockets say."""
        return -1


def is_local(sock: StreamSocket) -> bool:
    """Whether the peer is on this machine: a unix socket or a loopback address."""
    try:
        address = sock.getpeername()
    except OSError:
        return sock.family == socket.AF_UNIX
    return is_local_address(address)


def is_local_address(address: Any) -> bool:
    """`is_local` of an address as a socket gives it."""
    return not isinstance(address, tuple) or _is_loopback(address[0])


@functools.lru_cache(maxsize=256)
def _is_loopback(address: str) -> bool:
    """Remembered: taking an address apart costs more than everything else that is looked at for a connection."""
    try:
        return ipaddress.ip_address(unmapped(address).partition("%")[0]).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=256)
def is_ipv4(host: str) -> bool:
    """Whether it is an IPv4 address, as most are, and takes no resolver."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


def unmapped(address: str) -> str:
    """An IPv4 address as a socket for both versions shows it, in its usual form; others as they are."""
    return address.removeprefix("::ffff:") if "." in address else address


def place_of(where: Uri | str) -> Uri:
    """A location text (``host:port``, ``[ipv6]:port``, ``./u:path``) or Uri as a Uri with a place.

    Raises:
        PyroError: the text names no place.
    """
    return where if isinstance(where, Uri) else Uri(f"PYRO:x@{where}")


async def connect_socket(where: Uri | str, timeout_s: float, prefer: int = 0) -> socket.socket:
    """Connect to a place; every address of a host name is tried, those of IP version ``prefer`` (4 or 6) first.

    Raises:
        ConnectionClosedError: nobody listens there, or the name does not resolve (outcome NotSent).
        TimeoutError: no connection within ``timeout_s`` seconds (outcome NotSent).
    """
    uri = place_of(where)
    try:
        with trio.fail_after(timeout_s):
            return await _connected(uri, prefer)
    except trio.TooSlowError:
        text = f"cannot connect to {uri.location}: no answer within {timeout_s:g} s"
        raise TimeoutError(text, outcome=Outcome.NOT_SENT) from None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: this system has no unix sockets
        text = f"cannot connect to {uri.location}: {reason_of(error)}"
        raise ConnectionClosedError(text, outcome=Outcome.NOT_SENT) from error


def host_and_port(uri: Uri) -> tuple[str, int]:
    """Where to connect to. ValueError: there is no such port; a URI that came in a value may have any number."""
    port = uri.port or 0
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65536
        raise ValueError("ports are 0 to 65535")
    return uri.host or "localhost", port


async def _connected(uri: Uri, prefer: int) -> socket.socket:
    host, port = host_and_port(uri)
    if uri.sockname is not None:
        stream = await trio.open_unix_socket(uri.sockname)
    elif is_ipv4(host):
        return await _connected_to(host, port)
    else:
        stream = await _open_tcp(host, port, prefer)
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        set_options(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected_to(address: str, port: int) -> socket.socket:
    """To an IPv4 address. There is only one way to it, so nothing need race as among those to a name."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        failure = sock.connect_ex((address, port))
        if failure in (0, errno.EINPROGRESS):
            await trio.lowlevel.wait_writable(sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))
        begin_keepalive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_tcp(host: str, port: int, prefer: int) -> trio.SocketStream:
    if not prefer:
        return await trio.open_tcp_stream(host, port)
    family = socket.AF_INET6 if prefer == 6 else socket.AF_INET
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in sorted(found, key=lambda entry: entry[0] != family)]
    for address in dict.fromkeys(addresses[:-1]):
        try:
            return await trio.open_tcp_stream(address, port)
        except OSError:
            continue
    return await trio.open_tcp_stream(addresses[-1], port)


def reason_of(error: BaseException) -> str:
    """An OS error in plain words, without errno and addresses of every attempt."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return reason_of(cause.exceptions[0])
    if isinstance(cause, OSError):
        return reason_of(cause)
    if isinstance(error, OSError) and error.strerror:
        known = os.strerror(error.errno or 0)
        return known if error.strerror.endswith(known) else error.strerror  # trio puts the address before it
    return str(error) or type(error).__name__


def bind_tcp(host: str, port: int, prefer: int = 4) -> socket.socket:
    """A listening TCP socket. An empty host listens everywhere.

    Args:
        prefer: 6 takes the IPv6 address of a name that has both kinds, and of an empty host; anything else IPv4.

    Raises:
        CommunicationError: the address is in use, not ours, not allowed, or the name does not resolve.
    """
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65536
        raise CommunicationError(f"cannot listen on {host}:{port}: ports are 0 to 65535")
    try:
        everywhere = "::" if prefer == 6 else "0.0.0.0"  # noqa: S104  # asked for by an empty host, as in Pyro
        found = socket.getaddrinfo(host or everywhere, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        wanted = socket.AF_INET6 if prefer == 6 else socket.AF_INET
        family, kind, proto, _, address = min(found, key=lambda entry: entry[0] != wanted)
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise CommunicationError(f"cannot listen on {host}:{port}: {reason_of(error)}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_keepalive(sock)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise CommunicationError(f"cannot listen on {host}:{port}: {reason_of(error)}") from error
    return sock


def bind_unix(path: str) -> socket.socket:
    """A listening unix socket. A socket file that nobody serves any more is replaced.

    Raises:
        CommunicationError: something else is at ``path``, or it cannot be made there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        sock.bind(path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except (OSError, ValueError) as error:  # ValueError: no path at all
        sock.close()
        raise CommunicationError(f"cannot listen on ./u:{path}: {reason_of(error)}") from error
    return sock


def accept_who_speaks(listener: socket.socket) -> None:
    """Let the kernel keep TCP connections that have said nothing for `SPEAK_FIRST_S`, where it can."""
    if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_DEFER_ACCEPT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SPEAK_FIRST_S)


def _remove_dead_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)


def remove_socket_file(path: str) -> None:
    """Remove a socket file at the end of serving; a missing one is fine."""
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)


def is_loopback_host(host: str) -> bool:
    """Whether listening on ``host`` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
