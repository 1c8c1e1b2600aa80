"""Reading ahead of an item stream of a stock daemon, for threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..client.calls import DAEMON_OBJECT, CallOptions, cut_short, encode_call, read_reply
from ..errors import CommunicationError
from ..wire.message import Message
from .link import BlockingLink
from .streams import StreamIterator
from .waiting import Waiter

if TYPE_CHECKING:
    from .proxy import Proxy


class AheadIterator(StreamIterator):
    """The items of a remote iterator, with several requests on their way on a connection of its own.

    Stock daemons answer them in order. Items that were fetched and not read are lost when it is closed.
    """

    def __init__(self, proxy: Proxy, link: BlockingLink, stream_id: str, read_ahead: int) -> None:
        super().__init__(proxy, link, stream_id)
        self._read_ahead = read_ahead
        self._feed: BlockingLink | None = None
        self._waiting: deque[tuple[Waiter, Message]] = deque()

    def __next__(self) -> Any:
        link = self._link
        if link is None:
            raise StopIteration
        if link.closed:
            raise cut_short(link.location, released=link.released)
        try:
            return self._next()
        except StopIteration:
            self._link = None
            self._end()
            raise
        except BaseException:
            self.close()
            raise

    def _next(self) -> Any:
        proxy = self._proxy
        deadline = proxy._pyroDeadline()
        feed = self._feed
        if feed is None:
            feed = self._feed = proxy._pyroOpenPipeline(deadline)
        while len(self._waiting) < self._read_ahead:
            waiter, request = Waiter(), self._request(feed)
            feed.sending.post(waiter, request, deadline)
            self._waiting.append((waiter, request))
        waiter, request = self._waiting.popleft()
        answer = feed.reading.wait(waiter, request.seq, deadline)
        return read_reply(answer, feed.serializer(answer.serializer), feed.grant, proxy._pyroSettings)

    def _request(self, feed: BlockingLink) -> Message:
        serializer = feed.serializer(self._proxy._pyroSerializer or feed.preferred)
        method, settings = "get_next_stream_item", self._proxy._pyroSettings
        return encode_call(
            serializer, feed.grant, feed.version, DAEMON_OBJECT, method, [self._id], {}, 0, CallOptions(), settings
        )

    def _end(self) -> None:
        """The requests that are still on their way go with their connection."""
        self._waiting.clear()
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()

    def _leave(self, link: BlockingLink, *, patient: bool) -> None:
        self._end()
        try:
            super()._leave(link, patient=patient)
        except CommunicationError:
            pass  # the connection is gone, and the remote iterator with it
