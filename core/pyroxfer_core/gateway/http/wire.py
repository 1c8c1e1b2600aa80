"""Bytes in and out of one connection, plain or TLS. What can be done at once is done without a wait."""

from __future__ import annotations

import socket
import ssl
from typing import Protocol

import trio

from .limits import LINGER_S, PIECE

RECEIVE = 65536


class Wire(Protocol):
    """A connection.

    `receive` and `send` raise OSError, trio.BrokenResourceError or ssl.SSLError when it is gone, and `send` when a
    piece of the data does not leave within the time.
    """

    sock: socket.socket

    async def open(self, within_s: float) -> None:
        """Do what comes before the first byte."""

    async def receive(self) -> bytes:
        """What came; empty at the end."""

    async def send(self, data: bytes, within_s: float) -> None:
        """Send all of it."""

    async def end(self) -> None:
        """Say that nothing more comes, and let the caller read what was said although it may still be sending."""

    async def close(self) -> None:
        """Close at once."""


class PlainWire:
    """TCP."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock

    async def open(self, within_s: float) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.sock)  # first: the next request is hardly ever there already
            try:
                return self.sock.recv(RECEIVE)
            except BlockingIOError:
                pass  # there was nothing after all

    async def send(self, data: bytes, within_s: float) -> None:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await self._send_slowly(memoryview(data)[sent:], within_s)

    async def _send_slowly(self, rest: memoryview, within_s: float) -> None:
        limit = trio.CancelScope(deadline=trio.current_time() + within_s)
        in_piece = 0
        with limit:
            while rest:
                try:
                    sent = self.sock.send(rest[:PIECE])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.sock)
                    continue
                rest = rest[sent:]
                in_piece += sent
                if in_piece >= PIECE:
                    in_piece, limit.deadline = 0, trio.current_time() + within_s
            return
        raise trio.BrokenResourceError("the caller does not read its answer")

    async def end(self) -> None:
        with trio.move_on_after(LINGER_S):
            self.sock.shutdown(socket.SHUT_WR)
            while await self.receive():
                pass

    async def close(self) -> None:
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()
        await trio.lowlevel.checkpoint_if_cancelled()


class TlsWire:
    """TLS over TCP."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        transport = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)

    async def open(self, within_s: float) -> None:
        with trio.fail_after(within_s):
            await self._stream.do_handshake()

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(RECEIVE))

    async def send(self, data: bytes, within_s: float) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), PIECE):
                with trio.fail_after(within_s):
                    await self._stream.send_all(view[start : start + PIECE])
        except trio.TooSlowError:
            raise trio.BrokenResourceError("the caller does not read its answer") from None

    async def end(self) -> None:
        with trio.move_on_after(LINGER_S):
            await self._stream.unwrap()

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)
