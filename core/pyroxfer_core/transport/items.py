"""Sending the items of one stream: as many in a message as there are, in order, with the credit of the reader."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import trio

from ..errors import PyroError
from ..serializers.base import Serializer
from ..wire.message import Body, Message, MessageType
from ..wire.pieces import MAX_PIECE, Outgoing
from ..wire.streaming import Credit, EndOfItems
from .connection import Connection
from .resume import resumed
from .turns import TurnSender

ROUND: Final = 64
"""Items that are taken from an iterator before anything else gets a turn."""
ROUND_S: Final = 0.05
"""How long a plain iterator may have a thread before others get it."""
_MAX_BATCH: Final = MAX_PIECE // 4
_END: Final = object()


class ItemSender:
    """What was fetched of a stream and has to leave.

    Args:
        number: of the stream.
        flush_soon: sees that what is queued leaves although nobody waits for it.
        turns: sends items above 256 KiB in pieces; None where the peer takes none.
        credit: what the reader gave already.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        serializer: Serializer,
        flush_soon: Callable[[], None],
        turns: Callable[[], TurnSender] | None,
        credit: Credit | None = None,
    ) -> None:
        self.number = number
        self.credit = Credit() if credit is None else credit
        self.fetched: deque[Any] = deque()
        """Items that were not sent yet; a thread may add to it."""
        self.error: Exception | None = None
        """Why an item could not be written: the stream ends with it."""
        self._connection = connection
        self._serializer = serializer
        self._flush_soon = flush_soon
        self._turns = turns
        self._large: Message | None = None
        """An item that leaves in pieces; what follows waits for it."""
        self._item_size = 0
        """Bytes of an item, as far as they went until now."""

    @property
    def room(self) -> int:
        """Items to fetch now: one at a time until it is known how large they are."""
        by_size = self.credit.size // self._item_size if self._item_size else 1
        return max(1, min(self.credit.items, ROUND, by_size))

    async def fetch(self, iterator: AsyncIterator[Any]) -> None:
        """Take some items. Those that are there without waiting are sent together; before a wait they leave.

        Raises:
            EndOfItems: there are no more; what was fetched is still to be sent.
            whatever the iterator raises.
        """
        for _ in range(self.room):
            step = _next_of(iterator)
            try:
                request = step.send(None)
            except StopIteration as finished:
                item = finished.value
            else:
                self.send_nowait()
                item = await resumed(step, request)
            self.fetched.append(item)

    async def fetch_in_thread(self, iterator: Iterator[Any], run: Callable[..., Awaitable[bool]]) -> None:
        """`fetch` from a plain iterator: each item leaves as soon as it was given, even if the next one takes long.

        Args:
            run: runs a function in a thread. When it is cancelled, the iterator is left after its next item.
        """
        stop = threading.Event()
        try:
            ended = await run(self._take, iterator, self.room, stop, trio.lowlevel.current_trio_token())
        finally:
            stop.set()
        if ended:
            raise EndOfItems

    def _take(
        self, iterator: Iterator[Any], room: int, stop: threading.Event, token: trio.lowlevel.TrioToken
    ) -> bool:
        """In a thread. Whether the iterator has ended."""
        fetched, until = self.fetched, time.monotonic() + ROUND_S
        for _ in range(room):
            item = next(iterator, _END)
            if item is _END:
                return True
            fetched.append(item)
            if stop.is_set() or time.monotonic() > until:
                break
            token.run_sync_soon(self.send_nowait, idempotent=True)
        return False

    def send_nowait(self) -> None:
        """Queue what was fetched, as far as it is small, and let it leave."""
        connection = self._connection
        if connection.broken:
            return
        while self._large is None and self.error is None and (message := self._next_message()) is not None:
            if self._leaves_in_pieces(message):
                self._large = message
                return
            connection.queue(message)
        try:
            if not connection.flush_nowait():
                self._flush_soon()
        except PyroError:
            pass  # the task that reads will find out

    async def send_all(self) -> None:
        """Send what was fetched, up to an item that cannot be written, and wait until it has left.

        Raises:
            ConnectionClosedError: the peer is gone.
        """
        while self.error is None:
            message, self._large = self._large, None
            message = message or self._next_message()
            if message is None:
                break
            await self.send(message)
        self.fetched.clear()

    async def send(self, message: Message) -> None:
        """Send a message of this stream. Errors as `send_all`."""
        connection = self._connection
        if self._turns is not None and self._leaves_in_pieces(message):
            await self._turns().send(Outgoing(message, connection.codec))
        else:
            connection.queue(message)
            await connection.flush()

    def _leaves_in_pieces(self, message: Message) -> bool:
        return len(message.body) > MAX_PIECE and self._turns is not None

    def _next_message(self) -> Message | None:
        """ITEMS with what was fetched, one item at least; None when there is none, or one cannot be written."""
        fetched = self.fetched
        if not fetched:
            return None
        items = [fetched.popleft() for _ in range(len(fetched))]
        body = self._written(items)
        while body is None and self.error is None:
            half = len(items) // 2
            fetched.extendleft(reversed(items[half:]))
            items = items[:half]
            body = self._written(items)
        if body is None:
            return None
        self.credit.use(len(items), len(body))
        self._item_size = max(1, len(body) // len(items))
        return Message(MessageType.ITEMS, self.number, self._serializer.name, 0, body)

    def _written(self, items: list[Any]) -> Body | None:
        """The body; None when it has to be tried with fewer items."""
        try:
            body = self._serializer.dumps(items)
        except Exception as error:
            if len(items) == 1:
                self.error = error
            return None
        return body if len(items) == 1 or len(body) <= _MAX_BATCH else None


async def _next_of(iterator: AsyncIterator[Any]) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        raise EndOfItems from None
