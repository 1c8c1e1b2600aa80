"""Item streams that a daemon of ours pushes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import CommunicationError
from ..wire.message import Message
from ..wire.streaming import EndOfItems, Inbox, stop_message
from .calls import read_reply
from .items import ItemStream
from .link import Link
from .waiter import Waiter

if TYPE_CHECKING:
    from .proxy import Proxy


class PushedStream(ItemStream):
    """An item stream whose items come without being asked for, as far as this side gave credit.

    Without ``read_ahead`` the first item is asked for alone, then twice as many each time, up to 256 items or 1 MiB;
    with it that many are on their way at once. What was sent and not read is lost when the stream is closed.
    """

    def __init__(self, proxy: Proxy, link: Link, stream_id: str, read_ahead: int | None, number: int) -> None:
        super().__init__(proxy, link, stream_id, read_ahead)
        self._inbox = Inbox(number, read_ahead)
        self._readers = link.readers
        self._readers.inboxes.add(self._inbox)

    async def _next(self) -> Any:
        inbox = self._inbox
        while not inbox.ready:
            self._check_open()
            self._give_credit()
            await self._wait()
        try:
            item = inbox.pop(self._read)
        except EndOfItems:
            raise StopAsyncIteration from None
        self._give_credit()
        return item

    def _read(self, message: Message) -> Any:
        link = self._link
        try:
            return read_reply(message, link.serializer(message.serializer), link.grant, self._proxy._pyroSettings)
        except StopIteration as error:  # it cannot leave a coroutine as it is
            raise StopAsyncIteration from error

    def _give_credit(self) -> None:
        link, credit = self._link, self._inbox.credit_due()
        if credit is not None and link.usable_for_posting:
            link.connection.queue(credit)
            try:
                link.connection.flush_nowait()
            except CommunicationError:
                pass  # what has arrived can be read; then it shows

    async def _wait(self) -> None:
        """Until something has arrived, or the connection is gone."""
        waiter = Waiter()
        waiting = self._readers.waiting
        waiting[self._inbox.number] = waiter
        try:
            await self._link.listen(waiter)
        finally:
            del waiting[self._inbox.number]

    def _check_open(self) -> None:
        if self._link.connection.broken and not self._inbox.ready:
            super()._check_open()

    def _close_remote(self) -> None:
        self._finished = True
        inbox, link = self._inbox, self._link
        if not inbox.started:
            self._readers.inboxes.forget(inbox)
            super()._close_remote()
        elif not inbox.ended and link.usable_for_posting:
            link.connection.queue(stop_message(inbox.number))
