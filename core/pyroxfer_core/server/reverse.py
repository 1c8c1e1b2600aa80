"""Calls in the reverse direction, seen by the daemon: objects of a client, called on the connection that it made.

The client says which location its own daemon has; proxies for objects there that arrive over its connection are then
led back over it, while it lasts. So a callback needs no second connection, and reaches clients behind a firewall.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..client.heartbeat import watch
from ..client.link import Link
from ..client.waiter import Waiter
from ..errors import ConnectionClosedError, Outcome, ProtocolError, PyroError
from ..objects.expose import Metadata
from ..serializers.vocabulary import ProxyState
from ..uri import Uri
from ..wire.message import Message
from ..wire.pieces import Outgoing
from ..wire.session import ClientSession, State

if TYPE_CHECKING:
    from .peer import Peer

MAX_LOCATIONS: Final = 16
"""Locations that one client may name."""
MAX_LOCATION: Final = 300
"""Bytes of one."""


class BackLink(Link):
    """What a proxy calls on: one object at the other end of a connection that somebody else reads."""

    def __init__(self, calls: ReverseCalls, uri: Uri, metadata: Metadata | None) -> None:
        peer = calls.peer
        super().__init__(peer.connection, calls.session, peer.context())
        self.uri, self.object_id, self.metadata = uri, str(uri.object), metadata
        self.writer = self.serializer(peer.settings.serializer or "msgpack")
        self._calls = calls
        self._reading = True
        self._closed = False
        self._mine: set[Waiter] = set()

    @property
    def usable(self) -> bool:
        """Whether a new call may be sent."""
        open_ = not self._closed and not self.connection.broken and self.session.state is State.OPEN
        return open_ and self._calls.lead_to(self.uri)

    def _queue(self, waiter: Waiter | None, message: Message) -> int | Outgoing:
        if not self.usable:
            raise ConnectionClosedError("the connection of the client was lost", outcome=Outcome.NOT_SENT)
        return super()._queue(waiter, message)

    def post(self, message: Message) -> Waiter:
        """Queue a call; see `Link.post`."""
        waiter = super().post(message)
        self._mine.add(waiter)
        return waiter

    async def wait(self, waiter: Waiter) -> Message:
        """Wait for the answer; see `Link.wait`."""
        try:
            return await super().wait(waiter)
        finally:
            self._mine.discard(waiter)

    def take(self, message: Message) -> None:
        """An answer came. Raises ProtocolError when it answers nothing."""
        self._take(message)

    def _fail(self, error: PyroError) -> None:
        if not self._closed or self.connection.broken:  # a proxy that was released leaves the connection alone
            super()._fail(error)

    def close(self) -> None:
        """Make no more calls. Those in flight end with a ConnectionClosedError; the connection goes on."""
        self._closed = True
        error = ConnectionClosedError("the proxy was closed")
        for waiter in list(self._mine):
            waiter.abandoned = True
            self.finish(waiter, error)


class ReverseCalls:
    """The calls of a daemon to one of its clients."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.session: ClientSession[Waiter] = ClientSession(0, 0)
        self.session.assume_reverse(peer.session.grant.reversed())
        self._locations: set[str] = set()
        self._root = BackLink(self, Uri(f"PYRO:x@{peer.address}"), None)
        if peer.settings.heartbeat_s:
            watch(self._root, peer.settings.heartbeat_s)

    def served(self, message: Message) -> None:
        """The client said what it serves.

        Raises:
            ProtocolError: it said too much.
        """
        location = bytes(message.body).decode("utf-8", "replace")
        if not location:
            self._locations.clear()
            return
        if len(message.body) > MAX_LOCATION or len(self._locations) >= MAX_LOCATIONS:
            raise ProtocolError(f"a client says that it serves {len(self._locations) + 1} locations")
        self._locations.add(location)

    def take(self, message: Message) -> None:
        """A RESULT came. Raises ProtocolError when it answers nothing."""
        self._root.take(message)

    def alive(self) -> None:
        """The client gave a sign of life."""
        self._root.pulse.heard()

    def lead(self, proxy: Any, state: ProxyState) -> None:
        """Have a proxy that came from the client call on its connection, if the object is there."""
        uri = proxy._pyroUri
        if uri.protocol == "PYRO" and self.lead_to(uri):
            known = state.methods or state.attrs
            metadata = Metadata(state.methods, state.oneway, state.attrs) if known else None
            self.peer.daemon.lead_back(proxy, partial(self.link_to, uri, metadata))

    def link_to(self, uri: Uri, metadata: Metadata | None) -> BackLink | None:
        """The way to an object of the client; None when that way is closed."""
        if self.peer.connection.broken or not self.lead_to(uri):
            return None
        return BackLink(self, uri, metadata)

    def lead_to(self, uri: Uri) -> bool:
        """Whether the client serves what is there."""
        return uri.location in self._locations

    def end(self) -> None:
        """The connection is over."""
        self._locations.clear()
        self._root.give_up(ConnectionClosedError(f"{self.peer.address} left"))
