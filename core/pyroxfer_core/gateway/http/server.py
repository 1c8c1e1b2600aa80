"""The server: connections, their bounds, and a look-out for callers that are silent or gone."""

from __future__ import annotations

import logging
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from ...transport.shortage import PAUSE_S, Shortage, is_shortage
from ..request import Receive, Scope, Send
from .cycle import Cycle, asgi_scope, error_answer
from .limits import Budget, HttpError, Limits
from .parser import Received, RequestParser
from .wire import PlainWire, TlsWire, Wire

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOK_OUT_S: Final = 0.25
"""How often it is looked for callers that are silent or gone; one look-out for all costs a request nothing."""
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
        """Those that have not begun or are between two requests, the longest idle first."""
        self._running: dict[_Connection, Cycle] = {}
        self._freed = trio.Event()
        self._stopping = False
        self._shortage = Shortage()

    def __repr__(self) -> str:
        return f"<HttpServer, {self._open} connections, {len(self._running)} requests running>"

    @property
    def connections(self) -> int:
        """Open now."""
        return self._open

    async def serve(
        self, listeners: Sequence[socket.socket], stop: trio.Event, context: ssl.SSLContext | None = None
    ) -> None:
        """Serve until ``stop`` is set; then running requests may go on for the grace time. Closes the listeners.

        Args:
            listeners: listening sockets.
            context: speak TLS.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_out)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, context, connections)
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

    async def _accept(
        self, listener: socket.socket, context: ssl.SSLContext | None, connections: trio.Nursery
    ) -> None:
        listener.setblocking(False)
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                while self._open >= self._limits.connections:
                    await self._wait_for_room()
                try:
                    sock, _ = listener.accept()
                except OSError as error:
                    if is_shortage(error):
                        self._shortage.met(error)
                        await trio.sleep(PAUSE_S)
                    continue  # else it was gone before it was accepted
                if self._shortage.told:
                    self._shortage.over()
                self._open += 1
                wire: Wire = PlainWire(sock) if context is None else TlsWire(sock, context)
                connections.start_soon(_Connection(self, wire, tls=context is not None).run)

    async def _wait_for_room(self) -> None:
        """Close the connection that is idle for the longest time, and wait until one is closed or is idle by now."""
        if self._freed.is_set():  # else another listener waits on it already
            self._freed = trio.Event()
        for connection in self._idle:
            connection.scope.cancel()
            break
        await self._freed.wait()

    async def _look_out(self) -> None:
        """End connections whose caller is silent for too long, or has hung up while its request runs."""
        while True:
            await trio.sleep(LOOK_OUT_S)
            now = trio.current_time()
            for connection in [one for one in self._idle if one.deadline <= now]:
                connection.late = True
                connection.scope.cancel()
            self._end_abandoned(now - LOOK_OUT_S)

    def _end_abandoned(self, before: float) -> None:
        running = [(one, cycle) for one, cycle in self._running.items() if cycle.started_at <= before]
        if not running:
            return
        poll = select.poll()
        for connection, _ in running:
            poll.register(connection.fileno, select.POLLRDHUP)
        gone = {fileno for fileno, events in poll.poll(0) if events & _GONE}
        for connection, cycle in running:
            if connection.fileno in gone:
                cycle.gone.set()
                connection.scope.cancel()

    # --- called by connections ---------------------------------------------------------------------------------

    def idle(self, connection: _Connection) -> None:
        """It may give way to another one."""
        self._idle[connection] = None
        self._freed.set()

    def closed(self) -> None:
        """A connection ended."""
        self._open -= 1
        self._freed.set()


class _Connection:
    """One connection: requests one after the other."""

    def __init__(self, server: HttpServer, wire: Wire, *, tls: bool) -> None:
        self.server = server
        self.wire = wire
        self.scope = trio.CancelScope()
        """Cancelled to end the connection, and what runs for it."""
        self.deadline = trio.current_time() + server._limits.idle_s
        """When the look-out ends it, while it waits for a request."""
        self.late = False
        """The look-out did."""
        self.fileno = wire.sock.fileno()
        self.scheme = "https" if tls else "http"
        self.client = _address(wire.sock.getpeername)
        self.address = _address(wire.sock.getsockname)

    async def run(self) -> None:
        server = self.server
        parser = RequestParser(server._limits, server._budget)
        try:
            with self.scope:
                server.idle(self)
                await self.wire.open(server._limits.handshake_s)
                await self._serve(parser)
            if self.late and parser.began:
                limit = f"{server._limits.request_s:g} s"
                await self._refuse(HttpError(408, f"the request took longer than {limit}"))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ssl.SSLError, OSError):
            pass  # a caller that hung up, or does not take its answer
        except Exception:  # a group of errors, or one of ours: the other connections must not notice
            log.exception("a connection failed")
        finally:
            parser.close()
            server._idle.pop(self, None)
            server.closed()
            await self.wire.close()

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
                await self.wire.end()
                return

    async def _next(self, parser: RequestParser) -> Received | None:
        """The next request; None when the caller is through.

        Raises:
            HttpError: it cannot be read.
        """
        ready = parser.ready
        if ready:
            return ready.popleft()
        server = self.server
        self.deadline = trio.current_time() + server._limits.idle_s
        server.idle(self)
        began = False
        while not ready:
            if parser.began and not began:
                self.deadline, began = trio.current_time() + server._limits.request_s, True
            data = await self.wire.receive()
            if not data:
                return None
            parser.feed(data)
            if parser.wants_continue:
                parser.wants_continue = False
                await self.send_bytes(b"HTTP/1.1 100 Continue\r\n\r\n")
        server._idle.pop(self, None)
        return ready.popleft()

    async def _answer(self, request: Received) -> bool:
        """Run the application; whether another request may follow."""
        server = self.server
        cycle = Cycle(request, self.send_bytes, not server._stopping)
        server._running[self] = cycle
        try:
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
        return cycle.keep_alive and cycle.done and not cycle.gone.is_set() and not server._stopping

    async def send_bytes(self, data: bytes) -> None:
        """Send; every piece of it must leave in time.

        Raises:
            OSError, trio.BrokenResourceError: the caller is gone, or does not read.
        """
        await self.wire.send(data, self.server._limits.send_s)

    async def _refuse(self, error: HttpError) -> None:
        await self.send_bytes(error_answer(error.status, str(error)))
        await self.wire.end()


def _address(ask: Callable[[], Any]) -> tuple[str, int] | None:
    """Host and port; None on a unix socket."""
    try:
        found = ask()
    except OSError:
        return None
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
