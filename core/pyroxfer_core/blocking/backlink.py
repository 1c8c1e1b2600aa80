"""Calls of threads to an object of a client, on the connection that the client made to this daemon."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from ..client.waiter import Waiter
from ..errors import CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from ..objects.expose import Metadata
from ..serializers.base import Serializer
from ..wire.features import Feature, Grant
from ..wire.message import Message
from ..wire.session import ClientSession

if TYPE_CHECKING:
    from ..server.reverse import BackLink


class BlockingBackLink:
    """A `BlockingLink` without a socket of its own: the daemon's loop sends and receives for it.

    Args:
        inner: the way, in the daemon's loop.
        token: of that loop.
    """

    def __init__(self, inner: BackLink, token: trio.lowlevel.TrioToken) -> None:
        self._inner = inner
        self._token = token
        self.version = inner.version
        self.object_id = inner.object_id
        self.location = inner.uri.location or ""
        self.metadata: Metadata | None = inner.metadata
        self.plain_methods: frozenset[str] = frozenset()
        self.response: Any = None
        self.welcome: Message | None = None
        self.lent = self.released = self.forsaken = False
        self.first_seq = inner.first_seq

    @property
    def session(self) -> ClientSession[Waiter]:
        """Of the calls in this direction."""
        return self._inner.session

    @property
    def grant(self) -> Grant:
        """What was agreed with the client."""
        return self._inner.grant

    @property
    def preferred(self) -> str:
        """The serializer for the client when the user asks for none."""
        return "msgpack" if Feature.TYPED in self._inner.grant else "serpent"

    @property
    def serializers(self) -> dict[str, Serializer]:
        """Those made so far; see `serializer`."""
        return {}

    @property
    def usable(self) -> bool:
        """Whether new calls may be sent."""
        return self._inner.usable

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return not self._inner.usable

    @property
    def sock(self) -> Any:
        """The socket, for looking at."""
        return self._inner.connection.sock

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for the client."""
        return self._inner.serializer(name)

    def call(self, message: Message, deadline: float | None) -> Message:
        """Send a call and wait for its RESULT; as `BlockingLink.call`."""
        answer: Message = self._in_loop(self._call, message, deadline)
        return answer

    async def _call(self, message: Message, deadline: float | None) -> Message:
        waiter = self._inner.post(message)
        with trio.move_on_after(_left(deadline)):
            return await self._inner.wait(waiter)
        outcome = self._inner.outcome_at(waiter.end)
        raise TimeoutError(f"the call took too long ({outcome.value})", outcome=outcome)

    def send_oneway(self, message: Message, deadline: float | None = None) -> None:
        """Send a call that has no answer. Errors have outcome NotSent."""
        self._in_loop(self._send_oneway, message, deadline)

    async def _send_oneway(self, message: Message, deadline: float | None) -> None:
        end = self._inner.post_oneway(message)
        with trio.move_on_after(_left(deadline)):
            await self._inner.send_oneway(end)
            return
        raise TimeoutError("the call took too long to leave", outcome=self._inner.outcome_at(end))

    def try_oneway(self, message: Message) -> None:
        """Send a call that has no answer, some time soon: for finalizers."""
        try:
            self._token.run_sync_soon(self._post_quietly, message)
        except trio.RunFinishedError:
            pass  # nobody is there to be told

    def _post_quietly(self, message: Message) -> None:
        try:
            self._inner.post_oneway(message)
            self._inner.connection.flush_nowait()
        except CommunicationError:
            pass  # the connection is gone

    def _in_loop(self, run: Callable[[Message, float | None], Awaitable[Any]], *args: Any) -> Any:
        try:
            return trio.from_thread.run(run, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise ConnectionClosedError("the daemon stopped while it called back", outcome=Outcome.UNKNOWN) from None

    def close(self) -> None:
        """Make no more calls here; the connection goes on."""
        try:
            self._token.run_sync_soon(self._inner.close)
        except trio.RunFinishedError:
            pass


def _left(deadline: float | None) -> float:
    return float("inf") if deadline is None else max(deadline - time.monotonic(), 0)
