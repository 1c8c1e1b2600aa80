"""Item streams: iterators that methods returned, fetched item by item."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import trio

from ..errors import PyroError
from ..transport.faults import part
from ..uri import Uri
from .workers import PoolBusyError, WorkerPool

T = TypeVar("T")

CLOSE_GRACE_S: Final = 1.0
"""How long the clean-up of an async generator may take."""
MAX_STREAMS: Final = 10_000
"""Streams of one daemon; beyond it calls that return one fail."""

PLAIN: Final = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, Uri}
)
"""Types of results that are certainly no streams."""
_END: Final = object()


def is_stream(value: Any) -> bool:
    """Whether a result is to be fetched item by item."""
    return type(value) not in PLAIN and isinstance(value, (Iterator, AsyncIterator))


class _Stream:
    __slots__ = ("closed", "fetching", "iterator", "lock", "lost_at", "owner", "started")

    def __init__(self, iterator: Any, owner: object, now: float) -> None:
        self.iterator = iterator
        self.owner = owner
        self.started = now
        self.lost_at: float | None = None
        self.lock = trio.Lock()
        self.fetching = trio.CancelScope()
        """Of the item that is being fetched, or was last: who closes the stream does not wait for it."""
        self.closed: Callable[[], None] | None = None
        """To be called when the stream is not in the table any more."""

    async def end(self) -> None:
        """Close the iterator, after who has it now has let go of it."""
        self.fetching.cancel()
        async with self.lock:
            await _close_iterator(self.iterator)


class StreamTable:
    """The open item streams of a daemon.

    Who takes a stream out of the table closes its iterator, and a cancellation does not keep it from that, for nobody
    else would.

    Args:
        pool: where plain iterators run.
        linger_s: how long a stream outlives its connection.
        lifetime_s: how long a stream may live at all; 0 is without limit.
    """

    def __init__(self, pool: WorkerPool, linger_s: float, lifetime_s: float) -> None:
        self._pool = pool
        self._linger_s = linger_s
        self._lifetime_s = lifetime_s
        self._streams: dict[str, _Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, iterator: Any, owner: object) -> str:
        """Keep an iterator for the connection ``owner``; returns its id.

        Raises:
            PyroError: there are too many.
        """
        if len(self._streams) >= MAX_STREAMS:
            raise PyroError(f"{MAX_STREAMS} item streams are open already")
        stream_id = str(uuid.uuid4())
        self._streams[stream_id] = _Stream(iterator, owner, trio.current_time())
        return stream_id

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._streams

    def when_closed(self, stream_id: str, call: Callable[[], None]) -> None:
        """Have this called when a stream has ended, whatever ended it."""
        self._streams[stream_id].closed = call

    def _drop(self, stream_id: str) -> _Stream | None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None and stream.closed is not None:
            stream.closed()
        return stream

    async def next_item(self, stream_id: str, owner: object) -> Any:
        """The next item; see `fetch`."""
        return await self.fetch(stream_id, owner, self._advance)

    async def fetch(self, stream_id: str, owner: object, take: Callable[[Any], Awaitable[T]]) -> T:
        """Let ``take`` have the iterator of a stream, while nobody else has it.

        A stream whose connection is gone now belongs to ``owner``.

        Raises:
            EndOfStream: the iterator ended.
            PyroError: there is no such stream, or it was closed meanwhile.
            PoolBusyError: no thread is free; the stream is as it was.
            whatever the iterator raises; the stream is gone then.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise terminated()
        if stream.lost_at is not None:
            stream.owner, stream.lost_at = owner, None
        async with stream.lock:
            if self._streams.get(stream_id) is not stream:
                raise terminated()
            try:
                with trio.CancelScope() as stream.fetching:
                    return await take(stream.iterator)
                raise terminated()
            except PoolBusyError:
                raise  # nothing was fetched: the stream can go on
            except BaseException:
                self._drop(stream_id)
                await _close_iterator(stream.iterator)
                raise

    async def _advance(self, iterator: Any) -> Any:
        if isinstance(iterator, AsyncIterator):
            try:
                return await iterator.__anext__()
            except StopAsyncIteration:
                raise EndOfStream from None
        item = await self._pool.run(next, iterator, _END)
        if item is _END:
            raise EndOfStream
        return item

    async def close(self, stream_id: str) -> None:
        """Close a stream and its iterator, also while an item is waited for; an unknown id is no error."""
        stream = self._drop(stream_id)
        if stream is not None:
            with trio.CancelScope(shield=True):
                await stream.end()

    async def _close_each(self, stream_ids: Iterable[str]) -> None:
        """Close streams; none waits for the clean-up of another one."""
        dropped = [stream for stream in map(self._drop, stream_ids) if stream is not None]
        if dropped:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for stream in dropped:
                        nursery.start_soon(stream.end)

    async def connection_lost(self, owner: object) -> None:
        """Let the streams of a connection linger, or close them at once when lingering is off."""
        now = trio.current_time()
        lost = [key for key, stream in self._streams.items() if stream.owner is owner and stream.lost_at is None]
        for stream_id in lost:
            self._streams[stream_id].lost_at = now
        if self._linger_s <= 0:
            await self._close_each(lost)

    async def sweep(self) -> None:
        """Close what lingered or lived too long."""
        now = trio.current_time()
        await self._close_each([key for key, stream in self._streams.items() if self._is_over(stream, now)])

    def _is_over(self, stream: _Stream, now: float) -> bool:
        lingered = stream.lost_at is not None and now - stream.lost_at >= self._linger_s
        return lingered or 0 < self._lifetime_s <= now - stream.started

    async def close_all(self) -> None:
        """Close every stream."""
        await self._close_each(list(self._streams))


def terminated() -> PyroError:
    """The error of who asks for a stream that is gone."""
    return PyroError("item stream terminated")


class EndOfStream(Exception):
    """The iterator ended. (StopIteration itself cannot pass through a coroutine.)"""


async def _close_iterator(iterator: Any) -> None:
    """Run the clean-up code of a generator; what it raises is nobody's any more."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE_S):
        try:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
            elif hasattr(iterator, "close"):
                await trio.to_thread.run_sync(iterator.close, abandon_on_cancel=True)
        except BaseException as error:  # the reader has left, there is nobody to tell
            travelling, _ = part(error)
            if travelling is not None:
                raise travelling from None
