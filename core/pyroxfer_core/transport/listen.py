"""Accepting connections on one port: protocol 48, protocol 502 and raw side streams, told apart by first bytes."""

from __future__ import annotations

import contextvars
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from ..errors import AuthenticationError, ProtocolError, PyroError
from ..settings import Settings
from ..wire import Decoder
from ..wire.preamble import PREAMBLE_SIZE, parse_preamble, sniff
from .connection import Connection
from .crowd import Crowd, host_of
from .faults import part
from .resume import resumed
from .side import SideStreamHandler, side_stream_on
from .sockets import StreamSocket, peer_text, set_options
from .tls import TlsSocket, start_tls
from .wirelog import wire_log

log = logging.getLogger(__name__)


class Share(Protocol):
    """A part in accepting, where other processes accept from the same listeners."""

    async def turn(self) -> None:
        """Before each look whether a connection is there: let others go first."""

    def entered(self) -> None:
        """One connection more."""

    def left(self) -> None:
        """One connection less."""

    def over(self) -> None:
        """No more are accepted."""


ConnectionHandler = Callable[[Connection], Awaitable[None]]

_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
FIRST_BYTES: Final = 64 * 1024
ACCEPTS_IN_A_ROW: Final = 16
"""Connections that need no wait before others of the loop get a turn."""
_PAUSE_S: Final = 0.1
"""Pause after running out of descriptors, as other trio servers do."""


async def serve_connections(
    listeners: Sequence[socket.socket],
    handler: ConnectionHandler,
    *,
    settings: Settings,
    side_handler: SideStreamHandler | None = None,
    collect: int | None = None,
    share: Share | None = None,
) -> None:
    """Accept until cancelled.

    Who has said already what the handler waits for is handled by the task that accepts; any other connection has a
    task of its own until its handler returns.

    Args:
        listeners: listening sockets, non-blocking. They stay open: who made them closes them, which ends accepting
            from them, and leaves the connections alone.
        handler: called with each Pyro connection, nothing read from it but what tells its kind. The connection is
            closed when it returns, unless it was kept (see `Connection.keep`). An exception that escapes it is logged
            and ends that connection only.
        side_handler: the same for raw side streams; without it they are closed.
        collect: see `open_connection`.
        share: what other processes are left of the connections.

    While ``settings.max_connections`` are open, more wait in the listen queue.
    """
    door = _Door(handler, side_handler, settings, collect, share)
    async with trio.open_nursery() as nursery:
        await door.accept_from_all(listeners, nursery)


class _Door:
    def __init__(
        self,
        handler: ConnectionHandler,
        side_handler: SideStreamHandler | None,
        settings: Settings,
        collect: int | None,
        share: Share | None,
    ) -> None:
        self._handler = handler
        self._side_handler = side_handler
        self._settings = settings
        self._collect = settings.max_message_bytes if collect is None else collect
        self._permits = trio.Semaphore(settings.max_connections)
        self._half_open = _HalfOpen(settings.max_half_open)
        self._crowd = Crowd(settings)
        self._share = share
        self._context = contextvars.copy_context()

    async def accept_from_all(self, listeners: Sequence[socket.socket], nursery: trio.Nursery) -> None:
        """Until the listeners are closed; connections live on in the nursery."""
        closed = [trio.Event() for _ in listeners]
        try:
            for listener, event in zip(listeners, closed, strict=True):
                nursery.start_soon(self._accept_from, listener, event, nursery)
            for event in closed:
                await event.wait()
        finally:
            if self._share is not None:
                self._share.over()

    async def _accept_from(self, listener: socket.socket, closed: trio.Event, nursery: trio.Nursery) -> None:
        """Accept until a connection has to be waited for: its task is this one from then on, and another accepts."""
        in_a_row = 0
        while True:
            try:
                self._permits.acquire_nowait()
            except trio.WouldBlock:
                await self._permits.acquire()
            if in_a_row == ACCEPTS_IN_A_ROW:
                in_a_row = 0
                await trio.lowlevel.checkpoint()
            in_a_row += 1
            sock = await _accept(listener, self._share)
            if sock is None:
                closed.set()
                return
            if self._share is not None:
                self._share.entered()
            serving, context = self._serve(sock), self._context.copy()
            try:
                request = context.run(serving.send, None)
            except StopIteration:
                continue
            self._context.run(nursery.start_soon, self._accept_from, listener, closed, nursery)
            trio.lowlevel.current_task().context = context
            await resumed(serving, request)
            return

    async def _serve(self, sock: socket.socket) -> None:
        host = host_of(sock)
        if not self._crowd.enter(host):
            sock.close()
            self._permits.release()
            self._tell_left()
            return
        kept = False
        scope = trio.CancelScope()
        try:
            with scope:
                kept = await self._serve_secured(sock, self._half_open.enter(scope), partial(self._leave, host))
        except (PyroError, trio.TooSlowError) as error:
            log.info("connection ended: %s", error)
        except BaseException as error:
            travelling, rest = part(error)
            if rest is not None:
                log.error("a connection ended with an unexpected error", exc_info=rest)
            if travelling is not None:
                raise travelling from None
        finally:
            self._half_open.leave(scope)
            if not kept:
                if sock.fileno() >= 0:
                    trio.lowlevel.notify_closing(sock)
                    sock.close()
                self._leave(host)

    def _leave(self, host: str | None) -> None:
        self._crowd.leave(host)
        self._permits.release()
        self._tell_left()

    def _tell_left(self) -> None:
        if self._share is not None:
            self._share.left()

    async def _serve_secured(
        self, sock: socket.socket, settled: Callable[[], None], release: Callable[[], None]
    ) -> bool:
        """Serve, under TLS if the settings say so. A unix socket is plain: its file says who may connect.

        Returns:
            Whether the connection was kept.
        """
        sock.setblocking(False)
        greet_by = trio.current_time() + self._settings.connect_timeout_s
        context = self._settings.ssl_server_context
        if context is None or sock.family == socket.AF_UNIX:
            return await self._serve_kind(sock, settled, greet_by, release)
        set_options(sock)
        try:
            with trio.fail_at(greet_by):
                secured = await start_tls(sock, context, server_side=True)
        except (AuthenticationError, ProtocolError) as error:
            log.warning("refused: %s", error)
            return False
        kept = False
        try:
            kept = await self._serve_kind(secured, settled, greet_by, release)
        finally:
            if not kept and secured.fileno() >= 0:
                trio.lowlevel.notify_closing(secured)
                secured.drop()
        return kept

    async def _serve_kind(
        self, sock: StreamSocket, settled: Callable[[], None], greet_by: float, release: Callable[[], None]
    ) -> bool:
        first = await _first_bytes(sock, greet_by)
        kind = sniff(first)
        if kind == "raw":
            await self._serve_side(sock, first, settled, greet_by)
            return False
        if kind == "tls":
            log.warning("%s speaks TLS to a port that does not: it is refused", peer_text(sock))
        decoder = Decoder(
            max_message=self._settings.max_handshake_bytes,
            max_annotations=self._settings.max_annotations,
            collect=self._collect,
            hmac_key=self._settings.hmac_key,
            tap=wire_log(self._settings, partial(peer_text, sock)),
        )
        decoder.feed(first)
        connection = Connection(sock, decoder, hmac_key=self._settings.hmac_key)
        connection.settled = settled
        connection.greet_by = greet_by
        connection.release = release
        await self._handler(connection)
        return connection.kept

    async def _serve_side(
        self, sock: StreamSocket, first: bytes, settled: Callable[[], None], greet_by: float
    ) -> None:
        if self._side_handler is None or self._is_a_way_around(sock):
            log.info("raw side stream refused: %s", "no service takes any" if self._side_handler is None else "hmac")
            return
        set_options(sock)
        stream = side_stream_on(sock, first)
        with trio.fail_at(greet_by):
            preamble = await stream.receive_exactly(PREAMBLE_SIZE)
        stream.token = parse_preamble(preamble)
        settled()
        await self._side_handler(stream)
        await stream.aclose()  # an error does not come here: the peer then sees a stream that was cut

    def _is_a_way_around(self, sock: StreamSocket) -> bool:
        """Whether a side stream would need no proof where calls are signed. Its grant comes from such a call."""
        settings = self._settings
        return settings.hmac_key is not None and settings.tokens is None and not isinstance(sock, TlsSocket)


class _HalfOpen:
    """Connections that have not said who they are; when there are too many, the oldest goes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._scopes: dict[trio.CancelScope, None] = {}

    def enter(self, scope: trio.CancelScope) -> Callable[[], None]:
        """Count the connection that is served in this scope until the function given out is called."""
        self._scopes[scope] = None
        if len(self._scopes) > self._limit:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            oldest.cancel()
        return partial(self.leave, scope)

    def leave(self, scope: trio.CancelScope) -> None:
        """It does not count any more. Twice is fine."""
        self._scopes.pop(scope, None)


async def _accept(listener: socket.socket, share: Share | None = None) -> socket.socket | None:
    """The next connection; None once the listener was closed."""
    while True:
        if share is not None:
            await share.turn()
        try:
            return listener.accept()[0]
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_readable(listener)
            except trio.ClosedResourceError:
                return None
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                log.error("cannot accept: %s; trying again", error.strerror)
                await trio.sleep(_PAUSE_S)
            elif listener.fileno() < 0:
                return None
            else:
                log.info("a connection was lost before it was accepted: %s", error)


async def _first_bytes(sock: StreamSocket, until: float) -> bytes:
    """Enough bytes to tell the kind of connection, or all there are when the peer or the time stopped before."""
    data = b""
    try:
        data = sock.recv(FIRST_BYTES)  # most clients have spoken before they are accepted
        if not data or sniff(data) != "need-more":
            return data
    except BlockingIOError:
        pass
    except OSError:
        return data
    with trio.move_on_at(until):
        while sniff(data) == "need-more":
            try:
                more = sock.recv(FIRST_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            except OSError:
                break
            if not more:
                break
            data += more
    return data
