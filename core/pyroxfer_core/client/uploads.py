"""Calls whose arguments are streams: the items go to the daemon while the call runs, as far as the handler reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import CommunicationError, Outcome, PyroError, SerializeError
from ..objects.context import CallContext
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..transport.items import ItemSender
from ..wire.message import Flags, Message, MessageType
from ..wire.streaming import Credit, EndOfItems, end_message
from .link import Link
from .outbound import ENDED, ended
from .waiter import Waiter

if TYPE_CHECKING:
    from .member import Call
    from .proxy import Proxy

_IN_THREAD: Final = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


def check_streams_fit(oneway: bool, keyed: bool) -> None:
    """Whether a call may have streams among its arguments.

    Raises:
        SerializeError: nobody would wait while the items are sent, or they could not be sent again (outcome NotSent).
    """
    kind = "a one-way call" if oneway else "a call with a key" if keyed else None
    if kind is not None:
        text = f"an iterator cannot be an argument of {kind}; send a list"
        raise SerializeError(text, outcome=Outcome.NOT_SENT)


def stream_serializer(context: SerializerContext, add: Any) -> Serializer:
    """What writes calls with streams; ``add`` gives each of them its number."""
    return make_serializer("msgpack", replace(context, stream_writer=add))


async def call_with_streams(
    proxy: Proxy, link: Link, call: Call, deadline: float | None, served: CallContext | None
) -> Any:
    """Run a call that has iterators among its arguments, on this connection.

    It is never sent again: what was taken from an iterator cannot be taken again. The iterators are closed with the
    end of the call, however it ends.
    """
    meta = link.metadata
    oneway = bool(call.flags & Flags.ONEWAY) or (meta is not None and call.method in meta.oneway)
    check_streams_fit(oneway, call.options.key is not None)
    uploads: list[Upload] = []

    def add(iterator: Any) -> int:
        uploads.append(Upload(link, iterator))
        return uploads[-1].number

    try:
        usual, link.writer = link.writer, stream_serializer(link.context, add)
        try:
            waiter = proxy._pyroPost(link, call, deadline, served)
        finally:
            link.writer = usual
        assert waiter is not None, "of a call that is waited for"
        call.reply = await _wait_and_send(link, waiter, uploads)
    finally:
        for upload in uploads:
            upload.close()
            await _close(upload.iterator)  # of a call that never left
    return proxy._pyroResult(link, call, call.reply)


async def _wait_and_send(link: Link, waiter: Waiter, uploads: list[Upload]) -> Message:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for upload in uploads:
            nursery.start_soon(upload.run, nursery)
        try:
            reply = await link.wait(waiter)
        except Exception as error:  # as it is, without the nursery's group around it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return reply


class Upload:
    """One stream to the daemon."""

    def __init__(self, link: Link, iterator: Any) -> None:
        self.number = link.uploads.add(self)
        self._link = link
        self.iterator = iterator
        self._stopped = False
        self._started = False
        self._waiting: trio.Event | None = None
        self._credit = Credit()

    def take(self, message: Message) -> None:
        """A CREDIT or STOP from the daemon."""
        if message.type == MessageType.STOP:
            self._stopped = True
        else:
            self._credit.add(message)
        if self._waiting is not None:
            self._waiting.set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Send until the iterator or the call ends, or the handler wants no more."""
        link = self._link
        flush_soon = partial(nursery.start_soon, _flush, link)
        sender = ItemSender(link.connection, self.number, link.writer, flush_soon, link.turns, self._credit)
        ending: Exception | None = None
        try:
            while ending is None:
                while not sender.credit and not self._stopped:
                    self._waiting = trio.Event()
                    await self._waiting.wait()
                if self._stopped:
                    break
                self._started = True
                try:
                    await self._fetch(sender)
                except Exception as error:
                    ending = error
                await sender.send_all()
                ending = sender.error or ending
            regular = ending is None or isinstance(ending, EndOfItems)
            last = end_message(self.number) if regular else ended(self.number, link.writer, _of(ending))
            self._started = False
            link.uploads.remove(self)
            await sender.send(last)
        except PyroError:
            pass  # the connection is gone, which the call tells
        finally:
            await _close(self.iterator)

    async def _fetch(self, sender: ItemSender) -> None:
        iterator = self.iterator
        if isinstance(iterator, AsyncIterator):
            await sender.fetch(iterator)
            await trio.lowlevel.checkpoint()
            return
        await sender.fetch_in_thread(iterator, _IN_THREAD)

    def close(self) -> None:
        """The call has ended: a handler that goes on reading gets an error."""
        link = self._link
        link.uploads.remove(self)
        if self._started and not link.connection.broken:
            self._started = False
            try:
                link.connection.queue(ended(self.number, link.writer, PyroError(ENDED)))
                link.connection.flush_nowait()
            except CommunicationError:
                pass  # the connection is gone, and the stream with it


def _of(error: Exception | None) -> BaseException:
    return error if error is not None else PyroError(ENDED)


async def _flush(link: Link) -> None:
    try:
        await link.connection.flush()
    except PyroError:
        pass  # who waits for an answer will find out


async def _close(iterator: AsyncIterator[Any] | Iterator[Any]) -> None:
    """Run the clean-up code of a generator, which may take a second when the call was cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
        try:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
            elif hasattr(iterator, "close") and not hasattr(iterator, "fileno"):
                iterator.close()
        except Exception:  # it is nobody's any more
            return
