"""One Pyro connection, in either role: a non-blocking socket, a decoder, and a queue of bytes to send."""

from __future__ import annotations

import contextlib
import math
import select
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from ..errors import CommunicationError, ConnectionClosedError, PyroError
from ..settings import Settings
from ..uri import Uri
from ..wire import Decoder, codec_for
from ..wire.buffers import keep_freed_memory
from ..wire.codec import Codec
from ..wire.message import Body, BodyPart, End, Head, Message
from ..wire.pieces import MAX_PIECE, Outgoing
from ..wire.scattered import JOIN_BELOW, buffers_of
from .busypoll import BusyPoll
from .open import open_socket
from .sockets import (
    StreamSocket,
    address_text,
    is_local,
    is_local_address,
    limit_wait,
    lost_connection,
    peer_text,
    reason_of,
    set_options,
)
from .tls import TlsSocket
from .wirelog import wire_log


def _nothing() -> None:
    """Nobody counts this connection."""


Event = Message | Head | BodyPart | End

RECEIVE_BYTES: Final = 64 * 1024
READS_PER_TURN: Final = 16
"""Reads in a row that need no wait before others get a turn: a busy peer must not starve the rest."""
READS_FOR_ONE: Final = 4
"""Reads in a row for one message, where others wait that have said something, too."""
LINGER_S: Final = 1.0
"""How long a refused peer has to read why."""
MAX_BUFFERS: Final = 512
"""Buffers for one sendmsg; the kernel takes 1024."""


class Connection:
    """Reads messages from, and writes messages to, one socket.

    One task receives at a time; any number may send. What is queued while another task is sending leaves together
    with the rest, in order.

    Args:
        sock: a connected socket, plain or under TLS; it is made non-blocking and belongs to the connection.
        decoder: reads what comes in; it knows the protocol, or finds out.
        hmac_key: signs what goes out (protocol 48).
        address: where the other side is, if that is known: of a socket that is non-blocking already and has its
            options, from its listener or who connected it.
    """

    def __init__(
        self, sock: StreamSocket, decoder: Decoder, *, hmac_key: bytes | None = None, address: Any = None
    ) -> None:
        if address is None:
            set_options(sock)
            self.peer = peer_text(sock)
            self.is_local = is_local(sock)
        else:
            self.peer = address_text(address)
            self.is_local = is_local_address(address)
        self._sock = sock
        self.decoder = decoder
        self.broken = False
        """True once nothing more can be sent or received."""
        self.ended = False
        """True once the peer had closed or reset the connection."""
        self.settled: Callable[[], None] = _nothing
        """To be called when the handshake is done: the connection no longer counts as half-open."""
        self.release: Callable[[], None] = _nothing
        """To be called by who has kept an accepted connection, when it has ended: see `keep`."""
        self.kept = False
        """It lives on when the handler that it was accepted for has returned."""
        self.when_closed: Callable[[], None] = _nothing
        """Called when it is about to be closed on this side, as long as the socket is there."""
        self.greet_by = math.inf
        """When an accepted connection must have finished its handshake, on trio's clock."""
        self.hmac_key = hmac_key
        self._reads = 0
        self._out: list[Body] = []
        self._sending = False
        self._drained: trio.Event | None = None
        self._poll: select.poll | None = None
        self.can_wait = type(sock) is socket.socket
        """Whether there is `receive_within`: not where somebody has to decrypt."""
        self._wait_flag = 0
        """Of every read and write that must not wait, on a socket that the kernel waits at; see `_let_wait`."""
        self._longest_s = 0.0
        """How long it waits."""
        self._awaited = False
        """A task of the loop waits for the socket, or has done so."""
        self.in_pieces: Callable[[Message], Outgoing | None] | None = None
        """Takes over messages with bodies above 256 KiB; None when they must leave as they are."""
        self.queued = 0
        """Bytes handed over for sending so far."""
        self.sent = 0
        """Bytes the kernel took so far: a message whose last byte is beyond this cannot have run."""

    def __repr__(self) -> str:
        return f"<Connection to {self.peer}{' broken' if self.broken else ''}>"

    @property
    def sock(self) -> StreamSocket:
        """The socket, for looking at."""
        return self._sock

    @property
    def codec(self) -> Codec:
        """The protocol spoken; known once the first six bytes came.

        Raises:
            ConnectionClosedError: not known yet.
        """
        codec = self.decoder.codec
        if codec is None:
            raise ConnectionClosedError("the peer has not said which protocol it speaks")
        return codec

    async def receive(self) -> Event | None:
        """Wait for the next message, or the next piece of a large one.

        Returns:
            The event; None when the peer closed between two messages.

        Raises:
            ProtocolError: the bytes are not a Pyro message, or end inside one.
            MessageTooLargeError: the announced size is over the limit; nothing of it was kept.
            SecurityError: the signature is missing, unexpected or wrong.
            ConnectionClosedError: reset, or closed by us.

        After any of these the connection is good for `finish` only. Cancelling is safe: no message is lost.
        """
        event = self.receive_nowait()
        return await self.receive_more() if event is None else event

    async def receive_more(self) -> Event | None:
        """Like `receive`, for callers who know that no event is complete yet."""
        event: Event | None = None
        try:
            while event is None:
                self._reads += 1
                if self._reads >= READS_PER_TURN:
                    self._reads = 0
                    await trio.lowlevel.checkpoint()
                try:
                    event = self._read_once()
                except BlockingIOError:
                    self._reads = 0
                    await self._wait(trio.lowlevel.wait_readable)
                    continue
                if self.ended:
                    return None
        except PyroError:
            self.broken = True
            raise
        return event

    def receive_available(self) -> Event | None:
        """Like `receive_more` without waiting: the next event, if some reads complete one.

        None says that there is nothing to read now, or that the peer has closed (``ended`` is True then), or that the
        message is a long one.
        """
        try:
            for _ in range(READS_FOR_ONE):
                event = self._read_once()
                if event is not None or self.ended:
                    return event
        except BlockingIOError:
            pass
        except PyroError:
            self.broken = True
            raise
        return None

    def _read_once(self) -> Event | None:
        """The event that one read completes. BlockingIOError: there is nothing to read."""
        decoder = self.decoder
        place = decoder.wanted_buffer() if decoder.collected is not None else None
        try:
            if place is not None:
                count = self._sock.recv_into(place, 0, self._wait_flag)
            else:
                data = self._sock.recv(RECEIVE_BYTES, self._wait_flag)
                count = len(data)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            self.ended = True
            decoder.eof()
            return None
        if place is None:
            return decoder.take(data)
        decoder.received(count)
        return decoder.next_event()

    def receive_within(self, seconds: float) -> Event | None:
        """`receive_available` where nothing of a message has come yet, but the thread itself waits for it.

        Raises:
            BlockingIOError: nothing came in that time.
        """
        try:
            data = self._wait_for_bytes(seconds)
            if data:
                return self.decoder.take(data)
            self.ended = True
            self.decoder.eof()
        except PyroError:
            self.broken = True
            raise
        return None

    def _wait_for_bytes(self, seconds: float) -> bytes:
        """Let the thread wait for bytes; empty at the end. BlockingIOError: there were none in that time, in whole
        ticks of the kernel."""
        if seconds != self._longest_s:
            self._let_wait(seconds)
        try:
            return self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._lost(error) from error

    def _let_wait(self, seconds: float) -> None:
        """From now on the socket is one that waits: to wait and to read is one system call then instead of two."""
        self._wait_flag = socket.MSG_DONTWAIT
        self._sock.setblocking(True)
        limit_wait(self._sock, seconds)
        self._longest_s = seconds

    @property
    def pending(self) -> bool:
        """Whether bytes are here that the kernel does not tell of any more: what was decrypted and not read."""
        sock = self._sock
        return type(sock) is TlsSocket and sock.pending

    def receive_nowait(self) -> Event | None:
        """The next event that is complete already, without reading from the socket; None when there is none."""
        return self.decoder.next_event()

    def fill_nowait(self) -> bool | None:
        """Take in what has arrived, without waiting. None: nothing had; False: the peer is gone."""
        try:
            data = self._sock.recv(RECEIVE_BYTES, self._wait_flag)
        except BlockingIOError:
            return None
        except OSError:
            return False
        self.decoder.feed(data)
        return bool(data)

    async def _wait(self, wait: Callable[[StreamSocket], Awaitable[None]]) -> None:
        self._awaited = True
        try:
            await wait(self._sock)
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> CommunicationError:
        if isinstance(error, trio.ClosedResourceError) or self._sock.fileno() < 0:
            return ConnectionClosedError("the connection was closed here")
        self.broken = self.ended = True
        return lost_connection(error, f"connection to {self.peer} lost: {reason_of(error)}")

    async def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            ConnectionClosedError: the peer is gone.
            ProtocolError, MessageTooLargeError: the message cannot be written in this protocol; nothing was sent.

        When cancelled, what has not left stays queued, and the next flush goes on with it: close the connection if
        the message must not be sent any more, for the peer may hold half of it.
        """
        self.queue(message)
        await self.flush()

    async def send_encoded(self, *buffers: Body) -> None:
        """Send bytes that are encoded already, in one piece. Errors and cancellation as with `send`."""
        self.queue_encoded(*buffers)
        await self.flush()

    def queue(self, message: Message) -> int | Outgoing:
        """Hand a message over for the next flush. Returns the count of `queued` bytes at its end, or what knows it.

        Raises:
            ProtocolError, MessageTooLargeError: the message cannot be written in this protocol.
        """
        codec = self.decoder.codec or self.codec
        if len(message.body) <= JOIN_BELOW or self.hmac_key is not None:
            if message.annotations and self.hmac_key is None:
                return self.queue_encoded(*codec.encode_buffers(message))
            data = codec.encode(message, hmac_key=self.hmac_key)
            self._out.append(data)
            self.queued += len(data)
            return self.queued
        if self.in_pieces is not None and len(message.body) > MAX_PIECE:
            outgoing = self.in_pieces(message)
            if outgoing is not None:
                return outgoing
        return self.queue_encoded(codec.encode_head(message, len(message.body)), *buffers_of(message.body))

    def queue_small(self, kind: int, serializer: str, seq: int, body: bytes) -> int:
        """As `queue`, for a message of these parts only, at most `JOIN_BELOW` bytes, where nothing is signed."""
        codec = self.decoder.codec or self.codec
        data = codec.encode_small(kind, serializer, 0, seq, body)
        self._out.append(data)
        self.queued += len(data)
        return self.queued

    def queue_bytes(self, data: bytes) -> int:
        """As `queue_encoded`, for one buffer that is not empty."""
        self._out.append(data)
        end = self.queued = self.queued + len(data)
        return end

    def queue_encoded(self, *buffers: Body) -> int:
        """Hand encoded bytes over for the next flush; see `queue`."""
        for buffer in buffers:
            size = len(buffer)
            if size:
                if size > JOIN_BELOW:
                    keep_freed_memory()  # the next one is made when this one has left
                self._out.append(buffer)
                self.queued += size
        return self.queued

    @property
    def unsent(self) -> bool:
        """Whether something is queued."""
        return bool(self._out)

    @property
    def flushing(self) -> bool:
        """Whether a task is sending what is queued."""
        return self._sending

    def flush_nowait(self) -> bool:
        """Send what the kernel takes at once. True when everything queued has left.

        Raises:
            ConnectionClosedError: the peer is gone.
        """
        out = self._out
        while out:
            if self.broken:
                raise ConnectionClosedError(f"connection to {self.peer} is broken")
            try:
                if len(out) == 1:
                    count = self._sock.send(out[0], self._wait_flag)
                else:
                    count = self._sock.sendmsg(out[:MAX_BUFFERS], (), self._wait_flag)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._lost(error) from error
            self.sent += count
            if self.sent == self.queued:
                out.clear()
            else:
                self._forget(count)
        return True

    def _forget(self, count: int) -> None:
        """Drop what was sent, which is less than everything."""
        out = self._out
        done = 0
        while count and count >= len(out[done]):
            count -= len(out[done])
            done += 1
        del out[:done]
        if count:
            out[0] = memoryview(out[0])[count:]

    async def flush(self) -> None:
        """Wait until the kernel took everything that was queued before. Errors and cancellation as with `send`."""
        if self.flush_nowait():
            return
        if self._sending:
            await self._wait_drained(self.queued)
            return
        self._sending = True
        try:
            await self._send_rest()
        finally:
            self._sending = False
            drained, self._drained = self._drained, None
            if drained is not None:
                drained.set()

    async def _send_rest(self) -> None:
        while self._out:
            await self._wait(trio.lowlevel.wait_writable)
            self.flush_nowait()
        if self.broken:  # closed between the wake-up and this line: nothing is queued, but not all of it left
            raise ConnectionClosedError("the connection was closed here")

    async def _wait_drained(self, end: int) -> None:
        """Another task is sending: wait for it."""
        while self.sent < end:
            if self.broken:
                raise ConnectionClosedError(f"connection to {self.peer} is broken")
            if not self._sending:
                await self.flush()
                return
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    async def receive_bytes(self, busy: BusyPoll) -> bytes:
        """Wait for bytes and take them past the decoder, where nothing can have come yet; empty at the end.

        Errors and cancellation as with `receive`.
        """
        if self.can_wait and (patience := busy.patience()):
            try:
                return self._wait_for_bytes(patience)
            except BlockingIOError:
                busy.waited_in_vain()
        self._awaited = True
        while True:
            try:
                if self.can_wait:
                    await busy.wait_in_loop(self._sock)
                else:
                    await trio.lowlevel.wait_readable(self._sock)
                return self._sock.recv(RECEIVE_BYTES, self._wait_flag)
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, OSError, ValueError) as error:
                raise self._lost(error) from error

    async def wait_readable(self) -> None:
        """Wait for bytes, or the end, which somebody else receives. Errors and cancellation as with `receive`."""
        await self._wait(trio.lowlevel.wait_readable)

    def peek(self) -> bool | None:
        """What waits on an idle connection: None nothing, True bytes, False that the peer is gone."""
        if self.broken:
            return False
        if self._poll is None and isinstance(self._sock, socket.socket):
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        if self._poll is not None and not self._poll.poll(0):  # no error has to be made to say so
            return None
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK | self._wait_flag))
        except BlockingIOError:
            return None
        except OSError:
            return False

    async def finish(self, *last: Body) -> None:
        """Send what is queued, and last words, and close such that the peer can read them.

        Closing with unread input would reset the connection, and the words could be lost: so what the peer still
        sends is read and dropped, for a second at most.

        Raises:
            ConnectionClosedError: the peer is gone.
        """
        self.queue_encoded(*last)
        self.broken = self._sock.fileno() < 0  # what came in may be rubbish; the peer can still be told so
        try:
            with trio.move_on_after(LINGER_S):
                await self.flush()
                self._sock.shutdown(socket.SHUT_WR)
                await self._drop_input()
        except OSError as error:
            raise self._lost(error) from error
        finally:
            self.close()

    async def _drop_input(self) -> None:
        while True:
            try:
                if not self._sock.recv(RECEIVE_BYTES, self._wait_flag):
                    return
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
            await trio.lowlevel.checkpoint()

    def keep(self) -> Callable[[], None]:
        """Let it live on when the handler that it was accepted for returns.

        Returns:
            To be called when it has ended and was closed, by whoever keeps it.
        """
        self.kept = True
        self.settled = _nothing
        release, self.release = self.release, _nothing
        return release

    def cut(self) -> None:
        """End the stream both ways, from any thread; the descriptor stays until whoever reads or sends finds out."""
        if isinstance(self._sock, TlsSocket):
            self._sock.cut()
            return
        with contextlib.suppress(OSError):  # it is over already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close at once. Tasks waiting in this connection get a ConnectionClosedError. Twice is fine."""
        self.broken = True
        if self._sock.fileno() >= 0:
            if self._awaited:
                trio.lowlevel.notify_closing(self._sock)
            when_closed, self.when_closed = self.when_closed, _nothing
            when_closed()
            self._sock.close()
        self._out.clear()


async def open_connection(
    where: Uri | str, *, version: int = 502, settings: Settings | None = None, collect: int | None = None
) -> Connection:
    """Connect, without any handshake.

    Args:
        where: a Uri with a place, or a location text such as ``localhost:4711``.
        version: the protocol to speak, 48 or 502.
        collect: bodies up to this size arrive as one Message; larger ones in pieces. None collects everything.

    Raises:
        ConnectionClosedError, TimeoutError, AuthenticationError: as `open_socket`.
        ProtocolError: there is no such protocol, or nobody speaks TLS there.
    """
    settings = settings or Settings()
    codec = codec_for(version)
    sock = await open_socket(where, settings)
    decoder = Decoder(
        codec,
        max_message=settings.max_message_bytes,
        max_annotations=settings.max_annotations,
        collect=settings.max_message_bytes if collect is None else collect,
        hmac_key=settings.hmac_key if version == 48 else None,
        tap=wire_log(settings, partial(peer_text, sock)),
    )
    hmac_key = settings.hmac_key if version == 48 else None
    return Connection(sock, decoder, hmac_key=hmac_key, address=_address_of(sock))


def _address_of(sock: StreamSocket) -> Any:
    """Where the other side is; None if it is gone already."""
    try:
        return sock.getpeername()
    except OSError:
        return None
