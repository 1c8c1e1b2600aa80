"""Item streams: the remote iterators that a call returned."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from ..errors import ConnectionClosedError, PyroError
from ..wire.message import Flags, Message
from .calls import DAEMON_OBJECT, CallOptions, cut_short, encode_call, read_reply
from .link import Link
from .waiter import Waiter

if TYPE_CHECKING:
    from .proxy import Proxy


class ItemStream:
    """An asynchronous iterator over the items of a remote iterator.

    Each item is one request; ``read_ahead`` requests are kept in flight. Leaving the loop early closes the remote
    iterator: at once when the last reference goes, for certain with ``aclose()`` or ``async with``.

    Towards a stock peer reading ahead uses a connection of its own, and items that were fetched but not read are
    lost when the stream is closed early.

    Raises while iterating:
        the remote exception that ended the iterator.
        ConnectionClosedError: the proxy was closed or lost its connection (the items stay fetchable for the daemon's
            linger time, but not by this object).
    """

    def __init__(self, proxy: Proxy, link: Link, stream_id: str, read_ahead: int | None) -> None:
        self._proxy = proxy
        self._link = link
        self._feed = link
        self._id = stream_id
        self._read_ahead = read_ahead or 1
        self._waiting: deque[Waiter] = deque()
        self._finished = False

    def __repr__(self) -> str:
        return f"<ItemStream {self._id}{' finished' if self._finished else ''}>"

    def __aiter__(self) -> ItemStream:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> Any:
        if self._finished:
            raise StopAsyncIteration
        try:
            return await self._next()
        except StopAsyncIteration:
            self._end()
            raise
        except BaseException:
            self._close_remote_nowait()
            raise

    async def _next(self) -> Any:
        self._check_open()
        if self._link.concurrent or self._read_ahead > 1:
            return await self._next_ahead()
        async with self._link.turn:
            self._check_open()
            return await self._take(self._post())

    def _check_open(self) -> None:
        link = self._link
        if link.connection.broken:
            raise cut_short(link.connection.peer, released=link.released)

    async def _next_ahead(self) -> Any:
        if self._feed is self._link and not self._link.concurrent:
            self._feed = await self._proxy._pyroOpenPipeline()
        while len(self._waiting) < self._read_ahead:
            self._waiting.append(self._post())
        return await self._take(self._waiting.popleft())

    def _post(self) -> Waiter:
        return self._feed.post(self._request("get_next_stream_item"))

    def _request(self, method: str, flags: int = 0) -> Message:
        link, settings = self._feed, self._proxy._pyroSettings
        args = [self._id]
        return encode_call(
            link.writer, link.grant, link.version, DAEMON_OBJECT, method, args, {}, flags, CallOptions(), settings
        )

    async def _take(self, waiter: Waiter) -> Any:
        link = self._feed
        message = await link.wait(waiter)
        try:
            return read_reply(message, link.serializer(message.serializer), link.grant, self._proxy._pyroSettings)
        except StopIteration:  # it cannot leave a coroutine as it is
            raise StopAsyncIteration from None

    def _end(self) -> None:
        self._finished = True
        for waiter in self._waiting:
            waiter.abandoned = True
        self._waiting.clear()
        if self._feed is not self._link:
            self._feed.close()
            self._feed = self._link

    def _close_remote(self) -> None:
        """Tell the daemon that nobody reads on, with the next flush."""
        self._end()
        if self._link.usable_for_posting:
            self._link.post_oneway(self._request("close_stream", Flags.ONEWAY))

    def _close_remote_nowait(self) -> None:
        try:
            self._close_remote()
            self._link.connection.flush_nowait()
        except (PyroError, OSError):
            pass  # the connection is gone, and the remote iterator with it

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the remote iterator. Nothing happens on a stream that has ended, or whose connection is gone."""
        if not self._finished:
            self._close_remote()
            try:
                await self._link.connection.flush()
            except ConnectionClosedError:
                pass  # and the remote iterator is gone with it
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> ItemStream:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._finished and self._link.in_own_loop():
            self._close_remote_nowait()
