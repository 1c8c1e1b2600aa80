"""Accepting connections on one port: protocol 48, protocol 502 and raw side streams, told apart by first bytes."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import trio

from ..errors import AuthenticationError, ProtocolError, PyroError
from ..settings import Settings
from ..wire import Decoder
from ..wire.codec import Codec
from ..wire.message import Message
from ..wire.preamble import PREAMBLE_SIZE, parse_preamble, sniff
from ..wire.v502 import V502
from .connection import Connection
from .crowd import Crowd, host_of
from .faults import part
from .resume import resumed
from .shortage import PAUSE_S, Shortage, is_shortage
from .side import SideStreamHandler, side_stream_on
from .sockets import StreamSocket, accept_who_speaks, peer_text, set_options
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


class Watch(Protocol):
    """Tells of connections from within a wait for something else."""

    def watch(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Call ``ready``, which must not fail, again and again while there is a connection to accept."""

    def unwatch(self, listener: socket.socket) -> None:
        """Do so no more. Twice is fine, and so is a listener that was closed meanwhile."""


ConnectionHandler = Callable[[Connection], Awaitable[None]]
AtOnce = Callable[[Message, Callable[[], Connection]], bool]
"""Called with the first message of a plain connection of protocol 502, if that is there when it is accepted, and with
what makes the connection. It keeps that (see `Connection.keep`) and returns True, or makes none: False."""

FIRST_BYTES: Final = 64 * 1024
ACCEPTS_IN_A_ROW: Final = 16
"""Connections that need no wait before others of the loop get a turn."""


async def serve_connections(
    listeners: Sequence[socket.socket],
    handler: ConnectionHandler,
    *,
    settings: Settings,
    side_handler: SideStreamHandler | None = None,
    collect: int | None = None,
    share: Share | None = None,
    at_once: AtOnce | None = None,
    watch: Watch | None = None,
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
        at_once: asked before the handler, which gets the connections that it does not take.
        watch: where whoever waits may accept what is taken at once, which costs no task a turn of the loop; without
            ``at_once``, or with a share, it is not used. Who closes a listener has it unwatched before.

    While ``settings.max_connections`` are open, more wait in the listen queue.
    """
    door = _Door(handler, side_handler, settings, collect, share, at_once, watch)
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
        at_once: AtOnce | None,
        watch: Watch | None,
    ) -> None:
        self._handler = handler
        self._at_once = at_once
        self._side_handler = side_handler
        self._settings = settings
        self._collect = settings.max_message_bytes if collect is None else collect
        self._permits = trio.Semaphore(settings.max_connections)
        self._half_open = _HalfOpen(settings.max_half_open)
        self._crowd = Crowd(settings)
        self._share = share
        self._shortage = Shortage()
        self._watch = None if at_once is None or share is not None else watch
        self._context = contextvars.copy_context()

    async def accept_from_all(self, listeners: Sequence[socket.socket], nursery: trio.Nursery) -> None:
        """Until the listeners are closed; connections live on in the nursery."""
        closed = [trio.Event() for _ in listeners]
        for listener in listeners:
            with contextlib.suppress(OSError):  # it is closed already
                set_options(listener)  # those that it accepts have them, too
                if self._at_once is not None:
                    accept_who_speaks(listener)
        try:
            for listener, event in zip(listeners, closed, strict=True):
                if self._watch is None:
                    nursery.start_soon(self._accept_from, listener, event, nursery)
                else:
                    nursery.start_soon(self._have_watched, self._watch, listener, event, nursery)
            for event in closed:
                await event.wait()
        finally:
            if self._share is not None:
                self._share.over()

    async def _have_watched(
        self, watch: Watch, listener: socket.socket, closed: trio.Event, nursery: trio.Nursery
    ) -> None:
        """Accept by way of others until the listener is closed."""
        pause_s: float | None = 0.0
        while pause_s is not None:
            await trio.sleep(pause_s)
            async with self._permits:
                pass  # there is room
            pause_s = await self._watched(watch, listener, nursery)
        closed.set()

    async def _watched(self, watch: Watch, listener: socket.socket, nursery: trio.Nursery) -> float | None:
        """Until none can be accepted for so many seconds; None once the listener was closed."""
        if listener.fileno() < 0:
            return None
        pause_s = PAUSE_S
        scope = trio.CancelScope()

        def pause(seconds: float) -> None:
            nonlocal pause_s
            pause_s = seconds
            watch.unwatch(listener)
            scope.cancel()

        with scope:
            watch.watch(listener, partial(self._accept_watched, listener, nursery, pause))
            try:
                await trio.lowlevel.wait_writable(listener)  # which it is only if somebody else has shut it down
            except trio.ClosedResourceError:
                return None
            finally:
                watch.unwatch(listener)
        return pause_s

    def _accept_watched(self, listener: socket.socket, nursery: trio.Nursery, pause: Callable[[float], None]) -> None:
        """Accept a connection that is there, and serve it; or pause, where that cannot be done now."""
        try:
            self._permits.acquire_nowait()
        except trio.WouldBlock:
            pause(0)
            return
        try:
            sock, address = listener.accept()
        except OSError as error:
            self._permits.release()
            if is_shortage(error):
                self._shortage.met(error)
                pause(PAUSE_S)
            elif not isinstance(error, BlockingIOError):
                _lost_early(error)
            return
        if self._shortage.told:
            self._shortage.over()
        waiting = self._admit(sock, address)
        if waiting is not None:
            self._context.copy().run(nursery.start_soon, partial(self._serve, *waiting))

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
            accepted = await self._accept(listener)
            if accepted is None:
                closed.set()
                return
            if self._share is not None:
                self._share.entered()
            waiting = self._admit(*accepted)
            if waiting is None:
                continue
            serving, context = self._serve(*waiting), self._context.copy()
            try:
                request = context.run(serving.send, None)
            except StopIteration:
                continue
            self._context.run(nursery.start_soon, self._accept_from, listener, closed, nursery)
            trio.lowlevel.current_task().context = context
            await resumed(serving, request)
            return

    async def _accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        """The next connection, and where it comes from; None once the listener was closed."""
        while True:
            if self._share is not None:
                await self._share.turn()
            try:
                accepted = listener.accept()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(listener)
                except trio.ClosedResourceError:
                    return None
            except OSError as error:
                if is_shortage(error):
                    self._shortage.met(error)
                    await trio.sleep(PAUSE_S)
                elif listener.fileno() < 0:
                    return None
                else:
                    _lost_early(error)
            else:
                if self._shortage.told:
                    self._shortage.over()
                return accepted

    def _admit(self, sock: socket.socket, address: Any) -> tuple[socket.socket, Any, str | None, bytes] | None:
        """Serve a connection that needs no wait, or close one too many; what `_serve` takes for any other."""
        sock.setblocking(False)
        host = host_of(address)
        if not self._crowd.enter(host):
            sock.close()
            self._left()
            return None
        first = self._serve_at_once(sock, address, host)
        return None if first is None else (sock, address, host, first)

    def _serve_at_once(self, sock: socket.socket, address: Any, host: str | None) -> bytes | None:
        """Serve a connection that needs no wait; None then, else what has been read of it."""
        settings = self._settings
        secured = settings.ssl_server_context is not None and isinstance(address, tuple)
        if self._at_once is None or secured or wire_log(settings, str) is not None:
            return b""
        try:
            first = sock.recv(FIRST_BYTES)
        except OSError:  # nothing yet; what is wrong with it shows again
            return b""
        found = V502.parse_small(first, 0, settings.max_handshake_bytes)
        if found is None or found[1] != len(first):
            return first

        def make() -> Connection:
            connection = Connection(sock, self._decoder(V502), address=address)
            connection.release = partial(self._leave, host)
            return connection

        try:
            return None if self._at_once(found[0], make) else first
        except Exception:
            log.exception("a connection ended with an unexpected error")
            sock.close()
            self._leave(host)
            return None

    def _decoder(self, codec: Codec | None, tap: Callable[[Codec], Codec] | None = None) -> Decoder:
        settings = self._settings
        return Decoder(
            codec,
            max_message=settings.max_handshake_bytes,
            max_annotations=settings.max_annotations,
            collect=self._collect,
            hmac_key=settings.hmac_key,
            tap=tap,
        )

    async def _serve(self, sock: socket.socket, address: Any, host: str | None, first: bytes) -> None:
        kept = False
        scope = trio.CancelScope()
        try:
            with scope:
                settled = self._half_open.enter(scope)
                kept = await self._serve_secured(sock, address, first, settled, partial(self._leave, host))
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
        self._left()

    def _left(self) -> None:
        self._permits.release()
        if self._share is not None:
            self._share.left()

    async def _serve_secured(
        self,
        sock: socket.socket,
        address: Any,
        first: bytes,
        settled: Callable[[], None],
        release: Callable[[], None],
    ) -> bool:
        """Serve, under TLS if the settings say so. A unix socket is plain: its file says who may connect.

        Returns:
            Whether the connection was kept.
        """
        greet_by = trio.current_time() + self._settings.connect_timeout_s
        context = self._settings.ssl_server_context
        if context is None or not isinstance(address, tuple):
            return await self._serve_kind(sock, address, first, settled, greet_by, release)
        try:
            with trio.fail_at(greet_by):
                secured = await start_tls(sock, context, server_side=True)
        except (AuthenticationError, ProtocolError) as error:
            log.warning("refused: %s", error)
            return False
        kept = False
        try:
            kept = await self._serve_kind(secured, address, b"", settled, greet_by, release)
        finally:
            if not kept and secured.fileno() >= 0:
                trio.lowlevel.notify_closing(secured)
                secured.drop()
        return kept

    async def _serve_kind(
        self,
        sock: StreamSocket,
        address: Any,
        first: bytes,
        settled: Callable[[], None],
        greet_by: float,
        release: Callable[[], None],
    ) -> bool:
        first = await _first_bytes(sock, greet_by, first)
        kind = sniff(first)
        if kind == "raw":
            await self._serve_side(sock, first, settled, greet_by)
            return False
        if kind == "tls":
            log.warning("%s speaks TLS to a port that does not: it is refused", peer_text(sock))
        decoder = self._decoder(None, wire_log(self._settings, partial(peer_text, sock)))
        decoder.feed(first)
        connection = Connection(sock, decoder, hmac_key=self._settings.hmac_key, address=address)
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


def _lost_early(error: OSError) -> None:
    log.info("a connection was lost before it was accepted: %s", error)


async def _first_bytes(sock: StreamSocket, until: float, data: bytes) -> bytes:
    """Enough bytes to tell the kind of connection, or all there are when the peer or the time stopped before.

    Args:
        data: what has been read already.
    """
    if sniff(data) != "need-more":
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
