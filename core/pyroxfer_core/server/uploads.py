"""Streams among the arguments of a call: iterators whose items the client sends as the handler reads them."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from ..errors import ConnectionClosedError, PyroError, SerializeError
from ..wire.inflate import inflate
from ..wire.message import Flags, Message
from ..wire.streaming import EndOfItems, Inbox, stop_message

if TYPE_CHECKING:
    from .peer import Peer


class ArgumentStream:
    """What a handler gets for an iterator that its caller passed: ``async for`` in coroutines, ``for`` in threads.

    Items come as they are read, at most 256 or 1 MiB ahead, and those of one message: a thread
    goes to the loop once for all of them. It ends with the call; reading on raises PyroError.

    Raises while iterating:
        the exception that ended the caller's iterator.
        ConnectionClosedError: the caller is gone.
    """

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer = peer
        self._inbox = Inbox(number)
        self._arrived: trio.Event | None = None
        self._fetched: deque[Any] = deque()
        self._ending: BaseException | None = None
        """What to raise after the items that were fetched."""
        self._lost = False

    def __repr__(self) -> str:
        return f"<ArgumentStream {self._inbox.number} from {self._peer.address}>"

    def take(self, message: Message) -> None:
        """ITEMS have arrived."""
        self._inbox.take(message)
        self._wake()

    def lose(self) -> None:
        """The connection is gone."""
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    def __aiter__(self) -> ArgumentStream:
        return self

    async def __anext__(self) -> Any:
        if not self._fetched:
            await self._fetch()
        return self._next()

    async def _fetch(self) -> None:
        """Wait until something has arrived, and take the items of one message, or the end."""
        inbox = self._inbox
        while not inbox.ready and self._ending is None:
            if self._lost:
                raise ConnectionClosedError("the caller whose stream this is has gone")
            self._give_credit()
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._ending is not None:
            return
        try:
            self._fetched.append(inbox.pop(self._read))
        except BaseException as error:
            self._ending = error
            return
        while inbox.partly_read:
            self._fetched.append(inbox.pop(self._read))
        self._give_credit()

    def _next(self) -> Any:
        """The next of the items that were fetched, or what ended them, which is told once."""
        if self._fetched:
            return self._fetched.popleft()
        ending, self._ending = self._ending, EndOfItems()
        if ending is None or isinstance(ending, EndOfItems):
            raise StopAsyncIteration from None
        raise ending

    def _give_credit(self) -> None:
        credit = self._inbox.credit_due()
        if credit is not None:
            self._send(credit)

    def _send(self, message: Message) -> None:
        connection = self._peer.connection
        if connection.broken:
            return
        connection.queue(message)
        try:
            if not connection.flush_nowait():
                self._peer.flush_soon()
        except PyroError:
            pass  # the task that reads will find out

    def _read(self, message: Message) -> Any:
        peer = self._peer
        body = message.body
        if message.flags & Flags.COMPRESSED:
            body = inflate(body, peer.settings.max_message_bytes)
        value = peer.serializer(message.serializer).loads(body)
        if not message.flags & Flags.EXCEPTION:
            return value
        if not isinstance(value, Exception):
            raise SerializeError("the caller's stream ended with something that is no exception")
        if isinstance(value, (StopIteration, StopAsyncIteration)):
            raise PyroError(f"the caller's stream ended with {type(value).__name__}")
        raise value

    async def aclose(self) -> None:
        """Want no more: the caller's iterator is closed."""
        if self._ending is None:
            self._ending = EndOfItems()
            self._fetched.clear()
            if self._inbox.started and not self._inbox.ended:
                self._send(stop_message(self._inbox.number))
        await trio.lowlevel.checkpoint()

    def __iter__(self) -> ArgumentStream:
        return self

    def __next__(self) -> Any:
        try:
            if not self._fetched:  # going to the loop takes longer than many an item
                trio.from_thread.run(self._fetch)
            return self._next()
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """`aclose` for threads."""
        trio.from_thread.run(self.aclose)


class ArgumentStreams:
    """The streams that one client sends. Each lives as long as the call that has it, or who kept it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._open: weakref.WeakValueDictionary[int, ArgumentStream] = weakref.WeakValueDictionary()

    def make(self, number: int) -> ArgumentStream:
        """The stream of an argument. May run in a thread.

        Raises:
            SerializeError: the number belongs to another one.
        """
        stream = ArgumentStream(self._peer, number)
        if self._open.setdefault(number, stream) is not stream:
            raise SerializeError(f"the number {number} belongs to a stream already")
        return stream

    def take(self, message: Message) -> None:
        """ITEMS have arrived; for a stream that nobody has any more they are dropped.

        Raises:
            ProtocolError: they were not asked for.
        """
        stream = self._open.get(message.seq)
        if stream is not None:
            stream.take(message)
            if message.flags & (Flags.EXCEPTION | Flags.ITEMSTREAM):
                self._open.pop(message.seq, None)

    def lose(self) -> None:
        """The connection is gone."""
        for stream in list(self._open.values()):
            stream.lose()
