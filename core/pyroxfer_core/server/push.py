"""Item streams that are pushed to a peer of ours, as far as it gave credit."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import PyroError
from ..objects.context import current_context_var
from ..transport.faults import part
from ..wire.message import Body, Message, MessageType
from ..wire.pieces import MAX_PIECE, Outgoing
from ..wire.streaming import Credit, end_message
from .execute import Job, failure
from .streams import EndOfStream, terminated
from .waits import resumed

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger("pyroxfer.server")

ROUND: Final = 64
"""Items that are taken from an iterator before anything else gets a turn."""
ROUND_S: Final = 0.05
"""How long a plain iterator may have a thread before others get it."""
_END: Final = object()


class PushedStreams:
    """The streams of one connection that may be pushed, by number."""

    def __init__(self, peer: Peer, nursery: trio.Nursery) -> None:
        self._peer = peer
        self._nursery = nursery
        self._streams: dict[int, _Pushed] = {}
        self._last = 0

    def offer(self, stream_id: str, job: Job) -> int | None:
        """A number for a new stream; None when there is none left."""
        if len(self._streams) >= 0xFFFF:
            return None
        number = (self._last + 1) & 0xFFFF
        while number in self._streams:
            number = (number + 1) & 0xFFFF
        self._last = number
        pushed = self._streams[number] = _Pushed(self._peer, job, stream_id, number)
        self._peer.streams.when_closed(stream_id, partial(self._closed, pushed))
        return number

    def _closed(self, pushed: _Pushed) -> None:
        """The stream is not in the table any more, whatever ended it."""
        if pushed.running:
            pushed.wake()
        else:
            self._streams.pop(pushed.number, None)

    def credit(self, message: Message) -> None:
        """Take a CREDIT.

        Raises:
            ProtocolError: it is malformed.
        """
        pushed = self._streams.get(message.seq)
        if pushed is None:
            self._peer.connection.queue(self._unknown(message.seq))
            return
        pushed.credit.add(message)
        if pushed.running:
            pushed.wake()
        else:
            pushed.running = True
            self._nursery.start_soon(self._push, pushed)

    def _unknown(self, number: int) -> Message:
        """The end of a stream that is not there any more; a reader that knows its end by now takes no notice."""
        request = Message(MessageType.ITEMS, number, "marshal", 0, b"")
        answer = failure(self._peer, request, None, terminated(), dispatched=True)
        assert answer is not None, "of what is no one-way call"
        answer.type = MessageType.ITEMS
        return answer

    def stop(self, number: int) -> None:
        """The reader has left."""
        pushed = self._streams.get(number)
        if pushed is None:
            self._peer.connection.queue(end_message(number))
        elif not pushed.stopped:
            pushed.stopped = True
            self._nursery.start_soon(self._close, pushed)

    async def _close(self, pushed: _Pushed) -> None:
        await self._peer.streams.close(pushed.stream_id)
        if not pushed.running:
            self._peer.connection.queue(end_message(pushed.number))
            self._peer.flush_soon()

    async def _push(self, pushed: _Pushed) -> None:
        try:
            await pushed.run()
        except PyroError as error:
            log.debug("a stream to %s could not be pushed: %s", self._peer.address, error)
            self._peer.close()
        except BaseException as error:  # an iterator's wish to end the process, for instance
            travelling, _ = part(error)
            if travelling is not None:
                raise travelling from None
            log.error(
                "an item stream to %s failed such that its connection is closed", self._peer.address, exc_info=error
            )
            self._peer.close()
        finally:
            self._streams.pop(pushed.number, None)


class _Pushed:
    """One stream, and the task that pushes it."""

    def __init__(self, peer: Peer, job: Job, stream_id: str, number: int) -> None:
        self.stream_id = stream_id
        self.number = number
        self.credit = Credit()
        self.running = False
        self.stopped = False
        self._peer = peer
        self._job = job
        self._fetched: deque[Any] = deque()
        """Items that were not sent yet; a thread may add to it."""
        self._large: Message | None = None
        """An item that leaves in pieces; what follows waits for it."""
        self._error: Exception | None = None
        self._item_size = 0
        """Bytes of an item, as far as they went until now."""
        self._waiting: trio.Event | None = None
        self._token = trio.lowlevel.current_trio_token()

    def wake(self) -> None:
        """There is credit, or the stream was closed."""
        if self._waiting is not None:
            self._waiting.set()

    async def run(self) -> None:
        """Push until the stream ends. Every item that was fetched leaves before the end, or the error, does."""
        current_context_var.set(self._job)
        streams = self._peer.streams
        ending: Exception | None = None
        while ending is None:
            while not self.credit and self.stream_id in streams and not self.stopped:
                self._waiting = trio.Event()
                await self._waiting.wait()
            try:
                await streams.fetch(self.stream_id, self._peer, self._fetch)
            except Exception as error:
                ending = error
            await self._send_all()
            ending = self._error or ending
        await self._send_end(ending)

    async def _send_end(self, ending: Exception) -> None:
        await self._peer.streams.close(self.stream_id)
        answer: Message | None = None
        if not isinstance(ending, EndOfStream) and not self.stopped:
            answer = failure(self._peer, self._job.message, self._job.serializer, ending, dispatched=True)
        if answer is None:
            answer = end_message(self.number)
        answer.type, answer.seq, answer.annotations = MessageType.ITEMS, self.number, {}
        await self._send(answer)

    # --- fetching ------------------------------------------------------------------------------------------------

    async def _fetch(self, iterator: Any) -> None:
        """Take some items, at least one. EndOfStream: it has no more."""
        room = max(1, min(self.credit.items, ROUND, self._room_for()))
        if isinstance(iterator, AsyncIterator):
            await self._fetch_async(iterator, room)
            await trio.lowlevel.checkpoint()
        else:
            await self._fetch_in_thread(iterator, room)

    def _room_for(self) -> int:
        """Items that the credit of bytes is enough for: one, until it is known how large they are."""
        return self.credit.size // self._item_size if self._item_size else 1

    async def _fetch_async(self, iterator: AsyncIterator[Any], room: int) -> None:
        """Items that are there without waiting are sent together; before a wait they leave."""
        for _ in range(room):
            step = _next_of(iterator)
            try:
                request = step.send(None)
            except StopIteration as finished:
                item = finished.value
            else:
                self._send_nowait()
                item = await resumed(step, request)
            self._fetched.append(item)

    async def _fetch_in_thread(self, iterator: Any, room: int) -> None:
        """Each item leaves as soon as the iterator gave it, even if that then takes long to give the next."""
        stop = threading.Event()
        try:
            ended = await self._peer.pool.run_patiently(self._fetch_here, iterator, room, stop)
        finally:
            stop.set()
        if ended:
            raise EndOfStream

    def _fetch_here(self, iterator: Any, room: int, stop: threading.Event) -> bool:
        """In a thread. Whether the iterator has ended."""
        fetched, until = self._fetched, time.monotonic() + ROUND_S
        for _ in range(room):
            item = next(iterator, _END)
            if item is _END:
                return True
            fetched.append(item)
            if stop.is_set() or time.monotonic() > until:
                break
            self._token.run_sync_soon(self._send_from_thread, idempotent=True)
        return False

    def _send_from_thread(self) -> None:
        if not self._peer.connection.broken:
            self._send_nowait()

    # --- sending -------------------------------------------------------------------------------------------------

    def _send_nowait(self) -> None:
        """Queue what was fetched, as far as it is small, and let it leave."""
        connection = self._peer.connection
        while self._large is None and self._error is None and (message := self._next_message()) is not None:
            if self._leaves_in_pieces(message):
                self._large = message
                return
            connection.queue(message)
        try:
            if not connection.flush_nowait():
                self._peer.flush_soon()
        except PyroError:
            pass  # the task that reads will find out

    async def _send_all(self) -> None:
        """Send what was fetched, and wait until it has left."""
        while self._error is None:
            message, self._large = self._large, None
            message = message or self._next_message()
            if message is None:
                break
            await self._send(message)
        self._fetched.clear()

    async def _send(self, message: Message) -> None:
        connection = self._peer.connection
        if self._leaves_in_pieces(message):
            await self._peer.turns().send(Outgoing(message, connection.codec))
        else:
            connection.queue(message)
            await connection.flush()

    def _leaves_in_pieces(self, message: Message) -> bool:
        return len(message.body) > MAX_PIECE and self._peer.takes_pieces

    def _next_message(self) -> Message | None:
        """ITEMS with what was fetched, one item at least; None when there is none, or one cannot be written."""
        fetched = self._fetched
        if not fetched:
            return None
        items = [fetched.popleft() for _ in range(len(fetched))]
        body = self._written(items)
        while body is None and self._error is None:
            half = len(items) // 2
            fetched.extendleft(reversed(items[half:]))
            items = items[:half]
            body = self._written(items)
        if body is None:
            return None
        self.credit.use(len(items), len(body))
        self._item_size = max(1, len(body) // len(items))
        job = self._job
        return Message(MessageType.ITEMS, self.number, job.message.serializer, 0, body)

    def _written(self, items: list[Any]) -> Body | None:
        """The body; None when it has to be tried with fewer items."""
        try:
            body = self._job.serializer.dumps(items)
        except Exception as error:
            if len(items) == 1:
                self._error = error
            return None
        return body if len(items) == 1 or len(body) <= MAX_PIECE // 4 else None


async def _next_of(iterator: AsyncIterator[Any]) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        raise EndOfStream from None
