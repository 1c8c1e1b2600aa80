"""Handing a connection to another worker: its descriptor goes over a unix socket, with what was read from it.

The first bytes of a raw side stream say to which worker it belongs; by then one of them has accepted it. Under TLS
the keys stay where the handshake was: that worker goes on to encrypt, and hands one end of a pair of sockets over.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from ..errors import ConnectionClosedError
from ..transport.faults import part
from ..transport.side import SideStream, TlsSideStream, side_stream_on
from ..transport.sockets import set_options
from ..wire.preamble import PREAMBLE_SIZE, encode_preamble, parse_preamble

log = logging.getLogger(__name__)

MAX_EARLY: Final = 16 * 1024
"""Bytes that a client sends behind the preamble before it is answered; ours send none."""
HAND_S: Final = 2.0
"""How long a worker may take to look into its mailbox."""
MOST_HANDED: Final = 1000
"""Connections from other workers at once: those that a worker accepts are bounded by its settings."""
RELAY_BYTES: Final = 256 * 1024
_FD: Final = struct.Struct("i")


def _place(folder: Path, number: int) -> str:
    return str(folder / f"hand{number}")


async def hand_over(stream: SideStream, folder: Path, number: int) -> bool:
    """Give a side stream, of which nothing but the preamble was used, to another worker. Here it is closed, under TLS
    when both ends are done.

    Returns:
        Whether the other worker was there to take it.
    """
    early = stream.take_received()
    if len(early) > MAX_EARLY:
        return False
    message = encode_preamble(bytes(stream.token)) + early
    if not isinstance(stream, TlsSideStream):
        return await _send(folder, number, message, stream.fileno())
    ours, theirs = socket.socketpair()
    async with stream, _side_stream(ours) as inner:
        with theirs:
            taken = await _send(folder, number, message, theirs.fileno())
        if taken:
            await _relay(stream, inner)
        return taken


def _side_stream(sock: socket.socket, received: bytes = b"") -> SideStream:
    set_options(sock)
    return side_stream_on(sock, received)


async def _send(folder: Path, number: int, message: bytes, fd: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(_place(folder, number))
            with trio.fail_after(HAND_S):
                while True:
                    try:
                        socket.send_fds(sock, [message], [fd])
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sock)
                    else:
                        return True
        except (OSError, trio.TooSlowError) as error:
            log.warning("worker %d does not take a connection: %s", number, str(error) or "it is busy")
            return False


async def _relay(one: SideStream, other: SideStream) -> None:
    """Pass bytes on in both directions until one side ends: what it sent has then been passed on, and nobody there
    waits for more."""
    async with trio.open_nursery() as nursery:

        async def pass_on(source: SideStream, target: SideStream) -> None:
            with contextlib.suppress(ConnectionClosedError):
                while data := await source.receive_some(RELAY_BYTES):
                    await target.send_all(data)
            nursery.cancel_scope.cancel()

        nursery.start_soon(pass_on, one, other)
        nursery.start_soon(pass_on, other, one)


class Mailbox:
    """Where other workers hand connections to this one.

    Raises:
        OSError: the folder is gone.
    """

    def __init__(self, folder: Path, number: int) -> None:
        place = _place(folder, number)
        Path(place).unlink(missing_ok=True)  # of the worker before
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.bind(place)
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)

    async def serve(self, handler: Callable[[SideStream], Awaitable[None]]) -> None:
        """Call the handler with each stream, in a task of its own, until cancelled. A stream is closed when its
        handler returns; an error that escapes it is logged."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    for stream in self._take():
                        if len(nursery.child_tasks) < MOST_HANDED:
                            nursery.start_soon(_handle, stream, handler)
                        else:
                            stream.abort()
                    await trio.lowlevel.wait_readable(self._sock)
            finally:
                self._sock.close()

    def _take(self) -> Iterator[SideStream]:
        while True:
            try:
                message, ancillary, _, _ = self._sock.recvmsg(
                    PREAMBLE_SIZE + MAX_EARLY, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    stream = _side_stream(socket.socket(fileno=_FD.unpack_from(data)[0]), message[PREAMBLE_SIZE:])
                    stream.token = parse_preamble(message[:PREAMBLE_SIZE])
                    yield stream


async def _handle(stream: SideStream, handler: Callable[[SideStream], Awaitable[None]]) -> None:
    try:
        await handler(stream)
    except BaseException as error:
        travelling, rest = part(error)
        if rest is not None:
            log.error("a handed connection ended with an unexpected error", exc_info=rest)
        if travelling is not None:
            raise travelling from None
    finally:
        stream.abort()
