"""A thread that reads a client's connection all the time, and what that makes possible: being called back on it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import ConnectionClosedError, ProtocolError, PyroError
from ..serializers.vocabulary import ProxyState, served_as
from ..server.callee import Callee
from ..transport.sockets import is_local
from ..wire.features import Grant
from ..wire.message import Message
from ..wire.scattered import buffers_of
from ..wire.session import ClientSession

if TYPE_CHECKING:
    from ..server.daemon import Daemon
    from .link import BlockingLink

MOST_WAITING: Final = 10_000
"""Messages from the other side that wait for the daemon's loop."""


class SharedConnection:
    """A `Connection` for tasks of a loop, of which threads are the owners."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link
        self._out: list[Any] = []
        self._sending = trio.Lock()
        self.peer = link.location
        self.is_local = is_local(link.sock)  # type: ignore[arg-type]  # it looks at addresses, which any kind has
        self.codec = link.codec
        self.queued = self.sent = 0

    @property
    def sock(self) -> Any:
        """The socket, for looking at."""
        return self._link.sock

    @property
    def broken(self) -> bool:
        """Whether nothing more can be sent."""
        return self._link.closed

    @property
    def unsent(self) -> bool:
        """Whether something is queued."""
        return bool(self._out)

    def queue(self, message: Message) -> int:
        """Hand a message over for the next flush. Errors as `Connection.queue`."""
        body = message.body
        self._out += [self.codec.encode_head(message, len(body)), *buffers_of(body)]
        self.queued = self.sent + sum(map(len, self._out))
        return self.queued

    def flush_nowait(self) -> bool:
        """Whether everything has left; here somebody else has to see to it."""
        return not self._out

    async def flush(self) -> None:
        """Send what is queued, in a thread: the socket is a blocking one.

        Raises:
            ConnectionClosedError: the peer is gone.
        """
        async with self._sending:
            buffers, self._out = self._out, []
            if buffers:
                await trio.to_thread.run_sync(self._link.sending.buffers, buffers)
                self.sent += sum(map(len, buffers))

    def close(self) -> None:
        """Close the link."""
        self._link.close()


class BackgroundLink:
    """What a `Callee` of a daemon's loop needs of a link that belongs to threads."""

    def __init__(self, link: BlockingLink, daemon: Daemon, home: trio.lowlevel.TrioToken) -> None:
        self._link = link
        self._home = home
        self._sender, self._receiver = trio.open_memory_channel[Message](MOST_WAITING)
        self.connection: Any = SharedConnection(link)
        self.callee = Callee(daemon, self)

    @property
    def grant(self) -> Grant:
        """What was agreed with the daemon at the other end."""
        return self._link.grant

    @property
    def session(self) -> ClientSession[Any]:
        """Of the calls of the client."""
        return self._link.session

    def put(self, message: Message) -> None:
        """Hand a message over to the daemon's loop, from any thread."""
        try:
            self._home.run_sync_soon(self._put, message)
        except trio.RunFinishedError:
            raise ConnectionClosedError("the daemon of this process has ended") from None

    def _put(self, message: Message) -> None:
        try:
            self._sender.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._link.close()  # too much at once, or nobody is there to answer

    def end(self) -> None:
        """Nothing more will come."""
        try:
            self._home.run_sync_soon(self._sender.close)
        except trio.RunFinishedError:
            pass

    async def read_for_others(self) -> None:
        """Hand on what comes, until the connection ends."""
        async with self._receiver, trio.open_nursery() as nursery:
            async for message in self._receiver:
                try:
                    self.callee.take(message)
                except PyroError:
                    self._link.close()
                    return
                if self.connection.unsent:
                    nursery.start_soon(self._flush)

    async def _flush(self) -> None:
        try:
            await self.connection.flush()
        except PyroError:
            self._link.close()


class Offers:
    """The objects of this process that the daemon at the other end of a link may call on it."""

    def __init__(self, link: BlockingLink) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._background: BackgroundLink | None = None
        self._over = False
        """Nothing more comes on the link."""

    def offer(self, value: object) -> ProxyState | None:
        """What stands for an object of a daemon of this process, which may be called over this link from now on.

        When the connection is lost, the call that it is for finds out.
        """
        state = served_as(value)
        if state is not None:
            daemon = value._pyroDaemon  # type: ignore[attr-defined]  # of our own making: `served_as` asked it
            with self._lock:
                home = None if daemon.is_guarded or self._over else daemon.home
                if home is not None and (self._background is None or self._background.callee.over):
                    self._background = self._begin(daemon, home)
                if self._background is not None and self._background.callee.daemon is daemon:
                    self._background.callee.offer(value._pyroId)  # type: ignore[attr-defined]  # a served object has one
        return state

    def _begin(self, daemon: Daemon, home: trio.lowlevel.TrioToken) -> BackgroundLink:
        """Let a daemon answer on the link. No error: in the middle of writing a value, nobody could go on."""
        background = BackgroundLink(self._link, daemon, home)
        try:
            self._link.sending.serves(daemon.published_location)
            home.run_sync_soon(daemon.begin_answering, background.callee)
        except (PyroError, trio.RunFinishedError):
            background.callee.over = True
        return background

    def take(self, message: Message) -> None:
        """A call from the other side, or its end.

        Raises:
            ProtocolError: nothing was offered yet.
            ConnectionClosedError: the daemon of this process has ended.
        """
        if self._background is None:
            raise ProtocolError("the daemon calls an object here, where none was offered")
        self._background.put(message)

    def end(self) -> None:
        """Nothing more will come: what is offered from now on would be waited for in vain."""
        with self._lock:
            self._over = True
            if self._background is not None:
                self._background.end()


def read_in_background(link: BlockingLink) -> None:
    """Start the thread that reads a link as long as it lives."""
    threading.Thread(target=_read_on, args=(link,), name="pyroxfer reader", daemon=True).start()


def _read_on(link: BlockingLink) -> None:
    try:
        link.reading.read_on()
    finally:
        if link.offers is not None:
            link.offers.end()
