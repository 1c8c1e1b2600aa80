"""Plain blocking sockets: connecting, and sending and waiting within a deadline."""

from __future__ import annotations

import builtins
import contextlib
import select
import socket
import threading
import time
from functools import partial
from typing import Any, Final, Protocol, overload

from ..errors import ConnectionClosedError, Outcome, TimeoutError
from ..transport.connection import MAX_BUFFERS
from ..transport.sockets import begin_keepalive, host_and_port, is_ipv4, limit_wait, reason_of, timeval
from ..uri import Uri
from ..wire.message import Body


class HasFileno(Protocol):
    """Something that poll can watch."""

    def fileno(self) -> int: ...


MAX_LOOKUPS: Final = 20
"""Threads that ask for addresses at once, those included that nobody waits for any more."""
_lookups: Final = threading.BoundedSemaphore(MAX_LOOKUPS)
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def connect(uri: Uri, until: float, ip_version: int = 0) -> socket.socket:
    """A connected blocking socket.

    Args:
        until: on the monotonic clock.
        ip_version: 4 or 6 tries addresses of that version first; 0 takes the system's order.

    Raises:
        ConnectionClosedError, TimeoutError: nobody there, or no answer in time (outcome NotSent).
    """
    limit = time_left(until)
    try:
        if uri.sockname is not None:
            return _connected(socket.AF_UNIX, uri.sockname, until)
        return _connect_tcp(*host_and_port(uri), until, ip_version)
    except builtins.TimeoutError as error:
        text = f"cannot connect to {uri.location}: no answer within {limit:.3g} s"
        raise TimeoutError(text, outcome=Outcome.NOT_SENT) from error
    except (OSError, ValueError) as error:
        text = f"cannot connect to {uri.location}: {reason_of(error)}"
        raise ConnectionClosedError(text, outcome=Outcome.NOT_SENT) from error


def time_left(until: float) -> float:
    """Seconds for `socket.settimeout`, which takes 0 for something else."""
    return max(until - time.monotonic(), 1e-3)


def _connect_tcp(host: str, port: int, until: float, ip_version: int) -> socket.socket:
    found = _addresses(host, port, until)
    if ip_version and len(found) > 1:
        found.sort(key=lambda entry: entry[0] != _FAMILIES[ip_version])
    failure: OSError | None = None
    for family, _, _, _, address in found:
        try:
            return _connected(family, address, until)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(f"no address for {host}")


def _addresses(host: str, port: int, until: float) -> list[Any]:
    """What a host name stands for. The resolver knows no time limit, so it is asked in a thread that can be left."""
    if is_ipv4(host):
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    if host == "localhost":
        return ask()
    with contextlib.suppress(socket.gaierror):
        return ask(flags=socket.AI_NUMERICHOST)
    answer: list[list[Any] | OSError] = []

    def look_up() -> None:
        try:
            answer.append(ask())
        except OSError as error:
            answer.append(error)
        finally:
            _lookups.release()

    if not _lookups.acquire(timeout=time_left(until)):
        raise builtins.TimeoutError
    thread = threading.Thread(target=look_up, name=f"pyroxfer: address of {host}", daemon=True)
    thread.start()
    thread.join(time_left(until))
    if not answer:
        raise builtins.TimeoutError
    found = answer[0]
    if isinstance(found, OSError):
        raise found
    return found


def _connected(family: int, address: object, until: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(time_left(until))
        sock.connect(address)  # type: ignore[arg-type]  # an address of this family
        if family != socket.AF_UNIX:
            begin_keepalive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


class BlockingSocket(Protocol):
    """What a link needs of its socket: a plain one has it, and so has one under TLS."""

    def fileno(self) -> int: ...
    def getsockname(self) -> Any: ...
    @overload
    def getsockopt(self, level: int, option: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...
    def setsockopt(self, level: int, option: int, value: Any, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def recv(self, count: int, /) -> bytes: ...
    def recv_into(self, buffer: Any, /) -> int: ...
    def send(self, data: Any, flags: int = ..., /) -> int: ...
    def sendall(self, data: Any, /) -> None: ...
    def sendmsg(self, buffers: Any, ancdata: Any = ..., flags: int = ..., /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


def limit_silence(sock: BlockingSocket, receive_s: float, send_s: float) -> None:
    """Let a blocking ``recv`` or ``send`` that nothing comes of for so long fail with BlockingIOError.

    The kernel looks at the clock, so it costs nothing while something comes.
    """
    limit_wait(sock, receive_s)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(send_s))


def wait_for(sock: HasFileno, events: int, deadline: float | None) -> None:
    """Wait until the socket is ready.

    Raises:
        builtins.TimeoutError: it was not by ``deadline`` (on the monotonic clock).
    """
    poll = select.poll()
    poll.register(sock, events)
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if poll.poll(None if left is None else max(left, 0) * 1000):
            return
        if left is not None and left <= 0:
            raise builtins.TimeoutError


def send_by(sock: BlockingSocket, data: Body, deadline: float) -> None:
    """Send everything by ``deadline``. The socket itself stays blocking: other threads may be reading from it.

    Raises:
        builtins.TimeoutError: the peer did not take everything in time.
        OSError: the connection is lost.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            wait_for(sock, select.POLLOUT, deadline)


def send_buffers(sock: BlockingSocket, buffers: list[Body], deadline: float | None) -> None:
    """Send several buffers as one message, without joining them. Errors as `send_by`; None waits without limit."""
    flags = 0 if deadline is None else socket.MSG_DONTWAIT
    while buffers:
        try:
            sent = sock.sendmsg(buffers[:MAX_BUFFERS], (), flags)
        except BlockingIOError:
            if deadline is None:  # the limit on silence is over
                raise
            wait_for(sock, select.POLLOUT, deadline)
            continue
        done = 0
        while done < len(buffers) and sent >= len(buffers[done]):
            sent -= len(buffers[done])
            done += 1
        buffers = buffers[done:]
        if sent:
            buffers[0] = memoryview(buffers[0])[sent:]


def send_counted(sock: BlockingSocket, buffers: list[Body], deadline: float | None, sent: list[int]) -> None:
    """`send_buffers` on a plain socket, such that it can go on after an interrupt. Errors as `send_by`.

    Args:
        sent: what has left already, and what leaves; every count is there, wherever an interrupt comes.
    """
    flags = 0 if deadline is None else socket.MSG_DONTWAIT
    while rest := _after(buffers, sum(sent)):
        try:
            sent.extend(map(sock.sendmsg, (rest[:MAX_BUFFERS],), ((),), (flags,)))  # a step that no interrupt divides
        except BlockingIOError:
            if deadline is None:  # the limit on silence is over
                raise
            wait_for(sock, select.POLLOUT, deadline)


def _after(buffers: list[Body], count: int) -> list[Body]:
    """What is left of buffers after so many bytes."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[number + 1 :]]
        count -= len(buffer)
    return []
