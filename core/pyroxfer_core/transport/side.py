"""Raw side streams: a byte stream of its own on a daemon's one port, for bulk data past the serializers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import trio

from ..errors import ConnectionClosedError
from ..settings import Settings
from ..uri import Uri
from ..wire.message import Body
from ..wire.preamble import encode_preamble
from .open import open_socket
from .sockets import StreamSocket, peer_text, reason_of
from .tls import TlsSocket

TURN_BYTES: Final = 1024 * 1024
"""At most this much per system call, so that an abort is answered soon."""
RECEIVE_BYTES: Final = 256 * 1024
TLS_TURN_BYTES: Final = 256 * 1024
"""What a thread reads of a file, or writes to one, at once under TLS: it stays in the processor's cache."""
PATIENCE_MS: Final = 5
"""How long a worker thread waits for the socket before it gives the wait back to the event loop."""
PIPE_BYTES: Final = 1024 * 1024
MAX_LARGE_PIPES: Final = 8
"""An ordinary user gets EPERM at the 65th large pipe of all processes together, so a process keeps few."""

_F_SETPIPE_SZ: Final = 1031
_NO_SPLICE: Final = {errno.EINVAL, errno.ENOSYS}
"""Not for this kind of socket, file or system."""
_LINE_IS_DOWN: Final = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETRESET}
"""Errors of the network that Python does not count among the errors of a connection."""


class SideStream:
    """A connected raw byte stream.

    A send or a file operation that ends with an exception, cancellation included, leaves the stream at an unknown
    position: abort it.

    Attributes:
        token: on the daemon's side, the 120 bytes the client opened the stream with; the handler must check them.
        peer: the other side, for people.
    """

    def __init__(self, sock: StreamSocket, *, token: bytes = b"", received: bytes = b"") -> None:
        self._sock = sock
        self.token = token
        self.peer = peer_text(sock)
        self._received = received
        self._busy = 0
        self._aborted = False

    def __repr__(self) -> str:
        return f"<SideStream to {self.peer}>"

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._sock.fileno()

    def take_received(self) -> bytes:
        """What came together with the preamble, for somebody who goes on with the descriptor."""
        data, self._received = self._received, b""
        return data

    async def _retry(self, operation: Callable[..., Any], *args: Any, wait: Callable[[Any], Awaitable[None]]) -> Any:
        """Run a non-blocking system call, waiting as often as the socket is not ready."""
        while True:
            try:
                return operation(*args)
            except BlockingIOError:
                try:
                    await wait(self._sock)
                except trio.ClosedResourceError as error:
                    raise ConnectionClosedError("the side stream was closed here") from error
            except OSError as error:
                if self._sock.fileno() < 0:
                    raise ConnectionClosedError("the side stream was closed here") from error
                raise ConnectionClosedError(f"side stream to {self.peer} lost: {reason_of(error)}") from error

    async def send_all(self, data: Body) -> None:
        """Send all bytes. Raises ConnectionClosedError when the peer is gone."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            count = await self._retry(self._sock.send, rest[:TURN_BYTES], wait=trio.lowlevel.wait_writable)
            rest = rest[count:]

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """Between 1 and ``max_bytes`` bytes; empty at the end of the stream. Cancelling is safe."""
        await trio.lowlevel.checkpoint()
        if self._received:
            data, self._received = self._received[:max_bytes], self._received[max_bytes:]
            return data
        data = await self._retry(self._sock.recv, max_bytes, wait=trio.lowlevel.wait_readable)
        return bytes(data)

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill (part of) the buffer; the number of bytes, 0 at the end of the stream."""
        if self._received:
            data = await self.receive_some(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        await trio.lowlevel.checkpoint()
        return int(await self._retry(self._sock.recv_into, buffer, wait=trio.lowlevel.wait_readable))

    async def receive_exactly(self, count: int) -> bytes:
        """Exactly ``count`` bytes.

        Raises:
            ConnectionClosedError: the stream ended before.
        """
        data = bytearray()
        while len(data) < count:
            part = await self.receive_some(min(count - len(data), RECEIVE_BYTES))
            if not part:
                raise ConnectionClosedError(f"side stream to {self.peer} ended after {len(data)} of {count} bytes")
            data += part
        return bytes(data)

    # Files are touched in worker threads only: a disk that is slow, or hangs, holds up this stream and nobody else.

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one step in a worker thread. Cancelling waits for its end; aborting the stream hastens it."""
        if self._sock.fileno() < 0 or self._aborted:
            raise ConnectionClosedError("the side stream was closed here")
        self._busy += 1
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=_limiter())
        except OSError as error:
            if self._aborted:
                raise ConnectionClosedError("the side stream was closed here") from error
            if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _LINE_IS_DOWN:
                raise ConnectionClosedError(f"side stream to {self.peer} lost: {reason_of(error)}") from error
            raise
        finally:
            self._busy -= 1
            if self._aborted and not self._busy:
                self._close()

    async def _wait(self, wait: Callable[[Any], Awaitable[None]]) -> None:
        if self._aborted:
            raise ConnectionClosedError("the side stream was closed here")
        try:
            await wait(self._sock)
        except trio.ClosedResourceError as error:
            raise ConnectionClosedError("the side stream was closed here") from error

    async def send_file(
        self, fd: int, offset: int, count: int, *, left: Callable[[int], object] | None = None
    ) -> int:
        """Send part of a file without copying it through this process.

        Args:
            left: told after each step of how many more bytes the system has taken.

        Returns:
            Bytes sent; fewer than ``count`` only when the file ended.

        Raises:
            ConnectionClosedError: the peer is gone.
            OSError: the file cannot be read.
        """
        tell = left or _nobody
        done = 0
        while done < count:
            sent, over = await self._in_thread(self._send_step, fd, offset + done, count - done)
            done += sent
            if sent:
                tell(sent)
            if over:
                break
            if done < count:
                await self._wait(trio.lowlevel.wait_writable)
        self._check_aborted()
        return done

    def _send_step(self, fd: int, offset: int, count: int) -> tuple[int, bool]:
        """Send what the socket takes; how much, and whether the file ended. Blocking."""
        return _send_file(self._sock.fileno(), fd, offset, count)

    def _receive_step(self, fd: int, offset: int, count: int) -> tuple[int, bool]:
        """Receive what the socket gives; how much, and whether it ended. Blocking."""
        return _splice_to_file(self._sock.fileno(), fd, offset, count)

    def _check_aborted(self) -> None:
        if self._aborted:
            raise ConnectionClosedError("the side stream was closed here")

    async def splice_to_file(
        self, fd: int, offset: int, count: int, *, arrived: Callable[[int], object] | None = None
    ) -> int:
        """Receive into part of a file, without copying through this process where the system can.

        Args:
            arrived: told after each step of how many more bytes are in the file, in order: they are there whatever
                becomes of the rest, an error and a cancellation included.

        Returns:
            Bytes received; fewer than ``count`` only when the stream ended.

        Raises:
            ConnectionClosedError: the stream broke.
            OSError: the file cannot be written (no space, for example).
        """
        tell = arrived or _nobody
        done = await self._write_received(fd, offset, count, tell)
        return done + await self._splice(fd, offset + done, count - done, tell)

    async def _write_received(self, fd: int, offset: int, count: int, arrived: Callable[[int], object]) -> int:
        """Bytes that came together with the preamble."""
        done = 0
        while self._received and done < count:
            data = await self.receive_some(count - done)
            await self._in_thread(_write_all, fd, data, offset + done)
            done += len(data)
            arrived(len(data))
        return done

    async def _splice(self, fd: int, offset: int, count: int, arrived: Callable[[int], object]) -> int:
        done = 0
        while done < count:
            place = (offset + done, count - done)
            try:
                moved, over = await self._in_thread(self._receive_step, fd, *place)
            except _CannotSplice:
                return done + await self._copy(fd, *place, arrived)
            done += moved
            if moved:
                arrived(moved)
            if over:
                break
            if done < count:
                await self._wait(trio.lowlevel.wait_readable)
        self._check_aborted()
        return done

    async def _copy(self, fd: int, offset: int, count: int, arrived: Callable[[int], object]) -> int:
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        done = 0
        while done < count:
            got = await self.receive_into(buffer[: count - done])
            if got == 0:
                break
            await self._in_thread(_write_all, fd, buffer[:got], offset + done)
            done += got
            arrived(got)
        return done

    def abort(self) -> None:
        """Close at once; what was not sent yet may be lost. Twice is fine."""
        if self._sock.fileno() >= 0 and not self._aborted:
            self._aborted = True
            trio.lowlevel.notify_closing(self._sock)
            if self._busy:  # the thread ends at once, and whoever waits for it closes the socket
                self._cut()
            else:
                self._close()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self._sock.close()

    async def aclose(self) -> None:
        """Close; bytes the kernel took are still delivered."""
        self.abort()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> SideStream:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()


class TlsSideStream(SideStream):
    """A side stream under TLS: bytes pass through this process, which has to encrypt them."""

    _sock: TlsSocket

    def __init__(self, sock: TlsSocket, *, token: bytes = b"", received: bytes = b"") -> None:
        super().__init__(sock, token=token, received=received)
        self._turn = threading.Lock()

    async def _retry(self, operation: Callable[..., Any], *args: Any, wait: Callable[[Any], Awaitable[None]]) -> Any:
        return await super()._retry(self._alone, operation, *args, wait=wait)

    def _alone(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Records are read while a file is sent, and OpenSSL takes one thread at a time for a connection."""
        with self._turn:
            return operation(*args)

    async def _wait(self, wait: Callable[[Any], Awaitable[None]]) -> None:
        if self._sock.failed:  # nothing more may come to wake us, and the next step says what it is
            await trio.lowlevel.checkpoint()
        else:
            await super()._wait(wait)

    def _send_step(self, fd: int, offset: int, count: int) -> tuple[int, bool]:
        buffer = memoryview(bytearray(min(TLS_TURN_BYTES, count)))
        done = 0
        while done < count:
            got = os.preadv(fd, [buffer[: count - done]], offset + done)
            if not got:
                return done, True
            sent = self._send_patiently(buffer[:got])
            done += sent
            if sent < got:
                break
        return done, False

    def _send_patiently(self, data: memoryview) -> int:
        done = 0
        while done < len(data):
            try:
                done += self._alone(self._sock.send, data[done:])
            except BlockingIOError:
                if not _ready(self._sock.fileno(), select.POLLOUT):
                    break
        return done

    def _receive_step(self, fd: int, offset: int, count: int) -> tuple[int, bool]:
        buffer = memoryview(bytearray(min(TLS_TURN_BYTES, count)))
        done = 0
        while done < count:
            try:
                got = self._alone(self._sock.recv_into, buffer[: count - done])
            except BlockingIOError:
                if not _ready(self._sock.fileno(), select.POLLIN):
                    break
                continue
            except OSError:
                if done:
                    break  # the next step finds it again
                raise
            if not got:
                return done, True
            _write_all(fd, buffer[:got], offset + done)
            done += got
        return done, False

    def _cut(self) -> None:
        self._sock.cut()

    def _close(self) -> None:
        """Without a goodbye, so that the peer sees a stream that was cut."""
        self._sock.drop()

    async def aclose(self) -> None:
        """Say goodbye and close; what a thread is at work on is cut."""
        if self._busy:
            self.abort()
        elif self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()


def side_stream_on(sock: StreamSocket, received: bytes = b"") -> SideStream:
    """A side stream over a connected socket of either kind; ``received`` has been read from it already."""
    if isinstance(sock, TlsSocket):
        return TlsSideStream(sock, received=received)
    return SideStream(sock, received=received)


_file_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("pyroxfer-side-streams")


def _limiter() -> trio.CapacityLimiter:
    """One thread for each stream that moves bytes, and no more: streams do not wait for each other's disks."""
    try:
        return _file_limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(math.inf)
        _file_limiter.set(limiter)
        return limiter


def _ready(descriptor: int, what: int) -> bool:
    """Wait a moment for a socket: on a fast line the next bytes are there sooner than another thread could be."""
    watch = select.poll()
    watch.register(descriptor, what)
    return bool(watch.poll(PATIENCE_MS))


def _send_file(descriptor: int, fd: int, offset: int, count: int) -> tuple[int, bool]:
    """Send what the socket takes; how much, and whether the file ended. Blocking."""
    done = 0
    while done < count:
        try:
            sent = os.sendfile(descriptor, fd, offset + done, min(TURN_BYTES, count - done))
        except BlockingIOError:
            if not _ready(descriptor, select.POLLOUT):
                break
        else:
            if sent == 0:
                return done, True
            done += sent
    return done, False


def _nobody(count: int) -> None:
    """Nobody wants to know what has arrived, or left."""


def _splice_to_file(descriptor: int, fd: int, offset: int, count: int) -> tuple[int, bool]:
    """Receive what the socket gives; how much, and whether it ended. An error after the first byte is left for the
    next call to find. Blocking."""
    done = 0
    with _borrowed_pipe() as pipe:
        while done < count:
            turn = min(pipe.size, count - done)
            try:
                moved = os.splice(descriptor, pipe.write_end, turn, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if not _ready(descriptor, select.POLLIN):
                    break
                continue
            except OSError as error:
                if done:
                    break
                if error.errno in _NO_SPLICE:
                    raise _CannotSplice from error
                raise
            if moved == 0:
                return done, True
            pipe.drain_to(fd, offset + done, moved)
            done += moved
    return done, False


class _CannotSplice(Exception):
    """This socket, file or system has no splice."""


class _Pipe:
    """A pipe for splicing; it goes back to the stock only when it is empty."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = 0
        try:
            self.size = fcntl.fcntl(self.write_end, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.size = 64 * 1024

    def drain_to(self, fd: int, offset: int, count: int) -> None:
        """Move ``count`` bytes out of the pipe into a file."""
        self.held = count
        while self.held:
            try:
                moved = os.splice(self.read_end, fd, self.held, offset_dst=offset)
            except OSError as error:
                if error.errno not in _NO_SPLICE:
                    raise
                data = os.read(self.read_end, self.held)  # the file's system cannot splice
                _write_all(fd, data, offset)
                moved = len(data)
            self.held -= moved
            offset += moved

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


_spare_pipes: list[_Pipe] = []


@contextlib.contextmanager
def _borrowed_pipe() -> Iterator[_Pipe]:
    if not hasattr(os, "splice"):
        raise _CannotSplice
    try:
        pipe = _spare_pipes.pop()
    except IndexError:
        pipe = _new_pipe()
    clean = False
    try:
        yield pipe
        clean = True
    finally:
        if clean and pipe.held == 0 and len(_spare_pipes) < MAX_LARGE_PIPES:
            _spare_pipes.append(pipe)
        else:
            pipe.close()


def _new_pipe() -> _Pipe:
    try:
        return _Pipe()
    except OSError as error:
        raise _CannotSplice from error


def _write_all(fd: int, data: Body, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count


async def open_side_stream(where: Uri | str, token: bytes, *, settings: Settings | None = None) -> SideStream:
    """Open a raw side stream to a daemon.

    Args:
        where: the daemon's Uri or location text.
        token: at most 120 bytes that tell the service what the stream is for.

    Raises:
        ProtocolError: the token is too long.
        ConnectionClosedError, TimeoutError, AuthenticationError: as `open_socket` (outcome NotSent).
    """
    preamble = encode_preamble(token)
    settings = settings or Settings()
    stream = side_stream_on(await open_socket(where, settings))
    try:
        await stream.send_all(preamble)
    except BaseException:
        stream.abort()
        raise
    return stream


SideStreamHandler = Callable[[SideStream], Awaitable[None]]
