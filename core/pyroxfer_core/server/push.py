"""Item streams that are pushed to a peer of ours, as far as it gave credit."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ..errors import PyroError
from ..objects.context import current_context_var
from ..transport.faults import part
from ..transport.items import ItemSender
from ..wire.message import Message, MessageType
from ..wire.streaming import EndOfItems, end_message
from .execute import Job, failure, hang_up
from .streams import terminated
from .workers import ThreadEndedError

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger(__name__)


class PushedStreams:
    """The streams of one connection that may be pushed, by number."""

    def __init__(self, peer: Peer, start_soon: Callable[..., None]) -> None:
        self._peer = peer
        self._start_soon = start_soon
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
            self._start_soon(self._push, pushed)

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
            self._start_soon(self._close, pushed)

    async def _close(self, pushed: _Pushed) -> None:
        await self._peer.streams.close(pushed.stream_id)
        if not pushed.running:
            self._peer.connection.queue(end_message(pushed.number))
            self._peer.flush_soon()

    async def _push(self, pushed: _Pushed) -> None:
        try:
            await pushed.run()
        except ThreadEndedError as error:
            hang_up(self._peer, error)
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
        turns = peer.turns if peer.takes_pieces else None
        self._sender = ItemSender(peer.connection, number, job.serializer, peer.flush_soon, turns)
        self.credit = self._sender.credit
        self.running = False
        self.stopped = False
        self._peer = peer
        self._job = job
        self._waiting: trio.Event | None = None

    def wake(self) -> None:
        """There is credit, or the stream was closed."""
        if self._waiting is not None:
            self._waiting.set()

    async def run(self) -> None:
        """Push until the stream ends. Every item that was fetched leaves before the end, or the error, does."""
        current_context_var.set(self._job)
        streams, sender = self._peer.streams, self._sender
        ending: Exception | None = None
        while ending is None:
            while not self.credit and self.stream_id in streams and not self.stopped:
                self._waiting = trio.Event()
                await self._waiting.wait()
            try:
                await streams.fetch(self.stream_id, self._peer, self._fetch)
            except Exception as error:
                ending = error
            await sender.send_all()
            ending = sender.error or ending
        if isinstance(ending, ThreadEndedError):  # its wish to end the process ends the connection
            raise ending
        await self._send_end(ending)

    async def _send_end(self, ending: Exception) -> None:
        await self._peer.streams.close(self.stream_id)
        answer: Message | None = None
        if not isinstance(ending, EndOfItems) and not self.stopped:
            answer = failure(self._peer, self._job.message, self._job.serializer, ending, dispatched=True)
        if answer is None:
            answer = end_message(self.number)
        answer.type, answer.seq, answer.annotations = MessageType.ITEMS, self.number, {}
        await self._sender.send(answer)

    async def _fetch(self, iterator: Any) -> None:
        """Take some items, at least one. EndOfItems: it has no more."""
        if isinstance(iterator, AsyncIterator):
            await self._sender.fetch(iterator)
            await trio.lowlevel.checkpoint()
        else:
            await self._sender.fetch_in_thread(iterator, self._peer.pool.run_iterator)
