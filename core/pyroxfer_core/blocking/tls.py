"""TLS for threads: a non-blocking TLS socket behind the calls of a blocking one."""

from __future__ import annotations

import builtins
import contextlib
import math
import select
import socket
import ssl
import threading
import time
from typing import Any

from ..errors import CommunicationError, Outcome, TimeoutError
from ..transport.sockets import peer_text
from ..transport.tls import TlsSocket, begin_tls, tls_error
from ..wire.message import Body
from .connect import time_left, wait_for


class BlockingTls:
    """A TLS connection of which one thread may receive while another sends, as on a plain socket.

    OpenSSL lets one thread at a time use a connection, so nobody holds it while waiting for the network.
    """

    def __init__(self, tls: TlsSocket) -> None:
        self._tls = tls
        self._using = threading.Lock()
        self._timeout: float | None = None
        self._silence = math.inf, math.inf

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._tls.fileno()

    def getsockname(self) -> Any:
        """As of any socket."""
        return self._tls.getsockname()

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """As of any socket."""
        return self._tls.getsockopt(level, option, length) if length else self._tls.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """As of any socket."""
        self._tls.setsockopt(level, option, value)

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The daemon's certificate, as `ssl.SSLSocket.getpeercert` gives it."""
        return self._tls.getpeercert(binary_form)

    def settimeout(self, seconds: float | None) -> None:
        """How long one call may wait; None as long as it takes."""
        self._timeout = seconds

    def limit_silence(self, receive_s: float, send_s: float) -> None:
        """Let a read or a send that nothing comes of for so long fail with BlockingIOError."""
        self._silence = receive_s, send_s

    def _wait(self, event: int) -> None:
        """Wait for the network once."""
        limit = self._silence[event == select.POLLOUT]
        longest = min(limit, math.inf if self._timeout is None else self._timeout)
        try:
            wait_for(self, event, None if longest == math.inf else time.monotonic() + longest)
        except builtins.TimeoutError:
            if limit == longest:
                raise BlockingIOError from None
            raise

    def poll(self, milliseconds: int) -> bool:
        """Whether a read would not wait: data, the end, or an error is there. Never waits itself."""
        with self._using:
            try:
                self._tls.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            except OSError:
                pass  # the next read says so
            return True

    def wait_readable(self, deadline: float | None) -> None:
        """Wait until a read would not wait. Errors as `wait_for`."""
        while not self.poll(0):
            wait_for(self, select.POLLIN, deadline)

    def recv(self, count: int) -> bytes:
        """Plain bytes; empty at the end."""
        while True:
            with self._using:
                try:
                    return self._tls.recv(count)
                except BlockingIOError:
                    pass
            self._wait(select.POLLIN)

    def recv_into(self, buffer: Body) -> int:
        """The same into a buffer."""
        while True:
            with self._using:
                try:
                    return self._tls.recv_into(buffer)
                except BlockingIOError:
                    pass
            self._wait(select.POLLIN)

    def send(self, data: Body, flags: int = 0) -> int:
        """Send a part; ``MSG_DONTWAIT`` raises BlockingIOError instead of waiting."""
        while True:
            with self._using:
                try:
                    return self._tls.send(data)
                except BlockingIOError:
                    if flags & socket.MSG_DONTWAIT:
                        raise
            self._wait(select.POLLOUT)

    def sendall(self, data: Body) -> None:
        """Send everything."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def sendmsg(self, buffers: list[Body], ancdata: object = (), flags: int = 0) -> int:
        """Send a part of the first buffer."""
        return self.send(buffers[0], flags)

    def shutdown(self, how: int) -> None:
        """Say goodbye to the peer."""
        with self._using, contextlib.suppress(OSError):
            self._tls.shutdown(how)

    def close(self) -> None:
        """Close without a goodbye."""
        self._tls.drop()

    def forsake(self) -> None:
        """Close after a fork: the connection, and who was using it, go on in the parent."""
        self._using = threading.Lock()
        self._tls.drop()


def secure(sock: socket.socket, context: ssl.SSLContext, hostname: str, until: float) -> BlockingTls:
    """Do the TLS handshake on a connected socket, which is closed when that fails.

    Args:
        until: on the monotonic clock.

    Raises:
        AuthenticationError, ProtocolError, ConnectionClosedError: as `start_tls` (outcome NotSent).
        TimeoutError: it was not done in time (outcome NotSent).
    """
    peer, limit = peer_text(sock), time_left(until)
    try:
        tls = begin_tls(sock, context, server_hostname=hostname)
    except CommunicationError as error:
        error.outcome = Outcome.NOT_SENT
        raise
    try:
        while True:
            try:
                tls.do_handshake()
                return BlockingTls(TlsSocket(tls))
            except ssl.SSLWantReadError:
                wait_for(tls, select.POLLIN, until)
            except ssl.SSLWantWriteError:
                wait_for(tls, select.POLLOUT, until)
    except BaseException as error:
        tls.close()
        if isinstance(error, builtins.TimeoutError):
            text = f"no TLS handshake with {hostname} within {limit:.3g} s"
            raise TimeoutError(text, outcome=Outcome.NOT_SENT) from error
        if isinstance(error, (OSError, ValueError)):
            ours = tls_error(error, peer, client=True, hostname=hostname)
            ours.outcome = Outcome.NOT_SENT
            raise ours from error
        raise
