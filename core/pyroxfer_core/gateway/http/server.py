"""The server: connections, their bounds, and a look-out for callers that are gone."""

from __future__ import annotations

import errno
import logging
import select
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from ..request import Receive, Scope, Send
from .cycle import Cycle, asgi_scope, error_answer
from .limits import PIECE, Budget, HttpError, Limits
from .parser import Received, RequestParser

log = logging.getLogger("pyroxfer.gateway")

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Listener = trio.SocketListener | trio.SSLListener[trio.SocketStream]

LOOK_OUT_S: Final = 0.5
"""How often it is looked for callers that are gone; requests that take less are never looked at."""
LINGER_S: Final = 1.0
"""How long a refused caller may go on sending, so that it gets to read why."""
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class HttpServer:
    """Serves an ASGI application.

    Args:
        app: called once for each request, with its whole body.
        limits: bounds.
    """

    def __init__(self, app: App, limits: Limits | None = None) -> None:
        self._app = app
        self._limits = limits = limits or Limits()
        self._budget = Budget(limits.buffered_bytes)
        self._open = 0
        self._idle: dict[_Connection, None] = {}
        """Those between two requests, the longest idle first."""
        self._running: dict[_Connection, Cycle] = {}
        self._freed = trio.Event()
        self._stopping = False

    def __repr__(self) -> str:
        return f"<HttpServer, {self._open} connections, {len(self._running)} requests running>"

    @property
    def connections(self) -> int:
        """Open now."""
        return self._open

    async def serve(self, listeners: Sequence[Listener], stop: trio.Event) -> None:
        """Serve until ``stop`` is set; then running requests may go on for the grace time. Closes the listeners."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_out)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, connections)
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                self._stopping = True
                for connection in list(self._idle):
                    connection.scope.cancel()
                for cycle in self._running.values():
                    if cycle.started:  # a stream, which might never end by itself
                        cycle.gone.set()
                connections.cancel_scope.deadline = trio.current_time() + self._limits.grace_s
            nursery.cancel_scope.cancel()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        async with listener:
            while True:
                while self._open >= self._limits.connections:
                    await self._wait_for_room()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _NO_DESCRIPTORS:
                        raise
                    log.error("cannot accept a connection: %s", error.strerror)
                    await trio.sleep(0.1)
                    continue
                self._open += 1
                connections.start_soon(_Connection(self, stream).run)

    async def _wait_for_room(self) -> None:
        """Close the connection that is idle for the longest time, if there is one, and wait until one is closed."""
        self._freed = trio.Event()
        for connection in self._idle:
            connection.scope.cancel()
            break
        await self._freed.wait()

    async def _look_out(self) -> None:
        """Cancel requests whose caller has hung up."""
        while True:
            await trio.sleep(LOOK_OUT_S)
            before = trio.current_time() - LOOK_OUT_S
            running = [(one, cycle) for one, cycle in self._running.items() if cycle.started_at <= before]
            if not running:
                continue
            poll = select.poll()
            for connection, _ in running:
                poll.register(connection.fileno, select.POLLRDHUP)
            gone = {fileno for fileno, events in poll.poll(0) if events & _GONE}
            for connection, cycle in running:
                if connection.fileno in gone:
                    cycle.gone.set()
                    cycle.scope.cancel()

    # --- called by connections ---------------------------------------------------------------------------------

    def closed(self) -> None:
        """A connection ended."""
        self._open -= 1
        self._freed.set()


class _Connection:
    """One connection: requests one after the other."""

    def __init__(self, server: HttpServer, stream: Stream) -> None:
        self.server = server
        self.stream = stream
        self.scope = trio.CancelScope()
        """Cancelled to close the connection between two requests."""
        sock = stream.socket if isinstance(stream, trio.SocketStream) else stream.transport_stream.socket
        self.fileno = sock.fileno()
        self.scheme = "http" if isinstance(stream, trio.SocketStream) else "https"
        self.client = _address(sock.getpeername)
        self.address = _address(sock.getsockname)

    async def run(self) -> None:
        server = self.server
        parser = RequestParser(server._limits, server._budget)
        try:
            with self.scope:
                if isinstance(self.stream, trio.SSLStream):
                    with trio.fail_after(server._limits.handshake_s):
                        await self.stream.do_handshake()
                await self._serve(parser)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ssl.SSLError, OSError):
            pass  # a caller that hung up, or does not take its answer
        finally:
            parser.close()
            server.closed()
            await trio.aclose_forcefully(self.stream)

    async def _serve(self, parser: RequestParser) -> None:
        while True:
            try:
                request = await self._next(parser)
            except HttpError as error:
                parser.close()
                await self._refuse(error)
                return
            if request is None:
                return
            try:
                keep = await self._answer(request)
            finally:
                parser.release(request)
            if not keep:
                await self._close_politely()
                return

    async def _next(self, parser: RequestParser) -> Received | None:
        """The next request; None when the caller is through, or silent for too long.

        Raises:
            HttpError: it cannot be read, or takes too long.
        """
        if parser.ready:
            return parser.ready.popleft()
        server, limits = self.server, self.server._limits
        server._idle[self] = None
        limit = trio.CancelScope(deadline=trio.current_time() + limits.idle_s)
        extended = False
        try:
            with limit:
                while not parser.ready:
                    if parser.began and not extended:
                        limit.deadline, extended = trio.current_time() + limits.request_s, True
                    data = await self.stream.receive_some(65536)
                    if not data:
                        return None
                    parser.feed(bytes(data))
                    if parser.wants_continue:
                        parser.wants_continue = False
                        await self.send_bytes(b"HTTP/1.1 100 Continue\r\n\r\n")
        finally:
            server._idle.pop(self, None)
        if limit.cancelled_caught:
            if not parser.began:
                return None
            raise HttpError(408, f"the request took longer than {limits.request_s:g} s")
        return parser.ready.popleft()

    async def _answer(self, request: Received) -> bool:
        """Run the application; whether another request may follow."""
        server = self.server
        cycle = Cycle(request, self.send_bytes, not server._stopping)
        server._running[self] = cycle
        try:
            with cycle.scope:
                scope = asgi_scope(request, self.scheme, self.client, self.address)
                await server._app(scope, cycle.receive, cycle.send)
        except Exception:
            if cycle.gone.is_set():
                return False
            log.exception("the application failed")
            if not cycle.started:
                await self.send_bytes(error_answer(500, "the server failed; its log says how"))
            return False
        finally:
            del server._running[self]
        return cycle.keep_alive and cycle.done and not server._stopping

    async def send_bytes(self, data: bytes) -> None:
        """Send; every piece of it must leave in time.

        Raises:
            trio.BrokenResourceError: the caller is gone, or does not read.
        """
        limit = self.server._limits.send_s
        try:
            if len(data) <= PIECE:
                with trio.fail_after(limit):
                    await self.stream.send_all(data)
                return
            view = memoryview(data)
            for start in range(0, len(view), PIECE):
                with trio.fail_after(limit):
                    await self.stream.send_all(view[start : start + PIECE])
        except trio.TooSlowError:
            self._gone()
            raise trio.BrokenResourceError("the caller does not read its answer") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._gone()
            raise

    def _gone(self) -> None:
        cycle = self.server._running.get(self)
        if cycle is not None:
            cycle.gone.set()

    async def _refuse(self, error: HttpError) -> None:
        await self.send_bytes(error_answer(error.status, str(error)))
        await self._close_politely()

    async def _close_politely(self) -> None:
        """Say that nothing more comes, and let the caller read what was said although it is still sending."""
        with trio.move_on_after(LINGER_S):
            if isinstance(self.stream, trio.SocketStream):
                await self.stream.send_eof()
            else:
                await self.stream.unwrap()
                return
            while await self.stream.receive_some(65536):
                pass


def _address(ask: Callable[[], Any]) -> tuple[str, int] | None:
    """Host and port; None on a unix socket."""
    try:
        found = ask()
    except OSError:
        return None
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
